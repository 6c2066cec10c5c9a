"""PPBA beside what it cannot do without: the bare network's forward passes, and the dense sensing matrix.

python -m pytest tests/benchmarks/test_ppba_benchmarks.py -m benchmark -s
"""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from lit_methods.backbones import build_backbone
from lit_methods.ppba import LowFrequencyProjection, PPBAAttack, low_frequency_indices
from lit_methods.ppba.build import low_frequencies
from tests.benchmarks.side_by_side import side_by_side

pytestmark = pytest.mark.benchmark
BATCH, ITERATIONS = 8, 12


class Stubborn(nn.Module):
    """A network that always says 0, however slowly: no image is ever finished."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.eval()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = self.network(images.contiguous(memory_format=torch.channels_last)).clone()
        logits[:, 0] += 1e6
        return logits


@pytest.mark.parametrize(
    ("arch", "side"), [("resnet56", 32), ("mobilenet_v1_x025", 224), ("resnet18", 112), ("resnet18", 224)]
)
def test_overhead_of_the_attack(arch, side):
    """Wall time over (queries x bare forward) at batch 8; the goal is 1.15 at most."""
    model = Stubborn(build_backbone(arch)).to(memory_format=torch.channels_last)
    images = torch.rand(BATCH, 3, side, side)
    labels = torch.zeros(BATCH, dtype=torch.int64)
    attack = PPBAAttack(low_frequencies(side), max_queries=ITERATIONS + 1)

    def attacked():
        return attack(model, images, labels)

    @torch.no_grad()
    def bare():
        return [model(images) for _ in range(ITERATIONS + 1)]

    result, _ = side_by_side(f"{arch} at {side}, {ITERATIONS} iterations, attack against bare forwards", attacked, bare)
    assert (result.queries == ITERATIONS + 1).all()


@pytest.mark.parametrize(("arch", "side"), [("resnet18", 112)])
def test_overhead_of_square(arch, side):
    """The same for torchattacks' Square, to compare."""
    torchattacks = pytest.importorskip("torchattacks")
    model = Stubborn(build_backbone(arch)).to(memory_format=torch.channels_last)
    images = torch.rand(BATCH, 3, side, side)
    labels = torch.zeros(BATCH, dtype=torch.int64)
    attack = torchattacks.Square(model, norm="L2", eps=5.0, n_queries=ITERATIONS, n_restarts=1, seed=0)
    attack.init_hyperparam(images)

    @torch.no_grad()
    def bare():
        return [model(images) for _ in range(ITERATIONS + 1)]

    side_by_side(f"{arch} at {side}, Square", lambda: attack.attack_single_run(images, labels), bare)


def test_back_projection_against_the_dense_matrix():
    """At 224 pixels and 1,500 coefficients; the goal is 10 times."""
    indices = low_frequency_indices(224, 3, 28, 7, 1500, torch.Generator().manual_seed(5677))
    projection = LowFrequencyProjection(indices, 224)
    dense = projection(torch.eye(1500)).flatten(1)
    for batch in (1, BATCH, 32):
        z = torch.randn(batch, 1500)
        slow, fast = side_by_side(f"back-projection, batch {batch}", lambda z=z: z @ dense, lambda z=z: projection(z))
        assert_close(fast.flatten(1), slow, atol=1e-5, rtol=1e-4)
