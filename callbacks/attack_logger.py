"""AttackLogger: what an attack did, as curves, pictures and tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from matplotlib.figure import Figure
from rich.console import Console

from callbacks.interruption import leave_if_asked
from callbacks.report import RunReport
from lit_methods.functional.drawing import grid
from lit_methods.ppba.attack import AttackResult
from lit_methods.ppba.eight_bits import levels
from lit_methods.ppba.functional import success_curve
from lit_methods.ppba.ledger import read_ledger
from lit_methods.ppba.pictures import growth, triplet

COLUMNS = (
    "id",
    "label",
    "pred",
    "success",
    "queries",
    "l2",
    "l2_unclipped",
    "success_uint8",
    "skipped",
    "failed",
    "checks",
)


class AttackLogger(Callback):
    """Show a test that attacks (``PPBA``), while it goes and at its end.

    - ``attack/success_curve``: images attacked against queries spent, beside the walk with fixed probabilities if the
      module compares with it;
    - ``attack/triplets``: images, what was changed, and both together, of the first successes;
    - ``attack/growth``: a film of one perturbation growing, from the first batch;
    - ``attack/images``: a table with one row per image, and ``attack/classes`` with one per class;
    - ``attack/queries``: a histogram.

    On a terminal a line says how far the batch is. A signal ends the test between two iterations; the ledger has all
    answers until then.

    Args:
        num_images: pictures among the triplets.
        fps: frames per second of the film.

    Raises:
        ValueError: there would be no picture.
    """

    def __init__(self, num_images: int = 6, fps: int = 8) -> None:
        if num_images < 1:
            raise ValueError(f"num_images={num_images} must be at least 1")
        if not 1 <= fps <= 50:
            raise ValueError(f"fps={fps} must be between 1 and 50")
        self.num_images, self.fps = num_images, fps
        self._triplets: list[np.ndarray] = []
        self._film: list[np.ndarray] = []

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look in before each iteration.

        Raises:
            ValueError: the module does not attack.
        """
        if not hasattr(pl_module, "on_attack_step"):
            raise ValueError(
                f"AttackLogger is for modules that attack, such as PPBA, not for {type(pl_module).__name__}"
            )
        self._triplets, self._film = [], []
        console = Console()
        shown = trainer.is_global_zero and console.is_terminal and trainer.progress_bar_callback is not None

        def look_in(step: int, left: int) -> None:
            leave_if_asked()
            if shown and step % 50 == 0:
                console.print(f"  iteration {step}: {left} images left in this batch")

        pl_module.on_attack_step = look_in  # type: ignore[assignment]

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the module as it was."""
        if hasattr(pl_module, "on_attack_step"):
            pl_module.on_attack_step = None  # type: ignore[assignment]

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """The same where something went wrong; Lightning calls no teardown then."""
        self.teardown(trainer, pl_module, "test")

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *args: Any
    ) -> None:
        """Keep a few pictures."""
        result: AttackResult | None = (outputs or {}).get("attack")
        if result is None or not trainer.is_global_zero:
            return
        for row in result.success.nonzero().flatten().tolist():
            if len(self._triplets) < self.num_images:
                self._triplets.append(_triplet(pl_module, batch, result, row))
        films = result.history["films"]
        if films and not self._film:
            longest = max(films, key=lambda image: len(films[image].frames))
            clean = _hwc(levels(batch["image"][result.ids.tolist().index(longest)]))
            self._film = growth(clean, [_hwc(frame) for _, frame in films[longest].frames])

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw, by now the ledgers of all processes are one."""
        if not trainer.is_global_zero:
            return
        folder, report = Path(trainer.default_root_dir), RunReport.of(trainer)
        lines = read_ledger(folder / "ledger.jsonl")
        fixed = read_ledger(folder / "ledger_fixed.jsonl")
        if not lines:  # a dry run has no ledger
            return
        budget = max(line["max_queries"] for line in lines)
        report.figure(trainer, "attack/success_curve", _curve(lines, fixed, budget))
        report.table(trainer, "attack/images", COLUMNS, [[line[name] for name in COLUMNS] for line in lines])
        report.table(trainer, "attack/classes", *_classes(pl_module, lines))
        if spent := [line["queries"] for line in lines if line["success"]]:
            report.histogram(trainer, "attack/queries", spent)
        if self._triplets:
            report.picture(trainer, "attack/triplets", grid(self._triplets, columns=1))
        if self._film:
            report.film(trainer, "attack/growth", self._film, fps=self.fps)


def _triplet(module: Any, batch: dict[str, torch.Tensor], result: AttackResult, row: int) -> np.ndarray:
    label, pred = int(batch["label"][row]), int(result.preds[row])
    clean, adversarial = (_hwc(levels(images[row])) for images in (batch["image"], result.adv))
    queries = int(result.queries[row])
    return triplet(clean, adversarial, module.class_name(label), module.class_name(pred), queries, success=True)


def _hwc(picture: torch.Tensor) -> np.ndarray:
    return picture.permute(1, 2, 0).cpu().numpy()


def _curve(lines: list[dict[str, Any]], fixed: list[dict[str, Any]], budget: int) -> Figure:
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.add_subplot()
    thresholds = torch.linspace(0, budget, 257)
    for name, found, style in (("attack", lines, "-"), ("fixed probabilities", fixed, "--")):
        tried = [line for line in found if not line["skipped"]]
        if tried:
            success, queries = (torch.tensor([line[key] for line in tried]) for key in ("success", "queries"))
            axes.plot(
                thresholds, success_curve(success, queries, thresholds, budget), style, color="#2b6cb0", label=name
            )
    axes.set(xlabel="queries", ylabel="images attacked", xlim=(0, budget), ylim=(0, 1))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if len(axes.lines) > 1:
        axes.legend(frameon=False)
    return figure


def _classes(module: Any, lines: list[dict[str, Any]]) -> tuple[list[str], list[list[Any]]]:
    """One row per class that was attacked: how many images, how many successes, how many queries these took."""
    rows: list[list[Any]] = []
    true = [line.get("true_label", line["label"]) for line in lines]  # the label is the goal of a targeted attack
    for label in sorted({own for own, line in zip(true, lines, strict=True) if not line["skipped"]}):
        tried = [line for own, line in zip(true, lines, strict=True) if own == label and not line["skipped"]]
        spent = [line["queries"] for line in tried if line["success"]]
        rows.append([module.class_name(label), len(tried), len(spent), round(np.mean(spent), 1) if spent else ""])
    return ["class", "attacked", "successes", "mean_queries"], rows
