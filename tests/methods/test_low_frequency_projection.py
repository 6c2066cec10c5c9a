"""PPBA's low-frequency space against the reference vectors, SciPy and slow loops: basis, order, projection."""

import numpy as np
import pytest
import scipy.fft
import torch
from torch.testing import assert_close

from lit_methods.ppba import (
    LowFrequencyProjection,
    dct_basis,
    low_frequency_indices,
)
from tests.methods.toy_models import load

BOTH_DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
SPACES = {8: (4, 2, 24), 28: (7, 7, 32), 32: (11, 7, 230), 64: (15, 7, 430), 224: (28, 7, 1500), 299: (38, 9, 1500)}


def tensor(array):
    return torch.from_numpy(np.array(array))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def space(size, channels=3, dtype=torch.float64):
    freq_dim, stride, num = SPACES[size]
    num = min(num, channels * freq_dim**2)
    indices = low_frequency_indices(size, channels, freq_dim, stride, num, generator())
    return LowFrequencyProjection(indices, size, channels, dtype=dtype)


def dense(indices, size, channels):
    """The sensing matrix, row by row, by SciPy's inverse transform of single coefficients."""
    spectra = np.eye(channels * size * size)[indices].reshape(-1, channels, size, size)
    return scipy.fft.idctn(spectra, axes=(2, 3), norm="ortho").reshape(len(indices), -1)


# -- the basis ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 7, 8, 32, 224, 299])
def test_basis_is_the_dct(size):
    basis = dct_basis(size)
    assert basis.dtype == torch.float64
    assert_close(basis, tensor(scipy.fft.dct(np.eye(size), axis=0, norm="ortho")), rtol=0, atol=1e-12)
    assert_close(basis @ basis.T, torch.eye(size, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [0, -3])
def test_no_basis_without_pixels(size):
    with pytest.raises(ValueError, match=f"size={size} must be at least 1"):
        dct_basis(size)


# -- which coefficients ------------------------------------------------------------------------------------------------


def shell_sizes(size, channels, freq_dim, stride):
    starts = range(freq_dim, size, stride)
    return [channels * freq_dim**2] + [channels * (2 * stride * i + stride**2) for i in starts]


def slow_order(size, channels, freq_dim, stride, permutations):
    """Give every coefficient its (shell, number), then sort."""
    keys = {}
    cells = [(c, r, k) for c in range(channels) for r in range(freq_dim) for k in range(freq_dim)]
    for shell, numbers in enumerate(permutations):
        if shell:
            i, end = freq_dim + (shell - 1) * stride, freq_dim + shell * stride
            cells = [(c, r, k) for c in range(channels) for r in range(end) for k in range(i, end)]
            cells += [(c, r, k) for c in range(channels) for r in range(i, end) for k in range(i)]
        assert len(cells) == len(numbers)
        keys |= {cell: (shell, int(number)) for cell, number in zip(cells, numbers, strict=True)}
    return [(c * size + r) * size + k for c, r, k in sorted(keys, key=keys.get)]


@pytest.mark.parametrize("case", range(4))
def test_official_order(vectors, case):
    reference = load(vectors, "coefficient_order")
    numbers = [int(n) for n in reference[f"params{case}"]]
    sizes = shell_sizes(*numbers)
    permutations = reference[f"perms{case}"].split(sizes)
    order = low_frequency_indices(*numbers, permutations=permutations)
    assert order.dtype == torch.int64
    assert order.tolist() == reference[f"order{case}"].tolist() == slow_order(*numbers, permutations)
    arrays = [p.numpy().astype(np.int32) for p in permutations]
    few = min(sizes[0] + 1, len(order))  # the first of the second shell, where there is one
    assert torch.equal(low_frequency_indices(*numbers, num=few, permutations=arrays), order[:few])
    alone = low_frequency_indices(*numbers, num=sizes[0], permutations=arrays[:1])  # the other shells are not needed
    assert torch.equal(alone, order[: sizes[0]])


@pytest.mark.parametrize("numbers", [(8, 3, 4, 2), (6, 1, 6, 5), (9, 2, 1, 4), (32, 3, 11, 7)])
def test_a_generator_draws_one_permutation_per_shell(numbers):
    draw = generator(5)
    permutations = [torch.randperm(n, generator=draw) for n in shell_sizes(*numbers)]
    order = low_frequency_indices(*numbers, generator=generator(5))
    assert order.tolist() == slow_order(*numbers, permutations)
    assert sorted(order.tolist()) == list(range(numbers[0] ** 2 * numbers[1]))
    assert not torch.equal(order, low_frequency_indices(*numbers, generator=generator(6)))
    for num in (1, 7, len(order)):
        assert torch.equal(low_frequency_indices(*numbers, num=num, generator=generator(5)), order[:num])


def test_without_a_generator_the_global_one_draws():
    torch.manual_seed(5)
    drawn = low_frequency_indices(8, 3, 4, 2)
    assert torch.equal(drawn, low_frequency_indices(8, 3, 4, 2, generator=generator(5)))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"freq_dim": 0}, "freq_dim=0 must lie between 1 and the side of the images, 8"),
        ({"freq_dim": 9}, "freq_dim=9 must lie between 1 and the side of the images, 8"),
        ({"stride": 3}, "stride=3 must divide size - freq_dim = 8 - 4 = 4, .*highest frequency"),
        ({"stride": 0}, "stride=0 must divide"),
        ({"stride": -2}, "stride=-2 must divide"),
        ({"num": 0}, "num=0 must lie between 1 and the 192 coefficients"),
        ({"num": 193}, "num=193 must lie between 1 and the 192 coefficients"),
        ({"permutations": [torch.arange(48)]}, "permutations has 1 entries, but there are 3 shells"),
        ({"permutations": [torch.arange(47)]}, r"permutations\[0\] is no order of the 48 coefficients of its shell"),
        ({"permutations": [torch.arange(48) + 1]}, r"permutations\[0\] is no order"),
        ({"permutations": [torch.arange(48), torch.zeros(60)]}, r"permutations\[1\] is no order of the 60"),
        ({"permutations": [torch.arange(48).view(6, 8)]}, r"permutations\[0\] is no order"),
    ],
    ids=str,
)
def test_order_refuses(changed, message):
    with pytest.raises(ValueError, match=message):
        low_frequency_indices(**{"size": 8, "channels": 3, "freq_dim": 4, "stride": 2} | changed)


