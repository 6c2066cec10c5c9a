"""PPBA as a module in code: its attack, its victim, its checkpoints, and what it refuses."""

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from datamodules import CIFARDataModule
from lit_methods import PPBA, ImageClassifier, Predictor
from lit_methods.backbones import cut_network, read_plan
from lit_methods.ppba.baselines import NES
from lit_methods.ppba.build import low_frequencies
from lit_methods.ppba.random_walk import PPBAAttack
from tests.attackers import (
    OPTIONS,
    attacker,
)
from tests.methods.toy_attacks import assert_equal
from tests.victims import MEAN, STD, trained_weights

PLAN = {"arch": "tiny", "keep": {"body.conv1": [0, 3, 5], "body.conv2": [1, 2, 8, 9], "body.conv3": [0, 1, 2, 4, 7]}}


# -- the attack --------------------------------------------------------------------------------------------------------


def test_by_name_and_by_objects_it_is_the_same_attack(batch):
    named = attacker(attack_seed=3)
    attack = PPBAAttack(low_frequencies(32), rho=0.4, eps=8.0, max_queries=30, seed=3)
    objects = PPBA(copy.deepcopy(named.model), attack, mean=MEAN, std=STD).eval()
    expected = attack(named, batch["image"], batch["label"], image_ids=batch["index"])
    assert {(bool(s), bool(k)) for s, k in zip(expected.success, expected.skipped, strict=True)} == {
        (True, False), (False, False), (False, True),
    }  # fmt: skip
    for module in (named, objects):
        assert_equal(module.attack_images(batch["image"], batch["label"], batch["index"]), expected)
    other = attacker(attack_seed=4).attack_images(batch["image"], batch["label"], batch["index"])
    assert not torch.equal(other.queries, expected.queries)


@pytest.mark.parametrize("attack", ["nes", "nes_lf", "bandits", "bandits_lf", "simba"])
def test_every_attack_by_its_name(batch, attack):
    module = attacker(attack=attack, attack_args=None)
    result = module.attack_images(batch["image"][:4], batch["label"][:4])
    assert result.queries.max() <= 30
    assert (result.l2_unclipped <= 8 * (1 + 1e-6)).all()
    assert (module.attack_for(32).projection is None) == (attack in ("nes", "bandits")) or attack == "simba"


def test_the_usual_ball_goes_by_the_size_of_the_images():
    module = PPBA("tiny", max_queries=30)
    assert [(a.eps, a.rho, a.projection.size) for a in map(module.attack_for, (32, 224))] == [
        (1.0, 0.002, 32),
        (5.0, 0.01, 224),
    ]


def test_a_batch_without_ids_takes_them_from_the_pixels(batch):
    """So a picture ends the same in any batch, and equal pictures in one batch go different ways."""
    module = attacker(pad_batch=True)
    images, labels = batch["image"][:3], batch["label"][:3]
    whole = module.attack_images(images, labels)
    for row in (2, 0, 1):
        alone = module.attack_images(images[[row]], labels[[row]])
        assert_close(alone.adv[0], whole.adv[row], rtol=0, atol=0)
        assert alone.ids[0] == whole.ids[row]
    doubled = module.attack_images(images[[1, 0, 1]], labels[[1, 0, 1]])
    assert len(doubled.ids.unique()) == 3
    assert_close(doubled.adv[0], whole.adv[1], rtol=0, atol=0)
    assert not torch.equal(doubled.adv[0], doubled.adv[2])


def test_a_random_target_is_never_the_true_class_and_the_same_in_any_batch(batch):
    module = attacker(target="random", pad_batch=True)
    plan = module._plan
    labels = torch.arange(10).repeat_interleave(200)
    ids = torch.arange(len(labels))
    drawn = plan.targets(labels, ids, 10)
    assert not (drawn == labels).any()
    assert (torch.bincount(drawn * 10 + labels, minlength=100).view(10, 10) > 0).sum() == 90  # all others occur
    shuffled = torch.randperm(len(labels))
    assert_close(plan.targets(labels[shuffled], ids[shuffled], 10), drawn[shuffled])
    module = attacker(target="random", pad_batch=True, max_queries=100)
    whole = module.attack_images(batch["image"], batch["label"], batch["index"])
    wanted = plan.targets(batch["label"], batch["index"], 10)
    assert whole.success.any()
    assert_close(whole.preds[whole.success], wanted[whole.success])
    part = slice(3, 9)
    again = module.attack_images(batch["image"][part], batch["label"][part], batch["index"][part])
    assert_close(again.adv, whole.adv[part], rtol=0, atol=0)


