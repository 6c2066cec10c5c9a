"""Original pictures, and what a generator makes of them for each camera."""

from itertools import zip_longest
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lit_methods.ad_cluster.camera_translation import CameraTranslation
from lit_methods.functional.drawing import grid
from lit_methods.functional.draws import permutation, purpose
from lit_methods.functional.framing import labelled
from lit_methods.functional.modes import evaluating

SHOWN = purpose("ad_cluster/translations")
NARROWEST = 96  # pixels; smaller pictures are enlarged by a whole factor


def translation_sheet(translation: CameraTranslation, data: Any, device: torch.device, shown: int) -> np.ndarray:
    """One row per picture: as it is, then in the style of every camera.

    Args:
        translation: the generator.
        data: a data module with ``thumbnail`` and ``train_camids``.
        device: of the generator.
        shown: how many pictures; of as many cameras as possible, the same ones every time.

    Returns:
        (H', W', 3) uint8 RGB.
    """
    camids: Tensor = data.train_camids
    cameras = camids.unique().tolist()
    found = [_mixed((camids == camera).nonzero().flatten()) for camera in cameras]
    chosen = [index for turn in zip_longest(*found) for index in turn if index is not None][:shown]
    originals = [data.thumbnail(index) for index in chosen]
    image = torch.from_numpy(np.stack(originals)).permute(0, 3, 1, 2).to(device).float() / 255
    columns = []
    with evaluating(translation):
        for camera in range(translation.num_cameras):
            style = torch.full((len(image),), camera, device=device)
            columns.append((translation.translate(image, style).clamp(0, 1) * 255).round().byte().cpu())
    factor = -(-NARROWEST // originals[0].shape[1])
    cells = []
    for row, (index, original) in enumerate(zip(chosen, originals, strict=True)):
        cells.append(_cell(original, factor, f"camera {int(camids[index]) + 1}"))
        for camera, column in enumerate(columns):
            cells.append(_cell(column[row].permute(1, 2, 0).numpy(), factor, f"as camera {camera + 1}"))
    return grid(cells, columns=1 + len(columns))


def _mixed(indices: Tensor) -> list[int]:
    """In an order of their own: files go person by person."""
    return indices[torch.from_numpy(permutation(len(indices), SHOWN))].tolist()


def _cell(image: np.ndarray, factor: int, text: str) -> np.ndarray:
    return labelled(image.repeat(factor, axis=0).repeat(factor, axis=1), text)
