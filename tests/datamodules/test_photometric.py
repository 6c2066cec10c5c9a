"""Other colours: what each change does to values, and how often it is drawn."""

import colorsys

import numpy as np
import pytest

from datamodules.face_boxes_views import view_draws
from datamodules.photometric import ORDERS, Recolouring, draw_recolouring, recolour


@pytest.fixture(scope="module")
def pixels():
    """Random colours, and those where two channels are equal or all of them."""
    rows = np.random.default_rng(0).integers(0, 256, (600, 3), dtype=np.uint8)
    rows[:100, 1], rows[100:200, 2], rows[150:250] = rows[:100, 0], rows[100:200, 1], rows[150:250, :1]
    return rows


@pytest.fixture(scope="module")
def drawn():
    return [draw_recolouring(view_draws(0, 0, index)) for index in range(600)]


@pytest.mark.parametrize("saturation", [0.5, 1, 1.5])
@pytest.mark.parametrize("hue", [-170, -18, 0, 7.5, 90])
def test_saturation_and_hue_are_those_of_hsv(pixels, saturation, hue):
    expected = []
    for row in (pixels / 255).tolist():
        h, s, v = colorsys.rgb_to_hsv(*row)
        expected.append(colorsys.hsv_to_rgb((h + hue / 360) % 1, s * saturation, v))
    expected = (255 * np.array(expected)).clip(0, 255)
    found = recolour(pixels, Recolouring(saturation=saturation, hue=hue))
    assert np.abs(found - expected).max() < 0.501  # rounding


def test_values_are_cut_off_at_the_end_alone():
    grey = np.full((1, 3), 200, np.uint8)
    assert recolour(grey, Recolouring(brightness=100, last_contrast=0.5)).tolist() == [[150, 150, 150]]
    assert recolour(grey, Recolouring(brightness=100, hue=5, last_contrast=0.5)).tolist() == [[150, 150, 150]]
    assert recolour(grey, Recolouring(first_contrast=1.5)).tolist() == [[255, 255, 255]]
    assert recolour(grey, Recolouring(brightness=-220, saturation=1.5)).tolist() == [[0, 0, 0]]


def test_brightness_comes_before_contrast_and_the_order_last():
    row = np.array([[10, 20, 30]], np.uint8)
    change = Recolouring(brightness=10, first_contrast=1.5, order=(2, 0, 1))
    assert recolour(row, change).tolist() == [[60, 30, 45]]
    turned = recolour(row, Recolouring(brightness=10, first_contrast=1.5, hue=120, order=(2, 0, 1)))
    assert turned.tolist() == [[45, 60, 30]]  # hue makes 60, 30, 45 of 30, 45, 60


def test_large_pictures_are_changed_like_small_ones(pixels):
    change = Recolouring(brightness=9, saturation=1.3, hue=-11, last_contrast=0.8, order=(1, 2, 0))
    large = np.tile(pixels, (200, 1)).reshape(300, 400, 3)
    assert (recolour(large, change) == np.tile(recolour(pixels, change), (200, 1)).reshape(300, 400, 3)).all()


def test_a_picture_is_not_changed_in_place(pixels):
    before = pixels.copy()
    for change in (Recolouring(), Recolouring(brightness=5), Recolouring(saturation=1.5), Recolouring(hue=20)):
        recolour(pixels, change)
        assert (pixels == before).all()


def test_each_change_is_drawn_for_half_of_the_views(drawn):
    still = Recolouring()
    for name in ("brightness", "saturation", "hue"):
        assert 0.4 < np.mean([getattr(change, name) != getattr(still, name) for change in drawn]) < 0.6, name
    contrast = [(change.first_contrast != 1, change.last_contrast != 1) for change in drawn]
    assert 0.2 < np.mean([first for first, _ in contrast]) < 0.3
    assert 0.2 < np.mean([last for _, last in contrast]) < 0.3
    assert not any(first and last for first, last in contrast)
    assert {change.order for change in drawn} == set(ORDERS)
    assert 0.35 < np.mean([change.order != ORDERS[0] for change in drawn]) < 0.48  # 5/12: the old order is drawn, too


def test_changes_fill_their_ranges(drawn):
    ranges = {"brightness": (-32, 32), "first_contrast": (0.5, 1.5), "saturation": (0.5, 1.5), "hue": (-18, 18)}
    for name, (low, high) in ranges.items():
        values = [getattr(change, name) for change in drawn]
        reach = high - low
        assert low <= min(values) < low + 0.05 * reach, name
        assert high - 0.05 * reach < max(values) <= high, name


@pytest.mark.parametrize("off", ["brightness", "contrast", "saturation", "hue", "permute"])
def test_what_is_switched_off_does_not_move_the_rest(drawn, off):
    fields = {"contrast": ("first_contrast", "last_contrast"), "permute": ("order",)}.get(off, (off,))
    for index, change in enumerate(drawn[:50]):
        other = draw_recolouring(view_draws(0, 0, index), **{off: 0})
        for name in Recolouring.__dataclass_fields__:
            assert getattr(other, name) == getattr(Recolouring() if name in fields else change, name), name
