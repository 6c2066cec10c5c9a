"""MIP on many machines: one process decides which recipes are measured, any number of others make the trials.

The queue is an Optuna study, in a file that all machines see or in a database. Workers may join and die at any time.
The decisions are those of the callback MIPSearch, so the result is that of `python -m lit_methods.fit bpe_mip`, as far
as the machines compute alike. No finished trial is made again, not even if the lead is killed and started anew. Without
arguments this runs a small search with two local workers, one of which is killed.

Run: pip install 'lit-methods[search]'
     python examples/mip_many_machines.py
     python examples/mip_many_machines.py lead --study runs/mip/study.journal    # once; plans, waits, prunes
     python examples/mip_many_machines.py work --study runs/mip/study.journal    # as often as there are GPUs
     sbatch examples/mip_array.sh                                                # both, as a SLURM array

--study may also be a URL such as sqlite:///mip.db or postgresql://user@host/mip. Where the nodes share a folder and
nothing else, this needs no study and no Optuna (exit code 3 of plan: the search is over):

     python examples/mip_many_machines.py plan --folder runs/mip                 # writes runs/mip/jobs.json
     python examples/mip_many_machines.py trial --folder runs/mip --id 0 --of 2  # makes jobs 0, 2, 4, ...
     python examples/mip_many_machines.py trial --folder runs/mip --id 1 --of 2  # elsewhere, at the same time
     python examples/mip_many_machines.py plan --folder runs/mip                 # learns, prunes, writes the next jobs
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import yaml
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch import Trainer

from callbacks import MIPSearch
from datamodules import TrialDataModule
from lit_methods import BPEBenchmark, slurm
from lit_methods.bpe_mip.jobs import ATTEMPTS, Job, TrialRecords
from lit_methods.bpe_mip.trial import Trial, Trials
from lit_methods.bpe_mip.trial_images import LabelledTensor, TrialImages
from lit_methods.cli.quiet import quiet
from lit_methods.cli.recipes import find_recipes, no_such_recipe

OVER = 3  # exit code of plan when no round follows
DEATHS = 5  # of workers on one job; after that the job is to blame
Settings = dict[str, dict[str, Any]]

# -- what is searched -------------------------------------------------------------------------------------------------


def read_settings(recipe: str) -> Settings:
    """The arguments of search, model and data, from a recipe of the package or a YAML file of the same form."""
    path = find_recipes().get(recipe, Path(recipe))
    if not path.is_file():
        raise SystemExit(f"--recipe: {no_such_recipe(recipe, find_recipes())}")
    config = yaml.safe_load(path.read_text("utf-8"))
    callbacks = [one for one in config["trainer"].get("callbacks", []) if one["class_path"] == "callbacks.MIPSearch"]
    if not callbacks:
        raise SystemExit(f"--recipe {recipe}: there is no callbacks.MIPSearch in its trainer.callbacks, so no space")
    model = {name: value for name, value in config["model"]["init_args"].items() if name != "records"}
    return {"search": callbacks[0]["init_args"], "model": model, "data": config.get("data", {}).get("init_args", {})}


def settled(known: dict[str, Any] | None, recipe: str | None, where: str) -> Settings:
    """The settings that are on record, which a recipe given anew has to agree with; at first those of the recipe."""
    if known is None:
        return read_settings(recipe or "bpe_mip")
    if recipe is not None and json.loads(json.dumps(read_settings(recipe))) != known["settings"]:
        raise SystemExit(f"--recipe {recipe}: {where} holds a search with other settings; take another place for this")
    return known["settings"]


def read_images(settings: Settings, root: str | None, known: dict[str, Any] | None = None) -> tuple[TrialImages, str]:
    """The images of all trials, and a text that differs wherever their results would."""
    data = TrialDataModule(**settings["data"] | ({"root": root} if root else {}))
    data.prepare_data()
    data.setup("fit")
    train, val = (LabelledTensor(*part[:2]) for part in (data.training_tensors(), data.validation_tensors()))
    images = TrialImages(train, val, data.mean, data.std, data.flips)
    name = BPEBenchmark.__qualname__  # whose records these could be, too
    context = json.dumps([name, images.fingerprint, data.num_classes, data.mean, data.std])
    if known is not None and known["images"] != context:
        raise SystemExit("the images are not those that the search began with: look at --root on this machine")
    return images, context


class Benchmark(BPEBenchmark):
    """Says what a Trainer would log."""

    def log(self, name: str, value: Any, *args: Any, **kwargs: Any) -> None:
        print(f"  {name} {float(value):.4g}")


class Plan:
    """MIPSearch without a fit: what is to be trained next is a function of the records so far."""

    def __init__(self, settings: Settings, context: str, out: Path) -> None:
        *_, num_classes, mean, std = json.loads(context)
        self.out, self.search = out, MIPSearch(**settings["search"])
        self.module = Benchmark(**settings["model"] | {"num_classes": num_classes, "mean": mean, "std": std})
        self.trainer = Trainer(  # has a folder for figures and tables
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            reload_dataloaders_every_n_epochs=1,
            default_root_dir=str(out),
            plugins=[LightningEnvironment()],  # one process, also as a step of a SLURM job
        )
        self.search.setup(self.trainer, self.module, "fit")
        self.out.mkdir(parents=True, exist_ok=True)
        self.round, self.jobs = 1, self.search.first_jobs(self.trainer, self.module)
        self.announce()

    def advance(self, records: TrialRecords) -> list[Job]:
        """What is still to be made of the first round that is not complete; [] when the search is over."""
        while self.jobs:
            if pending := [job for job in self.jobs if records.is_pending(job)]:
                return pending
            found = [record for job in self.jobs if (record := records.find(job))]
            if all(record["status"] == "failed" for record in found):
                raise SystemExit(f"all {len(found)} trials of round {self.round} failed: {found[0]['error']}")
            self.round, self.jobs = self.round + 1, self.search.next_jobs(self.trainer, self.module, found)
            self.announce()
        return []

    def announce(self) -> None:
        if self.jobs:
            print(f"round {self.round} ({self.search.doing}): {len(self.jobs)} trials", flush=True)

    def report(self) -> None:
        """Print what was found, and leave it in result.json."""
        search, best = self.search, self.search.mip.best(self.search.budget)
        result = {
            "best_recipe": search.recipe(best).to_dict(),
            "summary": search.summary(),
            "pruned": search.mip.reasons,
            "recipes": [{"values": values, "spearman": score} for values, score in search.mip.trials],
        }
        write_json(self.out / "result.json", result)
        for number, reason in enumerate(search.mip.reasons, 1):
            print(f"pruned {number}: {reason}")
        print("best recipe: " + ", ".join(f"{name}={value}" for name, value in best.items()))
        chosen, afresh = (result["summary"].get(f"mip/{name}_spearman") for name in ("found", "best"))
        print(f"rank agreement {chosen:.3f} when it was chosen, {afresh:.3f} measured afresh")
        print(self.out / "result.json")


def write_json(path: Path, value: Any) -> None:
    """Whole or not at all."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(json.dumps(value, indent=1) + "\n", "utf-8")
    os.replace(aside, path)


