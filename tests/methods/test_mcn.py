"""The module: its loss and its parts, what is frozen, rates, what goes in and comes out."""

import pytest
import torch
from lightning.pytorch import Callback
from torch import nn
from torch.testing import assert_close

from lit_methods import MCN
from lit_methods.contract import Exports, Predicts
from lit_methods.functional.letterbox import letterbox_boxes, letterbox_params
from lit_methods.mcn.functional import (
    build_rec_targets,
    consistency_energy,
    consistency_energy_loss,
    postprocess_masks,
    rec_loss,
    res_loss,
)
from lit_methods.metrics.referring import GroundingAccuracy, InconsistencyError, MaskIoU, MaskPrecision
from tests.mcn_batches import SIDE, SIZES, WORDS, asked, fit, loader, mcn, nothing, settled, views
from tests.module_fits import gradients, logged

pytestmark = pytest.mark.usefixtures("light_grounder")
PARTS = ("loss_xy", "loss_wh", "loss_conf", "loss_seg", "loss_cem")


# -- the loss ----------------------------------------------------------------------------------------------------------


def test_the_loss_of_a_step_is_put_together_from_its_parts(make_trainer):
    module, given = mcn(rec_weight=2.0, seg_weight=0.3, cem_weight=0.7, ignore_iou=0.2, dropout=0.0), views()
    trial = mcn(dropout=0.0)
    trial.load_state_dict(module.state_dict())
    with torch.no_grad():
        vectors = trial.words(given["tokens"]) * (given["tokens"] > 1)[..., None]
        found = trial.model(given["image"].contiguous(memory_format=torch.channels_last), vectors)
        anchors = torch.tensor([[20.0, 20.0], [30.0, 30.0]])
        target = build_rec_targets(given["box"], anchors, SIDE)
        boxes = rec_loss(found["rec_raw"], target, anchors, SIDE, 0.2)
        middle = given["mask"][:, :, 4::8, 4::8].float()
        cem = (trial.model.cem_s, trial.model.cem_c)
        weights = [p.flatten() for conv in cem for p in (conv.weight, conv.bias)]
        expected = {f"loss_{name}": boxes[name] for name in ("xy", "wh", "conf")}
        expected["loss_seg"] = res_loss(found["seg_logits"], middle)
        expected["loss_cem"] = consistency_energy_loss(consistency_energy(found["attn_s"], found["attn_c"], *weights))
        expected["loss"] = 2 * boxes["rec"] + 0.3 * expected["loss_seg"] + 0.7 * expected["loss_cem"]
    trainer = make_trainer(fast_dev_run=True)
    fit(trainer, module, given)
    found = logged(trainer)
    for name, value in expected.items():
        assert found[f"train/{name}"] == pytest.approx(float(value), rel=1e-3), name
        assert found[f"train/{name}"] > 0, name


def test_every_weight_moves(make_trainer):
    module = mcn()
    before = {name: value.clone() for name, value in module.named_parameters()}
    fit(make_trainer(max_epochs=1), module)
    same = {name for name, value in module.named_parameters() if torch.equal(value, before[name])}
    # a constant that softmax over cells takes away again
    assert same - {"model.cem_s.bias", "model.cem_c.bias"} == set()
    moved = (module.words.weight - before["words.weight"]).abs().amax(1) > 0
    assert moved.tolist() == [False, False, True, False, True, True, True]  # padding, unknown, and "left" is not said


def test_without_consistency_energy_its_convolutions_want_nothing(make_trainer):
    """Processes would wait for gradients that do not come."""
    module = mcn(cem_weight=0)
    losses, found = gradients(module, views())
    assert "loss_cem" not in losses
    assert not [name for name in found if ".cem_" in name]
    held = [p for group in module.configure_optimizers()["optimizer"].param_groups for p in group["params"]]
    assert not {id(p) for p in held} & {
        id(p) for conv in (module.model.cem_s, module.model.cem_c) for p in conv.parameters()
    }
    trainer = make_trainer(fast_dev_run=True)
    fit(trainer, module, views())
    assert "train/loss_cem" not in logged(trainer)


