"""What whole runs of ASFD and of its search are made with in tests, and how two of them are compared."""

import json
from functools import partial
from pathlib import Path
from typing import Any

from tests import whole_runs
from tests.asfd_batches import SIMPLE
from tests.left_behind import read_summary
from tests.whole_runs import ALL_EPOCHS, CPU, at_step, every_step, fit, one_line, predict, processes, test  # noqa: F401

EPOCHS, STEPS = 2, 2  # of a run, and of an epoch: four pictures, of which one may have no face
SMALL = {
    **whole_runs.SHORT,
    "model.channels": 8,
    "data.image_size": 128,
    "data.batch_size": 2,
    "data.eval_batch_size": 2,
    "data.val_images": 2,
    "data.keep_faceless": True,
    "trainer.max_epochs": EPOCHS,
}
FEW = '["identity", "conv_1x1"]'
SEARCH = {  # a view in each half
    "model.partial": True,
    "model.fpn_ops": FEW,
    "model.cpm_ops": FEW,
    "data.image_size": 160,
    "data.batch_size": 1,
}


def words(root: Path, recipe: str = "asfd", **more: Any) -> list[str]:
    """What makes the recipe small; ``__`` stands for a dot."""
    own = SEARCH if recipe == "asfd_search" else {"model.genotype": json.dumps(SIMPLE)}
    return whole_runs.recipe_words(recipe, SMALL | own | {"data.root": root}, **more)


def figures_of(run: Path) -> dict[str, float]:
    return {key: value for key, value in read_summary(run).items() if key.startswith("test/") and key[5] in "ad"}


chosen = partial(whole_runs.chosen, figure="ap_all")
equal_runs = partial(whole_runs.equal_runs, figure="ap_all")


def resumed(whole: Path, folder: Path, checkpoint: Path, words: list[str]) -> Path:
    """The run as it goes on after a step."""
    left = "genotype.json" if words[0] == "asfd_search" else "tables/test_events.csv"
    return whole_runs.resumed(whole, folder, checkpoint, words, left=left)


def picture_of(root: Path) -> Path:
    """A test picture with faces."""
    (path,) = root.glob("WIDER_val/images/0--Parade/*.jpg")
    return path
