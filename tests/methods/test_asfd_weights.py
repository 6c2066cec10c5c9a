"""Weights for ASFD from its own checkpoints and from classifiers."""

import copy

import pytest
import torch
from torch import nn
from torchvision.models import resnet18

from lit_methods.asfd.genotype import random_genotype
from lit_methods.asfd.model import ASFDNet
from lit_methods.asfd.search import SearchNet
from lit_methods.asfd.weights import load_detector_weights
from lit_methods.backbones import mobilenet_v1


def net(seed=0, size="d0", **options):
    torch.manual_seed(seed)
    return ASFDNet(size, channels=4, **options)


def saved(folder, content):
    path = folder / "file.pth"
    torch.save(content, path)
    return str(path)


def same(a, b):
    b = b.state_dict()
    return all(torch.equal(x, b[name]) for name, x in a.state_dict().items())


def prefixed(tensors, prefix):
    return {f"{prefix}{name}": x for name, x in tensors.items()}


@pytest.mark.parametrize("prefix", ["model.", "module.model."])
def test_a_detector_s_own_checkpoint_loads_whole(tmp_path, prefix):
    trained, target = net(), net(1)
    content = {"state_dict": prefixed(trained.state_dict(), prefix)}
    if prefix == "model.":
        content["state_dict"]["normalize.mean"] = torch.zeros(3)  # what else a module may keep
    assert load_detector_weights(target, saved(tmp_path, content)) == "detector"
    assert same(trained, target)


@pytest.mark.parametrize("prefix", ["model.", "backbone."])
def test_our_classifier_goes_into_the_backbone_alone(tmp_path, prefix):
    trained, target = mobilenet_v1(num_classes=7), net()
    others = copy.deepcopy(target)
    assert load_detector_weights(target, saved(tmp_path, prefixed(trained.state_dict(), prefix))) == "backbone"
    tensors = trained.state_dict()
    assert all(torch.equal(x, tensors[name]) for name, x in target.backbone.state_dict().items())
    for part in ("neck", "fem", "head"):
        assert same(others.get_submodule(part), target.get_submodule(part))


@pytest.mark.slow
def test_torchvision_s_weights_go_into_the_backbone_of_a_detector_and_of_a_search(tmp_path):
    trained = resnet18()
    path = saved(tmp_path, trained.state_dict())
    few = {"fpn_ops": ["identity"], "cpm_ops": ["identity"]}
    for target in (net(size="d2"), SearchNet("d2", channels=4, **few)):
        assert load_detector_weights(target, path) == "backbone"
        assert torch.equal(target.backbone.layer4[1].conv2.weight, trained.layer4[1].conv2.weight)


def test_what_does_not_fit_changes_nothing(tmp_path):
    target = net()
    before = copy.deepcopy(target)
    other = net(genotype=random_genotype(torch.Generator().manual_seed(1)))
    for content, message in (
        (other.state_dict(), r"this ASFDNet: \d+ missing.*fits its own size, genotype"),
        (net(cls_mode="cosine").state_dict(), r"head.cls.weight +file - +network \(2, 4, 3, 3\)"),
        (mobilenet_v1(width=0.5).state_dict(), r"this MobileNetFeatures: .* of another shape"),
        (nn.Linear(2, 3).state_dict(), r"this MobileNetFeatures: 135 missing, 2 unexpected"),
    ):
        with pytest.raises(ValueError, match="(?s)^base_checkpoint='.*file.pth' does not fit.*" + message):
            load_detector_weights(target, saved(tmp_path, content))
        assert same(target, before)
    pruned = {"state_dict": mobilenet_v1().state_dict(), "hyper_parameters": {"plan": {"kept": {}}}}
    with pytest.raises(ValueError, match=r"base_checkpoint='.*' is of a pruned network"):
        load_detector_weights(target, saved(tmp_path, pruned))
    with pytest.raises(FileNotFoundError, match=r"nothing\.pth' does not exist"):
        load_detector_weights(target, str(tmp_path / "nothing.pth"))
