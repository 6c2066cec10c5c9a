"""MosaicHitRate: does the sub-architecture of a class look at that class, where four classes are to be seen?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from PIL import Image
from torch import Tensor

from callbacks.interruption import interruptible
from callbacks.progress import progress
from callbacks.report import RunReport
from callbacks.sub_architecture_figures import hit_rate_figure
from lit_methods.functional.drawing import caption, grid
from lit_methods.functional.draws import permutation, purpose, uniforms
from lit_methods.functional.modes import evaluating
from lit_methods.functional.pictures import BadImageError
from lit_methods.functional.processes import gather_objects
from lit_methods.nad.analysis import mosaic_image
from lit_methods.nad.maps import activation_map, focus_mask, overlay_focus, quadrant_hit_rate

QUARTERS = 4
CHANCE = 1 / QUARTERS
MOSAIC = purpose("nad/mosaic")


class MosaicHitRate(Callback):
    """Measure where the sub-architectures of ``NAD`` look, at the end of a test.

    A mosaic has one test picture of each of four classes. The sub-architecture of each of them gives a map of the
    mosaic behind every gate; the hit rate is which part of the map's brightest pixels lies on the picture of that
    class. The score of a mosaic is the mean over its four classes, without those whose map has no contrast. Shown are
    its mean and population standard deviation over the mosaics, gate by gate (figure and table ``nad/hit_rate``), and
    the first mosaic as the four classes see it (picture ``nad/mosaic``). ``summary()`` gives ``nad/hit_rate`` (mean
    over the gate points), ``nad/hit_rate_best``, ``nad/hit_rate_best_layer`` and ``nad/hit_rate_chance``.

    What is drawn depends on the seed and the test pictures alone; several processes share the mosaics out.

    Args:
        num_mosaics: how many.
        rate: part of the pixels that are the brightest, in (0, 1].
        seed: decides classes and pictures.
        batch_size: mosaics in one pass, each of which counts as four images.

    Raises:
        ValueError: an argument is out of range; another module than ``NAD``, or one whose images are not square with an
            even side; in a test: no data module with ``test_images``.

    Source:
        official code, cam_2x2.py: 100 mosaics, rate 0.1 whatever its argument says, bicubic maps. Ours: maps without
        contrast are left out, where it divides by zero.

    Example:
        >>> MosaicHitRate(num_mosaics=20).summary()
        {}
    """

    def __init__(self, num_mosaics: int = 100, rate: float = 0.1, seed: int = 0, batch_size: int = 16) -> None:
        if num_mosaics < 1 or batch_size < 1:
            raise ValueError(f"num_mosaics={num_mosaics} and batch_size={batch_size} must be at least 1")
        if not 0 < rate <= 1:
            raise ValueError(f"rate={rate} must lie in (0, 1]; 0.1 is the official code's")
        self.num_mosaics, self.rate, self.seed, self.batch_size = num_mosaics, rate, seed, batch_size
        self._summary: dict[str, float | str | list] = {}

    def summary(self) -> dict[str, float | str | list]:
        """The figures of the last test."""
        return dict(self._summary)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what cannot be measured, before anything runs."""
        module: Any = pl_module
        if not hasattr(module, "gated"):
            raise ValueError(f"MosaicHitRate is for modules with gates, such as NAD, not for {type(module).__name__}")
        _, height, width = module.hparams["input_size"]
        if height != width or height % 2:
            raise ValueError(
                f"input_size={list(module.hparams['input_size'])}: MosaicHitRate needs square images with an even "
                f"side, such as {height + height % 2}; change it or leave this callback out"
            )
        if int(self.rate * height * width) < 1:
            raise ValueError(f"rate={self.rate} is less than one of {height} x {width} pixels; make it larger")
        data: Any = getattr(trainer, "datamodule", None)
        if stage == "test" and not (
            hasattr(type(data), "test_images") or "test_images" in getattr(data, "__dict__", {})
        ):
            raise ValueError(
                "MosaicHitRate needs test pictures: run the test with a data module that has test_images, such as "
                "CIFARDataModule or ImageNetDataModule, or leave this callback out"
            )

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure and show."""
        self._summary = {}
        module: Any = pl_module
        data: Any = getattr(trainer, "datamodule", None)
        pictures = _Pictures(data.test_images, module.class_ids, self.seed)
        if len(pictures.classes) < QUARTERS:
            rank_zero_warn(
                f"MosaicHitRate needs test images of {QUARTERS} classes with gates, there are "
                f"{len(pictures.classes)}: no hit rate is measured"
            )
            return
        share = range(trainer.global_rank, self.num_mosaics, trainer.world_size)
        parts = [share[start : start + self.batch_size] for start in range(0, len(share), self.batch_size)]
        mine: dict[int, np.ndarray] = {}
        for part in interruptible(trainer, progress(trainer, parts, "mosaics")):
            mine |= self._hits(trainer, module, pictures, part)
        hits = {mosaic: found for theirs in gather_objects(mine) for mosaic, found in theirs.items()}
        if trainer.is_global_zero:
            self._show(trainer, module, pictures, np.stack([hits[i] for i in range(self.num_mosaics)]))

    def _hits(self, trainer: Trainer, module: Any, pictures: _Pictures, mosaics: range) -> dict[int, np.ndarray]:
        """Per mosaic the hit rates (L, 4) of its classes behind each gate; NaN for an empty focus."""
        _, _, foci = self._foci(trainer, module, pictures, mosaics)
        found: dict[int, np.ndarray] = {}
        for i, mosaic in enumerate(mosaics):
            own = slice(QUARTERS * i, QUARTERS * (i + 1))
            found[mosaic] = np.array(
                [[float(quadrant_hit_rate(focus)[q]) for q, focus in enumerate(layer[own])] for layer in foci]
            )
        return found

    def _foci(
        self, trainer: Trainer, module: Any, pictures: _Pictures, mosaics: range
    ) -> tuple[Tensor, list[int], list[list[Tensor]]]:
        """The mosaics (M, 3, S, S) uint8, the classes of their quarters, and L lists of a focus for each of these."""
        side = module.hparams["input_size"][1]
        drawn = [pictures.draw(mosaic) for mosaic in mosaics]
        images = torch.stack([mosaic_image(tiles, side) for _, tiles in drawn])
        classes = [label for labels, _ in drawn for label in labels]
        rows = torch.tensor([module.class_ids.index(label) for label in classes], device=module.device)
        with evaluating(module), trainer.precision_plugin.forward_context():
            x = module.as_fed(images.to(module.device).float() / 255).repeat_interleave(QUARTERS, 0)
            _, layers = module.gated(x, task=rows, mode="hard", return_activations=True)
        foci = [[self._focus(feat, side) for feat in layer] for layer in layers]
        return images, classes, foci

    def _focus(self, feat: Tensor, side: int) -> Tensor:
        maps = feat if feat.ndim == 3 else feat.view(-1, 1, 1)  # behind the last pooling there is nowhere to look
        return focus_mask(activation_map(maps, side, "bicubic"), self.rate)

    def _show(self, trainer: Trainer, module: Any, pictures: _Pictures, hits: np.ndarray) -> None:
        """Show the hit rates (mosaics, L, 4)."""
        report, points = RunReport.of(trainer), module.gated.gate_points
        mean, std, counted = hit_statistics(hits)
        if not counted.any():
            rank_zero_warn("MosaicHitRate: no map of any mosaic has contrast, so nothing has a focus")
            return
        report.figure(trainer, "nad/hit_rate", hit_rate_figure(mean, std, points))
        rows = [
            [point, float(m) if n else "", float(s) if n else "", int(n)]
            for point, m, s, n in zip(points, mean, std, counted, strict=True)
        ]
        report.table_beside(trainer, "nad/hit_rate", ["gate_point", "mean", "std", "mosaics"], rows)
        best = int(np.nanargmax(mean))
        report.picture(trainer, "nad/mosaic", self._picture(trainer, module, pictures, best))
        self._summary = {
            "nad/hit_rate": float(np.nanmean(mean)),
            "nad/hit_rate_best": float(mean[best]),
            "nad/hit_rate_best_layer": points[best],
            "nad/hit_rate_chance": CHANCE,
        }

    def _picture(self, trainer: Trainer, module: Any, pictures: _Pictures, layer: int) -> np.ndarray:
        """The first mosaic, and what each of its classes looks at there."""
        images, classes, foci = self._foci(trainer, module, pictures, range(1))
        pixels = images[0].permute(1, 2, 0).numpy()
        tiles = [caption(pixels, f"behind {module.gated.gate_points[layer]}")]
        for q, (label, focus) in enumerate(zip(classes, foci[layer], strict=True)):
            hit = f"hit {quadrant_hit_rate(focus)[q]:.2f}: " if focus.any() else ""
            tiles.append(caption(np.asarray(overlay_focus(pixels, focus.numpy())), hit + module.class_name(label)))
        return grid(tiles, columns=len(tiles))


def hit_statistics(hits: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean and population standard deviation of the scores of mosaics, which are means over classes.

    Args:
        hits: (mosaics, L, 4) hit rates; NaN is left out.

    Returns:
        Mean and standard deviation (L,), NaN where no mosaic has a score, and how many have one (L,).

    Example:
        >>> hit_statistics(np.array([[[0.2, 0.4, np.nan, np.nan]], [[0.5, 0.5, 0.5, 0.5]]]))
        (array([0.4]), array([0.1]), array([2]))
    """
    scores = _mean(hits, axis=2)
    mean = _mean(scores, axis=0)
    return mean, np.sqrt(_mean((scores - mean) ** 2, axis=0)), np.isfinite(scores).sum(0)


