"""Three sentences about one picture beside three passes, MCN's evaluation beside a plain loop, and a GPU.

python -m pytest tests/benchmarks/test_mcn_benchmarks.py -m benchmark -s
"""

import statistics
import time
from contextlib import nullcontext

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.special import expit
from torch import nn
from torch.testing import assert_close

from datamodules import RefCOCODataModule
from datamodules.demo import write_refcoco
from lit_methods import MCN
from lit_methods.functional.letterbox import letterbox_params
from lit_methods.mcn.evaluation import GroundingFigures
from lit_methods.mcn.functional import postprocess_masks, round_boxes

pytestmark = pytest.mark.benchmark
HEIGHT, WIDTH = 480, 640  # of most pictures of COCO
RECIPE = {"backbone": "tiny", "word_dim": 32, "hidden": 128, "dim": 64}


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def in_turn(title, runs, repeats):
    """Time of the computing thread of each run, in turns after one of each; returns their last results.

    Ratios are to the last one.
    """
    results = {name: run() for name, run in runs.items()}
    times = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.thread_time()
            results[name] = run()
            times[name].append(1000 * (time.thread_time() - start))
    taken = {name: statistics.median(values) for name, values in times.items()}
    ours = list(taken.values())[-1]
    print(f"\n{title}, one thread, medians of {repeats} rounds:")
    for name, values in times.items():
        print(f"{name}: {taken[name]:.1f} ms ({min(values):.1f}-{max(values):.1f}), {taken[name] / ours:.2f} times")
    return results


def module_of(size, vocabulary=("circle", "red", "square"), **arguments):
    """Random weights and, in batch norms, statistics of two noisy pictures."""
    torch.manual_seed(0)
    module = MCN(input_size=[3, size, size], vocabulary=list(vocabulary), freeze_backbone=False, **arguments)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            part.momentum = 1.0
    with torch.no_grad():
        module(torch.rand(2, 3, size, size), module.tokens_of(["red", "square"]))
    return module.eval().to(memory_format=torch.channels_last)


def alike(one, other):
    """The same boxes, confidences and masks, but for pixels whose value is that of the threshold."""
    assert torch.equal(one[0], other[0])
    assert_close(one[1], other[1], rtol=0, atol=1e-4)
    assert all((a != b).float().mean() < 1e-3 for a, b in zip(one[2], other[2], strict=True))


# -- sentences about one picture --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("backbone", "size", "repeats"), [("darknet53", 416, 5), ("vgg16", 416, 3), ("tiny", 128, 25)])
def test_three_sentences_about_one_picture_beside_three_passes(backbone, size, repeats):
    """The goal is twice as fast as three passes; a batch of three that shares nothing is there to compare."""
    module = module_of(size, **(RECIPE if backbone == "tiny" else {"backbone": backbone}))
    image = torch.rand(1, 3, size, size).repeat(3, 1, 1, 1)
    tokens = module.tokens_of(["red circle", "red square", "the circle"])
    sizes, same = torch.tensor([[HEIGHT, WIDTH]] * 3), torch.zeros(3, dtype=torch.int64)

    def passes():
        boxes, scores, masks = zip(
            *(module.predict_rows(image[row, None], tokens[row, None], sizes[row, None]) for row in range(3)),
            strict=True,
        )
        return torch.cat(boxes), torch.cat(scores), [mask for (mask,) in masks]

    runs = {
        "three passes": passes,
        "a batch that shares nothing": lambda: module.predict_rows(image, tokens, sizes),
        "three sentences": lambda: module.predict_rows(image, tokens, sizes, same),
    }
    found = in_turn(f"{backbone} at {size}", runs, repeats)
    for other in list(runs)[:2]:
        alike(found[other], found["three sentences"])


# -- evaluation -------------------------------------------------------------------------------------------------------


