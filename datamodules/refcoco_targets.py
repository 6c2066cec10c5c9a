"""What the sentences of RefCOCO refer to: box, mask and sentences of each ref, split by split."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from datamodules.refcoco_files import (
    Annotation,
    Referent,
    read_instances,
    read_refs,
    referents_of,
    truncated_box,
)
from lit_methods.functional.coco_masks import segmentation_to_mask
from lit_methods.functional.letterbox import letterbox_boxes, letterbox_params
from lit_methods.functional.pictures import BadImageError

Mask = NDArray[np.uint8]


@dataclass(frozen=True)
class Target:
    """What the sentences of a ref refer to.

    Args:
        ref_id: number of the ref.
        image_id: number of its picture.
        file: path of the picture, from the folder of the pictures.
        height: of the picture in pixels.
        width: likewise.
        box: x1, y1, x2, y2 in pixels of the picture.
        segmentation: polygons or a run-length code, as in COCO's files.
        sentences: what is said of it.
    """

    ref_id: int
    image_id: int
    file: str
    height: int
    width: int
    box: tuple[int, int, int, int]
    segmentation: Any
    sentences: tuple[str, ...]

    def mask(self) -> Mask:
        """The mask at the picture's size, ``(h, w)`` uint8 of 0 and 1."""
        return segmentation_to_mask(self.segmentation, self.height, self.width)

    def letterboxed(self, size: int) -> Tensor:
        """The box in pixels of the letterboxed picture, ``(4,)`` float32.

        Args:
            size: side of the square.
        """
        params = letterbox_params(self.width, self.height, size)
        return letterbox_boxes(torch.tensor(self.box, dtype=torch.float64), params).float()

    def check_size(self, picture: Image.Image, path: Path) -> None:
        """Refuse a picture that is not the annotated one.

        Args:
            picture: that was read.
            path: its file.

        Raises:
            BadImageError: it has another size.
        """
        if picture.size != (self.width, self.height):
            raise BadImageError(
                f"the picture {str(path)!r} has {picture.width} x {picture.height} pixels, but instances.json says "
                f"{self.width} x {self.height}: these are other pictures, or resized ones; name the folder of the "
                "original ones in image_dir"
            )


def read_targets(folder: Path, split_by: str, splits: Sequence[str]) -> dict[str, list[Target]]:
    """Read the refs of a data set, with boxes and masks.

    Args:
        folder: of the data set, with ``instances.json`` and ``refs(<split_by>).p`` or ``.json``.
        split_by: who divided it.
        splits: that are wanted.

    Returns:
        Split to its refs in the order of the file, for splits that have any.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file has a fault; names the ref and the annotation.

    Source:
        Section 5.1. The box is the annotation's, cut to whole pixels.

    Example:
        >>> import tempfile
        >>> from datamodules.demo import write_refcoco
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     root = write_refcoco(Path(folder, "refer"), images={"val": 1}, size=(64, 48))
        ...     found = read_targets(root / "refcoco", "unc", ["train", "val"])
        >>> list(found), found["val"][0].file, found["val"][0].mask().shape
        (['val'], 'COCO_train2014_000000100001.jpg', (48, 64))
    """
    refs = read_refs(folder, split_by)
    instances = read_instances(folder / "instances.json", refs)
    found = {split: [_target(ref, instances[ref.ann_id]) for ref in referents_of(refs, split)] for split in splits}
    return {split: targets for split, targets in found.items() if targets}


def _target(ref: Referent, found: Annotation) -> Target:
    return Target(
        ref_id=ref.ref_id,
        image_id=ref.image_id,
        file=found.file_name,
        height=found.height,
        width=found.width,
        box=truncated_box(found.bbox),
        segmentation=found.segmentation,
        sentences=ref.sentences,
    )
