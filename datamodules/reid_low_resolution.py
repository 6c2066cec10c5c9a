"""Low-resolution re-identification: easy and hard training pictures, and what figures of degraded queries belong to."""

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from datamodules.branches import Branch, BranchBatches
from datamodules.draws import uniforms
from datamodules.low_resolution import low_resolution
from datamodules.reid_files import ReIDFiles, ReIDLayout
from datamodules.reid_images import CROP_DRAWS, RankingImages as RankingImages, ReIDImages, body_crop_box, mirrored
from datamodules.transforms import to_uint8
from lit_methods.functional.draws import purpose

BRANCHES = purpose("reid_low_resolution/branches")
NAMES = ["easy", "hard"]


def protocol(layout: ReIDLayout) -> str:
    """What figures of degraded queries of a set belong to.

    Args:
        layout: the set.

    Example:
        >>> from datamodules.reid_files import MARKET
        >>> protocol(MARKET)
        'LR-Market (ours): queries down-sampled by 2 + CRC32(file name) mod 3 beside the clean ones, gallery as it is'
    """
    name = f"LR-{layout.name.removesuffix('-1501')} (ours)"
    return f"{name}: queries down-sampled by 2 + CRC32(file name) mod 3 beside the clean ones, gallery as it is"


class BranchPictures:
    """Pictures of the branches ``easy`` and ``hard``: cropped where that is wanted, degraded if hard, and mirrored.

    Positions from N on are those of the copies. A copy is down-sampled, as it is stored or cropped, by a factor that is
    drawn anew whenever it is fetched; then it is resized as the others are. Nothing is erased: batches of branches have
    no place to say so.

    Args:
        files: N training pictures.
        height: in pixels.
        width: in pixels.
        factors: one of these is drawn; empty: there are no copies.
        seed: decides the augmentation, together with the epoch and the number.
        crop: take a random upright window first.

    Source:
        DDL, arXiv 2002.03662: hard samples are down-sampled copies of easy ones (inferred).
    """

    def __init__(
        self, files: ReIDFiles, height: int, width: int, factors: list[int], seed: int = 0, crop: bool = True
    ) -> None:
        self.images, self.factors, self.seed, self.crop = ReIDImages(files, height, width), factors, seed, crop

    def __call__(self, positions: NDArray[np.int64], epochs: NDArray[np.int64], numbers: NDArray[np.int64]) -> Tensor:
        """Pictures ``(n, 3, height, width)`` uint8."""
        draws = uniforms(CROP_DRAWS + 2, BRANCHES, self.seed, epochs, numbers)
        views = [self._view(position, draws[i]) for i, position in enumerate(positions.tolist())]
        return torch.stack([to_uint8(view) for view in views])

    def _view(self, position: int, draws: NDArray[np.float64]) -> Image.Image:
        hard, row = divmod(position, len(self.images))
        image = self.images.picture(row)
        if self.crop:
            image = image.crop(body_crop_box(*image.size, draws[:CROP_DRAWS]))
        if hard:
            factor = self.factors[int(draws[-1] * len(self.factors))]
            image = low_resolution(image, factor, (self.images.width, self.images.height))
        else:
            image = self.images.transform(image, draws)
        return mirrored(image, draws[CROP_DRAWS])


def branch_batches(pictures: BranchPictures, b: int, pairs: bool, hard_pairs: str) -> BranchBatches:
    """Batches of easy pictures and of hard copies of the same ones, if there are factors; classes are the persons.

    Args:
        pictures: of both.
        b: pictures and pairs of a branch in a batch of this process.
        pairs: whether there are pairs.
        hard_pairs: ``"mixed"``: the second picture of a hard pair is any other of the person, easy or hard;
            ``"hard"``: both are hard.

    Raises:
        ValueError: fewer persons than a step takes, or none with two pictures.
    """
    pids = pictures.images.files.pids
    labels, rows = np.unique(pids, return_inverse=True)[1], np.arange(len(pids))
    both, sources = np.arange(2 * len(pids)), np.tile(rows, 2)
    mixed = {"partners": both, "partner_labels": np.tile(labels, 2)} if hard_pairs == "mixed" else {}
    easy = Branch(NAMES[0], rows, labels, sources=sources)
    hard = Branch(NAMES[1], rows + len(rows), labels, sources=sources, **mixed)
    return BranchBatches(pictures, [easy, hard] if pictures.factors else [easy], b, pairs, pictures.seed)
