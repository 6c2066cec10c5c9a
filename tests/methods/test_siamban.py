"""The module: its loss, optimiser and rates, options, checkpoints, what it refuses, how it is changed."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from lit_methods import SiamBAN
from lit_methods.contract import Exports, Predicts
from lit_methods.inference import Predictor
from lit_methods.siamban.functional import (
    assign_labels,
    point_grid,
    sample_labels,
    siamban_cls_loss,
    siamban_loc_loss,
)
from lit_methods.siamban.tracker import SiamBANTracker
from tests.module_fits import logged
from tests.siamban_batches import SIDE, SMALL, loader, pairs, sequences, siamban


def fit(trainer, module, *batches, **more):
    trainer.fit(module, loader(*(batches or (pairs(0), pairs(1)))), **more)
    return module


# -- the loss ----------------------------------------------------------------------------------------------------------


def test_the_loss_of_a_step_is_that_of_the_sampled_labels(make_trainer):
    trainer, given = make_trainer(fast_dev_run=True), pairs() | {"keys": torch.rand(2, 14, 14)}
    module = siamban(cls_weight=2.0, loc_weight=0.5)
    trial = siamban()
    trial.load_state_dict(module.state_dict())
    trial.train()
    points = point_grid(8, 14, SIDE // 2)
    labels, deltas = assign_labels("ellipse", given["box"], points, given["negative"])
    labels = sample_labels(labels, 16, torch.tensor([48, 16]), keys=given["keys"])
    with torch.no_grad():
        cls, loc = trial(given["template"], given["search"])
    expected = siamban_cls_loss(cls, labels), siamban_loc_loss(loc, deltas, labels)
    fit(trainer, module, given)
    found = logged(trainer)
    assert found["train/cls_loss"] == pytest.approx(float(expected[0]), rel=1e-5)
    assert found["train/loc_loss"] == pytest.approx(float(expected[1]), rel=1e-5)
    assert found["train/loss"] == pytest.approx(float(2 * expected[0] + 0.5 * expected[1]), rel=1e-5)


def test_targets_are_few_and_those_of_a_negative_pair_are_background():
    labels, deltas = siamban(num_pos=3, num_neg=7).targets(pairs())
    assert [int((labels[0] == value).sum()) for value in (1, 0)] == [3, 7]
    assert [int((labels[1] == value).sum()) for value in (1, 0)] == [0, 3]
    assert deltas[1].eq(0).all()


def test_a_batch_without_a_target_has_a_finite_loss_and_gradient(make_trainer):
    given = pairs()
    given["negative"][:] = True
    given["box"][:] = torch.tensor([80.2, 80.2, 81.0, 81.0])  # between two points
    module = siamban()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    trainer = make_trainer(max_epochs=1)
    fit(trainer, module, given)
    assert logged(trainer)["train/loss"] == 0
    assert all(value.isfinite().all() for value in module.state_dict().values())
    assert before.keys() == module.state_dict().keys()


@pytest.mark.parametrize(
    "arguments",
    [
        {"label_shape": "rectangle", "loc_loss": "giou", "levels": [3], "weighted": False},
        {"label_shape": "circle", "loc_loss": "iou", "levels": [2, 3, 4]},
        pytest.param({"weighted": False, "levels": [2, 4]}, marks=pytest.mark.slow),
        pytest.param({"depth": 50, "levels": [3, 4]}, marks=pytest.mark.slow),
        pytest.param({"normalize": False, "search_size": 175}, marks=pytest.mark.slow),
    ],
)
def test_every_option_learns(arguments, make_trainer):
    module = siamban(**arguments)
    given = pairs()
    if "search_size" in arguments:
        given["search"] = torch.nn.functional.pad(given["search"], (4, 4, 4, 4))
    before = {name: value.clone() for name, value in module.named_parameters()}
    trainer = make_trainer(max_epochs=1)
    fit(trainer, module, given)
    for name, value in module.named_parameters():
        assert not torch.equal(value, before[name]) or name in ("model.head.cls_weight", "model.head.loc_weight"), name
    names = {name.removeprefix("fusion/") for name in logged(trainer) if name.startswith("fusion/")}
    levels = arguments.get("levels", [2, 3])
    assert {name.rpartition("_")[2] for name in names} == {str(level) for level in levels}
    for branch in ("cls", "loc"):
        weights = [float(module.fusion()[f"{branch}_{level}"]) for level in levels]
        assert sum(weights) == pytest.approx(1)


def test_label_shapes_and_losses_differ(make_trainer):
    given = pairs() | {"keys": torch.rand(2, 14, 14)}
    shapes = [siamban(label_shape=shape).targets(given)[0] for shape in ("ellipse", "rectangle", "circle")]
    assert not any(torch.equal(shapes[a], shapes[b]) for a, b in ((0, 1), (0, 2), (1, 2)))
    first, losses = siamban(), []
    for level in (2, 3):  # boxes that reach beyond the target
        torch.nn.init.constant_(first.get_parameter(f"model.head.box{level}.loc.head.3.bias"), 3.5)
    for kind in ("linear_iou", "iou", "giou"):
        module, trainer = siamban(loc_loss=kind), make_trainer(max_epochs=1)
        module.load_state_dict(first.state_dict())
        fit(trainer, module, given)
        losses.append(logged(trainer)["train/loc_loss"])
    assert len(set(losses)) == 3


# -- optimiser and rates -----------------------------------------------------------------------------------------------


def paper(**arguments):
    """With the paper's rates."""
    return siamban(**{"warmup_epochs": 5} | arguments)


