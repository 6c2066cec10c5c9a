"""The methods meet: PPBA and NAD on checkpoints of other classifiers, both pruners inside of other modules."""

import copy
import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from torch.utils.data import DataLoader

from callbacks.pruning_parts import load_pruned, prune_part
from lit_methods import ASFD, NAD, PPBA, ADCluster, FilterSketch, HRank, ImageClassifier, SiamBAN
from lit_methods.ad_cluster.module import SourceReID
from lit_methods.backbones import BACKBONES, PrunePlan, WidthPlan, build_backbone
from lit_methods.backbones.parts import Joined, inputs_of, restore_parts
from lit_methods.bpe_mip.module import BPE
from lit_methods.ddl.recognition import FaceRecognition

PIXELS = {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7], "input_size": [3, 16, 16], "class_names": list("abcd")}
SMALL = {"layers": 3, "channels": 4, "image_size": 16}
KEPT = PrunePlan("tiny", {"body.conv1": [0, 3, 7], "body.conv2": [1, 2, 5, 11]}).to_dict()
NARROW = WidthPlan("tiny", {"body.conv1": 5, "body.conv2": 4}).to_dict()
WRITERS = {
    "dense": lambda: ImageClassifier("tiny", 4, **PIXELS),
    "by rank": lambda: HRank("tiny", 4, plan=KEPT, **PIXELS),
    "by sketch": lambda: FilterSketch("tiny", 4, plan=NARROW, **PIXELS),
    "attacked": lambda: PPBA("tiny", num_classes=4, max_queries=5, **PIXELS),
    "taken apart": lambda: NAD("tiny", num_classes=4, class_ids=[1], **PIXELS),
    "of cells": lambda: BPE(recipe={"preset": "BPE1", **SMALL}, num_classes=4, **PIXELS),
}

QUICK = (("dense", "NAD"), ("by rank", "PPBA"))


@pytest.fixture
def saved(make_trainer, tmp_path):
    def save(module, name="a.ckpt"):
        trainer = make_trainer()
        trainer.strategy.connect(module)
        trainer.save_checkpoint(tmp_path / name)
        return str(tmp_path / name)

    return save


# -- any classifier is attacked and taken apart ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("writer", "taker"),
    [
        pytest.param(writer, taker, marks=() if (writer, name) in QUICK else pytest.mark.slow, id=f"{writer}, {name}")
        for writer in WRITERS
        for name, taker in {"NAD": NAD, "PPBA": PPBA}.items()
    ],
)
def test_a_checkpoint_brings_its_network_and_how_it_wants_its_pictures(writer, taker, saved, tmp_path):
    theirs = WRITERS[writer]()
    for norm in [part for part in theirs.modules() if isinstance(part, nn.BatchNorm2d)]:
        norm.running_mean.uniform_(-1, 1)  # as if it were trained
    path, images = saved(theirs), torch.rand(2, 3, 16, 16)
    expected = theirs.eval()(images)
    ours = taker(base_checkpoint=path).eval()  # whose own default is a resnet20 of ten classes
    assert_close(ours(images), expected)
    assert {name: ours.hparams[name] for name in PIXELS} == PIXELS
    again = saved(ours, "b.ckpt")
    Path(path).unlink()
    back = taker.load_from_checkpoint(again, weights_only=True).eval()
    assert_close(back(images), expected)
    assert back.hparams["num_classes"] == 4
    assert sum(p.numel() for p in back.model.parameters()) == sum(p.numel() for p in theirs.model.parameters())


def test_gates_sit_at_what_is_left_of_a_pruned_network(saved):
    assert [m.shape[1] for m in NAD(base_checkpoint=saved(WRITERS["by rank"]())).gate_logits] == [3, 4, 16]
    assert [m.shape[1] for m in NAD(base_checkpoint=saved(WRITERS["by sketch"]())).gate_logits] == [5, 4, 16]


