"""A small RefCOCO to learn from: coloured shapes over photographs and sentences about them, in the original layout."""

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
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
from lit_methods.functional.coco_masks import compressed_rle, mask_to_rle

__all__ = ["SyntheticReferDataset", "write_refcoco"]

PARTS = {  # of a data set, by who split it
    ("refcoco", "unc"): ("train", "val", "testA", "testB"),
    ("refcoco", "google"): ("train", "val", "test"),
    ("refcoco+", "unc"): ("train", "val", "testA", "testB"),
    ("refcocog", "umd"): ("train", "val", "test"),
    ("refcocog", "google"): ("train", "val"),
}
MOST = 100_000  # images of a split: ids of different splits keep apart
FOLDER = "images/train2014"


def write_refcoco(
    root: str | Path,
    dataset: str = "refcoco",
    split_by: str = "unc",
    images: Mapping[str, int] | None = None,
    size: tuple[int, int] = (128, 96),
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

    Args:
        root: a folder that is empty or not there yet.
        dataset: "refcoco", "refcoco+" or "refcocog".
        split_by: who split it: "unc" or "google" for RefCOCO, "unc" for RefCOCO+, "umd" or "google" for RefCOCOg.
        images: how many of each split; ``None`` is 1,600 to train on and 60 of each other one.
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
        ['the yellow triangle', 'yellow triangle', 'bottom yellow one']
    """
    if (dataset, split_by) not in PARTS:
        known = ", ".join(f"{name} by {who}" for name, who in PARTS)
        raise ValueError(f"dataset={dataset!r}, split_by={split_by!r}: there is no such split; one of {known}")
    parts = PARTS[dataset, split_by]
    counts = dict(images) if images is not None else {part: 1600 if part == "train" else 60 for part in parts}
    size, objects = (size[0], size[1]), (objects[0], objects[1])
    _check(counts, parts, size, objects, seed)
    counts = {part: counts[part] for part in parts if part in counts}
    readme = (
        "Drawn shapes over the photographs china.jpg and flower.jpg of scikit-learn, with sentences about them, in the "
        f"layout of RefCOCO.\n{dataset=} {split_by=} images={counts} {size=} {objects=} {seed=}\n"
    )
    root = Path(root)
    place_described(root, readme, lambda draft: _write(draft, dataset, split_by, counts, size, objects, seed))
    return root


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
    root: Path,
    dataset: str,
    split_by: str,
    counts: dict[str, int],
    size: tuple[int, int],
    objects: tuple[int, int],
    seed: int,
) -> None:
    (root / FOLDER).mkdir(parents=True)
    (root / dataset).mkdir()
    pictures: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    refs: list[dict[str, Any]] = []
    for split, count in counts.items():
        for number in range(count):
            random = np.random.default_rng([SENTENCES, seed, SPLITS.index(split), number, DATASETS.index(dataset)])
            picture, shapes = refer_scene(split, number, size, objects, seed)
            image_id = SPLITS.index(split) * MOST + number + 1
            name = f"COCO_train2014_{image_id:012d}.jpg"
            Image.fromarray(picture).save(root / FOLDER / name, quality=95)
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
    (root / dataset / "instances.json").write_text(json.dumps(content), encoding="utf-8")
    (root / dataset / f"refs({split_by}).p").write_bytes(pickle.dumps(refs, protocol=2))


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
