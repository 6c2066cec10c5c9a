"""Figures of similarities, before a distillation and after it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLES = {"before": "before", "after": "after, DDL", "baseline": "after, without DDL"}
COLOURS = ("tab:blue", "tab:red", "tab:orange", "tab:purple", "tab:brown")
BINS = np.linspace(-1, 1, 81)


def similarity_figure(
    phases: Mapping[str, Mapping[str, tuple[Tensor, Tensor]]], found: Mapping[str, Mapping[str, float]]
) -> Figure:
    """One panel per phase: positives filled, negatives as lines, a colour for each branch.

    Args:
        phases: ``"before"``, ``"after"``, perhaps ``"baseline"``; positive and negative similarities by branch.
        found: overlaps of each phase, as ``overlaps`` of the logger gives them.

    Example:
        >>> import torch
        >>> branches = {"easy": (torch.rand(9), torch.rand(9) - 0.5), "hard": (torch.rand(9), torch.rand(9))}
        >>> len(similarity_figure({"before": branches, "after": branches}, {"before": {}, "after": {}}).axes)
        2
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.6 * len(phases), 2.8), layout="constrained")
    axes = figure.subplots(1, len(phases), sharex=True, sharey=True, squeeze=False)[0]
    for axis, (phase, branches) in zip(axes, phases.items(), strict=True):
        for colour, (branch, (pos, neg)) in zip(COLOURS, branches.items(), strict=False):
            overlap = found[phase].get(f"overlap_{branch}")
            label = branch if overlap is None else f"{branch}, overlap {overlap:.2f}"
            axis.hist(pos.numpy(), BINS, density=True, color=colour, alpha=0.35, label=label)
            axis.hist(neg.numpy(), BINS, density=True, color=colour, histtype="step", linewidth=1.5)
        axis.set_title(TITLES[phase])
        axis.set_xlabel("cosine similarity")
        axis.legend(loc="upper left", fontsize="small")
    axes[0].set_ylabel("filled: one person, line: hardest other", fontsize="small")
    lowest = min(
        float(sims.min()) for branches in phases.values() for both in branches.values() for sims in both if len(sims)
    )
    axes[0].set_xlim(min(-0.1, lowest), 1)
    return figure
