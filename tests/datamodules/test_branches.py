"""Batches of easy and hard branches: different identities, balanced, with pairs, the same however they are loaded."""

from collections import Counter

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule

from datamodules.branches import (
    Branch,
    BranchBatches,
    IdentityBalancedBatchSampler,
    branch_loader,
    to_float,
)
from datamodules.positive_pairs import PositivePairDataset
from tests.every_batch import SaveAfterEveryBatch
from tests.loading import flat

COUNTS = [4, 2, 9, 1, 3, 5, 2]
LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(7), COUNTS))  # 26 pictures


def samplers(world=1, b=3, labels=LABELS, seed=0, drop_last=True):
    return [IdentityBalancedBatchSampler(labels, b, drop_last, seed, world, rank) for rank in range(world)]


def positions(batch):
    return [position for _, _, position in batch]


class TestSampler:
    @pytest.mark.parametrize(("world", "b"), [(1, 2), (1, 7), (2, 3), (3, 2)])
    def test_identities_of_a_step_differ_over_all_ranks(self, world, b):
        made = samplers(world, b)
        for epoch, step in [(0, 0), (0, 5), (3, 1), (1, 40)]:
            rows = [positions(sampler.batch(epoch, step)) for sampler in made]
            assert [len(part) for part in rows] == [b] * world
            labels = LABELS[np.concatenate(rows)]
            assert len(set(labels)) == b * world

    def test_ranks_together_are_one_process_with_the_larger_batch(self):
        (alone,), together = samplers(b=6), samplers(2, 3)
        for step in range(9):
            parts = [key for sampler in together for key in sampler.batch(2, step)]
            assert parts == alone.batch(2, step)

    def test_identities_come_equally_often_and_so_do_their_pictures(self):
        (sampler,) = samplers(b=7)
        seen = Counter(position for step in range(36) for position in positions(sampler.batch(0, step)))
        for label, count in enumerate(COUNTS):
            times = [seen[row] for row in np.flatnonzero(label == LABELS)]
            assert sum(times) == 36
            assert max(times) - min(times) <= (36 % count > 0)

    def test_pictures_come_equally_often_where_sweeps_leave_identities_out(self):
        (sampler,) = samplers(b=3)  # 7 identities: each sweep is two batches and leaves one out
        seen = Counter(position for step in range(60) for position in positions(sampler.batch(0, step)))
        for label in range(7):
            times = [seen[row] for row in np.flatnonzero(label == LABELS)]
            assert max(times) - min(times) <= 1
        left = [
            set(range(7)) - set(LABELS[positions(sampler.batch(0, s)) + positions(sampler.batch(0, s + 1))])
            for s in range(0, 60, 2)
        ]
        assert {len(out) for out in left} == {1}
        assert len(set.union(*left)) > 3

    def test_a_batch_is_the_same_whatever_was_asked_before(self):
        (one,), (other,) = samplers(), samplers()
        forward = {(epoch, step): one.batch(epoch, step) for epoch in (0, 1) for step in range(12)}
        for key in [(1, 11), (0, 3), (1, 2), (0, 11), (0, 0)]:
            assert other.batch(*key) == forward[key]

    def test_epochs_and_seeds_differ(self):
        (one,), (other,) = samplers(), samplers(seed=1)
        made = [positions(s.batch(epoch, step)) for s in (one, other) for epoch in (0, 1) for step in (0, 1)]
        assert len({tuple(batch) for batch in made}) == 8

    def test_numbers_are_the_places_of_an_epoch(self):
        made = samplers(2, 3)
        numbers = [number for step in range(4) for sampler in made for _, number, _ in sampler.batch(0, step)]
        assert numbers == list(range(24))

    def test_lengths_and_the_start_within_an_epoch(self):
        assert [len(samplers(b=b, drop_last=drop)[0]) for b in (3, 4) for drop in (True, False)] == [8, 9, 6, 7]
        assert [len(sampler) for sampler in samplers(2, 3)] == [4, 4]
        (sampler,) = samplers()
        sampler.set_epoch(2)
        whole = list(sampler)
        assert whole == [sampler.batch(2, step) for step in range(8)]
        sampler.start = 5
        assert list(sampler) == whole[5:]
        assert list(sampler) == whole

    def test_positions_without_label_never_come(self):
        labels = np.where(LABELS == 2, -1, LABELS)
        (sampler,) = samplers(labels=labels)
        assert len(sampler) == 17 // 3
        assert all(labels[positions(sampler.batch(0, step))].min() >= 0 for step in range(30))

    @pytest.mark.parametrize(
        ("labels", "b", "world", "message"),
        [
            ([0, 0, 1], 3, 1, r"b=3 on 1 process\(es\) takes 3 different .* has 2; set b to 2 or less"),
            ([0, 1, 2], 2, 2, r"b=2 on 2 process\(es\) takes 4 different .* has 3; set b to 1 or less"),
            ([5, 5, -1], 1, 1, "labels has 1 identities; it needs two"),
            ([], 1, 1, "labels has 0 identities; it needs two"),
            ([0, 1], 0, 1, "b must be at least 1, got 0"),
        ],
    )
    def test_what_cannot_make_a_batch_is_refused(self, labels, b, world, message):
        with pytest.raises(ValueError, match=message):
            IdentityBalancedBatchSampler(np.array(labels, np.int64), b, num_replicas=world, rank=0)


