"""REINFORCE, regularised evolution and random search, each as ask and tell: they propose, whoever trains answers.

Random numbers come from one ``torch.Generator`` and are drawn by ``ask``. A searcher may be asked several times before
it is told anything, so that networks train side by side, and told in any order. What it proposes depends only on the
generator and on what it was told until then. State is float64.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lit_methods.bpe_mip.edges import EDGES, NONE, PRIMITIVES, Array, as_float64, as_sample
from lit_methods.bpe_mip.search_space import Genotype, genotype_from_sample28, random_genotype, sample28_from_genotype
from lit_methods.bpe_mip.slimming import slim_by_probability, slim_masks, slim_with_masks


class Searcher(ABC):
    """What all searchers share.

    Attributes:
        history: the sample and accuracy of each ``tell``, in order.
        operations: samples are below this: 7 where every edge has an operation, 8 where edges may be absent.
        redraw_until: ``run`` does not tell accuracies up to this one.

    Args:
        generator: where all random numbers come from; ``None`` is one of its own with seed 0, so two searchers without
            one draw alike.
    """

    operations = NONE
    redraw_until = -math.inf

    def __init__(self, *, generator: torch.Generator | None = None) -> None:
        self.generator = torch.Generator().manual_seed(0) if generator is None else generator
        self.history: list[tuple[Tensor, float]] = []

    @abstractmethod
    def ask(self) -> Tensor:
        """The next architecture to estimate: (28,) int64."""

    def tell(self, sample: Array, accuracy: float) -> None:
        """Take the answer to a question; samples that were never asked are welcome too.

        Args:
            sample: (28,) operations, as ``ask`` gave them.
            accuracy: its accuracy as a fraction of 1.

        Raises:
            ValueError: the sample is of another form, or the accuracy is not in [0, 1].
        """
        checked, accuracy = as_sample(sample, self.operations), _fraction(accuracy)
        self.history.append((checked, accuracy))
        self._learn(checked, accuracy)

    def run(self, estimate_fn: Callable[[Genotype], float], budget: int) -> tuple[Genotype, float]:
        """Ask, estimate and tell, one architecture after the other.

        Args:
            estimate_fn: trains a genotype and gives its accuracy as a fraction of 1; or looks it up.
            budget: calls of ``estimate_fn`` in this run, on top of those before it.

        Returns:
            The best architecture of the whole history, and its accuracy.

        Raises:
            ValueError: ``budget`` is below 1, an accuracy is not in [0, 1], or nothing could be told.
        """
        if budget < 1:
            raise ValueError(f"budget={budget} estimates; give at least 1")
        for _ in range(budget):
            sample = self.ask()
            accuracy = _fraction(estimate_fn(genotype_from_sample28(sample)))
            if accuracy > self.redraw_until:
                self.tell(sample, accuracy)
        if not self.history:
            raise ValueError(
                f"estimate_fn gave at most {self.redraw_until} in each of {budget} estimates; see why nothing trains"
            )
        best, accuracy = self.best()
        return genotype_from_sample28(best), accuracy

    def best(self) -> tuple[Tensor, float]:
        """The sample with the largest accuracy so far, the first of equal ones, and that accuracy.

        Raises:
            ValueError: nothing was told yet.
        """
        if not self.history:
            raise ValueError("no accuracy was told yet; call tell or run first")
        sample, accuracy = max(self.history, key=lambda told: told[1])
        return sample.clone(), accuracy

    def state_dict(self) -> dict[str, Any]:
        """All that a searcher built with the same arguments needs to go on bit for bit; tensors and plain values.

        What was asked and is not told yet is not in it: tell that to the new searcher, or it is lost.
        """
        samples = [sample for sample, _ in self.history]
        return {
            "searcher": type(self).__name__,
            "arguments": self._arguments(),
            "samples": torch.stack(samples) if samples else torch.zeros(0, len(EDGES), dtype=torch.int64),
            "accuracies": torch.tensor([accuracy for _, accuracy in self.history], dtype=torch.float64),
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state.

        Args:
            state: of ``state_dict``.

        Raises:
            ValueError: it is of another searcher, or of one with other arguments.
        """
        if missing := [name for name in self.state_dict() if name not in state]:
            raise ValueError(f"state lacks {', '.join(missing)}; give what state_dict of a searcher returned")
        mine, theirs = (type(self).__name__, self._arguments()), (state["searcher"], state["arguments"])
        if mine != theirs:
            raise ValueError(
                f"state is of {theirs[0]} with {theirs[1]}, this is {mine[0]} with {mine[1]}; build it alike"
            )
        accuracies = state["accuracies"].tolist()
        self.history = [(s.clone(), a) for s, a in zip(state["samples"].cpu(), accuracies, strict=True)]
        self.generator.set_state(state["generator"].cpu())

    @abstractmethod
    def _learn(self, sample: Tensor, accuracy: float) -> None:
        """Change what the next ``ask`` gives; the answer is in the history already."""

    def _arguments(self) -> dict[str, Any]:
        return {}

    def _uniforms(self) -> Tensor:
        """(28,) float64 in [0, 1)."""
        draws = torch.rand(len(EDGES), dtype=torch.float64, generator=self.generator, device=self.generator.device)
        return draws.cpu()

    def _integers(self, below: int, count: int) -> list[int]:
        return torch.randint(below, (count,), generator=self.generator, device=self.generator.device).tolist()


