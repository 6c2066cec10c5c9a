"""Faces of pictures of mixed sizes, from what a network says at every anchor."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from lit_methods.asfd.anchors import make_anchors
from lit_methods.asfd.detection import best_boxes, check_image, detect, detect_multi_scale, size_fault
from lit_methods.asfd.multi_scale import View, bring_back, look, scales, that_count


def bright_anchors(images):
    """Anchors of three levels, as likely as the picture is bright at their centre."""
    strides = (16, 32, 64)
    boxes = make_anchors(*images.shape[2:], strides=strides)
    levels = [torch.nn.functional.avg_pool2d(images, stride, ceil_mode=True).mean(1).flatten(1) for stride in strides]
    return boxes.expand(len(images), -1, 4), torch.cat(levels, 1)


def slowly(boxes, scores, threshold, pre_nms, iou, most):
    """Section 3's "Test" in a loop."""
    boxes, scores = boxes.double().numpy(), scores.double().numpy()
    order = [i for i in np.argsort(-scores, kind="stable") if scores[i] > threshold][:pre_nms]
    kept = []
    for i in order:
        for j in kept:
            w = min(boxes[i, 2], boxes[j, 2]) - max(boxes[i, 0], boxes[j, 0])
            h = min(boxes[i, 3], boxes[j, 3]) - max(boxes[i, 1], boxes[j, 1])
            both = max(w, 0) * max(h, 0)
            areas = sum((boxes[n, 2] - boxes[n, 0]) * (boxes[n, 3] - boxes[n, 1]) for n in (i, j))
            if both / (areas - both) > iou:
                break
        else:
            kept.append(i)
    return kept[:most]


def test_detections_are_those_of_a_plain_loop():
    image = torch.rand(3, 200, 260)
    boxes, scores = (part[0] for part in bright_anchors(image[None]))
    for options in ((0.01, 5000, 0.3, 750), (0.5, 60, 0.45, 10)):
        expected = slowly(boxes, scores, *options)
        names = ("score_threshold", "pre_nms", "nms_iou", "max_boxes")
        (found,) = detect(bright_anchors, [image], **dict(zip(names, options, strict=True)))
        assert len(expected) > 5
        assert_close(found, torch.cat([boxes[expected], scores[expected, None]], 1), rtol=0, atol=0)


def test_mixed_sizes_give_what_each_picture_gives_alone():
    sizes = [(130, 200), (128, 128), (130, 200), (200, 130), (128, 128), (131, 200)]
    images = [torch.rand(3, *size) for size in sizes]
    passes = []

    def forward(batch):
        passes.append(tuple(batch.shape))
        return bright_anchors(batch)

    together = detect(forward, images)
    assert passes == [(2, 3, 130, 200), (2, 3, 128, 128), (1, 3, 200, 130), (1, 3, 131, 200)]
    for image, found in zip(images, together, strict=True):
        assert_close(found, detect(bright_anchors, image[None])[0])


def test_a_stacked_batch_is_handed_on_as_it_is():
    batch = torch.rand(2, 3, 128, 140)
    assert [len(found) > 0 for found in detect(lambda images: bright_anchors(batch) if images is batch else 1, batch)]


def test_no_pictures_give_no_detections():
    assert detect(bright_anchors, []) == detect(bright_anchors, torch.zeros(0, 3, 128, 128)) == []


def test_a_network_that_has_diverged_finds_what_is_still_a_number():
    boxes = torch.tensor([[0.0, 0, 9, 9], [torch.nan, 0, 9, 9], [0, 0, torch.inf, 9], [20, 20, 30, 30]])
    scores = torch.tensor([torch.nan, 0.9, 0.8, 0.7])
    assert best_boxes(boxes, scores, 0.01, 5000, 0.3, 750).tolist() == [[20, 20, 30, 30, scores[3]]]
    nothing = torch.full((1, 5, 4), torch.nan)
    assert detect(lambda x: (nothing, nothing[..., 0]), torch.rand(1, 3, 128, 128))[0].shape == (0, 5)


def test_half_precision_comes_out_as_float32():
    boxes, scores = torch.tensor([[[0.0, 0, 8, 8]]], dtype=torch.bfloat16), torch.ones(1, 1, dtype=torch.bfloat16)
    assert detect(lambda x: (boxes, scores), [torch.rand(3, 128, 128)])[0].dtype == torch.float32


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (torch.rand(3, 127, 400), r"400x127 \(width x height\), below 128, the largest stride: enlarge it, or pad it"),
        (torch.rand(1, 130, 130), r"must be \(3, H, W\), got \(1, 130, 130\)"),
        (torch.zeros(3, 130, 130, dtype=torch.uint8), "divide it by 255"),
    ],
)
def test_what_is_no_picture_for_the_network_is_refused(image, words):
    for call in (
        check_image,
        lambda image: detect(bright_anchors, [image]),
        lambda image: detect_multi_scale(bright_anchors, image),
    ):
        with pytest.raises(ValueError, match=words):
            call(image)


def dsfd_passes(height, width):
    """Scales and kept boxes as in DSFD's test script, m for ``max_im_shrink``."""
    m = min(3, ((2147483647.0 / 200.0) / (height * width)) ** 0.5)
    shrink = m if m < 1 else 1
    passes = [(shrink, False, "all"), (shrink, True, "all")]
    st = 0.5 if m >= 0.75 else 0.5 * m
    small = [st]
    if m > 0.75:
        small.append(0.75)
    passes += [(s, False, "large") for s in small]
    bt = min(2, m) if m > 1 else (st + m) / 2
    big = [bt]
    if m > 1.5:
        big.append(1.5)
    if m > 2:
        bt *= 2
        while bt < m:
            big.append(bt)
            bt *= 2
        big.append(m)
    passes += [(s, False, "small" if bt > 1 else "large") for s in big]
    passes.append((0.25, False, "large"))
    return passes + [(s, False, "small") for s in (1.25, 1.75, 2.25) if s <= m]


