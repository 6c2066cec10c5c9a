"""FilterSketchPruning inside a fit; and targets, which it shares with HRankPruning."""

import csv
import re
import sys

import numpy as np
import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.nn import functional as F
from torch.testing import assert_close
from torch.utils.data import DataLoader, default_collate

from callbacks import FilterSketchPruning, HRankPruning
from callbacks.report import RunReport
from datamodules import CIFARDataModule
from datamodules.cifar import read_digits
from lit_methods import FilterSketch, HRank
from lit_methods.backbones import WidthPlan, build_backbone, resnet20
from lit_methods.filter_sketch.model import Sketcher, sketch_model, sketch_to_plan
from lit_methods.functional import count_macs
from tests.tiny import DEEP

SMALL = {"limit_train_batches": 2, "limit_val_batches": 1, "limit_test_batches": 1, "num_sanity_val_steps": 0}
INNER = {"body.conv1": 16, "body.conv3": 8, "body.conv5": 24}  # of tiny_deep


def digits():
    return CIFARDataModule("digits", batch_size=16, num_workers=0)


def module_of(arch="tiny", kind=FilterSketch, warm=False, **kwargs):
    data = digits()
    module = kind(arch, num_classes=10, mean=data.mean, std=data.std, **{"lr": 0.05} | kwargs)
    if warm:
        module.model(torch.rand(8, 3, 32, 32))  # batch norms that have seen something: a trained network
    return module


def fit(make_trainer, callback, module=None, epochs=2, **kwargs):
    module, data = module or module_of(), digits()
    trainer = make_trainer(max_epochs=epochs, callbacks=[callback], **SMALL | kwargs)
    trainer.fit(module, datamodule=data)
    return trainer, module


def prune_at_once(make_trainer, callback, arch="tiny_deep", kind=FilterSketch):
    return fit(make_trainer, callback, module_of(arch, kind, warm=True), epochs=1, limit_train_batches=1)[1]


class Noting(FilterSketchPruning):
    """Keeps the network as it is right after surgery."""

    def shrink(self, trainer, module, plan):
        network = super().shrink(trainer, module, plan)
        self.weights = {key: value.clone() for key, value in network.state_dict().items()}
        return network


# -- in a fit -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{}, {"normalize": None, "tail": "drop", "channel_layout": "official"}], ids=["defaults", "official"]
)
def test_prunes_in_the_middle_what_the_weights_are_then(make_trainer, tmp_path, options):
    widths = []

    class Watched(FilterSketch):
        def on_train_batch_start(self, batch, batch_idx):
            widths.append((self.current_epoch, self.model.body.conv2.out_channels))

    callback = Noting(rates=0.5, at_epoch=1, **options)
    module = module_of(kind=Watched, finetune_lr=0.01)
    fit(make_trainer, callback, module, epochs=3)
    assert [width for _, width in widths] == [12] * 2 + [6] * 4
    assert module.hparams["plan"] == {"arch": "tiny", "mid": {"body.conv1": 4, "body.conv2": 6}}
    assert module.hparams["start_epoch"] == 1
    assert module.trainer.optimizers[0].param_groups[0]["lr"] == 0.01
    trained = {id(p) for group in module.trainer.optimizers[0].param_groups for p in group["params"]}
    assert trained == {id(p) for p in module.model.parameters()}
    dense = FilterSketch.load_from_checkpoint(tmp_path / "dense.ckpt", weights_only=True).model
    expected = sketch_to_plan(dense, WidthPlan.from_dict(module.hparams["plan"]), Sketcher(**options))
    assert_close(callback.weights, dict(expected.state_dict()), rtol=0, atol=0)
    for name, parameter in module.model.named_parameters():
        assert not torch.equal(parameter, callback.weights[name]), f"{name} was not trained"


def test_at_epoch_zero_prunes_before_the_first_batch(make_trainer):
    started = []

    class Watched(FilterSketchPruning):
        def on_train_start(self, trainer, pl_module):
            started.append(pl_module.model.body.conv1.out_channels)

    callback, module = Watched(rates="[0.25]"), module_of(warm=True)
    trainer, _ = fit(make_trainer, callback, module, epochs=1)
    assert started == [2]
    summary = callback.summary()
    assert summary["prune/macs"] == count_macs(module.model) < summary["prune/dense_macs"]
    assert summary["prune/dense_macs"] == count_macs(build_backbone("tiny"))
    assert summary["prune/params"] == sum(p.numel() for p in module.model.parameters())
    assert summary["rates"] == "[0.25]"
    result = trainer.test(module, datamodule=digits(), verbose=False)[0]
    assert {"test/top1", "test/dense_top1"} <= result.keys()


