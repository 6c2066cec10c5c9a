"""PPBA as a module in code: what it logs, keeps, predicts and refuses."""

import copy
import math

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from torch import nn
from torch.testing import assert_close
from torch.utils.data import DataLoader

from datamodules import CIFARDataModule
from lit_methods import PPBA, ImageClassifier, Predictor
from lit_methods.backbones import cut_network, read_plan
from lit_methods.contract import Exports, Predicts
from lit_methods.ppba.attack import to_eight_bits
from lit_methods.ppba.baselines import NES
from lit_methods.ppba.build import low_frequencies
from lit_methods.ppba.ledger import read_ledger
from lit_methods.ppba.random_walk import PPBAAttack, _RandomWalk
from tests.victims import MEAN, STD, trained_weights

IMAGES = 12  # five successes, four failures and three that are wrong from the start
OPTIONS = {"eps": 8.0, "max_queries": 30, "attack_args": {"rho": 0.4}, "mean": MEAN, "std": STD}
PLAN = {"arch": "tiny", "keep": {"body.conv1": [0, 3, 5], "body.conv2": [1, 2, 8, 9], "body.conv3": [0, 1, 2, 4, 7]}}


def attacker(model="tiny", **options):
    module = PPBA(model, **OPTIONS | options)
    if model == "tiny":
        module.model.load_state_dict(trained_weights())
    return module.eval()


def constant(**options):
    """Says 3 to everything: nothing can be turned."""
    module = attacker(**options)
    with torch.no_grad():
        for parameter in module.model.fc.parameters():
            parameter.zero_()
        module.model.fc.bias[3] = 2.0
    return module


def digits(batch_size=8, images=IMAGES):
    return CIFARDataModule("digits", batch_size=batch_size, num_test_images=images)


@pytest.fixture(scope="module")
def batch():
    data = digits(IMAGES)
    data.setup("test")
    return data.on_after_batch_transfer(next(iter(data.test_dataloader())), 0)


@pytest.fixture
def weights(tmp_path):
    """A file of weights for ``base_checkpoint``."""
    torch.save(trained_weights(), tmp_path / "weights.pth")
    return str(tmp_path / "weights.pth")


class Results(Callback):
    """Keeps what ``test_step`` gives, and what is logged at the end."""

    def __init__(self):
        self.outputs, self.logged = [], {}

    def on_test_batch_end(self, trainer, pl_module, outputs, batch, *_):
        self.outputs.append(outputs)

    def on_test_end(self, trainer, pl_module):
        self.logged = {name: float(value) for name, value in trainer.callback_metrics.items()}


class Forwards:
    """How many images a network was asked about, and in which precision it answered."""

    def __init__(self, module):
        self.images, self.dtypes = 0, set()
        module.model.register_forward_hook(self)

    def __call__(self, network, inputs, output):
        self.images += len(output)
        self.dtypes.add(output.dtype)


def attack_run(make_trainer, module, data=None, **trainer):
    results = Results()
    trainer = {"callbacks": [results]} | trainer
    make_trainer(**trainer).test(module, datamodule=data or digits(), verbose=False)
    return results


def same(ours, theirs):
    for name in ("adv", "success", "queries", "l2", "skipped", "success_uint8", "preds", "checks"):
        assert_close(getattr(ours, name), getattr(theirs, name), rtol=0, atol=0, msg=name)


# -- the attack -------------------------------------------------------------------------------------------------------


def test_by_name_and_by_objects_it_is_the_same_attack(batch):
    named = attacker(attack_seed=3)
    attack = PPBAAttack(low_frequencies(32), rho=0.4, eps=8.0, max_queries=30, seed=3)
    objects = PPBA(copy.deepcopy(named.model), attack, mean=MEAN, std=STD).eval()
    expected = attack(named, batch["image"], batch["label"], image_ids=batch["index"])
    assert {(bool(s), bool(k)) for s, k in zip(expected.success, expected.skipped, strict=True)} == {
        (True, False), (False, False), (False, True),
    }  # fmt: skip
    for module in (named, objects):
        same(module.attack_images(batch["image"], batch["label"], batch["index"]), expected)
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


# -- the test ---------------------------------------------------------------------------------------------------------


