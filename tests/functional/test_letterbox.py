"""Letterboxes against the vectors; pictures, masks and boxes that stay together."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from lit_methods.functional.letterbox import (
    Letterbox,
    letterbox_boxes,
    letterbox_image,
    letterbox_mask,
    letterbox_params,
)


@pytest.fixture
def table(vectors):
    return np.load(vectors / "mcn" / "letterbox.npz", allow_pickle=False)["table"]


def test_letterboxes_are_those_of_the_vectors(table):
    for w, h, *expected in table:
        found = letterbox_params(int(w), int(h), 416)
        assert found == pytest.approx(expected[:5], rel=0, abs=1e-9)
        assert [type(value) for value in found] == [float, int, int, int, int]
        boxes, out = torch.from_numpy(np.array(expected[5:])).split(4)
        moved = letterbox_boxes(boxes, found)
        assert_close(moved, out, rtol=0, atol=1e-9)
        assert_close(letterbox_boxes(moved, found, inverse=True), boxes, rtol=0, atol=1e-9)


def test_boxes_of_any_leading_shape_keep_their_precision():
    params = letterbox_params(100, 50, 20)
    boxes = torch.rand(2, 3, 4, dtype=torch.float64) * 50
    assert letterbox_boxes(boxes, params).dtype == torch.float64
    assert_close(letterbox_boxes(boxes, params)[1, 2], letterbox_boxes(boxes[1, 2], params))
    whole = torch.tensor([10, 0, 30, 40])
    assert_close(letterbox_boxes(whole, params), torch.tensor([2.0, 5, 6, 13]))
    assert whole.dtype == torch.int64  # as it was


@pytest.mark.parametrize("shape", [(1, 5000), (5000, 1), (1, 1), (3, 2)])
def test_the_narrowest_picture_keeps_a_pixel_inside_the_square(shape):
    w, h = shape
    params = letterbox_params(w, h, 64)
    assert min(params.new_w, params.new_h) >= 1
    assert max(params.new_w, params.new_h) == 64
    assert params.dx >= 0
    assert params.dy + params.new_h <= 64
    assert letterbox_image(Image.new("RGB", (w, h)), 64).shape == (3, 64, 64)
    assert letterbox_mask(np.ones((h, w), bool), 64).sum() == params.new_w * params.new_h


def test_a_picture_is_resized_by_bicubic_and_lies_on_grey():
    pixels = np.random.default_rng(0).integers(256, size=(30, 50, 3), dtype=np.uint8)
    found = letterbox_image(Image.fromarray(pixels), 64)
    assert found.dtype == np.uint8
    assert found.flags.c_contiguous
    _, new_w, new_h, dx, dy = letterbox_params(50, 30, 64)
    assert (new_w, new_h, dx, dy) == (64, 38, 0, 13)
    inside = np.asarray(Image.fromarray(pixels).resize((64, 38), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    assert (found[:, 13:51] == inside).all()
    assert (found[:, :13] == 128).all()
    assert (found[:, 51:] == 128).all()


def test_a_mask_lies_where_the_box_around_it_does():
    mask = np.zeros((300, 200), np.uint8)
    mask[60:210, 30:90] = 1
    mask[100:120, 40:50] = 2  # parts that overlap
    found = letterbox_mask(mask, 96)
    assert set(np.unique(found)) == {0, 1}
    assert found.dtype == np.uint8
    rows, columns = found.any(1).nonzero()[0], found.any(0).nonzero()[0]
    around = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    box = letterbox_boxes(torch.tensor([30.0, 60, 90, 210]), letterbox_params(200, 300, 96))
    assert around == pytest.approx(box.tolist(), abs=1)
    assert (letterbox_mask(mask > 0, 96) == found).all()


def test_a_mask_takes_the_nearest_pixels():
    mask = np.random.default_rng(0).integers(2, size=(40, 40), dtype=np.uint8)
    assert (letterbox_mask(mask, 40) == mask).all()
    centres = np.arange(10) * 4 + 2
    assert (letterbox_mask(mask, 10) == mask[np.ix_(centres, centres)]).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: letterbox_params(0, 5), "w=0 must be at least 1 pixel; letterbox_params takes width before height"),
        (lambda: letterbox_params(5, -1), "h=-1 must be"),
        (lambda: letterbox_params(5, 5, 0), "size=0 must be"),
        (lambda: letterbox_boxes(torch.zeros(3), Letterbox(1.0, 1, 1, 0, 0)), r"boxes must be \(..., 4\).* got \(3,\)"),
        (lambda: letterbox_image(Image.new("L", (4, 4))), r"mode 'L', but must be RGB; picture.convert\('RGB'\)"),
        (lambda: letterbox_mask(np.zeros((1, 4, 4))), r"mask must be \(h, w\), got \(1, 4, 4\)"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