# -- making trials ----------------------------------------------------------------------------------------------------


class Left(Exception):
    """The process is asked to go."""


class Farewell:
    """SIGTERM, Ctrl-C and SLURM's warning: the trial at hand is left, and the process ends in good order."""

    def __init__(self) -> None:
        self.signal = 0

    def __enter__(self) -> "Farewell":
        self.before = {}
        if threading.current_thread() is threading.main_thread():
            wanted = [signal.SIGINT, signal.SIGTERM, *([slurm.WARNING] if slurm.WARNING else [])]
            self.before = {number: signal.signal(number, self.note) for number in wanted}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def note(self, number: int, frame: FrameType | None) -> None:
        self.signal = number

    def look(self) -> None:
        if self.signal:
            raise Left

    def exit_code(self) -> int:
        """0 at the end of the work, and where SLURM, whose time limit is near, starts this job again."""
        if not self.signal or (self.signal == slurm.WARNING and slurm.requeue()):
            return 0
        return 128 + self.signal


def make_trials(images: TrialImages, context: str, device: str | None) -> Trials:
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return Trials(images.to(device), num_classes=json.loads(context)[2])


def train(trials: Trials, job: Job, watch: Callable[[], None]) -> Trial:
    trial = trials.train(job.genotype, job.recipe, job.seed, watch)
    print(f"[{os.getpid()}] {trial.accuracy:.3f} in {trial.seconds:.1f} s under {job.recipe.key()}", flush=True)
    return trial


def error_of(ex: Exception) -> str:
    return f"{type(ex).__name__}: {ex}"[:500]


# -- through an Optuna study ------------------------------------------------------------------------------------------


