"""NAD's module: frozen network, classes learned as if alone, bad input, predictions, sub-networks, checkpoints."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close
from torch.utils.data import DataLoader

from datamodules import CIFARDataModule
from lit_methods import NAD, Predictor
from lit_methods.contract import Exports, Predicts
from lit_methods.inference import as_image
from lit_methods.nad.evaluation import gated_hits
from tests.tiny import TinyNet
from tests.victims import MEAN, STD, trained_weights

FEW = {"limit_train_batches": 3, "limit_val_batches": 1, "limit_test_batches": 1, "num_sanity_val_steps": 0}
DIGITS = {"num_classes": 10, "mean": MEAN, "std": STD}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "tiny.pth"
    torch.save(trained_weights(), path)
    return path


def digits(**options):
    return CIFARDataModule("digits", **{"batch_size": 80, "per_class_batch": 8} | options)


def module_of(weights, **options):
    return NAD("tiny", **DIGITS | {"base_checkpoint": str(weights), "beta": 0.5} | options)


def fit(make_trainer, module, data=None, epochs=1, **options):
    trainer = make_trainer(max_epochs=epochs, **FEW | options)
    trainer.fit(module, datamodule=data or digits())
    return trainer


def gates_of(module):
    return [m.detach().clone() for m in module.gate_logits]


# -- the frozen network ------------------------------------------------------------------------------------------------


def test_a_fit_leaves_the_network_bit_for_bit_and_in_eval_mode(weights, make_trainer):
    module = module_of(weights)
    before, gates = copy.deepcopy(module.model.state_dict()), gates_of(module)
    fit(make_trainer, module, epochs=2)
    assert_close(module.model.state_dict(), before, rtol=0, atol=0)
    assert all(not torch.equal(a, b) for a, b in zip(gates, module.gate_logits, strict=True))
    module.train()
    assert module.training
    assert not any(part.training for part in module.model.modules())
    assert not any(p.requires_grad for p in module.model.parameters())


def test_it_is_the_eval_network_that_is_seen_in_training_steps(weights, make_trainer):
    modes = []

    class Watched(NAD):
        def as_fed(self, image):
            modes.append(any(part.training for part in self.model.modules()))
            return super().as_fed(image)

    module = Watched("tiny", **DIGITS, base_checkpoint=str(weights))
    module.model.train()  # by somebody else
    fit(make_trainer, module)
    assert modes
    assert not any(modes)


def test_each_step_moves_the_gates_of_its_classes_by_lr(weights, make_trainer):
    module = module_of(weights, lr=0.25)
    before = gates_of(module)
    fit(make_trainer, module, limit_train_batches=1)
    for old, new in zip(before, module.gate_logits, strict=True):
        assert_close((new.detach() - old).norm(dim=1), 0.25 * module.progress[:, 0], rtol=1e-5, atol=0)
    assert set(map(tuple, module.progress.tolist())) == {(1, 0, 8), (0, 1, 8)}  # the network got some right, or none


# -- classes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk_size", [256, 20, 1])
def test_classes_learn_together_as_they_do_alone(weights, make_trainer, chunk_size):
    together = module_of(weights, chunk_size=chunk_size).double()
    fit(make_trainer, together, precision="64-true")
    for label in (0, 7):
        alone = module_of(weights, class_ids=[label]).double()
        fit(make_trainer, alone, digits(batch_size=8, class_subset=[label]), precision="64-true")
        for a, b in zip(alone.gate_logits, together.gate_logits, strict=True):
            assert_close(a[0], b[label], rtol=0, atol=1e-12)
        assert torch.equal(alone.progress[0], together.progress[label])


def test_the_first_gates_of_a_class_depend_on_its_number_alone(weights):
    whole, part = module_of(weights), module_of(weights, class_ids=[7, 3])
    for a, b in zip(whole.gate_logits, part.gate_logits, strict=True):
        assert torch.equal(a[[7, 3]], b)
    assert not torch.equal(whole.gate_logits[0], module_of(weights, gate_seed=1).gate_logits[0])


def test_a_class_of_which_nothing_is_right_is_named_and_stays_as_it_was_drawn(weights, make_trainer):
    module = module_of(weights)
    module.model.fc.bias.data[4] = -1e3  # never the answer
    before = gates_of(module)
    with pytest.warns(UserWarning, match="no training image right of .*4"):
        fit(make_trainer, module)
    assert module.progress[4].tolist() == [0, 3, 24]
    for old, new in zip(before, module.gate_logits, strict=True):
        assert torch.equal(old[4], new[4])
        assert not torch.equal(old, new)


def test_figures_of_an_evaluation_are_those_of_hard_gates(weights, make_trainer):
    module = module_of(weights, num_others=2)
    data = digits(num_test_images=40)
    trainer = make_trainer(**FEW)
    (found,) = trainer.test(module, datamodule=data, verbose=False)
    (batch,) = data.test_dataloader()
    images, label = batch["image"].float() / 255, batch["label"]
    own, other, false = [], [], []
    for image, true in zip(images, label.tolist(), strict=True):
        for task in (true, (true + 1) % 10, (true + 5) % 10):  # own, and two others spread evenly
            pred = int(module.gated(module.as_fed(image[None]), task=task, mode="hard").argmax(1))
            (own if task == true else other).append(pred == true)
            false += [] if task == true else [pred == task]
    assert found["test/own_top1"] == pytest.approx(np.mean(own))
    assert found["test/other_top1"] == pytest.approx(np.mean(other))
    assert found["test/false_own"] == pytest.approx(np.mean(false))
    assert found["test/selectivity"] == pytest.approx(np.mean(own) * (1 - np.mean(other)), abs=1e-6)
    masks = module.export_masks()
    total = sum(mask.numel() for points in masks.values() for mask in points.values())
    kept = sum(int(mask.sum()) for points in masks.values() for mask in points.values())
    assert found["test/kept_ratio"] == pytest.approx(kept / total)


def test_images_of_classes_without_gates_are_shown_to_others_alone(weights):
    module = module_of(weights, class_ids=[2, 5])
    x, label = torch.rand(6, 3, 32, 32), torch.tensor([2, 5, 0, 9, 5, 1])
    hits = gated_hits(module.gated, module.as_fed(x), label, module.class_ids, 3)
    assert hits.own.tolist() == [True, True, False, False, True, False]
    assert not hits.own_hit[~hits.own].any()
    assert hits.asked.sum(0).tolist() == [1, 1, 2, 2, 1, 2]  # two are both others to a class without gates
    empty = gated_hits(module.gated, x[:0], label[:0], module.class_ids, 3)
    assert empty.own.shape == (0,)


# -- training the network first ----------------------------------------------------------------------------------------


def test_the_network_is_trained_in_the_first_epochs_and_then_frozen(make_trainer):
    module = NAD("tiny", **DIGITS, classifier_epochs=1)
    start, gates = copy.deepcopy(module.model.state_dict()), gates_of(module)
    fit(make_trainer, module)
    trained = copy.deepcopy(module.model.state_dict())
    assert not torch.equal(start["body.conv1.weight"], trained["body.conv1.weight"])
    assert trained["body.bn1.num_batches_tracked"] == 3
    assert all(torch.equal(a, b) for a, b in zip(gates, module.gate_logits, strict=True))
    again = NAD("tiny", **DIGITS, classifier_epochs=1)
    again.load_state_dict(NAD("tiny", **DIGITS).state_dict() | {f"model.{k}": v for k, v in start.items()})
    fit(make_trainer, again, epochs=2)
    assert not again.model.training
    assert_close(again.model.state_dict(), trained, rtol=0, atol=0)  # the second epoch did not touch it
    assert again.progress[:, :2].sum() == 30  # ten classes, three batches


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"class_ids": []}, "class_ids=.* each once"),
        ({"class_ids": [1, 1]}, "class_ids=.* each once"),
        ({"class_ids": [3, 10]}, "class_ids=.*between 0 and 9"),
        ({"beta": -1}, "beta=-1"),
        ({"lr": 0}, "lr=0"),
        ({"threshold": 1.0}, "threshold=1.0"),
        ({"focus_rate": 0}, "focus_rate=0"),
        ({"num_others": 0}, "num_others=0"),
        ({"chunk_size": 0}, "chunk_size=0"),
        ({"classifier_epochs": -1}, "classifier_epochs=-1"),
        ({"gate_points": ["body.relu9"]}, "'body.relu9' is no module of this TinyNet.*body.relu"),
        ({"gate_points": []}, "gate_points"),
    ],
)
def test_arguments_out_of_range_are_refused(weights, options, message):
    with pytest.raises(ValueError, match=message):
        module_of(weights, **options)


def test_a_network_given_as_an_object_needs_gate_points_and_tells_its_classes():
    with pytest.raises(ValueError, match=r"gate_points: missing.*GATE_POINTS"):
        NAD(TinyNet(7))
    module = NAD(TinyNet(7), ["body.relu2"], input_size=[3, 32, 32])
    assert module.hparams["num_classes"] == len(module.class_ids) == 7
    with pytest.raises(ValueError, match="num_classes=5, but the network gives 7"):
        NAD(TinyNet(7), ["body.relu2"], input_size=[3, 32, 32], num_classes=5)


@pytest.mark.parametrize(
    ("options", "data", "message"),
    [
        ({"num_classes": 12, "base_checkpoint": None}, {}, "12 logits, the data has 10 classes"),
        ({"class_ids": [3]}, {}, r"training images of 0, 1.*data.class_subset=\[3\]"),
        ({"class_ids": [3, 4]}, {"class_subset": [3], "batch_size": 8}, "no training images of 4"),
    ],
)
def test_data_that_do_not_fit_are_refused_before_the_first_step(weights, make_trainer, options, data, message):
    class Untrainable(NAD):
        def training_step(self, batch, batch_idx):
            raise AssertionError("training has started")

    module = Untrainable("tiny", **DIGITS | {"base_checkpoint": str(weights)} | options)
    with pytest.raises(ValueError, match=message):
        fit(make_trainer, module, digits(**data))


@pytest.mark.parametrize("precision", ["16-mixed", "16-true", "bf16-true"])
def test_a_scaled_loss_and_gates_in_half_precision_are_refused(weights, make_trainer, monkeypatch, precision):
    trainer = make_trainer(max_epochs=1, **FEW)
    monkeypatch.setattr(trainer.precision_plugin, "precision", precision)  # a CPU does not have all of them
    with pytest.raises(ValueError, match="bf16-mixed"):
        trainer.fit(module_of(weights), datamodule=digits())


def test_images_of_other_classes_in_a_batch_are_named(weights, make_trainer):
    data = [{"image": torch.rand(3, 32, 32), "label": torch.tensor(i)} for i in (3, 5)]
    with pytest.raises(ValueError, match=r"images of 5, which class_ids leaves out; .*class_subset"):
        make_trainer(max_epochs=1, **FEW).fit(module_of(weights, class_ids=[3]), DataLoader(data, batch_size=2))


def test_labels_beyond_the_network_are_named(weights, make_trainer):
    data = [{"image": torch.rand(3, 32, 32), "label": torch.tensor(i)} for i in (3, 11)]
    with pytest.raises(ValueError, match="labels 3 to 11; they must be 0 to 9"):
        make_trainer(max_epochs=1, **FEW).fit(module_of(weights), DataLoader(data, batch_size=2))


def test_hooks_that_came_later_are_refused(weights, make_trainer):
    module = module_of(weights)
    module.model.fc.register_forward_hook(lambda *args: None)
    with pytest.raises(ValueError, match="hooks of others at 'fc'"):
        fit(make_trainer, module)


def test_classes_that_no_loader_gives_are_named(weights, make_trainer):
    data = [{"image": torch.rand(3, 32, 32), "label": torch.tensor(i % 9)} for i in range(18)]
    with pytest.warns(UserWarning, match="no training image of 9 came by"):
        make_trainer(max_epochs=1, **FEW).fit(module_of(weights), DataLoader(data, batch_size=6))


def test_a_run_without_an_epoch_for_the_gates_is_warned_of(make_trainer):
    with pytest.warns(UserWarning, match="classifier_epochs=2 leaves none of max_epochs=1"):
        fit(make_trainer, NAD("tiny", **DIGITS, classifier_epochs=2), limit_train_batches=1)


def test_only_what_took_gradients_is_trained(make_trainer):
    """An auxiliary head may be frozen, and take no part."""
    network = TinyNet(10)
    network.head, network.spare = nn.Linear(2, 2).requires_grad_(False), nn.Linear(2, 2)
    module = NAD(network, ["body.relu1"], input_size=[3, 32, 32], classifier_epochs=1)
    before = copy.deepcopy(network.state_dict())
    fit(make_trainer, module, limit_train_batches=1)
    assert torch.equal(network.head.weight, before["head.weight"])
    assert not torch.equal(network.fc.weight, before["fc.weight"])
    with pytest.raises(ValueError, match=r"model is frozen already; call requires_grad_\(\)"):
        NAD(network, ["body.relu1"], input_size=[3, 32, 32], classifier_epochs=1)


def test_random_weights_are_warned_of(make_trainer):
    with pytest.warns(UserWarning, match="no trained weights"):
        fit(make_trainer, NAD("tiny", **DIGITS), limit_train_batches=1)


# -- predictions -------------------------------------------------------------------------------------------------------


def test_predictions_say_what_each_sub_architecture_sees(weights):
    module = module_of(weights).eval()
    assert isinstance(module, Predicts)
    assert isinstance(module, Exports)
    pixels = np.random.default_rng(0).integers(0, 255, (40, 32, 3), np.uint8)
    (answer,) = Predictor(module)(pixels)
    assert answer["class_id"] == answer["labels"][0]
    image = module.view(as_image(pixels), [3, 32, 32])[None]
    for label, score in zip(answer["labels"], answer["own_scores"], strict=True):
        logits = module.gated(module.as_fed(image), task=label, mode="hard")
        assert score == pytest.approx(float(logits.softmax(1)[0, label]), abs=1e-6)
    assert answer["maps"].dtype == torch.uint8
    drawn = module.draw(pixels, answer)
    assert drawn.dtype == np.uint8
    assert drawn.shape[0] > answer["maps"].shape[1]


def test_another_classes_sub_architecture_can_look(weights, tmp_path):
    from PIL import Image

    module = module_of(weights, class_ids=[2, 6]).eval()
    Image.fromarray(np.full((32, 32, 3), 90, np.uint8)).save(tmp_path / "a.png")
    (batch,) = module.prepare_inputs([tmp_path / "a.png"], class_id=6)
    (answer,) = module.predict_step(batch, 0)
    assert answer["class_id"] == 6
    known = [label in (2, 6) for label in answer["labels"]]
    assert [not math.isnan(score) for score in answer["own_scores"]] == known
    with pytest.raises(ValueError, match="class_id=5 has no gates; there are those of 2, 6"):
        list(module.prepare_inputs([tmp_path / "a.png"], class_id=5))


def test_inside_a_run_the_prediction_is_that_of_the_network(weights, make_trainer):
    found = []

    class Asked(NAD):
        def test_step(self, batch, batch_idx):
            found.extend(self.predict_step(batch, batch_idx))
            return super().test_step(batch, batch_idx)

    make_trainer(**FEW).test(Asked("tiny", **DIGITS, base_checkpoint=str(weights)), digits(), verbose=False)
    assert found
    assert all("maps" not in answer for answer in found)


# -- sub-networks and checkpoints --------------------------------------------------------------------------------------


@pytest.mark.parametrize("label", [0, 9])
def test_a_sub_network_gives_the_logits_of_the_hard_gates(weights, label):
    module = module_of(weights, class_ids=[0, 9], gate_points=["body.relu1", "body.relu3"]).double().eval()
    x = torch.rand(4, 3, 32, 32, dtype=torch.float64)
    network = module.sub_network(label)
    expected = module.gated(x, task=module.row(label), mode="hard")
    assert_close(network(x), expected, rtol=0, atol=1e-10)
    small, large = (sum(p.numel() for p in net.parameters()) for net in (network, module.model))
    assert small < large
    (name, graph), *rest = module.export_graphs(class_id=label).items()
    assert not rest
    assert name == f"class_{label}"
    assert graph.outputs == ("logits",)


def test_an_empty_layer_cannot_be_exported(weights):
    module = module_of(weights)
    module.gate_logits[1].data[3] = -1
    with pytest.raises(ValueError, match=r"body.relu2.*beta"):
        module.sub_network(3)


def test_a_checkpoint_brings_gates_progress_and_network_back(weights, make_trainer, tmp_path):
    module = module_of(weights, class_ids=[4, 1], class_names=list("abcdefghij"))
    trainer = fit(make_trainer, module, digits(batch_size=16, class_subset=[1, 4]))
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match="class_ids=2, but the checkpoint has the gates of 2 classes"):
        NAD.load_from_checkpoint(tmp_path / "a.ckpt", class_ids=[2], weights_only=True)
    names = [key for key in torch.load(tmp_path / "a.ckpt", weights_only=True)["state_dict"] if "model" not in key]
    assert names == ["progress", "gate_logits.0", "gate_logits.1", "gate_logits.2"]
    again = NAD.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    assert again.hparams["base_checkpoint"] is None
    assert_close(again.state_dict(), module.state_dict(), rtol=0, atol=0)
    pixels = np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)
    ours, theirs = Predictor(module.eval())(pixels), Predictor.from_checkpoint(tmp_path / "a.ckpt")(pixels)
    assert ours[0].pop("maps").equal(theirs[0].pop("maps"))
    assert {k: v for k, v in ours[0].items() if k != "own_scores"} == {
        k: v for k, v in theirs[0].items() if k != "own_scores"
    }


def test_a_pruned_network_is_gated_as_it_is(weights, make_trainer, tmp_path):
    from lit_methods import ImageClassifier
    from lit_methods.backbones import PrunePlan, prune_model

    plan = PrunePlan("tiny", {"body.conv2": [0, 3, 5, 8]})
    pruned = ImageClassifier("tiny", **DIGITS, plan=plan.to_dict())
    full = ImageClassifier("tiny", **DIGITS, base_checkpoint=str(weights))
    pruned.model = prune_model(full.model, plan)
    trainer = make_trainer()
    trainer.strategy.connect(pruned)
    trainer.save_checkpoint(tmp_path / "pruned.ckpt")
    module = module_of(tmp_path / "pruned.ckpt")
    assert [m.shape[1] for m in module.gate_logits] == [8, 4, 16]
    trainer = fit(make_trainer, module)
    trainer.save_checkpoint(tmp_path / "nad.ckpt")
    again = NAD.load_from_checkpoint(tmp_path / "nad.ckpt", weights_only=True)
    assert_close(again.state_dict(), module.state_dict(), rtol=0, atol=0)


def test_a_network_given_in_code_is_given_again(weights, make_trainer, tmp_path):
    points = ["body.relu1", "body.relu2"]
    network = copy.deepcopy(module_of(weights).model)
    module = NAD(network, points, input_size=[3, 32, 32], mean=MEAN, std=STD)
    trainer = fit(make_trainer, module)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match=r"model: missing.*give model=network"):
        NAD.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    again = NAD.load_from_checkpoint(tmp_path / "a.ckpt", model=TinyNet(10), weights_only=True)
    assert_close(again.state_dict(), module.state_dict(), rtol=0, atol=0)
    assert isinstance(again.sub_network(0), nn.Module)
