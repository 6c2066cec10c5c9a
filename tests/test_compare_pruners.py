"""The comparison of pruners: its table can be read and made again, and all pruners are treated alike."""

import csv

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from datamodules import CIFARDataModule
from datamodules.cifar import read_digits
from examples import compare_pruners
from lit_methods.backbones import build_backbone, planned_network, prune_points
from lit_methods.filter_sketch.model import widths_at
from lit_methods.functional import count_macs, parse_rates
from lit_methods.hrank.functional import build_plan
from tests import tiny

BUDGET, STEPS, SEED = 0.6, 2, 3


@pytest.fixture(scope="module", params=["tiny_deep", pytest.param("resnet20", marks=pytest.mark.slow)])
def arch(request):
    return request.param


@pytest.fixture(scope="module")
def network(arch):
    tiny.register()
    torch.manual_seed(0)  # what ranks and norms leave of it, and so its cost, is the same in every run
    network = build_backbone(arch)
    network(torch.rand(4, 3, 32, 32))
    return network.eval()


@pytest.fixture(scope="module")
def compared(arch, network, tmp_path_factory):
    """Rows of the table by method, the pixels of the picture, and the images of every training batch."""
    out, batches = tmp_path_factory.mktemp("compared"), []

    class Watched(compare_pruners.Classifier):
        def training_step(self, batch, batch_idx):
            batches.append(batch["image"].clone())
            return super().training_step(batch, batch_idx)

    torch.save(network.state_dict(), out / "network.pth")
    words = f"--backbone {arch} --budgets {BUDGET} --steps {STEPS} --num_images 16 --seed {SEED}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compare_pruners, "Classifier", Watched)
        compare_pruners.main([*words.split(), "--checkpoint", str(out / "network.pth"), "--out", str(out)])
    with open(out / "pruners.csv", newline="") as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    return rows, imread(out / "pruners.png"), batches


@pytest.mark.slow
def test_one_row_for_each_and_all_within_the_budget(compared, network):
    rows, picture, _ = compared
    full = count_macs(network)
    assert list(rows) == ["dense", *compare_pruners.STYLES] == ["dense", "HRank", "FilterSketch", "L1 norm", "random"]
    assert int(rows["dense"]["macs"]) == full
    for row in list(rows.values())[1:]:
        assert 0.9 * BUDGET <= int(row["macs"]) / full <= BUDGET
        assert float(row["macs_share"]) == pytest.approx(int(row["macs"]) / full)
        assert int(row["params"]) < int(rows["dense"]["params"])
        assert float(row["latency_ms"]) > 0
        assert 0 <= float(row["top1"]) <= 1
    for style in compare_pruners.STYLES.values():
        assert (np.abs(picture[..., :3] - to_rgb(style["color"])).max(-1) < 0.01).sum() > 100  # its markers are seen


@pytest.mark.slow
def test_accuracy_is_that_of_the_whole_test_set(compared, network):
    data = CIFARDataModule("digits")
    images, labels = read_digits(train=False)
    assert len(labels) == 359
    normalised = (images / 255 - torch.tensor(data.mean).view(3, 1, 1)) / torch.tensor(data.std).view(3, 1, 1)
    right = (network(normalised).argmax(1).numpy() == labels).sum()
    assert float(compared[0]["dense"]["top1"]) == pytest.approx(right / 359)


@pytest.mark.slow
def test_same_steps_on_same_batches(compared):
    rows, _, batches = compared
    assert [row["steps"] for row in rows.values()] == ["0"] + [str(STEPS)] * 4
    assert len(batches) == 4 * STEPS
    for i, batch in enumerate(batches):
        assert torch.equal(batch, batches[i % STEPS])
    assert not torch.equal(batches[0], batches[1])


@pytest.mark.slow
def test_rates_make_the_same_network_again(compared, arch, network):
    rows, points = compared[0], prune_points(arch)
    scores = {
        "L1 norm": {p.conv: network.get_submodule(p.conv).weight.detach().norm(1, dim=(1, 2, 3)) for p in points},
        "random": compare_pruners.random_scores(points, SEED),
    }
    plans = {method: build_plan(arch, scores[method], parse_rates(rows[method]["rates"])) for method in scores}
    plans["FilterSketch"] = widths_at(arch, parse_rates(rows["FilterSketch"]["rates"]))
    for method, plan in plans.items():
        assert count_macs(planned_network(plan)) == int(rows[method]["macs"]), method


def test_another_seed_is_another_chance():
    points = prune_points("resnet20")

    def kept(seed):
        return build_plan("resnet20", compare_pruners.random_scores(points, seed), [0.5] * 19).keep

    assert kept(0) == kept(0)
    assert all(kept(0)[p.conv] != kept(1)[p.conv] for p in points)


def test_l1_keeps_the_filters_of_largest_sum(arch, network):
    points = prune_points(arch)
    keep = build_plan(arch, compare_pruners.l1_norms(network, points), [0.75] * len(points)).keep
    for point in points:
        sums = [sum(abs(w) for w in row.flatten().tolist()) for row in network.get_submodule(point.conv).weight]
        largest = sorted(range(len(sums)), key=lambda i: -sums[i])[: len(sums) // 4]
        assert keep[point.conv] == sorted(largest)


def test_ranks_are_taken_on_normalised_images():
    data = CIFARDataModule("digits", batch_size=8, val_fraction=0)
    mean, std = [0.2, 0.5, 0.7], [0.1, 0.2, 0.3]
    module = compare_pruners.Classifier("resnet20", mean=mean, std=std).eval()
    got = compare_pruners.mean_ranks(module, prune_points("resnet20")[:1], data, 16)["conv1"]
    total = torch.zeros(16, dtype=torch.float64)
    for batch in data.calibration_dataloader(16):
        image = (batch["image"] / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
        total += torch.linalg.matrix_rank(module.model.bn1(module.model.conv1(image)).relu()).sum(0)
    torch.testing.assert_close(got, total / 16)


def test_a_network_without_blocks_is_refused_before_training(tmp_path):
    with pytest.raises(ValueError, match="densenet40_cifar has no table of blocks"):
        compare_pruners.main(["--backbone", "densenet40_cifar", "--out", str(tmp_path)])
