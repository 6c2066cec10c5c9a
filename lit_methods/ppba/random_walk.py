"""PPBA's attack: a random walk over low frequencies whose moves learn from every query."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from lit_methods.ppba.attack import Attack, check_positive
from lit_methods.ppba.functional import (
    CountUpdate,
    LowFrequencyProjection,
    MoveProbability,
    check_walk,
    clip_l2,
    margin_loss,
)
from lit_methods.ppba.oracle import CustomGoal, Goal, Oracle
from lit_methods.ppba.streams import uniform_draws
from lit_methods.ppba.walk import CoefficientWalk, Step, Walk


class PPBAAttack(Attack):
    """Projection and probability-driven black-box attack.

    Each coordinate of a low-frequency perturbation moves by ``-rho``, 0 or ``rho``; a move is kept when the loss falls.

    Args:
        projection: the space in which it walks.
        rho: length of a move, in units of the coefficients.
        eps: radius of the L2 ball around the image, or, for ``norm="linf"``, the largest change of a pixel.
        norm: ``"l2"`` pulls the coefficients back into the ball; ``"linf"`` clips the perturbation.
        max_queries: per image, the clean one included.
        n_samples: candidates per iteration.
        momentum: what older counts are multiplied with when a move is accepted.
        count_update: as in ``MoveProbability``: ``"both"``, ``"ineffective_only"`` (the released code) or ``"fixed"``.
        loss_fn: ``loss_fn(model_fn(images), labels)`` -> (N,), zero on success. With ``margin_loss`` images that are
            wrong from the start are skipped, and a success is a changed prediction; any other decides by itself.
        targeted: whether ``labels`` are the classes to reach; for ``margin_loss``.
        seed: of the random streams, together with the image ids.
        pad_batch: as in ``Attack``.

    Raises:
        ValueError: an argument is out of range, or the budget is smaller than one step.

    Source:
        PPBA, arXiv 2005.03837, and its released code, from which it differs as ``functional.py`` says and in these:
        an image that is wrong from the start costs nothing, one that is a success returns at once, and the budget
        holds all queries, the clean one included. A tie of logits is a success only if the prediction changes.

    Example:
        >>> from lit_methods.ppba.functional import low_frequency_indices
        >>> indices = low_frequency_indices(8, 3, 4, 2, num=24, generator=torch.Generator().manual_seed(0))
        >>> attack = PPBAAttack(LowFrequencyProjection(indices, 8), rho=0.2, eps=3.0, max_queries=300)
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 5))
        >>> images = torch.rand(4, 3, 8, 8)
        >>> result = attack(model, images, model(images).argmax(1))
        >>> bool(result.success.all()), bool((result.l2 <= 3.0).all()), int(result.queries.max()) <= 300
        (True, True, True)
    """

    first_queries = 1
    loss = "margin"

    def __init__(
        self,
        projection: LowFrequencyProjection,
        *,
        rho: float = 0.01,
        eps: float = 5.0,
        norm: Literal["l2", "linf"] = "l2",
        max_queries: int = 2000,
        n_samples: int = 1,
        momentum: float = 1.0,
        count_update: CountUpdate = "both",
        loss_fn: Callable[..., Tensor] = margin_loss,
        targeted: bool = False,
        seed: int = 0,
        pad_batch: bool | int = False,
    ) -> None:
        check_positive(rho=rho)
        if norm not in ("l2", "linf"):
            raise ValueError(f"norm={norm!r} must be 'l2' or 'linf'")
        if n_samples < 1:
            raise ValueError(f"n_samples={n_samples} must be at least 1")
        if targeted and loss_fn is not margin_loss:
            raise ValueError(
                "targeted=True is for margin_loss; a loss_fn of your own says itself what is to be reached"
            )
        check_walk(momentum, count_update)
        self.n_samples = n_samples
        super().__init__(eps=eps, max_queries=max_queries, targeted=targeted, seed=seed, pad_batch=pad_batch)
        self.projection, self.rho, self.norm = projection, rho, norm
        self.momentum, self.count_update, self.loss_fn = momentum, count_update, loss_fn

    @property
    def step_queries(self) -> int:
        """One per candidate."""
        return self.n_samples

    def settings(self) -> dict[str, Any]:
        """As in ``Attack``, with the name of the loss."""
        return super().settings() | {"loss_fn": getattr(self.loss_fn, "__qualname__", repr(self.loss_fn))}

    def goal(self, labels: Any, true_labels: Tensor | None = None) -> Goal:
        """The margin, or whatever ``loss_fn`` says."""
        if self.loss_fn is not margin_loss:
            return CustomGoal(labels, self.loss_fn)
        return super().goal(labels, true_labels)

    def walk(self, oracle: Oracle, images: Tensor, rows: Tensor, loss: Tensor) -> Walk:
        """No perturbation yet, and even probabilities."""
        return _RandomWalk(self, oracle, images, rows, loss)


class _RandomWalk(CoefficientWalk):
    def __init__(self, attack: PPBAAttack, oracle: Oracle, images: Tensor, rows: Tensor, loss: Tensor) -> None:
        super().__init__(attack.projection, oracle, images, rows, loss)
        self.attack = attack
        self.probability = MoveProbability(
            *self.z.shape, momentum=attack.momentum, count_update=attack.count_update, device=images.device
        )

    def draw(self, seed: int, ids: Tensor, number: int) -> Tensor:
        """Uniform, (k, n, m)."""
        return uniform_draws(seed, ids, number, (self.attack.n_samples, self.projection.dim))

    def step(self, draws: Tensor) -> Step:
        moves = self.probability.moves(draws.to(torch.float64))
        candidates = self.z[:, None] + self.attack.rho * moves.to(self.z.dtype)
        if self.attack.norm == "l2":
            candidates = clip_l2(candidates, self.attack.eps)
        loss, pred = self.ask(candidates)
        solved = self.oracle.goal.reached(loss, pred, self.rows)
        accepted = self.probability.update(moves, loss, self.loss)
        # a success with the loss of the incumbent, after a tie, is one all the same
        best = torch.where(solved, -1.0, loss.nan_to_num(nan=torch.inf)).argmin(1, keepdim=True)
        won = solved.gather(1, best).squeeze(1)
        accepted |= won
        chosen = candidates.gather(1, best[..., None].expand(-1, -1, self.z.shape[1])).squeeze(1)
        self.z = torch.where(accepted[:, None], chosen, self.z)
        lowest = loss.gather(1, best).squeeze(1).masked_fill(loss.isnan().any(1) & ~won, torch.nan)
        self.loss = torch.where(accepted, lowest, self.loss)
        return Step(lowest, accepted, won, pred.gather(1, best).squeeze(1))

    def delta(self, z: Tensor) -> Tensor:
        """For ``norm="linf"`` cut to the largest change of a pixel."""
        delta = super().delta(z)
        return delta.clamp(-self.attack.eps, self.attack.eps) if self.attack.norm == "linf" else delta

    def keep(self, which: Tensor) -> None:
        super().keep(which)
        self.probability.keep(which)

    def leave(self, which: Tensor, history: dict[str, Any]) -> None:
        if "z" not in history:
            total, dim = len(self.oracle.ids), self.projection.dim
            history["z"] = self.z.new_zeros(total, dim)
            history["probabilities"] = self.probability.effective.new_full((3, total, dim), 1 / 3)
        history["z"][self.rows[which]] = self.z[which]
        history["probabilities"][:, self.rows[which]] = self.probability.probabilities()[:, which]
