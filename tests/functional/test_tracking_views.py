"""Windows, crops and pixels of training views against the official code's, and against slow loops."""

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate
from torch.testing import assert_close

from lit_methods.functional.tracking_views import (
    BLUR_SIZES,
    augment_crop_box,
    canonical_box,
    colour_shift,
    flip_boxes,
    line_blur,
    to_grey,
    warp_crop,
)


@pytest.fixture
def picture():
    return torch.rand(3, 9, 12, dtype=torch.float64) * 255


def known(vectors, name):
    return {key: torch.from_numpy(value) for key, value in np.load(vectors / "siamban" / f"{name}.npz").items()}


def slow_crop(image, box, out, fill):
    """Pixel by pixel; the picture goes on in the colour of ``fill``."""
    channels, height, width = image.shape
    padded = np.empty((channels, height + 200, width + 200))
    padded[:] = np.asarray(fill, np.float64).reshape(-1, 1, 1)
    padded[:, 100 : 100 + height, 100 : 100 + width] = image
    crop = np.empty((channels, out, out))
    for row in range(out):
        for column in range(out):
            x = 100 + box[0] + column * (box[2] - box[0]) / (out - 1)
            y = 100 + box[1] + row * (box[3] - box[1]) / (out - 1)
            i, j = int(np.floor(y)), int(np.floor(x))
            a, b = y - i, x - j
            corners = padded[:, i : i + 2, j : j + 2]
            crop[:, row, column] = (corners * np.array([[(1 - a) * (1 - b), (1 - a) * b], [a * (1 - b), a * b]])).sum(
                (1, 2)
            )
    return torch.from_numpy(crop)


def test_windows_and_boxes_are_those_of_the_official_code(vectors):
    data = known(vectors, "augment")
    for row, window, box in zip(data["params"], data["crop_box"], data["box_out"], strict=True):
        shift, scale, size = row[:3].tolist()
        ours = augment_crop_box(row[7:], row[3:7], shift, scale, int(size))
        assert_close(ours, (window, box), rtol=1e-12, atol=1e-10)
    assert_close(canonical_box(data["anno_wh"]), data["crop511_box"], rtol=1e-12, atol=1e-10)
    assert_close(flip_boxes(data["flip_in"], 127), data["flip_out"], rtol=1e-12, atol=1e-10)


def test_a_batch_of_windows_is_each_of_them_alone(vectors):
    params = known(vectors, "augment")["params"]
    windows, boxes = augment_crop_box(params[:, 7:], params[:, 3:7], 64, 0.18, 255)
    for row, window, box in zip(params, windows, boxes, strict=True):
        assert_close(augment_crop_box(row[7:], row[3:7], 64, 0.18, 255), (window, box))


def test_training_crops_are_those_of_the_official_code(vectors):
    data = known(vectors, "crop")
    image = data["smooth"].permute(2, 0, 1)
    for number in range(2):
        crop = warp_crop(image, data[f"roi_box{number}"], 64)
        assert crop.dtype == torch.float32
        assert (crop - data[f"roi_out{number}"]).abs().max() < 1  # the vectors allow 2 grey levels


@pytest.mark.parametrize(
    "box",
    [(1, 2, 7, 6), (1.3, 0.2, 9.9, 7.5), (-3.2, -1.7, 5.1, 4), (4.5, 3, 20.25, 15), (-8, 2, -4, 5), (3, 30, 5, 40)],
)
def test_a_crop_is_what_a_loop_over_pixels_gives(picture, box):
    for fill in (0.0, (7.0, 90.0, 200.0)):
        assert_close(warp_crop(picture, box, 6, fill), slow_crop(picture, box, 6, fill), rtol=1e-10, atol=1e-9)


def test_a_window_of_whole_pixels_is_a_copy(picture):
    whole = picture.round().to(torch.uint8)
    assert_close(warp_crop(whole, (2, 1, 8, 7), 7), whole[:, 1:8, 2:9].float(), rtol=0, atol=1e-3)


def test_the_target_is_where_its_box_says():
    places = torch.arange(511.0, dtype=torch.float64).expand(511, 511)
    canvas = torch.stack([places, places.T, places])  # the value of a pixel is its x, its y
    box = torch.tensor([200.0, 215, 310, 295], dtype=torch.float64)
    window, target = augment_crop_box(box, torch.tensor([0.7, -0.4, 0.3, -0.9]).double(), 64, 0.18, 255)
    crop = warp_crop(canvas, window, 255)
    x0, y0, x1, y1 = target.tolist()
    for corner, (x, y) in zip((box[:2], box[2:]), ((x0, y0), (x1, y1)), strict=True):
        value = warp_crop(crop, (x, y, x + 1, y + 1), 2)[:2, 0, 0]
        assert_close(value, corner, rtol=0, atol=1e-6)