def test_a_consistency_loss_of_ones_own_is_a_subclass(make_trainer, tmp_path):
    """With an argument beside those that it inherits; both are in its checkpoint."""
    trainer, given = make_trainer(fast_dev_run=True), views()
    own = {"backbone": "tiny", "hidden": 32, "dim": 16, "word_dim": 8, "vocabulary": WORDS, "max_words": 4}
    fit(trainer, Doubled(times=3.0, input_size=[3, SIDE, SIDE], seg_weight=0.2, **own), given)
    found = logged(trainer)
    rec = found["train/loss_xy"] + found["train/loss_wh"] + found["train/loss_conf"]
    assert found["train/loss_cem"] > 0
    assert found["train/loss"] == pytest.approx(rec + 0.2 * found["train/loss_seg"] + found["train/loss_cem"], rel=1e-5)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    again = Doubled.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    assert (again.hparams["times"], again.hparams["seg_weight"], again.hparams["dim"]) == (3.0, 0.2, 16)


class Doubled(MCN):
    def __init__(self, times: float = 2.0, **kwargs) -> None:
        super().__init__(**kwargs)

    def consistency_loss(self, found):
        return self.hparams["times"] * super().consistency_loss(found)


@pytest.mark.parametrize("precision", ["bf16-mixed", pytest.param("32-true", marks=pytest.mark.slow)])
def test_losses_are_finite_and_of_full_precision_in_mixed_precision(precision, make_trainer):
    seen = {}

    class Look(MCN):
        def losses(self, batch):
            seen["dtype"] = self.model(batch["image"], *self.embedded(batch["tokens"]))["rec_raw"].dtype
            seen.update(super().losses(batch))
            return {name: value for name, value in seen.items() if name != "dtype"}

    trainer = make_trainer(max_epochs=1, precision=precision)
    trainer.fit(Look(**dict(mcn().hparams)), loader(views()))
    assert (seen.pop("dtype") == torch.bfloat16) == (precision == "bf16-mixed")
    assert set(seen) == {"loss", *PARTS}
    assert {value.dtype for value in seen.values()} == {torch.float32}
    assert all(value.isfinite() for value in seen.values())


def test_half_precision_of_the_weights_is_refused(make_trainer):
    with pytest.raises(ValueError, match=r"precision=bf16-true .*; take bf16-mixed"):
        fit(make_trainer(precision="bf16-true", max_epochs=1), mcn())


# -- what is frozen ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", ["tiny", pytest.param("vgg16", marks=pytest.mark.slow)])
def test_frozen_layers_stay_as_they_are_and_the_tail_learns(backbone, make_trainer):
    module = mcn(backbone=backbone, freeze_backbone=True)
    frozen = module.model.frozen_part()
    names = set(module.model.backbone.state_dict())
    before = {name: value.clone() for name, value in module.model.backbone.state_dict().items()}
    modes = []

    class Modes(Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            modes.append({part.training for top in frozen for part in top.modules()})

    trainer = make_trainer(max_epochs=2, callbacks=[Modes()])
    trainer.fit(module, loader(views()), loader(asked()))  # a validation ends with train()
    assert modes == [{False}, {False}]
    assert {part.training for top in frozen for part in top.modules()} == {False}
    assert all(part.training for part in module.model.backbone.tail[-1].modules())
    after = module.model.backbone.state_dict()
    changed = {name for name in names if not torch.equal(after[name], before[name])}
    count = 2 if backbone == "tiny" else 1
    last = len(module.model.backbone.tail) - count
    own = {name for name in names if name.startswith("tail.") and int(name.split(".")[1]) >= last}
    assert changed == own
    gradients(module, views())
    assert all(p.grad is None for part in frozen for p in part.parameters())
    assert all(p.grad is not None for p in module.model.backbone.tail[-1].parameters())


def test_nothing_frozen_is_given_to_the_optimizer():
    module = mcn(freeze_backbone=True)
    held = {id(p) for group in module.configure_optimizers()["optimizer"].param_groups for p in group["params"]}
    frozen = {id(p) for part in module.model.frozen_part() for p in part.parameters()}
    assert frozen
    assert not held & frozen
    assert held == {id(p) for p in module.parameters()} - frozen


def test_only_kernels_of_convolutions_decay():
    module = mcn(lr=0.02, weight_decay=0.5)
    optimizer = module.configure_optimizers()["optimizer"]
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    for name, part in module.named_modules():
        for parameter in part.parameters(recurse=False):
            kernel = isinstance(part, nn.Conv2d) and parameter is part.weight and ".cem_" not in name
            assert decays.pop(id(parameter)) == (0.5 if kernel else 0), name
    assert not decays
    assert isinstance(optimizer, torch.optim.Adam)
    assert (optimizer.defaults["lr"], optimizer.defaults["eps"], optimizer.defaults["betas"]) == (
        0.02,
        1e-7,
        (0.9, 0.999),
    )


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, {28: 1e-3, 29: 1e-4, 33: 1e-4, 34: 1e-5, 39: 1e-6, 44: 1e-6}),
        ({"milestones": [2], "gamma": 0.5}, {1: 1e-3, 2: 5e-4}),
    ],
)
def test_the_rate_falls_at_milestones(arguments, expected):
    found = mcn(**arguments).configure_optimizers()
    rates = []
    for _ in range(max(expected) + 1):
        rates.append(found["optimizer"].param_groups[0]["lr"])
        found["optimizer"].step()
        found["lr_scheduler"].step()
    assert {epoch: rates[epoch] for epoch in expected} == pytest.approx(expected)