def test_checkpoints_bring_the_narrow_network_back_and_nothing_is_pruned_twice(make_trainer, tmp_path, monkeypatch):
    first = FilterSketchPruning(rates=0.5, at_epoch=1)
    trainer, module = fit(make_trainer, first)
    trainer.save_checkpoint(tmp_path / "pruned.ckpt")
    content = torch.load(tmp_path / "pruned.ckpt", weights_only=True)
    assert content["hyper_parameters"]["plan"] == {"arch": "tiny", "mid": {"body.conv1": 4, "body.conv2": 6}}
    (state,) = (state for key, state in content["callbacks"].items() if key.startswith("FilterSketchPruning"))
    assert (state["stages_done"], state["settled"]) == (1, [0.5])

    loaded = FilterSketch.load_from_checkpoint(tmp_path / "pruned.ckpt", weights_only=True)
    assert_close(dict(loaded.state_dict()), dict(module.state_dict()), rtol=0, atol=0)

    monkeypatch.setattr(FilterSketchPruning, "decide", None)
    for at_epoch in (0, 1):
        again, resumed = FilterSketchPruning(rates=0.5, at_epoch=at_epoch), module_of()
        trainer = make_trainer(max_epochs=3, callbacks=[again], **SMALL)
        trainer.fit(resumed, datamodule=digits(), ckpt_path=tmp_path / "pruned.ckpt", weights_only=True)
        assert trainer.global_step == 6
        assert resumed.model.body.conv2.weight.shape == (6, 4, 3, 3)
    assert again.summary() == first.summary()


def test_shows_what_was_done(make_trainer, tmp_path):
    callback = FilterSketchPruning(rates="[0.5]*3")
    prune_at_once(make_trainer, callback)
    assert {p.name for p in (tmp_path / "pictures").iterdir()} == {"prune_kept_filters.png", "prune_sketch_errors.png"}
    rows = list(csv.DictReader((tmp_path / "tables" / "prune_sketches.csv").open()))
    assert [(row["layer"], row["dim"], row["n"], row["l"]) for row in rows] == [
        (f"body.conv{i + dim}", str(dim), str(DEEP[i - 1]), str(DEEP[i - 1] // 2)) for i in (1, 3, 5) for dim in (0, 1)
    ]
    errors = [float(row["covariance_error"]) for row in rows]
    assert all(0 < error < 1 for error in errors)
    assert all(int(row["rows_used"]) == int(row["n"]) for row in rows)  # tail="fill"
    summary = callback.summary()
    assert summary["prune/covariance_error_mean"] == pytest.approx(np.mean(errors))
    assert summary["prune/covariance_error_max"] == pytest.approx(max(errors))


def test_the_summary_has_the_keys_that_hranks_has(make_trainer):
    keys = []
    for callback, kind in (
        (FilterSketchPruning(rates=0.5), FilterSketch), (HRankPruning(rates=0.5, num_images=16), HRank),
    ):  # fmt: skip
        prune_at_once(make_trainer, callback, "tiny", kind)
        keys.append(set(callback.summary()))
    assert keys[0] - keys[1] == {"prune/covariance_error_mean", "prune/covariance_error_max"}
    assert {key for key in keys[1] - keys[0] if not re.search("_counter|rank_std", key)} == set()


def test_whole_blocks_at_rate_one(make_trainer, tmp_path):
    callback = FilterSketchPruning(rates=1.0, normalize=None)
    module = prune_at_once(make_trainer, callback)
    assert module.hparams["plan"] == {"arch": "tiny_deep", "mid": {}}
    summary = callback.summary()
    assert summary["prune/macs"] == summary["prune/dense_macs"]
    assert summary["prune/val_top1_after"] == summary["prune/val_top1_before"]
    assert not [key for key in summary if "covariance" in key]


@pytest.mark.parametrize("at_epoch", [0, 1])
def test_needs_no_datamodule(make_trainer, at_epoch):
    samples = [{"image": torch.rand(3, 32, 32), "label": i % 10} for i in range(16)]
    loader = DataLoader(samples, batch_size=8, collate_fn=default_collate)
    callback, module = FilterSketchPruning(rates=0.5, at_epoch=at_epoch), module_of(warm=True)
    trainer = make_trainer(max_epochs=2, callbacks=[callback], **SMALL)
    trainer.fit(module, loader, loader)
    assert module.model.body.conv1.out_channels == 4
    assert "prune/covariance_error_mean" in callback.summary()
    assert not [key for key in callback.summary() if "val" in key]
    assert "test/dense_top1" in trainer.test(module, loader, verbose=False)[0]


def test_half_precision_weights(make_trainer):
    callback = FilterSketchPruning(rates=0.5, at_epoch=1)
    _, module = fit(make_trainer, callback, precision="bf16-true")
    assert {p.dtype for p in module.model.parameters()} == {torch.bfloat16}
    assert 0 < callback.summary()["prune/covariance_error_max"] < 1


# -- mistakes -------------------------------------------------------------------------------------------------------

BOTH = [
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
]
SKETCH = [
    ({"rates": 0.0}, r"rates=0\.0: 0\.0 is outside \(0, 1\]; a rate is the fraction that is kept"),
    ({"rates": "[0.5]+[1.5]"}, r"1\.5 is outside"),
    ({"rates": [0.5, -0.1]}, r"-0\.1 is outside"),
    ({"rates": 0.5, "normalize": "l1"}, "normalize='l1' must be one of 'l2', None"),
    ({"rates": 0.5, "tail": "keep"}, "tail='keep' must be one of 'fill', 'drop', 'zero'"),
    ({"rates": 0.5, "channel_layout": "rows"}, "channel_layout='rows' must be one of 'channels', 'official'"),
]
HRANK = [({"target_macs": 0.5, "mode": "layerwise"}, "target_macs=0.5 with mode='layerwise'")]


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        (kind, *row)
        for kind, rows in ((FilterSketchPruning, BOTH + SKETCH), (HRankPruning, BOTH + HRANK))
        for row in rows
    ],
)
def test_arguments(kind, arguments, message):
    with pytest.raises(ValueError, match=message):
        kind(**arguments)


