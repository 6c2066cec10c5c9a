"""What every attack owes: an exact account, the bounds, and the right start and end."""

import pytest
import torch
from torch.testing import assert_close

from tests.methods.toy_attacks import (
    ATTACKS,
    COUNT_THE_CLEAN_IMAGE,
    HOPELESS,
    LINEAR,
    assert_same_row,
    each_attack,
    each_walk,
    expected_cost,
    usual,
)
from tests.methods.toy_models import (
    CLASSES,
    SIDE,
    Recorder,
    owners,
    picture_batch,
)

# -- the account -------------------------------------------------------------------------------------------------------


@each_attack
def test_every_image_that_the_model_sees_is_accounted_for(name):
    images, _, model, _, result = usual(name)
    seen = torch.bincount(owners(model.images, images), minlength=6)
    assert seen.tolist() == expected_cost(name, result).tolist()
    steps = (~result.history["loss"].isnan()).sum(0)
    verified = result.success.long()
    if name in COUNT_THE_CLEAN_IMAGE:
        assert (
            result.queries.tolist()
            == torch.where(result.skipped, 0, 1 + steps * (3 if name == "ppba_3" else 1)).tolist()
        )
        assert result.checks.tolist() == verified.tolist()
    else:
        assert result.queries.tolist() == (steps * (10 if name.startswith("nes") else 2)).tolist()
        assert result.checks.tolist() == (steps + verified).tolist()  # the test for success after each step
    assert (result.history["loss"].isnan() == (torch.arange(len(result.history["loss"]))[:, None] >= steps)).all()


@each_attack
def test_a_finished_image_leaves_the_batch(name):
    images, _, model, left, result = usual(name)
    steps = (~result.history["loss"].isnan()).sum(0)
    assert left == [(t, int((steps > t).sum())) for t in range(len(left))]
    assert left[0][1] > left[-1][1] > 0
    owner = owners(model.images, images)
    for i in result.success.nonzero().flatten():  # nothing about it after its own last question
        last = (owner == i).nonzero().max()
        assert_close(model.images[last], torch.floor(result.adv[i] * 255 + 0.5) / 255)
    assert model.sizes[-1] <= left[-1][1] * 10


@each_attack
def test_the_cap_holds_for_every_budget(name):
    step = {"ppba_3": 3, "nes": 10, "nes_lf": 10, "bandits": 2, "bandits_lf": 2}.get(name, 1)
    first = int(name in COUNT_THE_CLEAN_IMAGE)
    images, _ = picture_batch(2)
    labels = torch.zeros(2, dtype=torch.int64)
    for budget in [*range(first + step, first + step + 11), 47]:
        model = Recorder(HOPELESS)
        result = ATTACKS[name](max_queries=budget)(model, images, labels)
        best = first + (budget - first) // step * step
        assert result.queries.tolist() == [best, best], budget
        assert len(model.images) == expected_cost(name, result).sum()
        assert not result.success.any()
    with pytest.raises(ValueError, match=rf"max_queries={first + step - 1} .*; give more"):
        ATTACKS[name](max_queries=first + step - 1)


@each_attack
def test_a_success_in_the_last_query_counts(name):
    images, labels, *_, free = usual(name)
    i = torch.where(free.success, free.queries, 0).argmax()
    just = ATTACKS[name](max_queries=free.queries[i].item())(
        LINEAR, images[i, None], labels[i, None], image_ids=i[None]
    )
    assert_same_row(just, 0, free, i)


# -- the bounds --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("eps", [0.3, 1.0])
@each_attack
def test_nothing_leaves_the_ball_nor_the_range(name, eps):
    eps *= 0.05 if name == "ppba_linf" else 1
    images, _ = picture_batch(4)
    images[0], images[1] = 0.0, 1.0  # at the edge: clipping has work to do
    model = Recorder(HOPELESS)
    result = ATTACKS[name](eps=eps, max_queries=50)(model, images, torch.zeros(4, dtype=torch.int64))
    assert ((result.adv >= 0) & (result.adv <= 1)).all()
    assert_close(result.l2, (result.adv - images).flatten(1).norm(dim=1))
    assert (result.l2 <= result.l2_unclipped + 1e-9).all()
    assert result.l2.max() > 0
    if name == "ppba_linf":
        assert (result.adv - images).abs().max() <= eps + 1e-12
    else:
        assert result.l2_unclipped.max() <= eps + 1e-5
    if name in COUNT_THE_CLEAN_IMAGE:  # the others look around without bounds, as their authors do
        asked = torch.stack(model.images)
        moved = asked - images[owners(model.images, images)]
        assert ((asked >= 0) & (asked <= 1)).all()
        size = moved.abs().amax() if name == "ppba_linf" else moved.flatten(1).norm(dim=1).max()
        assert size <= eps + 1e-5


