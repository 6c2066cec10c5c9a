"""Networks that others trained and published reach their stated accuracy through the command line."""

import pytest

from lit_methods.cli import main
from tests.left_behind import read_summary

IMAGENET_PIXELS = ["--model.mean", "[0.485, 0.456, 0.406]", "--model.std", "[0.229, 0.224, 0.225]"]


@pytest.mark.parametrize(
    ("net", "data", "right", "of"),
    [
        ("resnet20", "cifar10_small", 457, 500),
        pytest.param("resnet56", "cifar10_small", 470, 500, marks=pytest.mark.slow),
        pytest.param("resnet20", "cifar10", 9173, 10_000, marks=pytest.mark.slow),
        pytest.param("resnet56", "cifar10", 9339, 10_000, marks=pytest.mark.slow),
    ],
)
def test_published_weights(shared, tmp_path, net, data, right, of):
    weights = shared / "data" / "weights" / f"cifar10_{net}.npz"
    if not weights.is_file() or not (shared / "data" / data).is_dir():
        pytest.skip("no trained networks in ../shared")
    words = ["--model.base_checkpoint", str(weights), "--data.root", str(shared / "data" / data), *IMAGENET_PIXELS]
    run = ["--run_dir", str(tmp_path / "run"), "--trainer.accelerator", "cpu"]
    assert main("test", [f"classifier_cifar10_{net}", *words, *run]) == 0
    top1 = read_summary(tmp_path / "run")["test/top1"]
    # kernels that sum in another order may move one or two images
    assert abs(round(top1 * of) - right) <= 2