@pytest.mark.parametrize(
    ("arch", "arguments", "message"),
    [
        ("tiny_deep", {"rates": "[0.5]*2"}, r"rates='\[0\.5\]\*2': tiny_deep takes 3 rates, got 2"),
        ("tiny", {"rates": 0.1}, r"rates=0\.1: rate=0\.1 keeps none of 8 channels; .*0\.125"),
        ("vgg16_bn_cifar", {"rates": 0.5}, "vgg16_bn_cifar has no table of blocks"),
        ("vgg16_bn_cifar", {"target_macs": 0.5}, "vgg16_bn_cifar has no table of blocks"),
    ],
)
def test_networks_and_rates_that_do_not_fit_are_refused_before_training(make_trainer, arch, arguments, message):
    with pytest.raises(ValueError, match=message):
        fit(make_trainer, FilterSketchPruning(at_epoch=5, **arguments), Untrainable(arch))


class Untrainable(FilterSketch):
    def training_step(self, batch, batch_idx):
        raise AssertionError("training has started")


def test_modules_that_cannot_be_pruned(make_trainer, monkeypatch):
    with pytest.raises(ValueError, match=r"no trained weights: give model\.base_checkpoint"):
        fit(make_trainer, FilterSketchPruning(rates=0.5))
    narrow = module_of(plan={"arch": "tiny", "mid": {"body.conv1": 4}})
    with pytest.raises(ValueError, match="pruned already"):
        fit(make_trainer, FilterSketchPruning(rates=0.5, at_epoch=1), narrow)
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    own = FilterSketch(build_backbone("tiny"), num_classes=10)
    with pytest.raises(ValueError, match=r"BACKBONES\['my_net'\]"):
        fit(make_trainer, FilterSketchPruning(rates=0.5, at_epoch=1), own)


@pytest.mark.parametrize("arguments", [{"rates": 0.5}, {"target_macs": 0.5}], ids=str)
def test_a_network_that_diverged_is_not_pruned(make_trainer, arguments):
    with pytest.raises(MisconfigurationException, match=r"before epoch 1: training has diverged; lower model\.lr"):
        fit(make_trainer, FilterSketchPruning(at_epoch=1, **arguments), module_of(lr=1e30))


@pytest.mark.parametrize("arguments", [{"rates": 0.5}, {"target_macs": 0.5, "allocation": "global"}], ids=str)
def test_weights_that_hold_nan_from_the_start(make_trainer, arguments):
    module = module_of(warm=True)
    with torch.no_grad():
        module.model.body.conv2.weight[3] = float("nan")
    with pytest.raises((ValueError, MisconfigurationException), match="NaN or infinity"):
        fit(make_trainer, FilterSketchPruning(**arguments), module)


