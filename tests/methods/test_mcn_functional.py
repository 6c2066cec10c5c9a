"""MCN's pooled words and consistency energy against the official vectors, plain loops and finite differences."""

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck
from torch.testing import assert_close

from lit_methods.mcn import functional
from lit_methods.mcn.functional import (
    attention_pool,
    consistency_energy,
    consistency_energy_loss,
    spatial_attention,
)
from tests.vector_files import tensors

INPUTS = ("f_s", "f_c", "w_s", "b_s", "w_c", "b_c")


def known(folder, name, dtype=torch.float32):
    found = tensors(folder / "mcn" / f"{name}.npz")
    return {k: v.to(dtype) if v.is_floating_point() and not k.endswith("64") else v for k, v in found.items()}


def two_maps(dtype=torch.float64, seed=0, n=2, d=5):
    """Inputs of the energy, maps of different and of no square size."""
    draw = torch.Generator().manual_seed(seed)
    shapes = [(n, d, 4, 3), (n, d, 2, 3), (d,), (1,), (d,), (1,)]
    return [torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype) for shape in shapes]


def test_all_names_of_the_method_are_in_one_place():
    missing = [name for name in functional.__all__ if not callable(getattr(functional, name)) and name != "ASNLS_MODES"]
    assert not missing


# -- words ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-6)])
def test_pooled_words_are_those_of_the_official_code(vectors, dtype, tolerance):
    file = known(vectors, "lang_pool", dtype)
    found = attention_pool(file["h"], file["weight"], file["bias"])
    assert found.dtype == dtype
    assert_close(found, file["pooled64"].to(dtype), rtol=0, atol=tolerance)
    assert_close((file["attn64"].to(dtype) * file["h"]).sum(1), found, rtol=0, atol=tolerance)