# -- starts and ends ---------------------------------------------------------------------------------------------------


@each_attack
def test_images_that_are_wrong_from_the_start_cost_nothing(name):
    images, labels = picture_batch(5)
    wrong = (labels + 1) % CLASSES
    model = Recorder(LINEAR)
    result = ATTACKS[name](max_queries=60)(model, images, wrong)
    assert result.skipped.all()
    assert not (result.success | result.success_uint8 | result.failed).any()
    assert not (result.queries | result.checks).any()
    assert torch.equal(result.adv, images)
    assert not (result.l2 + result.l2_unclipped).any()
    assert torch.equal(result.preds, labels)
    assert result.history["loss"].shape == result.history["accepted"].shape == (0, 5)
    assert len(model.images) == 5


@each_attack
def test_an_empty_batch(name):
    images, labels = picture_batch(0)
    model = Recorder(LINEAR)
    result = ATTACKS[name](max_queries=60)(model, images, labels)
    assert not model.sizes
    assert result.adv.shape == (0, 3, SIDE, SIDE)
    assert result.history["loss"].shape == (0, 0)
    for field in ("success", "queries", "l2", "l2_unclipped", "skipped", "success_uint8", "failed", "preds", "checks"):
        assert getattr(result, field).shape == (0,), field


@each_walk
def test_a_batch_that_is_all_solved(name):
    images, _ = picture_batch(4)
    labels = LINEAR(images).argmax(1)
    result = ATTACKS[name](eps=0.3 if name == "ppba_linf" else 4.0, max_queries=2000)(LINEAR, images, labels)
    assert result.success.all()
    assert len(result.history["loss"]) == (~result.history["loss"].isnan()).sum(0).max()
    assert torch.equal(LINEAR(result.adv).argmax(1), result.preds)
    assert (result.preds != labels).all()


@each_attack
def test_targets_that_are_reached_already(name):
    images, labels = picture_batch(4)
    model = Recorder(LINEAR)
    result = ATTACKS[name](max_queries=60, targeted=True)(model, images, labels)
    assert result.success.all()
    assert not result.skipped.any()
    assert result.queries.tolist() == [int(name in COUNT_THE_CLEAN_IMAGE)] * 4
    assert result.checks.tolist() == [1] * 4
    assert torch.equal(result.adv, images)
    assert len(model.images) == 8


@each_attack
def test_targets(name):
    images, labels = picture_batch(8)
    targets = LINEAR(images).topk(2).indices[:, 1]
    true = labels.clone()
    true[3] = targets[3]
    attack = ATTACKS[name](eps=0.3 if name == "ppba_linf" else 3.0, max_queries=600, targeted=True)
    model = Recorder(LINEAR)
    result = attack(model, images, targets, true_labels=true)
    assert result.skipped.tolist() == [i == 3 for i in range(8)]
    assert result.queries[3] == 0
    assert result.success.sum() >= 3
    assert torch.equal(LINEAR(result.adv).argmax(1) == targets, result.success)
    assert torch.bincount(owners(model.images, images), minlength=8).tolist() == expected_cost(name, result).tolist()


@each_attack
def test_success_is_tried_again_after_rounding(name):
    _, labels, *_, result = usual(name)
    rounded = LINEAR(torch.round(result.adv * 255) / 255).argmax(1) != labels
    assert torch.equal(result.success_uint8, result.success & rounded)


@each_attack
def test_a_success_that_does_not_survive_rounding(name):
    images = torch.full((2, 3, SIDE, SIDE), 102 / 255, dtype=torch.float64)

    def model(x):  # class 1 is whatever does not lie on the grid of 8 bits
        off = ((x * 255 - (x * 255).round()).abs() > 1e-6).flatten(1).any(1)
        slope = 1e-3 * x.flatten(1).sum(1)  # or those that follow a gradient would not move
        return torch.stack([0.5 - off.to(x.dtype) + slope, 2 * slope], 1)

    result = ATTACKS[name](max_queries=60)(model, images, torch.zeros(2, dtype=torch.int64))
    assert result.success.all()  # what rounding does is reported alone
    assert not result.success_uint8.any()
    assert (model(result.adv).argmax(1) == 1).all()