# -- targets --------------------------------------------------------------------------------------------------------


def kept_cost(counts, params):
    """By hand: a chain of 3x3 convolutions of stride 2 with batch norm, then ten classes."""
    streams, pixels = [3, *counts], [256, 64, 16, 4, 1, 1]
    weights = [9 * a * b for a, b in zip(streams, counts, strict=False)]
    if params:
        return sum(weights) + 2 * sum(counts) + 10 * counts[-1] + 10
    return sum(w * p for w, p in zip(weights, pixels, strict=True)) + 10 * counts[-1]


def sketched_cost(widths, params):
    counts = list(DEEP)
    counts[::2] = widths
    return kept_cost(counts, params)


def fewest(width, n):
    """Filters that a layer of ``n`` keeps at least where allocation is global: nine tenths may go."""
    return max(1, width(n, 0.9))


COSTS = {  # widths that can change, their number at a removed fraction, what a network of such widths costs
    FilterSketchPruning: (INNER.values(), lambda n, gone: int(round(1 - gone, 4) * n), sketched_cost, FilterSketch),
    HRankPruning: (DEEP, lambda n, gone: n - int(gone * n), kept_cost, HRank),
}


def widths_of(module):
    """Filters of the convolutions that can lose some."""
    convs = INNER if module.hparams["plan"].get("mid") is not None else [f"body.conv{i}" for i in range(1, 7)]
    return [len(module.model.get_parameter(f"{conv}.weight")) for conv in convs]


def pruner(kind, **arguments):
    return kind(**arguments, **({"num_images": 16} if kind is HRankPruning else {}))


@pytest.fixture
def quick_trainer(make_trainer, monkeypatch):
    """Draws no pictures, which take most of the time where little is trained."""
    monkeypatch.setattr(RunReport, "figure", lambda *_: None)
    return make_trainer


def named(value):
    return getattr(value, "__name__", str(value))


