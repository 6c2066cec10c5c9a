"""The module: its loss on one and several processes, rates, options, checkpoints, what it refuses, what it learns."""

from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import DDPStrategy
from torch.testing import assert_close

from lit_methods import ASFD
from lit_methods.asfd.functional import drmc_loss, make_anchors, match_batch
from lit_methods.asfd.genotype import random_genotype
from lit_methods.asfd.pixels import Pixels
from lit_methods.contract import Exports, Predicts
from lit_methods.inference import Predictor
from lit_methods.metrics.face_detection import WIDERFaceAP
from tests.asfd_batches import SIDE, SIMPLE, asfd, loader, pictures, scene, unbegun, views
from tests.forked import answers_of
from tests.module_fits import gradients, logged

DRAW = torch.Generator().manual_seed


def fit(trainer, module, *batches, **more):
    trainer.fit(module, loader(*(batches or (views(0), views(1)))), **more)
    return module


# -- the loss ----------------------------------------------------------------------------------------------------------


def test_the_loss_of_a_step_is_that_of_the_matched_anchors(make_trainer):
    given = views(faces=(3, 1))
    module = asfd(margin=0.3, scale=2.0, reg_weight=0.5, neg_ratio=2, match_threshold=0.35, low_threshold=0.3)
    trial = asfd()
    trial.load_state_dict(module.state_dict())
    trial.train()
    anchors = make_anchors(SIDE, SIDE)
    labels, faces = match_batch(given["boxes"], anchors, 0.35, 0.3)
    with torch.no_grad():
        cls, loc = trial.model(Pixels()(given["image"]))
        options = {"margin": 0.3, "scale": 2.0, "reg_weight": 0.5, "neg_ratio": 2}
        expected = drmc_loss(cls, loc, labels, faces, given["boxes"], anchors, **options)
    trainer = make_trainer(fast_dev_run=True)
    fit(trainer, module, given)
    found = logged(trainer)
    for name, value in expected.items():
        assert found[f"train/{name}"] == pytest.approx(float(value), rel=1e-3), name
    assert found["train/positives"] == int((labels == 1).sum()) / 2 > 1


@pytest.mark.parametrize(
    "arguments",
    [
        {"cls_mode": "cosine", "apply_to": "positives", "reg_loss": "ciou"},
        {"reg_loss": "smooth_l1", "pixels": "caffe", "compensate": 6},
        pytest.param({"reg_loss": "giou", "neg_ratio": None, "prior": 0.01}, marks=pytest.mark.slow),
        pytest.param({"reg_loss": "iou", "low_threshold": 0.3, "size": "d2"}, marks=pytest.mark.slow),
    ],
)
def test_every_option_learns(arguments, make_trainer):
    module, trainer = asfd(**arguments), make_trainer(max_epochs=1)
    before = {name: value.clone() for name, value in module.named_parameters()}
    fit(trainer, module, views())
    same = [name for name, value in module.named_parameters() if torch.equal(value, before[name])]
    assert [name for name in same if ".cpm." not in name] == []  # of the top levels perhaps no anchor counts
    assert 0 < logged(trainer)["train/loss"] < 1000


def test_a_batch_without_any_face_moves_nothing(make_trainer):
    module, trainer = asfd(weight_decay=0.0), make_trainer(max_epochs=1)
    before = {name: value.clone() for name, value in module.named_parameters()}
    fit(trainer, module, views(faces=(0, 0)), views(faces=(0,)) | {"image": torch.zeros(1, 3, 160, 160)})
    assert logged(trainer)["train/loss"] == 0
    assert logged(trainer)["train/positives"] == 0
    assert [name for name, value in module.named_parameters() if not torch.equal(value, before[name])] == []
    assert all(value.isfinite().all() for value in module.state_dict().values())


def test_without_mining_a_batch_without_any_face_is_background():
    losses, found = gradients(asfd(neg_ratio=None), views(faces=(0, 0)))
    assert losses["reg_loss"] == 0
    assert losses["loss"] > 0
    assert all(value.isfinite().all() for value in found.values())


