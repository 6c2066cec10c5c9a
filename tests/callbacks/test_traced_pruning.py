"""Both pruners on a network that has no table and was given as an object."""

import sys

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from callbacks import FilterSketchPruning, HRankPruning
from lit_methods import FilterSketch, HRank
from lit_methods.backbones import TracedPlan, read_plan
from lit_methods.backbones.traced import channel_groups
from lit_methods.backbones.weights import load_weights
from lit_methods.filter_sketch.functional import sketch_conv_weight
from lit_methods.filter_sketch.model import Sketcher
from lit_methods.filter_sketch.structure import TracedStructure
from lit_methods.hrank.functional import rank_scores
from tests.pruning_fits import SMALL, digits, fit

SIZE = (3, 32, 32)


class Inverted(nn.Module):
    """Expand, filter by channel, project, around a shortcut: MobileNet's block."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.expand, self.bn1, self.act1 = (
            nn.Conv2d(width, inner, 1, bias=False),
            nn.BatchNorm2d(inner),
            nn.PReLU(inner),
        )
        self.depthwise = nn.Conv2d(inner, inner, 3, padding=1, groups=inner, bias=False)
        self.bn2, self.act2 = nn.BatchNorm2d(inner), nn.ReLU()
        self.project, self.bn3 = nn.Conv2d(inner, width, 1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x):
        x = x + self.bn3(self.project(self.act2(self.bn2(self.depthwise(self.act1(self.bn1(self.expand(x))))))))
        return x


class Stranger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn, self.act = nn.Conv2d(3, 8, 3, stride=4, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()
        self.block = Inverted(8, 24)
        self.fc = nn.Linear(8, 10)

    def forward(self, x):
        return self.fc(self.block(self.act(self.bn(self.stem(x)))).mean((2, 3)))


def warm() -> Stranger:
    torch.manual_seed(1)
    network = Stranger()
    network(torch.rand(8, *SIZE))
    nn.init.constant_(network.block.act1.weight, 0.9)
    return network.eval()


def test_what_is_sketched_and_what_is_cut():
    network = warm()
    structure = TracedStructure(network, SIZE)
    assert structure.blocks == [["block.expand"]]  # the stream of 8 is written by two convolutions
    plan = structure.plan([0.5])
    small = structure.sketch(network, plan, Sketcher())
    old, new = network.block, small.block
    assert_close(new.expand.weight, sketch_conv_weight(old.expand.weight, 12, 0))
    assert_close(new.project.weight, sketch_conv_weight(old.project.weight, 12, 1))
    assert torch.equal(new.depthwise.weight, old.depthwise.weight[:12])
    for norm in (new.bn1, new.bn2):
        assert not norm.running_mean.any()
        assert (norm.weight == 1).all()
    assert torch.equal(new.act1.weight, old.act1.weight[:12])  # trained slopes are no norm
    assert all(torch.equal(new.bn3.state_dict()[k], v) for k, v in old.bn3.state_dict().items())
    assert torch.equal(small.stem.weight, network.stem.weight)
    whole = structure.sketch(network, structure.plan([1.0]), Sketcher(normalize=None))
    assert torch.equal(whole(torch.ones(1, *SIZE)), network(torch.ones(1, *SIZE)))
    rescaled = structure.sketch(network, structure.plan([1.0]), Sketcher())
    assert_close(rescaled.block.expand.weight.norm(), torch.tensor(1.0))


def test_ranks_decide_which_channels_stay(make_trainer):
    callback = HRankPruning(rates="[0.0]+[0.5]", at_epoch=0, num_images=40)
    module, data = HRank(warm(), num_classes=10), digits()
    fit(make_trainer, callback, module, epochs=1)
    points = callback._structure.points
    data.setup("fit")
    images = (data.on_after_batch_transfer(b, 0)["image"] for b in data.calibration_dataloader(40))
    ranks = rank_scores(warm(), images, points)
    share = torch.stack([ranks[name] / ranks[name].max() for name in ("block.expand", "block.depthwise")]).mean(0)
    expected = sorted(share.argsort(stable=True)[12:].tolist())
    assert read_plan(module.hparams["plan"]).kept("block.expand") == expected
    assert module.model.block.depthwise.groups == 12


@pytest.mark.parametrize(
    ("kind", "callback"),
    [
        (FilterSketch, lambda: FilterSketchPruning(target_macs=0.6, at_epoch=1)),
        (HRank, lambda: HRankPruning(target_params=0.6, at_epoch=1, num_images=40, allocation="global")),
    ],
)
def test_a_checkpoint_needs_the_network_again_and_no_extra(quick_trainer, tmp_path, monkeypatch, kind, callback):
    torch.manual_seed(0)
    module, pruning = kind(Stranger(), num_classes=10), callback()
    trainer, _ = fit(quick_trainer, pruning, module)
    name = "macs" if pruning.budget.target_macs else "params"
    assert pruning.summary()[f"prune/{name}"] <= 0.6 * pruning.summary()[f"prune/dense_{name}"]
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    plan = torch.load(tmp_path / "last.ckpt", weights_only=True)["hyper_parameters"]["plan"]
    assert plan["arch"] == "Stranger"
    assert set(plan) == {"arch", "layers"}
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    again = kind.load_from_checkpoint(tmp_path / "last.ckpt", backbone=Stranger())
    images = torch.rand(2, *SIZE)
    assert torch.equal(again.eval()(images), module.eval()(images))
    with pytest.raises(ValueError, match=r"given as an object, not for 'resnet20'.*backbone=network"):
        kind("resnet20", plan=plan)
    trainer.test(module, datamodule=digits(), verbose=False)  # the dense one beside it
    assert "test/dense_top1" in trainer.callback_metrics


def test_resume_after_pruning_is_bit_equal(quick_trainer, tmp_path, monkeypatch):
    def run(epochs, **checkpoint):
        torch.manual_seed(0)
        module = FilterSketch(Stranger(), num_classes=10, lr=0.05)
        trainer = quick_trainer(max_epochs=epochs, callbacks=[FilterSketchPruning(0.5, at_epoch=1)], **SMALL)
        trainer.fit(module, datamodule=digits(), **checkpoint)
        return trainer, module

    _, whole = run(3)
    trainer, _ = run(2)
    trainer.save_checkpoint(tmp_path / "two.ckpt")
    monkeypatch.setitem(sys.modules, "torch_pruning", None)  # what is pruned is not traced again
    _, resumed = run(3, ckpt_path=tmp_path / "two.ckpt", weights_only=True)
    assert_close(resumed.state_dict(), whole.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("callback", "message"),
    [
        (FilterSketchPruning([0.5, 0.5]), "takes 1 rates, got 2; give the fraction to keep of each block"),
        (HRankPruning([0.5] * 3, num_images=40), "takes 2 rates, got 3; give the fraction to remove of each group"),
        (HRankPruning(0.5, mode="layerwise", num_images=40), "mode='layerwise' needs a network with a table"),
    ],
)
def test_refusals(make_trainer, callback, message):
    with pytest.raises(ValueError, match=message):
        fit(make_trainer, callback, HRank(warm(), num_classes=10))


def test_a_network_without_blocks(make_trainer):
    bare = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10)
    )
    with pytest.raises(ValueError, match="nothing that FilterSketch could narrow"):
        fit(make_trainer, FilterSketchPruning(0.5), FilterSketch(bare, num_classes=10))


def test_layers_with_shared_weights_are_left_alone():
    network = warm()
    assert "block.expand" in {group.root for group in channel_groups(network, SIZE)}
    network.twin = nn.Conv2d(8, 24, 1, bias=False)
    network.twin.weight = network.block.expand.weight  # which reads the stream and writes the block
    with pytest.raises(ValueError, match="no channels that can be removed"):
        channel_groups(network, SIZE)


def test_weights_of_a_network_that_marks_its_version():
    class Versioned(nn.Linear):
        _version = 2

        def _load_from_state_dict(self, state_dict, prefix, local_metadata, *args):
            assert local_metadata.get("version") == 2
            super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)

    network = Versioned(2, 1)
    load_weights(network, {"weight": torch.ones(1, 2), "bias": torch.zeros(1)})
    assert network.weight.sum() == 2
    assert isinstance(read_plan({"arch": "Versioned", "layers": {}}), TracedPlan)
