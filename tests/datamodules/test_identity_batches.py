"""P x K batches: exact composition, nothing without an identity, shared out over ranks, resumable."""

import numpy as np
import pytest
import torch

from datamodules.class_batches import ClassBatches
from datamodules.identity_batches import AugmentedPKSampler, IdleSampler, PKSampler, StepSampler
from datamodules.samplers import ResumableLoader

SIZES = [7, 1, 12, 4, 5, 9, 3, 2, 8, 6, 4]
IDS = [3, 4, 5, 9, 12, 13, 20, 21, 22, 30, 31]
LABELS = np.random.default_rng(0).permutation(np.repeat([*IDS, -1], [*SIZES, 15]))
CAMIDS = np.random.default_rng(1).choice([0, 1, 4], len(LABELS))
WORLDS = [1, 2, 3]


def plain(world=1, p=3, k=4, labels=LABELS, epoch=0, seed=0):
    made = [PKSampler(labels, p, k, seed, world, rank) for rank in range(world)]
    for sampler in made:
        sampler.set_epoch(epoch)
    return made


def augmented(world=1, p=3, k=8, generated=2, labels=LABELS, camids=CAMIDS, epoch=0, seed=0):
    made = [AugmentedPKSampler(labels, camids, p, k, generated, seed, world, rank) for rank in range(world)]
    for sampler in made:
        sampler.set_epoch(epoch)
    return made


def groups(batch, k, labels=LABELS):
    """The identity of each stretch of ``k`` keys, which all have to agree on it."""
    found = labels[[key[2] for key in batch]].reshape(-1, k)
    assert (found == found[:, :1]).all()
    return found[:, 0].tolist()


class TestComposition:
    @pytest.mark.parametrize("world", WORLDS)
    @pytest.mark.parametrize("make", [plain, augmented])
    def test_every_batch_has_exactly_p_identities_with_k_pictures(self, make, world):
        for sampler in make(world):
            for batch in sampler:
                found = groups(batch, sampler.k)
                assert len(batch) == 3 * sampler.k
                assert len(set(found)) == len(found) == 3
                assert -1 not in found

    @pytest.mark.parametrize("world", WORLDS)
    @pytest.mark.parametrize("p", [2, 3, 8])
    def test_an_epoch_covers_each_identity_on_one_rank_in_equally_many_batches(self, world, p):
        for epoch in (0, 5):
            made = plain(world, p, epoch=epoch)
            seen = [{label for batch in sampler for label in groups(batch, 4)} for sampler in made]
            assert sum(map(len, seen)) == len(set().union(*seen)) == len(IDS)
            assert len({len(list(sampler)) for sampler in made} | {len(sampler) for sampler in made}) == 1

    def test_last_batches_are_filled_up_from_the_epoch(self):
        (sampler,) = plain(p=4)
        order = [label for batch in sampler for label in groups(batch, 4)]
        assert (len(sampler), sorted(order[:11]), order[11:]) == (3, IDS, order[:1])

    def test_real_and_generated_pictures_per_identity(self):
        cameras = dict(enumerate(CAMIDS))
        for sampler in augmented(world=2):
            for batch in sampler:
                styles = np.array([style for *_, style in batch]).reshape(3, 8)
                assert (styles[:, :6] == -1).all()
                assert set(styles[:, 6:].flatten()) <= {0, 1, 4}
                assert all(style != cameras[position] for _, _, position, style in batch)

    def test_all_other_cameras_are_drawn(self):
        found = {(CAMIDS[key[2]], key[3]) for e in range(20) for batch in augmented(epoch=e)[0] for key in batch}
        assert {pair for pair in found if pair[1] >= 0} == {(0, 1), (0, 4), (1, 0), (1, 4), (4, 0), (4, 1)}

    def test_pictures_repeat_only_where_there_are_too_few_and_then_evenly(self):
        for batch in plain(p=11, k=5)[0]:
            for label, positions in zip(
                groups(batch, 5), np.array([key[2] for key in batch]).reshape(-1, 5), strict=True
            ):
                size = SIZES[IDS.index(label)]
                counts = np.unique(positions, return_counts=True)[1]
                assert len(counts) == min(size, 5)
                assert counts.max() - counts.min() <= (size < 5)

    def test_generated_pictures_of_an_identity_differ_where_they_can(self):
        for batch in augmented(p=11, k=4, generated=2)[0]:
            for first in range(2, len(batch), 4):
                one, two = batch[first], batch[first + 1]
                assert one[2:] != two[2:]  # even one picture has two other cameras

    def test_no_two_places_of_an_epoch_have_the_same_number(self):
        numbers = [key[1] for sampler in augmented(world=3) for batch in sampler for key in batch]
        assert len(set(numbers)) == len(numbers)

    def test_none_are_generated_with_zero(self):
        assert {key[3] for batch in augmented(generated=0)[0] for key in batch} == {-1}


