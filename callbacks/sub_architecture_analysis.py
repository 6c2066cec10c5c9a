"""SubArchitectureAnalysis: what the sub-architectures of a network's classes have in common, and what follows."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from callbacks.report import RunReport
from callbacks.sub_architecture_figures import confusion_figure, kept_ratio_figure, paths_figure, similarity_figure
from lit_methods.functional.suggestions import shorten
from lit_methods.nad.analysis import ConfusionReport, cluster_order, confusion_report, pair_confusion
from lit_methods.nad.functional import concept_diversity, most_similar, subarchitecture_similarity

MOST_TOPS = 5  # numbers of similar classes for which errors are counted

Rows = list[list[Any]]


class _Tested(NamedTuple):
    """What a test counted, over all processes; on the CPU.

    Args:
        confusion: (C, C) int64, images of class (row) that the network took for class (column).
        own: (K, 2) int64, images of each class with gates, and how many its own sub-architecture got right.
    """

    confusion: Tensor
    own: Tensor


class SubArchitectureAnalysis(Callback):
    """Compare the sub-architectures that ``NAD`` finds: at the end of a fit and, with the weights tested, of a test.

    - ``nad/similarity``: a heat map, similar classes side by side, and ``nad/similar``, each class's most similar ones;
    - ``nad/kept_ratio``: which part of the channels is open along the network, and ``nad/layers``;
    - ``nad/paths``: the sub-architectures of two classes from input to output, and what they share;
    - ``nad/classes``, after every epoch: per class the steps done and left out, images seen and open channels;
    - ``gates.npz`` in the run's directory: gate point -> (K, C) float32 logits, and ``class_ids`` (K,).

    A test adds to ``nad/classes`` how many images were tested and how many the class's own sub-architecture got right,
    and asks whether misclassified images fall to classes with similar sub-architectures: figure ``nad/confusion``,
    tables ``nad/confusion`` (the pairs of classes) and ``nad/errors_in_top`` (with Wilson's 95 % intervals).

    ``summary()`` gives ``nad/diversity``, ``nad/mean_similarity``, ``nad/empty_layers`` (pairs of a class and a gate
    point without an open channel), ``nad/errors``, ``nad/errors_in_top3``, the same with ``_low`` and ``_high``,
    ``nad/chance_top3`` and ``nad/p_top3`` (3: ``top``), ``nad/confusion_correlation`` and
    ``nad/p_confusion_correlation`` (see ``confusion_report``), as far as they could be measured. One class alone has no
    similarity, and of two there is nothing to ask about errors.

    Args:
        top: how many of the most similar classes are listed and count for errors; of fewer classes all but one.
        pair: two class ids, for ``nad/paths``; ``None``: the two most similar classes.
        history: also ``gates/epoch01.npz`` and so on after each epoch of training, ``epoch00`` before the first.

    Raises:
        ValueError: ``top`` below 1; ``pair`` names no two classes, or one without gates; another module than ``NAD``.

    Source:
        similarity and its most similar classes: official code, which reports the first hundred classes; so are the
        gates of all epochs. Ours: the figures, diversity, and the test of the abstract's claim about errors.

    Example:
        >>> SubArchitectureAnalysis(top=5, pair=[3, 7]).summary()
        {}
    """

    def __init__(self, top: int = 3, pair: list[int] | None = None, history: bool = False) -> None:
        if top < 1:
            raise ValueError(f"top={top} must be at least 1")
        if pair is not None and (len(pair) != 2 or pair[0] == pair[1]):
            raise ValueError(f"pair={pair} must name two classes, such as [3, 7]")
        self.top, self.pair, self.history = top, pair, history
        self._counts: _Tested | None = None  # as long as a test runs
        self._summary: dict[str, float | str | list] = {}

    def summary(self) -> dict[str, float | str | list]:
        """The figures of the last fit or test."""
        return dict(self._summary)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse other modules and classes without gates, before anything runs."""
        module: Any = pl_module
        if not hasattr(module, "gated"):
            raise ValueError(
                f"SubArchitectureAnalysis is for modules with gates, such as NAD, not for {type(module).__name__}"
            )
        if without := [label for label in self.pair or [] if label not in module.class_ids]:
            known = shorten(module.class_ids)
            raise ValueError(f"pair={self.pair}: class {without[0]} has no gates; there are those of {known}")

    # -- a fit --------------------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the gates as they were drawn."""
        if self.history and trainer.global_step == 0:
            _save_gates(trainer, pl_module, "gates/epoch00.npz")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say how far each class is; keep the gates of this epoch."""
        module: Any = pl_module
        names = [module.class_name(label) for label in module.class_ids]
        masks = [mask.cpu() for mask in module.gated.open_gates()]
        RunReport.of(trainer).table(trainer, "nad/classes", *_classes(names, masks, module.progress, None))
        if self.history:
            _save_gates(trainer, pl_module, f"gates/epoch{trainer.current_epoch + 1:02}.npz")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show what was learnt."""
        self._show(trainer, pl_module, None)

    # -- a test -------------------------------------------------------------------------------------------------------

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to count."""
        module: Any = pl_module
        classes, device = module.hparams["num_classes"], module.device
        confusion = torch.zeros(classes, classes, dtype=torch.int64, device=device)
        self._counts = _Tested(confusion, torch.zeros(len(module.class_ids), 2, dtype=torch.int64, device=device))

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *args: Any
    ) -> None:
        """Count what the network and the sub-architectures say to a batch."""
        if self._counts is None or not isinstance(outputs, dict) or "own" not in outputs:
            return
        module: Any = pl_module
        confusion, own = self._counts
        label, mine = batch["label"], outputs["own"]
        where = label * len(confusion) + outputs["preds"]
        confusion.view(-1).index_add_(0, where, torch.ones_like(where))
        found = torch.stack([mine[mine], outputs["own_hit"][mine]], dim=1).long()
        own.index_add_(0, module.row_of[label[mine]], found)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sum over the processes; all of them come here."""
        if self._counts is not None:
            sums = (trainer.strategy.reduce(counts, reduce_op="sum") for counts in self._counts)
            self._counts = _Tested(*(counts.cpu() for counts in sums))

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show what was tested."""
        tested, self._counts = self._counts, None
        self._show(trainer, pl_module, tested)

    # -- what is shown ------------------------------------------------------------------------------------------------

    def _show(self, trainer: Trainer, pl_module: LightningModule, tested: _Tested | None) -> None:
        self._summary = {}
        if not trainer.is_global_zero:
            return
        module: Any = pl_module
        report, points = RunReport.of(trainer), module.gated.gate_points
        names = [module.class_name(label) for label in module.class_ids]
        masks = [mask.cpu() for mask in module.gated.open_gates()]
        _save_gates(trainer, module, "gates.npz")
        kept = torch.stack([mask.double().mean(1) for mask in masks], dim=1).numpy()
        report.figure(trainer, "nad/kept_ratio", kept_ratio_figure(kept, points))
        report.table(trainer, "nad/layers", *_layers(masks, points))
        report.table(trainer, "nad/classes", *_classes(names, masks, module.progress, tested))
        self._summary["nad/empty_layers"] = sum(int((~mask.any(1)).sum()) for mask in masks)
        if len(names) > 1:
            similarity = subarchitecture_similarity(masks)
            self._compare(trainer, module, names, masks, similarity)
            if tested is not None and tested.confusion.any():
                self._judge(trainer, module, names, similarity, tested.confusion)

    def _compare(
        self, trainer: Trainer, module: Any, names: list[str], masks: list[Tensor], similarity: Tensor
    ) -> None:
        """Show how similar classes are."""
        report, values = RunReport.of(trainer), similarity.numpy()
        order = cluster_order(similarity)
        figure = similarity_figure(values[np.ix_(order, order)], [names[row] for row in order])
        report.figure(trainer, "nad/similarity", figure)
        near = most_similar(similarity, min(self.top, len(names) - 1)).tolist()
        columns = ["class", *(f"{name}_{i + 1}" for i in range(len(near[0])) for name in ("similar", "similarity"))]
        rows: Rows = [
            [names[row], *(cell for other in others for cell in (names[other], float(values[row, other])))]
            for row, others in enumerate(near)
        ]
        report.table(trainer, "nad/similar", columns, rows)
        i, j = self._pair(module, similarity)
        first, second = ([mask[row].numpy() for mask in masks] for row in (i, j))
        points, shared = module.gated.gate_points, float(values[i, j])
        report.figure(trainer, "nad/paths", paths_figure(first, second, points, (names[i], names[j]), shared))
        diversity = concept_diversity(similarity)
        self._summary |= {"nad/diversity": diversity, "nad/mean_similarity": 1 - diversity}

    def _pair(self, module: Any, similarity: Tensor) -> tuple[int, int]:
        """The rows of the two classes that are drawn."""
        if self.pair is not None:
            i, j = (module.class_ids.index(label) for label in self.pair)
            return i, j
        rows, columns = torch.triu_indices(len(similarity), len(similarity), 1)
        best = similarity[rows, columns].argmax()
        return int(rows[best]), int(columns[best])

    def _judge(self, trainer: Trainer, module: Any, names: list[str], similarity: Tensor, confusion: Tensor) -> None:
        """Ask whether similar classes are confused."""
        classes, labels = len(names), module.class_ids
        top = min(self.top, classes - 1)
        asked = confusion_report(confusion, similarity, labels, top)
        self._summary["nad/errors"] = asked.errors
        if asked.chance < 1:  # else all other classes are among the most similar ones
            self._summary |= _claim(asked, top)
        if classes < 3 or not asked.errors:
            return
        report = RunReport.of(trainer)
        tops = range(1, min(MOST_TOPS, classes - 2) + 1)
        found = [confusion_report(confusion, similarity, labels, m, permutations=0) for m in tops]
        rates = pair_confusion(confusion, labels).numpy()
        i, j = np.triu_indices(classes, 1)
        known = np.isfinite(rates[i, j])
        i, j = i[known], j[known]
        figure = confusion_figure(
            similarity.numpy()[i, j],
            rates[i, j],
            np.array([one.rate for one in found]),
            np.array([(one.low, one.high) for one in found]),
            np.array([one.chance for one in found]),
        )
        report.figure(trainer, "nad/confusion", figure)
        report.table_beside(trainer, "nad/confusion", *_confusions(names, labels, similarity, confusion))
        rows = [[m, *one[:6]] for m, one in zip(tops, found, strict=True)]
        report.table(trainer, "nad/errors_in_top", ["top", *ConfusionReport._fields[:6]], rows)


def _save_gates(trainer: Trainer, pl_module: LightningModule, name: str) -> None:
    """Write the logits of all gates into a file of the run's directory."""
    if not trainer.is_global_zero:
        return
    module: Any = pl_module
    path = Path(trainer.default_root_dir, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    logits = zip(module.gated.gate_points, module.gated.gate_logits, strict=True)
    gates = {point: values.detach().float().cpu().numpy() for point, values in logits}
    np.savez(path, **gates, class_ids=np.array(module.class_ids))


def _layers(masks: list[Tensor], points: list[str]) -> tuple[list[str], Rows]:
    """One row per gate point."""
    rows: Rows = []
    for point, mask in zip(points, masks, strict=True):
        diversity = concept_diversity(subarchitecture_similarity([mask])) if len(mask) > 1 else ""
        empty = int((~mask.any(1)).sum())
        rows.append([point, mask.shape[1], float(mask.double().mean()), diversity, empty])
    return ["gate_point", "channels", "kept", "diversity", "empty_classes"], rows


def _classes(names: list[str], masks: list[Tensor], progress: Tensor, tested: _Tested | None) -> tuple[list[str], Rows]:
    """One row per class with gates."""
    total = sum(mask.shape[1] for mask in masks)
    kept = (torch.stack([mask.sum(1) for mask in masks]).sum(0).double() / total).tolist()
    columns = ["class", "steps", "skipped", "images", "kept"]
    rows: Rows = [[name, *seen, part] for name, seen, part in zip(names, progress.tolist(), kept, strict=True)]
    if tested is not None:
        columns += ["tested", "own_top1"]
        for row, (images, hits) in zip(rows, tested.own.tolist(), strict=True):
            row += [images, hits / images if images else ""]
    return columns, rows


def _confusions(names: list[str], labels: list[int], similarity: Tensor, confusion: Tensor) -> tuple[list[str], Rows]:
    """One row per true and predicted class that occur together, the most frequent ones first."""
    counts = confusion[labels][:, labels].clone().fill_diagonal_(0)
    near = most_similar(similarity, len(names) - 1)
    place = torch.zeros_like(counts).scatter_(1, near, torch.arange(1, len(names)).expand(len(names), -1).contiguous())
    pairs = sorted(counts.nonzero().tolist(), key=lambda pair: -int(counts[pair[0], pair[1]]))
    rows: Rows = [[names[i], names[j], int(counts[i, j]), float(similarity[i, j]), int(place[i, j])] for i, j in pairs]
    return ["class", "predicted", "images", "similarity", "rank_of_similarity"], rows


def _claim(found: ConfusionReport, top: int) -> dict[str, float]:
    """The figures of the summary, without those that nothing was measured for."""
    named = {
        f"nad/errors_in_top{top}": found.rate,
        f"nad/errors_in_top{top}_low": found.low,
        f"nad/errors_in_top{top}_high": found.high,
        f"nad/chance_top{top}": found.chance,
        f"nad/p_top{top}": found.p_value,
        "nad/confusion_correlation": found.correlation,
        "nad/p_confusion_correlation": found.correlation_p_value,
    }
    return {name: value for name, value in named.items() if not math.isnan(value)}