def test_views_are_dsfds_at_every_size():
    """Sides from 128 to 20,000: m from 3 down to 0.16."""
    seen = set()
    for height in np.geomspace(128, 20000, 23).astype(int).tolist():
        for width in (128, 700, 1024, 1500, 2100, 2700, 3500, 5000):
            views = scales(height, width)
            assert [(view.scale, view.mirrored, view.keep) for view in views] == dsfd_passes(height, width)
            seen.add(len(views))
    assert len(seen) > 4


def test_the_largest_scale_and_view_are_options():
    assert max(view.scale for view in scales(300, 300, max_scale=1.6)) == 1.6
    assert [view.scale for view in scales(300, 300, max_scale=5)][4:8] == [2, 1.5, 4, 5]
    largest = max(view.scale for view in scales(1000, 1000, max_pixels=2.25e6))
    assert largest == pytest.approx(1.5)
    for name in ("max_scale", "max_pixels"):
        with pytest.raises(ValueError, match=f"{name}=0 must be positive"):
            scales(300, 300, **{name: 0})


def test_boxes_of_a_view_come_back_to_where_they_were():
    height, width = 333, 517
    box = torch.tensor([[100.0, 40.0, 180.0, 140.0, 0.5]])
    for scale in (0.37, 1.0, 2.25):
        for mirrored in (False, True):
            view = View(scale, mirrored)
            rows, columns = view.size(height, width)
            factors = torch.tensor([columns / width, rows / height, columns / width, rows / height, 1])
            there = box * factors
            if mirrored:
                there[:, [0, 2]] = columns - there[:, [2, 0]]
            assert_close(bring_back(there, view, height, width), box)
            image = torch.zeros(3, height, width)
            image[:, 40:140, 100:180] = 1
            mask = look(image, view)[0] > 0.5
            edges = [mask.any(0).nonzero().min(), mask.any(1).nonzero().min()]
            edges += [mask.any(0).nonzero().max() + 1, mask.any(1).nonzero().max() + 1]
            assert_close(torch.stack(edges).float(), there[0, :4], rtol=0, atol=1.01)


def test_small_views_find_large_faces_and_large_views_small_ones():
    sides = torch.tensor([29.0, 29.1, 98.9, 99.0])
    boxes = torch.stack([torch.zeros(4), torch.zeros(4), sides, sides, torch.ones(4)], 1)
    assert that_count(boxes, View(0.5, keep="large"))[:, 2].tolist() == sides[1:].tolist()
    assert that_count(boxes, View(2.0, keep="small"))[:, 2].tolist() == sides[:3].tolist()
    assert that_count(boxes, View(1.0)) is boxes


class Faces:
    """A network that sees two faces of the picture in every view, and one in the mirrored view alone."""

    def __init__(self, height, width):
        self.size, self.views = (height, width), []
        self.faces = torch.tensor([[20.0, 30, 44, 60], [100, 40, 210, 180]]) / torch.tensor([width, height] * 2)

    def __call__(self, images):
        rows, columns = images.shape[2:]
        left, right = images[0, 0, :, : columns // 2].mean(), images[0, 0, :, columns // 2 :].mean()
        mirrored = bool(left < right)
        self.views.append((rows, columns, mirrored))
        boxes = self.faces.clone()
        if mirrored:
            boxes[:, [0, 2]] = 1 - boxes[:, [2, 0]]
            boxes = torch.cat([boxes, torch.tensor([[0.45, 0.8, 0.5, 0.95]])])
        scores = torch.tensor([0.6 + 0.1 * min(1, rows / 1000), 0.9, 0.8])[: len(boxes)]
        return (boxes * torch.tensor([columns, rows] * 2))[None], scores[None]


def test_views_vote_and_what_one_alone_has_seen_is_dropped():
    height, width = 260, 400
    network = Faces(height, width)
    image = torch.zeros(3, height, width)
    image[:, :, : width // 2] = 1
    found = detect_multi_scale(network, image)
    m = 3
    sizes = {(round(s * height), round(s * width)) for s in (1, 0.5, 0.75, 2, 1.5, m, 1.25, 1.75, 2.25)}  # not 0.25
    assert {view[:2] for view in network.views} == sizes
    assert [view[2] for view in network.views].count(True) == 1
    expected = torch.tensor([[100.0, 40, 210, 180, 0.9], [20, 30, 44, 60, 0.6 + 0.1 * 780 / 1000]])
    assert_close(found, expected, rtol=0, atol=1e-3)


def test_no_view_finds_anything():
    assert detect_multi_scale(lambda x: (torch.zeros(1, 4, 4), torch.zeros(1, 4)), torch.rand(3, 130, 130)).shape == (
        0,
        5,
    )


def test_a_picture_that_shrinks_too_far_names_the_cure():
    with pytest.raises(ValueError, match=r"160x140 .*times 0.5 in its main view.*raise max_scale=0.5 or max_pixels="):
        detect_multi_scale(bright_anchors, torch.rand(3, 140, 160), max_scale=0.5)
    assert size_fault(140, 160, multi_scale=True) == ""