def copies(hard_pairs="mixed", counts=COUNTS):
    """An easy branch of N pictures and a hard one of their copies."""
    labels = np.repeat(np.arange(len(counts)), counts)
    size = len(labels)
    sources = np.tile(np.arange(size), 2)
    everything = {"partners": np.arange(2 * size), "partner_labels": np.tile(labels, 2)}
    hard = everything if hard_pairs == "mixed" else {}
    return labels, [
        Branch("easy", np.arange(size), labels, sources=sources),
        Branch("hard", np.arange(size, 2 * size), labels, sources=sources, **hard),
    ]


class TestPairs:
    @pytest.mark.parametrize("hard_pairs", ["mixed", "hard"])
    def test_a_pair_is_two_files_of_one_identity(self, hard_pairs):
        labels, branches = copies(hard_pairs)
        size = len(labels)
        for branch in branches:
            found = PositivePairDataset(branch).positions(0, np.arange(600))
            files = found % size
            assert (labels[files[:, 0]] == labels[files[:, 1]]).all()
            assert (files[:, 0] != files[:, 1]).all()
            assert np.isin(found[:, 0], branch.positions).all()
            second = {"easy": {False}, "hard": {True} if hard_pairs == "hard" else {False, True}}[branch.name]
            assert set((found[:, 1] >= size).tolist()) == second

    def test_all_possible_pairs_occur(self):
        _, (_, hard) = copies(counts=[3])
        found = set(map(tuple, PositivePairDataset(hard).positions(0, np.arange(300)).tolist()))
        assert found == {(i, j) for i in range(3, 6) for j in range(6) if i % 3 != j % 3}

    def test_identities_and_first_pictures_come_equally_often(self):
        labels, (easy, _) = copies()
        pairs = PositivePairDataset(easy)
        assert pairs.identities.tolist() == [0, 1, 2, 4, 5, 6]
        assert pairs.left_out.tolist() == [3]  # one picture
        found = pairs.positions(0, np.arange(6 * 36))
        assert (np.bincount(labels[found[:, 0]], minlength=7) == [36, 36, 36, 0, 36, 36, 36]).all()
        times = Counter(found[:, 0].tolist())
        for label in pairs.identities:
            own = [times[row] for row in np.flatnonzero(labels == label)]
            assert max(own) - min(own) <= (36 % len(own) > 0)

    def test_second_pictures_come_about_equally_often(self):
        _, (_, hard) = copies(counts=[4] * 20)
        found = PositivePairDataset(hard).positions(0, np.arange(16000))
        times = np.bincount(found[:, 1], minlength=160)  # 100 each, give or take 10
        assert np.abs(times - 100).max() < 50

    def test_a_hard_picture_may_find_its_partner_among_the_easy_ones_alone(self):
        easy = {"partners": np.array([0, 1, 9]), "partner_labels": np.array([0, 1, 0])}
        hard = Branch("hard", np.array([5, 6, 7]), np.array([0, 0, 2]), **easy)
        pairs = PositivePairDataset(hard)
        assert set(map(tuple, pairs.positions(0, np.arange(50)).tolist())) == {(5, 0), (5, 9), (6, 0), (6, 9)}
        assert pairs.left_out.tolist() == [2]

    def test_a_picture_whose_only_partner_is_its_own_copy_has_none(self):
        sources = np.array([0, 1, 2, 0, 1, 2])
        hard = Branch("hard", np.array([3, 4, 5]), np.array([0, 0, 1]), np.array([0, 2]), np.array([0, 1]), sources)
        pairs = PositivePairDataset(hard)
        assert [pairs[number] for number in range(len(pairs))] == [(4, 0)]
        assert pairs.left_out.tolist() == [1]

    def test_no_pair_at_all_is_refused(self):
        with pytest.raises(
            ValueError, match=r"branch 'far' has no positive pair: each of its 2 identities \(class 0, 3"
        ):
            PositivePairDataset(Branch("far", np.arange(2), np.array([3, 0])))

    def test_items_are_two_pictures_that_are_augmented_each_on_its_own(self):
        asked = []

        def pictures(rows, epochs, numbers):
            asked.append((rows.tolist(), epochs.tolist(), numbers.tolist()))
            return torch.zeros(len(rows), 3, 2, 2, dtype=torch.uint8) + torch.from_numpy(rows)[:, None, None, None]

        _, (easy, _) = copies()
        one, other = PositivePairDataset(easy, pictures=pictures)[2, 5]
        assert one.shape == (3, 2, 2)
        ((rows, epochs, numbers),) = asked
        assert tuple(rows) == PositivePairDataset(easy)[2, 5]
        assert (epochs, numbers) == ([2, 2], [10, 11])
        assert (int(one[0, 0, 0]), int(other[0, 0, 0])) == tuple(rows)


