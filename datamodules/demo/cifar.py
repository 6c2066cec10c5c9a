"""A small CIFAR-10 or CIFAR-100 in the format of the original python batches."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodules.cifar_files import CLASS_NAMES, LAYOUTS
from datamodules.demo.patterns import class_picture


def write_cifar(
    root: str | Path, name: str = "cifar10", train_per_class: int = 20, test_per_class: int = 5, seed: int = 0
) -> Path:
    """Write a small data set that a network can learn, as pickles with the original names and keys.

    Args:
        root: gets the folder ``cifar-10-batches-py`` or ``cifar-100-python``.
        name: ``cifar10`` or ``cifar100``.
        train_per_class: training images of each class; for cifar10 a multiple of its 5 files.
        test_per_class: test images of each class.
        seed: decides the pictures.

    Returns:
        ``root``, to hand to ``CIFARDataModule``.

    Raises:
        ValueError: another name, or numbers of images that the files cannot hold.
    """
    if name not in LAYOUTS:
        raise ValueError(f"name must be one of {', '.join(LAYOUTS)}, got {name!r}")
    layout, classes = LAYOUTS[name], len(CLASS_NAMES[name])
    if train_per_class < 1 or train_per_class % len(layout.train) or test_per_class < 1:
        raise ValueError(
            f"train_per_class must be a positive multiple of {len(layout.train)} and test_per_class positive, "
            f"got {train_per_class} and {test_per_class}"
        )
    folder = Path(root) / layout.folder
    folder.mkdir(parents=True, exist_ok=True)
    per_file = train_per_class // len(layout.train)
    counts = dict.fromkeys(layout.train, per_file) | dict.fromkeys(layout.test, test_per_class)
    for number, (file, per_class) in enumerate(counts.items(), 1):
        random = np.random.default_rng([seed, number])
        labels = random.permutation(np.repeat(np.arange(classes), per_class))
        pictures = np.stack([class_picture(label, 32, random) for label in labels])
        rows = pictures.transpose(0, 3, 1, 2).reshape(len(labels), -1)
        part = "testing batch 1 of 1" if file in layout.test else f"training batch {number} of {len(layout.train)}"
        _dump(folder / file, _batch(name, rows, labels.tolist(), part))
    _dump(folder / layout.meta, _meta(name, len(labels)))
    return Path(root)


def _batch(name: str, rows: NDArray[np.uint8], labels: list[int], part: str) -> dict[str, Any]:
    filenames = [f"{CLASS_NAMES[name][label]}_s_{row:06d}.png" for row, label in enumerate(labels)]
    content = {"batch_label": part, "data": rows, "filenames": filenames}
    if name == "cifar10":
        return content | {"labels": labels}
    return content | {"fine_labels": labels, "coarse_labels": [label // 5 for label in labels]}


def _meta(name: str, cases: int) -> dict[str, Any]:
    if name == "cifar10":
        return {"num_cases_per_batch": cases, "label_names": CLASS_NAMES[name], "num_vis": 3072}
    return {"fine_label_names": CLASS_NAMES[name], "coarse_label_names": [f"group_{group}" for group in range(20)]}


def _dump(path: Path, content: dict[str, Any]) -> None:
    path.write_bytes(pickle.dumps(content, protocol=2))
