"""PPBA's arithmetic against the reference vectors, SciPy and slow loops."""

import math

import numpy as np
import pytest
import scipy.fft
import torch
from torch.testing import assert_close

from lit_methods.ppba import (
    LowFrequencyProjection,
    MoveProbability,
    clip_l2,
    dct_basis,
    label_score_loss,
    low_frequency_indices,
    margin_loss,
    success_curve,
)
from lit_methods.ppba.functional import check_walk

BOTH_DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
SPACES = {8: (4, 2, 24), 28: (7, 7, 32), 32: (11, 7, 230), 64: (15, 7, 430), 224: (28, 7, 1500), 299: (38, 9, 1500)}


def load(vectors, name):
    return np.load(vectors / "ppba" / f"{name}.npz")


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


# -- the basis --------------------------------------------------------------------------------------------------------


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


# -- which coefficients -----------------------------------------------------------------------------------------------


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
    permutations = tensor(reference[f"perms{case}"]).split(sizes)
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


# -- the projection ---------------------------------------------------------------------------------------------------


def test_sensing_matrix(vectors):
    case = {k: tensor(v) for k, v in load(vectors, "sensing_small").items()}
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
    case = {k: tensor(v) for k, v in load(vectors, "sensing_224").items()}
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


# -- losses -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("key", "targeted"), [("margin", False), ("margin_targeted", True)])
def test_margin(vectors, key, targeted):
    case = load(vectors, "margin_loss")
    loss = margin_loss(tensor(case["logits"]), tensor(case["labels"]), targeted)
    assert loss.dtype == torch.float64
    np.testing.assert_allclose(loss, case[key], rtol=0, atol=1e-12)
    assert (loss >= 0).all()


@pytest.mark.parametrize(("dtype", "top"), [(torch.float16, 40000.0), (torch.bfloat16, 1.0)])
def test_margin_of_half_precision_is_taken_in_float32(dtype, top):
    logits = torch.tensor([[top, -top], [1.0078125, 256.0]], dtype=dtype)
    exact = logits.double()
    expected = torch.stack([exact[0, 0] - exact[0, 1], exact[1, 1] - exact[1, 0]])
    assert (expected != expected.to(dtype)).any()  # half precision would not do
    loss = margin_loss(logits, torch.tensor([0, 1]))
    assert loss.dtype == torch.float32
    assert torch.equal(loss.double(), expected)


def test_margin_where_logits_are_missing():
    nan, inf = math.nan, math.inf
    rows = [[nan, 1.0, 2.0], [0.0, nan, 2.0], [3.0, -inf, 1.0], [3.0, -inf, -inf], [-inf, 0.0, 1.0]]
    logits, target = torch.tensor(rows), torch.zeros(5, dtype=torch.int64)
    assert_close(margin_loss(logits, target), torch.tensor([nan, nan, 2.0, inf, 0.0]), equal_nan=True)
    assert_close(margin_loss(logits, target, targeted=True), torch.tensor([nan, nan, 0.0, 0.0, inf]), equal_nan=True)


def test_margin_leaves_its_input_alone():
    logits = torch.randn(4, 3)
    before = logits.clone()
    margin_loss(logits, torch.tensor([0, 1, 2, 0]))
    assert torch.equal(logits, before)


@pytest.mark.parametrize(
    ("logits", "target"), [((4,), (4,)), ((4, 1), (4,)), ((4, 3), (3,)), ((4, 3), (4, 1)), ((1, 4, 3), (4,))], ids=str
)
def test_margin_refuses(logits, target):
    with pytest.raises(ValueError, match=r"logits must be \(N, classes\) with two classes or more and target"):
        margin_loss(torch.zeros(logits), torch.zeros(target, dtype=torch.int64))


@BOTH_DTYPES
def test_clipping_to_the_ball(dtype):
    z = torch.randn(2, 3, 5, dtype=dtype)
    z[0, 0], z[1, 2] = 0, z[1, 2] * 1e-3
    clipped = clip_l2(z, 1.5)
    assert clipped.dtype == dtype
    for row, now in zip(z.flatten(0, 1).tolist(), clipped.flatten(0, 1).tolist(), strict=True):
        norm = math.sqrt(sum(v * v for v in row))
        expected = row if norm <= 1.5 else [v * 1.5 / norm for v in row]
        np.testing.assert_allclose(now, expected, rtol=1e-6 if dtype == torch.float32 else 1e-14)
        assert norm > 1.5 or now == expected  # inside: not a bit changes
    assert (z.norm(dim=-1) > 1.5).any()
    on_the_sphere = torch.tensor([3.0, 4.0], dtype=dtype)
    assert torch.equal(clip_l2(on_the_sphere, 5.0), on_the_sphere)


