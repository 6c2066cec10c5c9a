"""AutoFEMSearch: when the architecture learns, what is written, and what a resumed search goes on with."""

import json

import pytest
import torch
from lightning.pytorch import Callback

from callbacks import AutoFEMSearch
from callbacks.auto_fem_figures import auto_fem_figure, edge_weights_figure
from lit_methods import ASFDSearch
from lit_methods.asfd.genotype import read_genotype
from lit_methods.asfd.search import SearchNet
from tests.asfd_batches import asfd, loader, views
from tests.left_behind import read_rows

FEW = ["identity", "conv_1x1"]


class Alphas(Callback):
    """What the architecture is before each batch and at the end, and whether it learns."""

    def __init__(self):
        self.kept, self.learns = [], []

    def on_train_batch_start(self, trainer, pl_module, *args):
        self._keep(pl_module)

    def on_train_batch_end(self, trainer, pl_module, *args):
        self.learns.append(pl_module.learns_architecture)

    def on_train_end(self, trainer, pl_module):
        self._keep(pl_module)

    def _keep(self, module):
        self.kept.append([value.detach().clone() for value in module.model.arch_parameters()])

    def moved(self):
        return [
            {not torch.equal(new, old) for new, old in zip(after, before, strict=True)}
            for before, after in zip(self.kept, self.kept[1:], strict=False)
        ]


class Save(Callback):
    def __init__(self, path, batch):
        self.path, self.left = path, batch

    def on_train_batch_end(self, trainer, *args):
        self.left -= 1
        if self.left == 0:
            trainer.save_checkpoint(self.path)


@pytest.fixture
def search(quick_trainer, monkeypatch):
    """A search of batches that are given; its callbacks."""
    monkeypatch.setattr("lit_methods.asfd.module.ASFD.setup", lambda self, stage: None)  # no datamodule to ask

    def run(*more, warmup=0.4, epochs=2, batches=2, callback=None):
        found, alphas = callback or AutoFEMSearch(warmup), Alphas()
        trainer = quick_trainer(max_epochs=epochs, callbacks=[found, alphas, *more])
        module = ASFDSearch("d0", channels=4, fpn_ops=FEW, cpm_ops=FEW, warmup_steps=0)
        given = [{"weights": views(n, (1, 1)), "alphas": views(9 + n, (1, 1))} for n in range(batches)]
        trainer.fit(module, loader(*given))
        return module, found, alphas

    return run


def test_the_architecture_rests_for_its_part_of_the_fit_and_then_learns(search, tmp_path):
    module, found, alphas = search()  # 4 batches: the first two are 40 per cent and more
    assert alphas.learns == [False, False, True, True]
    assert alphas.moved() == [{False}, {False}, {True}, {True}]
    genotype = read_genotype(tmp_path / "genotype.json")
    assert genotype == module.genotype()
    assert found.state_dict()["genotype"] == json.loads((tmp_path / "genotype.json").read_text())
    rows = read_rows(tmp_path / "tables" / "search_genotypes.csv")
    assert [row["epoch"] for row in rows] == ["0", "1"]
    assert rows[1]["genotype"] == genotype.key()
    assert float(rows[1]["entropy"]) == pytest.approx(float(module.model.entropy().detach()))
    asfd(genotype=str(tmp_path / "genotype.json"))


@pytest.mark.parametrize(("warmup", "learns"), [(0.0, [True] * 4), (0.5, [False, False, True, True]), (0.76, None)])
def test_the_part_is_that_of_all_batches(warmup, learns):
    """As the hooks are called, without a fit."""
    from types import SimpleNamespace

    callback, module = AutoFEMSearch(warmup), SimpleNamespace(learns_architecture=None)
    found = []
    for batch in range(4):
        trainer = SimpleNamespace(current_epoch=batch // 2, num_training_batches=2, estimated_stepping_batches=4)
        callback.on_train_batch_start(trainer, module, None, batch % 2)
        found.append(module.learns_architecture)
    assert found == (learns or [False] * 4)


@pytest.mark.slow
def test_a_checkpoint_has_the_genotypes_so_far_and_the_present_one(search, tmp_path):
    """In the middle of the second epoch, as plain types."""
    _, found, _ = search(Save(tmp_path / "a.ckpt", 3), warmup=0.0)
    state = torch.load(tmp_path / "a.ckpt", weights_only=True)["callbacks"]["AutoFEMSearch"]
    assert state["history"] == found.history[:1]
    there = ASFDSearch.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    assert read_genotype(state["genotype"]) == there.genotype()
    again = AutoFEMSearch()
    again.load_state_dict(state)
    assert again.state_dict() == state


def test_an_epoch_that_is_gone_through_again_has_one_row(search):
    callback = AutoFEMSearch()
    callback.load_state_dict({"history": [[0, 0.0, "of the epoch that was broken off"]], "genotype": None})
    module, _, _ = search(callback=callback, batches=1, epochs=1)
    assert [(row[0], row[2]) for row in callback.history] == [(0, module.genotype().key())]


def test_other_modules_and_parts_are_refused(make_trainer):
    for part in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match=rf"warmup_fraction={part} must lie in \[0, 1\)"):
            AutoFEMSearch(part)
    with pytest.raises(ValueError, match="AutoFEMSearch is for ASFDSearch, not for ASFD"):
        make_trainer(max_epochs=1, callbacks=[AutoFEMSearch()]).fit(asfd(), loader(views()))


def test_a_module_rests_until_a_batch_says_otherwise():
    module = ASFDSearch("d0", channels=4, fpn_ops=FEW, cpm_ops=FEW)
    AutoFEMSearch(0.0).setup(None, module, "fit")
    assert module.learns_architecture is False


@pytest.mark.parametrize(
    ("shared", "partial"), [pytest.param(True, True, marks=pytest.mark.slow), (False, True), (True, False)]
)
def test_figures_show_every_edge_and_its_best_operation(shared, partial):
    """Also where edges have shares, and where each level has a context of its own."""
    net = SearchNet("d0", channels=4, shared_cpm=shared, partial=partial, cpm_ops=FEW)
    figure = edge_weights_figure(net.alphas())
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["fpn", "cpm"] if shared else titles == ["fpn", *(f"cpm of level {n}" for n in range(2, 8))]
    dots = figure.axes[-1].lines[0].get_xdata().tolist()
    weights = net.alphas()["cpm"]
    assert dots == (weights if shared else weights[-1]).argmax(1).tolist()
    first = figure.axes[0].get_yticklabels()[0].get_text()
    assert first == f"2->2  {float(net.alphas()['fpn_shares'][0]):.2f}" if partial else first == "2->2"


@pytest.mark.slow
@pytest.mark.parametrize("shared", [True, False])
def test_figures_are_written(shared, tmp_path):
    net = SearchNet("d0", channels=4, shared_cpm=shared, partial=True)
    drawn = auto_fem_figure(net.genotype(), "found")
    assert drawn.get_suptitle() == "found"
    for number, figure in enumerate((drawn, edge_weights_figure(net.alphas()))):
        figure.savefig(tmp_path / f"{number}.png", dpi=20)
        assert (tmp_path / f"{number}.png").stat().st_size > 1000
