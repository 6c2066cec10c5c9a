"""DARTS' unrolled gradient beside a numerical derivative, and what BPE-1's network costs per image.

python -m pytest tests/benchmarks/test_architecture_gradient_benchmarks.py -m benchmark -s
"""

import pytest
import torch
import torch.nn.functional as F

from lit_methods.bpe_mip.architecture_gradient import architecture_gradient
from lit_methods.bpe_mip.model import DartsCellNetwork
from lit_methods.bpe_mip.search_space import random_genotype
from tests.benchmarks.side_by_side import side_by_side
from tests.methods.test_architecture_gradient import numerical, smooth_supernet

pytestmark = pytest.mark.benchmark


def test_unrolled_gradient():
    """All 224 numbers at once; the reference takes 4 of them, so the printed ratio is to be multiplied by 56."""
    everything = smooth_supernet(0.03)
    net, optimizer, train, val = everything
    places = torch.randperm(224)[:4].tolist()

    def one_by_one():
        found = []
        for place in places:
            flat = torch.zeros(28, 8, dtype=torch.float64).view(-1)
            flat[place] = 1
            found.append(numerical(*everything, flat.view(28, 8).split([2, 3, 4, 5] * 2)))
        return torch.tensor(found, dtype=torch.float64)

    def at_once():
        return torch.cat(architecture_gradient(net, train, val, optimizer=optimizer, xi=0.03))

    slow, fast = side_by_side("4 numerical derivatives against the unrolled gradient", one_by_one, at_once, repeats=2)
    error = ((fast.flatten()[places] - slow).norm() / slow.norm()).item()
    print(f"the ratio above is to be multiplied by 56; relative difference {error:.1e}")
    assert error < 2e-3


def test_first_order_against_unrolled():
    """What the second term costs; about four passes in place of one."""
    net, optimizer, train, val = smooth_supernet(0.03)

    def gradient(unrolled):
        return architecture_gradient(net, train, val, optimizer=optimizer, xi=0.03, unrolled=unrolled)

    side_by_side("unrolled against first order", lambda: gradient(True), lambda: gradient(False))


def test_network_of_bpe1():
    """Forward and backward pass of a random genotype, 8 channels, 6 cells, images of 16 pixels; one against 128."""
    network = DartsCellNetwork(random_genotype(torch.Generator().manual_seed(0)), 8, 6, image_size=16, auxiliary=True)
    network.drop_path_prob = 0.1
    images, labels = torch.randn(128, 3, 16, 16), torch.randint(10, (128,))

    def step(count):
        logits, auxiliary = network(images[:count])
        (F.cross_entropy(logits, labels[:count]) + 0.4 * F.cross_entropy(auxiliary, labels[:count])).backward()

    side_by_side("BPE-1's network: 32 images four times against 128 at once", lambda: [step(32) for _ in range(4)],
                 lambda: step(128))  # fmt: skip
    print("both are 128 images: divide by 128 for one image")