@pytest.mark.slow
def test_gates_sit_at_cells(saved):
    cells = NAD(base_checkpoint=saved(WRITERS["of cells"]())).hparams["gate_points"]
    assert [name for name in cells if "cells" in name] == [f"network.cells.{i}" for i in range(3)]


@pytest.mark.parametrize("arch", ["resnet20", "vgg16_bn_cifar", "densenet40_cifar", "googlenet_cifar"])
@pytest.mark.slow
def test_each_network_with_a_table_is_taken_apart_when_pruned(arch, saved):
    points = BACKBONES[arch].prune_points()
    keep = {point.conv: list(range(0, point.num_filters, 2)) for point in points}
    module = HRank(arch, plan=PrunePlan(arch, keep).to_dict(), input_size=[3, 32, 32])
    apart, images = NAD(base_checkpoint=saved(module)).eval(), torch.rand(2, 3, 32, 32)
    gated = apart.gated(apart.as_fed(images), task=torch.tensor([3, 3]), mode="hard")
    assert_close(apart.sub_network(3).eval()(apart.as_fed(images)), gated, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["siamban.module.SiamBAN", "ad_cluster.module.SourceReID", "ddl.module.DDL"])
@pytest.mark.parametrize("taker", [PPBA, NAD])
def test_what_classifies_nothing_is_refused_in_one_line(name, taker, tmp_path):
    content = {"state_dict": {}, "hyper_parameters": {}, "lit_methods": {"class": f"lit_methods.{name}"}}
    torch.save(content, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match=rf"is of {name.split('.')[-1]}, which puts .* no classes; .*HRank") as caught:
        taker(base_checkpoint=str(tmp_path / "other.ckpt"))
    assert "\n" not in str(caught.value)


def test_a_network_given_as_an_object_is_given_again(saved):
    network = build_backbone("tiny", 4)
    path = saved(ImageClassifier(network, 4, **PIXELS))
    for taker in (PPBA, NAD):
        with pytest.raises(ValueError, match=r"given as an object; give it again, in code: model=network"):
            taker(base_checkpoint=path)
    images = torch.rand(2, 3, 16, 16)
    ours = NAD(build_backbone("tiny", 4), ["body.relu1"], base_checkpoint=path).eval()
    assert_close(ours.model(images), network.eval()(images))


def test_pixels_of_the_data_give_way_and_those_of_the_user_stay(saved):
    path = saved(WRITERS["dense"]())
    theirs = {"mean": [0.5] * 3, "std": [0.25] * 3}
    for maker in (PPBA, NAD, HRank):
        data = SimpleNamespace(num_classes=4, class_names=list("abcd"), **theirs)
        arguments = {"base_checkpoint": path, **({"backbone": "tiny", "num_classes": 4} if maker is HRank else {})}
        with pytest.warns(UserWarning, match=r"trained with mean=\[0\.1, 0\.2, 0\.3\], .*arguments say mean=\[0\.5, "):
            module = maker(**arguments, **theirs)
        module._trainer = SimpleNamespace(datamodule=data, precision="32-true")
        with pytest.warns(UserWarning, match="mean, std: those of base_checkpoint are taken, not the data's"):
            module.setup("test")
        assert module.hparams["mean"] == PIXELS["mean"]
        assert_close(module.normalize.std.flatten(), torch.tensor(PIXELS["std"]))
        with pytest.warns(UserWarning, match="trained with"):
            module = maker(**arguments, **theirs)
        data.mean = data.std = [0.9] * 3  # so the arguments are not the data's
        module._trainer = SimpleNamespace(datamodule=data, precision="32-true")
        module.setup("test")
        assert_close(module.normalize.mean.flatten(), torch.tensor(theirs["mean"]))


# -- parts of other modules are pruned ---------------------------------------------------------------------------------


def encoder():
    pixels = {name: PIXELS[name] for name in ("mean", "std")}
    module = SourceReID("tiny", {"width": 4}, num_classes=5, head="bnneck", input_size=[3, 32, 16], **pixels)
    return module.eval()


