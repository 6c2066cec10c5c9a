"""A small Places365: JPEG files in the folders of the easy format, or as the set is distributed."""

from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from datamodules.demo.patterns import class_picture

# not the first of the real set, whose numbers are others; one of them has a slash
CLASSES = [
    "/a/airfield",
    "/a/airport_terminal",
    "/a/apartment_building/outdoor",
    "/a/aquarium",
    "/b/beach",
    "/b/bridge",
    "/c/church/indoor",
    "/o/oilrig",
]


def write_places365(
    root: str | Path,
    num_classes: int = 4,
    train_per_class: int = 8,
    test_per_class: int = 3,
    size: int = 64,
    seed: int = 0,
    layout: Literal["easy", "distributed"] = "easy",
) -> Path:
    """Write a small data set that a network can learn, in the folders and under the names of Places365-Standard.

    Args:
        root: gets ``train/<class>``, ``val/<class>`` and ``label.txt``, or ``data_256/<letter>/<class>``, a flat
            ``val_256``, ``places365_val.txt`` and ``categories_places365.txt``.
        num_classes: 1 to 8.
        train_per_class: training images of each class.
        test_per_class: test images of each class.
        size: height of the pictures in pixels; they are a quarter wider than high.
        seed: decides the pictures.
        layout: ``easy`` has one folder per class, ``distributed`` is what the archives unpack to. Both have the same
            pictures.

    Returns:
        ``root``, to hand to ``Places365DataModule``.

    Raises:
        ValueError: ``num_classes`` is out of range, or ``layout`` is another word.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as root:
        ...     root = write_places365(root, layout="distributed")
        ...     sorted(path.name for path in root.iterdir())
        ['categories_places365.txt', 'data_256', 'places365_val.txt', 'val_256']
    """
    if not 1 <= num_classes <= len(CLASSES):
        raise ValueError(f"num_classes must be 1 to {len(CLASSES)}, got {num_classes}")
    if layout not in ("easy", "distributed"):
        raise ValueError(f'layout must be "easy" or "distributed", got {layout!r}')
    root, classes, easy = Path(root), CLASSES[:num_classes], layout == "easy"
    for label, path in enumerate(classes):
        random = np.random.default_rng([seed, label])
        folder = _easy(path) if easy else path[1:]
        train = [
            f"{'train' if easy else 'data_256'}/{folder}/{image:08d}.jpg" for image in range(1, train_per_class + 1)
        ]
        val = f"val/{folder}" if easy else "val_256"
        names = [_val_name(label, image, num_classes) for image in range(test_per_class)]
        for name in (*train, *(f"{val}/{name}" for name in names)):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(class_picture(label, size * 5 // 4, random)[:size]).save(root / name, quality=90)
    if easy:
        _write(
            root / "label.txt", [f"{_easy(path)} {path[3:].replace('/', ', ').replace('_', ' ')}" for path in classes]
        )
    else:
        _write(root / "categories_places365.txt", [f"{path} {label}" for label, path in enumerate(classes)])
        pairs = ((image, label) for image in range(test_per_class) for label in range(num_classes))  # classes mixed
        _write(
            root / "places365_val.txt", [f"{_val_name(label, image, num_classes)} {label}" for image, label in pairs]
        )
    return root


def _easy(path: str) -> str:
    return path[3:].replace("/", "-")


def _val_name(label: int, image: int, num_classes: int) -> str:
    return f"Places365_val_{image * num_classes + label + 1:08d}.jpg"


def _write(path: Path, lines: list[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