class TestBranch:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ((np.empty(0, int), np.empty(0, int)), "branch 'x' has no pictures"),
            ((np.arange(2), np.arange(3)), "branch 'x' has 2 positions and 3 labels"),
            ((np.arange(2), np.array([0, -1])), "branch 'x': labels must be 0 or more, got -1"),
            ((np.arange(2), np.arange(2), np.arange(2)), "partners and partner_labels go together"),
        ],
    )
    def test_what_does_not_fit_is_refused(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            Branch("x", *arguments)


def keys_as_pictures(rows, epochs, numbers):
    """Pictures (3, 1, 1) that say their keys."""
    return torch.from_numpy(np.stack([rows, epochs, numbers % 251], 1).astype(np.uint8))[:, :, None, None]


def batches(world=1, rank=0, b=3, pairs=True, seed=0, branches=None):
    return BranchBatches(keys_as_pictures, branches or copies()[1], b, pairs, seed, world, rank)


def same(one, other):
    one, other = flat(one), flat(other)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


class TestBatches:
    def test_a_batch(self):
        labels, _ = copies()
        batch = batches()[1, 4]
        assert list(batch) == ["easy", "hard"]
        for name, branch in batch.items():
            assert list(branch) == ["image", "label", "pair"]
            assert branch["image"].dtype == torch.uint8
            assert branch["label"].dtype == torch.int64
            assert [part.shape for part in (branch["image"], *branch["pair"])] == [(3, 3, 1, 1)] * 3
            rows = branch["image"][:, 0, 0, 0].numpy()
            assert labels[rows % 26].tolist() == branch["label"].tolist()
            assert len(set(branch["label"].tolist())) == 3
            assert set(rows >= 26) == {name == "hard"}
            one, other = (labels[part[:, 0, 0, 0].numpy() % 26] for part in branch["pair"])
            assert (one == other).all()
        without = batches(pairs=False)[1, 4]
        assert {key: list(branch) for key, branch in without.items()} == {key: ["image", "label"] for key in batch}

    def test_every_picture_of_an_epoch_has_a_number_of_its_own(self):
        numbers = []

        def pictures(rows, epochs, found):
            numbers.extend(found.tolist())
            return keys_as_pictures(rows, epochs, found)

        for rank in range(2):
            made = BranchBatches(pictures, copies()[1], b=3, num_replicas=2, rank=rank)
            for step in range(4):
                made[0, step]
        assert sorted(numbers) == list(range(2 * 4 * 18))

    def test_branches_draw_each_on_its_own(self):
        batch = batches()
        drawn = [flat(batch[0, step]) for step in range(4)]
        assert any(not torch.equal(part["easy/label"], part["hard/label"]) for part in drawn)

    def test_ranks_see_different_identities_and_pairs(self):
        _, branches = copies(counts=[3] * 8)
        one, other = (flat(batches(2, rank, 4, branches=branches)[0, 1]) for rank in range(2))
        for name in ("easy/label", "hard/label"):
            assert sorted(torch.cat([one[name], other[name]]).tolist()) == list(range(8))
        persons = [int(row) % 24 // 3 for part in (one, other) for row in part["easy/pair"][0, :, 0, 0, 0]]
        assert sorted(persons) == list(range(8))

    def test_an_epoch_lasts_as_long_as_the_longest_branch_and_others_go_round(self):
        labels = np.repeat(np.arange(4), 6)
        few = Branch("hard", np.arange(24, 32), np.repeat(np.arange(4), 2))
        made = batches(b=4, branches=[Branch("easy", np.arange(24), labels), few])
        assert len(made) == 6
        assert len(made.samplers["hard"]) == 2
        seen = Counter(row for step in range(6) for row in made[0, step]["hard"]["image"][:, 0, 0, 0].tolist())
        assert seen == dict.fromkeys(range(24, 32), 3)

    def test_a_number_is_a_step_of_the_first_epoch(self):
        made = batches()
        assert same(made[2], made[0, 2])
        with pytest.raises(IndexError, match="batch 8 of 8"):
            made[8]

    def test_the_summary_counts(self):
        summary = batches().summary()
        assert (summary["data/hard_pictures"], summary["data/hard_identities"]) == (26, 7)
        assert summary["data/easy_without_pair"] == 1

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"b": 1}, "b must be at least 2, got 1"),
            ({"b": 8}, "branch 'easy': b=8 on 1 process"),
            ({"branches": [copies()[1][0]] * 2}, "different names, got .'easy', 'easy'"),
            ({"branches": [Branch("far", np.arange(2), np.arange(2))], "b": 2}, "branch 'far' has no positive pair"),
        ],
    )
    def test_what_makes_no_batches_is_refused(self, changes, message):
        with pytest.raises(ValueError, match=message):
            batches(**changes)


