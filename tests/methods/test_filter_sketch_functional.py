"""Frequent Directions against the official code's results, its own loop, and the bound that it promises."""

import itertools

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from lit_methods.filter_sketch.functional import (
    covariance_error,
    frequent_directions,
    sketch_conv_weight,
    sketch_width,
)
from tests.filter_sketch_reference import official_sketch

FILTERS = ["r56_stage1", "many_shrinks", "odd_zero_row", "l1", "no_shrink", "pointwise", "decay", "rate07"]
CHANNELS = ["r56_conv2", "bottleneck_conv3", "rect"]
TAILS = ["drop", "zero", "fill"]
SUFFIX = {"drop": ("_reference", "_deltas"), "zero": ("_reference_no_early_stop", "_deltas_no_early_stop"),
          "fill": ("_reference_fill", "_deltas_fill")}  # fmt: skip
EXACT = {"rtol": 0, "atol": 1e-9}
OFFICIAL = {"rtol": 0, "atol": 1e-4}  # float32 SVD of near-equal singular values


@pytest.fixture
def case(vectors, request):
    """Arrays of one case of one file, as tensors, by the part of their name behind the case's."""
    file, name = request.param
    with np.load(vectors / "filter_sketch" / f"{file}.npz") as arrays:
        return {key.removeprefix(name): torch.from_numpy(arrays[key]) for key in arrays if key.startswith(f"{name}_")}


def cases(file, names):
    return pytest.mark.parametrize("case", [(file, name) for name in names], indirect=True, ids=names)


def random(*shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype)


def assert_same_rows(ours, official, *, raw):
    """Equal but for the sign of shrunk rows."""
    official = official.to(ours.dtype)
    assert_close(ours.abs(), official.abs(), **OFFICIAL)
    assert_close(ours[raw], official[raw], **OFFICIAL)
    gram = official.T @ official
    assert torch.linalg.norm(ours.T @ ours - gram) <= 1e-5 * torch.linalg.norm(gram)


def test_no_case_is_left_out(vectors):
    for file, names in (("filters", FILTERS), ("channels", CHANNELS), ("both", ["mid", "tiny"])):
        with np.load(vectors / "filter_sketch" / f"sketch_{file}.npz") as arrays:
            assert {key.removesuffix("_weight") for key in arrays if key.endswith("_weight")} == set(names)


@pytest.mark.parametrize("tail", TAILS)
@cases("sketch_filters", FILTERS)
def test_filter_references(case, tail):
    reference, deltas = (case[key] for key in SUFFIX[tail])
    weight, size = case["_weight"].double(), int(case["_l"])
    sketch, stats = frequent_directions(weight.flatten(1), size, tail=tail, return_stats=True)
    assert_close(sketch, reference.flatten(1), **EXACT)
    assert_close(stats.deltas, deltas, **EXACT)
    assert stats.rows_used == (case["_consumed"] if tail == "drop" else len(weight))
    assert_close(sketch_conv_weight(weight, size, int(case["_dim"]), normalize=None, tail=tail), reference, **EXACT)
    assert_close(sketch_conv_weight(weight, size, 0, tail=tail), reference / reference.norm(), **EXACT)


@cases("sketch_filters", FILTERS)
def test_official_filters(case):
    raw = case["_raw_rows"].bool()
    for normalize, key in ((None, "_official"), ("l2", "_official_l2")):
        sketch = sketch_conv_weight(case["_weight"], int(case["_l"]), 0, normalize=normalize, tail="drop")
        assert sketch.dtype == torch.float32
        assert_same_rows(sketch.flatten(1), case[key].flatten(1), raw=raw)


@cases("sketch_channels", CHANNELS)
def test_channel_references(case):
    weight, size, reference = case["_weight"].double(), int(case["_l"]), case["_reference_channel"]
    sketch = sketch_conv_weight(weight, size, int(case["_dim"]), normalize=None, tail="drop")
    assert_close(sketch, reference, **EXACT)
    assert_close(sketch_conv_weight(weight, size, 1, tail="drop"), reference / reference.norm(), **EXACT)
    _, stats = frequent_directions(weight.transpose(0, 1).flatten(1), size, tail="drop", return_stats=True)
    assert_close(stats.deltas, case["_deltas_channel"], **EXACT)
    assert stats.rows_used == case["_consumed"]


