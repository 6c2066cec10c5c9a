"""The files of a query ledger: what is in them, torn ends, and what does not belong together."""

from functools import partial

import pytest
import torch

from lit_methods.ppba import NES, Ledger, PPBAAttack, SimBA
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
from tests.methods.toy_models import CLASSES, Killed, NaNs, Recorder, low_frequencies

# -- what is in the files ----------------------------------------------------------------------------------------------

KEYS = {"id", "key", "label", "queries", "max_queries", "checks", "l2", "l2_unclipped", "pred"}
FLAGS = {"success", "skipped", "failed", "success_uint8"}


@each_attack
def test_each_line_is_the_result_of_one_image(name, path):
    images, labels = puzzle()
    attack = SMALL[name]()
    with Ledger(path) as ledger:
        result = attack(NaNs(LINEAR, images, 0, 0.1), images, labels, image_ids=torch.arange(5) * 7, ledger=ledger)
    lines = {line["id"]: line for line in strict(path)}
    assert sorted(lines) == [0, 7, 14, 21, 28]
    for i in range(5):
        line = lines[7 * i]
        assert set(line) == KEYS | FLAGS
        assert line["label"] == labels[i]
        assert line["pred"] == result.preds[i]
        for key in FLAGS:
            assert line[key] is bool(getattr(result, key)[i])
        for key in ("queries", "checks", "l2", "l2_unclipped"):
            assert line[key] == getattr(result, key)[i].item()
    assert [result.failed[0], result.skipped[3]] == [True, True]
    assert 0 < result.success.sum() < 4
    assert read_ledger(path) == [lines[key] for key in sorted(lines)]


def test_a_line_is_on_the_disk_as_soon_as_its_image_is_finished(path):
    attack, seen = SMALL["ppba"](), []
    run(attack, LINEAR, path, on_step=lambda number, left: seen.append((left, len(read_ledger(path)))))
    assert all(left + written == 5 for left, written in seen)
    assert seen[0] == (4, 1)
    assert seen[-1][1] > 1


def test_a_ledger_that_is_not_there_has_no_lines(path):
    assert read_ledger(path) == []


def test_an_empty_batch_leaves_no_line(path):
    run(SMALL["ppba"](), LINEAR, path, rows=[])
    assert read_ledger(path) == []


@pytest.mark.parametrize("name", ["ppba_3", "nes"])
@pytest.mark.parametrize("keep", [0, 1, -1])  # bytes of the last line that arrived; -1: all but its end
def test_torn_last_lines(name, keep, path):
    attack, whole = SMALL[name](), Recorder(LINEAR)
    expected = attack(whole, *puzzle(), image_ids=torch.arange(5) + 100)
    with pytest.raises(Killed):
        run(attack, Recorder(LINEAR, dies_at=len(whole.sizes) - 1), path)
    for file in (path, path.with_suffix(".answers")):
        content = file.read_bytes()
        last = content.rstrip(b"\n").rfind(b"\n") + 1
        assert last > 0 or file == path
        file.write_bytes(content[: last + keep] if keep >= 0 else content[:-1])
    assert {line["id"] for line in read_ledger(path)} < {100, 101, 102, 103, 104}
    assert_equal(run(attack, LINEAR, path), expected)
    assert sorted(line["id"] for line in strict(path)) == [100, 101, 102, 103, 104]
    again = Recorder(LINEAR)
    assert_equal(run(attack, again, path), expected)
    assert not again.sizes


@pytest.mark.parametrize("torn", [0, 1, 9])
def test_torn_in_its_first_line(torn, path):
    run(SMALL["ppba"](), LINEAR, path)
    path.unlink()
    answers = path.with_suffix(".answers")
    answers.write_bytes(answers.read_bytes()[:torn])
    model = Recorder(LINEAR)
    expected = run(SMALL["ppba"](), model, path)
    assert model.sizes
    again = Recorder(LINEAR)
    assert_equal(run(SMALL["ppba"](), again, path), expected)
    assert not again.sizes


# -- what does not belong together -------------------------------------------------------------------------------------

OTHERS = {
    "seed": ({"seed": 1}, None),
    "eps": ({"eps": 1.0}, None),
    "budget": ({"max_queries": 14}, None),
    "context": ({}, {"network": "another"}),
}


