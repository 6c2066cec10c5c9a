"""Windows of pictures with faces: where they lie, how large faces get, and that a view is never without its faces."""

import math
from collections import Counter

import numpy as np
import pytest

from datamodules.face_boxes_views import view_draws
from datamodules.face_boxes_windows import ANCHOR_SIZES, SQUARES, Window, boxes_in_window, choose_window

NONE = np.empty((0, 4))


def square_face(size, x, y, ratio=1.5):
    """A face of a geometric mean size, around a point."""
    w, h = size / math.sqrt(ratio), size * math.sqrt(ratio)
    return np.array([[x - w / 2, y - h / 2, x + w / 2, y + h / 2]])


def windows(crop, size, boxes, count, mode=None, **options):
    """Windows of as many views, all of one mode of squares where it is given."""

    def drawing(index):
        draw = view_draws(0, 0, index)
        forced = np.array([(SQUARES.index(mode) + 0.5) / len(SQUARES)]) if mode else None
        return lambda name, count, turn: forced if mode and name == "mode" else draw(name, count, turn)

    return [choose_window(crop, size, boxes, drawing(index), **options) for index in range(count)]


def test_the_five_squares_come_equally_often():
    counts = Counter(window.mode for window in windows("square", (300, 200), square_face(60, 150, 100), 400))
    assert set(counts) == set(SQUARES)
    assert min(counts.values()) > 55


def test_squares_of_the_short_side_and_of_parts_of_it():
    everywhere = np.stack(np.meshgrid(range(10, 300, 20), range(10, 200, 20), indexing="ij"), -1).reshape(-1, 2)
    everywhere = np.concatenate([everywhere - 10, everywhere + 10], 1)
    full = windows("square", (300, 200), everywhere, 100, "short_side")
    assert {(window.top, window.width) for window in full} == {(0, 200)}
    assert min(window.left for window in full) < 10
    assert max(window.left for window in full) > 90
    for mode in ("0.3", "0.5"):
        found = windows("square", (300, 200), everywhere, 100, mode)
        sides = [window.width for window in found]
        assert 60 <= min(sides) < 70
        assert 190 < max(sides) <= 200


@pytest.mark.parametrize(
    ("extent", "image_size", "allowed"),
    [
        (10, 128, [16, 32]),
        (32, 128, [16, 32]),
        (33, 128, [16, 32, 64]),
        (64, 640, [16, 32, 64]),
        (100, 640, [16, 32, 64, 128]),
        (256, 640, [16, 32, 64, 128, 256]),
        (300, 640, list(ANCHOR_SIZES)),
        (100, 64, [16, 32, 64]),  # anchors larger than the view are left out
    ],
)
def test_squares_around_a_face_bring_it_to_an_anchor(extent, image_size, allowed):
    length, sizes = 2 * extent * image_size // 16, Counter()
    face = square_face(extent, length / 2, length / 2, ratio=1)
    for window in windows("square", (length, length), face, 100, "0.9", image_size=image_size):
        assert window.mode == "0.9"
        reached = extent * image_size / window.width
        nearest = min(allowed, key=lambda anchor: abs(anchor - reached))
        assert abs(reached - nearest) < 1
        sizes[nearest] += 1
    assert sorted(sizes) == allowed
    assert min(sizes.values()) > 100 / len(allowed) / 3


def test_a_square_around_a_face_is_no_larger_than_the_picture():
    found = windows("square", (400, 300), square_face(40, 200, 150), 30, "0.7", image_size=640)
    assert {window.width for window in found} == {300}  # the largest anchor is 64: it takes 400 pixels


def test_squares_around_a_face_hold_it_and_lie_anywhere_around():
    (face,) = square_face(20, 200, 150)
    found = windows("square", (400, 300), face[None], 100, "0.7", image_size=64)
    for window in found:
        assert window.left <= face[0]
        assert window.left + window.width >= face[2]
        assert window.top <= face[1]
        assert window.top + window.height >= face[3]
    free = [(face[0] - window.left) / (window.width - face[2] + face[0]) for window in found]
    assert min(free) < 0.1
    assert max(free) > 0.9


def test_all_faces_are_chosen():
    faces = np.concatenate([square_face(20, 30, 40), square_face(20, 260, 250), square_face(20, 40, 250)])
    found = windows("square", (300, 300), faces, 40, "0.9", image_size=64)
    held = {tuple(len(boxes_in_window(face[None], window, 64)) for face in faces) for window in found}
    assert held == {(1, 0, 0), (0, 1, 0), (0, 0, 1)}