@cases("sketch_channels", CHANNELS)
def test_official_channels(case):
    weight, size, raw = case["_weight"], int(case["_l"]), case["_raw_rows"].bool()
    for normalize, key in ((None, "_official_rawview"), ("l2", "_official_rawview_l2")):
        sketch = sketch_conv_weight(weight, size, 1, normalize=normalize, tail="drop", channel_layout="official")
        assert sketch.shape == case[key].shape
        assert_same_rows(sketch.reshape(size, -1), case[key].reshape(size, -1), raw=raw)
    chunks = weight.double().reshape(weight.shape[1], -1)
    _, stats = frequent_directions(chunks, size, tail="drop", return_stats=True)
    assert_close(stats.deltas, case["_deltas"], **EXACT)
    assert stats.rows_used == case["_consumed"]


@cases("sketch_both", ["mid", "tiny"])
def test_filters_then_channels(case):
    weight = case["_weight"].double()
    half = sketch_conv_weight(weight, int(case["_l_out"]), 0, normalize=None, tail="drop")
    both = sketch_conv_weight(half, int(case["_l_in"]), 1, normalize=None, tail="drop")
    assert_close(both, case["_reference_channel"], **EXACT)


@pytest.mark.parametrize(("normalize", "key"), [(None, "_official_rawview"), ("l2", "_official_rawview_l2")])
@cases("sketch_both", ["mid", "tiny"])
def test_official_filters_then_channels(case, normalize, key):
    """The unknown signs of the first step decide entries of the second: one choice gives the official result."""
    size, width = int(case["_l_out"]), int(case["_l_in"])
    first = sketch_conv_weight(case["_weight"].double(), size, 0, normalize=normalize, tail="drop")
    official, distances = case[key].reshape(width, -1).double().abs(), []
    for signs in itertools.product([1.0, -1.0], repeat=size // 2):
        flipped = first.clone()
        flipped[: size // 2] *= torch.tensor(signs).view(-1, 1, 1, 1)
        both = sketch_conv_weight(flipped, width, 1, normalize=normalize, tail="drop", channel_layout="official")
        distances.append((both.reshape(width, -1).abs() - official).abs().max())
    assert min(distances) <= 1e-4


@pytest.mark.parametrize(
    ("n", "m", "size"), [(9, 30, 4), (20, 7, 9), (33, 16, 16), (40, 25, 1), (31, 64, 18), (5, 6, 9)]
)
def test_same_as_the_official_loop(n, m, size):
    a = random(n, m)
    expected, rows, deltas = official_sketch(a, size)
    sketch, stats = frequent_directions(a, size, tail="drop", return_stats=True)
    assert_close(sketch.abs(), expected.abs(), **EXACT)
    assert_close(stats.deltas, torch.tensor(deltas, dtype=torch.float64), **EXACT)
    assert stats.rows_used == rows


def matrices():
    return {
        "random": random(40, 24),
        "narrower than its sketch": random(40, 5),
        "low rank": random(30, 4) @ random(4, 20),
        "one row again and again": random(1, 12).expand(25, 12),
        "zeros between": torch.cat([random(10, 16), torch.zeros(15, 16, dtype=torch.float64), random(7, 16)]),
        "orthonormal": torch.linalg.qr(random(24, 24)).Q,
        "decaying": random(32, 24) * torch.logspace(0, -12, 32, dtype=torch.float64)[:, None],
    }


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("name", list(matrices()))
def test_covariance_guarantee(name, tail):
    matrix = matrices()[name]
    for a in (matrix, matrix.flip(0), matrix[torch.randperm(len(matrix))]):
        for size in (1, 2, 3, 6, 9, 16, 23):
            sketch, stats = frequent_directions(a, size, tail=tail, return_stats=True)
            used = a[: stats.rows_used]
            scale = float(used.square().sum())
            gap = torch.linalg.eigvalsh(used.T @ used - sketch.T @ sketch)
            assert gap[0] >= -1e-12 * scale
            assert gap[-1] <= stats.deltas.sum() + 1e-12 * scale
            assert stats.deltas.sum() <= 2 * scale / size + 1e-12 * scale
            assert (stats.deltas >= 0).all()


def test_order_and_scale():
    a = random(30, 20)
    sketch = frequent_directions(a, 10)
    assert not torch.allclose(sketch, frequent_directions(a.flip(0), 10))
    for scale in (2.0**-100, 2.0**100):
        assert_close(frequent_directions(scale * a, 10) / scale, sketch, **EXACT)


@pytest.mark.parametrize("shape", [(12, 40), (30, 6)])
def test_covariance_error(shape):
    a = random(*shape)
    sketch = frequent_directions(a, 5)
    gap = np.linalg.norm((a.T @ a - sketch.T @ sketch).numpy(), ord=2)
    assert covariance_error(a, sketch) == pytest.approx(gap / a.square().sum().item(), rel=1e-9)
    assert covariance_error(torch.zeros(shape), torch.zeros(5, shape[1])) == 0


@pytest.mark.parametrize("tail", ["fill", "zero"])
def test_a_larger_sketch_is_closer(tail):
    a = random(64, 40)
    errors, sums = [], []
    for size in (1, 2, 4, 8, 16, 32, 64):
        sketch, stats = frequent_directions(a, size, tail=tail, return_stats=True)
        errors.append(float(torch.linalg.matrix_norm(a.T @ a - sketch.T @ sketch, ord=2)))
        sums.append(float(stats.deltas.sum()))
    assert errors == sorted(errors, reverse=True)
    assert sums == sorted(sums, reverse=True)
    assert errors[-1] == sums[-1] == 0


@pytest.mark.parametrize("tail", TAILS)
def test_room_for_every_row(tail):
    a = random(6, 4)
    for size in (6, 7, 11):
        sketch, stats = frequent_directions(a, size, tail=tail, return_stats=True)
        assert torch.equal(sketch, torch.cat([a, a.new_zeros(size - 6, 4)]))
        assert (stats.rows_used, stats.deltas.shape) == (6, (0,))
    frequent_directions(a, 6, tail=tail).zero_()
    assert a.all()  # the result is a copy


@pytest.mark.parametrize("tail", TAILS)
def test_zeros(tail):
    assert torch.equal(frequent_directions(torch.zeros(20, 6), 5, tail=tail), torch.zeros(5, 6))
    weight = torch.zeros(20, 9, 3, 3)
    for dim, shape in ((0, (5, 9, 3, 3)), (1, (20, 5, 3, 3))):
        assert torch.equal(sketch_conv_weight(weight, 5, dim, normalize="l2", tail=tail), torch.zeros(shape))


@pytest.mark.parametrize(("n", "size", "shrinks", "rows"), [
    (16, 1, 15, 16), (16, 6, 3, 15), (16, 9, 1, 14), (16, 11, 1, 16), (32, 19, 1, 29), (32, 22, 0, 22),
    (64, 12, 8, 60), (64, 25, 3, 64), (64, 38, 1, 57), (64, 44, 0, 44), (512, 204, 3, 510), (512, 307, 1, 461),
])  # fmt: skip
def test_what_the_early_stop_leaves_out(n, size, shrinks, rows):
    a = random(n, 16)
    sketch, stats = frequent_directions(a, size, tail="drop", return_stats=True)
    assert (stats.rows_used, len(stats.deltas)) == (rows, shrinks)
    if not shrinks:
        assert torch.equal(sketch, a[:size])
    if size == 1:
        assert torch.equal(sketch, a[-1:])


@pytest.mark.parametrize(("n", "leaving_a_zero_row"), [(16, {3, 5, 11}), (32, {3})])
def test_every_size(n, leaving_a_zero_row):
    a, short, same = random(n, n + 8), set(), 0
    for size in range(1, n + 1):
        drop, dropped = frequent_directions(a, size, tail="drop", return_stats=True)
        fill, filled = frequent_directions(a, size, tail="fill", return_stats=True)
        assert filled.rows_used == n
        assert fill.any(dim=1).all(), size
        full = bool(drop.any(dim=1).all())
        if not full:
            short.add(size)
            assert int(drop.any(dim=1).sum()) == size - 1
        if full and dropped.rows_used == n:
            same += 1
            assert torch.equal(drop, fill)
            assert torch.equal(dropped.deltas, filled.deltas)
    assert short == leaving_a_zero_row
    assert same > 4


def test_signs():
    a = random(28, 20)
    sketch = frequent_directions(a, 8)
    assert torch.equal(sketch[4:], a[24:])  # inserted as they are
    largest = sketch[:4].abs().argmax(dim=1)
    assert (sketch[torch.arange(4), largest] > 0).all()
    assert_close(frequent_directions(-a, 8), torch.cat([sketch[:4], -a[24:]]), **EXACT)
    tie = torch.tensor([[0.0, -4.0, 4.0], [1.0, 0.0, 0.0], [0.0, 0.0, 2.0]])
    shrunk = (1 - 1 / 32) ** 0.5 * 4
    assert_close(frequent_directions(tie, 2), torch.tensor([[0.0, shrunk, -shrunk], [0.0, 0.0, 2.0]]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_dtype_and_gradients(dtype):
    a = random(24, 10).to(dtype)
    sketch = frequent_directions(a, 7)
    assert sketch.dtype == dtype
    assert torch.equal(sketch, frequent_directions(a.double(), 7).to(dtype))
    weight = random(12, 8, 3, 3).to(dtype)
    for dim, normalize, layout in ((0, "l2", "channels"), (1, None, "channels"), (1, "l2", "official")):
        options = {"normalize": normalize, "channel_layout": layout}
        plain = sketch_conv_weight(weight, 5, dim, **options)
        trained = sketch_conv_weight(torch.nn.Parameter(weight), 5, dim, **options)
        strided = sketch_conv_weight(weight.to(memory_format=torch.channels_last), 5, dim, **options)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed = sketch_conv_weight(weight, 5, dim, **options)
        assert plain.dtype == dtype
        assert not trained.requires_grad
        assert all(torch.equal(plain, other) for other in (trained, strided, mixed))
    _, stats = frequent_directions(a, 7, return_stats=True)
    assert (type(stats.rows_used), stats.deltas.dtype) == (int, torch.float64)


WIDTHS = {0.1: (1, 3, 6, 12, 25, 51), 0.2: (3, 6, 12, 25, 51, 102), 0.3: (4, 9, 19, 38, 76, 153),
          0.4: (6, 12, 25, 51, 102, 204), 0.5: (8, 16, 32, 64, 128, 256), 0.6: (9, 19, 38, 76, 153, 307),
          0.7: (11, 22, 44, 89, 179, 358), 0.8: (12, 25, 51, 102, 204, 409), 0.9: (14, 28, 57, 115, 230, 460),
          1.0: (16, 32, 64, 128, 256, 512)}  # fmt: skip


def test_widths():
    for rate, widths in WIDTHS.items():
        assert tuple(sketch_width(planes, rate) for planes in (16, 32, 64, 128, 256, 512)) == widths
    assert sketch_width(100, 0.29) == 28  # the float product is 28.999...


@pytest.mark.parametrize("planes", [1, 3, 16, 49, 64, 98, 512])  # 1 / 49 * 49 is 0.999...
def test_the_smallest_rate_that_a_message_names_works(planes):
    with pytest.raises(ValueError, match=r"0\.001 .* smallest usable rate is [\d.]+$") as error:
        sketch_width(planes, 0.001)
    smallest = float(str(error.value).split()[-1])
    assert sketch_width(planes, smallest) == 1
    with pytest.raises(ValueError, match="keeps none"):
        sketch_width(planes, 0.999 * smallest)


@pytest.mark.parametrize("rate", [0, -0.1, 1.001, float("nan"), float("inf")])
def test_rates_out_of_range(rate):
    with pytest.raises(ValueError, match="rate"):
        sketch_width(16, rate)


def spoiled(tensor, value):
    tensor = tensor.clone()
    tensor[(-1,) * tensor.ndim] = value
    return tensor


@pytest.mark.parametrize(("a", "size", "options", "match"), [
    (torch.ones(6), 2, {}, r"\(6,\)"),
    (torch.ones(6, 2, 2), 2, {}, r"\(6, 2, 2\)"),
    (torch.ones(6, 2, dtype=torch.int64), 2, {}, "int64"),
    (torch.ones(6, 2), 0, {}, "size.*0"),
    (torch.ones(6, 2), 2, {"tail": "filled"}, "tail.*'filled'"),
    (spoiled(torch.ones(6, 2), torch.nan), 2, {}, "(?i)nan|finite"),
    (spoiled(torch.ones(6, 2), -torch.inf), 9, {}, "(?i)inf|finite"),
])  # fmt: skip
def test_matrices_that_cannot_be_sketched(a, size, options, match):
    with pytest.raises(ValueError, match=match):
        frequent_directions(a, size, **options)


W = torch.ones(8, 6, 3, 3)


@pytest.mark.parametrize(("w", "size", "dim", "options", "match"), [
    (torch.ones(8, 6), 2, 0, {}, r"\(8, 6\)"),
    (W, 2, 2, {}, "dim.*2"),
    (W, 2, -1, {}, "dim.*-1"),
    (W, 9, 0, {}, "(?s)9.*8|8.*9"),
    (W, 7, 1, {}, "never wider than its layer"),
    (W, 0, 1, {}, "size.*0"),
    (W, 2, 0, {"normalize": "l1"}, "normalize.*'l1'"),
    (W, 2, 0, {"tail": "filled"}, "tail.*'filled'"),
    (W, 2, 1, {"channel_layout": "filters"}, "channel_layout.*'filters'"),
    (spoiled(W, torch.nan), 2, 0, {}, "(?i)nan|finite"),
    (spoiled(W, torch.inf), 6, 1, {}, "(?i)inf|finite"),
])  # fmt: skip
def test_weights_that_cannot_be_sketched(w, size, dim, options, match):
    with pytest.raises(ValueError, match=match):
        sketch_conv_weight(w, size, dim, **options)
