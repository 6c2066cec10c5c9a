"""Sentences about the shapes of a scene: colour, kind and place, each true of exactly one shape."""

from collections.abc import Sequence

import numpy as np

from datamodules.demo.refer_drawing import COLOURS, KINDS, Shape

SIDES = {"left": (0, -1), "right": (0, 1), "top": (1, -1), "bottom": (1, 1)}  # axis and direction
MOST = {"left": "leftmost", "right": "rightmost", "top": "topmost", "bottom": "lowest"}
CLEAR = 0.06  # of a side: as far from the middle is what is said to be on one side of it
APART = 0.15  # of a side: as far beyond all others is what is called the leftmost
WORDS = sorted([*COLOURS, *KINDS, *SIDES, *MOST.values(), "at", "on", "one", "shape", "the"])
DATASETS = ("refcoco", "refcoco+", "refcocog")


def referring_sentences(
    shapes: Sequence[Shape], which: int, size: tuple[int, int], dataset: str = "refcoco"
) -> dict[str, list[str]]:
    """Everything that can be said about one shape so that no other one can be meant.

    A shape is on the left if its middle is there and that of no other of the same name is; it is the leftmost one if
    its middle and its edge are left of those of all others of that name. Both are said only where they are beyond
    doubt, and of names that more than one shape has.

    Args:
        shapes: of the scene.
        which: of them is meant.
        size: width and height of the picture.
        dataset: "refcoco", "refcoco+" (no word of place) or "refcocog" (longer sentences).

    Returns:
        Sentences by what they tell: "both" colour and kind, "either" of them, or also the "place". The first has always
        some if no two shapes have the same colour and kind; the others may be missing.

    Raises:
        ValueError: ``dataset`` is not one of these.

    Example:
        >>> def square(colour, x):
        ...     return Shape("square", colour, np.empty((0, 2)), np.empty((0, 0), np.uint8), (x, 40, x + 20, 60))
        >>> for what, sentences in referring_sentences([square("red", 5), square("blue", 70)], 1, (100, 100)).items():
        ...     print(what, sentences[:4:2])
        both ['blue square']
        either ['blue one', 'blue shape']
        place ['square on the right', 'right square']
    """
    if dataset not in DATASETS:
        raise ValueError(f"dataset must be one of {', '.join(DATASETS)}, got {dataset!r}")
    shape, long = shapes[which], dataset == "refcocog"
    found: dict[str, list[str]] = {"both": [], "either": [], "place": []}
    for what, name, colour, kind in (
        ("both", f"{shape.colour} {shape.kind}", shape.colour, shape.kind),
        ("either", shape.kind, "", shape.kind),
        ("either", f"{shape.colour} one", shape.colour, ""),
        ("either", f"{shape.colour} shape", shape.colour, ""),
        ("either", "shape", "", ""),
    ):
        rivals = [
            other
            for i, other in enumerate(shapes)
            if i != which and colour in ("", other.colour) and kind in ("", other.kind)
        ]
        if not rivals:
            found[what] += [f"the {name} in this picture" if long else name]
            found[what] += [f"the only {name} in the picture" if long else f"the {name}"]
        elif dataset != "refcoco+":
            found["place"] += _placed(name, shape, rivals, size, long)
    if long:
        found["both"].append(f"a {shape.kind} that is {shape.colour}")
    return {what: sentences for what, sentences in found.items() if sentences}


def draw_sentences(sentences: dict[str, list[str]], count: int, random: np.random.Generator) -> list[str]:
    """Some of the sentences about a shape, each of them once.

    Args:
        sentences: by what they tell, as from :func:`referring_sentences`.
        count: how many; fewer if there are not so many.
        random: decides; each thing that can be told is equally likely.

    Example:
        >>> draw_sentences({"both": ["red square"], "place": ["left square"]}, 3, np.random.default_rng(0))
        ['left square', 'red square']
    """
    left = {what: list(told) for what, told in sentences.items()}
    chosen: list[str] = []
    while left and len(chosen) < count:
        what = list(left)[random.integers(len(left))]
        chosen.append(left[what].pop(random.integers(len(left[what]))))
        left = {what: told for what, told in left.items() if told}
    return chosen


def _placed(name: str, shape: Shape, rivals: Sequence[Shape], size: tuple[int, int], long: bool) -> list[str]:
    found = []
    for side, (axis, direction) in SIDES.items():
        both = [(shape.box[axis], shape.box[axis + 2])] + [(other.box[axis], other.box[axis + 2]) for other in rivals]
        own, *others = (direction * ((low + high) / 2 / size[axis] - 0.5) for low, high in both)
        reach, *reaches = (max(direction * low, direction * high) for low, high in both)
        told = []
        if own >= CLEAR and max(others) <= -CLEAR:
            told += [f"{name} {'on' if axis == 0 else 'at'} the {side}"] + ([] if long else [f"{side} {name}"])
        if own - max(others) >= APART and reach > max(reaches):
            told.append(f"{MOST[side]} {name}")
        for words in told:
            found += [f"the {words} of the picture"] if long else [words, f"the {words}"]
    return found
