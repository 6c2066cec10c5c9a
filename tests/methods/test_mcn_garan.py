"""GARAN against the official code's figures, a plain loop over heads and cells, and maps that are no square."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from lit_methods.mcn.model import GARAN
from tests.vector_files import tensors

LAYERS = ("key_collect", "value", "key_diffuse", "query")


def made(dim=8, query_dim=12, num_heads=2, **options):
    garan = GARAN(dim, query_dim, num_heads).to(**options).eval()
    garan.norm.running_mean.uniform_(-1, 1)
    garan.norm.running_var.uniform_(0.5, 2)
    return garan


def plain(garan, v, q):
    """Section 2.3 cell by cell, as it is written."""
    n, dim, height, width = v.shape
    k = garan.num_heads
    attention = torch.zeros_like(v)
    for sample in range(n):
        for head in range(k):
            part = slice(head * dim // k, (head + 1) * dim // k)
            query = garan.query(q[sample].chunk(k)[head])
            cells = [(row, column) for row in range(height) for column in range(width)]
            vectors = [v[sample, part, row, column] for row, column in cells]
            scale = math.sqrt(q.shape[1] / k)
            collect = torch.stack([garan.key_collect(x) @ query / scale for x in vectors]).softmax(0)
            found = sum(weight * garan.value(x) for weight, x in zip(collect, vectors, strict=True))
            for (row, column), x in zip(cells, vectors, strict=True):
                attention[sample, part, row, column] = torch.sigmoid(garan.key_diffuse(x) @ query / scale) * found
    return F.leaky_relu(garan.norm(attention + v), 0.1), attention


def test_garan_gives_the_official_codes_figures(vectors):
    data = tensors(vectors / "mcn" / "garan.npz")
    garan = GARAN(16, 24, num_heads=2).eval()
    state = {f"{layer}.{kind}": data[f"{kind[0]}_{layer}"] for layer in LAYERS for kind in ("weight", "bias")}
    state |= {"norm.weight": data["bn_weight"], "norm.bias": data["bn_bias"]}
    state |= {"norm.running_mean": data["bn_mean"], "norm.running_var": data["bn_var"]}
    garan.load_state_dict(state | {"norm.num_batches_tracked": torch.tensor(0)})
    features, attention = garan(data["f_v"], data["f_q"])
    assert_close(features, data["f_out"], rtol=0, atol=1e-5)
    assert_close(attention, data["f_att"], rtol=0, atol=1e-5)
    features, attention = garan.double()(data["f_v"].double(), data["f_q"].double())
    assert_close(features, data["f_out64"], rtol=0, atol=1e-6)
    assert_close(attention, data["f_att64"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("num_heads", [1, 2, 4])
def test_values_and_gradients_are_those_of_a_loop_over_cells(num_heads):
    garan = made(num_heads=num_heads, dtype=torch.float64)
    v = torch.randn(2, 8, 2, 3, dtype=torch.float64, requires_grad=True)
    q = torch.randn(2, 12, dtype=torch.float64, requires_grad=True)
    wanted, found = plain(garan, v, q), garan(v, q)
    assert_close(found, wanted)
    weights = [torch.randn_like(x) for x in wanted]
    inputs = [v, q, *garan.parameters()]
    gradients = [
        torch.autograd.grad(sum((w * x).sum() for w, x in zip(weights, pair, strict=True)), inputs)
        for pair in (wanted, found)
    ]
    assert_close(gradients[1], gradients[0])
    assert all(gradient.any() for gradient in gradients[1][:2])


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_gate_opens_in_the_cell_that_has_the_feature_also_where_the_map_is_no_square(memory_format):
    garan = GARAN(4, 4, num_heads=2).eval()
    with torch.no_grad():
        for layer in LAYERS:
            getattr(garan, layer).weight.copy_(8 * torch.eye(2))
            getattr(garan, layer).bias.zero_()
        garan.value.bias.fill_(1.0)
    v = torch.zeros(1, 4, 3, 7)
    v[0, :, 2, 1] = 1
    _, attention = garan(v.contiguous(memory_format=memory_format), torch.ones(1, 4))
    assert attention.shape == v.shape
    assert [divmod(int(x.argmax()), 7) for x in attention[0]] == [(2, 1)] * 4


def test_features_keep_channels_last():
    features, _ = made()(torch.rand(2, 8, 4, 5).contiguous(memory_format=torch.channels_last), torch.rand(2, 12))
    assert features.is_contiguous(memory_format=torch.channels_last)


def test_half_precision_stays_near_the_full_one():
    garan, v, q = made(), torch.randn(2, 8, 13, 9), torch.randn(2, 12)
    wanted = garan(v, q)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = garan(v, q)
    for found in (mixed, garan.bfloat16()(v.bfloat16(), q.bfloat16())):
        for half, whole in zip(found, wanted, strict=True):
            assert_close(half.float(), whole, rtol=0.05, atol=0.05)


def test_heads_must_divide_both_sizes():
    with pytest.raises(ValueError, match="num_heads=3 must divide dim=8 and query_dim=12"):
        GARAN(8, 12, num_heads=3)
