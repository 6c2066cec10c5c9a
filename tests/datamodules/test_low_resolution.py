"""Pictures of low resolution."""

import zlib

import numpy as np
import pytest
from PIL import Image

from datamodules.low_resolution import factor_of, low_resolution


@pytest.fixture
def picture():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 24, 3)).astype(np.uint8))


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_it_is_down_sampled_bicubically_and_resized_bilinearly(picture, factor):
    small = picture.resize((24 // factor, 48 // factor), Image.Resampling.BICUBIC)
    for size in (None, (32, 64)):
        expected = small.resize(size or (24, 48), Image.Resampling.BILINEAR)
        assert np.array_equal(low_resolution(picture, factor, size), expected)


def test_down_sampling_takes_the_mean_of_what_it_covers():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255  # without antialiasing one of the two colours would be left
    grey = np.asarray(low_resolution(Image.fromarray(stripes), 4))[:, 8:-8]
    assert abs(grey.mean() - 127.5) < 2
    assert grey.std() < 4


def test_details_are_lost_with_the_factor(picture):
    spread = [np.asarray(low_resolution(picture, factor)).std() for factor in (1, 2, 3, 4)]
    assert spread == sorted(spread, reverse=True)
    assert np.array_equal(low_resolution(picture, 1), picture)


def test_sides_that_do_not_divide_and_tiny_ones():
    for size in [(7, 5), (1, 1), (2, 300)]:
        assert low_resolution(Image.new("RGB", size, "red"), 4).size == size


def test_a_factor_below_one_is_refused(picture):
    with pytest.raises(ValueError, match="factor must be at least 1, got 0"):
        low_resolution(picture, 0)


def test_the_factor_is_that_of_the_name():
    names = [f"{i:04d}_c1s1_000151_00.jpg" for i in range(300)]
    assert [factor_of(name) for name in names] == [2 + zlib.crc32(name.encode()) % 3 for name in names]
    assert np.bincount([factor_of(name) for name in names])[2:].min() > 70
    assert factor_of("ä.jpg", [5, 9]) == [5, 9][zlib.crc32("ä.jpg".encode()) % 2]


def test_no_factors_are_refused():
    with pytest.raises(ValueError, match="factors is empty"):
        factor_of("a", [])
