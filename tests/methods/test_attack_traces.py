"""What an attack shows on its way, and that it leaves nothing behind: films, hooks, gradients, memory."""

import gc
import sys
import tracemalloc
from collections import Counter
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from lit_methods.ppba import (
    Ledger,
    ModelBlackBox,
)
from tests.methods.toy_attacks import (
    ATTACKS,
    HOPELESS,
    LINEAR,
    assert_same_row,
    each_attack,
    each_walk,
    one_of_each,
    usual,
)
from tests.methods.toy_models import (
    SIDE,
    Killed,
    Recorder,
    owners,
    picture_batch,
    small_conv_net,
)


@pytest.mark.parametrize(
    ("name", "budget"),
    [*((name, 20) for name in ATTACKS), ("ppba", 100), ("bandits_lf", 100), ("simba", 49), ("simba", 50)],
)
def test_films(name, budget):
    images, _ = picture_batch(3)
    ids = torch.tensor([4, 9, 6])
    hard = partial(
        ATTACKS[name](max_queries=budget), HOPELESS, images, torch.zeros(3, dtype=torch.int64), image_ids=ids
    )
    result = hard(films=(4, 6, 77))
    films, steps = result.history["films"], len(result.history["loss"])
    assert set(films) == {4, 6}
    for row, image in ((0, 4), (2, 6)):
        frames = films[image].frames
        numbers = [number for number, _ in frames]
        assert 1 < len(frames) <= 49
        assert len(frames) == steps or steps > 48
        assert (numbers[0], numbers[-1]) == (0, steps - 1)
        assert numbers == sorted(set(numbers))
        assert len(set(np.diff(numbers[:-1]).tolist())) <= 1  # evenly spaced, but for the last
        assert all(frame.dtype == torch.uint8 and frame.shape == (3, SIDE, SIDE) for _, frame in frames)
        assert torch.equal(frames[-1][1], (result.adv[row] * 255).round().byte())
    assert torch.equal(result.adv, hard().adv)


@each_attack
def test_a_film_ends_with_the_success(name):
    *_, result = usual(name)
    steps = (~result.history["loss"].isnan()).sum(0)
    assert set(result.history["films"]) == set((~result.skipped).nonzero().flatten().tolist())
    for i in result.history["films"]:
        number, frame = result.history["films"][i].frames[-1]
        assert number == steps[i] - 1
        assert torch.equal(frame, (result.adv[i] * 255).round().byte())


@each_attack
def test_what_on_step_raises_comes_out(name):
    images, labels = picture_batch(3)

    def stop(number, left):
        if number == 2:
            raise Killed

    model = Recorder(HOPELESS)
    with pytest.raises(Killed):
        ATTACKS[name](max_queries=60)(model, images, 0 * labels, on_step=stop)
    asked = Counter(owners(model.images, images).tolist())
    per_step = {"ppba_3": 3, "nes": 11, "nes_lf": 11, "bandits": 3, "bandits_lf": 3}.get(name, 1)
    assert asked == dict.fromkeys(range(3), 1 + 2 * per_step)


@each_walk
def test_an_attack_object_keeps_nothing(name):
    images, labels = picture_batch(3)
    attack = ATTACKS[name](max_queries=40)
    before = dict(vars(attack))
    first, again = attack(LINEAR, images, labels), attack(LINEAR, images, labels)
    assert vars(attack) == before
    for i in range(3):
        assert_same_row(again, i, first, i)


@one_of_each
def test_no_gradients_hooks_or_modes_are_left(name):
    network = small_conv_net().train()
    network[1].eval()
    images = torch.rand(3, 3, SIDE, SIDE, requires_grad=True)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    with torch.no_grad():
        labels = ModelBlackBox(network)(images).argmax(1)
    result = ATTACKS[name](max_queries=40)(network, images, labels)
    assert [m.training for m in network] == [i != 1 for i in range(len(network))]
    assert network.training
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    assert all(p.grad is None for p in network.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in network.modules())
    assert images.grad is None
    assert not any(t.requires_grad for t in vars(result).values() if isinstance(t, Tensor))


def memory_at(iterations, name, folder, measure):
    """What an attack that never ends takes before some of its iterations: ``measure()``, and its tensors."""
    images, sizes = picture_batch(2)[0], []

    def look(number, left):
        if number == 0:
            gc.freeze()  # what was there before is not looked through
        if number in iterations:
            gc.collect()
            tensors = [o for o in gc.get_objects() if issubclass(type(o), Tensor)]
            sizes.append((measure(), len(tensors), sum(t.nbytes for t in tensors)))
        if number == iterations[-1]:
            raise Killed

    attack, labels = ATTACKS[name](max_queries=16_000), torch.zeros(2, dtype=torch.int64)
    try:
        with Ledger(folder / "ledger.jsonl") as ledger, pytest.raises(Killed):
            attack(HOPELESS, images, labels, ledger=ledger, on_step=look)
    finally:
        gc.unfreeze()
    return sizes


@one_of_each
def test_memory_does_not_grow(name, tmp_path):
    (early, *tensors), (late, *same) = memory_at((60, 160), name, tmp_path, sys.getallocatedblocks)
    print(f"{name}: {early} Python objects in iteration 60, {late} in iteration 160")
    assert same == tensors
    assert late - early < 90  # less than one in an iteration; lists that Python keeps for later fill up at first


@pytest.mark.slow
@one_of_each
def test_memory_does_not_grow_in_the_long_run(name, tmp_path):
    tracemalloc.start()
    try:
        sizes = memory_at((300, 1500), name, tmp_path, lambda: tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    (early, *tensors), (late, *same) = sizes
    print(
        f"{name}: {early} bytes beside tensors of {tensors[1]} in iteration 300; {late - early} more in iteration 1500"
    )
    assert same == tensors
    assert late - early < 24 * 1200  # the smallest object takes 24 bytes: less than one in an iteration
