"""Stored crops in the layout of the official preparation, for tests."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from lit_methods.functional.tracking_views import canonical_box

BOXES: dict[str, Any] = {
    "train/a": {"00": {"000000": [10, 20, 50, 60], "000007": [10, 20, 30, 60], "000002": [5, 5, 25, 25]}},
    "train/b": {"00": {"000000": [40, 30]}, "01": {"000000": [20.5, 30], "000001": [0, 30], "meta": [1, 2]}},
    "train/empty": {"00": {"000000": [10, 10, 10, 20]}},
}


def write_crops(root: Path, boxes: dict[str, Any] = BOXES, side: int = 511) -> str:
    """Write a set to ``root``, and give that back; crops have the colour of their video, and a brighter target."""
    (root / "train.json").write_text(json.dumps(boxes))
    for number, (video, tracks) in enumerate(boxes.items()):
        for track, frames in tracks.items():
            for frame, box in frames.items():
                if not frame.isdigit():
                    continue
                wh = box if len(box) == 2 else [box[2] - box[0], box[3] - box[1]]
                picture = np.full((side, side, 3), 30 * (number + 1), np.uint8)
                if min(wh) > 0:
                    x0, y0, x1, y1 = canonical_box(torch.tensor(wh, dtype=torch.float64)).round().int().tolist()
                    picture[y0 : y1 + 1, x0 : x1 + 1] = 220
                path = root / "crop511" / video / f"{frame}.{track}.x.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(picture).save(path, quality=95)
    return str(root)
