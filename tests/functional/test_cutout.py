import numpy as np
import pytest
import torch
from torch.testing import assert_close

from lit_methods.functional.cutout import cutout


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
