"""What MIP would have done on a table of measured recipes, in the place of trials."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
from lightning.pytorch import Trainer

from callbacks.report import RunReport
from lit_methods.bpe_mip.functional import expected_pick, top_mean
from lit_methods.bpe_mip.importance import eliminate, leave_one_out
from lit_methods.bpe_mip.table import TrialTable, compare, read_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WITHIN = 0.02  # of the best rank agreement: found
TREES = 100  # of a forest in the many searches that are compared


def replay_table(
    trainer: Trainer, folder: str, importance: Any = "fanova", seed: int = 0, seeds: int = 50
) -> dict[str, float | str | list]:
    """Search in a table of measured recipes instead of training anything.

    Shows ``mip/replay`` (how many searches have found a recipe within 0.02 of the table's best after so many GPU hours,
    MIP against random order) and the tables ``mip/table`` (each recipe's rank agreement, recomputed, and what it would
    pick) and ``mip/eliminated`` (the order in which a forest on the whole table drops the hyper-parameters).

    Args:
        trainer: of the run that shows it.
        folder: as ``read_table`` wants it.
        importance: as in ``MIP``.
        seed: of the forest on the whole table.
        seeds: searches that are compared.

    Returns:
        For ``summary()``: ``mip/table_best``, ``mip/table_median``, ``mip/pruned`` (of the whole table),
        ``mip/mip_hours`` and ``mip/random_hours`` (means over the seeds), ``mip/found_by_mip`` (fraction of the seeds
        whose search needed no recipe beyond MIP's own) and ``mip/left_out_error`` (mean absolute error of the agreement
        that a forest predicts for recipes it has not seen).

    Raises:
        FileNotFoundError: files are missing.
        ValueError: they are not such a table.
    """
    table = read_table(folder)
    report, scores, space = RunReport.of(trainer), table.scores(), table.space()
    sizes = [len(values) for values in space.values()]
    order, importances = eliminate(table.codes(), scores, sizes, importance=importance, seed=seed)
    names = [list(space)[i] for i in order]
    steps = [
        [i + 1, name, float(found[order[i]])] for i, (name, found) in enumerate(zip(names, importances, strict=False))
    ]
    report.table(trainer, "mip/eliminated", ["step", "name", "importance"], steps)
    report.table(trainer, "mip/table", *_rows(table))
    found = compare(table, seeds, within=WITHIN, importance=importance, n_estimators=TREES)
    report.figure(trainer, "mip/replay", replay_figure(found["mip_hours"], found["random_hours"]))
    predicted = leave_one_out(table.codes(), scores, seed=seed)
    return {
        "mip/table_best": float(scores.max()),
        "mip/table_median": median(scores.tolist()),
        "mip/pruned": names,
        "mip/mip_hours": float(found["mip_hours"].mean()),
        "mip/random_hours": float(found["random_hours"].mean()),
        "mip/found_by_mip": float(found["found_by_mip"].mean()),
        "mip/left_out_error": float(np.abs(predicted - scores).mean()),
    }


def _rows(table: TrialTable) -> tuple[list[str], list[list[Any]]]:
    columns = ["trial", *table.space(), "gpu_hours", "spearman", "top_mean", "expected_pick"]
    rows = [
        [
            name,
            *recipe.values(),
            float(hours),
            float(score),
            top_mean(found, table.truth),
            expected_pick(found, table.truth),
        ]
        for name, recipe, hours, score, found in zip(
            table.names, table.recipes, table.hours, table.scores(), table.accuracies, strict=True
        )
    ]
    return columns, rows


def replay_figure(mip_hours: np.ndarray, random_hours: np.ndarray) -> Figure:
    """Which part of the searches has found a good recipe after so many GPU hours; dotted lines are the means.

    Args:
        mip_hours: (seeds,) GPU hours that MIP needed.
        random_hours: (seeds,) that measuring in random order needed.

    Example:
        >>> replay_figure(np.array([1.0, 3.0]), np.array([2.0, 9.0])).axes[0].get_xlabel()
        'GPU hours of trials'
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.4), layout="constrained")
    axis = figure.subplots()
    for label, hours, colour in (("MIP", mip_hours, "tab:blue"), ("random order", random_hours, "tab:orange")):
        known = np.sort(hours)
        axis.step(known, np.arange(1, len(known) + 1) / len(known), where="post", color=colour, label=label)
        axis.axvline(known.mean(), color=colour, linestyle=":", label=f"mean {known.mean():.0f} h")
    axis.set_xlabel("GPU hours of trials")
    axis.set_ylabel(f"searches within {WITHIN} of the best")
    axis.set_ylim(0, 1.02)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    return figure
