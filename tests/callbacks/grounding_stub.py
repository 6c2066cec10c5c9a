"""Rows of an evaluation about sentences, and a module that answers them as it is told."""

import numpy as np
import torch
from lightning.pytorch import LightningModule
from PIL import Image

from lit_methods.functional.letterbox import letterbox_boxes, letterbox_image, letterbox_params

SIDE = 64


def gradient(width, height):
    """A picture that is nowhere the same, smooth in both directions."""
    y, x = np.mgrid[:height, :width]
    return np.stack([255 * x / width, 255 * y / height, 0 * x + 60], -1).astype(np.uint8)


def boxed(box, width, height):
    """The mask of a box in whole pixels."""
    mask = torch.zeros(height, width, dtype=torch.uint8)
    x1, y1, x2, y2 = box
    mask[y1:y2, x1:x2] = 1
    return mask


def batch_of(*rows, side=SIDE):
    """A batch of rows (index, image_id, width, height, box in pixels of the picture)."""
    params = [letterbox_params(width, height, side) for _, _, width, height, _ in rows]
    squares = [letterbox_image(Image.fromarray(gradient(width, height)), side) for _, _, width, height, _ in rows]
    boxes = [letterbox_boxes(torch.tensor([row[4]]).float(), p) for row, p in zip(rows, params, strict=True)]
    return {
        "image": torch.from_numpy(np.stack(squares)).float() / 255 if rows else torch.zeros(0, 3, side, side),
        "tokens": torch.tensor([[2 + row[0], 0] for row in rows], dtype=torch.int64).reshape(-1, 2),
        "box": torch.cat(boxes) if rows else torch.zeros(0, 4),
        "mask": [boxed(box, width, height) for _, _, width, height, box in rows],
        "size": torch.tensor([[height, width] for _, _, width, height, _ in rows], dtype=torch.int64).reshape(-1, 2),
        "image_id": torch.tensor([row[1] for row in rows], dtype=torch.int64),
        "ref_id": torch.tensor([10 * row[0] for row in rows], dtype=torch.int64),
        "sentence": [f"thing {row[0]}" for row in rows],
        "index": torch.tensor([row[0] for row in rows], dtype=torch.int64),
    }


class Answers(LightningModule):
    """Finds the whole square, and in each picture what ``masks_of`` says; remembers what it was asked.

    Args:
        masks_of: (height, width) to mask.
        box: that is found in every square.
    """

    def __init__(self, masks_of=lambda height, width: torch.ones(height, width, dtype=torch.bool), box=None):
        super().__init__()
        self.layer = torch.nn.Dropout()
        self.masks_of, self.box, self.asked = masks_of, box, []

    def predict_rows(self, image, tokens, size, image_id=None):
        self.asked.append((image.shape, tokens.tolist(), size.tolist(), image_id.tolist()))
        assert not self.layer.training
        assert not torch.is_grad_enabled()
        whole = torch.tensor([0, 0, *image.shape[-1:] * 2]) if self.box is None else self.box
        masks = [self.masks_of(*each) for each in size.tolist()]
        return whole.expand(len(image), 4), torch.full((len(image),), 0.75), masks
