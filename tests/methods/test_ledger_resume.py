"""Killed anywhere, an attack goes on by its ledger without a question asked twice, and ends the same."""

import signal
import subprocess
import sys
import threading
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
import torch

from lit_methods.ppba import Ledger, PPBAAttack, label_score_loss
from lit_methods.ppba.ledger import merge, read_ledger
from tests.methods.ledger_runs import (
    LINEAR,
    LOW,
    SMALL,
    each_attack,
    puzzle,
    run,
    strict,
)
from tests.methods.toy_attacks import assert_equal
from tests.methods.toy_models import Killed, NaNs, Recorder, picture_batch

# -- killed and continued ----------------------------------------------------------------------------------------------


@each_attack
def test_killed_at_any_question_it_goes_on_as_if_nothing_had_been(name, tmp_path):
    attack = SMALL[name]()
    whole = Recorder(LINEAR)
    images, labels = puzzle()
    undisturbed = attack(whole, images, labels, image_ids=torch.arange(5) + 100)
    assert 0 < undisturbed.success.sum() < 4
    every = 1 if name in ("ppba", "nes") else 3  # a third of the questions where the same kind of walk is tried at all
    for k in range(1, len(whole.sizes) + 1, every):
        path = tmp_path / f"{k}.jsonl"
        before, after = Recorder(LINEAR, dies_at=k), Recorder(LINEAR)
        with pytest.raises(Killed):
            run(attack, before, path)
        assert_equal(run(attack, after, path), undisturbed)
        # answered before, and not again; together what it asks undisturbed
        assert not before.counts() & after.counts()
        assert before.counts() + after.counts() == whole.counts()
        assert len(before.sizes) + len(after.sizes) == len(whole.sizes)
        lines = strict(path)
        assert sorted(line["id"] for line in lines) == [100, 101, 102, 103, 104]
        assert {line["id"] - 100: line["queries"] for line in lines} == dict(enumerate(undisturbed.queries.tolist()))


@each_attack
def test_killed_again_and_again(name, path):
    attack, whole = SMALL[name](), Recorder(LINEAR)
    images, labels = puzzle()
    undisturbed = attack(whole, images, labels, image_ids=torch.arange(5) + 100)
    lives, asked = 0, []
    while True:
        model = Recorder(LINEAR, dies_at=3)
        lives += 1
        try:
            result = run(attack, model, path)
        except Killed:
            asked += model.images
            continue
        asked += model.images
        break
    assert lives > 4
    assert_equal(result, undisturbed)
    assert sorted(i.numpy().tobytes() for i in asked) == sorted(whole.counts().elements())


@each_attack
def test_a_finished_attack_asks_nothing_more_and_writes_no_line_twice(name, path):
    attack = SMALL[name]()
    first = run(attack, LINEAR, path)
    lines = path.read_text()
    again = Recorder(LINEAR)
    assert_equal(run(SMALL[name](), again, path), first)  # nor does another object of the same settings
    assert not again.sizes
    assert path.read_text() == lines


@pytest.mark.parametrize("name", ["ppba_3", "nes"])
@pytest.mark.parametrize("limit", [1, 4])
def test_a_black_box_that_takes_few_images_dies_within_a_question(name, limit, tmp_path):
    attack = SMALL[name]()
    whole = Recorder(LINEAR)
    whole.max_batch = limit
    images, labels = puzzle()
    undisturbed = attack(whole, images, labels, image_ids=torch.arange(5) + 100)
    for k in range(3, len(whole.sizes), len(whole.sizes) // 5):
        path = tmp_path / f"{k}.jsonl"
        before, after = Recorder(LINEAR, dies_at=k), Recorder(LINEAR)
        before.max_batch = after.max_batch = limit
        with pytest.raises(Killed):
            run(attack, before, path)
        assert_equal(run(attack, after, path), undisturbed)
        assert not before.counts() & after.counts()  # each costs money


KILLED = """
import os, signal, sys, torch
from tests.methods.ledger_runs import *

class Deadly:
    calls = 0

    def __call__(self, images):
        Deadly.calls += 1
        if Deadly.calls == 7:
            os.kill(os.getpid(), signal.SIGKILL)
        print(*(image.numpy().tobytes().hex() for image in images), flush=True)
        return LINEAR(images)

run(SMALL["nes"](), Deadly(), sys.argv[1])
"""


@pytest.mark.slow
def test_a_process_that_is_really_killed(path):
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(path)], cwd=root, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    model, images = Recorder(LINEAR), puzzle()
    asked = [bytes.fromhex(word) for word in done.stdout.split()]
    assert len(asked) > 20
    result = run(SMALL["nes"](), model, path)
    assert not model.counts().keys() & set(asked)
    whole = Recorder(LINEAR)
    assert_equal(result, SMALL["nes"]()(whole, *images, image_ids=torch.arange(5) + 100))
    assert sorted([*asked, *model.counts().elements()]) == sorted(whole.counts().elements())


