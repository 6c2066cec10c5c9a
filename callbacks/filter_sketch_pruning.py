"""FilterSketchPruning: narrow a network from within by sketches of its weights."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

from lightning.pytorch import Trainer
from torch import nn

from callbacks.pruning import Choices, FilterPruning
from callbacks.pruning_figures import sketch_errors_figure
from callbacks.report import RunReport
from callbacks.surgery import share_weights
from lit_methods.backbones import Plan
from lit_methods.classification import ImageClassifier
from lit_methods.filter_sketch.functional import Layout, Tail
from lit_methods.filter_sketch.model import Report, Sketcher
from lit_methods.filter_sketch.structure import Structure, TableStructure, TracedStructure, group_scores
from lit_methods.functional.rates import round_rate_up


class FilterSketchPruning(FilterPruning):
    """Prune an ``ImageClassifier`` by FilterSketch: blocks become narrower inside, their weights are matrix sketches.

    No data is needed, and the weights alone decide. Accuracy right after pruning is near chance: the order of filters
    and of the channels that read them no longer corresponds, and batch norm starts afresh; fine-tuning repairs it.

    Args:
        rates: **kept** fraction per block in forward order (27 for ResNet-56, 9 stages for GoogLeNet), as text
            (``"[0.9]*3+[0.4]*24"``) or numbers; one number alone holds for all. Or give a target, see below.
        at_epoch: 0 prunes a trained network before training starts, N trains N epochs first.
        normalize: ``"l2"`` divides each sketched weight by its Frobenius norm, ``None`` leaves it.
        tail: ``"fill"`` lets every filter enter the sketch, ``"drop"`` is the official code, ``"zero"`` the textbook.
        channel_layout: ``"official"`` reproduces a slip of the official code in the sketch of input channels.
        target: ``target_macs`` or ``target_params`` in the place of ``rates``, with ``allocation`` and ``keep_ends``;
            and ``round_to``: see ``FilterPruning``. ``allocation="global"`` narrows each block as far as its filter
            matrices lose the same part of their energy. A block that keeps its width, by ``keep_ends`` or at rate 1, is
            rescaled all the same and its batch norm starts afresh, unless ``normalize`` is ``None``.

    Raises:
        ValueError: a rate outside (0, 1] or one that leaves a layer without filters, the wrong number of rates, a
            target that cannot be met, an untrained network with ``at_epoch=0``, a network in which neither a table nor
            tracing finds blocks that can be narrowed.

    Source:
        FilterSketch, arXiv 2001.08514; ``lit_methods.filter_sketch.functional`` lists what differs from its code.
        Several processes all take the first one's sketches.

    Example:
        >>> FilterSketchPruning(rates="[0.9]*3+[0.4]*6", at_epoch=8).listed_rates(9)
        [0.9, 0.9, 0.9, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4]
        >>> FilterSketchPruning(rates=1.5)
        Traceback (most recent call last):
            ...
        ValueError: rates=1.5: 1.5 is outside (0, 1]; a rate is the fraction that is kept
    """

    meaning = "is outside (0, 1]; a rate is the fraction that is kept"
    from_table, from_trace = TableStructure, TracedStructure

    def __init__(
        self,
        rates: float | list[float] | str | None = None,
        at_epoch: int = 0,
        normalize: Literal["l2"] | None = "l2",
        tail: Tail = "fill",
        channel_layout: Layout = "channels",
        **target: Any,
    ) -> None:
        super().__init__(rates, at_epoch, **target)
        for name, value, choices in (
            ("normalize", normalize, ("l2", None)),
            ("tail", tail, ("fill", "drop", "zero")),
            ("channel_layout", channel_layout, ("channels", "official")),
        ):
            if value not in choices:
                raise ValueError(f"{name}={value!r} must be one of {', '.join(map(repr, choices))}")
        self.normalize, self.tail, self.channel_layout = normalize, tail, channel_layout
        self._report: Report = []

    @staticmethod
    def usable(rate: float) -> bool:
        """Whether a number is a rate."""
        return 0 < rate <= 1

    @staticmethod
    def from_removed(fraction: float) -> float:
        """The rate that removes this fraction."""
        return round_rate_up(1 - fraction)

    def choices(self, trainer: Trainer, module: ImageClassifier) -> Choices:
        """The blocks, each with a rate, scored by what their weights lose."""
        structure: Structure = self.structure(trainer, module)
        return Choices(
            convs=[conv for convs in structure.blocks for conv in convs],
            groups=len(structure.blocks),
            plan=partial(structure.plan, round_to=self.round_to),
            shape=structure.shape,
            scores=partial(group_scores, structure, module.model),
            highest=[1 - rate for rate in structure.lowest],
        )

    def shrink(self, trainer: Trainer, module: ImageClassifier, plan: Plan) -> nn.Module:
        """Narrower blocks with sketched weights, the first process's on all."""
        sketcher = Sketcher(self.normalize, self.tail, self.channel_layout)
        network = self.structure(trainer, module).sketch(module.model, plan, sketcher)
        self._report = sketcher.report
        share_weights(network)  # another machine's linear algebra may round in another way
        return network

    def measure(self, dense: nn.Module, plan: Plan, size: tuple[int, ...]) -> dict[str, float]:
        """How far the covariance of the sketched weights is from that of the full ones, on average and at most."""
        errors = [row["covariance_error"] for row in self._report]
        if not errors:  # at rate 1
            return {}
        return {
            "prune/covariance_error_mean": sum(errors) / len(errors),
            "prune/covariance_error_max": max(errors),
        }

    def show(self, trainer: Trainer, plan: Plan, filters: dict[str, int]) -> None:
        """What each sketch used and how close it is."""
        report = RunReport.of(trainer)
        columns = ["layer", "dim", "n", "l", "rows_used", "shrinks", "delta_sum", "covariance_error"]
        report.table(trainer, "prune/sketches", columns, [[row[column] for column in columns] for row in self._report])
        if self._report:
            report.figure(trainer, "prune/sketch_errors", sketch_errors_figure(self._report))