def test_a_target_class(batch):
    result = attacker(target=1, max_queries=150).attack_images(batch["image"], batch["label"], batch["index"])
    clean = attacker()(batch["image"]).argmax(1)
    assert_close(result.skipped, (clean != batch["label"]) | (batch["label"] == 1))  # wrong, or there already
    assert result.success.any()
    assert (result.preds[result.success] == 1).all()
    assert (result.queries[batch["label"] == 1] == 0).all()


def test_modes_hooks_and_gradients_are_as_before(batch):
    module = attacker().train()
    module.model.body.bn1.eval()
    before = {name: part.training for name, part in module.named_modules()}
    buffers = {name: value.clone() for name, value in module.state_dict().items()}
    module.attack_images(batch["image"], batch["label"])
    assert {name: part.training for name, part in module.named_modules()} == before
    assert_close(dict(module.state_dict()), buffers, rtol=0, atol=0)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in module.parameters())


# -- the victim --------------------------------------------------------------------------------------------------------


@pytest.fixture
def weights(tmp_path):
    """A file of weights for ``base_checkpoint``."""
    torch.save(trained_weights(), tmp_path / "weights.pth")
    return str(tmp_path / "weights.pth")


def fitted(make_trainer, module):
    module.train()
    data = CIFARDataModule("digits", batch_size=32)
    make_trainer(max_epochs=1, limit_train_batches=3, limit_val_batches=1, num_sanity_val_steps=0).fit(
        module, datamodule=data
    )
    return dict(module.state_dict())


def test_training_is_that_of_a_classifier(make_trainer):
    options = {"mean": MEAN, "std": STD, "lr": 0.1}
    torch.manual_seed(1)
    victim, attacked = ImageClassifier("tiny", **options), PPBA("tiny", max_queries=30, **options)
    attacked.model.load_state_dict(victim.model.state_dict())
    start = copy.deepcopy(victim.model.state_dict())
    ours, theirs = fitted(make_trainer, attacked), fitted(make_trainer, victim)
    assert ours.keys() == theirs.keys()
    assert_close(ours, theirs, rtol=0, atol=0)
    assert not torch.equal(ours["model.fc.weight"], start["fc.weight"])


def test_given_weights_are_not_trained(make_trainer, weights):
    module = PPBA("tiny", base_checkpoint=weights, **OPTIONS)
    after = fitted(make_trainer, module)
    assert_close({k.removeprefix("model."): v for k, v in after.items()}, trained_weights(), rtol=0, atol=0)


def test_a_pruned_victim_comes_back_from_its_checkpoint(make_trainer, tmp_path, batch):
    plan = read_plan(PLAN)
    victim = ImageClassifier("tiny", mean=MEAN, std=STD)
    victim.model.load_state_dict(trained_weights())
    victim.model = cut_network(victim.model, plan)
    victim.hparams["plan"] = PLAN
    trainer = make_trainer()
    trainer.strategy.connect(victim)
    trainer.save_checkpoint(tmp_path / "pruned.ckpt")
    module = PPBA("tiny", base_checkpoint=str(tmp_path / "pruned.ckpt"), **OPTIONS).eval()
    assert module.model.body.conv1.out_channels == 3
    labels = victim.eval()(batch["image"]).argmax(1)
    expected = module.attack_images(batch["image"], labels)
    trainer = make_trainer()
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "attacked.ckpt")
    (tmp_path / "pruned.ckpt").unlink()
    loaded = PPBA.load_from_checkpoint(tmp_path / "attacked.ckpt", weights_only=True).eval()
    predictor = Predictor.from_checkpoint(tmp_path / "attacked.ckpt")
    for other in (loaded, predictor.module):
        assert type(other) is PPBA
        assert other.model.body.conv1.out_channels == 3
        assert_equal(other.attack_images(batch["image"], labels), expected)


def test_hyperparameters_are_plain_and_a_checkpoint_needs_nothing_else(make_trainer, tmp_path, batch):
    options = {"target": "random", "class_names": list("abcdefghij"), "input_size": [3, 32, 32], "compare_fixed": True}
    module = attacker(**options)
    trainer = make_trainer()
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "plain.ckpt")
    saved = torch.load(tmp_path / "plain.ckpt", weights_only=True)["hyper_parameters"]
    for name, value in (OPTIONS | options | {"attack": "ppba", "model": "tiny"}).items():
        assert saved[name] == value
    loaded = PPBA.load_from_checkpoint(tmp_path / "plain.ckpt", weights_only=True)
    ids = batch["index"]
    assert_equal(
        loaded.attack_images(batch["image"], batch["label"], ids),
        module.attack_images(batch["image"], batch["label"], ids),
    )