# -- what goes in and comes out ----------------------------------------------------------------------------------------


def test_sentences_about_one_picture_share_one_look_at_it(monkeypatch):
    """And get what each of them gets alone."""
    module, batch, seen = settled(), asked(0, 3, SIZES), []
    batch["image_id"][2:4] = 8
    nn.init.normal_(module.model.rec.weight, std=30.0)  # boxes of several sizes and confidences
    real = module.model.visual
    monkeypatch.setattr(module.model, "visual", lambda image: seen.append(len(image)) or real(image))
    given = [batch[name] for name in ("image", "tokens", "size")]
    boxes, scores, masks = module.predict_rows(*given, batch["image_id"])
    assert seen == [3]
    alone = [module.predict_rows(*(part[row : row + 1] for part in given)) for row in range(6)]
    assert seen[1:] == [1] * 6
    assert boxes.dtype == torch.int64
    for row, (box, score, mask) in enumerate(alone):
        assert torch.equal(boxes[row], box[0])
        assert_close(scores[row], score[0], rtol=1e-5, atol=1e-6)
        assert masks[row].shape == tuple(batch["size"][row].tolist())
        assert masks[row].dtype == torch.bool
        assert (masks[row] != mask[0]).float().mean() < 0.01
    assert len(scores.unique()) > 3
    assert len(boxes.unique(dim=0)) > 2


def test_many_sentences_go_through_the_network_in_parts(monkeypatch):
    module, batch, seen = settled(), asked(0, 4), []
    expected = module.predict_rows(*(batch[name] for name in ("image", "tokens", "size", "image_id")))
    real = module.model.ground
    monkeypatch.setattr("lit_methods.mcn.module.MOST_ROWS", 3)
    monkeypatch.setattr(
        module.model, "ground", lambda visual, language: seen.append(len(language)) or real(visual, language)
    )
    found = module.predict_rows(*(batch[name] for name in ("image", "tokens", "size", "image_id")))
    assert seen == [3, 3, 2]
    assert torch.equal(found[0], expected[0])
    assert_close(found[1], expected[1], rtol=1e-5, atol=1e-6)
    assert len(found[2]) == 8


def test_another_picture_and_another_sentence_change_the_answer():
    module, batch = settled(), asked(0, 2)
    with torch.no_grad():
        found = module(batch["image"], batch["tokens"])
    assert_close(
        found["seg_logits"][0], module.model(batch["image"][:1], *module.embedded(batch["tokens"][:1]))["seg_logits"][0]
    )
    for one, other in ((0, 1), (0, 2)):  # the other colour, the other picture
        for name in ("seg_logits", "rec_raw"):
            assert (found[name][one] - found[name][other]).abs().max() > 1e-5, name