def _mean(values: np.ndarray, axis: int) -> np.ndarray:
    """Without NaN, and NaN of nothing."""
    known = np.isfinite(values)
    count = known.sum(axis)
    return np.where(count > 0, np.where(known, values, 0).sum(axis) / np.maximum(count, 1), np.nan)


class _Pictures:
    """Draws four classes and a test picture of each.

    Args:
        images: the data module's ``test_images``.
        class_ids: classes with gates.
        seed: of what is drawn.
    """

    def __init__(self, images: Any, class_ids: list[int], seed: int) -> None:
        self._images, self._seed = images, seed
        self._positions: Mapping[int, np.ndarray] = {
            label: places for label in class_ids if len(places := np.flatnonzero(images.targets == label))
        }

    @property
    def classes(self) -> list[int]:
        """Those with gates and test pictures."""
        return list(self._positions)

    def draw(self, mosaic: int) -> tuple[list[int], list[Image.Image]]:
        """The classes of a mosaic's quarters, and their pictures."""
        order = permutation(len(self._positions), MOSAIC, self._seed, mosaic)[:QUARTERS]
        labels = [self.classes[i] for i in order.tolist()]
        draws = uniforms(QUARTERS, MOSAIC, self._seed, mosaic)[0].tolist()
        return labels, [self._picture(label, draw) for label, draw in zip(labels, draws, strict=True)]

    def _picture(self, label: int, draw: float) -> Image.Image:
        """A picture of a class; for one that cannot be read, which the test itself has judged, the next."""
        positions = self._positions[label]
        first = int(draw * len(positions))
        for place in [*positions[first:], *positions[:first]]:
            try:
                return self._images.picture(int(place))
            except BadImageError as error:
                unreadable = error
        raise unreadable