def test_a_picture_without_faces_beside_another_adds_nothing():
    module, given = asfd().eval(), views(faces=(2, 0))
    both, found = gradients(module, given)
    alone = {"image": given["image"][:1], "boxes": given["boxes"][:1]}
    one, expected = gradients(module, alone)
    assert both["loss"] > 0
    assert_close(both["loss"], one["loss"], rtol=1e-5, atol=0)
    for name, value in expected.items():
        assert_close(found[name], value, rtol=1e-3, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


def joint_of(batches):
    return {
        "image": torch.cat([batch["image"] for batch in batches]),
        "boxes": [boxes for batch in batches for boxes in batch["boxes"]],
    }


def in_processes(module, world):
    """As if the Trainer had these processes, whose group is there already."""
    module._trainer = SimpleNamespace(world_size=world, strategy=DDPStrategy(accelerator=CPUAccelerator()))
    return module


def mean_gradients(rank, cases, state, folder, put):
    module = in_processes(asfd(**state["arguments"]).double().eval(), 2)
    module.load_state_dict(state["weights"])
    for number, case in enumerate(cases):
        _, found = gradients(module, case[rank])
        total = torch.cat([value.flatten() for value in found.values()])
        torch.distributed.all_reduce(total)
        parts = (total / 2).split([value.numel() for value in found.values()])
        mean = {name: part.view_as(found[name]).clone() for name, part in zip(found, parts, strict=True)}
        torch.save(mean, folder / f"{rank}-{number}.pt")
    put(rank)


@pytest.mark.parametrize("ratio", [3, pytest.param(None, marks=pytest.mark.slow)])
def test_two_processes_have_the_gradient_of_one_on_both_batches(ratio, tmp_path):
    """Faces are uneven, then on one process alone, then on none. Batch norms are at rest, which see their own batch."""
    arguments = {"neg_ratio": ratio}
    module = asfd(**arguments).double().eval()
    cases = [[views(0, one), views(1, other)] for one, other in (((3, 2), (1,)), ((2,), (0, 0)), ((0,), (0,)))]
    cases = [[batch | {"image": batch["image"].double()} for batch in case] for case in cases]
    state = {"arguments": arguments, "weights": module.state_dict()}
    assert len(answers_of(mean_gradients, 2, tmp_path, cases, state, tmp_path)) == 2
    for number, case in enumerate(cases):
        _, expected = gradients(module, joint_of(case))
        found = [torch.load(tmp_path / f"{rank}-{number}.pt", weights_only=True) for rank in range(2)]
        assert found[0].keys() == expected.keys()
        for name, value in expected.items():
            assert torch.equal(found[0][name], found[1][name])
            assert_close(found[0][name], value, rtol=1e-8, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}")


def test_processes_without_any_face_have_no_loss(tmp_path):
    """Beside each other, in the same step."""
    module = in_processes(asfd(), 2)
    module._trainer.strategy = SimpleNamespace(reduce=lambda x, reduce_op: x)
    assert module._over_processes(torch.tensor(0.0)) == 0.5  # in total 1
    assert gradients(module, views(faces=(0, 0)))[0]["loss"] == 0


# -- rates -------------------------------------------------------------------------------------------------------------


def factors(steps, **arguments):
    module = asfd(**arguments)
    module._trainer = unbegun(steps)
    factor = module.lr_factor()
    return [factor(step) for step in range(steps)]


def test_the_rate_rises_and_falls_twice():
    found = factors(60_000, warmup_steps=1000)
    assert found[0] == pytest.approx(1 / 1001)
    assert found[499] == pytest.approx(500 / 1001)
    assert [found[step] for step in (1000, 39_999)] == [1, 1]
    assert [found[step] for step in (40_000, 49_999)] == pytest.approx([0.1, 0.1])
    assert [found[step] for step in (50_000, 59_999)] == pytest.approx([0.01, 0.01])


def test_a_short_run_rises_over_a_tenth_and_falls_where_asked():
    assert factors(20, warmup_steps=1000, milestones=[0.5], gamma=0.5) == pytest.approx(
        [1 / 3, 2 / 3] + [1.0] * 8 + [0.5] * 10
    )
    assert factors(5, warmup_steps=1000, milestones=[]) == [1] * 5


class Rates(Callback):
    def __init__(self):
        self.rates = []

    def on_train_batch_start(self, trainer, *args):
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])


