"""A small RefCOCO to learn from: coloured shapes over photographs and sentences about them, in the original layout."""

import json
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from datamodules.demo.placing import place_described
from datamodules.demo.refer_drawing import KINDS, Shape
from datamodules.demo.refer_scenes import (
    SENTENCES,
    SPLITS,
    SyntheticReferDataset as SyntheticReferDataset,
    refer_scene,
)
from datamodules.demo.refer_sentences import DATASETS, draw_sentences, referring_sentences
from datamodules.refcoco_files import SPLITS as DIVISIONS
from lit_methods.functional.coco_masks import compressed_rle, mask_to_rle

__all__ = ["SyntheticReferDataset", "write_refcoco"]

PARTS = {(name, who): parts for name, divided in DIVISIONS.items() for who, parts in divided.items()}
MOST = 100_000  # images of a split: ids of different splits keep apart
FOLDER = "images/train2014"
_ABOUT = (
    "Drawn shapes over the photographs china.jpg and flower.jpg of scikit-learn, with sentences about them, in the "
    "layout of RefCOCO.\n"
)


def write_refcoco(
    root: str | Path,
    dataset: str = "refcoco",
    split_by: str = "unc",
    images: Mapping[str, int] | None = None,
    size: tuple[int, int] = (128, 112),
    objects: tuple[int, int] = (3, 4),
    seed: int = 0,
) -> Path:
    """Write a small set of pictures and sentences in the layout of RefCOCO, RefCOCO+ or RefCOCOg.

    ``root`` gets ``<dataset>/instances.json``, ``<dataset>/refs(<split_by>).p`` (a pickle of protocol 2, as the
    original) and ``images/train2014/COCO_train2014_<12 digits>.jpg``. Each picture has one to three refs, each ref two
    or three sentences, and each sentence is true of exactly one shape: "the red circle", "left square", "blue one at
    the bottom". RefCOCO+ says nothing of places, sentences of RefCOCOg are longer. No two shapes of a picture have the
    same colour and kind, and each shares one of them with another, so that without the sentence one can only guess.

    Of twenty segmentations about three are compressed run lengths, two are plain ones and the others polygons; a box is
    the extent of its mask. Categories are the kinds of shapes. What a split holds does not depend on the others, and
    only training pictures show the right part of the photographs. Splits testA and testB differ in nothing but the
    draw.

    It is written beside ``root`` and then renamed, so that nobody finds half of it. The very same set is left as it is.
    A data set of another name and of the same ``size``, ``objects`` and ``seed`` is written into the same folder, where
    it shares the pictures, as the original ones do; its folder has a readme of its own.

    Args:
        root: a folder that is empty or not there yet, or that this function has written another data set to.
        dataset: "refcoco", "refcoco+" or "refcocog".
        split_by: who split it: "unc" or "google" for RefCOCO, "unc" for RefCOCO+, "umd" or "google" for RefCOCOg.
        images: how many of each split; ``None`` is 1,400 to train on and 60 of each other one.
        size: width and height in pixels, at least 48.
        objects: the least and the most shapes of a picture, from 3 to 5.
        seed: decides everything.

    Returns:
        ``root``, to hand to ``RefCOCODataModule``.

    Raises:
        ValueError: an argument is out of range, or ``root`` has something else in it.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     root = write_refcoco(Path(folder, "demo"), images={"train": 1, "val": 1})
        ...     sorted(path.name for path in root.iterdir()), sorted(path.name for path in (root / "refcoco").iterdir())
        ...     refs = pickle.loads((root / "refcoco" / "refs(unc).p").read_bytes())
        (['images', 'readme.txt', 'refcoco'], ['instances.json', 'refs(unc).p'])
        >>> [sentence["sent"] for sentence in refs[0]["sentences"]]
        ['the yellow triangle', 'yellow triangle', 'left yellow one']
    """
    if (dataset, split_by) not in PARTS:
        known = ", ".join(f"{name} by {who}" for name, who in PARTS)
        raise ValueError(f"dataset={dataset!r}, split_by={split_by!r}: there is no such split; one of {known}")
    parts = PARTS[dataset, split_by]
    counts = dict(images) if images is not None else {part: 1400 if part == "train" else 60 for part in parts}
    size, objects = (size[0], size[1]), (objects[0], objects[1])
    _check(counts, parts, size, objects, seed)
    counts = {part: counts[part] for part in parts if part in counts}
    scenes = f" {size=} {objects=} {seed=}\n"
    readme = f"{_ABOUT}{dataset=} {split_by=} images={counts}{scenes}"
    root = Path(root)

    def write(pictures: Path, folder: Path) -> None:
        _write(pictures, folder, dataset, split_by, counts, size, objects, seed)

    if _has_another(root, dataset, scenes):
        place_described(root / dataset, readme, lambda draft: write(root / FOLDER, draft))
    else:
        place_described(root, readme, lambda draft: write(draft / FOLDER, draft / dataset))
    return root