@pytest.mark.parametrize("crop", ["square", "anchor_sampling", "none"])
def test_a_view_of_a_picture_with_faces_has_one(crop):
    generator = np.random.default_rng(0)
    for index in range(80):
        size = tuple(generator.integers(20, 400, 2).tolist())
        centre = generator.uniform(0.01, 0.99, (int(generator.integers(1, 4)), 2)) * size
        sides = np.exp(generator.uniform(0, math.log(900), centre.shape))  # 1 to 900 pixels, of any shape
        faces = np.concatenate([centre - sides / 2, centre + sides / 2], 1)
        window = choose_window(crop, size, faces, view_draws(0, 0, index), image_size=96)
        kept = boxes_in_window(faces, window, 96)
        assert 1 <= len(kept) <= len(faces)
        assert kept.min() >= 0
        assert kept.max() <= 96
        assert ((kept[:, 2:] - kept[:, :2]).prod(1) >= window.min_face**2).all()
        if crop == "square":
            assert window.left >= 0
            assert window.top >= 0
            assert window.left + window.width <= size[0]
            assert window.top + window.height <= size[1]
            assert all(isinstance(part, int) for part in (window.left, window.top, window.width, window.height))


def test_the_smallest_face_is_halved_where_no_window_has_one():
    face = square_face(4, 60, 60)
    (window,) = windows("square", (400, 400), face, 1, "short_side", image_size=64)
    assert (window.mode, window.min_face) == ("short_side", 0.5)  # 4 pixels become 0.64
    assert {window.min_face for window in windows("square", (400, 400), face, 10, "0.9", image_size=64)} == {8}
    assert len({window.min_face for window in windows("square", (400, 400), face, 20, image_size=64)}) > 2
    (window,) = windows("none", (400, 400), face, 1, image_size=64)
    assert (window.mode, window.min_face) == ("none", 0.5)


def test_a_face_that_is_too_small_for_all_windows_is_kept_in_the_last_one():
    speck = np.array([[390.0, 10, 390.001, 10.001]])
    (window,) = windows("square", (400, 300), speck, 1, image_size=64)
    assert window == Window(100, 0, 300, 300, "fallback", 0)
    assert len(boxes_in_window(speck, window, 64)) == 1
    (window,) = windows("none", (400, 300), speck, 1, image_size=64)
    assert window == Window(0, 0, 400, 300, "none", 0)


@pytest.mark.parametrize("crop", ["square", "anchor_sampling"])
def test_pictures_without_a_face_get_a_random_square(crop):
    outside = np.array([[-30.0, 0, -10, 20], [20, 20, 20, 40]])  # beside the picture, and of no area
    for boxes in (NONE, outside):
        found = windows(crop, (300, 200), boxes, 100)
        assert {window.mode for window in found} == set(SQUARES)
        assert len({window.width for window in found}) > 30
        assert min(window.width for window in found) >= 60
        assert max(window.width for window in found) == 200
        assert not any(len(boxes_in_window(boxes, window, 640)) for window in found)


def test_anchor_sampling_brings_a_face_to_half_or_twice_an_anchor():
    found = windows("anchor_sampling", (4000, 4000), square_face(40, 2000, 2000), 300, image_size=128)
    reached = np.array([40 * 128 / window.width for window in found])
    assert 8 <= reached.min() < 10
    assert 100 < reached.max() <= 128  # the nearest anchor is 32, so that 64 is the last
    assert 0.11 < np.mean(reached < 16) < 0.23  # a third are brought to 16, half of them below
    for window in found:
        assert window.mode == "anchor_sampling"
        assert boxes_in_window(square_face(40, 2000, 2000), window, 128).shape == (1, 4)


def test_anchor_sampling_holds_the_picture_or_the_face():
    size, (face,) = (200, 60), square_face(30, 100, 30)
    kinds = Counter()
    for window in windows("anchor_sampling", size, face[None], 200, image_size=64):
        for start, extent, length, low, high in (
            (window.left, window.width, size[0], face[0], face[2]),
            (window.top, window.height, size[1], face[1], face[3]),
        ):
            kind = "picture" if extent >= length else "face" if extent >= high - low else "within"
            kinds[kind] += 1
            inner = {"picture": (0, length), "face": (low, high), "within": (low + extent, high - extent)}[kind]
            if kind == "within":
                assert low - 1e-9 <= start <= high - extent + 1e-9
            else:
                assert start <= inner[0] + 1e-9
                assert start + extent >= inner[1] - 1e-9
    assert set(kinds) == {"picture", "face", "within"}


def test_faces_whose_centre_is_outside_are_left_out_and_others_cut_off():
    window = Window(100, 50, 50, 50, "0.3", 8)
    boxes = np.array(
        [[90.0, 60, 112, 80], [80, 60, 119, 80], [140, 40, 200, 59], [145, 95, 149, 99], [110, 60, 130, 90]]
    )
    kept = boxes_in_window(boxes, window, 100)
    assert kept.tolist() == [[0, 20, 24, 60], [90, 90, 98, 98], [20, 20, 60, 80]]
    assert kept.dtype == np.float32
    assert boxes_in_window(boxes, Window(100, 50, 50, 50, "0.3", 8.1), 100).tolist() == kept[[0, 2]].tolist()
    assert boxes_in_window(NONE, window, 100).shape == (0, 4)
