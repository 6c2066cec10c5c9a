"""What both pruners share: arguments, what is refused before training, and when a run was too short."""

import re
import sys
import warnings

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from callbacks import FilterSketchPruning, HRankPruning
from callbacks.pruning_figures import rank_histograms_figure
from lit_methods import HRank
from lit_methods.backbones import build_backbone
from lit_methods.backbones.weights import untrained
from tests.pruning_fits import SMALL, STEPS, Untrainable, digits, fit, kind_of, module_of

KINDS = pytest.mark.parametrize("kind", [FilterSketchPruning, HRankPruning])
RATES, TARGET = {"rates": 0.5}, {"target_macs": 0.5}
GLOBAL = TARGET | {"allocation": "global"}


@KINDS
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, r"rates=None, target_macs=None, target_params=None: give exactly one"),
        ({"rates": 0.5, "target_macs": 0.5}, r"rates=0\.5, target_macs=0\.5.*give exactly one"),
        ({"target_macs": 0.5, "target_params": 0.5}, "target_macs=0.5, target_params=0.5: give exactly one"),
        ({"target_macs": 0.0}, r"target_macs=0\.0 must be positive"),
        ({"target_params": -3}, "target_params=-3 must be positive"),
        ({"target_macs": float("nan")}, "target_macs=nan must be positive"),
        ({"target_macs": 0.5, "allocation": "even"}, "allocation='even' must be 'uniform' or 'global'"),
        ({"rates": 0.5, "allocation": "global"}, "allocation='global'.*target"),
        ({"rates": 0.5, "keep_ends": True}, "keep_ends=True.*target"),
        ({"rates": 0.5, "round_to": 0}, "round_to=0 must be a whole number of at least 1"),
        ({"rates": 0.5, "at_epoch": -1}, "at_epoch=-1 must not be negative"),
        ({"rates": "[0.5]+0.5"}, r"cannot read the term '0\.5'"),
        ({"rates": float("nan")}, "rates=nan"),
        ({"rates": []}, r"rates=\[\] must be a number"),
        ({"rates": [[0.5]]}, r"rates=\[\[0\.5\]\] must be a number"),
        ({"rates": [0.5, "a"]}, r"must be a number, a list of numbers, or text"),
        ({"rates": 0.5, "round_to": 2.5}, r"round_to=2\.5 must be a whole number"),
        ({"target_macs": True}, "target_macs=True must be positive"),
    ],
)
def test_arguments(kind, arguments, message):
    with pytest.raises(ValueError, match=message):
        kind(**arguments)


@KINDS
def test_modules_that_cannot_be_pruned(quick_trainer, monkeypatch, kind):
    with pytest.raises(ValueError, match=r"no trained weights: give model\.base_checkpoint"):
        fit(quick_trainer, kind(rates=0.5))
    later = kind(rates=0.5, at_epoch=1)
    method = kind_of(later)

    class Never(Untrainable, method):
        pass

    keep, mid = ({"arch": "tiny", key: {"body.conv1": value}} for key, value in (("keep", [0, 1]), ("mid", 4)))
    for plan in (keep, mid):
        with pytest.raises(ValueError, match="pruned already"):
            fit(quick_trainer, later, module_of(Never, plan=plan))
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    message = r"pip install 'lit-methods\[prune\]'; or add a table: BACKBONES\['my_net'\]"
    with pytest.raises(ValueError, match=message):
        fit(quick_trainer, later, Never(build_backbone("tiny"), num_classes=10))


@pytest.mark.parametrize(
    ("kind", "arguments"), [(FilterSketchPruning, RATES), (FilterSketchPruning, TARGET), (HRankPruning, RATES)]
)
def test_a_network_that_diverged_is_not_pruned(quick_trainer, kind, arguments):
    callback = kind(at_epoch=1, **arguments)
    with pytest.raises(MisconfigurationException, match=r"before epoch 1: training has diverged; lower model\.lr"):
        fit(quick_trainer, callback, module_of(kind_of(callback), lr=1e30))


@KINDS
@pytest.mark.parametrize("arguments", [RATES, GLOBAL], ids=str)
def test_weights_that_hold_nan_from_the_start(quick_trainer, kind, arguments):
    callback = kind(**arguments)
    module = module_of(kind_of(callback), warm=True)
    with torch.no_grad():
        module.model.body.conv2.weight[3] = float("nan")
    with pytest.raises(MisconfigurationException, match="NaN or infinity"):
        fit(quick_trainer, callback, module)


def warnings_of(said) -> list[str]:
    return [str(warning.message) for warning in said if "prunings done" in str(warning.message)]


@KINDS
def test_a_run_that_is_too_short_is_told_so_before_it_trains_and_not_again(quick_trainer, kind):
    callback = kind(rates=0.5, at_epoch=7)
    told_at_start = []

    class Notes(Callback):
        def on_train_start(self, trainer, pl_module):
            told_at_start.extend(warnings_of(said))

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        fit(quick_trainer, callback, epochs=1, extra=[Notes()])
    (line,) = warnings_of(said)
    assert told_at_start == [line]
    assert line == (
        f"{kind.__name__}(at_epoch=7): with trainer.max_epochs=1 the run will have ended after 1 epochs with 0 of 1 "
        "prunings done; raise it above 7, or lower at_epoch"
    )
    assert callback.summary() == {}


def test_a_run_that_ends_early_for_another_reason_is_told_at_its_end(quick_trainer):
    with pytest.warns(UserWarning, match=r"the run ended after 1 epochs with 0 of 1 prunings done"):
        fit(quick_trainer, HRankPruning(rates=0.5, at_epoch=7), epochs=9, max_steps=STEPS)


def test_a_resumed_run_is_told_of_what_is_still_due(quick_trainer, tmp_path):
    def told(epochs: int, at_epoch: int = 1, **options) -> list[str]:
        callback = HRankPruning(rates=0.5, at_epoch=at_epoch, mode="layerwise", epochs_per_layer=1, num_images=16)
        assert len(callback.stage_epochs("tiny")) == 3
        trainer = quick_trainer(max_epochs=epochs, callbacks=[callback], **SMALL)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            trainer.fit(module_of(HRank), datamodule=digits(), **options)
        trainer.save_checkpoint(tmp_path / "last.ckpt")
        return [re.findall(r"\d of 3 prunings done; raise it above 3", line)[0] for line in warnings_of(said)]

    resumed = {"ckpt_path": tmp_path / "last.ckpt", "weights_only": True}
    assert told(2) == ["1 of 3 prunings done; raise it above 3"]
    assert told(3, **resumed) == ["2 of 3 prunings done; raise it above 3"]
    assert told(4, **resumed) == []
    assert told(5, at_epoch=7, **resumed) == []  # all is done: nothing is due any more


def test_filters_are_counted_in_whole_numbers():
    scores = {"conv": np.array([1.0, 5.0])}  # bars of one: of its own accord matplotlib writes 0.2, 0.4, ...
    (axes,) = rank_histograms_figure(scores, {"conv": [1]}).axes
    assert all(tick == round(tick) for tick in axes.get_yticks())


def test_untrained_sees_only_fresh_batch_norms():
    net = build_backbone("tiny", 10)
    assert untrained(net)
    net(torch.rand(4, 3, 32, 32))
    assert not untrained(net)
    assert not untrained(build_backbone("tiny_nobn", 10))  # nothing to tell by
    assert untrained(torch.nn.SyncBatchNorm.convert_sync_batchnorm(build_backbone("tiny", 10)))
