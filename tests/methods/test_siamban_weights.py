"""Weights from elsewhere in SiamBAN's network: official files, torchvision's, and files that do not fit."""

import copy
import re

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from torchvision.models import resnet18

from lit_methods.backbones.atrous_resnet import AtrousResNet
from lit_methods.siamban.model import SiamBANNet
from lit_methods.siamban.weights import convert_official, convert_torchvision, load_tracker_weights

SMALL = {"depth": 18, "width": 4, "channels": 8, "levels": [2, 3], "search_size": 191}


def net(seed=0, **arguments):
    torch.manual_seed(seed)
    made = SiamBANNet(**(SMALL | arguments)).eval()
    for part in made.modules():  # statistics that a loader could forget
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.uniform_(-1, 1)
            part.running_var.uniform_(0.5, 2)
    return made


def same(a, b):
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def saved(folder, content):
    path = folder / "file.pth"
    torch.save(content, path)
    return str(path)


def official(trained, levels):
    """A training checkpoint as the official code writes it, whose levels count from 2 on."""
    numbers = {str(level): str(2 + place) for place, level in enumerate(levels)}
    tensors = {
        "module." + re.sub(r"(downsample|box)(\d)\.", lambda found: f"{found[1]}{numbers[found[2]]}.", name)
        if name.startswith(("neck.", "head."))
        else f"module.{name}": value
        for name, value in trained.state_dict().items()
    }
    return {"epoch": 20, "state_dict": tensors, "optimizer": {"param_groups": [{"lr": 0.01}]}}


@pytest.mark.parametrize("levels", [[2, 3], [3, 4], [3]])
def test_an_official_checkpoint_loads_into_the_same_levels(tmp_path, levels):
    trained, target = net(levels=levels), net(1, levels=levels)
    file = official(trained, levels)
    assert any(name.startswith("module.neck.downsample2.") for name in file["state_dict"])
    assert load_tracker_weights(target, saved(tmp_path, file)) == "tracker"
    assert same(trained, target)


def test_the_official_names_are_those_of_the_vectors(vectors):
    import numpy as np

    known = [name for name in np.load(vectors / "siamban" / "head.npz").files if name.startswith("w/")]
    names = convert_official({f"module.head.{name.removeprefix('w/')}": torch.zeros(1) for name in known})
    with torch.device("meta"):
        whole = SiamBANNet().state_dict()
    head = {name for name in whole if name.startswith("head.") and not name.endswith("num_batches_tracked")}
    assert names.keys() == head


def test_our_own_checkpoint_loads(tmp_path):
    trained, target = net(levels=[3, 4]), net(1, levels=[3, 4])
    ours = {f"model.{name}": value for name, value in trained.state_dict().items()}
    assert load_tracker_weights(target, saved(tmp_path, {"state_dict": ours})) == "tracker"
    assert same(trained, target)


@pytest.mark.parametrize("prefix", ["", "module.", "features."])
def test_an_official_backbone_loads_alone(tmp_path, prefix):
    trained, target = AtrousResNet(18, 4), net()
    neck = copy.deepcopy(target.neck)
    file = {f"{prefix}{name}": value for name, value in trained.state_dict().items()}
    file[f"{prefix}fc.weight"] = torch.zeros(10, 32)
    assert load_tracker_weights(target, saved(tmp_path, file)) == "backbone"
    wanted = {name: value for name, value in trained.state_dict().items() if not name.startswith("layer4.")}
    assert all(torch.equal(value, wanted[name]) for name, value in target.backbone.state_dict().items())
    assert same(target.neck, neck)


def test_torchvision_s_weights_load_and_want_normalised_pictures(tmp_path):
    torch.manual_seed(3)
    trained = resnet18()
    path = saved(tmp_path, trained.state_dict())
    target = net(width=64, normalize=True)
    assert load_tracker_weights(target, path) == "torchvision"
    assert torch.equal(target.backbone.layer3[1].conv2.weight, trained.layer3[1].conv2.weight)
    shortcut = target.backbone.layer3[0].downsample[0].weight
    assert torch.equal(shortcut[:, :, 1, 1], trained.layer3[0].downsample[0].weight[:, :, 0, 0])
    assert shortcut.count_nonzero() == 256 * 128
    with pytest.warns(UserWarning, match=r"base_checkpoint=.*set normalize=True"):
        load_tracker_weights(net(width=64), path)


class Middle(nn.Module):
    """Without the outermost pixels."""

    def forward(self, x):
        return x[:, :, 1:-1, 1:-1]


@pytest.mark.parametrize("depth", [18, 50])
def test_converted_shortcuts_compute_what_those_of_one_pixel_do(depth):
    network = AtrousResNet(depth, 4).double().eval()
    foreign = {name: value.clone() for name, value in network.state_dict().items()}
    for stage in (2, 3, 4):
        name = f"layer{stage}.0.downsample.0.weight"
        foreign[name] = torch.randn_like(foreign[name][:, :, :1, :1])
    narrow = copy.deepcopy(network)
    for stage in (2, 3, 4):
        shortcut = narrow.get_submodule(f"layer{stage}")[0].downsample
        weight = foreign[f"layer{stage}.0.downsample.0.weight"]
        conv = nn.Conv2d(*weight.shape[1::-1], 1, 2 if stage == 2 else 1, bias=False).double()
        conv.weight.data = weight
        shortcut[0] = nn.Sequential(Middle(), conv) if stage == 2 else conv
    network.load_state_dict(convert_torchvision(foreign | {"fc.bias": torch.zeros(10)}))
    image = torch.randn(1, 3, 127, 127, dtype=torch.float64)
    for given, wanted in zip(network(image), narrow(image), strict=True):
        assert wanted.std() > 0
        assert_close(given, wanted)


def test_a_file_that_does_not_fit_changes_nothing(tmp_path):
    target = net()
    before = copy.deepcopy(target)
    for file, message in (
        (
            official(net(levels=[2, 3, 4]), [2, 3, 4]),
            r"0 missing, 76 unexpected, 3 of another shape\n +head.cls_weight",
        ),
        (official(net(levels=[3, 4]), [3, 4]), r"neck.downsample2.downsample.0.weight +file \(8, 16, 1, 1\)"),
        (
            AtrousResNet(50, 4, [2, 3]).state_dict(),
            r"this AtrousResNet: 0 missing, 168 unexpected, 16 of another shape\n +layer1.0.conv1.weight",
        ),
        (nn.Linear(2, 3).state_dict(), r"this AtrousResNet: 75 missing, 2 unexpected"),
    ):
        with pytest.raises(ValueError, match="(?s)^base_checkpoint='.*file.pth' does not fit.*" + message):
            load_tracker_weights(target, saved(tmp_path, file))
        assert same(target, before)


def test_a_file_without_tensors_is_refused():
    with pytest.raises(ValueError, match=r"holds no tensors; its keys are epoch"):
        convert_official({"epoch": 20})


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.pth' does not exist"):
        load_tracker_weights(net(), str(tmp_path / "nothing.pth"))
