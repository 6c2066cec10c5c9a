"""Calls, arguments and scores that no attack takes are refused by name."""

import math
import re

import pytest
import torch

from tests.methods.toy_attacks import (
    ATTACKS,
    LINEAR,
    PPBA,
    each_attack,
    one_of_each,
)
from tests.methods.toy_models import (
    CLASSES,
    picture_batch,
)

GOOD, LABELS = picture_batch(3)
BAD_CALLS = {
    "negative": ({"images": GOOD - 1}, r"images must lie in \[0, 1\], not -.*ModelBlackBox\(model, mean, std\)"),
    "above one": ({"images": GOOD * 255}, r"images must lie in \[0, 1\], not .*; do not normalise"),
    "not a number": ({"images": GOOD.where(GOOD < 0.9, math.nan)}, r"images must lie in \[0, 1\], not nan"),
    "whole numbers": ({"images": (GOOD * 255).byte()}, r"images must be float \(N, C, S, S\).* got torch.uint8"),
    "not square": ({"images": GOOD[..., :6]}, r"images must be .* square, got .*\(3, 3, 8, 6\)"),
    "one image": ({"images": GOOD[0]}, r"images must be float \(N, C, S, S\).*\(3, 8, 8\)"),
    "fewer labels": ({"labels": LABELS[:2]}, r"labels must have one entry for each of the 3 images, got 2"),
    "labels as scores": ({"labels": torch.eye(3)}, r"labels must be \(N,\) whole numbers, got torch.float32 \(3, 3\)"),
    "labels as fractions": ({"labels": LABELS.double()}, r"labels must be \(N,\) whole numbers, got torch.float64"),
    "labels as a column": ({"labels": LABELS[:, None]}, r"labels must be \(N,\) whole numbers, got .*\(3, 1\)"),
    "labels as sets": ({"labels": [{"cat"}, {"dog"}, {"cow"}]}, r"labels .*"),
    "a label too high": ({"labels": LABELS + CLASSES}, r"labels holds the class [5-9], .* 5 classes, 0 to 4"),
    "a label below zero": ({"labels": LABELS - CLASSES}, r"labels holds the class -\d, .* 5 classes, 0 to 4"),
    "ids of another number": ({"image_ids": torch.arange(4)}, r"image_ids must have one entry .* 3 images, got 4"),
    "an id twice": ({"image_ids": torch.tensor([1, 2, 1])}, r"image_ids holds an id twice"),
    "true labels": ({"true_labels": LABELS}, r"true_labels are for targeted attacks"),
}


@pytest.mark.parametrize("fault", BAD_CALLS)
@one_of_each
def test_bad_calls_are_refused_by_name(name, fault):
    arguments, message = BAD_CALLS[fault]
    arguments = {"images": GOOD, "labels": LABELS} | arguments
    with pytest.raises(ValueError, match=message):
        ATTACKS[name](max_queries=60)(LINEAR, arguments.pop("images"), arguments.pop("labels"), **arguments)


@one_of_each
def test_true_labels_of_another_shape_or_class(name):
    attack = ATTACKS[name](max_queries=60, targeted=True)
    with pytest.raises(ValueError, match="true_labels must have one entry for each of the 3 images, got 2"):
        attack(LINEAR, GOOD, LABELS, true_labels=LABELS[:2])
    with pytest.raises(ValueError, match=r"true_labels holds the class \d, .* 5 classes"):
        attack(LINEAR, GOOD, LABELS, true_labels=LABELS + CLASSES)


@pytest.mark.parametrize("name", ["ppba", "nes_lf", "bandits_lf", "simba"])
def test_a_projection_for_other_images(name):
    images = torch.rand(2, 3, 16, 16)
    flat = lambda x: x.flatten(1)[:, :5]  # noqa: E731
    with pytest.raises(ValueError, match=r"images are \(3, 16, 16\), but the projection is for \(3, 8, 8\); make one"):
        ATTACKS[name](max_queries=60)(flat, images, flat(images).argmax(1))


@each_attack
def test_what_is_not_a_score(name):
    images, labels = picture_batch(2)
    attack = ATTACKS[name](max_queries=60)
    with pytest.raises(ValueError, match=r"model_fn returns probabilities .* leave the softmax out"):
        attack(lambda x: LINEAR(x).softmax(1), images, labels)
    for wrong in (lambda x: LINEAR(x)[:, 0], lambda x: LINEAR(x)[:1], lambda x: LINEAR(x)[..., None]):
        with pytest.raises(ValueError, match=r"model_fn returned scores of shape .* give \(N, classes\)"):
            attack(wrong, images, labels)
    log = attack(lambda x: LINEAR(x).log_softmax(1), images, labels)  # the cure that the message names
    assert not log.failed.any()


@pytest.mark.parametrize("fault", [{"eps": 0}, {"eps": -1.0}, {"eps": math.nan}, {"pad_batch": -1}])
@each_attack
def test_bad_arguments_of_every_attack(name, fault):
    (argument, value), = fault.items()  # fmt: skip
    with pytest.raises(ValueError, match=f"{argument}={value} must be"):
        ATTACKS[name](**fault)


def test_messages_are_one_line():
    with pytest.raises(ValueError, match=re.compile(r"^[^\n]*$")):
        PPBA(max_queries=1)
