"""Whole runs of ASFD's search: what it leaves, stopped and resumed, many processes, predict, bad input."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback

from lit_methods import ASFD, ASFDSearch
from lit_methods.asfd.genotype import read_genotype
from tests.asfd_runs import (
    ALL_EPOCHS,
    EPOCHS,
    STEPS,
    at_step,
    chosen,
    equal_runs,
    every_step,
    fit,
    one_line,
    picture_of,
    predict,
    processes,
    resumed,
    words,
)
from tests.left_behind import last_checkpoint, metrics, read_rows, read_summary
from tests.two_processes import assert_equal_ranks

RESTING = 2  # batches, of four: 40 per cent and more
WEIGHT = "model.head.cls.weight"


class Moves(Callback):
    """Writes down the architecture and one of the weights as they are before the first batch and after each."""

    def __init__(self) -> None:
        self.kept: list[dict[str, torch.Tensor]] = []

    def _keep(self, module: ASFDSearch) -> None:
        state = module.state_dict()
        self.kept.append({name: state[name].clone() for name in state if "edge_parameters" in name or name == WEIGHT})

    def on_train_start(self, trainer, pl_module):
        self._keep(pl_module)

    def on_train_batch_end(self, trainer, pl_module, *args):
        self._keep(pl_module)

    def on_train_end(self, trainer, pl_module):
        torch.save(self.kept, Path(trainer.default_root_dir, "moves.pt"))


@pytest.fixture(scope="module")
def searched(wider_root, tmp_path_factory) -> Path:
    """A search without figures, what moved in each batch, and a checkpoint after every batch and every epoch."""
    folder = tmp_path_factory.mktemp("searched")
    more = [*ALL_EPOCHS, *every_step(folder / "steps"), "--trainer.callbacks+=tests.test_asfd_search_runs.Moves"]
    assert fit(words(wider_root, "asfd_search"), folder / "run", *more) == 0
    return folder


def batch_of(searched: Path, batch: int) -> Path:
    """The checkpoint after so many batches; the Trainer counts two steps for each that moves the architecture."""
    return at_step(searched, batch + max(0, batch - RESTING))


def test_the_architecture_rests_and_then_learns_while_the_weights_always_do(searched):
    found = torch.load(searched / "run" / "moves.pt", weights_only=True)
    names = found[0].keys() - {WEIGHT}
    assert names == {f"model.edge_parameters.{part}" for part in ("fpn", "cpm", "fpn_shares", "cpm_shares")}
    assert len(found) == 1 + STEPS * EPOCHS
    for number, (before, after) in enumerate(pairwise(found)):
        for name in names:
            assert torch.equal(before[name], after[name]) == (number < RESTING), name
        assert not torch.equal(before[WEIGHT], after[WEIGHT])
    rows = metrics(searched / "run")
    assert [bool(row["train/arch_loss"]) for row in rows if row["train/loss"]] == [False, False, True, True]


def test_a_search_leaves_a_genotype_that_a_detector_is_built_by(searched):
    path = searched / "run" / "genotype.json"
    found = read_genotype(path)
    state = last_checkpoint(searched / "run")
    kept = state["callbacks"]["AutoFEMSearch"]
    assert kept["genotype"] == json.loads(path.read_text()) == found.to_dict()
    rows = read_rows(searched / "run" / "tables" / "search_genotypes.csv")
    assert [row["epoch"] for row in rows] == ["0", "1"]
    assert rows[-1]["genotype"] == found.key()
    summary = read_summary(searched / "run")
    tested = ASFDSearch.load_from_checkpoint(chosen(searched / "run"), map_location="cpu", weights_only=True)
    assert summary["search/genotype"] == tested.genotype().key()
    assert ASFD(genotype=str(path), channels=8).hparams["genotype"] == found.to_dict()


@pytest.mark.slow
def test_what_a_search_found_is_trained(searched, wider_root, tmp_path):
    path = searched / "run" / "genotype.json"
    few = [word for stage in ("train", "val", "test") for word in (f"--trainer.limit_{stage}_batches", "1")]
    assert fit(words(wider_root, model__genotype=path, trainer__max_epochs=1), tmp_path / "run", *few) == 0
    assert last_checkpoint(tmp_path / "run")["hyper_parameters"]["genotype"] == read_genotype(path).to_dict()


@pytest.mark.parametrize(
    "batch",
    [
        pytest.param(1, id="while it rests", marks=pytest.mark.slow),
        pytest.param(3, id="while it learns", marks=pytest.mark.slow),
        pytest.param(2, id="between them", marks=pytest.mark.slow),
    ],
)
def test_a_resumed_search_is_bit_equal(searched, wider_root, batch, tmp_path):
    ends = batch == STEPS  # that one is written behind the validation, which is part of it
    (epoch,) = (searched / "run" / "checkpoints").glob("epoch=0-*.ckpt")
    path = epoch if ends else batch_of(searched, batch)
    run = resumed(searched, tmp_path, path, words(wider_root, "asfd_search"))
    equal_runs(run, searched / "run")
    for name in ("genotype.json", "tables/search_genotypes.csv"):
        assert (run / name).read_text() == (searched / "run" / name).read_text()
    ours, theirs = (last_checkpoint(each)["callbacks"]["AutoFEMSearch"] for each in (run, searched / "run"))
    assert ours == theirs


@pytest.mark.slow
def test_predict_asks_the_mixed_network(searched, wider_root, tmp_path):
    given = ["--input", picture_of(wider_root), "--min_score", 0]
    assert predict("asfd_search", chosen(searched / "run"), tmp_path / "out", *given) == 0
    assert len(read_rows(tmp_path / "out" / "predictions.csv")) > 0


@pytest.mark.slow
def test_processes_search_as_one(wider_root, tmp_path):
    """They stay equal while the architecture rests and when it learns, whatever faces each has."""
    many = processes(words(wider_root, "asfd_search"), [], tmp_path / "many", 2)
    assert_equal_ranks(many)
    assert all(value.isfinite().all() for value in many.weights.values())
    assert len(many.logged("train/arch_loss")) == 1
    last = many.ranks[1]["callbacks"]["AutoFEMSearch"]
    assert last["genotype"] == json.loads((many.path / "genotype.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "text"),
    [
        (["--trainer.callbacks", "callbacks.DetectionResults"], "AutoFEMSearch"),
        (["--data.split_halves", "false"], "set data.split_halves to true"),
        (["--trainer.gradient_clip_val", "1.0"], "gradient_clip"),
        (["--trainer.precision", "16-true"], "16-true"),
    ],
)
def test_one_line_says_what_a_search_lacks(wider_root, more, text, tmp_path, capsys):
    assert fit(words(wider_root, "asfd_search"), tmp_path / "run", *more) == 2
    assert text in one_line(capsys)