def test_label_scores():
    nan = math.nan
    cases = [
        ([("cat", 0.2), ("dog", 0.7)], {"cat", "dog"}, 0.7),
        ([("cat", 0.2), ("cat", 0.6), ("dog", 0.9)], {"cat"}, 0.6),  # a label that comes twice
        ([("sky", 0.9)], {"cat"}, 0.0),
        ([("Cat", 0.9)], {"cat"}, 0.0),
        ([], {"cat"}, 0.0),
        ([("cat", 0.9)], frozenset(), 0.0),
        (None, {"cat"}, nan),
        ([("cat", nan), ("dog", 0.3)], {"cat", "dog"}, nan),
        ([("dog", 0.3), ("cat", nan)], {"cat", "dog"}, nan),  # wherever it stands
        ([("dog", 0.3), ("cat", nan)], {"dog"}, 0.3),
        ([("cat", 1)], {"cat"}, 1.0),
    ]
    pairs, labels, expected = zip(*cases, strict=True)
    loss = label_score_loss(pairs, labels)
    assert_close(loss, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=0, equal_nan=True)
    assert label_score_loss([], []).shape == (0,)


def test_label_scores_want_one_set_per_answer():
    with pytest.raises(ValueError, match=r"pairs.*2.*labels.*1"):
        label_score_loss([[("cat", 0.5)], None], [{"cat"}])


# -- the probability of every move ------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", range(4))
def test_reference_walk(vectors, case):
    reference = load(vectors, "probability_steps")
    rho, eps, offset = (float(reference[key]) for key in ("rho", "eps", "offset"))
    names = ("w", "draws", "prob", "u", "candidate", "loss", "accepted", "z", "eff", "ineff", "queries")
    w, draws, prob, u, candidate, loss, accepted, z, eff, ineff, queries = (
        tensor(reference[f"{name}{case}"]) for name in names
    )
    mode = "ineffective_only" if reference[f"legacy{case}"] else "both"
    walk = MoveProbability(1, len(w), momentum=float(reference[f"momentum{case}"]), count_update=mode)
    now, incumbent, asked = torch.zeros_like(w), torch.tensor([max(0.0, offset)], dtype=torch.float64), 1
    for t, drawn in enumerate(draws):
        same = {"rtol": 0, "atol": 1e-12}
        assert_close(walk.probabilities()[:, 0], prob[t], **same)
        moves = walk.moves(drawn[None])
        assert torch.equal(moves[0], u[t])
        candidates = clip_l2(now + rho * moves, eps)
        assert_close(candidates[0], candidate[t], **same)
        losses = (offset + candidates @ w).clamp_min(0)
        assert_close(losses[0], loss[t], **same)
        moved = walk.update(moves, losses, incumbent)
        assert moved.tolist() == [bool(accepted[t])]
        if moved:
            incumbent, best = losses.min(1)
            now = candidates[0, best[0]]
        assert_close(now, z[t], **same)
        assert_close(walk.effective[:, 0], eff[t], **same)
        assert_close(walk.ineffective[:, 0], ineff[t], **same)
        asked += len(drawn)
    assert asked == queries


class SlowWalk:
    """Counts of one image, one coordinate after the other, from the specification."""

    def __init__(self, dim, momentum, mode, prior):
        self.momentum, self.mode = momentum, mode
        self.effective, self.ineffective = np.full((3, dim), prior), np.full((3, dim), prior)

    def probabilities(self):
        rates = self.effective / (self.effective + self.ineffective)
        return np.array([[p / sum(column) for p in column] for column in rates.T]).T

    def moves(self, draws):
        down, stay, _ = self.probabilities()
        return [
            [-1 if r < a else 1 if r >= a + b else 0 for r, a, b in zip(row, down, stay, strict=True)] for row in draws
        ]

    def update(self, moves, losses, incumbent):
        accepted = min(losses) < incumbent
        if self.mode == "fixed":
            return accepted
        if accepted:
            self.ineffective *= self.momentum
            if self.mode == "both":
                self.effective *= self.momentum
        for row, loss in zip(moves, losses, strict=True):
            helped = accepted and loss < incumbent
            for d, move in enumerate(row):
                if not helped:
                    self.ineffective[int(move) + 1, d] += 1
                elif self.mode == "both":
                    self.effective[int(move) + 1, d] += 1
        return accepted


