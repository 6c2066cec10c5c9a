"""VOT's overlap, runs with resets and expected overlaps: against the toolkit's values and plain loops."""

import numpy as np
import pytest
import torch

from lit_methods.functional.polygon_overlap import vot_overlap
from lit_methods.functional.vot import (
    expected_average_overlap,
    expected_overlap_curve,
    fragment_sums,
    vot_overlaps,
)
from tests.tracking_reference import expected_overlaps, overlap_loop


@pytest.fixture
def file(vectors):
    return np.load(vectors / "siamban" / "vot.npz")


def square(x, y, side):
    return torch.tensor([[x, y, x + side, y, x + side, y + side, x, y + side]], dtype=torch.float64)


def run(state, overlap=None):
    """Overlaps and codes of a run; NaN but where it tracked."""
    state = torch.tensor(state)
    draw = torch.Generator().manual_seed(len(state))
    values = torch.rand(len(state), generator=draw, dtype=torch.float64) if overlap is None else overlap
    return torch.where(state == 9, values, torch.nan), state


@pytest.mark.parametrize(("bounds", "key"), [(None, "nobounds"), ((150, 120), "bounds150x120")])
def test_overlaps_are_those_of_the_toolkit(file, bounds, key):
    a, b = torch.from_numpy(file["poly_a"]), torch.from_numpy(file["poly_b"])
    found = vot_overlap(a, b, bounds)
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found, file[f"overlap_{key}"], rtol=0, atol=6e-8)
    np.testing.assert_array_equal(vot_overlap(b.float(), a.float(), bounds), found)


@pytest.mark.parametrize("bounds", [None, (30, 20)])
def test_any_four_corners_give_what_drawn_pixels_give(bounds):
    """Whole and half coordinates, crossed, folded and out of the bounds, where corners, ends and roundings coincide."""
    draw = np.random.default_rng(0)
    for scale, count in ((1, 60), (4, 50), (12, 20)):
        a = draw.integers(-2 * scale, 2 * scale + 10, (count, 8)) / 2
        b = a + draw.integers(-4, 5, a.shape) / 2
        a[::3] += draw.normal(size=a[::3].shape)
        expected = [overlap_loop(*pair, bounds) for pair in zip(a, b, strict=True)]
        a, b = torch.from_numpy(a), torch.from_numpy(b)
        for chunk in (37, 1 << 14):
            np.testing.assert_array_equal(vot_overlap(a, b, bounds, chunk=chunk), expected)
        assert 0 < np.mean(expected) < 1


def test_a_row_that_only_touches_a_corner_is_not_drawn():
    diamond = torch.tensor([[2.0, 0, 4, 2, 2, 4, 0, 2]])  # rows of 0, 3, 5, 3 and 0 pixels
    assert vot_overlap(diamond, square(0, 0, 4)).item() == 11 / 25


def test_coordinates_are_cast_to_float32_and_halves_go_away_from_zero():
    half = 0.5 - 1e-12  # 0.5 in float32, which is rounded to 1
    assert vot_overlap(square(half, 0, 4), square(0, 0, 4)).item() == 20 / 30
    below = float(np.nextafter(np.float32(0.5), np.float32(0)))  # where adding a half would round up
    near = torch.tensor([[below, 0, 4, 0, 4, 4, below, 4]], dtype=torch.float64)
    assert vot_overlap(near, square(0, 0, 4)).item() == 1


def test_regions_that_do_not_meet_or_have_no_pixel_give_zero_and_unknown_ones_nan():
    a = square(0, 0, 4)
    others = {
        "beside": square(4, 0, 3),
        "at a corner": square(5, 5, 3),
        "a point": square(2, 2, 0),
        "a line": torch.tensor([[1.0, 2, 3, 2, 3, 2, 1, 2]]),
        "outside of the bounds": square(20, 1, 5),
    }
    for name, other in others.items():
        assert vot_overlap(a, other, (10, 10)).item() == 0, name
        assert vot_overlap(other, other, (10, 10)).item() == (name in ("beside", "at a corner")), name
    for bad in (torch.nan, torch.inf, 1e39):  # the last in float32
        other = a.clone()
        other[0, 3] = bad
        assert vot_overlap(a.repeat(2, 1), torch.cat([other, a])).isnan().tolist() == [True, False]
    assert vot_overlap(a[:0], a[:0]).shape == (0,)


def test_a_region_of_many_rows_needs_no_more_memory():
    tall = torch.tensor([[0.0, 0, 1, 0, 1, 300_000, 0, 300_000]])
    assert vot_overlap(tall, tall).item() == 1


@pytest.mark.parametrize("i", range(3))
def test_runs_have_the_overlaps_of_the_toolkit(file, i):
    preds, state, polygons = (torch.from_numpy(file[f"{name}{i}"]) for name in ("pred", "state", "gt"))
    width, height = file["image_wh"]
    given = preds.clone()
    given[state != 9] = torch.nan  # whatever stands there
    accuracy = vot_overlaps(given, state, polygons, (width, height), burn_in=10)
    np.testing.assert_allclose(accuracy, file[f"overlap_burnin{i}"], rtol=0, atol=6e-8)
    eao = vot_overlaps(given, state.int(), polygons, torch.tensor([width - 1, height - 1]))
    np.testing.assert_allclose(eao, file[f"overlap_eao{i}"], rtol=0, atol=6e-8)