class RandomSearch(Searcher):
    """Independent random genotypes with two edges per node; the best one wins.

    Args:
        generator: see ``Searcher``.

    Source:
        official code: standard normal scores, decoded as DARTS does; by edge, not by score, are edges ordered here.

    Example:
        >>> search = RandomSearch()
        >>> genotype, accuracy = search.run(lambda genotype: 0.5 + 0.5 * (genotype.normal[0][0][1] == 0), budget=5)
        >>> len(search.history), accuracy
        (5, 1.0)
    """

    operations = len(PRIMITIVES)

    def ask(self) -> Tensor:
        """The next random architecture: (28,) int64, 7 where there is no edge."""
        return torch.tensor(sample28_from_genotype(random_genotype(self.generator)))

    def _learn(self, sample: Tensor, accuracy: float) -> None:
        """Nothing: draws are independent."""


class ReinforceSearch(Searcher):
    """A policy of 28 independent choices, pushed towards what was better than the moving mean of the rewards.

    An answer moves the policy as it is when the answer comes, also where others came since the question.

    ``run`` draws again after an estimate of at most 0.001, which stands for a network that failed: it is not told, and
    it counts towards the budget, so that a run ends whatever ``estimate_fn`` gives.

    Attributes:
        logits: (28, 7) float64, zeros at first.
        baseline: moving mean of the rewards, 0 before the first; the first reward has no advantage.

    Args:
        lr: step of the gradient ascent; there is no entropy term.
        momentum: of the baseline, at least 0 and below 1.
        generator: see ``Searcher``.

    Raises:
        ValueError: an argument is out of its range.

    Source:
        official code.

    Example:
        >>> search = ReinforceSearch()
        >>> for accuracy in (0.5, 0.9):
        ...     search.tell([0] * 28, accuracy)
        >>> round(search.baseline, 4), search.logits[0].argmax().item(), search.probabilities.shape
        (0.7105, 0, torch.Size([2, 28, 7]))
    """

    redraw_until = 0.001

    def __init__(self, lr: float = 0.1, momentum: float = 0.9, *, generator: torch.Generator | None = None) -> None:
        super().__init__(generator=generator)
        if not 0 < lr < math.inf:
            raise ValueError(f"lr={lr}: give a finite step above 0, such as 0.1")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum={momentum}: give a number of at least 0 and below 1, such as 0.9")
        self.lr, self.momentum = lr, momentum
        self.logits = torch.zeros(len(EDGES), NONE, dtype=torch.float64)
        self.baseline = 0.0
        self._sum = self._weight = 0.0
        self._probabilities: list[Tensor] = []

    @property
    def actions(self) -> Tensor:
        """(T, 28) int64: what was told, step by step."""
        return torch.stack([s for s, _ in self.history]) if self.history else torch.zeros(0, 28, dtype=torch.int64)

    @property
    def rewards(self) -> Tensor:
        """(T,) float64: its accuracies."""
        return torch.tensor([accuracy for _, accuracy in self.history], dtype=torch.float64)

    @property
    def probabilities(self) -> Tensor:
        """(T, 28, 7) float64: the policy after each update."""
        empty = torch.zeros(0, *self.logits.shape, dtype=torch.float64)
        return torch.stack(self._probabilities) if self._probabilities else empty

    def ask(self, uniforms: Array | None = None) -> Tensor:
        """Draw an architecture from the policy.

        Args:
            uniforms: (28,) in [0, 1) in place of random numbers. An edge gets the operation with the number of entries
                of its cumulative probabilities that are below its number.

        Returns:
            (28,) int64, 0..6.

        Raises:
            ValueError: ``uniforms`` is not that.
        """
        if uniforms is None:
            draws = self._uniforms()
        else:
            given = as_float64(uniforms, (len(EDGES),), "uniforms")
            if not ((given >= 0) & (given < 1)).all():
                raise ValueError("uniforms must be at least 0 and below 1")
            draws = torch.from_numpy(given)
        below = self.logits.softmax(1).cumsum(1) < draws[:, None]
        return below.sum(1).clamp(max=NONE - 1)

    def slimmed(self) -> list[int]:
        """The best architecture with two inputs per node; see ``slim_by_probability``.

        Raises:
            ValueError: fewer than two accuracies were told.
        """
        return slim_by_probability(self.probabilities, self.actions, self.rewards)

    def _learn(self, sample: Tensor, accuracy: float) -> None:
        self._sum = self.momentum * self._sum + (1 - self.momentum) * accuracy
        self._weight = self.momentum * self._weight + (1 - self.momentum)
        self.baseline = self._sum / self._weight
        chosen = torch.nn.functional.one_hot(sample, NONE).to(torch.float64)
        step = self.lr * (accuracy - self.baseline)
        self.logits = self.logits + step * (chosen - self.logits.softmax(1))
        self._probabilities.append(self.logits.softmax(1))

    def _arguments(self) -> dict[str, Any]:
        return {"lr": self.lr, "momentum": self.momentum}

    def state_dict(self) -> dict[str, Any]:
        """See ``Searcher``; with the policy and its course."""
        mine = {
            "logits": self.logits.clone(),
            "probabilities": self.probabilities,
            "baseline": [self._sum, self._weight],
        }
        return super().state_dict() | mine

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See ``Searcher``."""
        super().load_state_dict(state)
        self.logits = state["logits"].cpu().clone()
        self._probabilities = list(state["probabilities"].cpu().clone())
        self._sum, self._weight = state["baseline"]
        self.baseline = self._sum / self._weight if self._weight else 0.0


class RegularizedEvolution(Searcher):
    """Evolution in which the oldest dies: the best of a few drawn members gets a child with one other operation.

    Attributes:
        population: places of the living in ``history``, the oldest first.

    Args:
        population_size: so many random architectures are told first, and so many live.
        tournament_size: members that are drawn, with replacement, to be parent.
        generator: see ``Searcher``.

    Raises:
        ValueError: a size is below 1.

    Source:
        official code, which draws from Python's own generator and never seeds it.

    Example:
        >>> search = RegularizedEvolution(population_size=2, tournament_size=2)
        >>> for accuracy in (0.5, 0.9, 0.7):
        ...     search.tell(search.ask(), accuracy)
        >>> search.population, search.best()[1]
        ([1, 2], 0.9)
    """

    def __init__(
        self, population_size: int = 50, tournament_size: int = 10, *, generator: torch.Generator | None = None
    ) -> None:
        super().__init__(generator=generator)
        for name, size in (("population_size", population_size), ("tournament_size", tournament_size)):
            if size < 1:
                raise ValueError(f"{name}={size}: give at least 1")
        self.population_size, self.tournament_size = population_size, tournament_size
        self.population: list[int] = []

    def ask(self, draws: Array | None = None, position: int | None = None, choice: int | None = None) -> Tensor:
        """A random architecture until enough were told, then a child.

        What is asked before the answers of the first ``population_size`` are there is random.

        Args:
            draws: (tournament_size,) places in the population, 0 = the oldest, in place of random ones.
            position: the edge that changes, 0..27, in place of a random one.
            choice: which of the six other operations it gets, 0..5 in rising order, in place of a random one.

        Returns:
            (28,) int64, 0..6.

        Raises:
            ValueError: an argument is out of its range, or given before there are parents.
        """
        if len(self.population) < self.population_size:
            if not (draws is None and position is None and choice is None):
                told = f"{len(self.population)} of {self.population_size}"
                raise ValueError(
                    f"draws, position and choice belong to a child, and {told} members are told; leave them out"
                )
            return torch.tensor(self._integers(NONE, len(EDGES)))
        size = len(self.population)
        members = self._integers(size, self.tournament_size) if draws is None else _whole("draws", draws, size)
        if len(members) != self.tournament_size:
            raise ValueError(f"draws has {len(members)} members; the tournament is one of {self.tournament_size}")
        parent = max((self.history[self.population[member]] for member in members), key=lambda told: told[1])[0]
        [edge] = self._integers(len(EDGES), 1) if position is None else _whole("position", [position], len(EDGES))
        [other] = self._integers(NONE - 1, 1) if choice is None else _whole("choice", [choice], NONE - 1)
        child = parent.clone()
        child[edge] = other + (other >= int(parent[edge]))
        return child

    def slimmed_candidates(self, n: int = 10) -> Tensor:
        """The best architecture under random masks that keep two inputs per node; estimate them and take the best.

        Args:
            n: how many; their masks are drawn from the searcher's generator.

        Returns:
            (n, 28) int64, 7 where an edge is dropped.

        Raises:
            ValueError: ``n`` is below 1, or nothing was told yet.
        """
        return slim_with_masks(self.best()[0], slim_masks(self.generator, n))

    def _learn(self, sample: Tensor, accuracy: float) -> None:
        self.population = [*self.population, len(self.history) - 1][-self.population_size :]

    def _arguments(self) -> dict[str, Any]:
        return {"population_size": self.population_size, "tournament_size": self.tournament_size}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See ``Searcher``."""
        super().load_state_dict(state)
        told = len(self.history)
        self.population = list(range(max(0, told - self.population_size), told))


def _fraction(accuracy: float) -> float:
    accuracy = float(accuracy)
    if not 0 <= accuracy <= 1:  # NaN is not, either
        raise ValueError(f"accuracy={accuracy} is not in [0, 1]; give a fraction of 1, and 0 for what diverged")
    return accuracy


def _whole(name: str, values: Array, below: int) -> list[int]:
    numbers = np.asarray(values)
    if numbers.ndim != 1 or numbers.dtype.kind not in "iu" or ((numbers < 0) | (numbers >= below)).any():
        raise ValueError(f"{name}={numbers.tolist()}: give whole numbers from 0 to {below - 1}")
    return [int(number) for number in numbers]
