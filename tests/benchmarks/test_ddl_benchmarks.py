"""DDL's histogram beside the official matrix products, and what the loss adds to a step.

python -m pytest tests/benchmarks/test_ddl_benchmarks.py -m benchmark -s
"""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from lit_methods.ddl.functional import soft_histogram
from lit_methods.ddl.histogram import histograms
from lit_methods.ddl.model import ArcFaceHead, DistributionDistillationLoss
from tests.benchmarks.side_by_side import side_by_side

pytestmark = pytest.mark.benchmark

REPEATS = 51
DEVICES = pytest.mark.parametrize(
    "device", ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]
)


def by_products(sims, nodes, gamma=50.0):
    """The official form: similarities and nodes are spread out by matrix products with ones."""
    spread = torch.mm(sims[:, None], sims.new_ones(1, len(nodes)))
    grid = torch.mm(sims.new_ones(len(sims), 1), nodes[None])
    heights = torch.exp(-gamma * torch.pow(spread - grid, 2)).sum(0)
    return heights / heights.sum()


def settled(device, result):
    if device == "cuda":
        torch.cuda.synchronize()
    return result


@DEVICES
@pytest.mark.parametrize("count", [32, 256])
def test_histogram_beside_two_matrix_products(device, count):
    """The goal is: not slower, for values alone and with gradients."""
    sims, nodes = torch.rand(count, device=device), torch.arange(1000, device=device) / 1000
    cot = torch.randn(1000, device=device)

    def gradient(histogram):
        leaf = sims.clone().requires_grad_()
        return settled(device, torch.autograd.grad((histogram(leaf, nodes) * cot).sum(), leaf)[0])

    slow, fast = side_by_side(
        f"histogram of {count} on 1000 nodes, {device}, forward",
        lambda: settled(device, by_products(sims, nodes)),
        lambda: settled(device, soft_histogram(sims, nodes)),
        repeats=REPEATS,
    )
    assert_close(fast, slow, rtol=1e-4, atol=1e-7)
    slow, fast = side_by_side(
        f"histogram of {count} on 1000 nodes, {device}, forward and backward",
        lambda: gradient(by_products),
        lambda: gradient(soft_histogram),
        repeats=REPEATS,
    )
    assert_close(fast, slow, rtol=1e-3, atol=1e-5)


@DEVICES
@pytest.mark.parametrize("count", [32, 256])
def test_four_histograms_at_once_beside_one_after_the_other(device, count):
    """The sets of a teacher and a student, forward and backward; the goal is: not slower."""
    sims, nodes = torch.rand(4, count, device=device), torch.arange(1000, device=device) / 1000
    cot = torch.randn(4, 1000, device=device)

    def gradient(form):
        leaf = sims.clone().requires_grad_()
        return settled(device, torch.autograd.grad((form(leaf) * cot).sum(), leaf)[0])

    slow, fast = side_by_side(
        f"4 histograms of {count} on 1000 nodes, {device}, forward and backward",
        lambda: gradient(lambda rows: torch.stack([by_products(row, nodes) for row in rows])),
        lambda: gradient(lambda rows: histograms(rows, nodes)),
        repeats=REPEATS,
    )
    assert_close(fast, slow, rtol=1e-3, atol=1e-5)


@DEVICES
def test_what_the_loss_adds_to_a_step(device):
    """192 embeddings of 512 numbers, 64 of them with labels of 1000 classes; forward and backward, no backbone."""
    embeddings = torch.randn(192, 512, device=device)
    labels = torch.randint(1000, (64,), device=device)
    head, loss = ArcFaceHead(512, 1000).to(device), DistributionDistillationLoss().to(device)

    def step(with_loss):
        leaf = embeddings.clone().requires_grad_()
        parts = leaf.split(32)
        total = F.cross_entropy(head(leaf[:64], labels), labels)
        if with_loss:
            total = total + loss(parts[:2], [(parts[2], parts[3]), (parts[4], parts[5])]).loss
        return settled(device, torch.autograd.grad(total, [leaf, head.kernel])[0])

    plain, ours = side_by_side(
        f"ArcFace alone beside ArcFace and DDL, {device}", lambda: step(False), lambda: step(True), repeats=REPEATS
    )
    assert not plain[64:].any()
    assert ours[64:].any()