@pytest.mark.parametrize("mode", ["adaptive", pytest.param("hard", marks=pytest.mark.slow), "none"])
def test_the_box_acts_on_the_mask_as_asked(mode):
    module, batch = settled(asnls=mode), asked(0, 2, SIZES)
    nn.init.normal_(module.model.rec.weight, std=2.0)  # boxes of several sizes and confidences
    with torch.no_grad():
        logits = module(batch["image"], batch["tokens"])["seg_logits"]
    threshold = module.hparams["threshold"] = float(logits.sigmoid().median())
    boxes, scores, masks = module.predict_rows(*(batch[name] for name in ("image", "tokens", "size", "image_id")))
    sizes = [tuple(hw) for hw in batch["size"].tolist()]
    expected, _ = postprocess_masks(logits, boxes, scores, sizes, SIDE, threshold=threshold, mode=mode)
    for mask, other in zip(masks, expected, strict=True):
        assert (mask != other).float().mean() < 0.01


def test_a_prediction_is_in_pixels_of_the_picture():
    module, batch = settled(threshold=0.1), asked(0, 3, SIZES)
    boxes, scores, masks = module.predict_rows(*(batch[name] for name in ("image", "tokens", "size", "image_id")))
    found = module.predict_step(batch | {"file": [f"{row}.jpg" for row in range(6)]}, 0)
    assert len(found) == 6
    for row, each in enumerate(found):
        height, width = batch["size"][row].tolist()
        assert set(each) == {"file", "text", "pred_box", "score", "pred_mask", "agreement"}
        assert (each["file"], each["text"]) == (f"{row}.jpg", batch["sentence"][row])
        assert each["score"] == float(scores[row])
        assert torch.equal(each["pred_mask"], masks[row])
        box = letterbox_boxes(boxes[row].float(), letterbox_params(width, height, SIDE), inverse=True)
        assert_close(each["pred_box"], box.clamp(min=0).minimum(torch.tensor([width, height, width, height])))
        assert each["pred_box"].dtype == torch.float32
        assert 0 <= each["agreement"] <= 1
    assert any(each["pred_mask"].any() for each in found)
    assert any(each["agreement"] > 0 for each in found)


@pytest.mark.parametrize(
    ("mask", "agreement"),
    [((slice(10, 30), slice(20, 40)), 1), ((slice(10, 30), slice(20, 30)), 0.5), ((slice(0, 0), slice(0, 0)), 0)],
    ids=["the same", "half of it", "empty"],
)
def test_agreement_is_the_overlap_of_the_box_with_the_mask(mask, agreement, monkeypatch):
    module, batch = mcn().eval(), {name: value[:1] for name, value in asked(0, 1).items()}
    drawn = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    drawn[mask] = True
    answer = torch.tensor([[20, 10, 40, 30]]), torch.tensor([0.5]), [drawn]
    monkeypatch.setattr(module, "predict_rows", lambda *given: answer)
    (found,) = module.predict_step(batch, 0)
    assert found["pred_box"].tolist() == [20, 10, 40, 30]
    assert found["agreement"] == pytest.approx(agreement)


def test_pictures_without_sentences_are_refused():
    with pytest.raises(ValueError, match="--text 'the man in red'"):
        mcn().eval().predict_step({"image": torch.rand(1, 3, SIDE, SIDE)}, 0)


def test_it_offers_what_the_entry_points_ask_for():
    assert isinstance(mcn(), Predicts)
    assert isinstance(mcn(), Exports)


# -- evaluation --------------------------------------------------------------------------------------------------------