def test_rates_of_each_group_are_the_paper_s(vectors):
    """Group by group and epoch by epoch, as the optimiser has them."""
    table = np.load(vectors / "siamban" / "lr_schedule.npz")
    module = paper()
    module._trainer = SimpleNamespace(max_epochs=20, world_size=1)
    module.backbone_lr_factor = 0.1
    made = module.configure_optimizers()
    optimizer, scheduler = made["optimizer"], made["lr_scheduler"]
    for epoch in range(20):
        backbone, neck, head = (group["lr"] for group in optimizer.param_groups)
        assert backbone == pytest.approx(table["group_lr"][epoch].min(), rel=1e-6)
        assert neck == head == pytest.approx(table["group_lr"][epoch].max(), rel=1e-6)
        assert neck == pytest.approx(table["lr_spaces"][epoch], rel=1e-6)
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize(("scaled", "factor"), [(True, 3), (False, 1)])
def test_rates_grow_with_the_processes_if_asked(scaled, factor):
    module = paper(lr_scale_world=scaled)
    module._trainer = SimpleNamespace(max_epochs=20, world_size=3)
    assert module.rates()[0] == pytest.approx(0.001 * factor)
    assert module.rates()[5] == pytest.approx(0.005 * factor)


def test_every_parameter_is_in_one_group():
    module = paper()
    module._trainer = SimpleNamespace(max_epochs=6, world_size=1)
    groups = module.configure_optimizers()["optimizer"].param_groups
    assert [group["name"] for group in groups] == ["backbone", "neck", "head"]
    found = [id(parameter) for group in groups for parameter in group["params"]]
    assert len(found) == len(set(found)) == len(list(module.parameters()))
    assert {(group["momentum"], group["weight_decay"]) for group in groups} == {(0.9, 1e-4)}


def test_a_fit_without_an_end_is_refused(make_trainer):
    with pytest.raises(ValueError, match=r"max_epochs: give the number of epochs"):
        fit(make_trainer(max_epochs=-1, max_steps=2), siamban())


# -- checkpoints -------------------------------------------------------------------------------------------------------


def test_a_checkpoint_has_its_arguments_and_is_loaded_without_code(make_trainer, tmp_path):
    trainer, given = make_trainer(max_epochs=1), pairs()
    module = fit(trainer, siamban(label_shape="circle", tracker_lr=0.3), given).eval()
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    again = SiamBAN.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True).eval()
    assert dict(again.hparams) == dict(module.hparams)
    assert again.hparams["levels"] == [2, 3]
    with torch.no_grad():
        ours, theirs = (of(given["template"], given["search"]) for of in (again, module))
    assert all(map(torch.equal, ours, theirs))
    tracker = Predictor.from_checkpoint(tmp_path / "a.ckpt").module.tracker(penalty_k=0.2)
    assert (tracker.penalty_k, tracker.lr) == (0.2, 0.3)


def test_it_starts_from_a_checkpoint_and_does_not_ask_for_it_again(make_trainer, tmp_path):
    trainer = make_trainer(max_epochs=1)
    module = fit(trainer, siamban())
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    begun = siamban(base_checkpoint=str(tmp_path / "a.ckpt"))
    for name, value in begun.state_dict().items():
        assert torch.equal(value, module.state_dict()[name]), name
    trainer = make_trainer(max_epochs=1)
    fit(trainer, begun)
    trainer.save_checkpoint(tmp_path / "b.ckpt")
    (tmp_path / "a.ckpt").unlink()
    SiamBAN.load_from_checkpoint(tmp_path / "b.ckpt", weights_only=True)


