"""Original pictures, and what a generator makes of them for each camera."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from lit_methods.ad_cluster.camera_translation import CameraTranslation
from lit_methods.functional.drawing import caption, grid
from lit_methods.functional.modes import evaluating


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
    found = [(camids == camera).nonzero().flatten() for camera in cameras]
    chosen = [int(found[row % len(found)][row // len(found)]) for row in range(min(shown, len(camids)))
              if row // len(found) < len(found[row % len(found)])]  # fmt: skip
    originals = [data.thumbnail(index) for index in chosen]
    image = torch.stack([torch.from_numpy(picture).permute(2, 0, 1) for picture in originals]).to(device).float() / 255
    columns = []
    with evaluating(translation):
        for camera in range(translation.num_cameras):
            style = torch.full((len(image),), camera, device=device)
            columns.append((translation.translate(image, style).clamp(0, 1) * 255).round().byte().cpu())
    cells = []
    for row, (index, original) in enumerate(zip(chosen, originals, strict=True)):
        cells.append(caption(original, f"camera {int(camids[index]) + 1}"))
        for camera, column in enumerate(columns):
            cells.append(caption(column[row].permute(1, 2, 0).numpy(), f"as camera {camera + 1}"))
    return grid(cells, columns=1 + len(columns))
