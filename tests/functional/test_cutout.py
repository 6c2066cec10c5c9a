import numpy as np
import pytest
import torch
from torch.testing import assert_close

from lit_methods.functional.cutout import cutout, paint_rectangles


def test_it_paints_what_the_official_code_paints(vectors):
    given = np.load(vectors / "bpe_mip/cutout_schedule.npz")
    images, centers = torch.from_numpy(given["x"]), torch.from_numpy(given["centers"])
    before = images.clone()
    out = cutout(images, centers, int(given["cutout_length"]))
    assert_close(out, torch.from_numpy(given["cutout_output"]), rtol=0, atol=1e-12)
    assert torch.equal(images, before)


@pytest.mark.parametrize("length", [0, 1, 2, 5, 8, 40])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float64])
def test_it_equals_a_loop_for_every_length_and_dtype(length, dtype):
    images = torch.randint(1, 200, (12, 3, 9, 7)).to(dtype)
    centers = torch.stack([torch.randint(0, 9, (12,)), torch.randint(0, 7, (12,))], 1)
    fill, half = torch.tensor([0, 201, 202]), length // 2
    expected, painted = images.clone(), torch.zeros(12, 1, 9, 7, dtype=torch.bool)
    for image, where, (y, x) in zip(expected, painted, centers.tolist(), strict=True):
        square = (slice(None), slice(max(0, y - half), max(0, y + half)), slice(max(0, x - half), max(0, x + half)))
        image[square], where[square] = fill.to(dtype)[:, None, None], True
    out = cutout(images, centers, length, fill)
    assert out.dtype == dtype
    assert torch.equal(out, expected)
    assert torch.equal(out, images) == (length < 2)
    assert torch.equal(cutout(images, centers, length, 7), images.masked_fill(painted, 7))


def test_gradients_pass_outside_the_square_only():
    images = torch.ones(1, 1, 4, 4, requires_grad=True)
    cutout(images, torch.tensor([[1, 1]]), 2).sum().backward()
    assert images.grad[0, 0].tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1]]


def test_an_empty_batch_stays_empty():
    assert cutout(torch.zeros(0, 3, 4, 4), torch.zeros(0, 2, dtype=torch.int64), 2).shape == (0, 3, 4, 4)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"images": torch.zeros(3, 4, 4)}, r"images must be \(B, C, H, W\), got shape \(3, 4, 4\)"),
        (
            {"centers": torch.zeros(3, 2, dtype=torch.int64)},
            r"centers must be int64 \(2, 2\).*got torch.int64 \(3, 2\)",
        ),
        ({"centers": torch.zeros(2, 2)}, r"centers must be int64 \(2, 2\).*got torch.float32 \(2, 2\)"),
        ({"length": -1}, r"length must be 0 \(nothing\) or more pixels, got -1"),
        ({"fill": torch.zeros(2)}, r"fill must be one number or \(3,\), .* got shape \(2,\)"),
        ({"fill": torch.zeros(3, 1)}, r"fill must be one number or \(3,\), .* got shape \(3, 1\)"),
    ],
)
def test_bad_arguments(wrong, message):
    given = {"images": torch.zeros(2, 3, 4, 4), "centers": torch.zeros(2, 2, dtype=torch.int64), "length": 2} | wrong
    with pytest.raises(ValueError, match=message):
        cutout(**given)


# -- rectangles of any size -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16, torch.float64])
def test_rectangles_equal_a_loop(dtype):
    images = torch.randint(1, 200, (40, 3, 9, 7)).to(dtype)
    boxes = torch.stack([torch.randint(low, high, (40,)) for low, high in ((-3, 9), (-3, 7), (-1, 13), (-1, 11))], 1)
    boxes[0], boxes[1], boxes[2] = torch.tensor([0, 0, 0, 0]), torch.tensor([0, 0, 9, 7]), torch.tensor([3, 2, 5, 2])
    before, fill = images.clone(), torch.tensor([0, 201, 202])
    expected = images.clone()
    for image, (y0, x0, y1, x1) in zip(expected, boxes.tolist(), strict=True):
        image[:, max(0, y0) : max(0, y1), max(0, x0) : max(0, x1)] = fill.to(dtype)[:, None, None]
    out = paint_rectangles(images, boxes, fill)
    assert out.dtype == dtype
    assert torch.equal(out, expected)
    assert torch.equal(images, before)
    same = (out == images).flatten(1).all(1)
    assert same[0]  # four zeros are no rectangle
    assert not same[1]
    assert same[2]  # nor is one without width
    assert torch.equal(out[1], fill.to(dtype)[:, None, None].expand(3, 9, 7))


def test_one_number_fills_all_channels():
    out = paint_rectangles(torch.zeros(1, 3, 2, 2), torch.tensor([[0, 1, 1, 2]]), 0.5)
    assert out[0, :, 0, 1].tolist() == [0.5] * 3
    assert out.sum() == 1.5


def test_gradients_pass_outside_the_rectangle_only():
    images = torch.ones(1, 1, 2, 3, requires_grad=True)
    paint_rectangles(images, torch.tensor([[0, 1, 2, 3]]), 5.0).sum().backward()
    assert images.grad[0, 0].tolist() == [[1, 0, 0], [1, 0, 0]]


def test_an_empty_batch_has_no_rectangles():
    assert paint_rectangles(torch.zeros(0, 3, 4, 4), torch.zeros(0, 4, dtype=torch.int64)).shape == (0, 3, 4, 4)


@pytest.mark.parametrize(
    "wrong",
    [
        {"images": torch.zeros(3, 4, 4)},
        {"boxes": torch.zeros(2, 4)},
        {"boxes": torch.zeros(3, 4, dtype=torch.int64)},
        {"boxes": torch.zeros(4, dtype=torch.int64)},
    ],
    ids=["no batch", "floating point", "another length", "one box"],
)
def test_bad_rectangles(wrong):
    given = {"images": torch.zeros(2, 3, 4, 4), "boxes": torch.zeros(2, 4, dtype=torch.int64)} | wrong
    with pytest.raises(ValueError, match=r"images must be \(B, C, H, W\) and boxes int64 \(B, 4\), got shapes"):
        paint_rectangles(**given)


def test_a_fill_of_another_length_is_refused():
    with pytest.raises(ValueError, match=r"fill must be one number or \(3,\)"):
        paint_rectangles(torch.zeros(1, 3, 4, 4), torch.zeros(1, 4, dtype=torch.int64), torch.zeros(2))