def test_the_filters_of_lowest_rank_go_and_a_checkpoint_brings_the_rest_back(saved):
    module, images = encoder(), torch.rand(4, 3, 32, 16)
    conv, norm = module.model.network[0], module.model.network[1]
    with torch.no_grad():  # two filters whose maps are zero: nothing is lost with them
        conv.weight[[1, 2]], norm.bias[[1, 2]] = 0, 0
    expected = module(images)
    with inputs_of(module, "model.network") as seen:
        module(images)
    assert_close(seen, [module.normalize(images)])
    plan = prune_part(module, "model.network", seen, removed=[0.5, 0, 0, 0])
    assert plan["layers"]["0"] == [[0, 3], None]
    assert module.model.network[0].out_channels == 2
    assert_close(module(images), expected)
    with pytest.raises(ValueError, match=r"'model\.network' is pruned already"):
        prune_part(module, "model", seen, removed=0.5)
    path = saved(module)
    expected = module.eval()(images)
    back = load_pruned(path)
    assert type(back) is SourceReID
    assert back.hparams["pruned_parts"] == {"model.network": plan}
    assert_close(back.eval()(images), expected)
    restore_parts(back, {"hyper_parameters": {"pruned_parts": {"model.network": plan}}})  # there already
    with pytest.raises(ValueError, match="pruned in another way"):
        restore_parts(back, {"hyper_parameters": {"pruned_parts": {"model.network": plan | {"layers": {}}}}})


def pruned(module, name="model.network"):
    with inputs_of(module, name) as seen:
        module.eval()(*given(module))
    prune_part(module, name, seen, by="rank", removed=0.5)
    return module


def given(module):
    """What a module takes, small."""
    if isinstance(module, SiamBAN):
        return 255 * torch.rand(2, 3, 127, 127), 255 * torch.rand(2, 3, 191, 191)
    return (torch.rand(2, 3, *module.hparams.get("input_size", [3, 128, 128])[1:]),)


class Renamed(SourceReID):
    """A subclass that hands on whatever it is given."""

    def __init__(self, **kwargs):
        kwargs.setdefault("encoder", "tiny")
        super().__init__(**kwargs)


SIAMESE = {"depth": 18, "width": 4, "channels": 8, "levels": [2], "search_size": 191}
PARTED = {  # module with the part that is pruned
    "re-ID": (encoder, "model.network"),
    "adaptation": (lambda: ADCluster("tiny", {"width": 4}, num_classes=5, input_size=[3, 32, 16]), "model.network"),
    "a subclass": (lambda: Renamed(encoder_args={"width": 4}, input_size=[3, 32, 16]), "model.network"),
    "recognition": (lambda: FaceRecognition("tiny", {"width": 4}, input_size=[3, 32, 16]), "model"),
    "tracker": (lambda: SiamBAN(**SIAMESE), "model.backbone"),
    "faces": (lambda: ASFD(channels=8), "model.backbone"),
}


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=() if kind == "a subclass" else pytest.mark.slow) for kind in PARTED]
)
def test_a_module_with_a_pruned_part_comes_back_by_itself(kind, saved):
    make, name = PARTED[kind]
    module, whole = pruned(make(), name), make()
    assert sum(p.numel() for p in module.parameters()) < sum(p.numel() for p in whole.parameters())
    images, path = given(module), saved(module)
    back = type(module).load_from_checkpoint(path, weights_only=True)
    assert_close(back.eval()(*images), module.eval()(*images))
    assert back.hparams["pruned_parts"] == module.hparams["pruned_parts"]
    again = type(module).load_from_checkpoint(saved(back, "b.ckpt"), weights_only=True)  # its own are as good
    assert_close(again.eval()(*images), module(*images))
    with pytest.raises(ValueError, match=rf"has '{name}' whole; load it into a whole network"):
        module.on_load_checkpoint(torch.load(saved(whole, "whole.ckpt"), weights_only=True))