def test_the_points_of_the_grid_are_no_part_of_a_checkpoint():
    assert "points" not in siamban().state_dict()
    assert_close(siamban().points, point_grid(8, 14, SIDE // 2))


# -- what it refuses ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"label_shape": "square"}, r"label_shape='square' must be one of ellipse, rectangle, circle"),
        ({"loc_loss": "l1"}, r"loc_loss='l1' must be one of"),
        ({"protocol": "own"}, r"protocol='own' must be one of toolkit, strict"),
        ({"levels": [1, 2]}, r"levels=\[1, 2\]"),
        ({"levels": []}, r"levels=\[\]"),
        ({"levels": [3, 3]}, r"levels=\[3, 3\]"),
        ({"depth": 101}, r"depth=101"),
        ({"template_size": 95}, r"template_size=95"),
        ({"search_size": 256}, r"search_size=256 must be 8 k \+ 7"),
        ({"channels": 0}, r"channels=0"),
        ({"width": 0}, r"width=0"),
        ({"num_pos": 0}, r"num_pos=0"),
        ({"num_neg": 0}, r"num_neg=0"),
        ({"cls_weight": -1.0}, r"cls_weight=-1.0"),
        ({"lr": 0.0}, r"lr=0.0"),
        ({"warmup_epochs": -1}, r"warmup_epochs=-1"),
        ({"momentum": 1.0}, r"momentum=1.0"),
        ({"penalty_k": -0.1}, r"penalty_k=-0.1"),
        ({"window_influence": 1.5}, r"window_influence=1.5"),
        ({"tracker_lr": 2.0}, r"lr=2.0"),
        ({"base_checkpoint": "nowhere.ckpt"}, r"nowhere.ckpt"),
    ],
)
def test_arguments_out_of_range_are_named(arguments, text):
    with pytest.raises((ValueError, FileNotFoundError), match=text):
        siamban(**arguments)


@pytest.mark.parametrize("name", ["template_size", "search_size"])
def test_data_of_another_size_are_refused_before_a_fit(name):
    module = siamban()
    sizes = {"template_size": 127, "search_size": SIDE, name: 191}
    module._trainer = SimpleNamespace(datamodule=SimpleNamespace(**sizes))
    with pytest.raises(ValueError, match=rf"model\.{name}=.* set data\.{name} to"):
        module.setup("fit")
    module.setup("validate")


# -- use ---------------------------------------------------------------------------------------------------------------


def test_it_offers_what_the_entry_points_ask_for():
    module = siamban()
    assert isinstance(module, Predicts)
    assert isinstance(module, Exports)


def test_a_method_with_targets_of_its_own_is_a_subclass(make_trainer):
    """Here the background is all that is learnt."""

    class Background(SiamBAN):
        def targets(self, batch):
            labels, deltas = super().targets(batch)
            return labels.masked_fill(labels == 1, -1), deltas

    trainer = make_trainer(max_epochs=1)
    fit(trainer, Background(**SMALL, warmup_epochs=0))
    assert logged(trainer)["train/loc_loss"] == 0
    assert logged(trainer)["train/cls_loss"] > 0


def test_validation_tracks_with_the_network_as_it_is(make_trainer):
    """In eval mode, and training goes on afterwards."""
    module, batch, trainer = siamban(), sequences(4, 3), make_trainer(max_epochs=1)
    trainer.fit(module, loader(pairs()), loader(batch))
    found = logged(trainer)
    assert module.training
    tracks = module.figures["val"].follow(module.eval().tracker(), batch)
    again = [float(value) for value in module.figures["val"].compute().values()]
    assert len(tracks) == 2
    names = list(module.figures["val"].compute())
    assert {f"val/{name}" for name in names} <= found.keys()
    assert [found[f"val/{name}"] for name in names] == pytest.approx(again, abs=1e-6)
    assert found["val/success_auc_static"] < 20 / 21


def test_both_graphs_answer_as_the_tracker_does():
    """What is exported, put together as a user would, finds the tracker's own boxes."""
    module, batch = siamban().eval(), sequences(3)
    tracker, frames = module.tracker(), batch["frames"][0]
    tracker.init(frames[0], batch["boxes"][0][0])
    graphs = module.export_graphs()
    asked = []

    class Exported:
        stride, size, search_size, template_size = module.model.stride, module.model.size, SIDE, 127

        def template(self, z):
            asked.append(z.shape)
            return [graphs["template"].module(z)]

        def track(self, template, x):
            return graphs["search"].module(x, template[0])

    constants = {"penalty_k": tracker.penalty_k, "window_influence": tracker.window_influence, "lr": tracker.lr}
    other = SiamBANTracker(Exported(), **constants)
    other.init(frames[0], batch["boxes"][0][0])
    for frame in frames[1:]:
        for ours, theirs in zip(other.track(frame), tracker.track(frame), strict=True):
            assert_close(ours, theirs, rtol=0, atol=1e-4)
    assert asked == [(1, 3, 127, 127)]