class Seen(LightningModule):
    """Learns from every batch, and remembers it."""

    def __init__(self):
        super().__init__()
        self.weight, self.seen = torch.nn.Parameter(torch.zeros(3, 1, 1, dtype=torch.float64)), []

    def on_after_batch_transfer(self, batch, dataloader_idx):
        return to_float(batch)

    def training_step(self, batch, batch_idx):
        self.seen.append(flat(batch))
        return sum((self.weight - part["image"].double()).square().mean() for part in batch.values())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def equal(one, other):
    return len(one) == len(other) and all(
        a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a) for a, b in zip(one, other, strict=True)
    )


class TestLoader:
    def test_workers_give_the_same(self):
        plain = list(branch_loader(batches()))
        assert len(plain) == 8
        fetched = list(branch_loader(batches(), num_workers=2))
        assert all(same(one, other) for one, other in zip(plain, fetched, strict=True))

    def test_a_run_resumed_after_any_batch_equals_an_uninterrupted_one(self, make_trainer, tmp_path):
        def fit(callbacks=(), ckpt_path=None):
            module, loader = Seen(), branch_loader(batches())
            trainer = make_trainer(max_epochs=2, callbacks=list(callbacks))
            loader.trainer = trainer
            trainer.fit(module, loader, ckpt_path=ckpt_path)
            return module

        saver = SaveAfterEveryBatch(tmp_path)
        whole = fit([saver])
        assert len(whole.seen) == len(saver.paths) == 16
        assert not equal(whole.seen[:8], whole.seen[8:])
        for done in (1, 5, 8, 13):
            rest = fit(ckpt_path=saver.paths[done - 1])
            assert equal(rest.seen, whole.seen[done:])
            assert torch.equal(rest.weight, whole.weight)

    def test_overfit_batches_trains_on_the_same(self, make_trainer):
        module = Seen()
        make_trainer(max_epochs=2, overfit_batches=1).fit(module, branch_loader(batches()))
        assert len(module.seen) == 2
        assert equal(module.seen[:1], module.seen[1:])

    def test_the_state_says_what_decides_the_batches(self):
        assert branch_loader(batches()).state_dict() == {
            "epoch": 0, "done": 0, "batch_size": 3, "replicas": 1, "branches": 2, "pairs": 1,
        }  # fmt: skip


def test_pictures_become_floats_wherever_they_are():
    pixels = torch.tensor([0, 51, 255], dtype=torch.uint8)
    batch = {"a": {"image": pixels, "label": torch.tensor([3]), "pair": (pixels, pixels)}, "b": [pixels, "text"]}
    floats = to_float(batch)
    expected = torch.tensor([0.0, 0.2, 1.0])
    for found in (floats["a"]["image"], *floats["a"]["pair"], floats["b"][0]):
        torch.testing.assert_close(found, expected)
    assert isinstance(floats["a"]["pair"], tuple)
    assert floats["a"]["label"].dtype == torch.int64
    assert floats["b"][1] == "text"
    assert batch["a"]["image"] is pixels


def test_two_processes_augment_their_pictures_as_one_process_does():
    seen = {}

    def note(positions, epochs, numbers):
        seen.setdefault(len(positions), []).extend(zip(positions.tolist(), numbers.tolist(), strict=True))
        return torch.zeros(len(positions), 3, 2, 2, dtype=torch.uint8)

    labels = np.repeat(np.arange(8), 3)
    branches = [Branch(name, np.arange(24), labels) for name in ("easy", "hard")]
    for step in range(3):
        BranchBatches(note, branches, b=4, num_replicas=1, rank=0)[1, step]
        for rank in range(2):
            BranchBatches(note, branches, b=2, num_replicas=2, rank=rank)[1, step]
    one, two = (sorted(rows) for _, rows in sorted(seen.items(), reverse=True))
    assert one == two
    assert len({number for _, number in one}) == len(one) == 3 * 24