class Study:
    """An Optuna study as the queue of jobs, and as the place where their results are.

    Optuna's own heartbeats need a database and Study.optimize. Here a running trial carries a count that its worker
    raises between steps; the lead goes by its own clock, so the machines' clocks need not agree.
    """

    def __init__(self, where: str) -> None:
        try:
            import optuna
            from optuna.storages.journal import JournalFileBackend
        except ImportError:
            raise SystemExit("--study needs Optuna: pip install 'lit-methods[search]'") from None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        if "://" in where:
            options = {"connect_args": {"timeout": 60}} if where.startswith("sqlite") else {}
            self.storage: Any = optuna.storages.RDBStorage(where, engine_kwargs=options)
        else:
            journal = Path(where).resolve()  # Optuna never breaks the lock of a dead process if the path is relative
            journal.parent.mkdir(parents=True, exist_ok=True)
            self.storage = optuna.storages.JournalStorage(JournalFileBackend(str(journal)))
        self.study = optuna.create_study(
            study_name="mip", storage=self.storage, direction="maximize", load_if_exists=True
        )
        self.optuna, self.state = optuna, optuna.trial.TrialState
        self.Ended = optuna.exceptions.UpdateFinishedTrialError
        self.seen: dict[int, tuple[Any, float]] = {}  # running trials: heartbeat, and since when it is that
        self.beats = (0, 0.0)  # of the own trial: how many, when the last

    @property
    def about(self) -> dict[str, Any] | None:
        """What the lead said about the search; None before it did."""
        return self.study.user_attrs.get("about")

    @about.setter
    def about(self, value: dict[str, Any]) -> None:
        self.study.set_user_attr("about", value)

    @property
    def over(self) -> bool:
        return self.study.user_attrs.get("over", False)

    def close(self) -> None:
        """Nothing is left to do: the workers go."""
        self.study.set_user_attr("over", True)

    # -- the lead's side

    def tries(self) -> dict[str, list[Any]]:
        """The trials of each job, by its key."""
        found = defaultdict(list)
        for trial in self.study.get_trials(deepcopy=False):
            if "key" in trial.user_attrs:
                found[trial.user_attrs["key"]].append(trial)
        return found

    def records(self, tries: dict[str, list[Any]]) -> TrialRecords:
        """Of jobs that were made, and of those that failed twice or took their workers with them."""
        found = TrialRecords(None)
        for key, trials in tries.items():
            done = [trial.value for trial in trials if trial.state == self.state.COMPLETE]
            errors = [trial.user_attrs["error"] for trial in trials if "error" in trial.user_attrs]
            if sum("died" in trial.user_attrs for trial in trials) >= DEATHS:
                errors = ["its workers died"] * ATTEMPTS
            record: dict[str, Any] = {"key": key, "job": trials[0].user_attrs["job"], "attempts": max(1, len(errors))}
            if done:
                found.update([record | {"status": "done", "accuracy": done[0]}])
            elif errors:
                found.update([record | {"status": "failed", "error": errors[-1]}])
        return found

    def fill(self, jobs: list[Job], tries: dict[str, list[Any]]) -> None:
        """Every job that nobody makes or is going to make gets a trial.

        The tries are those that the records are of: what is finished meanwhile would look like a job without a trial.
        """
        open_ = (self.state.WAITING, self.state.RUNNING)
        for job in jobs:
            if not any(trial.state in open_ for trial in tries.get(job.key(), [])):
                self.add(job)

    def add(self, job: Job) -> None:
        kinds = self.optuna.distributions
        self.study.add_trial(
            self.optuna.create_trial(
                state=self.state.WAITING,
                params=job.recipe.to_dict(),  # for Optuna's dashboard
                distributions={
                    name: kinds.FloatDistribution(0, 1000) if name == "lr" else kinds.IntDistribution(0, 10**6)
                    for name in job.recipe.to_dict()
                },
                user_attrs={"key": job.key(), "job": job.to_dict()},
            )
        )

    def bury(self, patience: float) -> None:
        """End the trials whose workers gave no sign for so many seconds."""
        for trial in self.study.get_trials(deepcopy=False, states=(self.state.RUNNING,)):
            beat, since = self.seen.get(trial.number, (None, 0.0))
            if beat != (now := trial.user_attrs.get("beat", 0)):
                self.seen[trial.number] = (now, time.monotonic())
            elif time.monotonic() - since > patience and self.end(self.id_of(trial.number), died=True):
                worker = trial.user_attrs.get("worker", "its worker")
                print(f"no sign of {worker} for {patience:g} s: trial {trial.number} is given to another", flush=True)

    # -- a worker's side

    def id_of(self, number: int) -> int:
        study = self.storage.get_study_id_from_name(self.study.study_name)
        return self.storage.get_trial_id_from_study_id_trial_number(study, number)

    def take(self) -> tuple[int, Job] | None:
        """The next waiting trial: its id in the storage, and its job. Only one worker can get it."""
        for trial in self.study.get_trials(deepcopy=False, states=(self.state.WAITING,)):
            number = self.id_of(trial.number)
            try:
                mine = self.storage.set_trial_state_values(number, self.state.RUNNING)
            except self.Ended:
                continue
            if mine:
                self.storage.set_trial_user_attr(number, "worker", f"{socket.gethostname()}:{os.getpid()}")
                self.beats = (0, time.monotonic())
                return number, Job.from_dict(trial.user_attrs["job"])
        return None

    def beat(self, number: int, every: float) -> None:
        """Give a sign if it is time to; raises ``Ended`` if the trial was given to another."""
        count, last = self.beats
        if time.monotonic() - last > every:
            self.beats = (count + 1, time.monotonic())
            self.storage.set_trial_user_attr(number, "beat", count + 1)

    def end(self, number: int, value: float | None = None, **why: Any) -> bool:
        """Complete a trial or, without a value, fail it; whether it was still to be ended."""
        try:
            for name, text in why.items():
                self.storage.set_trial_user_attr(number, name, text)
            if value is None:
                return self.storage.set_trial_state_values(number, self.state.FAIL)
            return self.storage.set_trial_state_values(number, self.state.COMPLETE, [value])
        except self.Ended:
            return False


