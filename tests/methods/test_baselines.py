"""NES, Bandits and SimBA-DCT against reference values and a slow loop; what all attacks owe is in ``test_attacks``."""

import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from lit_methods.ppba import NES, Bandits, LowFrequencyProjection, SimBA
from tests.methods.toy_models import SIDE, Linear, Recorder, load, low_frequencies, picture_batch

LINEAR = Linear()
LOW = low_frequencies()


@pytest.mark.parametrize("name", ["nes", "nes_lf", "bandits_td", "bandits_lf"])
def test_each_step_is_the_reference_step(vectors, name):
    case = load(vectors, "baselines")
    projection = LowFrequencyProjection(case["indices"], SIDE, dtype=torch.float64)
    attack = {
        "nes": NES(eps=2.0),
        "nes_lf": NES(projection, eps=2.0),
        "bandits_td": Bandits(tile=SIDE // int(case["tile"]), eps=2.0),
        "bandits_lf": Bandits(projection, eps=2.0),
    }[name]

    def model(x):
        return ((x - case["mean"]) / case["std"]).flatten(1) @ case["weight"].T + case["bias"]

    noise, cost = case[f"{name}_noise"][:, None], 10 if name.startswith("nes") else 2
    solved_at = int(case[f"{name}_success_query"]) // cost
    assert 2 < solved_at < 8
    for steps in range(1, 9):
        result = attack(model, case["x"][None], case["label"][None], draws=noise[:steps])
        assert result.success.item() == (steps >= solved_at)
        assert result.queries.item() == min(steps, solved_at) * cost
        # the reference goes on after the success, the attack does not
        assert_close(result.adv.flatten(), case[f"{name}_images"][min(steps, solved_at) - 1], rtol=0, atol=1e-8)


def test_the_constants_are_those_of_the_released_code():
    nes, bandits = NES(), Bandits()
    assert (nes.eps, nes.max_queries, nes.samples, nes.fd_eta, nes.lr) == (5, 10000, 5, 0.1, 0.3)
    assert (bandits.eps, bandits.max_queries, bandits.tile) == (5, 10000, 50)
    assert (bandits.fd_eta, bandits.exploration, bandits.online_lr, bandits.lr) == (0.01, 0.01, 0.1, 0.5)


def slow_simba(model, image, label, rows, draws, step, eps, budget, targeted):
    """SimBA on coefficients (Guo et al., algorithm 1), one image; every question has a draw, a minus sign too."""

    def look(z):
        logits = model(torch.from_numpy(np.clip(image + (z @ rows).reshape(image.shape), 0, 1))[None])[0].numpy()
        nats = np.log(np.exp(logits).sum()) - logits[label]
        done = (logits.argmax() == label) if targeted else (logits.argmax() != label)
        return (nats if targeted else -nats), done

    z, untried, chosen, sign = np.zeros(len(rows)), [], None, 1
    (best, done), queries, losses = look(z), 1, []
    for draw in draws:
        if done or queries == budget:
            break
        if sign > 0:
            untried = untried or list(range(len(rows)))
            chosen = untried.pop(int(draw * len(untried)))
        candidate = z.copy()
        candidate[chosen] += sign * step
        candidate *= min(1, eps / max(np.linalg.norm(candidate), 1e-300))
        loss, done = look(candidate)
        queries += 1
        losses.append(loss)
        taken = loss < best or done
        if taken:
            z, best = candidate, loss
        sign = -1 if sign > 0 and not taken else 1
    return np.clip(image + (z @ rows).reshape(image.shape), 0, 1), queries, done, losses


@pytest.mark.parametrize("targeted", [False, True])
def test_simba_against_a_slow_one(targeted):
    images, labels = picture_batch(6)
    if targeted:
        labels = LINEAR(images).topk(2).indices[:, 1]
    rows = LOW(torch.eye(LOW.dim, dtype=torch.float64)).flatten(1).numpy()
    draws = torch.rand(120, 6, 1, dtype=torch.float64)  # so that all 24 coefficients have their turn more than once
    result = SimBA(LOW, step=0.2, eps=0.7, max_queries=110, targeted=targeted)(LINEAR, images, labels, draws=draws)
    assert 0 < result.success.sum() < 6
    for i in range(6):
        adv, queries, success, losses = slow_simba(
            LINEAR, images[i].numpy(), labels[i].item(), rows, draws[:, i, 0].numpy(), 0.2, 0.7, 110, targeted
        )
        assert (result.queries[i], result.success[i]) == (queries, success)
        assert_close(result.history["loss"][: len(losses), i], torch.tensor(losses, dtype=torch.float64))
        assert_close(result.adv[i], torch.from_numpy(adv), rtol=0, atol=1e-10)


def test_simba_tries_every_coefficient_before_it_repeats_one():
    images = torch.full((1, 3, SIDE, SIDE), 0.5, dtype=torch.float64)
    model = Recorder(lambda x: torch.tensor([[3.0, 0.0]]).expand(len(x), 2))  # nothing helps: both signs are tried
    SimBA(LOW, step=0.1, max_queries=1 + 4 * LOW.dim)(model, images, torch.tensor([0]))
    z = LOW.project(torch.stack(model.images[1:]) - images)
    chosen, signs = z.abs().argmax(1), z.sum(1)
    assert_close(z.norm(dim=1), torch.full((4 * LOW.dim,), 0.1, dtype=torch.float64))
    assert torch.equal(chosen[::2], chosen[1::2])
    assert_close(signs[::2], -signs[1::2])
    first, second = chosen[::2].split(LOW.dim)
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(LOW.dim))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("attack", [NES(max_queries=40), NES(LOW, max_queries=40), Bandits(LOW, max_queries=40)])
def test_a_flat_loss_leads_nowhere(attack):
    images, _ = picture_batch(2)
    flat = torch.tensor([[1.0, -1.0]], dtype=torch.float64)
    result = attack(lambda x: flat.expand(len(x), 2), images, torch.zeros(2, dtype=torch.int64))
    assert torch.equal(result.adv, images)
    assert result.queries.tolist() == [40, 40]
    assert not (result.failed | result.success).any()


