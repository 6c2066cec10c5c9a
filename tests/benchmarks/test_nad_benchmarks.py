"""NAD's classes at once beside the official loop over classes, and similarity beside the loop over pairs.

python -m pytest tests/benchmarks/test_nad_benchmarks.py -m benchmark -s
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from lit_methods.backbones import build_backbone
from lit_methods.nad.functional import subarchitecture_similarity
from lit_methods.nad.gating import GATE_POINTS, GatedModel
from lit_methods.nad.learning import set_gradients
from tests.benchmarks.side_by_side import side_by_side

pytestmark = pytest.mark.benchmark


class PlainLoop:
    """The procedure of the specification word for word: one class at a time, two networks, one backward pass.

    Maps in PyTorch's usual layout, and weights that take gradients, which nobody asks for.
    """

    def __init__(self, fresh, network, gated, side):
        self.network, self.gated = fresh.eval(), gated
        self.network.load_state_dict(network.state_dict())
        self.points = [self.network.get_submodule(name) for name in gated.gate_points]
        self.masks, self.acts = [], []
        for i, point in enumerate(self.points):
            point.register_forward_hook(lambda _, __, y, i=i: self.gate(i, y))

    def gate(self, i, output):
        output = output * torch.sigmoid(self.masks[i])[None, :, None, None] if self.masks else output * 1
        self.acts.append(output)
        return output

    def gradients(self, x, label, row, classes):
        found = [torch.zeros_like(m) for m in self.gated.gate_logits]
        for task in range(classes):
            images, target = x[row == task], label[row == task]
            self.masks, self.acts = [], []
            with torch.no_grad():
                correct = self.network(images).argmax(1) == target
            orig = self.acts
            self.masks = [m.detach()[task].requires_grad_() for m in self.gated.gate_logits]
            self.acts = []
            ce = F.cross_entropy(self.network(images), target)
            mse = sum(F.mse_loss(a[correct], b[correct]) for a, b in zip(self.acts, orig, strict=True))
            gate = sum(m.sigmoid().square().mean() for m in self.masks)
            ((ce + mse + 0.02 * gate) / len(orig)).backward()
            for whole, m in zip(found, self.masks, strict=True):
                whole[task] = m.grad
            self.network.zero_grad()
        return found


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

    plain = PlainLoop(build_backbone(arch, 10), network, gated, side)

    def as_described():
        return plain.gradients(x.contiguous(), label, row, classes)

    def again():
        set_gradients(gated, x, label, row, 0.02)
        return grads()

    slow, fast = side_by_side(f"{arch} at {side}, {classes} classes: loop against all at once", one_by_one, at_once)
    plainly, _ = side_by_side(
        f"{arch} at {side}, {classes} classes: plain loop against all at once", as_described, again
    )
    for ours, *others in zip(fast, slow, plainly, strict=True):
        assert all((other - ours).norm() <= 1e-3 * ours.norm() for other in others)  # float32, other batch sizes


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