# -- the projection ----------------------------------------------------------------------------------------------------


def test_sensing_matrix(vectors):
    case = load(vectors, "sensing_small")
    size, channels = int(case["image_size"]), int(case["channels"])
    projection = LowFrequencyProjection(case["indices"], size, channels, dtype=torch.float64)
    assert projection.dim == 24

    def same(actual, expected, tolerance=1e-12):
        assert actual.dtype == torch.float64
        assert_close(actual.flatten(1), expected.double(), rtol=0, atol=tolerance)

    rows = projection(torch.eye(24, dtype=torch.float64))
    assert rows.shape == (24, channels, size, size)
    same(rows, case["matrix"])
    same(rows, case["matrix_official_float32"], 1e-7)
    same(rows.flatten(1) @ rows.flatten(1).T, torch.eye(24))
    same(projection(case["z"]), case["perturbation"])
    same(projection.project(case["perturbation"].view(-1, channels, size, size)), case["z"])
    projected = projection.project(case["delta"].view(-1, channels, size, size))
    same(projected, case["projected"])
    same(projection(projected), case["reconstructed"])


def test_full_size(vectors):
    case = load(vectors, "sensing_224")
    projection = LowFrequencyProjection(case["indices"], 224, dtype=torch.float64)
    close = {"rtol": 0, "atol": 1e-10}
    z = torch.sin(0.7 * torch.arange(1500, dtype=torch.float64) + 0.3)
    assert_close(z, case["z"], **close)
    delta = projection(z[None])
    assert_close(delta.flatten()[case["positions"]], case["perturbation_at"], **close)
    assert_close(delta.norm(), case["l2"], **close)
    assert_close(delta.abs().max(), case["linf"], **close)
    image = torch.cos(0.01 * torch.arange(3 * 224**2, dtype=torch.float64)).view(1, 3, 224, 224)
    assert_close(projection.project(image)[0], case["projection_of_cos"], **close)