def test_a_fit_of_a_module_with_a_pruned_part_goes_on_as_if_it_had_never_stopped(make_trainer, tmp_path):
    rows = [{"image": torch.rand(3, 32, 16), "label": i % 2} for i in range(8)]

    def fit(module, epochs, **options):
        trainer = make_trainer(max_epochs=epochs, limit_val_batches=0)
        trainer.fit(module, DataLoader(rows, batch_size=4), **options)
        return trainer

    expected = copy.deepcopy(started := pruned(encoder()))
    whole_run = fit(expected.train(), 3)
    fit(started.train(), 1).save_checkpoint(path := str(tmp_path / "one.ckpt"))
    assert started.hparams["pruned_parts"]  # saving took nothing away
    resumed = encoder().train()  # whole, and of other weights
    rest = fit(resumed, 3, ckpt_path=path, weights_only=True)
    assert rest.global_step == whole_run.global_step == 6
    assert_close(resumed.state_dict(), expected.state_dict(), rtol=0, atol=0)
    moments = [trainer.optimizers[0].state_dict()["state"] for trainer in (rest, whole_run)]
    assert_close(*moments, rtol=0, atol=0)


class Pyramid(nn.Module):
    """Maps of two levels in a list, as a detector's backbone gives them."""

    def __init__(self):
        super().__init__()
        conv = lambda inputs, outputs: nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)  # noqa: E731
        self.stem = nn.Sequential(conv(3, 8), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 8), nn.BatchNorm2d(8), nn.ReLU())
        self.top = nn.Sequential(conv(8, 8), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 8))

    def forward(self, x):
        low = self.stem(x)
        return [low, self.top(low)]


@pytest.mark.parametrize("by", ["rank", "sketch"])
def test_all_maps_that_a_part_gives_keep_their_channels(by):
    whole = nn.Sequential(Pyramid())
    before = [tuple(x.shape) for x in whole(torch.rand(2, 3, 8, 8))]
    small = copy.deepcopy(whole)
    prune_part(small, "0", [torch.rand(2, 3, 8, 8)], by=by, removed=0.5)
    assert [tuple(x.shape) for x in small(torch.rand(2, 3, 8, 8))] == before
    assert [small[0].stem[0].out_channels, small[0].stem[3].out_channels, small[0].top[0].out_channels] == [4, 8, 4]
    prune_part(whole, "0", [torch.rand(2, 3, 8, 8)], by=by, target_params=0.8)
    assert whole[0].stem[0].out_channels > 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give exactly one of them"),
        ({"removed": 0.5, "target_macs": 0.5}, "give exactly one of them"),
        ({"removed": 1.0}, r"removed=1\.0 is outside \[0, 1\)"),
        ({"removed": [0.5]}, "removed has 1 numbers; '0' has 2 groups of channels"),
        ({"removed": 0.5, "by": "magic"}, "by='magic' must be"),
        ({"removed": 0.5, "images": []}, "images is empty"),
        ({"removed": 0.5, "name": "stem"}, "has no part 'stem'"),
    ],
)
def test_bad_arguments_are_named(options, message):
    given = {"name": "0", "images": [torch.rand(2, 3, 8, 8)]} | options
    with pytest.raises(ValueError, match=message):
        prune_part(nn.Sequential(Pyramid()), **given)


def test_only_tensors_can_be_joined():
    with pytest.raises(ValueError, match="a part gives a str"):
        Joined(nn.Identity())("text")


@pytest.mark.slow
@pytest.mark.parametrize("by", ["rank", "sketch"])
@pytest.mark.parametrize("kind", ["reid", "faces", "tracker"])
def test_the_example_prunes_other_parts(kind, by, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = Path(__file__).parents[1] / "examples" / "prune_other_parts.py"
    spec = importlib.util.spec_from_file_location("prune_other_parts", path)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    limits = {"max_epochs": 1, "limit_train_batches": 2, "limit_val_batches": 1}
    figures = example.main(kind, by, **limits)
    assert figures["macs_pruned"] <= 0.6 * figures["macs_whole"]
    assert 0 <= figures["fine_tuned"] <= 1
