"""MIP's trials on many machines: whoever makes them, and whatever dies meanwhile, the search comes to the same."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from tests.small_recipes import without_figures

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "mip_many_machines.py"
RECIPE = {"preset": "BPE1", "epochs": 1, "batch_size": 64, "lr": 0.1, "layers": 3, "channels": 4, "image_size": 8}
SPACE = {"epochs": [1, 2], "channels": [4, 6], "cutout": [0, 4]}
ARCHITECTURES = [f"{pair} {'7 ' * 12}{pair} {'7 ' * 11}7" for pair in ("3 3", "2 1", "0 5")]
TRUTH = [0.9, 0.7, 0.8]
SETTINGS = {
    "trainer": {
        "callbacks": [
            {"class_path": "callbacks.PredictionLogger"},
            {
                "class_path": "callbacks.MIPSearch",
                "init_args": {"space": SPACE, "base": RECIPE, "k": 2, "n_estimators": 20, "seed": 2},
            },
        ]
    },
    "model": {
        "class_path": "lit_methods.BPEBenchmark",
        "init_args": {"architectures": ARCHITECTURES, "ground_truth": TRUTH, "seed": 3},
    },
    "data": {
        "class_path": "datamodules.TrialDataModule",
        "init_args": {"name": "digits", "class_subset": [0, 1]},
    },
}


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("mip_many_machines", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _no_figures() -> Iterator[None]:
    with without_figures():
        yield


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(SETTINGS, sort_keys=False), "utf-8")
    return str(path)


@pytest.fixture(scope="module")
def one_process() -> dict[str, Any]:
    """What a plain loop over MIP and Trials finds: recipes and their scores in order, and what was pruned."""
    from datamodules import TrialDataModule
    from lit_methods.bpe_mip import MIP, genotype_from_sample28, gpu_hours, named_recipe, spearman
    from lit_methods.bpe_mip.trial import Trials
    from lit_methods.bpe_mip.trial_images import LabelledTensor, TrialImages

    data = TrialDataModule("digits", class_subset=[0, 1])
    data.setup("fit")
    parts = (LabelledTensor(*part[:2]) for part in (data.training_tensors(), data.validation_tensors()))
    trials = Trials(TrialImages(*parts, data.mean, data.std, flip=False), seed=3)
    genotypes = [genotype_from_sample28([int(word) for word in text.split()]) for text in ARCHITECTURES]

    def full(values: dict[str, Any]) -> Any:
        return named_recipe(RECIPE | values)

    mip = MIP(SPACE, lambda values: gpu_hours(full(values)), k=2, n_estimators=20, seed=2, spread_seeds=5)
    while recipes := mip.ask():
        last = len(mip.remaining) == 1
        found = [spearman([trials(one, full(values)) for one in genotypes], TRUTH) for values in recipes]
        mip.tell(recipes, [0.0 if rho != rho else rho for rho in found])
        if last:
            break
        mip.prune()
        while not mip.ask() and len(mip.remaining) > 1:
            mip.prune()
    scored = [{"values": values, "spearman": score} for values, score in mip.trials]
    return {"pruned": mip.reasons, "recipes": scored, "best_recipe": full(mip.best()).to_dict()}


def assert_same(folder: Path, one_process: dict[str, Any]) -> None:
    result = json.loads((folder / "result.json").read_text("utf-8"))
    assert {name: result[name] for name in one_process} == one_process
    assert -1 <= result["summary"]["mip/best_spearman"] <= 1  # measured afresh


def complete(example: ModuleType, where: str) -> Counter[str]:
    """How often each job was finished."""
    study = example.Study(where)
    return Counter(
        key for key, tries in study.tries().items() for trial in tries if trial.state == study.state.COMPLETE
    )


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Workers in processes of their own, which do not outlive the test."""
    started = []

    def begin(where: str) -> subprocess.Popen[bytes]:
        words = [sys.executable, str(EXAMPLE), "work", "--study", where, "--device", "cpu"]
        started.append(subprocess.Popen(words, env=os.environ | {"OMP_NUM_THREADS": "1"}))
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.wait()


def lead_beside_a_worker(example: ModuleType, where: str, *words: str, patience: str = "60") -> int:
    """The lead in a thread, a worker in this one; the lead's exit code."""
    with ThreadPoolExecutor(1) as pool:
        leader = pool.submit(example.main, ["lead", "--study", where, "--patience", patience, *words])
        leader.add_done_callback(lambda _: example.Study(where).close())  # should it fail, the worker goes all the same
        example.main(["work", "--study", where, "--device", "cpu"])
        return leader.result()