def test_a_validation_scores_what_it_finds(make_trainer):
    """Also with a batch of no sentences, and it leaves the module in training."""
    module, batches = mcn(threshold=0.1), [asked(0, 2), nothing(), asked(1, 3)]
    trainer = make_trainer(max_epochs=1, num_sanity_val_steps=0)
    trainer.fit(module, loader(views()), loader(*batches))
    assert module.training
    found = logged(trainer)
    module.eval()
    boxes, truth, masks, drawn = [], [], [], []
    for batch in (batches[0], batches[2]):
        answer = module.predict_rows(*(batch[name] for name in ("image", "tokens", "size", "image_id")))
        boxes.append(answer[0])
        truth.append(batch["box"])
        masks += answer[2]
        drawn += batch["mask"]
    boxes, truth = torch.cat(boxes), torch.cat(truth)
    metrics = {
        "acc50": GroundingAccuracy(),
        "miou": MaskIoU("mean"),
        "oiou": MaskIoU("overall"),
        "ie": InconsistencyError(),
    }
    metrics["acc50"].update(boxes, truth)
    metrics["ie"].update(boxes, truth, masks, drawn)
    precision = MaskPrecision()
    for metric in (metrics["miou"], metrics["oiou"], precision):
        metric.update(masks, drawn)
    expected = {name: metric.compute() for name, metric in metrics.items()} | precision.compute()
    assert {name.removeprefix("val/") for name in found if name.startswith("val/")} == set(expected)
    for name, value in expected.items():
        assert found[f"val/{name}"] == pytest.approx(float(value), abs=1e-6), name
    assert found["val/miou"] > 0


def test_figures_of_one_stage_do_not_run_into_the_next(make_trainer):
    module, trainer = settled(threshold=0.1), make_trainer()
    (first,) = trainer.test(module, loader(asked(0)), verbose=False)
    trainer.test(module, loader(asked(1, 3)), verbose=False)
    (again,) = trainer.test(module, loader(asked(0)), verbose=False)
    assert again == first


def test_an_evaluation_gives_callbacks_each_answer(make_trainer):
    kept = []

    class Keep(Callback):
        def on_test_batch_end(self, trainer, pl_module, outputs, *args):
            kept.append(outputs)

    make_trainer(callbacks=[Keep()]).test(settled(), loader(asked(0), nothing()), verbose=False)
    full, empty = kept
    for name in ("boxes", "scores", "masks", "box_iou", "mask_iou"):
        assert len(full[name]) == 4, name
        assert len(empty[name]) == 0, name
    assert full["box_iou"].dtype == full["mask_iou"].dtype == torch.float64


def test_weights_that_are_no_numbers_do_not_stop_an_evaluation(make_trainer):
    module = settled()
    for value in (module.model.rec.weight, module.model.decoder.state_dict()):
        tensors = value.values() if isinstance(value, dict) else [value]
        for tensor in tensors:
            if tensor.is_floating_point():
                tensor.detach().fill_(float("nan"))
    (found,) = make_trainer().test(module, loader(asked()), verbose=False)
    assert found["test/acc50"] == 0
    assert found["test/miou"] == pytest.approx(0, abs=1e-9)
    for each in module.predict_step(asked(), 0):
        assert not each["pred_mask"].any()
        assert each["agreement"] == 0


def test_a_sentence_without_words_has_an_answer():
    for mask_padding in (False, True):
        module, batch = settled(mask_padding=mask_padding), asked(0, 1)
        batch["tokens"][0] = 0  # padding alone
        batch["tokens"][1] = torch.tensor([1, 1, 0, 0])  # unknown words alone
        _, scores, masks = module.predict_rows(*(batch[name] for name in ("image", "tokens", "size", "image_id")))
        assert scores.isfinite().all()
        assert len(masks) == 2
        losses = module.train().losses(views() | {"tokens": torch.zeros(4, 4, dtype=torch.int64)})
        assert all(value.isfinite() for value in losses.values())


@pytest.mark.parametrize("mask_padding", [False, True])
def test_padding_counts_unless_it_is_masked(mask_padding):
    """A new GRU has no biases, so that it stays where it is in front of the words; their attention decides."""
    module, batch = mcn(mask_padding=mask_padding).eval(), asked(0, 1)
    longer = torch.cat([batch["tokens"], torch.zeros(2, 3, dtype=torch.int64)], 1)
    with torch.no_grad():
        one, other = (module.model.language(*module.embedded(tokens)) for tokens in (batch["tokens"], longer))
    assert torch.allclose(one, other, atol=1e-6) == mask_padding
