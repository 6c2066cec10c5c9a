"""BPEBenchmark: many small trainings, dealt out over the processes, behind one Trainer."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.optim import Optimizer

from lit_methods.bpe_mip.jobs import Job, Record, TrialRecords
from lit_methods.bpe_mip.module import BPE, as_genotype
from lit_methods.bpe_mip.search_space import (
    Genotype,
    Recipe,
    genotype_from_sample28,
    random_genotype,
    read_genotypes,
)
from lit_methods.bpe_mip.trial import Trial, Trials
from lit_methods.bpe_mip.trial_images import LabelledTensor, TrialImages
from lit_methods.contract import ExportGraph
from lit_methods.functional.crops import resize_batch
from lit_methods.functional.processes import gather_objects
from lit_methods.functional.suggestions import first_line

FOLDER = "trials"  # of the records, in the run's directory


class BPEBenchmark(BPE):
    """Trains the networks that a search asks for, and keeps the best of them (BPE, arXiv 2005.09917).

    A training batch is a job: one architecture to train from scratch under one recipe (``TrialDataModule``); a callback
    decides which: ``MIPSearch`` measures how well recipes rank the ``architectures``, ``ArchitectureSearch`` looks for
    the best architecture under ``recipe``. Jobs are dealt out over the processes, each has a JSON record in ``trials/``
    of the run's directory, and none is made twice: not on resume, after a kill, or in another run with the same
    ``records``. One that fails is recorded, tried once more, and then left out.

    The module's own network is the most accurate one so far, of those whose weights are here or in the records: it is
    validated, tested, exported and predicts.

    Logs ``trial/accuracy`` (of the jobs of a step, mean over the processes), ``trial/best`` (so far) and
    ``trial/failed`` (jobs that failed twice), and what ``ImageClassifier`` logs in validation and test.

    Args:
        architectures: the architectures that recipes are judged by: dicts, or 28 operation numbers each, as a list or
            text, or a JSON file of them; a number draws as many at random, by ``seed``; ``None`` where a searcher
            asks for its own.
        ground_truth: accuracy of each when trained to the end, in their order; ``None``: the search measures it.
        recipe: that a searcher's architectures are trained under, as in ``BPE``; MIP searches for its own.
        num_classes: number of classes.
        mean: per channel, for images in [0, 1].
        std: per channel.
        input_size: (C, H, W) of the data's images; trials resize them to their recipe's.
        class_names: names of the classes, for people.
        seed: of the trials.
        records: folder of the records, for several runs to share; ``None`` is ``trials/`` of the run's directory.
        genotype: of the network at hand, in checkpoints.

    Raises:
        ValueError: architectures and ground truth do not fit each other, or a ground truth is constant; during a run:
            data without lists of jobs.
        FileNotFoundError: there is no such file.

    Source:
        official code, one script and process per training. Ours: jobs behind a Trainer, records, the kept network.

    Example:
        >>> module = BPEBenchmark(["3 3 " + "7 " * 26, "2 2 " + "7 " * 26], [0.9, 0.8])
        >>> len(module.architectures), module.architectures[1].normal[0]
        (2, (('skip_connect', 0), ('skip_connect', 1)))
    """

    def __init__(
        self,
        architectures: int | list[Any] | str | None = None,
        ground_truth: list[float] | None = None,
        recipe: str | dict[str, Any] | Recipe = "BPE1",
        num_classes: int = 10,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        input_size: list[int] | None = None,
        class_names: list[str] | None = None,
        seed: int = 0,
        records: str | None = None,
        genotype: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(
            genotype=genotype,
            recipe=recipe,
            num_classes=num_classes,
            mean=mean,
            std=std,
            input_size=list(input_size or (3, 32, 32)),
            class_names=class_names,
        )
        self.automatic_optimization = False
        self.architectures = read_architectures(architectures, seed)
        self.ground_truth = check_truth(ground_truth, len(self.architectures))
        self.search_recipe = self.recipe
        self.hparams.update(architectures=[a.to_dict() for a in self.architectures], ground_truth=self.ground_truth)
        self.jobs_done = nn.Parameter(torch.zeros(()))  # what the Trainer counts as steps
        self.records = TrialRecords(records)
        self.best: dict[str, Any] = {}  # key and accuracy of the network at hand
        self.watch: Callable[[], None] | None = None  # a callback may look in after every step of a trial
        self.table: str | None = None  # of recipes that others have measured
        self._images: TrialImages | None = None  # in a fit
        self._trials: Trials | None = None

    # -- jobs ---------------------------------------------------------------------------------------------------------

    @classmethod
    def add_cli_arguments(cls, parser: Any, entry: str) -> None:
        """``--table`` of ``fit``."""
        if entry == "fit":
            helps = "a folder with a table of measured recipes: MIP searches in it, and nothing is trained"
            parser.add_argument("--table", type=str | None, default=None, help=helps)

    def take_options(self, table: str) -> None:
        """Search in a table of measured recipes (``read_table``) instead of training."""
        self.table = table

    def setup(self, stage: str) -> None:
        """Read the images, and find the records of earlier trials on them."""
        super().setup(stage)
        if self.table is not None:
            self.trainer.fit_loop.max_epochs = 0
            self.trainer.limit_test_batches = 0  # no network either
        if stage != "fit" or self.table is not None:
            return
        if str(self.trainer.precision) != "32-true":
            raise ValueError(
                f"trainer.precision={self.trainer.precision}: trials have that of their recipe, fp: 16 or 32; leave "
                "the Trainer's at 32-true"
            )
        data: Any = getattr(self.trainer, "datamodule", None)
        if not hasattr(data, "set_jobs"):
            raise ValueError(f"BPEBenchmark trains jobs, which {type(data).__name__} has not; give TrialDataModule")
        train, val = (LabelledTensor(*part[:2]) for part in (data.training_tensors(), data.validation_tensors()))
        mean, std = self.hparams["mean"] or [0.0] * 3, self.hparams["std"] or [1.0] * 3
        self._images = TrialImages(train, val, mean, std, data.flips)
        self._trials = None
        context = [type(self).__qualname__, self._images.fingerprint, self.hparams["num_classes"], mean, std]
        folder = self.hparams["records"] or Path(self.trainer.default_root_dir, FOLDER)
        self.records = TrialRecords(folder, json.dumps(context))

    @property
    def trials(self) -> Trials:
        """What trains, in a fit: on its device, with the images there."""
        if self._trials is None:
            assert self._images is not None
            self._trials = Trials(self._images.to(self.device), num_classes=self.hparams["num_classes"])
        return self._trials

    def job(self, genotype: Genotype, recipe: Recipe, seed: int | None = None) -> Job:
        """A job of this benchmark.

        Args:
            genotype: of the network.
            recipe: how it is trained.
            seed: ``None`` is that of the module.
        """
        return Job(genotype, recipe, self.hparams["seed"] if seed is None else seed)

    def configure_optimizers(self) -> Optimizer:
        """None of its own: what is stepped counts jobs."""
        return JobCounter(self.jobs_done)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> None:  # type: ignore[override]
        """Make the trials of this process, and learn of those of the others."""
        done = [self._make(Job.from_dict(plain)) for plain in batch["jobs"]]
        shared = [pair for part in gather_objects([record for record, _ in done]) for pair in part]
        for record in shared:
            if record["status"] == "failed":
                job = Job.from_dict(record["job"])
                rank_zero_warn(f"a trial failed ({record['error']}): {job.genotype.key()} under {job.recipe.key()}")
        self.records.update(shared)
        self._keep_best({record["key"]: weights for record, weights in done if weights is not None}, shared)
        counter: Any = self.optimizers()
        counter.step()
        if accuracies := [record["accuracy"] for record in shared if record["status"] == "done"]:
            self.log("trial/accuracy", sum(accuracies) / len(accuracies), batch_size=1, prog_bar=True)
        if self.best:
            self.log("trial/best", self.best["accuracy"], batch_size=1, prog_bar=True)
        self.log("trial/failed", float(len(self._failed())), batch_size=1)

    def _failed(self) -> list[Record]:
        """Records of trials that are not tried again."""
        known = self.records.known.values()
        return [record for record in known if record["status"] == "failed" and self.records.is_final(record)]

    def on_fit_end(self) -> None:
        """Name a better trial than that of the kept network, of which an earlier run kept no weights."""
        better = [record for record in self.records.known.values() if self._is_better(record)]
        if better:
            best = max(record["accuracy"] for record in better)
            kept = f"{self.best['accuracy']:.4f}" if self.best else "none"
            rank_zero_warn(
                f"the best trial ({best:.4f}) was made by another run, and its weights are not in the records: the "
                f"network kept is the best one of which there are weights ({kept})"
            )

    def _make(self, job: Job) -> tuple[Record, dict[str, Tensor] | None]:
        """The record of a job and, if it may be the best one, its weights."""
        known = self.records.find(job)
        if known is not None and self.records.is_final(known):
            return known, self.records.weights(job) if self._is_better(known) else None
        attempt = {"attempts": 1 + (known["attempts"] if known else 0)}
        try:
            trial = self.run_trial(job)
        except Exception as ex:  # one network that cannot be trained must not end a search of days
            record: Record = {"status": "failed", "error": f"{type(ex).__name__}: {first_line(ex)}", **attempt}
            self.records.add(job, record)
            return self.records.known[self.records.key(job)], None
        record = {"status": "done", "accuracy": trial.accuracy, "accuracies": trial.accuracies, **attempt}
        record |= {"seconds": round(trial.seconds, 3), "images_per_second": round(trial.images_per_second, 1)}
        weights = trial.weights if self._is_better(record | {"key": self.records.key(job)}) else None
        self.records.add(job, record, weights)
        return self.records.known[self.records.key(job)], weights

    def run_trial(self, job: Job) -> Trial:
        """Train one network; override it for an estimate of your own, a function of the job alone.

        Args:
            job: what is to be trained.
        """
        return self.trials.train(job.genotype, job.recipe, job.seed, self.watch)

    def _is_better(self, record: Record) -> bool:
        """Than the network at hand; of equals the smaller key wins, whoever comes first."""
        if record["status"] != "done":
            return False
        return not self.best or (record["accuracy"], self.best["key"]) > (self.best["accuracy"], record["key"])

    def _keep_best(self, weights: dict[str, dict[str, Tensor]], shared: Sequence[Record]) -> None:
        better = [record for record in shared if self._is_better(record)]
        held = {key for part in gather_objects(sorted(weights)) for key in part} if better else set()
        better = [record for record in better if record["key"] in held]
        if not better:
            return
        best = max(better, key=lambda record: (record["accuracy"], [-ord(letter) for letter in record["key"]]))
        key = best["key"]
        state = next(part for part in gather_objects(weights.get(key)) if part is not None)
        job = Job.from_dict(best["job"])
        self.adopt(job.genotype, job.recipe, state)
        self.best = {"key": key, "accuracy": best["accuracy"]}

    # -- the network at hand ------------------------------------------------------------------------------------------

    def as_fed(self, image: Tensor) -> Tensor:
        """Images in [0, 1] as the network takes them: in the size of its recipe, in 8 bits as in a trial."""
        size = self.recipe.image_size
        if image.shape[-1] != size or image.shape[-2] != size:
            levels = (image.float().clamp(0, 1) * 255).round().to(torch.uint8)
            image = resize_batch(levels, size).to(image.dtype) / 255
        return super().as_fed(image)

    def export_graphs(self) -> dict[str, ExportGraph]:
        """As in ``BPE``; images have the size of the kept network's recipe, not that of the data."""
        side = self.recipe.image_size
        example = torch.zeros(2, 3, side, side, device=self.device)
        return {name: replace(graph, inputs=(example,)) for name, graph in super().export_graphs().items()}

    def _check_data(self, data: Any, stage: str) -> None:
        """Any will do: trials resize images, and do what their recipes say."""

    def summary(self) -> dict[str, float | str | list]:
        """How many trials there were, and which network is kept."""
        records = self.records.known.values()
        done = [record for record in records if record["status"] == "done"]
        speeds = sorted(record["images_per_second"] for record in done if record.get("images_per_second"))
        found: dict[str, float | str | list] = {
            "trial/done": len(done),
            "trial/failed": len(self._failed()),
        }
        if not records:
            return {}
        if speeds:
            found["trial/median_images_per_second"] = speeds[len(speeds) // 2]
        if self.best:
            found |= super().summary() | {"trial/best": self.best["accuracy"]}
        return found

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """With every record, and which network is at hand."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["hyper_parameters"]["recipe"] = self.recipe.to_dict()
        checkpoint["trials"] = {"records": list(self.records.known.values()), "best": dict(self.best)}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take over the records and the shape of the network."""
        super().on_load_checkpoint(checkpoint)
        saved = checkpoint.get("trials", {})
        self.records.update(saved.get("records", []))
        self.best = dict(saved.get("best", {}))


class JobCounter(Optimizer):
    """Counts: a step adds one. The Trainer's own count of steps is that of its optimisers, and checkpoints go by it.

    Args:
        count: a parameter without dimensions.

    Example:
        >>> counter = JobCounter(count := nn.Parameter(torch.zeros(())))
        >>> counter.step()
        >>> float(count)
        1.0
    """

    def __init__(self, count: nn.Parameter) -> None:
        super().__init__([count], {"lr": 1.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Add one."""
        if closure is not None:
            closure()
        for group in self.param_groups:
            for count in group["params"]:
                count.add_(group["lr"])


def read_architectures(given: Sequence[Any] | str | int | None, seed: int = 0) -> list[Genotype]:
    """Architectures, however they are given.

    Args:
        given: genotypes, their dicts, or 28 operation numbers each, as numbers or text; or a JSON file, or text, with
            several; or how many to draw at random.
        seed: of random ones.

    Raises:
        ValueError: one is no genotype; two are the same; a number below 1.
        FileNotFoundError: there is no such file.

    Example:
        >>> read_architectures(["3 3 " + "7 " * 26])[0].normal[0]
        (('sep_conv_3x3', 0), ('sep_conv_3x3', 1))
    """
    if isinstance(given, int):
        if given < 1:
            raise ValueError(f"architectures={given}: draw at least 1, or name them")
        generator = torch.Generator().manual_seed(seed)
        return [random_genotype(generator) for _ in range(given)]
    if given is None:
        return []
    found = read_genotypes(given) if isinstance(given, str) else [_architecture(one) for one in given]
    first: dict[str, int] = {}
    for number, genotype in enumerate(found):
        if (same := first.setdefault(genotype.key(), number)) != number:
            raise ValueError(f"architectures {same} and {number} are the same; give each once")
    return found


def _architecture(one: Any) -> Genotype:
    if isinstance(one, Genotype):
        return one
    if not isinstance(one, str | Mapping):
        return genotype_from_sample28(one)
    try:
        return as_genotype(one)  # type: ignore[arg-type]  # any mapping will do
    except ValueError as error:
        raise ValueError(f"architectures: {str(one)[:60]!r} is no genotype: {error}") from None


def check_truth(truth: Sequence[float] | None, count: int) -> list[float] | None:
    """The accuracies of fully trained architectures, as plain numbers.

    Args:
        truth: one per architecture, in [0, 1]; ``None`` where they are not known.
        count: of the architectures.

    Raises:
        ValueError: another number of them, one is no fraction, or all are equal, so that nothing can agree with them.

    Example:
        >>> check_truth([0.5, 1], 2)
        [0.5, 1.0]
    """
    if truth is None:
        return None
    if any(isinstance(value, bool | str) or not isinstance(value, Real) for value in truth):
        raise ValueError(f"ground_truth={truth!r}: give numbers, fractions of 1")
    values = [float(value) for value in truth]
    if len(values) != count:
        raise ValueError(f"ground_truth has {len(values)} accuracies for {count} architectures; give one for each")
    if wrong := [value for value in values if not 0 <= value <= 1]:
        raise ValueError(f"ground_truth must be fractions of 1, got {wrong[0]}; divide per cents by 100")
    if len(set(values)) < 2:
        raise ValueError(
            f"ground_truth is constant ({values[0] if values else 'no value'}): rank correlation with it is undefined; "
            "give architectures of different accuracy"
        )
    return values