@pytest.mark.slow
def test_a_resumed_run_goes_on_with_its_rates(make_trainer, tmp_path):
    arguments = {"lr": 1.0, "warmup_steps": 9, "milestones": [0.5]}
    module, rates, batches = asfd(**arguments), Rates(), [views(n) for n in range(5)]
    trainer = make_trainer(max_epochs=2, callbacks=[rates])
    trainer.fit_loop.max_epochs = 2
    module.model.requires_grad_(False)  # rates alone are looked at
    module.model.head.loc.requires_grad_(True)
    saved = tmp_path / "a.ckpt"

    class Save(Callback):
        def on_train_epoch_end(self, trainer, *args):
            if trainer.current_epoch == 0:
                trainer.save_checkpoint(saved)

    trainer.callbacks.append(Save())
    fit(trainer, module, *batches)
    assert rates.rates == pytest.approx([0.5, 1, 1, 1, 1, 0.1, 0.1, 0.1, 0.1, 0.1])
    again = Rates()
    fit(make_trainer(max_epochs=2, callbacks=[again]), asfd(**arguments), *batches, ckpt_path=saved)
    assert again.rates == rates.rates[5:]


def test_a_fit_without_an_end_is_refused(make_trainer):
    with pytest.raises(ValueError, match=r"trainer\.max_steps or trainer\.max_epochs must be given"):
        fit(make_trainer(max_epochs=-1, limit_train_batches=1), asfd())


# -- what goes in and comes out ----------------------------------------------------------------------------------------


def settled(**arguments):
    """A network whose batch norms have seen pictures, so that its answers differ from place to place."""
    module = asfd(**arguments)
    with torch.no_grad():
        for seed in range(3):
            module.model(module.normalize(views(seed, (1, 1, 1))["image"]))
    return module.eval()


def test_pictures_of_many_sizes_give_what_each_gives_alone():
    module = settled()
    batch = pictures((128, 160), (150, 128), (128, 160), (131, 257))
    with torch.no_grad():
        together = module.predict_step(batch, 0)
        alone = [module.predict_step({"image": [image]}, 0)[0] for image in batch["image"]]
    for one, other, name, image in zip(together, alone, batch["name"], batch["image"], strict=True):
        assert (one["file"], one["height"], one["width"]) == (name, *image.shape[1:])
        assert len(one["scores"]) > 5
        assert one["scores"].tolist() == sorted(one["scores"].tolist(), reverse=True)
        assert one["face_boxes"].dtype == torch.float32
        for key in ("face_boxes", "scores"):
            assert_close(one[key], other[key], rtol=1e-4, atol=1e-3)


def test_boxes_of_a_network_that_says_nothing_are_the_anchors():
    module = asfd(prior=0.2).eval()
    with torch.no_grad():
        for head in (module.model.head.cls, module.model.head.loc):
            torch.nn.init.zeros_(head.weight)
        boxes, scores = module(torch.rand(2, 3, 130, 200))
    assert_close(boxes, make_anchors(130, 200).expand(2, -1, 4), rtol=0, atol=1e-4)
    assert_close(scores, torch.full_like(scores, 0.2))


def test_the_network_sees_the_pixels_it_was_made_for():
    image, seen = torch.rand(1, 3, 128, 128), []
    for kind in ("imagenet", "caffe"):
        module = asfd(pixels=kind).eval()
        module.model.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
        module.answers(image)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    assert_close(seen[0], (image - mean) / std)
    assert_close(seen[1][:, 0], image[:, 2] * 255 - 104)
    assert_close(seen[1][:, 1], image[:, 1] * 255 - 117)
    assert_close(seen[1][:, 2], image[:, 0] * 255 - 123)


