"""A hand-made RefCOCO of plain pictures in the original layout, and a module that notes what it is shown."""

import json
import pickle
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from datamodules import RefCOCODataModule
from tests.loading import set_up
from tests.module_fits import Noting

SMALL = {"size": 64, "max_words": 4, "batch_size": 2, "eval_batch_size": 2, "num_workers": 0}
PICTURES = {1: (64, 48), 2: (48, 64), 3: (64, 48), 4: (32, 32), 11: (64, 48), 12: (64, 48), 21: (96, 64), 22: (64, 48)}
BOX = [8.0, 4.0, 16.0, 20.0]  # x, y, w, h


def square(x: float, y: float, w: float, h: float) -> list[list[float]]:
    """The outline of a box as COCO's files have it."""
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


REFS: list[dict[str, Any]] = [  # picture, split, sentences; in the order of the file
    {"image": 1, "split": "train", "told": ["red man", "the man", "man in red shirt left"]},
    {"image": 22, "split": "testA", "told": ["blue dog"]},
    {"image": 1, "split": "train", "told": ["dog"], "box": [30.5, 10.25, 20.75, 9.5]},
    {"image": 2, "split": "train", "told": ["red dog", "left dog"]},
    {"image": 11, "split": "val", "told": ["the red man", "person"]},
    {"image": 3, "split": "train", "told": ["blue man", ""]},
    {"image": 21, "split": "testA", "told": ["zebra", "red zebra"], "box": [10.0, 20.0, 40.0, 30.0]},
    {"image": 4, "split": "train", "told": ["man"], "rle": True},
    {"image": 22, "split": "testA", "told": ["the man", "", "zebra"], "rle": True},
    {"image": 12, "split": "testB", "told": ["blue"]},
]


def write_refer(root: Path, refs: list[dict[str, Any]] = REFS, dataset: str = "refcoco", split_by: str = "unc") -> Path:
    """Picture k has the grey level k; ref and annotation n, from 1, have the ids n and 100 + n.

    Args:
        root: where to.
        refs: each with ``image``, ``split``, ``told`` and perhaps ``box`` or ``rle``.
        dataset: name of its folder.
        split_by: in the name of the file.
    """
    pictures = root / "images" / "train2014"
    pictures.mkdir(parents=True)
    (root / dataset).mkdir()
    images, annotations, listed = [], [], []
    for image_id, (w, h) in PICTURES.items():
        name = f"COCO_train2014_{image_id:012d}.png"
        Image.new("RGB", (w, h), (image_id,) * 3).save(pictures / name)
        images.append({"id": image_id, "file_name": name, "width": w, "height": h})
    for number, ref in enumerate(refs, 1):
        box = ref.get("box", BOX)
        segmentation: Any = square(*box)
        if ref.get("rle"):  # BOX, down the columns
            w, h = PICTURES[ref["image"]]
            runs = [8 * h + 4, *[20, h - 20] * 15, 20]
            segmentation = {"size": [h, w], "counts": [*runs, w * h - sum(runs)]}
        annotations.append(
            {"id": 100 + number, "image_id": ref["image"], "category_id": 1, "bbox": box, "area": 320.0, "iscrowd": 0}
            | {"segmentation": segmentation}
        )
        sentences = [
            {"sent_id": 10 * number + i, "sent": said, "raw": said, "tokens": said.split()}
            for i, said in enumerate(ref["told"])
        ]
        listed.append(
            {"ref_id": number, "ann_id": 100 + number, "image_id": ref["image"], "category_id": 1}
            | {"file_name": f"COCO_train2014_{ref['image']:012d}_{number}.jpg", "split": ref["split"]}
            | {"sent_ids": [one["sent_id"] for one in sentences], "sentences": sentences}
        )
    categories = [{"id": 1, "name": "person", "supercategory": "person"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / dataset / "instances.json").write_text(json.dumps(content), encoding="utf-8")
    (root / dataset / f"refs({split_by}).p").write_bytes(pickle.dumps(listed, protocol=2))
    return root


def ready(root: Path, *stages: str, **options: Any) -> RefCOCODataModule:
    """Its data module, set up for these stages, or to fit."""
    return set_up(RefCOCODataModule(str(root), **SMALL | options), *stages)


class Seen(Noting):
    """Remembers what it was trained on and what it was shown."""

    def __init__(self, fail_at: int | None = None) -> None:
        super().__init__(fail_at)
        self.batches: list[Any] = []
        self.shown: list[int] = []

    def note_training(self, batch, batch_idx):
        assert batch["image"].dtype == torch.float32
        self.batches.append((self.current_epoch, batch_idx, batch["index"].tolist(), batch["tokens"].tolist()))
        return batch["image"].mean()

    def note_evaluation(self, batch):
        self.shown += batch["index"].tolist()