def resized(values, height, width):
    """Bilinear, as OpenCV does it, in NumPy."""
    for axis, (old, new) in enumerate(zip(values.shape, (height, width), strict=True)):
        place = ((np.arange(new) + 0.5) * (old / new) - 0.5).clip(0, old - 1)
        low = place.astype(int)
        high = np.minimum(low + 1, old - 1)
        part = np.expand_dims((place - low).astype(np.float32), 1 - axis)
        values = values.take(low, axis) * (1 - part) + values.take(high, axis) * part
    return values


def plain_mask(logits, box, score, height, width, size):
    """One sentence's mask in the way of the official code: two resizings and slices in NumPy."""
    prob = resized(expit(logits), size, size)
    x1, y1, x2, y2 = box
    inside = prob[y1 : y2 + 1, x1 : x2 + 1] * (2 - score)
    prob = prob * score
    prob[y1 : y2 + 1, x1 : x2 + 1] = inside
    _, new_w, new_h, dx, dy = letterbox_params(width, height, size)
    return resized(prob[dy : dy + new_h, dx : dx + new_w], height, width) > 0.35


class PlainFigures:
    """Of one sentence after the other, in NumPy."""

    def __init__(self):
        self.rows = []

    def add(self, box, mask, true_box, truth):
        width, height = (np.minimum(box[2:], true_box[2:]) - np.maximum(box[:2], true_box[:2])).clip(0)
        both = np.prod(box[2:] - box[:2]) + np.prod(true_box[2:] - true_box[:2]) - width * height
        of_box = (width * height + 1e-7) / (both + 1e-7)
        truth = truth > 0
        inter, union = np.sum(mask & truth), np.sum(mask | truth)
        self.rows.append((of_box, (inter + 1e-10) / (union + 1e-10), inter, union))

    def compute(self):
        boxes, masks, inter, union = np.array(self.rows).T
        found = {"acc50": np.mean(boxes > 0.5), "miou": masks.mean(), "oiou": inter.sum() / union.sum()}
        found |= {f"prec@{x:.2f}": np.mean(masks > x) for x in np.arange(10, 20) / 20}
        return found | {"ie": np.mean((boxes > 0.5) != (masks > 0.5))}


def same_figures(plain, ours):
    """But for sentences of which a pixel more or less decides."""
    assert list(plain) == list(ours)
    for name, value in plain.items():
        assert abs(value - float(ours[name])) < 5e-3, name


def test_the_masks_and_figures_of_sentences_beside_a_plain_loop():
    """What comes after the network, for pictures of COCO's size."""
    count, size = 96, 416
    draw = torch.Generator().manual_seed(0)
    coarse = 4 * torch.randn(count, 1, 7, 7, generator=draw)
    logits = F.interpolate(coarse, (52, 52), mode="bicubic")
    first = torch.randint(0, 200, (count, 2), generator=draw)
    boxes = torch.cat([first, first + torch.randint(50, 210, (count, 2), generator=draw)], 1)
    scores = torch.rand(count, generator=draw)
    sizes = [(HEIGHT, WIDTH)] * count
    changed = logits + F.interpolate(2 * torch.randn(count, 1, 5, 5, generator=draw), (52, 52), mode="bicubic")
    truth = {
        "box": boxes + 30 * torch.randn(count, 4, generator=draw),
        "mask": [mask.byte() for mask in postprocess_masks(changed, boxes, scores, sizes)[0]],
    }

    def plain():
        figures = PlainFigures()
        for row in range(count):
            box = boxes[row].numpy()
            mask = plain_mask(logits[row, 0].numpy(), box, float(scores[row]), HEIGHT, WIDTH, size)
            figures.add(box, mask, truth["box"][row].numpy(), truth["mask"][row].numpy())
        return figures.compute()

    def masks():
        rows = torch.arange(count).split(32)
        return [
            mask
            for some in rows
            for mask in postprocess_masks(logits[some], boxes[some], scores[some], [sizes[row] for row in some])[0]
        ]

    def figures(masks):
        figures = GroundingFigures()
        figures.update(boxes, masks, truth)
        return figures.compute()

    found = masks()
    runs = {
        "plain loop": plain,
        "our masks": masks,
        "our figures": lambda: figures(found),
        "ours": lambda: figures(masks()),
    }
    with torch.inference_mode():
        results = in_turn(f"masks and figures of {count} sentences at {HEIGHT} x {WIDTH}", runs, 5)
    same_figures(results["plain loop"], results["ours"])


