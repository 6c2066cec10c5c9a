"""DDL and its control in one run: what they share, what differs, and what is reported."""

from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import DataLoader

from lit_methods import DDLComparison
from lit_methods.ddl.comparison import compared
from lit_methods.ddl.encoder import ENCODERS, TinyFaceNet
from tests.ddl_batches import CLASSES, SIDE, batch

SETS = [SimpleNamespace(name="known", kind="probes", groups=("easy", "hard"))]


def loader(*batches):
    return DataLoader(batches, batch_size=None)


def comparison(**arguments):
    given = {"num_classes": CLASSES, "seeds": [0, 1], "backbone_args": {"width": 2}, "input_size": [3, SIDE, SIDE]}
    return DDLComparison(**given | {"lr": 0.05, "milestones": []} | arguments)


def probes():
    image = torch.rand(6, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(3))
    group, index = torch.tensor([-1, 0, 1] * 2), torch.arange(6)
    return {"image": image, "label": torch.tensor([0, 0, 0, 1, 1, 1]), "group": group, "index": index}


def states(module):
    return [{**model.state_dict(), **heads.state_dict(prefix="heads.")} for model, heads in module.learners]


def equal(first, second):
    return all(torch.equal(first[key], second[key]) for key in first)


def test_a_seed_makes_two_equal_networks_and_another_seed_others():
    ours, control, others, others_control = states(comparison())
    assert equal(ours, control)
    assert equal(others, others_control)
    assert not equal(ours, others)
    assert equal(ours, states(comparison(seeds=[0]))[0])  # whatever was drawn before


def test_they_stay_equal_while_both_learn_the_easy_faces(make_trainer):
    module = comparison(pretrain_epochs=2)
    first = module.heads[0].kernel.clone()
    make_trainer(max_epochs=2).fit(module, loader(batch(0), batch(1)))
    after = states(module)
    assert equal(after[0], after[1])
    assert equal(after[2], after[3])
    assert not torch.equal(module.heads[0].kernel, first)


def test_pretraining_looks_at_easy_pictures_alone(make_trainer):
    given = [batch(0), batch(1)]
    others = [{"easy": one["easy"], "hard": batch(7)["hard"]} for one in given]
    found = []
    for batches in (given, others):
        module = comparison(seeds=[0], pretrain_epochs=1)
        make_trainer(max_epochs=1).fit(module, loader(*batches))
        found.append(states(module))
    assert all(equal(*pair) for pair in zip(*found, strict=True))


def test_afterwards_they_differ_by_the_distillation_alone(make_trainer):
    found = {}
    for weight in (0.0, 8.0):
        module = comparison(seeds=[0], pretrain_epochs=1, ddl_weight=weight)
        make_trainer(max_epochs=2).fit(module, loader(batch(0), batch(1)))
        found[weight] = states(module)
    assert equal(found[0.0][0], found[0.0][1])
    assert not equal(found[8.0][0], found[8.0][1])
    assert equal(found[8.0][1], found[0.0][0])  # the control is plain ArcFace


def test_dropout_does_not_part_them(make_trainer, monkeypatch):
    def dropping(input_size, **arguments):
        network = TinyFaceNet(input_size, **arguments)
        network.output.insert(1, torch.nn.Dropout(0.5))
        return network

    monkeypatch.setitem(ENCODERS, "dropping", dropping)
    module = comparison(backbone="dropping", seeds=[0], pretrain_epochs=2)
    make_trainer(max_epochs=3).fit(module, loader(batch(0), batch(1)))
    ours, control = states(module)
    assert not equal(ours, control)
    module = comparison(backbone="dropping", seeds=[0], pretrain_epochs=1, ddl_weight=0.0)
    make_trainer(max_epochs=2).fit(module, loader(batch(0), batch(1)))
    ours, control = states(module)
    assert equal(ours, control)


def test_clipping_by_all_networks_together_is_refused(make_trainer):
    trainer = make_trainer(max_epochs=1, gradient_clip_val=1.0)
    with pytest.raises(ValueError, match=r"gradient_clip_val=1\.0 would clip by the gradients of all networks"):
        trainer.fit(comparison(), loader(batch()))


def test_rates_of_both_stages():
    module = comparison(pretrain_epochs=2, pretrain_lr=0.1, lr=0.02, milestones=[2], lr_factor=0.5)
    assert [round(0.02 * module.rate(epoch), 4) for epoch in range(5)] == [0.1, 0.1, 0.02, 0.02, 0.01]


def test_figures_are_means_over_seeds_with_their_spread(make_trainer):
    module = comparison()
    module.setup = lambda stage: module.prepare_figures("val", SETS, [])
    trainer = make_trainer(max_epochs=1, num_sanity_val_steps=0)
    trainer.fit(module, loader(batch()), loader(probes()))
    found = trainer.callback_metrics
    for arm in ("", "_baseline"):
        for name in ("easy_rank1", "hard_rank1", "known_rank1"):
            assert 0 <= found[f"val/{name}{arm}"] <= 1
            assert f"val/{name}{arm}_std" in found
    assert 0 <= found["val/rank1_of_both"] <= 1


def test_spread_is_the_sample_deviation():
    values = [0.5, 0.1, 0.7, 0.3, 0.9, 0.2]
    found = compared([{"hard_rank1": torch.tensor(v), "lfw_accuracy_std": torch.tensor(0.1)} for v in values])
    assert not any(name.startswith("lfw") for name in found)
    assert float(found["hard_rank1"]) == pytest.approx(0.7)
    assert float(found["hard_rank1_std"]) == pytest.approx(0.2)
    assert float(found["hard_rank1_baseline"]) == pytest.approx(0.2)
    assert float(found["hard_rank1_baseline_std"]) == pytest.approx(0.1)
    assert float(found["rank1_of_both"]) == pytest.approx(sum(values) / 6)


def test_what_was_compared_comes_back_from_a_checkpoint(make_trainer, tmp_path):
    module, trainer = comparison(seeds=[3, 5]), make_trainer(max_epochs=1)
    trainer.fit(module, loader(batch()))
    trainer.save_checkpoint(path := tmp_path / "module.ckpt")
    again = DDLComparison.load_from_checkpoint(path, weights_only=True)
    assert all(equal(*pair) for pair in zip(states(module), states(again), strict=True))
    image = torch.rand(2, 3, SIDE, SIDE)
    assert torch.equal(again.eval().embed(image), module.eval().embed(image))  # the first of DDL


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seeds": []}, r"seeds=\[\] must be one number or more"),
        ({"seeds": [1, 1]}, r"seeds=\[1, 1\] must be one number or more, each once"),
        ({"pretrain_epochs": -1}, "pretrain_epochs=-1 must not be negative"),
        ({"pretrain_lr": 0.0}, "pretrain_lr=0.0 positive"),
        ({"num_classes": [8, 8], "pretrain_epochs": 1}, "would leave all heads"),
    ],
)
def test_arguments_that_cannot_be_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        comparison(**arguments)
