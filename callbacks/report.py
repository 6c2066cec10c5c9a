"""RunReport: the one way out for figures, pictures, films, tables and histograms of a run."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_warn
from PIL import Image
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BINS = 32  # of a histogram
COLOURS = 256  # of a GIF
MOST_HISTOGRAMS = 32  # of one call that go to a logger, where each is a panel of its own; the file has all


class RunReport(Callback):
    """Write figures, pictures, films, tables and histograms into the run's directory and hand them to the loggers.

    The command line adds one to every run. Other callbacks reach it by :meth:`of`; modules only ``self.log``.
    A key such as ``"prune/kept_filters"`` becomes ``pictures/prune_kept_filters.png`` or
    ``tables/prune_kept_filters.csv`` below ``trainer.default_root_dir``; a second one under the same key replaces it.
    Only the first process writes, so every process may call.

    ``WandbLogger`` and ``TensorBoardLogger`` (no films) get all of it under the key itself, and any logger with
    methods ``log_image`` or ``log_table`` like W&B's what these take, at the step at which the scalars of that moment
    are logged. A logger that cannot take something is named in one warning and left alone. W&B shows one kind of thing
    under a key: a table with the key of a picture or a number is given by :meth:`table_beside`.

    At the end of a fit W&B is told where the checkpoints are (``checkpoint/last`` and ``checkpoint/best`` of the run's
    summary), and checkpoints name the W&B run, so that it can go on.

    Args:
        dpi: dots per inch of saved figures.

    Example:
        >>> import tempfile
        >>> from lightning.pytorch import Trainer
        >>> folder = tempfile.mkdtemp()
        >>> trainer = Trainer(accelerator="cpu", logger=False, default_root_dir=folder, enable_checkpointing=False)
        >>> path = RunReport.of(trainer).table(trainer, "prune/kept", ["layer", "kept"], [["conv1", 4]])
        >>> path.read_text().splitlines()
        ['layer,kept', 'conv1,4']
    """

    def __init__(self, dpi: int = 100) -> None:
        self.dpi = dpi
        self._loggers: list[Logger] = []  # of the trainer: state_dict is not told which
        self._run: dict[str, str] = {}  # at W&B
        self._failed: list[Logger] = []
        self._beside: set[str] = set()  # keys of tables that are other things', too

    @classmethod
    def of(cls, trainer: Trainer) -> RunReport:
        """The run's report; in a Trainer that was given none, one that writes all the same."""
        return next((c for c in trainer.callbacks if isinstance(c, cls)), cls())  # type: ignore[attr-defined]

    # -- what a run shows ---------------------------------------------------------------------------------------------

    def figure(self, trainer: Trainer, key: str, figure: Figure) -> Path:
        """Save a matplotlib figure as PNG; returns its path (on other processes than the first, where it would be)."""
        path = self._path(trainer, "pictures", key, ".png")
        if trainer.is_global_zero:
            figure.savefig(path, dpi=self.dpi, bbox_inches="tight")
            self._hand_over(trainer, key, lambda logger, step: _log_picture(logger, step, key, path))
        return path

    def picture(self, trainer: Trainer, key: str, image: np.ndarray) -> Path:
        """Save an RGB picture (H, W, 3) uint8 as PNG; returns its path."""
        path = self._path(trainer, "pictures", key, ".png")
        if trainer.is_global_zero:
            Image.fromarray(image).save(path)
            self._hand_over(trainer, key, lambda logger, step: _log_picture(logger, step, key, path))
        return path

    def overlay(
        self,
        trainer: Trainer,
        key: str,
        images: Sequence[np.ndarray],
        boxes: Mapping[str, Sequence[Any]],
        masks: Mapping[str, Sequence[Any]],
        *,
        captions: Sequence[str],
        sheet: np.ndarray,
    ) -> Path:
        """Save a sheet of drawn pictures as PNG, and give W&B the pictures themselves, boxes and masks apart.

        W&B shows all of them in one panel, in which every layer can be switched on and off. Other loggers get the
        sheet. Pictures of several sizes are filled up with white at the right and at the bottom: W&B takes all of a
        panel to be as large as the first.

        Args:
            trainer: the run's.
            key: such as ``"val/grounding"``.
            images: (H, W, 3) uint8 RGB each, at least one.
            boxes: per layer, such as ``"prediction"`` and ``"truth"``, those of each picture, (4,) or (k, 4) x1, y1,
                x2, y2 in pixels; what is not finite is left out.
            masks: likewise one (H, W) each, foreground where it is not 0.
            captions: a line each.
            sheet: (H', W', 3) uint8 RGB, all of it drawn.

        Returns:
            The path of the sheet.

        Raises:
            ValueError: no pictures, or a layer or ``captions`` has not one entry for each.
        """
        path = self._path(trainer, "pictures", key, ".png")
        if trainer.is_global_zero:
            _check_overlay(images, captions, boxes=boxes, masks=masks)
            Image.fromarray(sheet).save(path)
            shown = (list(captions), images, boxes, masks)
            self._hand_over(trainer, key, lambda logger, step: _log_overlay(logger, step, key, path, *shown))
        return path

    def film(self, trainer: Trainer, key: str, frames: np.ndarray | Sequence[np.ndarray], fps: float = 10) -> Path:
        """Save RGB pictures as a GIF that repeats for ever and rests a second on the last one; returns its path.

        At most 256 colours in all frames together are kept as they are, so also any film in grey. Of more, 256 are
        chosen that reach to the most colourful ones, and every pixel gets the nearest: what does not move does not
        flicker either.

        Args:
            trainer: the run's.
            key: such as ``"test/perturbation"``.
            frames: (T, H, W, 3) uint8, or T pictures (H, W, 3) of one size.
            fps: frames per second, 1 to 50; browsers slow down what is faster.

        Raises:
            ValueError: no frames, frames of another shape or type, or ``fps`` out of range.
        """
        path = self._path(trainer, "pictures", key, ".gif")
        if trainer.is_global_zero:
            if not 1 <= fps <= 50:
                raise ValueError(f"fps must be between 1 and 50 (browsers slow down what is faster), got {fps}")
            first, *rest = _with_palette(frames)
            durations = [round(1000 / fps)] * len(rest) + [1000]  # ms
            first.save(path, save_all=True, append_images=rest, duration=durations, loop=0)
            self._hand_over(trainer, key, lambda logger, step: _log_film(logger, step, key, path))
        return path

    def table(self, trainer: Trainer, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Path:
        """Save rows of plain values as CSV with a header; returns its path. An empty text is a missing value."""
        path = self._path(trainer, "tables", key, ".csv")
        if trainer.is_global_zero:
            _write_rows(path, [columns, *rows])
            cells = [[None if cell == "" else cell for cell in row] for row in rows]
            name = f"{key}_table" if key in self._beside else key
            self._hand_over(trainer, name, lambda logger, step: _log_table(logger, step, name, list(columns), cells))
        return path

    def table_beside(self, trainer: Trainer, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Path:
        """A table whose key is another thing's, too: the file is that of :meth:`table`, loggers get ``<key>_table``.

        Args:
            trainer: the run's.
            key: such as ``"nad/hit_rate"``, of a figure, picture, film or number, too.
            columns: as in ``table``.
            rows: likewise.
        """
        self._beside.add(key)
        return self.table(trainer, key, columns, rows)

    def histogram(self, trainer: Trainer, key: str, values: Histogrammed | Mapping[str, Histogrammed]) -> Path:
        """Save how often values occur, as CSV of bins; returns its path.

        The columns are ``name``, ``from``, ``to`` (the edges of the bin) and ``count``. Values that are not finite are
        counted in one more row with the edges ``nan``. Loggers draw each under ``key/name``: of more than 32, as many
        or fewer taken evenly from first to last.

        Args:
            trainer: the run's.
            key: such as ``"prune/mean_rank"``.
            values: one array or tensor, of any shape, or several by name, such as one per layer.
        """
        path = self._path(trainer, "tables", key, ".csv")
        if trainer.is_global_zero:
            given = values if isinstance(values, Mapping) else {"": values}
            arrays = {name: _flat(array) for name, array in given.items()}
            bins = {name: np.histogram(array[np.isfinite(array)], BINS) for name, array in arrays.items()}
            rows: list[Sequence[Any]] = [["name", "from", "to", "count"]]
            for name, (counts, edges) in bins.items():
                rows += zip([name] * BINS, edges[:-1], edges[1:], counts, strict=True)
                if lost := len(arrays[name]) - counts.sum():
                    rows.append([name, "nan", "nan", lost])
            _write_rows(path, rows)
            shown = list(bins)[:: -(-len(bins) // MOST_HISTOGRAMS) or 1]
            named = {f"{key}/{name}" if name else key: bins[name] for name in shown}
            self._hand_over(trainer, key, lambda logger, step: _log_histograms(logger, step, named))
        return path

    def _path(self, trainer: Trainer, folder: str, key: str, suffix: str) -> Path:
        path = Path(trainer.default_root_dir, folder, key.replace("/", "_") + suffix)
        if trainer.is_global_zero:
            path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _hand_over(self, trainer: Trainer, key: str, log: Callable[[Logger, int], None]) -> None:
        # private: global_step counts optimisers, and is one ahead of the scalars in an epoch's validation
        step = trainer.fit_loop.epoch_loop._batches_that_stepped
        for logger in trainer.loggers:
            try:
                log(logger, step)
            except Exception as ex:  # somebody else's code, and what it shows is on the disk already
                if logger not in self._failed:
                    self._failed.append(logger)
                    rank_zero_warn(f"{type(logger).__name__} did not take {key}: {type(ex).__name__}: {ex}")

    # -- the run at W&B -----------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Whose runs the checkpoints name; a new fit is a new run, until a checkpoint says otherwise."""
        self._loggers = trainer.loggers
        if stage == "fit":
            self._run = {}

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Where the checkpoints are, for W&B's summary of the run."""
        paths: dict[str, str] = {}
        for keeper in trainer.checkpoint_callbacks:
            if isinstance(keeper, ModelCheckpoint):
                best = keeper.best_model_path if keeper.monitor else ""  # without, it is only the newest
                named = {"checkpoint/last": keeper.last_model_path, "checkpoint/best": best}
                paths |= {name: path for name, path in named.items() if path}
        if trainer.is_global_zero and paths:
            self._hand_over(trainer, "checkpoint", lambda logger, step: _log_summary(logger, paths))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """The same for a fit that was stopped."""
        self.on_fit_end(trainer, pl_module)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """A run that goes on in its own directory stays the same run, also where this part of it is not logged."""
        if trainer.ckpt_path and Path(trainer.default_root_dir).resolve() in Path(trainer.ckpt_path).resolve().parents:
            self._run = checkpoint.get("callbacks", {}).get(self.state_key, {}).get("wandb", {})

    def state_dict(self) -> dict[str, Any]:
        """``wandb``: id, project and entity of the run there, as text; nothing where there is none."""
        for logger in self._loggers:
            if isinstance(logger, WandbLogger):
                run = logger.experiment
                named = {name: getattr(run, name, None) for name in ("id", "project", "entity")}
                if isinstance(named["id"], str):  # else W&B has failed, and a stand-in is in its place
                    self._run = {name: text for name, text in named.items() if isinstance(text, str) and text}
        return {"wandb": self._run} if self._run else {}


Histogrammed = np.ndarray | Tensor | Sequence[float]


def _flat(values: Histogrammed) -> np.ndarray:
    tensor = values.detach().cpu() if isinstance(values, Tensor) else torch.as_tensor(np.asarray(values))
    return tensor.flatten().double().numpy()


def _with_palette(frames: np.ndarray | Sequence[np.ndarray]) -> list[Image.Image]:
    """The frames of a film as pictures of one palette."""
    shapes = {(frame.shape, frame.dtype.name) for frame in frames}
    if len(shapes) != 1 or not all(len(shape) == 3 and shape[2] == 3 and kind == "uint8" for shape, kind in shapes):
        found = ", ".join(f"{kind} {shape}" for shape, kind in sorted(shapes)) or "none"
        raise ValueError(f"frames must be RGB (T, H, W, 3) uint8, all of one size and at least one, got {found}")
    height, width, _ = frames[0].shape
    strip = np.concatenate(list(frames))  # one below the other
    sheet = Image.fromarray(strip)
    if sheet.getcolors(COLOURS):
        drawn = sheet.quantize(COLOURS)
    else:
        pixels = strip.reshape(-1, 3)
        sample = pixels[np.linspace(0, len(pixels) - 1, 2**16).astype(int)]  # of all it takes a minute
        palette = Image.fromarray(sample[None]).quantize(COLOURS, Image.Quantize.MAXCOVERAGE)
        drawn = sheet.quantize(palette=palette, dither=Image.Dither.NONE)
    return [drawn.crop((0, top, width, top + height)) for top in range(0, len(strip), height)]


def _check_overlay(
    images: Sequence[np.ndarray], captions: Sequence[str], **layers: Mapping[str, Sequence[Any]]
) -> None:
    if not len(images):
        raise ValueError("images must be at least one picture, got none")
    named = {f"{kind}[{name!r}]": values for kind, given in layers.items() for name, values in given.items()}
    for name, values in {"captions": captions, **named}.items():
        if len(values) != len(images):
            raise ValueError(f"{name} must have one entry for each of {len(images)} images, got {len(values)}")


def _write_rows(path: Path, rows: Sequence[Sequence[Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


# What a logger cannot take, it does not get: the run's directory has everything.


def _log_picture(logger: Logger, step: int, key: str, path: Path) -> None:
    if isinstance(logger, TensorBoardLogger):
        pixels = np.asarray(Image.open(path).convert("RGB"))
        logger.experiment.add_image(key, pixels, step, dataformats="HWC")
    elif hasattr(logger, "log_image"):
        logger.log_image(key=key, images=[str(path)], step=step)


def _log_overlay(
    logger: Logger,
    step: int,
    key: str,
    path: Path,
    captions: list[str],
    images: Sequence[np.ndarray],
    boxes: Mapping[str, Sequence[Any]],
    masks: Mapping[str, Sequence[Any]],
) -> None:
    if not isinstance(logger, WandbLogger):
        _log_picture(logger, step, key, path)
        return
    height, width = (max(image.shape[axis] for image in images) for axis in (0, 1))
    margins = [((0, height - image.shape[0]), (0, width - image.shape[1])) for image in images]
    filled = [np.pad(image, (*m, (0, 0)), constant_values=255) for image, m in zip(images, margins, strict=True)]
    classes = dict(enumerate(dict.fromkeys([*boxes, *masks]), 1))  # a layer is a class and has its colour; 0 is no mask
    ids = {name: number for number, name in classes.items()}
    media: dict[str, list[dict[str, Any]]] = {"boxes": [], "masks": []}
    for row, margin in enumerate(margins):
        found = {name: _wandb_boxes(values[row], name, ids[name]) for name, values in boxes.items()}
        inside = {name: np.pad(_array(values[row]) != 0, margin) for name, values in masks.items()}
        media["boxes"].append({name: {"box_data": of, "class_labels": classes} for name, of in found.items()})
        media["masks"].append(
            {
                name: {"mask_data": of.astype(np.uint8) * ids[name], "class_labels": classes}
                for name, of in inside.items()
            }
        )
    logger.log_image(key=key, images=filled, step=step, caption=captions, **media)


def _wandb_boxes(boxes: Any, caption: str, class_id: int) -> list[dict[str, Any]]:
    rows = _array(boxes).reshape(-1, 4).astype(float)
    positions = [
        dict(zip(("minX", "minY", "maxX", "maxY"), row, strict=True)) for row in rows[np.isfinite(rows).all(1)].tolist()
    ]
    return [{"position": p, "domain": "pixel", "class_id": class_id, "box_caption": caption} for p in positions]


def _array(values: Any) -> np.ndarray:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def _log_film(logger: Logger, step: int, key: str, path: Path) -> None:
    if isinstance(logger, WandbLogger):
        import wandb

        film: dict[str, Any] = {key: wandb.Video(str(path), format="gif")}  # an array would need moviepy
        logger.log_metrics(film, step)


def _log_table(logger: Logger, step: int, key: str, columns: list[str], rows: list[list[Any]]) -> None:
    if isinstance(logger, TensorBoardLogger):
        lines = [columns, ["---"] * len(columns), *([("" if cell is None else cell) for cell in row] for row in rows)]
        logger.experiment.add_text(key, "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines), step)
    elif hasattr(logger, "log_table"):
        logger.log_table(key=key, columns=columns, data=rows, step=step)


def _log_histograms(logger: Logger, step: int, histograms: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    if isinstance(logger, WandbLogger):
        import wandb

        drawn: dict[str, Any] = {key: wandb.Histogram(np_histogram=bins) for key, bins in histograms.items()}
        logger.log_metrics(drawn, step)
    elif isinstance(logger, TensorBoardLogger):
        for key, (counts, edges) in histograms.items():
            centres = np.repeat((edges[:-1] + edges[1:]) / 2, counts)
            logger.experiment.add_histogram(key, centres, step, bins=edges)


def _log_summary(logger: Logger, values: dict[str, str]) -> None:
    if isinstance(logger, WandbLogger) and hasattr(logger.experiment.summary, "update"):  # a stand-in's has not
        logger.experiment.summary.update(values)
