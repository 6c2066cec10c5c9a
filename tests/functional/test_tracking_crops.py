"""Square crops around a target: the official pixels, borders, and many at once."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from lit_methods.functional.tracking_crops import context_size, crop_patch, crop_patches

FILL = torch.tensor([10.9, 20.2, 30.5])


@pytest.fixture
def known(vectors):
    return dict(np.load(vectors / "siamban" / "crop.npz"))


def as_frame(picture):
    return torch.from_numpy(picture).permute(2, 0, 1)


def one_by_one(image, center, side, out, fill):
    """A plain loop over pixels."""
    image, fill = image.double().numpy(), np.trunc(fill)
    first = [int(np.floor(c - (side + 1) / 2 + 0.5)) for c in center]
    _, height, width = image.shape

    def pixel(x, y):
        x, y = x + first[0], y + first[1]
        return image[:, y, x] if 0 <= x < width and 0 <= y < height else fill

    result = np.zeros((3, out, out))
    for i in range(out):
        for j in range(out):
            x, y = (min(max((k + 0.5) * side / out - 0.5, 0), side - 1) for k in (j, i))
            left, top = int(x), int(y)
            right, bottom = min(left + 1, side - 1), min(top + 1, side - 1)
            upper = pixel(left, top) * (1 - x + left) + pixel(right, top) * (x - left)
            lower = pixel(left, bottom) * (1 - x + left) + pixel(right, bottom) * (x - left)
            result[:, i, j] = upper * (1 - y + top) + lower * (y - top)
    return result


def test_context_sizes_and_their_roundings_are_the_official_ones(vectors):
    known = {name: torch.from_numpy(value) for name, value in np.load(vectors / "siamban" / "context.npz").items()}
    s_z, rounded, scale, s_x, rounded_x = known["sz_rz_scale_sx_rsx"].T
    ours = context_size(known["sizes"])
    assert_close(ours, s_z, rtol=1e-12, atol=0)
    assert torch.equal(ours.round(), rounded)
    assert_close(127 / ours, scale, rtol=1e-12, atol=0)
    assert torch.equal((255 / (127 / ours)).round(), rounded_x)
    assert_close(255 / (127 / ours), s_x, rtol=1e-12, atol=0)
    assert context_size(torch.tensor([[30, 10]])).dtype == torch.float32  # whole numbers are sizes, too


def test_crops_that_are_not_resized_have_the_official_pixels(known):
    for number in range(4):
        image, fill = ("noise", "avg_noise")
        side = int(known[f"exact_size{number}"][0])
        place = known[f"exact_pos{number}"]
        ours = crop_patch(as_frame(known[image]), place, side, side, known[fill])
        assert ours.dtype == torch.float32
        assert_close(ours, torch.from_numpy(known[f"exact_out{number}"]).float(), rtol=0, atol=0)


def test_resized_crops_are_within_a_grey_level_of_the_official_ones(known):
    for number in range(2):
        out, side = map(int, known[f"resize_sizes{number}"])
        place = tuple(known[f"resize_pos{number}"].tolist())
        ours = crop_patch(as_frame(known["smooth"]), place, side, out, torch.from_numpy(known["avg_smooth"]))
        assert_close(ours, torch.from_numpy(known[f"resize_out{number}"]).float(), rtol=0, atol=1)


@pytest.mark.parametrize("center", [(9.5, 7.2), (-3.0, 2.5), (21.0, 14.0), (100.0, 5.0)])
@pytest.mark.parametrize(("side", "out"), [(11, 7), (6, 13), (1, 3), (40, 9)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_crops_equal_a_loop_over_pixels(center, side, out, dtype):
    image = torch.randint(256, (3, 15, 22)).to(dtype)
    ours = crop_patch(image, center, side, out, FILL)
    assert_close(ours.double(), torch.from_numpy(one_by_one(image, center, side, out, FILL.numpy())), rtol=0, atol=1e-4)


def test_outside_is_the_truncated_fill_exactly():
    crop = crop_patch(torch.full((3, 8, 8), 200, dtype=torch.uint8), (0, 0), 12, 30, FILL)
    assert crop[:, 0, 0].tolist() == crop[:, 0, -1].tolist() == crop[:, 5, 5].tolist() == [10, 20, 30]
    assert_close(crop[:, -1, -1], torch.full((3,), 200.0), rtol=0, atol=1e-4)


def test_many_at_once_are_each_alone_whether_of_one_size_or_of_several():
    for shapes in ([(20, 30)] * 3, [(20, 30), (31, 17), (9, 40)]):
        images = [torch.randint(256, (3, *shape), dtype=torch.uint8) for shape in shapes]
        centers = torch.tensor([[4.0, 5.5], [16.2, 8.0], [39.0, 2.0]], dtype=torch.float64)
        sides, fill = torch.tensor([9, 25, 14]), torch.rand(3, 3) * 255
        together = crop_patches(images, centers, sides, 15, fill)
        for row, image in enumerate(images):
            alone = crop_patch(image, centers[row], int(sides[row]), 15, fill[row])
            assert torch.equal(together[row], alone)


def test_frames_may_lie_in_memory_as_opencv_leaves_them():
    array = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)
    image = as_frame(array)
    plain = crop_patch(image.contiguous(), (8, 6), 9, 11, FILL)
    assert torch.equal(crop_patch(image, (8, 6), 9, 11, FILL), plain)
    wider = torch.zeros(3, 12, 20, dtype=torch.uint8)
    wider[:, :, :16] = image
    assert torch.equal(crop_patch(wider[:, :, :16], (8, 6), 9, 11, FILL), plain)


def test_numbers_that_are_no_place_end_in_the_fill_or_at_the_border_without_a_crash():
    crops = crop_patches([torch.zeros(3, 4, 4)], torch.full((1, 2), torch.nan), torch.tensor([3.0]), 5, FILL[None])
    assert crops.shape == (1, 3, 5, 5)


@pytest.mark.parametrize("arguments", [{"side": 0}, {"out": 0}])
def test_a_crop_without_pixels_is_refused(arguments):
    given = {"side": 5, "out": 5} | arguments
    with pytest.raises(ValueError, match="must be at least 1 pixel"):
        crop_patch(torch.zeros(3, 8, 8), (4, 4), fill=FILL, **given)


def test_what_is_no_image_is_refused():
    with pytest.raises(ValueError, match=r"must be \(3, H, W\), got \(8, 8\)"):
        crop_patch(torch.zeros(8, 8), (4, 4), 5, 5, FILL)
