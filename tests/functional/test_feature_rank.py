"""The rank is that of ``torch.linalg.matrix_rank`` in float32, map by map."""

import numpy as np
import pytest
import torch

from lit_methods.functional import feature_map_rank

EPS = float(np.finfo(np.float32).eps)


def one_by_one(maps):
    return torch.stack([torch.stack([torch.linalg.matrix_rank(m) for m in image]) for image in maps.float()])


def test_maps_of_the_vectors(vectors):
    reference = np.load(vectors / "hrank" / "rank_maps.npz")
    for i in range(6):
        ranks = feature_map_rank(torch.from_numpy(reference[f"maps{i}"]))
        assert ranks.dtype == torch.int64
        np.testing.assert_array_equal(ranks, reference[f"rank{i}"])
        np.testing.assert_allclose(ranks.double().mean(0), reference[f"mean_rank{i}"], rtol=1e-12)


def test_edge_cases_of_the_vectors(vectors):
    reference = np.load(vectors / "hrank" / "rank_edge.npz")
    cases = [key[4:] for key in reference if key.startswith("map_")]
    assert len(cases) == 21
    for case in cases:
        rank = feature_map_rank(torch.from_numpy(reference[f"map_{case}"])[None, None])
        assert rank.item() == reference[f"rank_{case}"], case


def spectrum(generator, count, height, width, low, high):
    """Maps with a share of singular values at 10**(low..high) tolerances; the rest spread over two decades."""
    k, tolerance = min(height, width), max(height, width) * EPS
    options = {"generator": generator, "dtype": torch.float64}
    left = torch.linalg.qr(torch.randn(count, height, height, **options))[0][:, :, :k]
    right = torch.linalg.qr(torch.randn(count, width, width, **options))[0][:, :k]
    values = 10 ** (-2 * torch.rand(count, k, **options))
    near = tolerance * 10 ** (low + (high - low) * torch.rand(count, k, **options))
    values = torch.where(torch.rand(count, k, generator=generator) < 0.4, near, values)
    values[:, 0] = 1
    return (left * values[:, None]) @ right


@pytest.mark.parametrize(
    "shape", [(1, 6), (2, 2), (3, 5), (4, 4), (7, 7), (8, 8), (9, 16), (16, 9), (16, 16), (32, 32), (56, 56)]
)
def test_equal_to_the_rule_where_rounding_decides(shape):
    generator = torch.Generator().manual_seed(sum(shape))
    count = 150 if max(shape) <= 16 else 12
    for low, high in ((-0.05, 0.05), (-0.5, 0.5), (-3, 3)):
        maps = spectrum(generator, count, *shape, low, high)
        scales = 10 ** (80 * torch.rand(count, 1, 1, generator=generator, dtype=torch.float64) - 44)
        for batch in (maps, maps * scales):
            batch = batch.float()[None]
            assert torch.equal(feature_map_rank(batch), one_by_one(batch))


@pytest.mark.parametrize("size", [2, 4, 7, 14, 16, 28])
def test_equal_to_the_rule_on_structured_maps(size):
    generator = torch.Generator().manual_seed(size)
    noise = torch.randn(20, size, size, generator=generator)
    ramp = torch.arange(1.0, size + 1)
    hilbert = 1 / (ramp[:, None] + ramp[None] - 1)
    low = torch.randn(20, size, 2, generator=generator) @ torch.randn(20, 2, size, generator=generator)
    batches = {
        "relu": noise.relu(),
        "sparse": (noise - 2).relu(),
        "hilbert": hilbert * noise[:, :, :1],
        "constant": torch.full((20, size, size), 0.37),
        "almost constant": 0.37 + 1e-6 * noise,
        "low": low,
        "low with noise": low + 1e-6 * noise,
        "smooth": noise.cumsum(1).cumsum(2),
        "exponential": (20 * noise).exp().clamp(max=1e30),
        "subnormal": noise * 1e-42,
        "near overflow": noise.clamp(-3, 3) * 1e38,
    }
    for name, maps in batches.items():
        assert torch.equal(feature_map_rank(maps[None]), one_by_one(maps[None])), name


def test_invariances():
    maps = torch.randn(2, 3, 9, 6).relu()
    maps[:, 1, :, 2:] = 0
    ranks = feature_map_rank(maps)
    assert ranks[:, 1].max() <= 2
    assert ranks.max() <= 6
    for other in (maps.mT, maps.flip(3), maps[:, :, torch.randperm(9)], -3e-20 * maps, maps.double(), 1e20 * maps):
        assert torch.equal(feature_map_rank(other), ranks)


def test_tolerance_is_float32s_also_for_other_types():
    maps = torch.eye(4, dtype=torch.float64)[None, None] * torch.tensor([1, 1e-3, 1e-7, 1e-9], dtype=torch.float64)
    assert feature_map_rank(maps).item() == 2  # all four in float64
    assert feature_map_rank(torch.eye(4)[None, None].half()).item() == 4


def test_given_tolerance():
    maps = torch.diag(torch.tensor([1.0, 1e-2, 1e-5, 1e-9]))[None, None]
    expected = {0.1: 1, 1e-3: 2, 1e-6: 3, 1e-8: 3, 1e-10: 4, 0.0: 4}
    assert {rtol: feature_map_rank(maps, rtol=rtol).item() for rtol in expected} == expected


def test_autocast_does_not_coarsen():
    maps = torch.randn(1, 4, 16, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(feature_map_rank(maps), one_by_one(maps))


def test_degenerate_and_wrong_input():
    assert feature_map_rank(torch.zeros(0, 3, 4, 4)).shape == (0, 3)
    assert feature_map_rank(torch.zeros(2, 3, 5, 4)).tolist() == [[0] * 3] * 2
    assert feature_map_rank(torch.tensor([[[[0.0]]], [[[-1e-30]]]])).tolist() == [[0], [1]]
    with pytest.raises(ValueError, match=r"maps must be float \(N, C, H, W\)"):
        feature_map_rank(torch.zeros(3, 4, 4))
    with pytest.raises(ValueError, match="int64"):
        feature_map_rank(torch.zeros(1, 3, 4, 4, dtype=torch.int64))
    for bad in (torch.nan, torch.inf):
        with pytest.raises(ValueError, match="NaN, inf or values beyond float32"):
            feature_map_rank(torch.full((1, 1, 2, 2), bad))
    with pytest.raises(ValueError, match="beyond float32"):
        feature_map_rank(torch.full((1, 1, 2, 2), 1e39, dtype=torch.float64))


def test_gradients_and_arguments_are_left_alone():
    maps = torch.randn(1, 2, 4, 4, requires_grad=True)
    before = maps.detach().clone()
    assert not feature_map_rank(maps).requires_grad
    assert torch.equal(maps.detach(), before)
