"""What cannot be gated, and calls of a gated network that are refused."""

import copy

import pytest
import torch
from torch import nn
from torchvision.ops import StochasticDepth

from lit_methods.nad.gating import GatedModel
from tests.nad_small import SIZE, Strange, gated_small, hooks_of, images, small


@pytest.mark.parametrize(
    ("points", "kwargs", "words"),
    [
        (["rellu1"], {}, ["gate_points", "'rellu1'", "Small", "relu1"]),
        (["relu1", "layer7"], {}, ["gate_points", "'layer7'", "no module"]),
        ([""], {}, ["gate_points", "''", "no module"]),
        ([], {}, ["gate_points=[]", "list of module names", "GATE_POINTS"]),
        ("relu1", {}, ["gate_points='relu1'", "list of module names"]),
        (["relu1", "relu2", "relu1"], {}, ["gate_points", "'relu1'", "twice"]),
        (["relu1"], {"num_tasks": 0}, ["num_tasks=0", "at least 1"]),
        (["relu1"], {"num_tasks": -2}, ["num_tasks=-2", "at least 1"]),
        (["relu1"], {"threshold": 0.0}, ["threshold=0.0", "(0, 1)"]),
        (["relu1"], {"threshold": 1.0}, ["threshold=1.0", "(0, 1)"]),
        (["relu1"], {"threshold": 1.5}, ["threshold=1.5", "(0, 1)"]),
    ],
)
def test_bad_arguments_are_named_with_their_cure(points, kwargs, words):
    network = small()
    with pytest.raises(ValueError, match=r"gate_points|num_tasks|threshold") as error:
        GatedModel(network, points, input_size=SIZE, **kwargs)
    assert all(word in str(error.value) for word in words), str(error.value)
    assert hooks_of(network) == 0


@pytest.mark.parametrize(
    ("what", "point", "words"),
    [
        ("twice", "odd", ["gate_points", "'odd'", "2 times", "called once"]),
        ("", "unused", ["gate_points", "'unused'", "0 times", "called once"]),
        ("triple", "odd", ["gate_points", "'odd'", "no maps (N, C, H, W) or vectors (N, C)"]),
        ("pair", "odd", ["gate_points", "'odd'", "no maps (N, C, H, W)"]),
        ("maps", "conv", ["model", "logits (N, classes)", "(1, 3, 8, 8)"]),
        ("tuple", "conv", ["model", "logits (N, classes)"]),
    ],
)
def test_a_network_that_cannot_be_gated_there_says_why(what, point, words):
    network = Strange(what)
    with pytest.raises(ValueError, match=r"gate_points|model") as error:
        GatedModel(network, [point], input_size=SIZE)
    assert all(word in str(error.value) for word in words), str(error.value)
    assert hooks_of(network) == 0


@pytest.mark.parametrize(("part", "name"), [("conv1", "conv1"), ("", "the top")])
@pytest.mark.parametrize("kind", ["register_forward_hook", "register_forward_pre_hook"])
def test_hooks_of_others_are_refused(part, name, kind):
    network = small()
    handle = getattr(network.get_submodule(part), kind)(lambda *args: None)
    with pytest.raises(ValueError, match=rf"hooks of others at '{name}'.*remove them"):
        GatedModel(network, ["relu1"], input_size=SIZE)
    handle.remove()
    GatedModel(network, ["relu1"], input_size=SIZE)


@pytest.mark.parametrize(("part", "kind"), [("norm2", "BatchNorm2d"), ("drop", "Dropout")])
@pytest.mark.parametrize("mode", ["off", "soft", "hard"])
def test_a_network_in_training_mode_is_refused_before_it_changes(part, kind, mode):
    gated = gated_small()
    gated.model.get_submodule(part).train()
    before = copy.deepcopy(gated.model.state_dict())
    with pytest.raises(ValueError, match=rf"training mode.*'{part}'.*{kind}.*model\.eval\(\)"):
        gated(images(), mode=mode)
    assert all(torch.equal(value, before[key]) for key, value in gated.model.state_dict().items())
    gated.model.eval()
    gated(images(), mode=mode)


def test_layers_dropped_at_random_are_refused_in_training_mode():
    parts = nn.Conv2d(3, 4, 3), StochasticDepth(0.5, "row"), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    gated = GatedModel(nn.Sequential(*parts).eval(), ["0"], input_size=SIZE)
    gated(images())
    gated.model.train()
    with pytest.raises(ValueError, match=r"training mode.*StochasticDepth.*model\.eval\(\)"):
        gated(images())


@pytest.mark.parametrize(
    ("task", "mode", "words"),
    [
        (2, "soft", ["task", "between 0 and 1", "2 to 2"]),
        (-1, "hard", ["task", "between 0 and 1", "-1"]),
        (torch.tensor([0, 1, 2]), "soft", ["task", "between 0 and 1", "0 to 2"]),
        (torch.tensor([0, 1]), "soft", ["task must be an int or (3,) int64", "one per image", "(2,)"]),
        (torch.tensor([[0], [1], [0]]), "soft", ["task must be an int or (3,)", "(3, 1)"]),
        (torch.tensor([0.0, 1.0, 0.0]), "soft", ["task must be an int or (3,) int64", "float32"]),
        (0, "open", ["mode='open'", "'off', 'soft' or 'hard'"]),
    ],
)
def test_a_pass_names_a_task_or_mode_that_does_not_exist(task, mode, words):
    gated = gated_small(num_tasks=2)
    with pytest.raises(ValueError, match=r"task|mode") as error:
        gated(images(), task, mode)
    assert all(word in str(error.value) for word in words), str(error.value)
    assert hooks_of(gated) == 0


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool])
def test_tasks_are_rows_and_no_mask_whatever_their_type(dtype):
    gated, x = gated_small(num_tasks=2), images(2)
    task = torch.tensor([1, 1]).to(dtype)
    try:
        found = gated(x, task)
    except ValueError as error:
        assert "task must be an int or (2,) int64" in str(error)  # noqa: PT017 - either is right
    else:
        assert torch.equal(found, gated(x, torch.tensor([1, 1])))