def pause(patience: float) -> None:
    time.sleep(min(2.0, patience / 20))


def lead(args: argparse.Namespace) -> int:
    study = Study(args.study)
    settings = settled(study.about, args.recipe, args.study)
    _, context = read_images(settings, args.root, study.about)
    study.about = {"settings": settings, "images": context, "patience": args.patience}
    plan = Plan(settings, context, args.out or (Path("runs/mip") if "://" in args.study else Path(args.study).parent))
    while jobs := plan.advance(study.records(tries := study.tries())):
        study.fill(jobs, tries)
        study.bury(args.patience)
        pause(args.patience)
    study.close()
    plan.report()
    return 0


def work(args: argparse.Namespace) -> int:
    study = Study(args.study)
    with Farewell() as farewell:
        while not ((about := study.about) or study.over or farewell.signal):  # the lead comes later
            pause(10)
        if about is None:
            return farewell.exit_code()
        trials = make_trials(*read_images(about["settings"], args.root, about), args.device)
        while not study.over and not farewell.signal:
            if (taken := study.take()) is None:
                pause(about["patience"])
            else:
                make(study, trials, *taken, farewell, about["patience"] / 4)
        return farewell.exit_code()


def make(study: Study, trials: Trials, number: int, job: Job, farewell: Farewell, every: float) -> None:
    """Make one trial of the study."""

    def watch() -> None:
        farewell.look()
        study.beat(number, every)

    try:
        study.end(number, train(trials, job, watch).accuracy)
    except Left:
        study.end(number)  # neither a failure nor a death
    except study.Ended:
        print(f"[{os.getpid()}] was too slow: the trial was given to another", flush=True)
    except Exception as ex:  # one network that cannot be trained must not end a search of days
        print(f"[{os.getpid()}] failed: {error_of(ex)}", flush=True)
        study.end(number, error=error_of(ex))


# -- through a folder -------------------------------------------------------------------------------------------------


def plan(args: argparse.Namespace) -> int:
    path = args.folder / "jobs.json"
    known = json.loads(path.read_text("utf-8")) if path.exists() else None
    settings = settled(known, args.recipe, str(args.folder))
    _, context = read_images(settings, args.root, known)
    plan = Plan(settings, context, args.folder)
    jobs = plan.advance(TrialRecords(args.folder / "trials", context))
    write_json(path, {"settings": settings, "images": context, "jobs": [job.to_dict() for job in jobs]})
    if jobs:
        print(f"{len(jobs)} jobs in {path}")
        return 0
    plan.report()
    print("the search is over")
    return OVER


def trial(args: argparse.Namespace) -> int:
    known = json.loads((args.folder / "jobs.json").read_text("utf-8"))
    images, context = read_images(known["settings"], args.root, known)
    trials, records = make_trials(images, context, args.device), TrialRecords(args.folder / "trials", context)
    with Farewell() as farewell:
        for job in map(Job.from_dict, known["jobs"][args.id :: args.of]):
            while records.is_pending(job) and not farewell.signal:
                attempts = 1 + (records.find(job) or {"attempts": 0})["attempts"]
                try:
                    made = train(trials, job, farewell.look)
                    record = {"status": "done", "accuracy": made.accuracy, "accuracies": made.accuracies}
                    record |= {"seconds": made.seconds, "images_per_second": made.images_per_second}
                except Left:
                    break
                except Exception as ex:  # as in make
                    print(f"[{os.getpid()}] failed: {error_of(ex)}", flush=True)
                    record = {"status": "failed", "error": error_of(ex)}
                records.add(job, record | {"attempts": attempts})
        return farewell.exit_code()