@pytest.mark.slow
def test_a_killed_worker_changes_nothing(tmp_path, example, recipe, one_process, start):
    pytest.importorskip("optuna")
    where = str(tmp_path / "study.journal")
    doomed = start(where)

    def kill_in_the_middle() -> int:
        study = example.Study(where)
        while True:
            for trial in study.study.get_trials(deepcopy=False, states=(study.state.RUNNING,)):
                if trial.user_attrs.get("worker", "").endswith(f":{doomed.pid}"):
                    os.kill(doomed.pid, signal.SIGSTOP)
                    locked = os.path.lexists(f"{where}.lock")  # Optuna breaks a dead process's lock after 30 s
                    if not locked and study.study.get_trials()[trial.number].state == study.state.RUNNING:
                        doomed.kill()
                        start(where)  # another one joins
                        return trial.number
                    os.kill(doomed.pid, signal.SIGCONT)
            time.sleep(0.01)

    with ThreadPoolExecutor(1) as pool:
        killed = pool.submit(kill_in_the_middle)
        assert example.main(["lead", "--study", where, "--recipe", recipe, "--patience", "3"]) == 0
        number = killed.result()

    assert_same(tmp_path, one_process)
    finished = complete(example, where)
    assert set(finished.values()) == {1}
    assert len(finished) == 3 * (len(one_process["recipes"]) + 1)  # the best recipe again, with another seed
    study = example.Study(where)
    dead = study.study.get_trials()[number]
    assert dead.state == study.state.FAIL
    assert dead.user_attrs["died"]


@pytest.mark.slow
def test_rounds_through_a_folder_come_to_the_same(tmp_path, example, recipe, one_process):
    folder, rounds = tmp_path / "shared", 0
    words = ["--recipe", recipe]
    while (code := example.main(["plan", "--folder", str(folder), *words])) == 0:
        rounds, words = rounds + 1, []
        for share in ("0", "1"):
            assert example.main(["trial", "--folder", str(folder), "--id", share, "--of", "2", "--device", "cpu"]) == 0
    assert code == example.OVER
    assert rounds == len(one_process["recipes"]) // 2 + 1  # the best one again
    assert_same(folder, one_process)
    records = [json.loads(path.read_text("utf-8")) for path in (folder / "trials").glob("*.json")]
    assert {record["attempts"] for record in records} == {1}
    assert len(records) == 3 * (len(one_process["recipes"]) + 1)


@pytest.mark.slow
def test_a_lead_that_was_killed_goes_on_without_repeating(tmp_path, example, recipe, one_process, monkeypatch):
    pytest.importorskip("optuna")
    where, added = str(tmp_path / "study.journal"), []
    add = example.Study.add

    def dies(study: Any, job: Any) -> None:
        if len(added) == 8:  # in the middle of handing out the second round
            raise KeyboardInterrupt
        added.append(job.key())
        add(study, job)

    monkeypatch.setattr(example.Study, "add", dies)
    with ThreadPoolExecutor(1) as pool:
        leader = pool.submit(example.main, ["lead", "--study", where, "--recipe", recipe, "--patience", "60"])
        study = example.Study(where)
        watched = ThreadPoolExecutor(1).submit(_close_when_done, study, leader)
        example.main(["work", "--study", where, "--device", "cpu"])
        watched.result()
        assert isinstance(leader.exception(), KeyboardInterrupt)
    before = complete(example, where)
    assert len(before) == 8

    study.study.set_user_attr("over", False)  # the test closed it, to get its worker back
    monkeypatch.setattr(example.Study, "add", add)
    assert lead_beside_a_worker(example, where) == 0
    assert_same(tmp_path, one_process)
    assert set(complete(example, where).values()) == {1}
    assert before <= complete(example, where)


def _close_when_done(study: Any, leader: Any) -> None:
    while not leader.done() or study.study.get_trials(
        deepcopy=False, states=(study.state.WAITING, study.state.RUNNING)
    ):
        time.sleep(0.05)
    study.close()


@pytest.mark.slow
def test_a_trial_that_raises_is_tried_twice_and_then_left_out(tmp_path, example, recipe, monkeypatch):
    pytest.importorskip("optuna")
    train, calls = example.Trials.train, Counter[str]()

    def broken(self: Any, genotype: Any, recipe: Any, seed: int = 0, watch: Any = None) -> Any:
        job = example.Job(genotype, recipe, seed).key()
        calls[job] += 1
        if genotype.normal[0][0][0] == "skip_connect" or calls.total() == 1:  # one architecture, and the first trial
            raise FloatingPointError("the loss is not finite")
        return train(self, genotype, recipe, seed, watch)

    monkeypatch.setattr(example.Trials, "train", broken)
    where = str(tmp_path / "study.journal")
    assert lead_beside_a_worker(example, where, "--recipe", recipe) == 0

    records = list((study := example.Study(where)).records(study.tries()).known.values())
    failed = [record for record in records if record["status"] == "failed"]
    assert 3 * len(failed) == len(records)
    assert {calls[record["key"]] for record in failed} == {2}
    assert failed[0]["error"] == "FloatingPointError: the loss is not finite"
    again = [record["key"] for record in records if record["status"] == "done" and calls[record["key"]] == 2]
    assert len(again) == 1  # the first one, which went well the second time
    assert set(complete(example, where).values()) == {1}
    with (tmp_path / "tables" / "mip_recipes.csv").open(encoding="utf-8") as table:
        assert {line.strip().rpartition(",")[2] for line in list(table)[1:]} == {"1"}  # column "failed"