def test_what_is_logged_is_what_the_results_say(make_trainer, batch):
    module = attacker(compare_fixed=True)
    results = attack_run(make_trainer, module)
    expected = {
        "attack": attacker().attack_images(batch["image"], batch["label"], batch["index"]),
        "fixed": attacker(attack_args={"rho": 0.4, "count_update": "fixed"}).attack_images(
            batch["image"], batch["label"], batch["index"]
        ),
    }
    for name, whole in expected.items():
        parts = [output[name] for output in results.outputs]
        assert [len(part.ids) for part in parts] == [8, 4]
        assert_close(torch.cat([part.queries for part in parts]), whole.queries)
        assert_close(torch.cat([part.success for part in parts]), whole.success)
    attack, fixed = expected["attack"], expected["fixed"]
    tried = ~attack.skipped
    spent = attack.queries[attack.success].double().numpy()
    assert 0 < len(spent) < tried.sum() < IMAGES
    figures = {
        "success_rate": len(spent) / int(tried.sum()),
        "success_rate_uint8": int(attack.success_uint8.sum()) / int(tried.sum()),
        "mean_queries": spent.mean(),
        "median_queries": np.median(spent),
        "mean_queries_all": attack.queries[tried].double().mean().item(),
        "auc": (30 - spent).sum() / 30 / int(tried.sum()),
        "l2": attack.l2[attack.success].mean().item(),
        "top1": int(tried.sum()) / IMAGES,
        "adversarial_top1": int((attack.preds == batch["label"]).sum()) / IMAGES,
        "attacked": int(tried.sum()),
        "skipped": IMAGES - int(tried.sum()),
        "failed": 0,
        "success_rate_fixed": int(fixed.success.sum()) / int(tried.sum()),
        "mean_queries_fixed": fixed.queries[fixed.success].double().mean().item(),
    }
    assert results.logged == pytest.approx({f"test/{name}": value for name, value in figures.items()}, rel=1e-6)
    assert figures["mean_queries_fixed"] != figures["mean_queries"]


def test_the_ledger_holds_one_line_per_image(make_trainer, tmp_path, batch):
    results = attack_run(make_trainer, attacker(compare_fixed=True))
    for name, file in (("attack", "ledger.jsonl"), ("fixed", "ledger_fixed.jsonl")):
        lines = {line["id"]: line for line in read_ledger(tmp_path / file)}
        assert sorted(lines) == sorted(batch["index"].tolist())
        for output in results.outputs:
            for row, index in enumerate(output[name].ids.tolist()):
                line = lines[index]
                assert line["queries"] == output[name].queries[row]
                assert line["success"] == output[name].success[row]
                assert line["skipped"] == output[name].skipped[row]
                assert line["l2"] == pytest.approx(float(output[name].l2[row]), rel=1e-6)


def test_images_that_are_wrong_count_for_top1_alone(make_trainer):
    data = digits()
    data.setup("test")
    module = constant()
    labels = torch.cat([b["label"] for b in data.test_dataloader()])
    forwards = Forwards(module)
    logged = attack_run(make_trainer, module).logged
    threes = int((labels == 3).sum())
    assert logged["test/top1"] == pytest.approx(threes / IMAGES)
    assert logged["test/skipped"] == IMAGES - threes
    assert logged["test/attacked"] == threes
    assert forwards.images == IMAGES + 29 * threes  # a constant network: nothing succeeds, each spends its budget
    assert logged["test/success_rate"] == 0
    assert math.isnan(logged["test/mean_queries"])


def test_counts_are_exact_in_half_precision(make_trainer):
    module = constant(max_queries=2)
    data = digits(64, None)
    data.setup("test")
    labels = torch.cat([b["label"] for b in data.test_dataloader()])
    logged = attack_run(make_trainer, module, data, precision="bf16-true").logged
    threes = int((labels == 3).sum())
    assert (logged["test/attacked"], logged["test/skipped"]) == (threes, len(labels) - threes)
    assert logged["test/top1"] == pytest.approx(threes / len(labels), rel=1e-6)


def test_an_image_without_an_answer_is_not_one_that_was_right(make_trainer):
    module = attacker()
    with torch.no_grad():
        module.model.fc.bias.fill_(torch.nan)
    logged = attack_run(make_trainer, module).logged
    assert logged["test/failed"] == IMAGES
    assert logged["test/success_rate"] == 0
    assert logged["test/top1"] == logged["test/adversarial_top1"] == 0