def test_other_pixels_are_refused():
    with pytest.raises(ValueError, match=r"pixels='grey' must be one of imagenet, caffe"):
        Pixels("grey")


def test_many_scales_are_an_option_of_the_module_and_of_a_call(monkeypatch):
    asked, empty = [], torch.zeros(0, 5)
    monkeypatch.setattr(
        "lit_methods.asfd.module.detect_multi_scale", lambda *given, **options: asked.append(1) or empty
    )
    image = [torch.rand(3, 128, 128)]
    for own, call, count in ((False, None, 0), (False, True, 1), (True, None, 2), (True, False, 2)):
        asfd(multi_scale=own, max_boxes=1, pre_nms=2).eval().detect(image, call)
        assert len(asked) == count


def test_validation_scores_all_pictures_and_says_how_many_faces_it_found(make_trainer):
    module, batches = asfd(), [pictures((128, 160)), pictures((128, 128), (150, 140), seed=1)]
    trainer = make_trainer(max_epochs=1, num_sanity_val_steps=1)
    trainer.fit(module, loader(views()), loader(*batches))
    assert module.training
    found, metric, count = logged(trainer), WIDERFaceAP(()), 0
    module.eval()
    for batch in batches:
        faces = module.detect(batch["image"])
        metric.update(
            [{"boxes": each[:, :4], "scores": each[:, 4]} for each in faces], [{"boxes": b} for b in batch["boxes"]]
        )
        count += sum(map(len, faces))
    assert {name for name in found if name.startswith("val/")} == {"val/ap_all", "val/detections"}
    assert found["val/ap_all"] == pytest.approx(float(metric.compute()["all"]), abs=1e-6)
    assert found["val/detections"] == pytest.approx(count / 3)


def test_it_offers_what_the_entry_points_ask_for():
    assert isinstance(asfd(), Predicts)
    assert isinstance(asfd(), Exports)


def test_a_method_with_losses_of_its_own_is_a_subclass(make_trainer, tmp_path):
    """With an argument beside those that it inherits; both are in its checkpoint."""
    trainer = make_trainer(max_epochs=1)
    fit(trainer, Doubled(times=3.0, channels=8, genotype=SIMPLE, margin=0.1, warmup_steps=0), views())
    found = logged(trainer)
    assert found["train/loss"] == pytest.approx(3 * (found["train/cls_loss"] + found["train/reg_loss"]), rel=1e-5)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    again = Doubled.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    assert (again.hparams["times"], again.hparams["margin"], again.hparams["channels"]) == (3.0, 0.1, 8)


class Doubled(ASFD):
    def __init__(self, times: float = 2.0, **kwargs) -> None:
        super().__init__(**kwargs)

    def losses(self, batch):
        losses = super().losses(batch)
        return losses | {"loss": self.hparams["times"] * losses["loss"]}


# -- checkpoints -------------------------------------------------------------------------------------------------------


def test_a_checkpoint_holds_its_genotype_and_is_loaded_without_code(make_trainer, tmp_path):
    """Also where the genotype came from a file that is gone since."""
    genotype = random_genotype(DRAW(1))
    (tmp_path / "genotype.json").write_text(str(genotype.to_dict()).replace("'", '"'))
    trainer, module = make_trainer(), settled(genotype=str(tmp_path / "genotype.json"), cls_mode="cosine")
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    (tmp_path / "genotype.json").unlink()
    assert torch.load(tmp_path / "a.ckpt", weights_only=True)["hyper_parameters"]["genotype"] == genotype.to_dict()
    again = ASFD.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True).eval()
    assert dict(again.hparams) == dict(module.hparams)
    image = torch.rand(1, 3, 128, 140)
    with torch.no_grad():
        assert all(map(torch.equal, again(image), module(image)))
        assert Predictor.from_checkpoint(tmp_path / "a.ckpt")([image[0]])[0]["width"] == 140


