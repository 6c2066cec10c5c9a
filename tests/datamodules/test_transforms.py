import numpy as np
import pytest
import torch
import torchvision.transforms.functional as tv
from PIL import Image
from torch.testing import assert_close
from torchvision.transforms import InterpolationMode, RandomResizedCrop

from datamodules.draws import AUGMENT, uniforms
from datamodules.transforms import (
    CROP_DRAWS,
    crop_and_flip,
    pad_crop,
    random_resized_crop,
    random_resized_crop_box,
    resize_and_center_crop,
    to_uint8,
)


def picture(width, height):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_pad_crop_equals_a_loop():
    images = torch.randint(0, 256, (9, 3, 6, 5), dtype=torch.uint8)
    top, left = torch.arange(9), torch.arange(9).flip(0)
    expected = []
    for image, y, x in zip(images.numpy(), top.tolist(), left.tolist(), strict=True):
        padded = np.zeros((3, 14, 13), np.uint8)
        padded[:, 4:10, 4:9] = image
        expected.append(padded[:, y : y + 6, x : x + 5])
    cropped = pad_crop(images, top, left)
    assert cropped.dtype == torch.uint8
    assert_close(cropped, torch.from_numpy(np.stack(expected)))


def test_each_image_of_a_batch_is_flipped_and_moved_on_its_own():
    images = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8).repeat(1000, 1, 1, 1)
    draws = uniforms(3, AUGMENT, 0, 0, np.arange(1000))
    out = crop_and_flip(images, draws)
    assert len({image.numpy().tobytes() for image in out}) == len(
        {(int(top * 9), int(left * 9), flip < 0.5) for top, left, flip in draws}
    )
    assert 0.45 < (draws[:, 2] < 0.5).mean() < 0.55
    middle = np.tile([0.5, 0.5, 0.7], (1000, 1))
    assert_close(crop_and_flip(images, middle), images)
    middle[:, 2] = 0.1
    assert_close(crop_and_flip(images, middle), images.flip(-1))
    assert_close(crop_and_flip(images, middle, flip=False), images)


def test_random_windows_follow_torchvision():
    draws = uniforms(CROP_DRAWS, AUGMENT, 0, 0, np.arange(4000))
    ours = np.array([random_resized_crop_box(320, 200, row) for row in draws], float)
    shape = torch.zeros(3, 200, 320)
    theirs = np.array([RandomResizedCrop.get_params(shape, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(4000)], float)
    top, left, height, width = theirs.T
    theirs = np.stack([left, top, left + width, top + height], 1)
    assert (ours[:, :2] >= 0).all()
    assert (ours[:, 2:] <= [320, 200]).all()
    assert_close(ours.mean(0), theirs.mean(0), rtol=0, atol=5)  # five standard errors
    assert_close(ours.std(0), theirs.std(0), rtol=0.08, atol=0)


@pytest.mark.parametrize("size", [(1, 1), (1000, 3), (3, 1000), (2, 2)])
def test_windows_of_odd_pictures_are_inside(size):
    for row in uniforms(CROP_DRAWS, AUGMENT, 0, 0, np.arange(50)):
        left, top, right, bottom = random_resized_crop_box(*size, row)
        assert 0 <= left < right <= size[0]
        assert 0 <= top < bottom <= size[1]


def test_random_resized_crop_cuts_and_scales_like_torchvision():
    image, draws = picture(90, 70), uniforms(CROP_DRAWS + 1, AUGMENT, 0, 0, 3)[0]
    left, top, right, bottom = random_resized_crop_box(90, 70, draws[:CROP_DRAWS])
    draws[-1] = 0.9
    expected = tv.resized_crop(image, top, left, bottom - top, right - left, [32, 32], InterpolationMode.BILINEAR)
    assert_close(to_uint8(random_resized_crop(image, draws, 32)), tv.pil_to_tensor(expected))
    draws[-1] = 0.1
    assert_close(to_uint8(random_resized_crop(image, draws, 32)), tv.pil_to_tensor(tv.hflip(expected)))


def test_evaluation_view():
    out = to_uint8(resize_and_center_crop(picture(100, 50), 32, 28))
    assert_close(out, tv.pil_to_tensor(tv.center_crop(tv.resize(picture(100, 50), [32]), [28, 28])))
