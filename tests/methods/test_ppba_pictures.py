"""The user's own pictures: what predict gives, draws and keeps, and the graph that goes with it."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close
from torch.utils.data import DataLoader

from datamodules import CIFARDataModule
from lit_methods import ImageClassifier, Predictor
from lit_methods.contract import Exports, Predicts
from lit_methods.ppba.attack import to_eight_bits
from lit_methods.ppba.ledger import read_ledger
from tests.attackers import (
    Forwards,
    attack_run,
    attacker,
    digits,
)


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