@pytest.mark.parametrize(("size", "channels"), [(1, 1), (5, 2), (8, 3), (15, 1)])
def test_separable_equals_dense(size, channels):
    places = torch.randperm(channels * size**2, generator=generator())[: max(1, size**2 // 2)]
    projection = LowFrequencyProjection(places, size, channels, dtype=torch.float64)
    matrix = tensor(dense(places.numpy(), size, channels))
    z = torch.randn(3, len(places), dtype=torch.float64)
    delta = torch.randn(3, channels, size, size, dtype=torch.float64)
    assert_close(projection(z).flatten(1), z @ matrix, rtol=0, atol=1e-12)
    assert_close(projection.project(delta), delta.flatten(1) @ matrix.T, rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", SPACES)
def test_a_spectrum_goes_there_and_back(size):
    projection = space(size)
    z = torch.randn(2, projection.dim, dtype=torch.float64)
    spectrum = np.zeros((2, 3 * size**2))
    spectrum[:, projection.indices.numpy()] = z.numpy()
    expected = scipy.fft.idctn(spectrum.reshape(2, 3, size, size), axes=(2, 3), norm="ortho")
    delta = projection(z)
    assert_close(delta, tensor(expected), rtol=0, atol=1e-12)
    assert_close(projection.project(delta), z, rtol=0, atol=1e-12)
    assert_close(delta.flatten(1).norm(dim=1), z.norm(dim=1), rtol=1e-12, atol=0)
    single = space(size, dtype=torch.float32)
    assert_close(single(z.float()).flatten(1).norm(dim=1), z.float().norm(dim=1), rtol=1e-5, atol=0)


@BOTH_DTYPES
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", SPACES)
def test_a_row_is_the_same_bit_for_bit_in_any_batch(size, channels, dtype):
    projection = space(size, channels, dtype)
    z = torch.randn(6, projection.dim, dtype=dtype)
    delta = torch.randn(6, channels, size, size, dtype=dtype)
    together, back = projection(z), projection.project(delta)
    for part in ([0], [5], [1, 2], [4, 1, 3], slice(1, 4), slice(3, 4)):  # copies, and views of any alignment
        assert torch.equal(projection(z[part]), together[part]), part
        assert torch.equal(projection.project(delta[part]), back[part]), part


@BOTH_DTYPES
def test_no_images_give_no_perturbations(dtype):
    projection = space(8, dtype=dtype)
    assert projection(torch.zeros(0, 24, dtype=dtype)).shape == (0, 3, 8, 8)
    assert projection.project(torch.zeros(0, 3, 8, 8, dtype=dtype)).shape == (0, 24)


def test_the_basis_is_rounded_once():
    projection = space(32, dtype=torch.float32)
    images = torch.zeros(1, 3, 32, 32)
    assert projection.like(images) is projection
    exact = projection.like(images.double())
    z = torch.randn(1, 230, dtype=torch.float64)
    assert torch.equal(exact(z), space(32)(z))  # as if made in float64: not a float32 basis with more digits
    assert torch.equal(exact.indices, projection.indices)
    assert projection.basis.dtype == torch.float32
    assert {name for name, _ in projection.named_buffers()} >= {"basis", "indices"}


@pytest.mark.parametrize("shape", [(1, 1, 32, 32), (1, 3, 28, 28), (1, 3, 32, 28), (3, 32, 32)], ids=str)
def test_images_of_another_shape(shape):
    with pytest.raises(ValueError, match=r"images are \(.*but the projection is for \(3, 32, 32\); make one of"):
        space(32).like(torch.zeros(shape))


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ([], r"indices must be \(m,\) with one coefficient at least, got shape \(0,\)"),
        ([[1, 2]], r"indices must be \(m,\).*got shape \(1, 2\)"),
        (7, r"indices must be \(m,\).*got shape \(\)"),
        ([-1, 5], "indices lie between -1 and 5, but channels=3 and size=8 have the coefficients 0 to 191"),
        ([0, 192], "indices lie between 0 and 192, but channels=3"),
        ([3, 4, 3], "indices holds a coefficient twice"),
    ],
    ids=str,
)
def test_projection_refuses(indices, message):
    with pytest.raises(ValueError, match=message):
        LowFrequencyProjection(torch.tensor(indices), size=8)