def test_windows_stay_inside_of_the_canvas():
    draws = torch.rand(500, 4, dtype=torch.float64) * 2 - 1
    box = torch.tensor([200.0, 200, 310, 310], dtype=torch.float64)
    for shift, scale, size, full in ((64, 0.18, 255, 511), (300, 0.9, 255, 511), (64, 0.18, 191, 383)):
        windows, _ = augment_crop_box(box, draws, shift, scale, size, full)
        inside = windows[(windows[:, 2:] - windows[:, :2] <= full - 1).all(1)]
        assert len(inside) > 250
        assert inside.min() >= -1e-9
        assert inside.max() <= full - 1 + 1e-9
    widest, _ = augment_crop_box(box, torch.ones(4), 0, 1.5, 255, 511)
    assert_close(widest, torch.tensor([-0.5, -0.5, 510.5, 510.5], dtype=torch.float64))


def test_a_colour_is_one_offset_for_all_of_a_picture(picture):
    draws = np.array([0.3, -1.1, 2.0])
    axes = [
        [-0.55919361, 0.98062831, -0.41940627],
        [1.72091413, 0.19879334, -1.82968581],
        [4.64467907, 4.73710203, 4.88324118],
    ]
    offset = (np.array(axes) @ draws)[::-1]  # RGB to BGR
    assert_close(colour_shift(picture, draws).numpy(), picture.numpy() - offset.reshape(3, 1, 1))
    assert_close(colour_shift(picture, [0.0, 0.0, 0.0]), picture)


@pytest.mark.parametrize("size", [1, 3, 5, 15])
def test_a_blur_is_a_filter_with_one_row_and_one_column(picture, size):
    kernel = np.zeros((size, size))
    kernel[:, size // 2] += 0.3 / size
    kernel[size // 2, :] += 0.7 / size
    wanted = np.stack([correlate(channel, kernel, mode="mirror") for channel in picture.numpy()])
    assert_close(line_blur(picture, size, 0.3).numpy(), wanted)
    assert_close(line_blur(picture.float(), size, 0.3).double().numpy(), wanted, rtol=0, atol=1e-2)


def test_blur_sizes_are_odd_from_5_to_45():
    assert BLUR_SIZES[0] == 5
    assert BLUR_SIZES[-1] == 45
    assert len(BLUR_SIZES) == 21


def test_grey_before_a_crop_is_grey_after_it(picture):
    grey = to_grey(picture)
    assert_close(grey[0], 0.114 * picture[0] + 0.587 * picture[1] + 0.299 * picture[2])
    assert_close(grey, grey[:1].expand(3, -1, -1))
    box = (1.3, 0.2, 9.9, 7.5)
    assert_close(to_grey(warp_crop(picture, box, 6)), warp_crop(grey, box, 6))


def test_two_mirrors_are_none():
    boxes = torch.tensor([[3.0, 4, 10, 12], [0, 0, 5, 5]])
    assert_close(flip_boxes(flip_boxes(boxes, 63), 63), boxes)


def test_float64_stays_and_all_else_is_float32(picture):
    for image, dtype in ((picture, torch.float64), (picture.half(), torch.float32), (picture.byte(), torch.float32)):
        crop = warp_crop(image, (1, 1, 3.5, 4), 4)
        views = (crop, to_grey(image), line_blur(image, 3, 0.5), colour_shift(image, [1.0, 0.0, 0.0]))
        assert all(view.dtype == dtype for view in views)
    assert canonical_box(torch.tensor([4, 5])).dtype == torch.float32


def test_what_cannot_be_done_is_refused(picture):
    with pytest.raises(ValueError, match=r"image must be \(3, H, W\), got shape \(1, 3, 9, 12\)"):
        warp_crop(picture[None], (0, 0, 1, 1), 4)
    with pytest.raises(ValueError, match="box must be four numbers and out at least 2"):
        warp_crop(picture, (0, 0, 1), 4)
    with pytest.raises(ValueError, match="box must be four numbers and out at least 2"):
        warp_crop(picture, (0, 0, 1, 1), 1)
    for size in (4, 0, 19):
        with pytest.raises(ValueError, match=f"size must be odd and at most .* got {size}"):
            line_blur(picture, size, 0.5)
