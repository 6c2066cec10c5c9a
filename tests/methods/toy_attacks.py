"""Small attacks of every kind on a linear model, and what several tests ask of their results."""

import dataclasses
from functools import cache, partial

import pytest
import torch
from torch import Tensor

from lit_methods.ppba import (
    NES,
    Bandits,
    PPBAAttack,
    SimBA,
)
from lit_methods.ppba.account import AttackResult
from tests.methods.toy_models import (
    CLASSES,
    Linear,
    Recorder,
    low_frequencies,
    picture_batch,
)

LINEAR = Linear()
HOPELESS = Linear(lead=12.0)  # class 0 for good, and its cross entropy still has a slope
LOW = low_frequencies()
PPBA = partial(PPBAAttack, LOW, rho=0.05, eps=1.0)
SIMBA = partial(SimBA, LOW, step=0.1, eps=1.0)
ATTACKS = {
    "ppba": PPBA,
    "ppba_3": partial(PPBA, n_samples=3),
    "ppba_linf": partial(PPBA, norm="linf", eps=0.04),
    "nes": partial(NES, eps=1.0, lr=0.1),
    "nes_lf": partial(NES, LOW, eps=1.0, lr=0.2),
    "bandits": partial(Bandits, tile=4, eps=1.0, lr=0.05),
    "bandits_lf": partial(Bandits, LOW, eps=1.0, lr=0.2),
    "simba": SIMBA,
}
COUNT_THE_CLEAN_IMAGE = ("ppba", "ppba_3", "ppba_linf", "simba")
each_attack = pytest.mark.parametrize("name", ATTACKS)
each_walk = pytest.mark.parametrize("name", ["ppba", "ppba_3", "nes", "bandits", "simba"])
one_of_each = pytest.mark.parametrize("name", ["ppba", "nes", "bandits", "simba"])


@cache
def usual(name):
    """An attack that several tests look at: images, what the model saw, how many were left at each step, the result."""
    images, labels = picture_batch(6)
    labels[4] = (labels[4] + 1) % CLASSES  # wrong from the start
    model, left = Recorder(LINEAR), []
    attack = ATTACKS[name](max_queries=100)
    result = attack(model, images, labels, films=range(6), on_step=lambda number, n: left.append((number, n)))
    assert 0 < result.success.sum() < 5
    return images, labels, model, left, result


def expected_cost(name, result):
    """Images shown to the model, per image, by the specification: what is free is shown all the same."""
    free_clean = ~result.skipped if name not in COUNT_THE_CLEAN_IMAGE else torch.zeros_like(result.skipped)
    return result.queries + result.checks + result.skipped.long() + free_clean.long()


FIELDS = [field.name for field in dataclasses.fields(AttackResult) if field.name != "history"]


def assert_equal(one, other):
    """In every field, bit for bit."""
    for field in FIELDS:
        assert torch.equal(getattr(one, field), getattr(other, field)), field
    assert one.history.keys() == other.history.keys()
    for key, value in one.history.items():
        if isinstance(value, Tensor):
            assert torch.equal(value.nan_to_num(9e9), other.history[key].nan_to_num(9e9)), key


def assert_same_row(one, i, many, j):
    """Row i of a result is row j of another, bit for bit, in all its fields but the id."""
    for field in FIELDS:
        assert field == "ids" or torch.equal(getattr(one, field)[i], getattr(many, field)[j]), field
    mine, other = one.history["loss"][:, i], many.history["loss"][:, j]
    lived = int((~other.isnan()).sum())
    assert torch.equal(mine[:lived], other[:lived])
    assert mine[lived:].isnan().all()
    assert torch.equal(one.history["accepted"][:lived, i], many.history["accepted"][:lived, j])
    for key in ("z", "probabilities"):
        if key in many.history:
            assert torch.equal(one.history[key][..., i, :], many.history[key][..., j, :]), key