class TestFewIdentities:
    def test_p_shrinks_to_what_a_rank_has(self):
        labels = np.repeat(np.arange(5), 4)
        made = plain(world=2, p=32, labels=labels)
        assert [sampler.p for sampler in made] == [2, 2]
        assert [len(list(sampler)) for sampler in made] == [2, 2]
        for sampler in made:
            for batch in sampler:
                assert len(set(groups(batch, 4, labels))) == 2

    def test_with_fewer_than_two_for_each_every_rank_takes_all(self):
        labels = np.repeat(np.arange(3), 4)
        made = plain(world=2, p=32, k=2, labels=labels)
        batches = [list(sampler) for sampler in made]
        for sampler, found in zip(made, batches, strict=True):
            assert (sampler.p, len(found)) == (3, 1)
            assert sorted(groups(found[0], 2, labels)) == [0, 1, 2]
        assert [key[2] for key in batches[0][0]] != [key[2] for key in batches[1][0]]


class TestOrder:
    @pytest.mark.parametrize("make", [plain, augmented])
    def test_seed_and_epoch_decide_and_nothing_else(self, make):
        first = list(make()[0])
        torch.rand(3)
        assert list(make()[0]) == first
        assert list(make(seed=1)[0]) != first
        again = list(make(epoch=1)[0])
        assert [key[2:] for key in again[0]] != [key[2:] for key in first[0]]
        assert {key[0] for batch in again for key in batch} == {1}

    @pytest.mark.parametrize("make", [plain, augmented])
    def test_start_leaves_out_batches_once(self, make):
        for sampler in make(world=2, p=2):
            whole = list(sampler)
            for start in range(len(whole) + 1):
                sampler.start = start
                assert list(sampler) == whole[start:]
            assert list(sampler) == whole

    def test_a_loader_resumes_after_every_batch(self):
        class Counted:
            def __getitems__(self, keys):
                return {"index": torch.tensor([key[2] for key in keys])}

        def loader():
            (sampler,) = augmented(p=2)
            return ResumableLoader(
                ClassBatches(Counted(), sampler), sampler=sampler, batch_size=None, collate_fn=lambda batch: batch
            )

        whole = [batch["index"].tolist() for batch in loader()]
        assert len(whole) == len(loader()) == 6
        for done in range(7):
            first, second = loader(), loader()
            for _, _ in zip(range(done), first, strict=False):
                pass
            second.load_state_dict(first.state_dict())
            assert [batch["index"].tolist() for batch in second] == whole[done:]
        assert first.state_dict() == {
            "epoch": 0, "done": 6, "batch_size": 16, "replicas": 1, "k": 8, "generated": 2,
        }  # fmt: skip
        assert [loader().dataset[number]["index"].tolist() for number in range(6)] == whole  # overfit_batches


class TestSteps:
    def keys(self, steps, world=1, rank=0, size=10, batch_size=4, part=0, seed=0):
        return list(StepSampler(size, steps, batch_size, part, seed, world, rank))

    def test_ten_steps_of_four_take_each_of_ten_four_times(self):
        found = [key[2] for batch in self.keys(range(10)) for key in batch]
        assert np.bincount(found).tolist() == [4] * 10
        assert found[:10] != found[10:20]

    def test_a_later_call_goes_on_anywhere(self):
        whole = self.keys(range(10))
        assert self.keys(range(7, 10)) == whole[7:]
        assert self.keys(range(0, 10, 3)) == whole[::3]

    def test_ranks_share_each_step(self):
        whole = self.keys(range(5))
        ranks = [self.keys(range(5), 2, rank) for rank in (0, 1)]
        assert [sorted(a + b) for a, b in zip(*ranks, strict=True)] == [sorted(batch) for batch in whole]
        assert {len(batch) for keys in ranks for batch in keys} == {2}

    def test_parts_and_seeds_differ(self):
        first = [key[2] for batch in self.keys(range(5)) for key in batch]
        for other in ({"part": 1}, {"seed": 1}):
            assert [key[2] for batch in self.keys(range(5), **other) for key in batch] != first

    def test_uneven_shares_are_refused(self):
        with pytest.raises(ValueError, match=r"batch_size must be a multiple of the 3 process\(es\), got 4"):
            self.keys(range(1), 3)


def test_an_idle_epoch_is_one_empty_batch():
    sampler = IdleSampler(num_replicas=2, rank=1)
    assert (list(sampler), len(sampler)) == ([[]], 1)
    sampler.start = 1
    assert list(sampler) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((LABELS, 1, 4), "p must be at least 2, got 1: a batch with one identity has no negatives"),
        ((LABELS, 3, 0), "k must be at least 1, got 0"),
        ((np.array([-1, 2, 2]), 2, 2), "labels has 1 identities besides -1"),
        ((np.array([-1, -1]), 2, 2), "labels has 0 identities besides -1"),
        ((LABELS, 3, 4, 0, 2, 2), "rank must be between 0 and num_replicas - 1 = 1, got 2"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        PKSampler(*arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((LABELS, CAMIDS, 3, 4, 4), "generated must be 0 to k - 1 = 3, got 4"),
        ((LABELS, CAMIDS[1:], 3, 4, 1), "one camera per label, got 75 for 76"),
        ((LABELS, CAMIDS * 0, 3, 4, 1), "generated=1 needs two cameras"),
    ],
)
def test_bad_arguments_of_translation(arguments, message):
    with pytest.raises(ValueError, match=message):
        AugmentedPKSampler(*arguments)