def _has_another(root: Path, dataset: str, scenes: str) -> bool:
    """Whether a data set of another name, but of the same scenes, was written there first."""
    file = root / "readme.txt"
    about = file.read_text(errors="replace") if file.is_file() else ""
    return about.startswith(_ABOUT) and about.endswith(scenes) and f"{dataset=} " not in about


def _check(
    counts: dict[str, int], parts: tuple[str, ...], size: tuple[int, int], objects: tuple[int, int], seed: int
) -> None:
    for part, count in counts.items():
        if part not in parts:
            raise ValueError(f"images: there is no split {part!r} here; name some of {', '.join(parts)}")
        if not 0 <= count <= MOST:
            raise ValueError(f"images: {part} must be between 0 and {MOST}, got {count}")
    if not sum(counts.values()):
        raise ValueError(f"images={counts} are none; name a split and a number")
    for name, value, least in (("width of size", size[0], 48), ("height of size", size[1], 48), ("seed", seed, 0)):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    if not 3 <= objects[0] <= objects[1] <= 5:
        raise ValueError(f"objects must be two numbers from 3 to 5, the least and the most, got {list(objects)}")


def _write(
    shared: Path,
    folder: Path,
    dataset: str,
    split_by: str,
    counts: dict[str, int],
    size: tuple[int, int],
    objects: tuple[int, int],
    seed: int,
) -> None:
    shared.mkdir(parents=True, exist_ok=True)
    folder.mkdir(parents=True)
    pictures: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    refs: list[dict[str, Any]] = []
    for split, count in counts.items():
        for number in range(count):
            random = np.random.default_rng([SENTENCES, seed, SPLITS.index(split), number, DATASETS.index(dataset)])
            picture, shapes = refer_scene(split, number, size, objects, seed)
            image_id = SPLITS.index(split) * MOST + number + 1
            name = f"COCO_train2014_{image_id:012d}.jpg"
            _save(picture, shared / name)
            pictures.append({"id": image_id, "file_name": name, "height": size[1], "width": size[0]})
            here = [_annotation(shape, image_id, place, random) for place, shape in enumerate(shapes)]
            annotations += here
            for which in random.permutation(len(shapes))[: random.integers(1, 4)].tolist():
                sentences = referring_sentences(shapes, which, size, dataset)
                told = draw_sentences(sentences, int(random.integers(2, 4)), random)
                refs.append(_ref(here[which], name, split, told))
    categories = [{"id": i, "name": kind, "supercategory": "shape"} for i, kind in enumerate(KINDS, 1)]
    content = {
        "info": {"description": f"drawn shapes in the layout of {dataset}"},
        "images": pictures,
        "annotations": annotations,
        "categories": categories,
    }
    (folder / "instances.json").write_text(json.dumps(content), encoding="utf-8")
    (folder / f"refs({split_by}).p").write_bytes(pickle.dumps(refs, protocol=2))


def _save(picture: NDArray[np.uint8], path: Path) -> None:
    """Write a picture, unless another data set has it already; whole, for that one may be in use."""
    if not path.exists():
        part = path.with_name(f".{path.stem}.{os.urandom(8).hex()}.part")
        Image.fromarray(picture).save(part, "JPEG", quality=95)
        os.replace(part, path)


def _annotation(shape: Shape, image_id: int, place: int, random: np.random.Generator) -> dict[str, Any]:
    high, wide = shape.mask.shape
    kind = random.random()
    segmentation: Any = [shape.outline.ravel().tolist()]
    if kind < 0.25:
        counts = compressed_rle(shape.mask) if kind < 0.15 else mask_to_rle(shape.mask)
        segmentation = {"size": [high, wide], "counts": counts}
    x1, y1, x2, y2 = shape.box
    return {
        "id": image_id * 10 + place,
        "image_id": image_id,
        "category_id": KINDS.index(shape.kind) + 1,
        "bbox": [float(x1), float(y1), float(x2 - x1), float(y2 - y1)],
        "segmentation": segmentation,
        "area": float(shape.mask.sum()),
        "iscrowd": 0,
    }


def _ref(annotation: dict[str, Any], name: str, split: str, told: list[str]) -> dict[str, Any]:
    ref_id = annotation["id"]
    ids = [ref_id * 10 + i for i in range(len(told))]
    sentences = [
        {"sent_id": i, "sent": sent, "raw": f"{sent.capitalize()}.", "tokens": sent.split()}
        for i, sent in zip(ids, told, strict=True)
    ]
    return {
        "ref_id": ref_id,
        "ann_id": annotation["id"],
        "image_id": annotation["image_id"],
        "category_id": annotation["category_id"],
        "file_name": f"{name.removesuffix('.jpg')}_{ref_id % 10}.jpg",  # as in the original not the image's own name
        "split": split,
        "sent_ids": ids,
        "sentences": sentences,
    }