@pytest.mark.parametrize("mode", ["both", "ineffective_only", "fixed"])
@pytest.mark.parametrize(("samples", "momentum", "prior"), [(1, 1.0, 1.0), (1, 0.8, 0.5), (4, 1.0, 3.0), (3, 0.9, 1.0)])
def test_counts_against_a_slow_walk(mode, samples, momentum, prior):
    images, dim = 3, 5
    walk = MoveProbability(images, dim, momentum=momentum, count_update=mode, prior=prior)
    slow = [SlowWalk(dim, momentum, mode, prior) for _ in range(images)]
    outcomes = set()
    for _ in range(25):
        draws = torch.rand(images, samples, dim, dtype=torch.float64)
        losses, incumbent = torch.rand(images, samples).double(), torch.rand(images).double()
        losses[0, 0] = incumbent[0]  # as good is not better
        active = torch.rand(images) < 0.8
        moves = walk.moves(draws)
        assert moves.dtype == torch.float64
        accepted = walk.update(moves, losses, incumbent, active)
        for i, one in enumerate(slow):
            assert moves[i].tolist() == one.moves(draws[i].tolist())
            if active[i]:
                moved = one.update(moves[i].tolist(), losses[i].tolist(), incumbent[i].item())
            assert accepted[i].item() == (active[i].item() and moved)
            outcomes.add((active[i].item(), accepted[i].item()))
        for name in ("effective", "ineffective", "probabilities"):
            value = getattr(walk, name) if name != "probabilities" else walk.probabilities()
            expected = [getattr(one, name) if name != "probabilities" else one.probabilities() for one in slow]
            np.testing.assert_allclose(value, np.stack(expected, 1), rtol=1e-12, err_msg=name)
    assert outcomes == {(False, False), (True, False), (True, True)}


@pytest.mark.parametrize("mode", ["both", "ineffective_only", "fixed"])
@pytest.mark.parametrize("momentum", [1.0, 0.9, 0.1])
def test_probabilities_stay_probabilities(mode, momentum):
    walk = MoveProbability(2, 20, momentum=momentum, count_update=mode)
    assert_close(walk.probabilities(), torch.full((3, 2, 20), 1 / 3, dtype=torch.float64), rtol=0, atol=1e-15)
    for _ in range(800):  # with momentum 0.1, counts of what is not drawn reach the smallest numbers there are
        moves = walk.moves(torch.rand(2, 1, 20, dtype=torch.float64))
        walk.update(moves, torch.rand(2, 1, dtype=torch.float64), torch.full((2,), 0.5, dtype=torch.float64))
    probabilities = walk.probabilities()
    assert_close(probabilities.sum(0), torch.ones(2, 20, dtype=torch.float64), rtol=0, atol=1e-12)
    assert ((probabilities > 0) & (probabilities < 1)).all()


def test_where_one_move_ends_and_the_next_begins():
    walk = MoveProbability(1, 1)
    walk.ineffective[:, 0, 0] = torch.tensor([3.0, 1.0, 3.0])  # probabilities of exactly 1/4, 1/2 and 1/4
    assert walk.probabilities().flatten().tolist() == [0.25, 0.5, 0.25]
    below = 2.0**-53  # a float64 near 1 has no finer step
    draws = torch.tensor([0.0, 0.25 - below, 0.25, 0.75 - below, 0.75, 1 - below], dtype=torch.float64)
    assert walk.moves(draws[None, :, None]).flatten().tolist() == [-1, -1, 0, 0, 1, 1]
    single = walk.moves(draws[None, [0, 2, 4], None].float())
    assert single.dtype == torch.float32
    assert single.flatten().tolist() == [-1, 0, 1]


def test_an_answer_that_is_no_number_is_no_improvement():
    walk = MoveProbability(2, 3)
    moves = torch.ones(2, 2, 3, dtype=torch.float64)
    losses = torch.tensor([[math.nan, 0.5], [math.nan, math.nan]], dtype=torch.float64)
    accepted = walk.update(moves, losses, torch.ones(2, dtype=torch.float64))
    assert accepted.tolist() == [True, False]
    assert walk.effective[2, :, 0].tolist() == [2.0, 1.0]
    assert walk.ineffective[2, :, 0].tolist() == [2.0, 3.0]


