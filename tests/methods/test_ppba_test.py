"""A test that attacks: what it logs and writes down, in which precision, and what it leaves."""

import math

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from torch.testing import assert_close

from lit_methods import PPBA
from lit_methods.ppba.ledger import read_ledger
from lit_methods.ppba.random_walk import _RandomWalk
from tests.attackers import (
    IMAGES,
    OPTIONS,
    Forwards,
    attack_run,
    attacker,
    constant,
    digits,
)
from tests.methods.toy_attacks import assert_equal


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
        assert_equal(ours["attack"], theirs["attack"])


def test_answers_of_another_network_or_attack_are_not_taken(make_trainer, batch):
    attack_run(make_trainer, attacker())
    for other in ({"mean": [0.5] * 3}, {"std": [0.5] * 3}, {"attack_seed": 1}):
        expected = attacker(**other).attack_images(batch["image"], batch["label"], batch["index"])
        results = attack_run(make_trainer, attacker(**other))
        found = torch.cat([output["attack"].adv for output in results.outputs])
        assert torch.equal(found, expected.adv), other


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