def test_a_worker_that_is_asked_to_go_hands_its_trial_back(tmp_path, example, recipe, monkeypatch):
    pytest.importorskip("optuna")
    where, train, calls = str(tmp_path / "study.journal"), example.Trials.train, []

    def terminated(self: Any, *args: Any) -> Any:
        calls.append(args[0])
        if len(calls) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return train(self, *args)

    monkeypatch.setattr(example.Trials, "train", terminated)
    study, settings = example.Study(where), example.read_settings(recipe)
    _, context = example.read_images(settings, None)
    study.about = {"settings": settings, "images": context, "patience": 60.0}
    (first, *_) = jobs = example.Plan(settings, context, tmp_path).jobs
    study.fill(jobs[:1], study.tries())
    before = signal.getsignal(signal.SIGTERM)
    assert example.main(["work", "--study", where, "--device", "cpu"]) == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == before
    (tries,) = study.tries().values()
    assert [trial.state for trial in tries] == [study.state.FAIL]
    assert study.records(study.tries()).known == {}  # it counts as no attempt
    study.fill(jobs[:1], study.tries())
    study.fill(jobs[:1], study.tries())  # it waits already
    assert [trial.state for trial in study.tries()[first.key()]] == [study.state.FAIL, study.state.WAITING]


def test_a_trial_is_given_to_one_worker_alone(tmp_path, example, recipe):
    pytest.importorskip("optuna")
    where = str(tmp_path / "study.journal")
    one, two = example.Study(where), example.Study(where)
    settings = example.read_settings(recipe)
    jobs = example.Plan(settings, example.read_images(settings, None)[1], tmp_path).jobs
    one.fill(jobs, {})
    taken = [one.take(), two.take(), one.take(), two.take()]
    assert len({number for number, _ in taken}) == 4
    assert [job for _, job in taken] == jobs[:4]
    number = taken[0][0]
    assert two.end(number, died=True)  # as the lead does when a worker is silent
    assert not one.end(number, 0.5)
    with pytest.raises(one.Ended):
        one.beat(number, every=-1)
    assert one.records(one.tries()).known == {}


def test_a_job_that_is_finished_meanwhile_gets_no_second_trial(tmp_path, example, recipe):
    pytest.importorskip("optuna")
    study, settings = example.Study(str(tmp_path / "study.journal")), example.read_settings(recipe)
    (job, *_) = example.Plan(settings, example.read_images(settings, None)[1], tmp_path).jobs
    study.fill([job], study.tries())
    number, _ = study.take()
    seen = study.tries()
    assert study.records(seen).is_pending(job)
    assert study.end(number, 0.5)
    study.fill([job], seen)
    (tries,) = study.tries().values()
    assert [trial.value for trial in tries] == [0.5]


def test_what_cannot_be_searched_is_refused(tmp_path, example, recipe, monkeypatch):
    with pytest.raises(SystemExit, match="no recipe 'bpe_map'"):
        example.read_settings("bpe_map")
    with pytest.raises(SystemExit, match=r"bpe_random: there is no callbacks\.MIPSearch"):
        example.read_settings("bpe_random")
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(SystemExit, match=r"pip install 'lit-methods\[search\]'"):
        example.Study(str(tmp_path / "study.journal"))
    folder = tmp_path / "shared"
    assert example.main(["plan", "--folder", str(folder), "--recipe", recipe]) == 0
    changed = json.loads(json.dumps(SETTINGS))
    changed["model"]["init_args"]["seed"] = 4
    Path(recipe).write_text(yaml.safe_dump(changed), "utf-8")
    with pytest.raises(SystemExit, match="holds a search with other settings"):
        example.main(["plan", "--folder", str(folder), "--recipe", recipe])
    stored = json.loads((folder / "jobs.json").read_text("utf-8"))
    stored["settings"]["data"]["class_subset"] = [0, 2]
    (folder / "jobs.json").write_text(json.dumps(stored), "utf-8")
    with pytest.raises(SystemExit, match="the images are not those that the search began with"):
        example.main(["trial", "--folder", str(folder), "--id", "0", "--of", "1"])
    with pytest.raises(SystemExit):
        example.main(["trial", "--folder", str(folder), "--id", "2", "--of", "2"])


@pytest.mark.slow
def test_two_workers_of_a_database_come_to_the_same(tmp_path, example, recipe, one_process, start):
    pytest.importorskip("optuna")
    where = f"sqlite:///{tmp_path / 'mip.db'}"
    example.Study(where)
    start(where), start(where)
    assert example.main(["lead", "--study", where, "--recipe", recipe, "--out", str(tmp_path)]) == 0
    assert_same(tmp_path, one_process)
    assert set(complete(example, where).values()) == {1}