def test_an_evaluation_of_the_demo_set_beside_a_plain_loop(tmp_path):
    """All but the reading of pictures: the network of the recipe, masks and figures, for some 1,000 sentences."""
    write_refcoco(tmp_path / "demo", images={"train": 40, "val": 200})
    data = RefCOCODataModule(tmp_path / "demo", size=128, max_words=8, num_workers=0)
    data.setup("validate")
    module = module_of(128, data.vocabulary, max_words=8, **RECIPE)
    batches = [data.on_after_batch_transfer(batch, 0) for batch in data.val_dataloader()]
    count = sum(len(batch["image"]) for batch in batches)

    def plain():
        figures = PlainFigures()
        for batch in batches:
            for row, (height, width) in enumerate(batch["size"].tolist()):
                found = module(batch["image"][row, None], batch["tokens"][row, None])
                boxes, scores = module.boxes_of(found["rec_raw"])
                box = round_boxes(boxes, 128)[0].numpy()
                mask = plain_mask(found["seg_logits"][0, 0].numpy(), box, float(scores), height, width, 128)
                figures.add(box, mask, batch["box"][row].numpy(), batch["mask"][row].numpy())
        return figures.compute(), np.array(figures.rows)[:, :2]

    def ours():
        module.setup_figures("val")
        found = [module.validation_step(batch, number) for number, batch in enumerate(batches)]
        overlaps = [torch.cat([rows[name] for rows in found]) for name in ("box_iou", "mask_iou")]
        return module.figures["val"].compute(), torch.stack(overlaps, 1).numpy()

    with torch.inference_mode():
        results = in_turn(f"evaluation of {count} sentences", {"plain loop": plain, "ours": ours}, 3)
    (figures, overlaps), (our_figures, our_overlaps) = results.values()
    same_figures(figures, our_figures)
    assert overlaps.std(0).min() > 0.01
    assert abs(overlaps - our_overlaps).mean() < 1e-3


# -- a GPU ------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("backbone", ["darknet53", "vgg16"])
def test_pictures_a_second_at_416(backbone, half):
    """One sentence about each of 32 pictures: the network, and with masks of 480 x 640."""
    torch.backends.cudnn.benchmark = True
    module = module_of(416, backbone=backbone).to("cuda")
    image = torch.rand(32, 3, 416, 416, device="cuda").contiguous(memory_format=torch.channels_last)
    tokens = module.tokens_of(["red circle"] * 32).to("cuda")
    size = torch.tensor([[HEIGHT, WIDTH]] * 32)
    runs = {
        "network": lambda: module(image, tokens),
        "with masks": lambda: module.predict_rows(image, tokens, size),
    }
    words = []
    with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16) if half else nullcontext():
        for name, run in runs.items():
            for _ in range(3):
                run()
            rates = []
            for _ in range(5):
                torch.cuda.synchronize()
                start = time.perf_counter()
                for _ in range(5):
                    run()
                torch.cuda.synchronize()
                rates.append(5 * 32 / (time.perf_counter() - start))
            words.append(f"{name} {statistics.median(rates):.0f} ({min(rates):.0f}-{max(rates):.0f})")
        boxes, _, masks = module.predict_rows(image, tokens, size)
    memory = torch.cuda.max_memory_allocated() / 2**30
    torch.cuda.reset_peak_memory_stats()
    kind = "bfloat16" if half else "float32"
    print(f"\n{backbone}, {kind}: pictures a second, {', '.join(words)}; at most {memory:.1f} GiB")
    assert boxes.shape == (32, 4)
    assert all(mask.shape == (HEIGHT, WIDTH) for mask in masks)