KINDS = pytest.mark.parametrize("kind", COSTS, ids=named)


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        (FilterSketchPruning, {"target_macs": 0.5}),
        (FilterSketchPruning, {"target_macs": 0.95, "keep_ends": True}),
        (FilterSketchPruning, {"target_params": 0.95, "round_to": 4, "keep_ends": True}),
        (FilterSketchPruning, {"target_macs": 0.6, "round_to": 8}),
        (HRankPruning, {"target_macs": 0.5}),
        (HRankPruning, {"target_params": 0.5, "round_to": 8, "keep_ends": True}),
    ],
    ids=named,
)
def test_uniform_targets_are_met_by_the_largest_network_there_is(quick_trainer, capsys, kind, arguments):
    callback = pruner(kind, **arguments)
    module = prune_at_once(quick_trainer, callback, kind=COSTS[kind][3])
    full, width, cost, _ = COSTS[kind]
    params, step = "target_params" in arguments, arguments.get("round_to", 1)

    def network(removed):
        ends = (0, len(full) - 1) if arguments.get("keep_ends") else ()
        kept = [n if i in ends else width(n, removed) for i, n in enumerate(full)]
        return [min(n, -(-k // step) * step) for k, n in zip(kept, full, strict=True)]

    limit = cost(list(full), params) * (arguments.get("target_params") or arguments["target_macs"])
    grid = (i / 10_000 for i in range(1, 10_000))
    expected = next(
        network(removed) for removed in grid if cost(network(removed), params) <= limit
    )  # one after another
    assert widths_of(module) == expected
    assert callback.summary()["prune/params" if params else "prune/macs"] == cost(expected, params)

    rates = callback.summary()["rates"]
    rounding = f", round_to={step}" if step > 1 else ""
    said = [line for line in capsys.readouterr().out.splitlines() if "is met by" in line]
    assert said == [
        f'{callback.budget.name}={callback.budget.target:g} is met by {kind.__name__}(rates="{rates}"{rounding})'
    ]
    assert callback.state_dict()["settled"] == callback.settled
    if arguments.get("keep_ends"):
        assert {callback.settled[0], callback.settled[-1]} == {1.0 if kind is FilterSketchPruning else 0.0}


@KINDS
def test_found_rates_give_the_same_plan_again(quick_trainer, kind):
    found = pruner(kind, target_macs=0.4, allocation="global", round_to=4)
    torch.manual_seed(1)
    module = prune_at_once(quick_trainer, found, kind=COSTS[kind][3])
    torch.manual_seed(1)
    given = pruner(kind, rates=found.summary()["rates"], round_to=4)
    again = prune_at_once(quick_trainer, given, kind=COSTS[kind][3])
    assert again.hparams["plan"] == module.hparams["plan"]
    assert given.settled == found.settled
    assert given.summary()["prune/macs"] <= 0.4 * given.summary()["prune/dense_macs"]


@pytest.mark.parametrize("target", [0.4, 0.15])
def test_sketch_globally_takes_the_weakest_directions_of_all_layers(quick_trainer, target):
    callback, module = FilterSketchPruning(target_macs=target, allocation="global"), module_of("tiny_deep", warm=True)
    tails = []
    for conv in INNER:
        energy = (
            np.linalg.svd(module.model.get_parameter(f"{conv}.weight").detach().flatten(1).double().numpy())[1] ** 2
        )
        missed = [energy[rank:].sum() / energy.sum() for rank in range(INNER[conv])]
        tails += [(value, conv) for value in missed if value > 1e-12]
    fit(quick_trainer, callback, module, epochs=1, limit_train_batches=1)
    widths, width = dict(INNER), COSTS[FilterSketchPruning][1]
    for _, conv in sorted(tails):
        if sketched_cost(widths.values(), False) <= target * sketched_cost(INNER.values(), False):
            break
        widths[conv] = max(fewest(width, INNER[conv]), widths[conv] - 1)
    assert widths_of(module) == list(widths.values())


def test_hrank_globally_takes_the_lowest_relative_ranks(quick_trainer):
    target = 0.2
    callback = HRankPruning(target_params=target, allocation="global", num_images=16)
    module = prune_at_once(quick_trainer, callback, kind=HRank)
    ranks = sorted(
        (score.item(), place)
        for place, scores in enumerate(callback.scores.values())
        for score in scores / scores.max()
    )
    counts, width = list(DEEP), COSTS[HRankPruning][1]
    for _, place in ranks:
        if kept_cost(counts, True) <= target * kept_cost(DEEP, True):
            break
        counts[place] = max(fewest(width, DEEP[place]), counts[place] - 1)
    assert widths_of(module) == counts


@KINDS
@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_targets_beyond_reach_are_refused_before_training(quick_trainer, kind, allocation):
    full, width, cost, module = COSTS[kind]
    least = [1 if allocation == "uniform" else fewest(width, n) for n in full]
    smallest, dense = cost(least, False), cost(list(full), False)

    class Never(module):
        def training_step(self, batch, batch_idx):
            raise AssertionError("training has started")

    callback = pruner(kind, target_macs=1e-4, allocation=allocation, at_epoch=1)
    message = (
        f"target_macs=0.0001 cannot be met: the smallest network that this pruner makes has {smallest:,} of {dense:,}"
    )
    with pytest.raises(ValueError, match=message):
        fit(quick_trainer, callback, module_of("tiny_deep", Never))


def test_targets_as_numbers(quick_trainer):
    limit = sketched_cost([8, 4, 12], params=True)
    callback = FilterSketchPruning(target_params=limit)
    assert widths_of(prune_at_once(quick_trainer, callback)) == [8, 4, 12]
    nothing = FilterSketchPruning(target_macs=10**9)
    assert prune_at_once(quick_trainer, nothing).hparams["plan"]["mid"] == {}


# -- does it help? --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_sketched_weights_are_a_better_start_than_none():
    """Few steps of fine-tuning at the paper's rate beat the same narrow network from scratch, whatever its rate."""
    pixels, targets = read_digits(train=True)
    image, label = pixels[:, :, ::2, ::2].float() / 255, torch.from_numpy(targets)

    def train(network, steps, lr):
        optimizer, losses = torch.optim.SGD(network.train().parameters(), lr=lr, momentum=0.9), []
        for step in range(steps):
            batch = torch.randperm(len(label), generator=torch.Generator().manual_seed(step))[:64]
            loss = F.cross_entropy(network(image[batch]), label[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    full = resnet20()
    assert np.mean(train(full, 80, 0.1)[-5:]) < 0.1
    sketched = train(sketch_model(full, [0.5] * 9), 15, 0.01)
    assert np.mean(sketched[-5:]) < 0.25 * sketched[0]
    for lr in (0.01, 0.05):
        fresh = train(resnet20(mid_channels=[8] * 3 + [16] * 3 + [32] * 3), 15, lr)
        assert np.mean(sketched[-5:]) < 0.5 * np.mean(fresh[-5:])
