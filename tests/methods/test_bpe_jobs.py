"""Records of trials on the disk: whole or not there, shared, and never run."""

import json
import multiprocessing
import os
from pathlib import Path

import pytest
import torch

from lit_methods.bpe_mip import jobs as jobs_module
from lit_methods.bpe_mip.jobs import Job, TrialRecords
from lit_methods.bpe_mip.search_space import BPE1, Genotype, genotype_from_sample28

DONE = {"status": "done", "accuracy": 0.5, "accuracies": [0.5]}
JOB = Job(genotype_from_sample28([3, 2, *[7] * 12] * 2), BPE1)
WEIGHTS = {"layer.weight": torch.arange(6.0).view(2, 3)}


class Command:
    """Reading it with an ordinary unpickler creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return (os.system, (f"touch '{self.path}'",))


def test_the_key_does_not_depend_on_the_order_of_edges():
    nodes = [[["skip_connect", 0], ["sep_conv_3x3", 1]], [], [], []]
    turned = [nodes[0][::-1], [], [], []]
    one, other = (Job(Genotype(cell, cell), BPE1) for cell in (nodes, turned))
    assert one != other
    assert one.key("images") == other.key("images")


def test_the_key_depends_on_everything_else():
    normal, empty = [[["skip_connect", 0]], [], [], []], [[], [], [], []]
    jobs = [
        JOB,
        Job(JOB.genotype, BPE1.replace(cutout=4)),
        Job(JOB.genotype, BPE1, seed=1),
        Job(Genotype(normal, empty), BPE1),
        Job(Genotype(empty, normal), BPE1),
    ]
    assert len({job.key() for job in jobs} | {JOB.key("other images")}) == len(jobs) + 1


def test_the_key_is_the_same_tomorrow():
    """Records of an earlier run have to be found."""
    assert JOB.key("images") == "af10b024e9ec0f41"


def test_a_record_is_found_by_another_process(tmp_path):
    context = multiprocessing.get_context("fork")
    writer = context.Process(target=lambda: TrialRecords(tmp_path, "c").add(JOB, DONE, WEIGHTS))
    mine = TrialRecords(tmp_path, "c")
    assert mine.is_pending(JOB)
    writer.start()
    writer.join()
    assert mine.find(JOB) == {"key": JOB.key("c"), "job": JOB.to_dict(), "attempts": 1, **DONE}
    assert not mine.is_pending(JOB)
    assert torch.equal(mine.weights(JOB)["layer.weight"], WEIGHTS["layer.weight"])
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{JOB.key('c')}{end}" for end in (".json", ".pt")]
    assert TrialRecords(tmp_path, "d").find(JOB) is None


def test_without_a_folder_records_are_in_memory_alone():
    records = TrialRecords(None)
    records.add(JOB, DONE, WEIGHTS)
    assert records.find(JOB)["accuracy"] == 0.5
    assert records.weights(JOB) is None


@pytest.mark.parametrize("fails", ["json", "pt"])
def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch, fails):
    """What breaks off leaves the file of before, no part of a new one, and never a record without its weights."""
    TrialRecords(tmp_path).add(JOB, DONE, WEIGHTS)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    real = os.replace

    def replace(source, target):
        assert Path(source).stat().st_size
        if str(target).endswith(fails):
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(jobs_module.os, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        TrialRecords(tmp_path).add(JOB, DONE | {"accuracy": 0.7}, {"layer.weight": torch.ones(1)})
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert after.keys() == before.keys()
    assert after[f"{JOB.key()}.json"] == before[f"{JOB.key()}.json"]
    assert (after[f"{JOB.key()}.pt"] == before[f"{JOB.key()}.pt"]) == (fails == "pt")


def write_many(folder: Path, accuracy: float) -> None:
    for _ in range(60):
        TrialRecords(folder).add(JOB, DONE | {"accuracy": accuracy, "accuracies": [accuracy] * 2000})


def test_a_reader_never_sees_half_a_file(tmp_path):
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=write_many, args=(tmp_path, accuracy)) for accuracy in (0.25, 0.75)]
    for writer in writers:
        writer.start()
    path, seen = tmp_path / f"{JOB.key()}.json", 0
    while any(writer.is_alive() for writer in writers):
        if path.exists():
            record = json.loads(path.read_text())
            assert set(record["accuracies"]) == {record["accuracy"]}
            seen += 1
    for writer in writers:
        writer.join()
    assert seen
    assert [writer.exitcode for writer in writers] == [0, 0]


@pytest.mark.parametrize(
    "text",
    ["", "{", "[1, 2]", "null", '"key"', "{}", '{"key": "another", "status": "done", "accuracy": 1.0}', "\x00\xff"],
)
def test_a_damaged_record_counts_as_missing(tmp_path, text):
    records = TrialRecords(tmp_path)
    records.add(JOB, DONE)
    (tmp_path / f"{JOB.key()}.json").write_bytes(text.encode("latin-1"))
    assert TrialRecords(tmp_path).find(JOB) is None
    assert records.find(JOB)["accuracy"] == 0.5  # what is known stays so


@pytest.mark.parametrize(
    "wrong",
    [
        {"status": "done"},
        {"status": "odd"},
        {"status": "done", "accuracy": "high"},
        {"status": "done", "accuracy": float("nan")},
        {"status": "failed"},
        {"status": "failed", "error": "x", "attempts": "two"},
        {"status": ["done"], "accuracy": 0.5},
    ],
)
def test_a_record_without_what_it_needs_counts_as_missing(tmp_path, wrong):
    text = json.dumps({"key": JOB.key(), "job": JOB.to_dict(), "attempts": 1} | wrong)
    (tmp_path / f"{JOB.key()}.json").write_text(text)
    assert TrialRecords(tmp_path).find(JOB) is None


def test_what_failed_is_tried_once_more():
    records = TrialRecords(None)
    records.add(JOB, {"status": "failed", "error": "x"})
    assert records.is_pending(JOB)
    records.add(JOB, {"status": "failed", "error": "x", "attempts": 2})
    assert not records.is_pending(JOB)


def test_a_second_failure_of_another_process_is_seen(tmp_path):
    mine, theirs = TrialRecords(tmp_path), TrialRecords(tmp_path)
    mine.add(JOB, {"status": "failed", "error": "x"})
    theirs.add(JOB, {"status": "failed", "error": "x", "attempts": 2})
    assert not mine.is_pending(JOB)


def test_records_of_others_are_taken_over_unless_mine_are_final():
    records, key = TrialRecords(None), JOB.key()
    records.add(JOB, {"status": "failed", "error": "x"})
    records.update([{"key": key, **DONE}])
    assert records.find(JOB)["accuracy"] == 0.5
    records.update([{"key": key, **DONE, "accuracy": 0.9}])
    assert records.find(JOB)["accuracy"] == 0.5


def test_weights_load_with_weights_only(tmp_path):
    TrialRecords(tmp_path).add(JOB, DONE, WEIGHTS)
    loaded = torch.load(tmp_path / f"{JOB.key()}.pt", weights_only=True)
    assert torch.equal(loaded["layer.weight"], WEIGHTS["layer.weight"])


def test_hostile_and_damaged_weights_count_as_missing(tmp_path):
    records, path = TrialRecords(tmp_path), tmp_path / f"{JOB.key()}.pt"
    assert records.weights(JOB) is None
    torch.save({"layer.weight": Command(tmp_path / "ran")}, path)
    assert records.weights(JOB) is None
    assert not (tmp_path / "ran").exists()
    torch.load(path, weights_only=False)  # the payload is a live one
    assert (tmp_path / "ran").exists()
    path.write_bytes(path.read_bytes()[:-40])
    assert records.weights(JOB) is None