@pytest.mark.parametrize("other", OTHERS)
def test_other_settings_begin_anew_and_keep_the_old_files(other, path):
    options, context = OTHERS[other]
    run(SMALL["ppba"](), LINEAR, path)
    old = {suffix: path.with_suffix(suffix).read_bytes() for suffix in (".jsonl", ".answers")}
    model, fresh = Recorder(LINEAR), Recorder(LINEAR)
    changed = partial(SMALL["ppba"], **options)
    expected = changed()(fresh, *puzzle(), image_ids=torch.arange(5) + 100)
    assert_equal(run(changed(), model, path, context=context), expected)
    assert model.counts() == fresh.counts()
    assert [line["queries"] for line in read_ledger(path)] == expected.queries.tolist()
    kept = {suffix: [p.read_bytes() for p in path.parent.glob(f"*{suffix}.*")] for suffix in old}
    assert kept == {suffix: [content] for suffix, content in old.items()}
    run(SMALL["ppba"](), LINEAR, path)  # and back: three lives, two of them kept aside
    assert all(len(list(path.parent.glob(f"*{suffix}.*"))) == 2 for suffix in old)


@pytest.mark.parametrize(
    "other", [NES(LOW, max_queries=20), PPBAAttack(low_frequencies(12), max_queries=16), SimBA(LOW, max_queries=16)]
)
def test_another_attack_begins_anew(other, path):
    run(PPBAAttack(LOW, max_queries=16), LINEAR, path)
    model = Recorder(LINEAR)
    run(other, model, path)
    assert len(model.images) >= 5
    assert list(path.parent.glob("*.answers.1"))


def test_a_ledger_is_for_one_attack_at_a_time(path):
    with Ledger(path) as ledger:
        SMALL["ppba"]()(LINEAR, *puzzle(), ledger=ledger)
        with pytest.raises(ValueError, match=r"ledger=.*ledger.jsonl' is open for another attack; give each"):
            SMALL["ppba"](seed=1)(LINEAR, *puzzle(), ledger=ledger)


@pytest.mark.parametrize("what", ["image", "label"])
def test_another_image_or_label_under_an_old_id_begins_anew(what, path):
    def other():
        images, labels = puzzle()
        if what == "image":
            images[1] = 1 - images[1]
            labels[1] = LINEAR(images)[1].argmax()
        else:
            labels[1] = (labels[1] + 1) % CLASSES
        return images, labels

    attack = SMALL["ppba"]()
    first, new = run(attack, LINEAR, path), Recorder(LINEAR)
    second = run(attack, new, path, puzzle=other)
    assert_equal(second, attack(LINEAR, *other(), image_ids=torch.arange(5) + 100))
    assert len(new.images) == second.queries[1] + second.checks[1] + second.skipped[1]  # the other four are known
    assert [line["queries"] for line in read_ledger(path)] == second.queries.tolist()
    back = Recorder(LINEAR)
    assert_equal(run(attack, back, path), first)  # the old image's answers are still there
    assert not back.sizes
    assert [line["queries"] for line in read_ledger(path)] == first.queries.tolist()


def test_lines_of_another_attack_by_other_ranks_do_not_count(path):
    """Two ranks first; then one, with another seed: what rank 1 wrote is of another attack."""
    attack = SMALL["ppba"]
    for rank in (0, 1):
        run(attack(), LINEAR, path, rows=range(rank, 5, 2), rank=rank)
    assert len(read_ledger(path)) == 5
    expected = run(attack(seed=1), LINEAR, path)
    assert [line["queries"] for line in read_ledger(path)] == expected.queries.tolist()
    assert [line["queries"] for line in merge(path)] == expected.queries.tolist()
    run(attack(seed=2), LINEAR, path, rows=[0])
    assert [line["id"] for line in read_ledger(path)] == [100]


def test_merging_leaves_other_files_alone(path):
    run(SMALL["ppba"](), LINEAR, path)
    mine = path.with_name("ledger-before-the-holidays.jsonl")
    mine.write_text('{"id": 7, "key": "mine"}\n')
    assert [line["id"] for line in merge(path)] == [100, 101, 102, 103, 104]
    assert mine.exists()


def test_two_ledgers_in_a_folder(path):
    run(SMALL["ppba"](), LINEAR, path)
    neighbour = path.with_name("ledger2.jsonl")
    run(SMALL["ppba"](seed=3), LINEAR, neighbour)
    model = Recorder(LINEAR)
    run(SMALL["ppba"](), model, path)
    assert not model.sizes
    assert len(list(path.parent.iterdir())) == 4
