"""Scenes to refer to: a few coloured shapes over a piece of a photograph.

No two shapes of a scene have the same colour and kind, and each shares its colour or its kind with another one.
Whoever does not hear the sentence can only guess which of them is meant.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from datamodules.demo.refer_drawing import (
    COLOURS,
    KINDS,
    Shape,
    draw_background,
    draw_outline,
    make_shape,
    paint,
)
from datamodules.demo.refer_sentences import WORDS, draw_sentences, referring_sentences
from lit_methods.functional.draws import purpose
from lit_methods.functional.words import number_words, word_ids

SCENES, SENTENCES = purpose("demo/refcoco"), purpose("demo/refcoco/sentences")
SPLITS = ("train", "val", "test", "testA", "testB")
LEAST, LONGEST = 0.25, 0.45  # of the picture's mean side: how long a shape is
_GAP = 2  # pixels between two shapes, and to the border


def refer_scene(
    split: str, number: int, size: tuple[int, int] = (128, 112), objects: tuple[int, int] = (3, 4), seed: int = 0
) -> tuple[NDArray[np.uint8], list[Shape]]:
    """Draw a scene.

    Args:
        split: one of ``SPLITS``; "train" has a part of the photographs of its own.
        number: of the scene in its split, from 0.
        size: width and height, at least 48.
        objects: the least and the most shapes.
        seed: decides everything.

    Returns:
        ``(h, w, 3)`` uint8 RGB and its shapes.

    Example:
        >>> picture, shapes = refer_scene("val", 0)
        >>> picture.shape, [f"{shape.colour} {shape.kind}" for shape in shapes]
        ((112, 128, 3), ['green triangle', 'red triangle', 'red square'])
    """
    random = np.random.default_rng([SCENES, seed, SPLITS.index(split), number])
    looks = _looks(int(random.integers(objects[0], objects[1] + 1)), random)
    scene = draw_background("train" if split == "train" else "test", size, random)
    shapes = [
        make_shape(kind, colour, outline, size)
        for (kind, colour), outline in zip(looks, _outlines([kind for kind, _ in looks], size, random), strict=True)
    ]
    for shape in shapes:
        paint(scene, shape, random)
    scene += np.float32(random.uniform(0, 4)) * random.standard_normal(scene.shape, np.float32)
    return np.rint(scene).clip(0, 255).astype(np.uint8), shapes


def _looks(count: int, random: np.random.Generator) -> list[tuple[str, str]]:
    """Kinds and colours of shapes, of which each has something in common with another one."""
    while True:
        kinds = [KINDS[i] for i in random.permutation(len(KINDS))[: random.integers(2, 4)]]
        colours = [list(COLOURS)[i] for i in random.permutation(len(COLOURS))[: random.integers(2, 4)]]
        pairs = [(kind, colour) for kind in kinds for colour in colours]
        looks = [pairs[i] for i in random.permutation(len(pairs))[:count]]
        if len(looks) == count and all(_shares(look, looks) for look in looks):
            return looks


def _shares(look: tuple[str, str], looks: Sequence[tuple[str, str]]) -> bool:
    return any(other != look and (other[0] == look[0] or other[1] == look[1]) for other in looks)


def _outlines(kinds: Sequence[str], size: tuple[int, int], random: np.random.Generator) -> list[NDArray[np.float64]]:
    """Outlines whose extents keep clear of each other."""
    side, scale = math.sqrt(size[0] * size[1]), 1.0
    while True:
        outlines: list[NDArray[np.float64]] = []
        for kind in kinds:
            for _ in range(20):
                outline = draw_outline(kind, scale * random.uniform(LEAST, LONGEST) * side, random)
                room = np.array(size) - 2 * _GAP - outline.max(0)
                placed = np.round(outline + _GAP + random.random(2) * room, 2)
                if room.min() > 0 and all(_clear(placed, other) for other in outlines):
                    outlines.append(placed)
                    break
        if len(outlines) == len(kinds):
            return outlines
        scale *= 0.95


def _clear(one: NDArray[np.float64], other: NDArray[np.float64]) -> bool:
    return bool(((one.min(0) >= other.max(0) + _GAP) | (other.min(0) >= one.max(0) + _GAP)).any())


class SyntheticReferDataset(Dataset[dict[str, Any]]):
    """Scenes with one sentence each, drawn when they are asked for, without any files.

    They are square, so that no letterbox is needed. Another ``seed`` gives other scenes to evaluate on.

    Args:
        length: how many.
        size: side in pixels, at least 48.
        seed: decides everything.
        max_words: words of a sentence; what is longer is cut, what is shorter is padded with 0.

    Attributes:
        vocabulary: the words, sorted; the first has the id 2. 0 is padding, 1 an unknown word.

    Raises:
        ValueError: a number is out of range.

    Example:
        >>> item = SyntheticReferDataset(length=1, size=64)[0]
        >>> {key: tuple(item[key].shape) for key in ("image", "tokens", "box", "mask", "index")}
        {'image': (3, 64, 64), 'tokens': (8,), 'box': (4,), 'mask': (1, 64, 64), 'index': ()}
        >>> item["sentence"]
        'the red one'
    """

    def __init__(self, length: int = 64, size: int = 96, seed: int = 0, max_words: int = 8) -> None:
        least = {"length": (length, 1), "size": (size, 48), "seed": (seed, 0), "max_words": (max_words, 1)}
        for name, (value, low) in least.items():
            if value < low:
                raise ValueError(f"{name} must be at least {low}, got {value}")
        self.length, self.size, self.seed, self.max_words = length, size, seed, max_words
        self.vocabulary = list(WORDS)
        self._ids = number_words(self.vocabulary)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One scene: image (3, S, S) in [0, 1], tokens (T,), box (4,) xyxy, mask (1, S, S) 0/1, index and sentence."""
        if not -self.length <= index < self.length:
            raise IndexError(f"index must be below {self.length}, got {index}")
        index %= self.length
        size = self.size, self.size
        picture, shapes = refer_scene("train", index, size, seed=self.seed)
        random = np.random.default_rng([SENTENCES, self.seed, len(SPLITS), index])
        which = int(random.integers(len(shapes)))
        sentence = draw_sentences(referring_sentences(shapes, which, size), 1, random)[0]
        return {
            "image": torch.from_numpy(picture).permute(2, 0, 1).float() / 255,
            "tokens": torch.tensor(word_ids(sentence, self._ids, self.max_words)),
            "box": torch.tensor(shapes[which].box, dtype=torch.float32),
            "mask": torch.from_numpy(shapes[which].mask)[None].clone(),
            "index": torch.tensor(index),
            "sentence": sentence,
        }