def test_a_second_test_in_the_same_place_asks_nothing(make_trainer):
    first = attacker()
    before = attack_run(make_trainer, first)
    second = attacker()
    forwards = Forwards(second)
    after = attack_run(make_trainer, second)
    assert forwards.images == 0
    assert after.logged == before.logged
    for ours, theirs in zip(after.outputs, before.outputs, strict=True):
        same(ours["attack"], theirs["attack"])


@pytest.mark.parametrize("other", [{"mean": [0.5] * 3}, {"std": [0.5] * 3}, {"attack_seed": 1}])
def test_answers_of_another_network_or_attack_are_not_taken(make_trainer, tmp_path, other):
    attack_run(make_trainer, attacker())
    module = attacker(**other)
    forwards = Forwards(module)
    logged = attack_run(make_trainer, module).logged
    assert forwards.images > IMAGES
    make_trainer(default_root_dir=str(tmp_path / "new"), callbacks=[fresh := Results()]).test(
        attacker(**other), datamodule=digits(), verbose=False
    )
    assert logged == fresh.logged


def test_after_a_test_that_failed_the_module_is_as_before(make_trainer, tmp_path, batch):
    from callbacks import AttackLogger

    class Broken(Callback):
        def on_test_batch_end(self, *args):
            raise RuntimeError("broken")

    module = attacker()
    with pytest.raises(RuntimeError, match="broken"):
        attack_run(make_trainer, module, callbacks=[AttackLogger(), Broken()])
    assert module.on_attack_step is None
    files = {path: path.read_bytes() for path in tmp_path.glob("ledger*")}
    assert files
    module.attack_images(batch["image"].flip(3), batch["label"])
    assert {path: path.read_bytes() for path in tmp_path.glob("ledger*")} == files


def test_fast_dev_run_leaves_no_ledger(make_trainer, tmp_path):
    attack_run(make_trainer, attacker(), fast_dev_run=True)
    assert not list(tmp_path.glob("ledger*"))


def test_an_untrained_victim_is_named(make_trainer):
    with pytest.warns(UserWarning, match="no trained weights"):
        attack_run(make_trainer, PPBA("tiny", **OPTIONS), data=digits(images=2))


def test_data_with_more_classes_are_refused(make_trainer):
    with pytest.raises(ValueError, match=r"model\.num_classes=4, but the data has 10"):
        make_trainer().test(PPBA("tiny", num_classes=4, max_queries=30), datamodule=digits())


# -- precision --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("precision", "scores", "arithmetic"),
    [
        ("bf16-mixed", torch.bfloat16, torch.float32),
        ("bf16-true", torch.bfloat16, torch.float32),
        ("32-true", torch.float32, torch.float32),
        ("64-true", torch.float64, torch.float32),
    ],
)
def test_scores_have_the_trainers_precision_and_the_attack_its_own(
    make_trainer, monkeypatch, precision, scores, arithmetic
):
    step, seen, kept = _RandomWalk.step, set(), []

    def look(walk, draws):
        made = step(walk, draws)
        seen.update({walk.z.dtype, walk.images.dtype, walk.projection(walk.z).dtype})
        kept.append(walk.current(torch.ones(len(walk.rows), dtype=torch.bool)))
        assert made.loss.dtype == torch.float64
        return made

    monkeypatch.setattr(_RandomWalk, "step", look)
    module = attacker()
    forwards = Forwards(module)
    results = attack_run(make_trainer, module, precision=precision)
    assert forwards.dtypes == {scores}
    assert seen == {arithmetic}
    for adv, unclipped in kept:
        assert adv.dtype == unclipped.dtype == arithmetic
        assert (unclipped <= 8 * (1 + 1e-5)).all()
    assert all(output["attack"].adv.dtype == arithmetic for output in results.outputs)
    assert results.logged["test/attacked"] + results.logged["test/skipped"] == IMAGES
    assert 0 < results.logged["test/success_rate"] <= 1


