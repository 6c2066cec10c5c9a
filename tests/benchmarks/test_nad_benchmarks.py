"""NAD's classes at once beside the official loop over classes, and similarity beside the loop over pairs.

python -m pytest tests/benchmarks/test_nad_benchmarks.py -m benchmark -s
"""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from lit_methods.backbones import build_backbone
from lit_methods.nad.functional import subarchitecture_similarity
from lit_methods.nad.gating import GATE_POINTS, GatedModel
from lit_methods.nad.learning import set_gradients
from tests.benchmarks.side_by_side import side_by_side

pytestmark = pytest.mark.benchmark


@pytest.mark.parametrize(
    ("arch", "side", "classes"), [("resnet20", 32, 10), ("resnet56", 32, 10), ("resnet18", 64, 4), ("resnet50", 64, 4)]
)
def test_classes_at_once(arch, side, classes):
    """One step of 16 images of each class; the goal is 1.5 times on a CPU, 10 on a GPU."""
    network = build_backbone(arch, 10).eval().requires_grad_(False).to(memory_format=torch.channels_last)
    gated = GatedModel(network, GATE_POINTS[arch], classes, input_size=(3, side, side))
    x = torch.rand(16 * classes, 3, side, side).contiguous(memory_format=torch.channels_last)
    row = torch.arange(classes).repeat_interleave(16)
    with torch.no_grad():
        label = gated(x, mode="off").argmax(1)  # so that every class is active

    def grads():
        return [gate.grad.clone() for gate in gated.gate_logits]

    def one_by_one():
        found = []
        for task in range(classes):
            set_gradients(gated, x[row == task], label[row == task], row[row == task], 0.02)
            found.append(grads())
        return [sum(parts) for parts in zip(*found, strict=True)]

    def at_once():
        set_gradients(gated, x, label, row, 0.02)
        return grads()

    slow, fast = side_by_side(f"{arch} at {side}, {classes} classes: loop against all at once", one_by_one, at_once)
    for a, b in zip(slow, fast, strict=True):
        assert_close(a, b, rtol=1e-3, atol=1e-6)


def test_similarity_of_a_thousand_classes():
    """ResNet-50's gates; the loop runs over a sample of the pairs, and stands for all of them. The goal is 200."""
    channels = [64, *[256] * 3, *[512] * 4, *[1024] * 6, *[2048] * 3]
    generator = torch.Generator().manual_seed(0)
    masks = [torch.rand(1000, c, generator=generator) < 0.5 for c in channels]
    pairs = np.random.default_rng(0).integers(0, 1000, (200, 2))
    factor = 1000 * 999 / 2 / len(pairs)

    def loop():
        return [
            torch.stack([(m[i] & m[j]).sum() / (m[i] | m[j]).sum() for m in masks]).double().mean() for i, j in pairs
        ]

    slow, fast = side_by_side(
        "similarity: 200 pairs in a loop against all", loop, lambda: subarchitecture_similarity(masks)
    )
    print(f"the ratio above is to be multiplied by {factor:.1f}, all pairs over those of the loop")
    assert_close(torch.stack(slow), torch.stack([fast[i, j] for i, j in pairs]), rtol=0, atol=1e-6)
