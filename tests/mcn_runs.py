"""What whole runs of MCN are made with in tests, and how two of them are compared."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from datamodules.demo import write_refcoco
from tests import whole_runs
from tests.left_behind import read_summary

EPOCHS, STEPS = 2, 2  # of a run, and of an epoch: nine refs
SENTENCES, PICTURES = 17, 3  # of a test, both odd
SMALL = {
    **whole_runs.SHORT,
    "model.hidden": 32,
    "model.dim": 16,
    "model.word_dim": 8,
    "data.size": 64,
    "data.batch_size": 5,
    "data.eval_batch_size": 2,
    "trainer.max_epochs": EPOCHS,
}
SETS = {  # the tiny ones: pictures of each split
    ("refcoco", "unc"): {"train": 4, "val": 2, "testA": PICTURES, "testB": 1},
    ("refcoco+", "unc"): {"train": 4, "val": 2, "testA": 2, "testB": 1},
    ("refcocog", "umd"): {"train": 4, "val": 2, "test": 2},
}


def write_refer_sets(root: Path) -> Path:
    """The three data sets in one folder, as their readers have them; they share pictures, as the real ones do.

    Args:
        root: gets them.
    """
    for (dataset, split_by), images in SETS.items():
        write_refcoco(root, dataset, split_by, images=images, size=(64, 48), objects=(3, 3))
    return root


def words(root: Path, recipe: str = "mcn", **more: Any) -> list[str]:
    """What makes the recipe small; ``__`` stands for a dot."""
    return whole_runs.recipe_words(recipe, SMALL | {"data.root": root}, **more)


FIGURES = ("acc50", "miou", "oiou", *(f"prec@{x / 100:.2f}" for x in range(50, 100, 5)), "ie")


def figures_of(source: Path | Mapping[str, Any]) -> dict[str, float]:
    """Those of the test, from a run's directory or its summary."""
    summary = read_summary(source) if isinstance(source, Path) else source
    return {name: summary[f"test/{name}"] for name in FIGURES}


chosen = partial(whole_runs.chosen, figure="acc50")
equal_runs = partial(whole_runs.equal_runs, figure="acc50")
resumed = partial(whole_runs.resumed, left="tables/test_grounding.csv")
predict = partial(whole_runs.predict, "mcn")