# -- the victim -------------------------------------------------------------------------------------------------------


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
        same(other.attack_images(batch["image"], labels), expected)


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
    same(
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
    same(loaded.attack_images(batch["image"], batch["label"]), module.attack_images(batch["image"], batch["label"]))


# -- the user's own pictures ------------------------------------------------------------------------------------------


def test_predict_attacks_what_the_network_sees(batch):
    module = attacker(class_names=[f"digit {n}" for n in range(10)])
    assert isinstance(module, Predicts)
    images = batch["image"]
    labels = module(images).argmax(1)
    result = module.attack_images(images, labels)
    predictions = module.predict_step({"image": images}, 0)
    assert not result.skipped.any()
    for row, found in enumerate(predictions):
        assert found["label"] == labels[row]
        assert found["name"] == f"digit {labels[row]}"
        assert found["adversarial_label"] == result.preds[row]
        assert found["adversarial_name"] == f"digit {int(result.preds[row])}"
        assert (found["success"], found["success_uint8"]) == (result.success[row], result.success_uint8[row])
        assert found["queries"] == result.queries[row]
        assert found["l2"] == pytest.approx(float(result.l2[row]))
        assert found["adversarial"].dtype == torch.uint8
        assert_close(found["adversarial"] / 255, to_eight_bits(result.adv)[row], rtol=0, atol=1e-7)
        if found["success_uint8"]:
            seen = module(found["adversarial"][None] / 255).argmax().item()
            assert seen == found["adversarial_label"] != found["label"]
    assert {p["success"] for p in predictions} == {True, False}


def test_after_a_run_predict_attacks_as_well(make_trainer, batch):
    module = attacker()
    before = Predictor(module)(list(batch["image"][:2]))
    attack_run(make_trainer, module)
    after = Predictor(module)(list(batch["image"][:2]))
    assert "adversarial" in after[0]
    assert [p["queries"] for p in after] == [p["queries"] for p in before]


def test_inside_a_fit_and_a_test_it_says_what_it_sees(make_trainer):
    from callbacks import PredictionLogger

    module = attacker().train()
    seen, real = [], module.predict_step
    module.predict_step = lambda *args: seen.append(real(*args)) or seen[-1]
    forwards = Forwards(module)
    trainer = make_trainer(
        max_epochs=1, limit_train_batches=1, limit_val_batches=1, num_sanity_val_steps=0,
        callbacks=[PredictionLogger(num_images=5)],
    )  # fmt: skip
    trainer.fit(module, datamodule=CIFARDataModule("digits", batch_size=16))
    assert forwards.images == 16 + 16 + 5
    trainer.test(module, datamodule=digits(), verbose=False)
    assert [len(predictions) for predictions in seen] == [5, 5]
    assert all(set(p) == {"labels", "scores", "names"} for predictions in seen for p in predictions)


def test_predict_in_a_trainer_keeps_a_ledger(make_trainer, tmp_path, batch):
    module = attacker()
    alone = module.predict_step({"image": batch["image"]}, 0)
    loader = DataLoader([{"image": batch["image"][:7]}, {"image": batch["image"][7:]}], batch_size=None)
    (first, second) = make_trainer().predict(module, dataloaders=loader)
    assert [p["queries"] for p in first + second] == [p["queries"] for p in alone]
    lines = read_ledger(tmp_path / "ledger.jsonl")
    assert sorted(line["queries"] for line in lines) == sorted(p["queries"] for p in alone)


def test_drawings(batch):
    module = attacker()
    image = (batch["image"][0] * 255).round().byte().permute(1, 2, 0).numpy()
    (attacked,) = module.predict_step({"image": batch["image"][:1]}, 0)
    for given in (image, np.repeat(np.repeat(image, 2, 0), 3, 1)):  # of another size than the network's
        drawn = module.draw(given, attacked)
        assert drawn.dtype == np.uint8
        assert drawn.ndim == 3
        assert drawn.shape[1] > 2 * drawn.shape[0]  # three pictures side by side
    plain = {"labels": [3], "scores": [0.5], "names": ["3"], "label": 4}
    assert np.array_equal(module.draw(image, plain), ImageClassifier("tiny").draw(image, plain))


def test_the_graph_is_the_victims(batch):
    module = attacker()
    assert isinstance(module, Exports)
    graph = module.export_graphs()["classifier"]
    assert_close(graph.module(batch["image"]), module(batch["image"]), rtol=0, atol=1e-5)


# -- mistakes ---------------------------------------------------------------------------------------------------------


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
