"""Drawings of what a sentence refers to."""

import numpy as np
import pytest
import torch

from lit_methods.functional.box_drawing import FOUND, TRUTH
from lit_methods.mcn.drawing import draw_grounding


def picture(height=60, width=80, grey=100):
    return np.full((height, width, 3), grey, np.uint8)


def rectangle(x1, y1, x2, y2, size=(60, 80)):
    mask = np.zeros(size, bool)
    mask[y1:y2, x1:x2] = True
    return mask


def of_colour(image, colour):
    return (image == np.asarray(colour)).all(2)


def test_the_mask_is_a_translucent_cover_with_an_outline_and_the_rest_stays():
    image, mask = picture(), rectangle(20, 10, 50, 40)
    drawn = draw_grounding(image, None, mask)
    inner = rectangle(21, 11, 49, 39)
    assert (of_colour(drawn, FOUND) == mask & ~inner).all()
    assert (drawn[inner] == np.rint(0.6 * 100 + 0.4 * np.asarray(FOUND))).all()
    assert (drawn[~mask] == 100).all()
    assert (image == 100).all()


def test_the_box_is_an_outline_and_the_truth_has_its_own_colour():
    drawn = draw_grounding(picture(), [5.0, 6, 40, 50], None, truth_box=torch.tensor([50, 5, 70, 25]))
    rows, columns = np.nonzero(of_colour(drawn, FOUND))
    assert (columns.min(), rows.min(), columns.max(), rows.max()) == (5, 6, 39, 49)
    rows, columns = np.nonzero(of_colour(drawn, TRUTH))
    assert (columns.min(), rows.min(), columns.max(), rows.max()) == (50, 5, 69, 24)
    assert drawn[30, 20].tolist() == [100] * 3


def test_the_true_mask_is_an_outline_that_shows_over_what_was_found():
    mask = rectangle(0, 10, 50, 40)  # reaches the picture's rim
    drawn = draw_grounding(picture(), None, torch.from_numpy(mask), truth_mask=mask.astype(np.uint8))
    assert (of_colour(drawn, TRUTH) == mask & ~rectangle(1, 11, 49, 39)).all()
    assert not of_colour(drawn, FOUND).any()


def test_nothing_found_leaves_the_picture_as_it_is():
    for box in (None, [3, 3, 3, 9], [0, 0, float("nan"), 4]):
        assert (draw_grounding(picture(), box, np.zeros((60, 80), bool), score=0.5) == 100).all()


def test_score_and_sentence_are_written():
    box = [10, 20, 60, 55]
    plain, scored = (draw_grounding(picture(), box, None, score=score) for score in (None, 0.87))
    assert (plain != scored).any()
    told = draw_grounding(picture(), box, None, text="the dog")
    assert told.shape == (60 * 3 + 20, 80 * 3, 3)
    assert (told[60 * 3 :] != 255).any()


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (3, 2000)])
def test_tiny_and_narrow_pictures_get_their_sentence_without_growing_beyond_reason(size):
    drawn = draw_grounding(picture(*size), [0, 0, size[1], size[0]], np.ones(size, bool), score=1.0, text="a dog")
    assert max(drawn.shape) <= 5020
    assert min(drawn.shape[:2]) >= 160
    assert of_colour(drawn, FOUND).any()


def test_a_mask_of_another_size_is_refused():
    for name in ("mask", "truth_mask"):
        masks = {"mask": None} | {name: np.ones((80, 60), bool)}
        with pytest.raises(ValueError, match=rf"^{name} must be \(60, 80\) as its picture, got \(80, 60\)"):
            draw_grounding(picture(), None, **masks)
    with pytest.raises(ValueError, match=r"image must be .* got float64"):
        draw_grounding(np.zeros((4, 4, 3)), None, None)
