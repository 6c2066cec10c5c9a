"""Views of pictures with faces: boxes follow the pixels, colours change as if the whole picture had been changed."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.face_boxes_views import PADDING, ViewOptions, augment, cut, view_draws
from datamodules.face_boxes_windows import Window
from datamodules.photometric import Recolouring, recolour

PLAIN = {"brightness": 0, "contrast": 0, "saturation": 0, "hue": 0, "permute": 0}
BOX = np.array([[120.0, 60, 160, 120]], np.float32)


def options(size=64, **others):
    return ViewOptions(image_size=size, anchor_sizes=(16, 32, 64), **others)


def painted(size=(240, 180), box=BOX):
    """A dark picture with a bright rectangle."""
    picture = np.full((size[1], size[0], 3), 10, np.uint8)
    x1, y1, x2, y2 = box[0].astype(int)
    picture[y1:y2, x1:x2] = 250
    return picture


@pytest.fixture(scope="module")
def noise():
    """A picture whose neighbouring pixels are alike."""
    coarse = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((240, 180), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("crop", ["square", "anchor_sampling", "none"])
def test_boxes_follow_the_pixels(crop):
    picture, mirrored, inside = painted(), 0, 0
    for index in range(60):
        view, boxes = augment(picture, BOX, options(crop=crop, **PLAIN), view_draws(0, 0, index))
        assert view.shape == (3, 64, 64)
        assert view.dtype == torch.uint8
        assert view.is_contiguous()
        assert boxes.dtype == torch.float32
        rows, columns = np.nonzero(view[0].numpy() > 180)
        found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert np.abs(boxes[0].numpy() - found).max() <= 1, index
        mirrored += int(boxes[0, 0] + boxes[0, 2] < 64)
        inside += int((boxes > 0).all() and (boxes < 64).all())
    assert inside > 20
    if crop == "none":  # the rectangle is in the right half
        assert 20 < mirrored < 40


def test_a_mirrored_view_is_the_view_mirrored(noise):
    for index in range(5):
        draw = view_draws(1, 0, index)
        view, boxes = augment(noise, BOX, options(flip=0), draw)
        mirrored, other = augment(noise, BOX, options(flip=1), draw)
        assert torch.equal(mirrored, view.flip(-1))
        torch.testing.assert_close(
            other[:, [2, 1, 0, 3]], (boxes - torch.tensor([64, 0, 64, 0])) * torch.tensor([-1, 1, -1, 1])
        )


@pytest.mark.parametrize("crop", ["square", "anchor_sampling", "none"])
def test_arrays_and_pictures_give_the_same(noise, crop):
    for index in range(10):
        draw = view_draws(0, 2, index)
        one, two = (
            augment(noise, BOX, options(crop=crop), draw),
            augment(Image.fromarray(noise), BOX, options(crop=crop), draw),
        )
        assert torch.equal(one[0], two[0])
        assert torch.equal(one[1], two[1])


@pytest.mark.parametrize("change", [Recolouring(20, 1.3, 1.4, -15, 1.0, (2, 0, 1)), Recolouring(-9, last_contrast=0.7)])
def test_a_window_is_recoloured_as_the_whole_picture_would_be(noise, change):
    small = Window(30, 20, 50, 50, "0.3", 8)
    assert (cut(noise, small, 64, change) == cut(recolour(noise, change), small, 64)).all()
    large = Window(30, 20, 150, 150, "0.3", 8)  # has more pixels than the view
    gap = np.abs(cut(noise, large, 64, change).astype(int) - cut(recolour(noise, change), large, 64))
    assert gap.mean() < 2
    assert (gap > 16).mean() < 0.02


def test_a_window_of_the_size_of_the_view_is_not_resampled(noise):
    assert (cut(noise, Window(30, 20, 64, 64, "0.3", 8), 64) == noise[20:84, 30:94]).all()


def test_around_the_picture_there_is_padding_of_the_same_colour():
    picture = np.full((20, 30, 3), 200, np.uint8)
    view = cut(picture, Window(-10, -5, 40, 40, "anchor_sampling", 8), 80, Recolouring(brightness=20))
    covered = np.zeros((80, 80), bool)
    covered[10:50, 20:80] = True
    assert (view[covered] == 220).all()
    assert (view[~covered] == PADDING).all()
    thin = cut(np.full((1, 4000, 3), 200, np.uint8), Window(0, -2000, 4000, 4000, "anchor_sampling", 8), 64)
    assert (thin == 200).all(-1).sum() == 64


def test_smaller_pictures_and_pictures_of_one_pixel_fill_their_views():
    for height, width in ((1, 1), (3, 40), (20, 20)):
        picture = np.full((height, width, 3), 77, np.uint8)
        for crop in ("square", "none"):
            view, boxes = augment(
                picture, np.empty((0, 4), np.float32), options(crop=crop, **PLAIN), view_draws(0, 0, 0)
            )
            assert (view == 77).all()
            assert boxes.shape == (0, 4)


def test_nothing_but_seed_epoch_and_number_decides(noise):
    def make(seed, epoch, index):
        return augment(noise, BOX, options(), view_draws(seed, epoch, index))[0]

    first = make(0, 0, 0)
    make(3, 3, 3)
    assert torch.equal(first, make(0, 0, 0))
    assert not any(torch.equal(first, other) for other in (make(1, 0, 0), make(0, 1, 0), make(0, 0, 1)))


def test_what_is_switched_off_does_not_move_the_rest(noise):
    for index in range(10):
        draw = view_draws(0, 0, index)
        _, boxes = augment(noise, BOX, options(), draw)
        assert torch.equal(boxes, augment(noise, BOX, options(**PLAIN), draw)[1])


def test_the_picture_and_its_boxes_are_not_changed(noise):
    picture, boxes = noise.copy(), BOX.copy()
    for index in range(10):
        augment(picture, boxes, options(crop="none"), view_draws(0, 0, index))
    assert (picture == noise).all()
    assert (boxes == BOX).all()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"image_size": 0}, "image_size must be at least 1"),
        ({"crop": "sqare"}, "crop must be one of .* did you mean 'square'"),
        ({"brightness": -1}, "brightness must be between 0 and 255, got -1"),
        ({"hue": float("nan")}, "hue must be between 0 and 180, got nan"),
        ({"contrast": 1.5}, "contrast must be between 0 and 1"),
        ({"saturation": 2}, "saturation must be between 0 and 1"),
        ({"permute": 3}, "permute must be between 0 and 1"),
        ({"flip": -0.5}, "flip must be between 0 and 1"),
        ({"min_face": 700}, "min_face must be 0 or more and below image_size=640, got 700"),
        ({"anchor_sizes": ()}, "anchor_sizes must be one size or more"),
        ({"anchor_sizes": (32, 16)}, "anchor_sizes must be .* ascending"),
        ({"image_size": 12}, "image_size=12 is below the smallest of anchor_sizes"),
    ],
)
def test_options_out_of_range_are_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        ViewOptions(**wrong)
    assert dataclasses.replace(ViewOptions(), crop="none", image_size=12).image_size == 12


def test_other_pictures_and_boxes_are_refused(noise):
    draw = view_draws(0, 0, 0)
    for image, given in (
        (noise[:, :, 0], "uint8 of shape"),
        (noise / 255, "float64"),
        (Image.new("L", (9, 9)), "mode L"),
    ):
        with pytest.raises(ValueError, match=given):
            augment(image, BOX, options(), draw)
    with pytest.raises(ValueError, match=r"boxes must be \(n, 4\)"):
        augment(noise, BOX[0], options(), draw)