def test_masked_words_do_not_count():
    file = torch.randn(3, 6, 4, dtype=torch.float64)
    weight, bias = torch.randn(4, 4, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    lengths = torch.tensor([2, 6, 0])
    mask = torch.arange(6) < lengths[:, None]
    found = attention_pool(file, weight, bias, mask)
    assert_close(found[:1], attention_pool(file[:1, :2], weight, bias))
    assert_close(found[1:], attention_pool(file[1:], weight, bias))  # the last has no word: as if unmasked
    file[0, 2:] = 99
    assert_close(attention_pool(file, weight, bias, mask)[0], found[0])


def test_pooled_words_have_the_right_gradient():
    h, weight, bias = (torch.randn(s, dtype=torch.float64, requires_grad=True) for s in [(2, 3, 4), (4, 4), (4,)])
    mask = torch.tensor([[True, True, False], [False, False, False]])
    assert gradcheck(attention_pool, (h, weight, bias, mask))


def test_words_are_dropped_in_training_only():
    h, weight, bias = torch.randn(4, 5, 8), torch.randn(8, 8), torch.randn(8)
    plain = attention_pool(h, weight, bias)
    assert not torch.equal(attention_pool(h, weight, bias, dropout=0.5), plain)
    assert_close(attention_pool(h, weight, bias, dropout=1.0), h.mean(1))  # all of Z is zero: equal weights


# -- energy -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-9)])
def test_the_energy_is_that_of_the_official_code(vectors, dtype, tolerance):
    file = known(vectors, "cem", dtype)
    inputs = [file[name].requires_grad_(name.startswith("f_")) for name in INPUTS]
    energy = consistency_energy(*inputs)
    loss = consistency_energy_loss(energy)
    assert energy.dtype == loss.dtype == dtype
    assert_close(energy, file["energy64"].to(dtype), rtol=0, atol=tolerance)
    assert_close(loss, file["loss64"].to(dtype), rtol=0, atol=tolerance)
    loss.backward()
    for name in ("f_s", "f_c"):
        expected = file[f"grad_{name}"]
        assert_close(file[name].grad, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_attention_is_that_of_the_official_code(vectors):
    file = known(vectors, "cem", torch.float64)
    for side in "sc":
        found = spatial_attention(file[f"f_{side}"], file[f"w_{side}"], file[f"b_{side}"])
        assert found.shape == (3, *file[f"f_{side}"].shape[2:])
        assert_close(found.flatten(1), file[f"attn_{side}64"], rtol=0, atol=1e-9)


def test_the_energy_is_a_sum_over_pairs_of_cells():
    f_s, f_c, w_s, b_s, w_c, b_c = two_maps()
    found = consistency_energy(f_s, f_c, w_s, b_s, w_c, b_c)
    for n in range(2):
        s, c = (f[n].flatten(1).T.numpy() for f in (f_s, f_c))
        e_s, e_c = (np.exp(x @ w.numpy()) for x, w in ((s, w_s), (c, w_c)))
        total = 0.0
        for i, x in enumerate(s):
            for j, y in enumerate(c):
                cosine = x @ y / np.sqrt((x @ x) * (y @ y))
                total += e_s[i] / e_s.sum() * (cosine + 1) / 2 * e_c[j] / e_c.sum()
        assert float(found[n]) == pytest.approx(total, abs=1e-12)


def test_the_energy_has_the_right_gradient():
    inputs = [x.requires_grad_() for x in two_maps(n=2, d=2)]
    assert gradcheck(lambda *x: consistency_energy_loss(consistency_energy(*x)), inputs)


def test_clipped_pairs_have_no_gradient_through_their_cosine():
    direction = torch.randn(1, 5, 1, 1, dtype=torch.float64)
    for sign, expected in ((1, 1 - 1e-6), (-1, 1e-6)):
        f_s = (direction * torch.rand(1, 1, 3, 3, dtype=torch.float64) * 9 + direction).requires_grad_()
        f_c = (sign * direction).expand(1, 5, 2, 2).clone().requires_grad_()
        weights = torch.randn(5, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
        energy = consistency_energy(f_s, f_c, *weights, *weights)
        assert energy.item() == pytest.approx(expected, abs=1e-12)
        energy.sum().backward()
        assert_close(f_s.grad, torch.zeros_like(f_s), rtol=0, atol=1e-15)  # nor through the attention, all being alike
        assert_close(f_c.grad, torch.zeros_like(f_c), rtol=0, atol=1e-15)


def test_the_energy_knows_neither_the_length_of_features_nor_the_biases():
    f_s, f_c, w_s, b_s, w_c, b_c = two_maps()
    expected = consistency_energy(f_s, f_c, w_s, b_s, w_c, b_c)
    assert ((expected > 0) & (expected < 1)).all()
    assert_close(consistency_energy(f_s, f_c, w_s, b_s + 5, w_c, b_c - 3), expected)
    assert_close(consistency_energy(f_s * 7, f_c / 3, w_s / 7, b_s, w_c * 3, b_c), expected)
    f_s, f_c = f_s.sign(), f_c.sign()
    equal = torch.zeros_like(w_s)
    lengths = torch.rand(2, 1, 4, 3, dtype=torch.float64) + 0.5
    assert_close(
        consistency_energy(f_s * lengths, f_c, equal, b_s, equal, b_c),
        consistency_energy(f_s, f_c, equal, b_s, equal, b_c),
    )


def test_features_below_the_floor_count_less_and_have_gradients():
    f_s, f_c, *weights = two_maps()
    tiny = (f_s * 1e-5).requires_grad_()
    energy = consistency_energy(tiny, f_c, *weights)
    energy.sum().backward()
    assert_close(energy, torch.full_like(energy, 0.5), rtol=0, atol=0.02)
    assert tiny.grad.isfinite().all()
    nothing = torch.zeros_like(f_s, requires_grad=True)
    consistency_energy(nothing, f_c, *weights).sum().backward()
    assert nothing.grad.isfinite().all()


def test_the_loss_is_zero_only_where_all_directions_are_one():
    one = torch.ones(2, 3, 2, 2)
    weights = torch.ones(3), torch.zeros(1), torch.ones(3), torch.zeros(1)
    assert 0 <= consistency_energy_loss(consistency_energy(one, one, *weights)) < 1e-5
    other = one.clone()
    other[:, 0, 0, 0] = -1
    assert consistency_energy_loss(consistency_energy(one, other, *weights)) > 0.01
    assert consistency_energy_loss(torch.zeros(0)) == 0


def test_half_precision_and_autocast_do_not_touch_the_energy():
    half = two_maps(torch.bfloat16)
    expected = consistency_energy(*(x.float() for x in half))
    assert torch.equal(consistency_energy(*half), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(consistency_energy(*half), expected)
        assert consistency_energy_loss(expected.bfloat16()).dtype == torch.float32


MAPS = two_maps(torch.float32)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: attention_pool(torch.zeros(2, 3), torch.zeros(3, 3), torch.zeros(3)), r"h must be \(N, T, C\)"),
        (lambda: attention_pool(torch.zeros(2, 3, 4), torch.zeros(3, 4), torch.zeros(4)), r"weight \(C, C\)"),
        (
            lambda: attention_pool(torch.zeros(2, 3, 4), torch.zeros(4, 4), torch.zeros(4), torch.ones(2, 3)),
            r"mask must be \(2, 3\) bool, true for words, got \(2, 3\) of torch.float32",
        ),
        (lambda: consistency_energy(MAPS[0][0], *MAPS[1:]), r"f_s must be \(N, d, h, w\)"),
        (lambda: consistency_energy(*MAPS[:4], torch.zeros(1, 5), MAPS[5]), r"f_c .* its weight \(d,\)"),
        (lambda: consistency_energy(MAPS[0][:1], *MAPS[1:]), "agree in samples and channels"),
        (lambda: spatial_attention(MAPS[0], MAPS[2], torch.zeros(())), r"its bias \(1,\)"),
        (lambda: consistency_energy_loss(torch.zeros(2, 1)), r"energy must be \(N,\), one per sample, got \(2, 1\)"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
