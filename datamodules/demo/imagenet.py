"""A small ImageNet: JPEG files in one folder per class."""

from pathlib import Path

import numpy as np
from PIL import Image

from datamodules.demo.patterns import class_picture

WNIDS = {
    "n01440764": "tench",
    "n01443537": "goldfish",
    "n01484850": "great_white_shark",
    "n01491361": "tiger_shark",
    "n01494475": "hammerhead",
    "n01496331": "electric_ray",
    "n01498041": "stingray",
    "n01514668": "cock",
    "n01514859": "hen",
    "n01518878": "ostrich",
}


def write_imagenet(
    root: str | Path,
    num_classes: int = 4,
    train_per_class: int = 8,
    test_per_class: int = 3,
    size: int = 64,
    seed: int = 0,
) -> Path:
    """Write a small data set that a network can learn, in the folders and under the names of ILSVRC-2012.

    Args:
        root: gets ``train/<wnid>``, ``val/<wnid>`` and ``classes.tsv``.
        num_classes: 1 to 10.
        train_per_class: training images of each class.
        test_per_class: test images of each class.
        size: height of the pictures in pixels; they are a quarter wider than high.
        seed: decides the pictures.

    Returns:
        ``root``, to hand to ``ImageNetDataModule``.

    Raises:
        ValueError: ``num_classes`` is out of range.
    """
    if not 1 <= num_classes <= len(WNIDS):
        raise ValueError(f"num_classes must be 1 to {len(WNIDS)}, got {num_classes}")
    root = Path(root)
    wnids = list(WNIDS)[:num_classes]
    number = 0
    for label, wnid in enumerate(wnids):
        random = np.random.default_rng([seed, label])
        names = [f"train/{wnid}/{wnid}_{image}.JPEG" for image in range(train_per_class)]
        for name in [
            *names,
            *(f"val/{wnid}/ILSVRC2012_val_{number + image:08d}.JPEG" for image in range(1, test_per_class + 1)),
        ]:
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            wide = class_picture(label, size * 5 // 4, random)[:size]
            Image.fromarray(wide).save(path, quality=90)
        number += test_per_class
    lines = [f"{label}\t{wnid}\t{WNIDS[wnid]}\n" for label, wnid in enumerate(wnids)]
    (root / "classes.tsv").write_text("".join(lines), encoding="utf-8")
    return root