@pytest.mark.parametrize("mode", ["both", "ineffective_only", "fixed"])
def test_the_one_coordinate_that_matters(mode):
    """A linear model in which coordinate 3 decides: going up lowers the loss, going down raises it."""
    walk = MoveProbability(1, 8, count_update=mode)
    z, incumbent = torch.zeros(8, dtype=torch.float64), torch.tensor([1.0], dtype=torch.float64)
    for _ in range(200):
        moves = walk.moves(torch.rand(1, 1, 8, dtype=torch.float64))
        candidate = z + 0.001 * moves[0, 0]
        loss = (1.0 - candidate[3]).view(1, 1)
        if walk.update(moves, loss, incumbent):
            z, incumbent = candidate, loss[0]
    probabilities = walk.probabilities()[:, 0]
    if mode == "fixed":
        assert_close(probabilities, torch.full((3, 8), 1 / 3, dtype=torch.float64))
        return
    assert probabilities[2, 3] > 0.9 if mode == "both" else probabilities[2, 3] > 0.5
    assert probabilities[:2, 3].max() < 0.25
    others = probabilities[:, [d for d in range(8) if d != 3]]
    assert (others < 0.5).all()


@pytest.mark.parametrize("rows", [[2, 0], [True, False, True], []], ids=str)
def test_keeping_some_images(rows):
    walk = MoveProbability(3, 4)
    draws = torch.rand(3, 1, 4, dtype=torch.float64)
    walk.update(walk.moves(draws), torch.rand(3, 1), torch.tensor([1.0, 0.0, 1.0]))
    before = walk.effective.clone(), walk.ineffective.clone()
    which = torch.tensor(rows, dtype=torch.bool if rows and rows[0] is True else torch.int64)
    walk.keep(which)
    kept = [i for i, keep in enumerate(rows) if keep] if which.dtype == torch.bool else rows
    for now, then in zip((walk.effective, walk.ineffective), before, strict=True):
        assert torch.equal(now, then[:, kept])
    left = len(kept)
    accepted = walk.update(walk.moves(draws[which]), torch.rand(left, 1), torch.ones(left))
    assert accepted.tolist() == [True] * left


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"momentum": 0.0}, r"momentum=0.0 must lie in \(0, 1\]"),
        ({"momentum": 1.1}, r"momentum=1.1 must lie in \(0, 1\]"),
        ({"momentum": math.nan}, r"momentum=nan must lie in"),
        ({"count_update": "all"}, "count_update='all' must be 'both', 'ineffective_only' or 'fixed'"),
        ({"prior": 0.0}, "prior=0.0 must be positive"),
        ({"prior": -1.0}, "prior=-1.0 must be positive"),
    ],
    ids=str,
)
def test_counting_refuses(changed, message):
    with pytest.raises(ValueError, match=message):
        MoveProbability(1, 2, **changed)
    if "prior" not in changed:
        with pytest.raises(ValueError, match=message):
            check_walk(**{"momentum": 1.0, "count_update": "both"} | changed)


# -- the curve --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", range(4))
def test_reference_curve(vectors, case):
    reference = load(vectors, "metrics")
    queries, success, thresholds = (tensor(reference[f"{name}{case}"]) for name in ("queries", "success", "thresholds"))
    budget = int(reference["max_queries"])
    curve = success_curve(success, queries, thresholds, budget)
    assert curve.dtype == torch.float64
    np.testing.assert_allclose(curve, reference[f"curve{case}"], rtol=0, atol=1e-12)
    everywhere = success_curve(success, queries, torch.arange(budget), budget)
    np.testing.assert_allclose(everywhere.mean(), reference[f"auc{case}"], rtol=0, atol=1e-12)  # steps at whole numbers
    last = success_curve(success, queries, torch.tensor([budget]), budget)
    np.testing.assert_allclose(last, reference[f"asr{case}"][None], rtol=0, atol=1e-12)


def test_edges_of_the_curve():
    success, queries = torch.tensor([True, False, True, True]), torch.tensor([1, 1, 100, 101])
    at = torch.tensor([0, 1, 99, 100, 101, 10**6])
    expected = torch.tensor([0, 0.25, 0.25, 0.5, 0.5, 0.5], dtype=torch.float64)  # 101 is more than there are
    assert_close(success_curve(success, queries, at, 100), expected)
    assert_close(success_curve(success.int(), queries, at.double(), 100), expected)
    assert success_curve(success, queries, at[:0], 100).shape == (0,)
    empty = success_curve(success[:0], queries[:0], at, 100)
    assert empty.shape == (6,)
    assert empty.isnan().all()
