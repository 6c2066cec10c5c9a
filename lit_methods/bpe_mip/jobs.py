"""Trials as jobs: what is to be trained, and a JSON record on disk of what came of it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_methods.bpe_mip.search_space import Genotype, Recipe
from lit_methods.functional.archives import load_plain

ATTEMPTS = 2  # a trial that failed is tried once more

Record = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """One network to train under one recipe.

    Args:
        genotype: of its cells.
        recipe: how it is trained.
        seed: of weights, order and augmentation.

    Example:
        >>> from lit_methods.bpe_mip.search_space import BPE1, random_genotype
        >>> job = Job(random_genotype(torch.Generator().manual_seed(0)), BPE1)
        >>> Job.from_dict(job.to_dict()) == job, len(job.key())
        (True, 16)
    """

    genotype: Genotype
    recipe: Recipe
    seed: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as they stand in a record."""
        return {"genotype": self.genotype.to_dict(), "recipe": self.recipe.to_dict(), "seed": self.seed}

    @classmethod
    def from_dict(cls, d: dict[str, Any]) -> Job:
        """The job that :meth:`to_dict` describes."""
        return cls(Genotype.from_dict(d["genotype"]), Recipe.from_dict(d["recipe"]), int(d["seed"]))

    def key(self, context: str = "") -> str:
        """16 hexadecimal digits that equal jobs share; edges of a node may come in any order.

        Args:
            context: what else has to be the same, such as the images.
        """
        plain = self.to_dict()
        for cell in ("normal", "reduce"):
            plain["genotype"][cell] = [sorted(map(list, node)) for node in plain["genotype"][cell]]
        text = json.dumps([plain, context], sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


class TrialRecords:
    """What is known of finished trials: in memory, and in a folder with ``<key>.json`` per trial.

    A record has ``key``, ``job``, ``status`` (``"done"`` or ``"failed"``), ``attempts``, and ``accuracy``,
    ``accuracies``, ``seconds``, ``images_per_second`` or, of a failed one, ``error``. Several processes and runs may
    share the folder: a file is written whole or not at all. Weights of a trial that was the best so far stand beside
    its record, as ``<key>.pt``.

    Args:
        folder: where the files are; ``None`` keeps records in memory alone.
        context: on what the trials depend besides their jobs, such as the images' fingerprint; records of another
            context are not seen.

    Example:
        >>> import tempfile
        >>> from lit_methods.bpe_mip.search_space import BPE1, random_genotype
        >>> job, folder = Job(random_genotype(torch.Generator()), BPE1), tempfile.mkdtemp()
        >>> TrialRecords(folder).add(job, {"status": "done", "accuracy": 0.5})
        >>> TrialRecords(folder).find(job)["accuracy"], TrialRecords(folder, "other images").find(job)
        (0.5, None)
    """

    def __init__(self, folder: str | Path | None, context: str = "") -> None:
        self.folder = None if folder is None else Path(folder)
        self.context = context
        self.known: dict[str, Record] = {}

    def key(self, job: Job) -> str:
        """Under which name a job's record is kept."""
        return job.key(self.context)

    def find(self, job: Job) -> Record | None:
        """The record of a job, also one that another process wrote meanwhile; ``None`` if there is none."""
        key = self.key(job)
        found = self.known.get(key)
        if self.is_final(found):
            return found
        if (path := self._path(key, ".json")) is not None and path.exists():
            try:
                read = json.loads(path.read_text("utf-8"))
            except ValueError:
                read = None  # damaged: the trial is made again
            if _is_record(read, key) and (found is None or read["attempts"] >= found["attempts"]):
                self.known[key] = found = read
        return found

    def is_pending(self, job: Job) -> bool:
        """Whether the trial is still to be made: it was not, or it failed and has another attempt."""
        return not self.is_final(self.find(job))

    @staticmethod
    def is_final(record: Record | None) -> bool:
        """Whether nothing more is to be done for a record."""
        return record is not None and (record["status"] == "done" or record.get("attempts", 1) >= ATTEMPTS)

    def add(self, job: Job, record: Record, weights: dict[str, Tensor] | None = None) -> None:
        """Keep the record of a job, on disk as well; ``weights`` are on the disk before the record is."""
        key = self.key(job)
        self.known[key] = record = {"key": key, "job": job.to_dict(), "attempts": 1} | record
        if (path := self._path(key, ".json")) is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        if weights is not None:
            _replace(path.with_suffix(".pt"), lambda aside: torch.save(weights, aside))
        text = (
            "{\n" + ",\n".join(f" {json.dumps(name)}: {json.dumps(value)}" for name, value in record.items()) + "\n}\n"
        )
        _replace(path, lambda aside: aside.write_text(text, "utf-8"))

    def weights(self, job: Job) -> dict[str, Tensor] | None:
        """Weights that stand beside a record; ``None`` where there are none, or damaged ones."""
        path = self._path(self.key(job), ".pt")
        if path is None or not path.exists():
            return None
        try:
            return load_plain(path)
        except (ValueError, OSError):
            return None

    def update(self, records: Iterable[Record]) -> None:
        """Take over records of other processes or of a checkpoint; nothing is written."""
        for record in records:
            if not self.is_final(self.known.get(record["key"])):
                self.known[record["key"]] = record

    def _path(self, key: str, suffix: str) -> Path | None:
        return None if self.folder is None else self.folder / f"{key}{suffix}"


def _is_record(read: Any, key: str) -> bool:
    """Whether it has what others go by; people may write into the folder, too."""
    if not isinstance(read, dict) or read.get("key") != key or type(read.get("attempts")) is not int:
        return False
    try:
        Job.from_dict(read["job"])
    except (ValueError, KeyError, TypeError):
        return False
    if read.get("status") == "failed":
        return isinstance(read.get("error"), str)
    accuracy = read.get("accuracy")
    return read.get("status") == "done" and isinstance(accuracy, float | int) and 0 <= accuracy <= 1


def _replace(path: Path, write: Any) -> None:
    """Write a file whole or not at all, whoever else writes the same one."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(aside)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