@each_attack
def test_what_on_step_raises_leaves_a_ledger_to_go_on_from(name, path):
    def stop(number, left):
        if number == 2:
            raise Killed

    attack, whole, before, after = SMALL[name](), Recorder(LINEAR), Recorder(LINEAR), Recorder(LINEAR)
    with pytest.raises(Killed):
        run(attack, before, path, on_step=stop)
    result = run(attack, after, path)
    assert_equal(result, attack(whole, *puzzle(), image_ids=torch.arange(5) + 100))
    assert before.counts() + after.counts() == whole.counts()
    assert after.sizes


def test_the_same_ledger_object_goes_on(path):
    attack, ledger, whole = SMALL["ppba"](), Ledger(path), Recorder(LINEAR)
    images, labels = puzzle()
    undisturbed = attack(whole, images, labels)
    before, after = Recorder(LINEAR, dies_at=5), Recorder(LINEAR)
    with pytest.raises(Killed):
        attack(before, images, labels, ledger=ledger)
    assert_equal(attack(after, images, labels, ledger=ledger), undisturbed)
    assert before.counts() + after.counts() == whole.counts()
    again = Recorder(LINEAR)
    assert_equal(attack(again, images, labels, ledger=ledger), undisturbed)
    assert not again.sizes
    assert len(read_ledger(path)) == len(strict(path)) == 5
    ledger.close()


def test_a_closed_ledger_opens_again(path):
    attack, ledger, model = SMALL["ppba"](), Ledger(path), Recorder(LINEAR)
    images, labels = puzzle()
    with ledger:
        first = attack(LINEAR, images, labels, ledger=ledger)
    with ledger:
        assert_equal(attack(model, images, labels, ledger=ledger), first)
    assert not model.sizes


@each_attack
def test_with_given_draws(name, path):
    attack = SMALL[name]()
    images, labels = puzzle()
    shape = {"ppba": (1, 24), "ppba_3": (3, 24), "nes": (5, 24), "bandits": (24,), "simba": (1,)}[name]
    draws = torch.rand(6, 5, *shape, dtype=torch.float64)
    before, after = Recorder(LINEAR, dies_at=4), Recorder(LINEAR)
    with pytest.raises(Killed):
        run(attack, before, path, draws=draws)
    result = run(attack, after, path, draws=draws)
    assert_equal(result, attack(LINEAR, images, labels, draws=draws, image_ids=torch.arange(5) + 100))
    assert not before.counts() & after.counts()


def test_films_and_results_are_the_same_after_a_resume(path):
    attack = SMALL["ppba"]()
    with pytest.raises(Killed):
        run(attack, Recorder(LINEAR, dies_at=9), path, films=(100, 101))
    films = run(attack, LINEAR, path, films=(100, 101)).history["films"]
    plain = attack(LINEAR, *puzzle(), image_ids=torch.arange(5) + 100, films=(100, 101)).history["films"]
    assert films.keys() == plain.keys()
    for image, film in films.items():
        assert [number for number, _ in film.frames] == [number for number, _ in plain[image].frames]
        assert all(torch.equal(a, b) for (_, a), (_, b) in zip(film.frames, plain[image].frames, strict=True))


@each_attack
def test_answers_of_no_use_are_remembered_too(name, tmp_path):
    images, labels = puzzle()
    model = NaNs(LINEAR, images, 0, 0.1)
    attack, whole = SMALL[name](), Recorder(model)
    undisturbed = attack(whole, images, labels, image_ids=torch.arange(5) + 100)
    assert undisturbed.failed.tolist() == [True, False, False, False, False]
    for k in range(2, len(whole.sizes) + 1, 4):
        path = tmp_path / f"{k}.jsonl"
        before, after = Recorder(model, dies_at=k), Recorder(model)
        with pytest.raises(Killed):
            run(attack, before, path)
        assert_equal(run(attack, after, path), undisturbed)
        assert not before.counts() & after.counts()
        assert strict(path)  # also of the image that failed: no NaN in its line


