"""SimilarityHistogramLogger: how similar pairs of one person and of two are, in easy and in hard samples."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from callbacks.report import RunReport
from callbacks.similarity_figures import similarity_figure
from lit_methods.ddl.overlap import similarity_overlap

Step = dict[str, tuple[Tensor, Tensor]]  # positive and negative similarities by branch


class SimilarityHistogramLogger(Callback):
    """The distributions of similarities that DDL works on: by branch, before and after, and how far they overlap.

    The similarities are those of the training batches. "Before" are the first ``window`` steps of the distillation,
    "after" the last ones.

    - every ``every_n_steps``: histograms ``similarity/histograms`` of the last ``window`` steps, and as numbers, per
      branch, ``similarity/overlap_<branch>``: the mass that positives and negatives have in common (0 is best), and
      ``similarity/gap_<branch>``: mean positive minus mean negative; per hard branch
      ``similarity/shared_pos_<branch>`` and ``similarity/shared_neg_<branch>``: the mass that it has in common with the
      easy branch (1: fully distilled);
    - at the end of a fit: picture ``similarity/before_after`` and table ``similarity/overlap``; ``summary()`` has the
      same numbers with ``_before`` and ``_after`` behind them. Where the module trains a control besides, as
      ``DDLComparison`` does, it is there as ``_baseline``.

    Args:
        every_n_steps: of the distillation.
        window: so many steps make a distribution.

    Raises:
        ValueError: an argument below 1.

    Example:
        >>> SimilarityHistogramLogger(every_n_steps=50).summary()
        {}
    """

    def __init__(self, every_n_steps: int = 100, window: int = 20) -> None:
        if every_n_steps < 1 or window < 1:
            raise ValueError(f"every_n_steps={every_n_steps} and window={window} must be at least 1")
        self.every_n_steps, self.window = every_n_steps, window
        self._stage = "fit"
        self._start_afresh()

    def _start_afresh(self) -> None:
        self.steps = 0
        self.before: list[Step] = []
        self.recent: deque[Step] = deque(maxlen=self.window)
        self.baseline: deque[Step] = deque(maxlen=self.window)
        self.figures: dict[str, float] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """A fit of its own, unless a checkpoint is loaded next."""
        self._stage = stage
        if stage == "fit" and trainer.current_epoch == 0:
            self._start_afresh()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep the similarities of the step, which are those of all processes."""
        step: Step | None = outputs.get("similarities") if isinstance(outputs, dict) else None
        if not step:
            return
        self.steps += 1
        self.recent.append(step)
        if len(self.before) < self.window:
            self.before.append(step)
        if outputs.get("baseline"):
            self.baseline.append(outputs["baseline"])
        if self.steps % self.every_n_steps == 0:
            joined = joint(self.recent)
            named = {
                f"{branch}_{kind}": s
                for branch, both in joined.items()
                for kind, s in zip(("pos", "neg"), both, strict=True)
            }
            RunReport.of(trainer).histogram(trainer, "similarity/histograms", named)
            values = {f"similarity/{name}": value for name, value in overlaps(joined).items()}
            for logger in trainer.loggers:  # not the module's log: it would repeat them in every row of the epoch
                logger.log_metrics(values, trainer.fit_loop.epoch_loop._batches_that_stepped)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Before and after."""
        if not self.recent:
            return
        phases = {"before": joint(self.before), "after": joint(self.recent)}
        if self.baseline:
            phases["baseline"] = joint(self.baseline)
        found = {phase: overlaps(branches) for phase, branches in phases.items()}
        self.figures = {f"similarity/{name}_{phase}": v for phase, of in found.items() for name, v in of.items()}
        report = RunReport.of(trainer)
        rows = [[name, *(found[phase][name] for phase in phases)] for name in found["after"]]
        report.table(trainer, "similarity/overlap", ["", *phases], rows)
        if trainer.is_global_zero:
            report.figure(trainer, "similarity/before_after", similarity_figure(phases, found))

    def summary(self) -> dict[str, float | str | list]:
        """The numbers of the last fit, before and after."""
        return dict(self.figures)

    def state_dict(self) -> dict[str, Any]:
        """The similarities so far, in plain types."""
        kept = {"before": self.before, "recent": self.recent, "baseline": self.baseline}
        plain = {
            name: [{branch: [s.cpu() for s in both] for branch, both in step.items()} for step in steps]
            for name, steps in kept.items()
        }
        return {"steps": self.steps, "figures": dict(self.figures), **plain}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where the checkpoint was; a test of an earlier one leaves the numbers of the fit as they are."""
        if self._stage != "fit":
            return
        self._start_afresh()
        self.steps, self.figures = state_dict["steps"], dict(state_dict["figures"])
        for name in ("before", "recent", "baseline"):
            steps = [{branch: (both[0], both[1]) for branch, both in step.items()} for step in state_dict[name]]
            getattr(self, name).extend(steps)


def joint(steps: Iterable[Step]) -> Step:
    """The similarities of several steps together, float32 on the CPU.

    Example:
        >>> joint([{"easy": (torch.ones(2), torch.zeros(1))}] * 2)["easy"]
        (tensor([1., 1., 1., 1.]), tensor([0., 0.]))
    """
    steps = list(steps)
    return {
        branch: (
            torch.cat([step[branch][0].float().cpu() for step in steps]),
            torch.cat([step[branch][1].float().cpu() for step in steps]),
        )
        for branch in steps[0]
    }


def overlaps(branches: Step) -> dict[str, float]:
    """The numbers of one phase; the first branch is the easy one. Those that are empty are left out.

    Example:
        >>> sims = torch.tensor([0.8, 0.9]), torch.tensor([0.1, 0.2])
        >>> [name for name, value in overlaps({"easy": sims, "hard": sims}).items() if value > 0.9]
        ['shared_pos_hard', 'shared_neg_hard']
    """
    found: dict[str, float] = {}
    (_, teacher), *_ = branches.items()
    for number, (branch, (pos, neg)) in enumerate(branches.items()):
        if len(pos):
            found[f"overlap_{branch}"] = float(similarity_overlap(pos, neg))
            found[f"gap_{branch}"] = float(pos.mean() - neg.mean())
        if number and len(pos) and len(teacher[0]):
            found[f"shared_pos_{branch}"] = float(similarity_overlap(pos, teacher[0]))
        if number:
            found[f"shared_neg_{branch}"] = float(similarity_overlap(neg, teacher[1]))
    return found