@pytest.mark.slow
def test_it_starts_from_a_checkpoint_and_does_not_ask_for_it_again(make_trainer, tmp_path):
    trainer, module = make_trainer(), asfd()
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    begun = asfd(base_checkpoint=str(tmp_path / "a.ckpt"), margin=0.0)
    assert all(torch.equal(value, module.state_dict()[name]) for name, value in begun.state_dict().items())
    trainer.strategy.connect(begun)
    trainer.save_checkpoint(tmp_path / "b.ckpt")
    (tmp_path / "a.ckpt").unlink()
    assert ASFD.load_from_checkpoint(tmp_path / "b.ckpt", weights_only=True).hparams["margin"] == 0


# -- what it refuses ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"size": "d7"}, r"size='d7' must be one of d0, d1"),
        ({"genotype": {"fpn": {}}}, r"genotype"),
        ({"genotype": "nowhere.json"}, r"nowhere\.json.* does not exist"),
        ({"channels": 0}, r"channels=0 must be at least 1"),
        ({"cls_mode": "softmax"}, r"cls_mode='softmax' must be one of logit, cosine"),
        ({"scale": 0.0}, r"scale=0\.0 must be positive"),
        ({"margin": -0.1}, r"margin=-0\.1 must not be negative"),
        ({"apply_to": "faces"}, r"apply_to='faces' must be one of both, positives"),
        ({"reg_loss": "l1"}, r"reg_loss='l1' must be one of diou, iou, giou, ciou, smooth_l1"),
        ({"reg_weight": -1.0}, r"reg_weight=-1\.0"),
        ({"neg_ratio": 0}, r"neg_ratio=0 must be positive, or null for all negatives"),
        ({"prior": 1.0}, r"prior=1\.0 must lie between 0 and 1"),
        ({"match_threshold": 0.0}, r"match_threshold=0\.0 must lie in \(0, 1\]"),
        ({"low_threshold": 0.5}, r"low_threshold=0\.5 must lie between 0 and match_threshold=0\.4"),
        ({"compensate": -1}, r"compensate=-1"),
        ({"pixels": "bgr"}, r"pixels='bgr' must be one of imagenet, caffe"),
        ({"lr": 0.0}, r"lr=0\.0 must be positive"),
        ({"momentum": 1.0}, r"momentum=1\.0"),
        ({"weight_decay": -1.0}, r"weight_decay=-1\.0"),
        ({"warmup_steps": -1}, r"warmup_steps=-1"),
        ({"milestones": [0.5, 40_000]}, r"milestones=\[0\.5, 40000\] must be parts of the run"),
        ({"gamma": 0.0}, r"gamma=0\.0"),
        ({"score_threshold": 1.0}, r"score_threshold=1\.0"),
        ({"pre_nms": 0}, r"pre_nms=0"),
        ({"nms_iou": 1.5}, r"nms_iou=1\.5"),
        ({"max_boxes": 0}, r"max_boxes=0"),
        ({"base_checkpoint": "nowhere.ckpt"}, r"nowhere\.ckpt"),
        ({"lr": float("nan")}, r"lr=nan"),
    ],
)
def test_arguments_out_of_range_are_named(arguments, text):
    with pytest.raises((ValueError, FileNotFoundError), match=text):
        asfd(**arguments)


def test_two_halves_are_for_the_search():
    module = asfd()
    module._trainer = SimpleNamespace(datamodule=SimpleNamespace(split_halves=True))
    with pytest.raises(ValueError, match=r"ASFD does not take two halves .* set data\.split_halves to false"):
        module.setup("fit")
    module.setup("validate")


def test_views_below_the_largest_stride_are_refused_before_a_fit():
    module = asfd()
    module._trainer = SimpleNamespace(datamodule=SimpleNamespace(image_size=127))
    with pytest.raises(ValueError, match=r"data\.image_size=127 must be at least 128, the largest stride"):
        module.setup("fit")