def test_a_service_goes_on(path):
    def service(images):
        scores = LINEAR(images)
        return [sorted(((str(i), s.item()) for i, s in enumerate(row)), key=lambda x: -x[1])[:2] for row in scores]

    def shop():
        images, labels = picture_batch(5)
        return images, [{str(label)} for label in labels.tolist()]

    class Sets(list):
        def __getitem__(self, ids):
            return [list.__getitem__(self, i) for i in ids]

    shop_of_rows = lambda: (shop()[0], Sets(shop()[1]))  # noqa: E731
    attack = partial(PPBAAttack, LOW, rho=0.1, eps=2.0, max_queries=20, loss_fn=label_score_loss)
    whole, before, after = Recorder(service), Recorder(service, dies_at=6), Recorder(service)
    undisturbed = attack()(whole, *shop(), image_ids=torch.arange(5) + 100)
    with pytest.raises(Killed):
        run(attack(), before, path, puzzle=shop_of_rows)
    assert_equal(run(attack(), after, path, puzzle=shop_of_rows), undisturbed)
    assert before.counts() + after.counts() == whole.counts()


# -- other company -----------------------------------------------------------------------------------------------------


def ask_all(attack, path, splits, dies_at=None):
    """One ledger for several batches, each as (rank, rows); what was asked, and lines by image."""
    asked = Recorder(LINEAR)
    ledgers = {rank: Ledger(path, rank=rank) for rank, _ in splits}
    images, labels = puzzle()
    for rank, rows in splits:
        model = Recorder(LINEAR, dies_at)
        with suppress(Killed):
            attack(model, images[rows], labels[rows], image_ids=torch.tensor(rows) + 100, ledger=ledgers[rank])
        asked.images += model.images
    for ledger in ledgers.values():
        ledger.close()
    return asked


SPLITS = {
    "alone": [(0, [i]) for i in range(5)],
    "backwards": [(0, [4, 3, 2, 1, 0])],
    "two batches": [(0, [2, 0]), (0, [1, 4, 3])],
    "two ranks": [(0, [0, 2, 4]), (1, [1, 3])],
    "two other ranks": [(1, [0, 2, 4]), (0, [1, 3])],
    "three ranks": [(2, [0]), (0, [1, 2]), (1, [3, 4])],
}


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("backwards", "alone"),
        ("two batches", "backwards"),
        ("two ranks", "backwards"),
        ("backwards", "three ranks"),
        ("two ranks", "two other ranks"),
        ("three ranks", "two ranks"),
    ],
)
def test_another_split_goes_on(first, second, tmp_path):
    images, labels = puzzle()
    ids = torch.arange(5) + 100
    for name in ("ppba_3", "nes"):
        attack, whole, path = SMALL[name](), Recorder(LINEAR), tmp_path / name / "ledger.jsonl"
        expected = attack(whole, images, labels, image_ids=ids)
        before = ask_all(attack, path, SPLITS[first], dies_at=5)
        after = ask_all(attack, path, SPLITS[second])
        assert not before.counts() & after.counts()
        assert before.counts() + after.counts() == whole.counts()
        lines = merge(path)
        assert [line["id"] for line in lines] == ids.tolist()
        assert [line["queries"] for line in lines] == expected.queries.tolist()
        assert [line["success"] for line in lines] == expected.success.tolist()
        assert strict(path) == lines
        assert [p.name for p in path.parent.glob("*.jsonl")] == ["ledger.jsonl"]
        third = Recorder(LINEAR)
        assert_equal(run(attack, third, path), expected)
        assert not third.sizes


@each_attack
def test_one_attack_object_and_one_ledger_for_many_batches(name, path):
    attack, result = SMALL[name](), {}
    images, labels = puzzle()
    with Ledger(path) as ledger:
        for rows in ([1, 3], [0], [2, 4]):
            part = attack(LINEAR, images[rows], labels[rows], image_ids=torch.tensor(rows), ledger=ledger)
            result |= dict(zip(rows, part.queries.tolist(), strict=True))
    assert {line["id"]: line["queries"] for line in read_ledger(path)} == result


def test_two_ranks_at_the_same_time(path):
    attack = SMALL["ppba"]
    images, labels = puzzle()
    expected = attack()(LINEAR, images, labels)
    meet = threading.Barrier(2)

    def work(rank):
        rows = torch.arange(rank, 5, 2)
        with Ledger(path, rank=rank) as ledger:
            meet.wait(5)
            attack()(LINEAR, images[rows], labels[rows], image_ids=rows, ledger=ledger)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [line["queries"] for line in read_ledger(path)] == expected.queries.tolist()
