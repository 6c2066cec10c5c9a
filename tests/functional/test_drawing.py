"""Captions and grids, pixel by pixel."""

import numpy as np
import pytest

from lit_methods.functional.drawing import _ascii, caption, grid


def test_caption_enlarges_by_whole_factors_and_keeps_the_pixels():
    image = np.arange(32 * 40 * 3, dtype=np.uint8).reshape(32, 40, 3)
    drawn = caption(image, "seven")
    assert drawn.shape == (5 * 32 + 20, 5 * 40, 3)
    assert (drawn[2 : 5 * 32 : 5, 2::5] == image).all()
    assert (drawn[5 * 32 :] < 128).any()  # the text


def test_the_text_has_its_colour():
    below = caption(np.zeros((160, 160, 3), np.uint8), "seven", colour="red")[160:]
    assert (below[..., 0] == 255).all()
    assert (below[..., 1:] == 0).any()


def test_text_that_does_not_fit_is_cut():
    image = np.zeros((160, 160, 3), np.uint8)
    short, long = caption(image, "w" * 10), caption(image, "w" * 100)
    assert long.shape == short.shape
    assert (long[160:, -3:] == 255).all()


def test_letters_that_the_font_lacks():
    assert _ascii("dög Ångström 猫") == "dog Angstrom ?"


def test_grid_places_pictures_row_by_row():
    pictures = [np.full((4, 6, 3), value, np.uint8) for value in (10, 20, 30)]
    drawn = grid(pictures, columns=2)
    assert [drawn[4, 4, 0], drawn[4, 12, 0], drawn[10, 4, 0], drawn[10, 12, 0]] == [10, 20, 30, 255]


def test_other_arrays_are_refused():
    with pytest.raises(ValueError, match=r"float64 \(8, 8, 3\)"):
        caption(np.zeros((8, 8, 3)), "x")