def test_a_batch_of_one_smallest_view_is_learnt_from():
    """Its top level is a single value, which batch norm alone refuses."""
    losses, found = gradients(asfd().train(), views(faces=(2,)))
    assert losses["loss"] > 0
    assert all(value.isfinite().all() for value in found.values())


def test_a_picture_below_the_largest_stride_is_refused():
    with pytest.raises(ValueError, match=r"128x64 .*, below 128, the largest stride: raise data\.image_size"):
        asfd().losses({"image": torch.rand(2, 3, 64, 128), "boxes": [torch.zeros(0, 4)] * 2})
    with pytest.raises(ValueError, match=r"160x127 \(width x height\), below 128, the largest stride"):
        asfd().eval().detect([torch.rand(3, 128, 128), torch.rand(3, 127, 160)])


# -- what it learns ----------------------------------------------------------------------------------------------------


class ByAdam(ASFD):
    def weight_optimizer(self, parameters):
        return torch.optim.Adam(parameters, self.hparams["lr"])


def test_one_batch_is_overfitted(make_trainer):
    """By an optimiser that is faster at it."""
    arguments = {"channels": 8, "genotype": SIMPLE, "prior": 0.25, "warmup_steps": 0, "milestones": []}
    module, given = ByAdam(**arguments, lr=0.02), views(3, (2, 1))
    first = float(module.losses(given)["loss"].detach())
    trainer = make_trainer(max_epochs=20, gradient_clip_val=10.0)
    fit(trainer, module, given)
    assert logged(trainer)["train/loss"] < 0.5 * first
    labels, _ = match_batch(given["boxes"], make_anchors(SIDE, SIDE))
    with torch.no_grad():
        scores = module.train()(given["image"])[1]
    assert scores[labels == 1].mean() > scores[labels == 0].mean() + 0.3


def taught(shuffled):
    """Loss of the first and last steps, and average precision on other pictures."""
    draw = DRAW(0)
    scenes = [scene(draw) for _ in range(128)]
    if shuffled:
        boxes = [scenes[number - 1][1] for number in range(128)]
        scenes = [(image, other) for (image, _), other in zip(scenes, boxes, strict=True)]
    module, steps, losses = ASFD("d0", prior=0.25, reg_weight=3.0), 200, []
    optimizer = torch.optim.SGD(module.parameters(), momentum=0.9, weight_decay=5e-4, lr=0.05)
    for step in range(steps):
        chosen = torch.randint(0, 128, (8,), generator=draw).tolist()
        optimizer.param_groups[0]["lr"] = 0.05 * min(1, (step + 1) / 20) * (0.1 if step > 0.8 * steps else 1)
        batch = {"image": torch.stack([scenes[n][0] for n in chosen]), "boxes": [scenes[n][1] for n in chosen]}
        optimizer.zero_grad()
        loss = module.losses(batch)["loss"]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 10)
        optimizer.step()
        losses.append(float(loss.detach()))
    module.eval()
    metric, others = WIDERFaceAP(()), [scene(DRAW(9 + number)) for number in range(32)]
    with torch.no_grad():
        found = module.detect([image for image, _ in others])
    metric.update(
        [{"boxes": each[:, :4], "scores": each[:, 4]} for each in found], [{"boxes": boxes} for _, boxes in others]
    )
    return sum(losses[:10]) / 10, sum(losses[-10:]) / 10, float(metric.compute()["all"])


@pytest.mark.slow
def test_bright_ellipses_are_found_after_200_steps():
    first, last, precision = taught(shuffled=False)
    assert last < first / 2
    assert precision > 0.5


@pytest.mark.slow
def test_ellipses_marked_in_wrong_places_are_not_found():
    """What the test above measures is not there by itself."""
    _, _, precision = taught(shuffled=True)
    assert precision < 0.2