def test_burn_in_is_cut_at_the_end_and_unknown_annotations_stay_unknown():
    state = torch.tensor([1, 9, 9, 9, 2, 0, 0, 0, 0, 1, 9])
    polygons = square(0, 0, 4).repeat(11, 1)
    polygons[3] = torch.nan
    boxes = torch.tensor([[0.0, 0, 4, 4]]).repeat(11, 1)
    known = vot_overlaps(boxes, state, polygons, (9, 9), burn_in=2).isfinite()
    assert known.nonzero().flatten().tolist() == [2]
    known = vot_overlaps(boxes, state, polygons, (9, 9)).isfinite()
    assert known.nonzero().flatten().tolist() == [1, 2, 10]


RUNS = {
    "no failure": [1] + [9] * 40,
    "one": [1] + [9] * 20 + [2, 0, 0, 0, 0, 1] + [9] * 12,
    "one in the first tracked frame": [1, 2, 0, 0, 0, 0, 1] + [9] * 8,
    "two, the second too late": [1, 9, 9, 2, 0, 0, 0, 0, 1] + [9] * 30 + [2, 0, 0],
    "one whose restart is the frame after the last": [1] + [9] * 15 + [2, 0, 0, 0, 0],
}


@pytest.mark.parametrize("names", [[name] for name in RUNS] + [list(RUNS)], ids=lambda names: " + ".join(names)[:40])
def test_expected_overlaps_are_those_of_a_table_of_fragments(names):
    overlaps, states = zip(*(run(RUNS[name]) for name in names), strict=True)
    curve = expected_overlap_curve(overlaps, states)
    expected = expected_overlaps([part.numpy() for part in overlaps], [part.numpy() for part in states])
    np.testing.assert_allclose(curve, expected, rtol=1e-12)


def test_a_fragment_that_ends_in_a_failure_counts_zero_after_it():
    overlaps, state = run([1, 9, 9, 2, 0, 0, 0, 0, 1, 9], torch.ones(10).double())
    sums, counts = fragment_sums(overlaps, state, 12)
    first = [0.0, 1.0, 1.0, *(2 / i for i in range(3, 12))]
    second = [0.0, 1.0] + [0.0] * 10  # the last one, which reaches its second frame
    np.testing.assert_allclose(sums, np.add(first, second), rtol=1e-12)
    assert counts.tolist() == [2, 2] + [1] * 10
    short, reach = fragment_sums(overlaps, state, 5)
    assert torch.equal(short, sums[:5])
    assert torch.equal(reach, counts[:5])


def test_an_unknown_overlap_counts_zero_and_does_not_spread():
    overlaps, state = run([1] + [9] * 5, torch.ones(6).double())
    overlaps[3] = torch.nan
    assert expected_overlap_curve([overlaps], [state]).tolist() == [1, 1, 1, 2 / 3, 3 / 4, 4 / 5]


def test_eao_is_a_mean_over_the_usual_lengths_that_exist():
    curve = torch.arange(400).double()
    assert expected_average_overlap(curve).item() == np.mean(np.arange(99, 356))
    assert expected_average_overlap(curve, "VOT2019").item() == np.mean(np.arange(45, 291))
    assert expected_average_overlap(curve[:110]).item() == np.mean(np.arange(99, 110))
    assert expected_average_overlap(curve[:99]).isnan()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"preds_xywh": torch.zeros(3, 4)}, r"preds_xywh must be \(2, 4\), a row for each code in state, got \(3, 4\)"),
        ({"polygons": torch.zeros(2, 4)}, r"polygons must be \(2, 8\)"),
        ({"state": torch.tensor([1, 5])}, r"state=5 in frame 1 \(from 0\) is no code; use 9 for tracked"),
        ({"state": torch.zeros(0)}, r"state must be \(n,\), a code for each of at least one frame, got \(0,\)"),
        ({"preds_xywh": torch.full((2, 4), torch.nan)}, r"NaN or infinity in 1 tracked frames, first in frame 1"),
        ({"bounds": (10,)}, r"bounds must be \(W, H\), the image's width and height above 0, got \[10\]"),
        ({"bounds": torch.tensor([10, 0])}, r"bounds must be .* got \[10, 0\]"),
        ({"burn_in": -1}, "burn_in=-1 must be 0 or more"),
    ],
)
def test_bad_runs_are_named(change, message):
    good = {
        "preds_xywh": torch.zeros(2, 4),
        "state": torch.tensor([1, 9]),
        "polygons": torch.zeros(2, 8),
        "bounds": (10, 10),
    }
    vot_overlaps(**good)
    with pytest.raises(ValueError, match=message):
        vot_overlaps(**(good | change))


def test_other_bad_input_is_named():
    with pytest.raises(ValueError, match=r"polygons_b must be \(2, 8\), four corners x, y each.*got \(1, 8\)"):
        vot_overlap(torch.zeros(2, 8), torch.zeros(1, 8))
    with pytest.raises(ValueError, match=r"polygons_a must be .*got \(2, 4\)"):
        vot_overlap(torch.zeros(2, 4), torch.zeros(2, 8))
    with pytest.raises(ValueError, match="chunk=0 must be at least 1"):
        vot_overlap(torch.zeros(1, 8), torch.zeros(1, 8), chunk=0)
    with pytest.raises(ValueError, match="dataset must be one of 'VOT2018', 'VOT2019', got 'VOT2020'"):
        expected_average_overlap(torch.zeros(9), "VOT2020")
    with pytest.raises(ValueError, match="same sequences, at least one"):
        expected_overlap_curve([], [])
    with pytest.raises(ValueError, match=r"same lengths; got \[2\] and \[3\]"):
        expected_overlap_curve([torch.zeros(2)], [torch.zeros(3)])
