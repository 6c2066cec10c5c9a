"""The module: losses of a batch, optimiser, weights to start from, evaluation, what it refuses."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close
from torch.utils.data import DataLoader

from lit_methods import DDL
from lit_methods.contract import Exports, Predicts
from lit_methods.ddl.evaluation import EvaluationFigures, Pairs
from lit_methods.ddl.functional import ddl_loss
from tests.ddl_batches import CLASSES, SIDE, Plain, batch, ddl


def loader(*batches):
    return DataLoader(batches, batch_size=None)


def step(module, given):
    return module.losses(module.model, module.heads, given, list(given), module.hparams["ddl_weight"])


# -- the loss ----------------------------------------------------------------------------------------------------------


def test_the_loss_is_the_softmax_of_each_branch_and_the_distillation():
    module, given = ddl(ddl_weight=2.0, gamma=30.0, order_weight=0.3), batch()
    parts, found = step(module, given)
    head = module.heads[0]
    softmax = sum(F.cross_entropy(head(module(g["image"]), g["label"]), g["label"]) for g in given.values())
    negatives = [module(g["image"]) for g in given.values()]
    pairs = [(module(a), module(b)) for a, b in (g["pair"] for g in given.values())]
    expected = ddl_loss(negatives, pairs, gamma=30.0, order_weight=0.3)
    assert_close(parts["softmax_loss"], softmax)
    assert_close(parts["ddl_loss"], expected.loss)
    assert_close(parts["loss"], softmax + 2 * expected.loss)
    assert_close(found.pos_sims[1], expected.pos_sims[1])
    assert_close(parts["gap_hard"], expected.pos_sims[1].mean() - expected.neg_sims[1].mean())


def test_the_distillation_has_its_gradient():
    module, given = ddl(), batch()
    parts, _ = step(module, given)
    ours = torch.autograd.grad(parts["ddl_loss"], module.model.layer.weight)[0]
    negatives = [module(g["image"]) for g in given.values()]
    pairs = [(module(a), module(b)) for a, b in (g["pair"] for g in given.values())]
    expected = torch.autograd.grad(ddl_loss(negatives, pairs).loss, module.model.layer.weight)[0]
    assert_close(ours, expected)
    assert expected.abs().sum() > 0


def test_one_pass_embeds_all_pictures_of_a_step():
    module, sizes = ddl(), []
    module.model.register_forward_hook(lambda layer, given, out: sizes.append(len(out)))
    step(module, batch(names=("easy", "hard", "mask")))
    assert sizes == [3 * 3 * 4]


def test_several_hard_branches_are_students_of_one_teacher():
    given = batch(names=("easy", "dark", "mask"))
    parts, found = step(ddl(), given)
    assert found.pos_kl.shape == (2,)
    assert {"gap_easy", "gap_dark", "gap_mask"} <= parts.keys()


def test_branches_with_classes_of_their_own_have_heads_of_their_own():
    module, given = ddl(num_classes=[CLASSES, 5]), batch()
    assert [tuple(head.kernel.shape) for head in module.heads] == [(12, CLASSES), (12, 5)]
    step(module, given)[0]["loss"].backward()
    assert all(head.kernel.grad.abs().sum() > 0 for head in module.heads)


def test_the_control_sees_the_same_pictures_and_learns_the_softmax_alone():
    given = batch()
    module = ddl(ddl_weight=0.0)
    step(module, given)[0]["loss"].backward()
    alone = ddl(backbone=module.model)
    alone.heads.load_state_dict(module.heads.state_dict())
    expected = module.model.layer.weight.grad.clone()
    module.model.zero_grad()
    step(alone, given)[0]["softmax_loss"].backward()
    assert_close(alone.model.layer.weight.grad, expected)
    assert step(alone, given)[0]["ddl_loss"] != 0


def test_without_pairs_or_hard_branches_it_is_the_softmax():
    given = batch()
    for kept in ({n: {k: v for k, v in g.items() if k != "pair"} for n, g in given.items()}, {"easy": given["easy"]}):
        parts, found = step(ddl(), kept)
        assert found is None
        assert parts["loss"] is parts["softmax_loss"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_the_losses_are_float32(dtype):
    with torch.autocast("cpu", dtype=dtype):
        parts, found = step(ddl(), batch())
    assert {value.dtype for value in parts.values()} == {torch.float32}
    assert found.neg_sims[0].dtype == torch.float32


def test_a_float64_module_stays_float64():
    given = {
        n: {k: v.double() if torch.is_tensor(v) and v.is_floating_point() else v for k, v in g.items()}
        for n, g in batch().items()
    }
    for g in given.values():
        g["pair"] = tuple(image.double() for image in g["pair"])
    parts, _ = step(ddl().double(), given)
    assert parts["loss"].dtype == torch.float64


# -- training ----------------------------------------------------------------------------------------------------------


def test_norms_prelus_and_biases_are_not_decayed_unless_asked():
    arguments = {
        "backbone": "tiny",
        "num_classes": CLASSES,
        "input_size": [3, SIDE, SIDE],
        "backbone_args": {"width": 4},
    }
    optimizer = DDL(**arguments).configure_optimizers()["optimizer"]
    decayed, plain = optimizer.param_groups
    assert (decayed["weight_decay"], plain["weight_decay"]) == (5e-4, 0)
    assert {p.ndim for p in plain["params"]} == {1}
    assert min(p.ndim for p in decayed["params"]) == 2
    module = DDL(**arguments, decay_norms=True)
    rates = {g["weight_decay"] for g in module.configure_optimizers()["optimizer"].param_groups}
    assert rates == {5e-4}
    both = sum(len(g["params"]) for g in module.configure_optimizers()["optimizer"].param_groups)
    assert both == len(list(module.parameters()))


def test_the_rate_falls_at_the_milestones(make_trainer):
    module = ddl(lr=0.5, milestones=[1, 3], lr_factor=0.1)
    assert [round(module.rate(epoch), 3) for epoch in range(4)] == [1, 0.1, 0.1, 0.01]
    assert ddl().rate(1) == pytest.approx(0.1)


def test_a_fit_learns_and_logs(make_trainer):
    module = ddl(lr=0.1, milestones=[])
    before = step(module, batch())[0]["loss"].item()
    trainer = make_trainer(max_epochs=6)
    trainer.fit(module, loader(batch()))
    assert step(module, batch())[0]["loss"].item() < before
    wanted = {"loss", "softmax_loss", "ddl_loss", "pos_kl", "neg_kl", "order", "gap_easy", "gap_hard"}
    assert {f"train/{name}" for name in wanted} <= trainer.callback_metrics.keys()


def test_weights_to_start_from_bring_their_heads_where_they_fit(make_trainer, tmp_path):
    trained = ddl()
    trainer = make_trainer(max_epochs=1)
    trainer.fit(trained, loader(batch()))
    trainer.save_checkpoint(path := tmp_path / "trained.ckpt")
    again = ddl(base_checkpoint=str(path))
    assert torch.equal(again.model.layer.weight, trained.model.layer.weight)
    assert torch.equal(again.heads[0].kernel, trained.heads[0].kernel)
    other = ddl(num_classes=5, base_checkpoint=str(path))
    assert torch.equal(other.model.layer.weight, trained.model.layer.weight)
    assert other.heads[0].kernel.shape == (12, 5)


def test_a_resnet_starts_from_a_classifier(tmp_path):
    from lit_methods.backbones import build_backbone

    torch.save(build_backbone("resnet18", 7).state_dict(), path := tmp_path / "resnet18.pth")
    module = DDL("resnet18", 5, input_size=[3, 64, 32], base_checkpoint=str(path))
    assert torch.equal(module.model.encoder.network.conv1.weight, torch.load(path)["conv1.weight"])
    assert module(torch.rand(2, 3, 64, 32)).shape == (2, 512)


# -- evaluation --------------------------------------------------------------------------------------------------------


def pairs(count=20):
    draw = torch.Generator().manual_seed(5)
    first = torch.rand(count, 3, SIDE, SIDE, generator=draw)
    same = torch.arange(count) % 2 == 0
    second = torch.where(same[:, None, None, None], first + 0.01, torch.rand(count, 3, SIDE, SIDE, generator=draw))
    return {"pair": (first, second.clamp(0, 1)), "same": same, "index": torch.arange(count)}


def probes():
    gallery = torch.rand(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(6))
    image = torch.cat([gallery, gallery.flip(3), gallery.roll(1, 0)])
    label, group = torch.arange(3).repeat(3), torch.tensor([-1, 0, 1]).repeat_interleave(3)
    return {"image": image, "label": label, "group": group, "index": torch.arange(9)}


def persons(low=False):
    found = {
        "image": torch.rand(8, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(7)),
        "pid": torch.tensor([1, 2] * 4),
        "camid": torch.arange(8) // 4,
        "index": torch.arange(8) % 4,
        "is_query": torch.arange(8) < 4,
    }
    return found | ({"low": torch.arange(8) // 2 == 1} if low else {})


SETS = [
    SimpleNamespace(name="lfw", kind="pairs", folds=10),
    SimpleNamespace(name="known", kind="probes", groups=("mirrored", "others")),
]


def figures_of(make_trainer, module, *batches):
    """The figures of a test on these sets, in the order of ``SETS``."""
    data = SimpleNamespace(evaluation_sets=lambda stage: SETS)
    module.setup = lambda stage: module.prepare_figures("test", data.evaluation_sets("test"), [1e-1])
    return make_trainer().test(module, [loader(one) for one in batches], verbose=False)[0]


def test_every_kind_of_set_has_its_figures(make_trainer):
    found = figures_of(make_trainer, ddl(flip=True), pairs(), probes(), persons(low=True))
    assert found["test/lfw_accuracy"] == 1
    assert {"test/lfw_accuracy_std", "test/lfw_threshold", "test/lfw_tar@1e-01"} <= found.keys()
    assert found["test/mirrored_rank1"] == 1  # the sum with the mirror image does not know which one it saw
    assert found["test/others_rank1"] == 0
    assert found["test/known_rank1"] == 0.5
    assert {"test/mAP", "test/rank1", "test/low_mAP", "test/low_rank1"} <= found.keys()


def test_without_the_mirror_image_a_mirrored_face_is_another(make_trainer):
    module = ddl(flip=False)
    a, b = module.embed(probes()["image"]).split([3, 6])
    assert not torch.allclose(a, b[:3], atol=1e-3)
    assert_close(a.norm(dim=1), torch.ones(3))


def test_degraded_queries_have_figures_of_their_own():
    module, given = ddl(), persons(low=True)
    figures = EvaluationFigures()
    figures.update(given, module.embed)
    found = figures.compute()
    for name, queries in (("", ~given["low"] & given["is_query"]), ("low_", given["low"] & given["is_query"])):
        alone = EvaluationFigures()
        chosen = queries | ~given["is_query"]
        alone.update({key: value[chosen] for key, value in given.items() if key != "low"}, module.embed)
        assert_close(found[f"{name}mAP"], alone.compute()["mAP"])


def test_a_limit_that_leaves_too_little_is_a_warning_and_its_lack_an_error():
    figures = EvaluationFigures(SETS)
    figures.update({k: v[:4] if torch.is_tensor(v) else (v[0][:4], v[1][:4]) for k, v in pairs().items()}, ddl().embed)
    with pytest.warns(UserWarning, match="a limit leaves some batches has no figures"):
        assert figures.compute(partial=True) == {}
    with pytest.raises(ValueError, match="fold"):
        figures.compute()


def test_groups_of_several_sets_are_told_apart():
    twice = [SimpleNamespace(name=name, kind="probes", groups=("near", "far")) for name in ("a", "b")]
    figures = EvaluationFigures(twice)
    for number in range(2):
        figures.update(probes(), ddl().embed, number)
    assert list(figures.compute()) == [f"{s}{g}_rank1" for s in "ab" for g in ("_near", "_far", "")]


def test_a_set_that_is_called_like_one_of_its_groups_is_refused_at_once():
    with pytest.raises(ValueError, match=r"sets near give near_rank1 twice.*name the set otherwise"):
        EvaluationFigures([SimpleNamespace(name="near", kind="probes", groups=("near", "far"))])


def test_a_list_of_one_fold_has_its_thresholds_chosen_over_ten():
    figures = EvaluationFigures([SimpleNamespace(name="dev", kind="pairs", folds=1)])
    figures.update(pairs(), ddl().embed)
    assert figures.part(Pairs).accuracy.n_folds == 10
    assert "dev_accuracy" in figures.compute()


@pytest.mark.parametrize(("limit", "limited"), [(1, True), (3, True), (0.5, True), (1.0, False), (None, False)])
def test_one_batch_is_a_limit_and_all_batches_are_none(limit, limited):
    module = ddl()
    module._trainer = SimpleNamespace(limit_val_batches=limit)
    assert module.limited("val") is limited


@pytest.mark.parametrize("words", [{"fast_dev_run": True}, {"limit_val_batches": 1}])
def test_a_trial_of_one_batch_ends_well(make_trainer, words):
    module = ddl()
    trainer = make_trainer(max_epochs=1, num_sanity_val_steps=0, **words)
    one = {k: v[::2] if torch.is_tensor(v) else (v[0][::2], v[1][::2]) for k, v in pairs().items()}  # one kind alone
    with pytest.warns(UserWarning, match="a limit leaves some batches has no figures"):
        trainer.fit(module, loader(batch()), loader(one))


def test_an_evaluation_batch_of_no_kind_is_refused():
    with pytest.raises(ValueError, match=r"has keys image; it needs pair and same"):
        EvaluationFigures().update({"image": torch.zeros(1)}, ddl().embed)


def test_embeddings_that_are_not_finite_stop_an_evaluation():
    module, figures = ddl(), EvaluationFigures(SETS)
    module.model.layer.weight.data[0, 0] = torch.nan
    figures.update(pairs(), module.embed)
    with pytest.raises(ValueError, match="not finite"):
        figures.compute()


def test_validation_notes_the_threshold_for_predictions(make_trainer, tmp_path):
    module = ddl(mean=[0.5] * 3, std=[0.25] * 3)
    trainer = make_trainer(max_epochs=1, num_sanity_val_steps=0)
    trainer.fit(module, loader(batch()), loader(pairs()))
    assert -1 <= module.threshold <= 1
    trainer.save_checkpoint(path := tmp_path / "module.ckpt")
    again = DDL.load_from_checkpoint(path, backbone=Plain(), weights_only=True)
    assert again.threshold == module.threshold
    images = pairs()["pair"]
    a, b = again.embed(images[0]), again.embed(images[1])
    assert torch.equal((a * b).sum(1) > again.threshold, pairs()["same"])


# -- what it offers ----------------------------------------------------------------------------------------------------


def test_it_offers_what_the_commands_ask_for():
    module = ddl()
    assert isinstance(module, Predicts)
    assert isinstance(module, Exports)
    (graph,) = module.export_graphs().values()
    image = torch.rand(2, 3, SIDE, SIDE)
    assert_close(graph.module(image), module(image))


# -- what it refuses ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ddl_weight": -1.0}, "ddl_weight=-1.0 must not be negative"),
        ({"lr": 0.0}, "lr=0.0 must be positive"),
        ({"lr_factor": 1.5}, r"lr_factor=1.5 must lie in \(0, 1\]"),
        ({"head": "softmax"}, "head='softmax' must be one of arcface, cosface"),
        ({"num_classes": 1}, "num_classes=1 must be at least 2"),
        ({"num_classes": [5, 5], "hard": ["a", "b"]}, "has 2 entries for the 3 branches easy, a, b"),
        ({"hard": ["hard", "easy"]}, r"hard=\['hard', 'easy'\] must be other branches than easy='easy', each once"),
        ({"hard": ["hard", "hard"]}, "each once"),
        ({"fars": [1e-3, 1.2e-3]}, "more than once"),
        ({"backbone": "iresnet51"}, "'iresnet51' is unknown; did you mean 'iresnet50'"),
        ({"backbone": "tiny", "backbone_args": {"depth": 3}}, "backbone_args={'depth': 3} do not fit tiny"),
        ({"backbone": "tiny", "input_size": [3, 20, 20]}, "multiples of 16"),
        ({"mean": [0.5] * 3}, "go together"),
        ({"fars": [0.0]}, r"fars=\[0.0\] must lie between 0 and 1"),
        ({"gamma": 0.0}, "gamma=0.0"),
        ({"backbone": torch.nn.Conv2d(3, 4, 3)}, r"must give \(N, D\), got \(1, 4, 14, 14\)"),
    ],
)
def test_arguments_that_cannot_be_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        ddl(**arguments)


def data(**given):
    return SimpleNamespace(**{"branch_names": ["easy", "hard"], "num_classes": CLASSES, "pairs": True} | given)


@pytest.mark.parametrize(
    ("given", "arguments", "message"),
    [
        ({"branch_names": ["easy"]}, {}, "nothing to distil: there is no hard branch; set ddl_weight to 0"),
        ({"pairs": False}, {}, "nothing to distil: data.pairs is false"),
        ({}, {"hard": ["mask"]}, "name 'mask', but the data have the branches easy, hard"),
        ({"num_classes": CLASSES + 1}, {}, "model.num_classes=8, but the data have 9"),
        ({"num_classes": [CLASSES, CLASSES]}, {}, r"but the data have \[8, 8\]"),
        ({"branch_names": []}, {}, "gives no easy and hard branches"),
    ],
)
def test_data_that_do_not_fit_are_refused_before_a_fit(given, arguments, message):
    module = ddl(**arguments)
    module._trainer = SimpleNamespace(datamodule=data(**given))
    with pytest.raises(ValueError, match=message):
        module.setup("fit")


def test_pictures_of_another_size_are_refused():
    module = ddl()
    module._trainer = SimpleNamespace(datamodule=SimpleNamespace(input_size=[3, 32, 32]))
    for stage in ("fit", "validate", "test"):
        with pytest.raises(ValueError, match=r"input_size=\[3, 16, 16\], but the data give \[3, 32, 32\]: set"):
            module.setup(stage)


def test_a_fit_without_identities_says_so(make_trainer):
    with pytest.raises(ValueError, match="num_classes=0: give the number of identities"):
        make_trainer(max_epochs=1).fit(ddl(num_classes=0), loader(batch()))


def test_heads_belong_to_branches_of_the_data_whatever_is_asked_for():
    given = batch(names=("easy", "a", "b"))
    module = ddl(num_classes=[4, 5, 6], hard=["b"])
    module._trainer = SimpleNamespace(datamodule=data(branch_names=list(given), num_classes=[4, 5, 6]))
    module.setup("fit")
    assert [head.kernel.requires_grad for head in module.heads] == [True, False, True]
    parts, _ = module.losses(module.model, module.heads, given, module.branches(list(given)), 1.0)
    parts["loss"].backward()
    assert [head.kernel.grad is None for head in module.heads] == [False, True, False]


def test_an_untrained_teacher_is_warned_of(make_trainer):
    module = DDL("tiny", CLASSES, backbone_args={"width": 2}, input_size=[3, SIDE, SIDE])
    with pytest.warns(UserWarning, match="an untrained one is no teacher: give model.base_checkpoint"):
        make_trainer(max_epochs=1).fit(module, loader(batch()))


def test_the_softmax_alone_takes_one_branch():
    module = ddl(hard=[], ddl_weight=0.0)
    module._trainer = SimpleNamespace(datamodule=data(branch_names=["easy"], pairs=False))
    module.setup("fit")


def test_a_checkpoint_of_a_network_in_code_asks_for_it(make_trainer, tmp_path):
    trainer = make_trainer(max_epochs=1)
    trainer.fit(ddl(), loader(batch()))
    trainer.save_checkpoint(path := tmp_path / "module.ckpt")
    with pytest.raises(ValueError, match="give backbone=network"):
        DDL.load_from_checkpoint(path, weights_only=True)