def test_objects_given_in_code_are_given_again(make_trainer, tmp_path, batch):
    def network():
        return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))

    attack = NES(eps=1.0, max_queries=40, lr=0.5, samples=4)
    module = PPBA(network(), attack)
    assert module.attack_for(32) is module.attack_for(48) is attack
    trainer = make_trainer()
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "objects.ckpt")
    saved = torch.load(tmp_path / "objects.ckpt", weights_only=True)["hyper_parameters"]
    assert "model" not in saved
    with pytest.raises(ValueError, match="attack: the checkpoint's was an object; give it"):
        PPBA.load_from_checkpoint(tmp_path / "objects.ckpt", weights_only=True, model=network())
    loaded = PPBA.load_from_checkpoint(tmp_path / "objects.ckpt", weights_only=True, model=network(), attack=attack)
    assert_close(loaded.model.state_dict(), module.model.state_dict())
    assert_equal(
        loaded.attack_images(batch["image"], batch["label"]), module.attack_images(batch["image"], batch["label"])
    )


# -- mistakes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": 10}, "target=10 is no class; there are 0 to 9"),
        ({"target": -1}, "target=-1 is no class"),
        ({"target": "rnadom"}, "target='rnadom' must be a class id, 'random' or null"),
        ({"target": "random", "num_classes": 1}, "num_classes=1"),
        ({"attack": "pbba"}, "attack='pbba' is unknown.*did you mean 'ppba'"),
        ({"attack_args": {"roh": 0.1}}, "attack_args holds 'roh'.*did you mean 'rho'"),
        ({"attack_args": {"eps": 1.0}}, "attack_args holds 'eps', which is given by itself"),
        ({"attack_args": {"max_queries": 9}}, "attack_args holds 'max_queries', which is given by itself"),
        ({"attack_args": {"rho": 0.0}}, "rho=0.0 must be positive"),
        ({"attack": "nes", "compare_fixed": True}, "compare_fixed=True needs attack='ppba'.*not 'nes'"),
        ({"max_queries": 1}, "max_queries=1 does not pay for one step of PPBAAttack"),
        ({"attack": "nes", "max_queries": 1}, "max_queries=1 does not pay for one step of NES"),
        ({"eps": 0.0}, "eps=0.0 must be positive"),
        ({"mean": MEAN, "std": None}, "mean|std"),
        ({"low_dim": 0}, "low_dim"),
        ({"freq_dim": 0}, "freq_dim"),
        ({"stride": 0}, "stride"),
    ],
)
def test_mistakes_are_told_by_the_constructor(options, message):
    defaults = {"mean": MEAN, "std": STD, "max_queries": 30}
    with pytest.raises(ValueError, match=message) as error:
        PPBA("tiny", **defaults | options)
    assert "\n" not in str(error.value)


def test_objects_that_do_not_go_with_an_option():
    attack = PPBAAttack(low_frequencies(32), max_queries=30)
    with pytest.raises(ValueError, match="target=3 needs an attack with targeted=True"):
        PPBA("tiny", attack, target=3)
    with pytest.raises(ValueError, match="compare_fixed=True needs attack='ppba'"):
        PPBA("tiny", attack, compare_fixed=True)


def test_weights_that_are_not_there_or_do_not_fit(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.pth"):
        PPBA("tiny", base_checkpoint=str(tmp_path / "none.pth"), max_queries=30)
    torch.save(trained_weights(), tmp_path / "ten.pth")
    with pytest.raises(ValueError, match=r"ten\.pth"):
        PPBA("tiny", num_classes=7, base_checkpoint=str(tmp_path / "ten.pth"), max_queries=30)


def test_labels_beyond_the_classes_and_images_out_of_range(batch):
    module = attacker()
    with pytest.raises(ValueError, match="labels holds the class 10, but model_fn scores 10 classes"):
        module.attack_images(batch["image"][:2], torch.tensor([3, 10]))
    with pytest.raises(ValueError, match=r"images must lie in \[0, 1\]"):
        module.attack_images(batch["image"] * 255, batch["label"])