# -- the command ------------------------------------------------------------------------------------------------------

DEMO = """
trainer:
  callbacks:
    - class_path: callbacks.MIPSearch
      init_args:
        space: {epochs: [1, 2], channels: [4, 6], cutout: [0, 8]}
        k: 3
        base: {preset: BPE1, batch_size: 64, lr: 0.1, layers: 3, image_size: 8}
        truth_recipe: {preset: BPE1, epochs: 4, batch_size: 64, lr: 0.1, layers: 3, channels: 6, image_size: 8}
        n_estimators: 100
model:
  class_path: lit_methods.BPEBenchmark
  init_args:
    architectures:
      - 3 3 7 7 7 7 7 7 7 7 7 7 7 7 3 3 7 7 7 7 7 7 7 7 7 7 7 7
      - 0 0 7 7 7 7 7 7 7 7 7 7 7 7 2 2 7 7 7 7 7 7 7 7 7 7 7 7
      - 2 1 7 7 7 7 7 7 7 7 7 7 7 7 5 0 7 7 7 7 7 7 7 7 7 7 7 7
data:
  class_path: datamodules.TrialDataModule
  init_args: {name: digits, class_subset: [0, 1, 2, 3]}
"""


def demonstrate() -> int:
    """A lead and two workers on this machine; one of them is killed in the middle of a trial."""
    folder = Path("runs/mip_many_machines")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text(DEMO, "utf-8")
    where = str(folder / "study.journal")

    def start(*words: str) -> subprocess.Popen[bytes]:
        one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.Popen([sys.executable, __file__, *words, "--study", where], env=one_thread)

    leader = start("lead", "--recipe", str(folder / "recipe.yaml"), "--patience", "10")
    workers = [start("work"), start("work")]
    try:
        study, name = Study(where), f"{socket.gethostname()}:{workers[0].pid}"
        while leader.poll() is None and workers[0].poll() is None:
            running = study.study.get_trials(deepcopy=False, states=(study.state.RUNNING,))
            if any(trial.user_attrs.get("worker") == name for trial in running):
                time.sleep(0.5)  # it has let go of the journal, whose lock would else hold everybody up for 30 s
                print(f"killing worker {workers[0].pid} in the middle of a trial", flush=True)
                workers[0].kill()
                break
            time.sleep(0.05)
        code = leader.wait()
        if code == 0:
            workers[1].wait()
        return code
    finally:
        for process in (leader, *workers):
            process.kill()
            process.wait()


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.set_defaults(run=lambda args: demonstrate())
    roles = parser.add_subparsers(title="roles, each with --help; none of them: a demonstration", metavar="ROLE")
    made = {}
    for run, text in (
        (lead, "plan, hand out the trials of each round, wait, prune"),
        (work, "make the trials of a study, one after the other, until the search is over"),
        (plan, "write the next round's jobs into a folder"),
        (trial, "make a share of a folder's jobs"),
    ):
        made[run.__name__] = role = roles.add_parser(run.__name__, help=text, description=text)
        role.set_defaults(run=run)
        if run in (lead, work):
            role.add_argument("--study", required=True, metavar="PATH_OR_URL", help="a journal file or a database")
        else:
            role.add_argument("--folder", required=True, type=Path, help="of jobs.json and trials/")
        if run in (lead, plan):
            role.add_argument("--recipe", help="of the package, or a YAML file; bpe_mip, or what the search began with")
        else:
            role.add_argument("--device", help="cuda if there is one, else cpu")
        role.add_argument("--root", help="where this machine has the data, if not where the recipe says")
    text = "seconds without a sign after which a worker counts as dead; more than a step or a validation takes"
    made["lead"].add_argument("--patience", type=float, default=300.0, help=text)
    made["lead"].add_argument("--out", type=Path, help="for the result; beside the journal, or runs/mip")
    made["trial"].add_argument("--id", type=int, required=True, help="which share, from 0 on")
    made["trial"].add_argument("--of", type=int, required=True, help="how many shares there are")
    args = parser.parse_args(argv)
    if "of" in args and not 0 <= args.id < args.of:
        parser.error(f"--id {args.id} --of {args.of}: shares are counted from 0 to {args.of - 1}")
    if "patience" in args and args.patience <= 0:
        parser.error(f"--patience {args.patience:g}: give seconds, more than 0")
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(argv)
    with quiet():
        return args.run(args)


if __name__ == "__main__":
    sys.exit(main())