@pytest.mark.parametrize("make", [NES, Bandits])
@pytest.mark.parametrize("projection", [None, LOW])
def test_the_step_goes_down_the_slope(make, projection):
    images, labels = picture_batch(3, model=Linear(seed=1))
    hard = Linear(seed=1)
    extra = {"tile": 4} if make is Bandits else {}
    for targeted in (False, True):
        wanted = (labels + 2) % 5 if targeted else labels
        result = make(projection, lr=0.05, eps=9.0, max_queries=100, targeted=targeted, **extra)(hard, images, wanted)
        log_p = [hard(x).log_softmax(1).gather(1, wanted[:, None]) for x in (images, result.adv)]
        assert ((log_p[1] > log_p[0]) == targeted).all()


def test_one_pixel_is_a_tile_of_its_own():
    images, labels = picture_batch(3)
    draws = torch.randn(5, 3, images[0].numel(), dtype=torch.float64)
    full = LowFrequencyProjection(torch.arange(images[0].numel()), SIDE, dtype=torch.float64)
    pixels = Bandits(tile=SIDE, eps=2.0)(LINEAR, images, labels, draws=draws)
    turned = full.project(draws.view(-1, *images.shape[1:])).view_as(draws)  # the same directions in another basis
    assert_close(Bandits(full, eps=2.0)(LINEAR, images, labels, draws=turned).adv, pixels.adv)


def test_bad_arguments():
    images, labels = picture_batch(2)
    with pytest.raises(ValueError, match=r"tile=50 is the side of a coarse image, and the images have 8; give less"):
        Bandits()(LINEAR, images, labels)
    for make, arguments in (
        (NES, ("samples", "fd_eta", "lr")),
        (Bandits, ("tile", "fd_eta", "exploration", "online_lr", "lr")),
        (lambda **options: SimBA(LOW, **options), ("step",)),
    ):
        for argument in arguments:
            for value in (0, -1, math.nan):
                with pytest.raises(ValueError, match=f"{argument}={value} must be positive"):
                    make(**{argument: value})
