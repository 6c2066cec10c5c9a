"""Trials that cost nothing: an accuracy that is computed, and a network with its first weights.

Every call is noted in a file, so that processes that are forked from the test, or killed, can be counted too.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer

from callbacks.trial_rounds import TrialRounds
from datamodules import TrialDataModule
from lit_methods.bpe_mip.benchmark import BPEBenchmark
from lit_methods.bpe_mip.search_space import Genotype, Recipe, genotype_from_sample28
from lit_methods.bpe_mip.trial import Trials
from lit_methods.functional.draws import uniforms

SMALL = {"preset": "BPE1", "epochs": 1, "batch_size": 64, "lr": 0.1, "layers": 3, "channels": 4, "image_size": 8}

Score = Callable[[Genotype, Recipe, int], float]


def number(genotype: Genotype) -> float:
    """A number in [0, 1) that belongs to an architecture."""
    return float(uniforms(1, *map(int, genotype.key()))[0, 0])


def by_genotype(genotype: Genotype, recipe: Recipe, seed: int) -> float:
    """Whatever the recipe is."""
    return number(genotype)


def noisy(genotype: Genotype, recipe: Recipe, seed: int) -> float:
    """Recipes with more epochs and layers rank better; nothing else matters."""
    rank = number(genotype)
    noise = uniforms(1, *map(int, genotype.key()), recipe.epochs, recipe.layers, seed)[0, 0]
    share = 1 / (recipe.epochs + recipe.layers - 2) ** 2
    return float((1 - share) * rank + share * noise)


class _Fake:
    """What a :class:`Trial` has; its weights are made where somebody wants them."""

    seconds, images_per_second = 0.5, 100.0

    def __init__(self, accuracy: float, build: Callable[[], dict[str, torch.Tensor]]) -> None:
        self.accuracy, self.accuracies, self._build = accuracy, [accuracy], build

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        return self._build()


class Calls:
    """What was trained, in the order of the calls, by all processes together.

    Args:
        path: of the file in which they are noted.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def note(self, *call: Any) -> None:
        """Append one."""
        with self.path.open("a") as file:
            file.write(json.dumps(call) + "\n")

    def __iter__(self) -> Iterator[list[Any]]:
        """Genotype, recipe and seed of each, as text and number."""
        text = self.path.read_text() if self.path.exists() else ""
        return iter([json.loads(line) for line in text.splitlines()])

    def __len__(self) -> int:
        return sum(1 for _ in self)

    @property
    def different(self) -> int:
        """How many of them differ from each other."""
        return len({tuple(call) for call in self})


@contextmanager
def fake_trials(
    path: Path, score: Score = by_genotype, before: Callable[[int, Callable[[], None] | None], None] | None = None
) -> Iterator[Calls]:
    """Nothing is trained inside.

    Args:
        path: file for the calls, which may have some of an earlier time.
        score: accuracy of a genotype under a recipe and a seed; what it raises ends the trial.
        before: called with the number of the call, from 0 on, and the trial's ``watch``, once the call is noted.
    """
    calls = Calls(path)

    def train(
        trials: Trials, genotype: Genotype, recipe: Recipe, seed: int = 0, watch: Callable[[], None] | None = None
    ) -> _Fake:
        count = len(calls)
        calls.note(genotype.key(), recipe.key(), seed)
        if before is not None:
            before(count, watch)
        accuracy = score(genotype, recipe, seed)
        return _Fake(accuracy, lambda: trials.build(genotype, recipe, seed).state_dict())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trials, "train", train)
        yield calls


def search(
    make_trainer: Callable[..., Trainer], callback: TrialRounds, options: dict[str, Any] | None = None, **model: Any
) -> BPEBenchmark:
    """A whole search on a few digits, without validation; gives its module.

    Args:
        make_trainer: the fixture.
        callback: that searches.
        options: of the Trainer.
        model: arguments of ``BPEBenchmark``.
    """
    module = BPEBenchmark(**{"recipe": SMALL} | model)
    usual = {"max_epochs": 60, "reload_dataloaders_every_n_epochs": 1, "limit_val_batches": 0}
    trainer = make_trainer(**usual | {"callbacks": [callback], "log_every_n_steps": 1} | (options or {}))
    trainer.fit(module, datamodule=TrialDataModule("digits", class_subset=[0, 1]))
    return module


def architectures(count: int) -> list[str]:
    """Different ones with few operations, as 28 numbers each."""
    return [f"{i // 4 % 4} {i % 4} " + "7 " * 12 + f"{i % 4} {i // 4 % 4} " + "7 " * 11 + "7" for i in range(count)]


def truth_of(texts: list[str]) -> list[float]:
    """What :func:`by_genotype` says about :func:`architectures`."""
    return [number(genotype_from_sample28(np.array(text.split(), np.int64))) for text in texts]


def same_state(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())
