"""What all attacks share: batches, budgets, and an account of every query.

An attack asks a black box about batches of candidates, one iteration for all images that are left. Every image has its
own random numbers, so what becomes of it does not depend on its company.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lit_methods.ppba.black_box import BlackBox, ModelBlackBox
from lit_methods.ppba.film import Film
from lit_methods.ppba.functional import LowFrequencyProjection
from lit_methods.ppba.identity import tensor_key
from lit_methods.ppba.ledger import Ledger
from lit_methods.ppba.oracle import ClassGoal, Goal, Oracle

PADDED = 8  # images per question with pad_batch=True


@dataclass
class AttackResult:
    """What an attack made of N images.

    Args:
        adv: ``(N, C, S, S)`` in [0, 1], the last image of each; where ``success``, the one that succeeded.
        success: ``(N,)`` bool.
        queries: ``(N,)`` int64 spent; 0 where ``skipped``.
        l2: ``(N,)`` norm of ``adv - images``, after clipping to [0, 1].
        history: ``loss`` (T, N) best loss of each iteration, NaN once an image is finished, ``accepted`` (T, N) bool;
            of PPBA also ``z`` (N, m) and ``probabilities`` (3, N, m) at the end; ``films``, image id -> ``Film``, of
            the images that were asked for.
        l2_unclipped: ``(N,)`` norm of the perturbation before clipping to [0, 1].
        skipped: ``(N,)`` bool: wrong from the start, so there was nothing to attack.
        success_uint8: ``(N,)`` bool: still a success after rounding to 8 bits.
        failed: ``(N,)`` bool: the black box gave no usable answer.
        preds: ``(N,)`` int64 class of ``adv``; -1 where it is not known.
        checks: ``(N,)`` int64 images shown to the black box beside the queries: success tests and the 8-bit one.
        ids: ``(N,)`` int64 ids of the images.
    """

    adv: Tensor
    success: Tensor
    queries: Tensor
    l2: Tensor
    history: dict[str, Any] = field(repr=False)
    l2_unclipped: Tensor
    skipped: Tensor
    success_uint8: Tensor
    failed: Tensor
    preds: Tensor
    checks: Tensor
    ids: Tensor


@dataclass
class Step:
    """What one iteration brought, for the k images that are left.

    Args:
        loss: ``(k,)`` best loss; NaN where the answer was of no use.
        accepted: ``(k,)`` whether the image moved.
        solved: ``(k,)`` whether it is a success now.
        pred: ``(k,)`` its class; -1 where not known.
    """

    loss: Tensor
    accepted: Tensor
    solved: Tensor
    pred: Tensor


class Walk(ABC):
    """The state of one attack, for the images that are left.

    Args:
        oracle: answers.
        images: ``(k, C, S, S)`` as they were.
        rows: ``(k,)`` which images of the batch they are.
    """

    def __init__(self, oracle: Oracle, images: Tensor, rows: Tensor) -> None:
        self.oracle, self.images, self.rows = oracle, images, rows

    @abstractmethod
    def draw(self, seed: int, ids: Tensor, number: int) -> Tensor:
        """The random numbers ``(k, ...)`` of one iteration, for the images' ids ``(k,)``."""

    @abstractmethod
    def step(self, draws: Tensor) -> Step:
        """One iteration with its random numbers ``(k, ...)``."""

    @abstractmethod
    def current(self, which: Tensor) -> tuple[Tensor, Tensor]:
        """Images as they are now, in [0, 1], and the norms of their perturbations before clipping, of some of the k."""

    def keep(self, which: Tensor) -> None:
        """Go on with some of the k alone."""
        self.images, self.rows = self.images[which], self.rows[which]

    def leave(self, which: Tensor, history: dict[str, Any]) -> None:  # noqa: B027 - most keep nothing
        """Some of the k are finished: write what is worth keeping into the history."""


class Attack(ABC):
    """Base of the attacks: everything but the walk itself.

    Args:
        eps: radius of the ball around an image.
        max_queries: per image, never exceeded.
        targeted: whether ``labels`` are the classes to reach instead of those to leave.
        seed: of the random streams, together with the image ids.
        pad_batch: ask about a fixed number of images at once (``True`` is 8), so that an image's scores are the same
            bit for bit in any company. Costs forward passes where fewer are left; none of it is counted.

    Raises:
        ValueError: an argument is out of range, or the budget does not pay for one step.
    """

    first_queries: ClassVar[int] = 0  # counted for the clean image
    loss: ClassVar[str] = "nats"  # of ClassGoal

    def __init__(self, *, eps: float, max_queries: int, targeted: bool, seed: int, pad_batch: bool | int) -> None:
        if not eps > 0:
            raise ValueError(f"eps={eps} must be positive")
        if not isinstance(max_queries, int):
            raise ValueError(f"max_queries={max_queries!r} must be a whole number")
        if max_queries < (least := self.first_queries + self.step_queries):
            raise ValueError(
                f"max_queries={max_queries} does not pay for one step of {type(self).__name__}, which takes {least} "
                "queries with what the clean image costs; give more"
            )
        if pad_batch < 0:
            raise ValueError(f"pad_batch={pad_batch} must be True, False or a number of images")
        self.eps, self.max_queries, self.targeted, self.seed = float(eps), max_queries, targeted, seed
        self.pad_batch = PADDED if pad_batch is True else int(pad_batch)

    @property
    @abstractmethod
    def step_queries(self) -> int:
        """Queries of one iteration, per image."""

    @abstractmethod
    def walk(self, oracle: Oracle, images: Tensor, rows: Tensor, loss: Tensor) -> Walk:
        """The state at the start; ``loss`` ``(k,)`` is that of the clean images."""

    def goal(self, labels: Any) -> Goal:
        """What is to be reached."""
        if not isinstance(labels, Tensor):
            raise ValueError(
                f"labels must be a tensor (N,) of class ids, got a {type(labels).__name__}; sets of names are for "
                "PPBAAttack(loss_fn=label_score_loss)"
            )
        return ClassGoal(labels, self.targeted, self.loss)

    def settings(self) -> dict[str, Any]:
        """Everything that the outcome depends on, as plain values."""
        plain = {name: value for name, value in vars(self).items() if isinstance(value, int | float | str | None)}
        if isinstance(projection := getattr(self, "projection", None), LowFrequencyProjection):
            plain["projection"] = f"{projection.dim} of {projection.size}, {tensor_key(projection.indices)}"
        return {"attack": type(self).__name__} | plain

    def __call__(
        self,
        model_fn: BlackBox | Callable[[Tensor], Any] | nn.Module,
        images: Tensor,
        labels: Tensor | Sequence[Any],
        *,
        image_ids: Tensor | None = None,
        draws: Tensor | None = None,
        true_labels: Tensor | None = None,
        ledger: Ledger | None = None,
        films: Sequence[int] = (),
        on_step: Callable[[int, int], None] | None = None,
    ) -> AttackResult:
        """Attack a batch of images.

        Args:
            model_fn: any callable from images (N, C, S, S) in [0, 1], in the dtype of ``images``, to logits
                (N, classes), as a tensor or an array. A network is in eval mode while it is asked.
            images: ``(N, C, S, S)`` float in [0, 1].
            labels: ``(N,)`` int64: the classes to leave, or to reach where the attack is targeted.
            image_ids: ``(N,)`` int64, each once: they decide an image's random numbers together with the seed; 0 to
                N - 1 unless given.
            draws: ``(T, N, ...)`` random numbers in the place of the streams; the attack ends when they run out.
            true_labels: ``(N,)``, for targeted attacks: images that are not classified as these, or belong to the class
                to reach, are skipped.
            ledger: where answers are written down and looked up, so that a killed attack goes on without asking again.
                Of another network given as such it takes no answers; for any other callable, name it in the ledger's
                ``context``.
            films: ids of images whose path is kept.
            on_step: called before each iteration with its number and how many images are left; what it raises ends
                the attack.

        Returns:
            What became of each image.

        Raises:
            ValueError: images are out of range, shapes do not belong together, a label is no class of the model, or
                the model returns probabilities.
        """
        labels, ids = self._check(images, labels, image_ids, true_labels)
        images = images.detach()
        model_fn = ModelBlackBox(model_fn) if isinstance(model_fn, nn.Module) else model_fn
        if ledger is not None:
            asked = model_fn.identity() if isinstance(model_fn, ModelBlackBox) else {}
            ledger.start(self.settings() | asked | ({} if draws is None else {"draws": tensor_key(draws)}))
        named = labels.tolist() if isinstance(labels, Tensor) else labels
        goal = self.goal(labels)
        if isinstance(goal, ClassGoal):
            goal.true_labels = true_labels
        oracle = Oracle(model_fn, goal, images, ids, ledger, named, self.pad_batch)
        steps = (self.max_queries - self.first_queries) // self.step_queries
        if draws is not None:
            if draws.ndim < 3 or draws.shape[1] != len(images):
                raise ValueError(f"draws must be (T, N, ...) for {len(images)} images, got {tuple(draws.shape)}")
            steps = min(steps, len(draws))
        account = _Account(oracle, images, steps, self.max_queries, films)
        left, loss = self._look_at_the_clean_images(oracle, account, images, labels, true_labels)
        walk = self.walk(oracle, images[left], left, loss)
        for number in range(steps):
            if not len(walk.rows):
                break
            if on_step is not None:
                on_step(number, len(walk.rows))
            if draws is None:
                drawn = walk.draw(self.seed, ids[walk.rows], number)
            else:
                drawn = draws[number].to(images.device)[walk.rows]
            account.book(walk, number, walk.step(drawn))
        account.close(walk, torch.ones_like(walk.rows, dtype=torch.bool))
        return account.result()

    def _look_at_the_clean_images(
        self, oracle: Oracle, account: _Account, images: Tensor, labels: Any, true_labels: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Settle those that need no attack; rows and losses of the others."""
        rows = torch.arange(len(images), device=images.device)
        if not len(rows):
            return rows, torch.zeros(0, dtype=torch.float64, device=images.device)
        loss, pred = (answer.squeeze(1) for answer in oracle.ask(rows, lambda part: images[part, None], counted=False))
        oracle.checks.zero_()  # the clean image is a query of some attacks, and free for the others, but never a check
        wrong = torch.zeros_like(rows, dtype=torch.bool)
        if isinstance(oracle.goal, ClassGoal) and (known := true_labels if self.targeted else labels) is not None:
            wrong = pred != known.to(pred.device)
            if self.targeted:
                wrong |= labels == known.to(pred.device)  # there from the start: nothing to attack either
        failed = loss.isnan()
        solved = oracle.goal.reached(loss, pred, rows) & ~wrong & ~failed
        wrong &= ~failed
        oracle.queries[~wrong] = self.first_queries
        account.settle_clean(wrong, failed, solved, pred)
        left = rows[~(wrong | failed | solved)]
        return left, loss[left]

    def _check(
        self, images: Tensor, labels: Any, image_ids: Tensor | None, true_labels: Tensor | None
    ) -> tuple[Any, Tensor]:
        if not isinstance(images, Tensor):
            raise ValueError(f"images must be a float tensor (N, C, S, S), got a {type(images).__name__}")
        if images.ndim != 4 or images.shape[2] != images.shape[3] or not images.is_floating_point():
            raise ValueError(f"images must be float (N, C, S, S), square, got {images.dtype} {tuple(images.shape)}")
        if len(images) and not (images.min() >= 0 and images.max() <= 1):  # false for NaN, too
            raise ValueError(
                f"images must lie in [0, 1], not {images.min():.3g}..{images.max():.3g}; do not normalise them: wrap "
                "the model, ModelBlackBox(model, mean, std)"
            )
        for name, given in (("labels", labels), ("image_ids", image_ids), ("true_labels", true_labels)):
            if given is not None and len(given) != len(images):
                raise ValueError(f"{name} must have one entry for each of the {len(images)} images, got {len(given)}")
            whole = isinstance(given, Tensor) and not given.is_floating_point() and given.dtype != torch.bool
            if isinstance(given, Tensor) and not (whole and given.ndim == 1):
                raise ValueError(f"{name} must be (N,) whole numbers, got {given.dtype} {tuple(given.shape)}")
        if true_labels is not None and not self.targeted:
            raise ValueError("true_labels are for targeted attacks; labels are the true ones here")
        ids = torch.arange(len(images)) if image_ids is None else torch.as_tensor(image_ids)
        if len(ids.unique()) < len(ids):
            raise ValueError(f"image_ids holds an id twice, so two would draw the same random numbers: {ids.tolist()}")
        if isinstance(labels, Tensor):
            labels = labels.to(images.device, torch.int64)
        return labels, ids.to(images.device, torch.int64)


class _Account:
    """What has become of every image so far."""

    def __init__(self, oracle: Oracle, images: Tensor, steps: int, max_queries: int, films: Sequence[int]) -> None:
        number, device = len(images), images.device
        self.oracle, self.images, self.max_queries = oracle, images, max_queries
        self.adv = images.clone()
        self.success = torch.zeros(number, dtype=torch.bool, device=device)
        self.skipped, self.failed, self.rounded = (self.success.clone() for _ in range(3))
        self.preds = torch.full((number,), -1, dtype=torch.int64, device=device)
        self.unclipped = torch.zeros(number, dtype=images.dtype, device=device)
        # made at once: an attack needs no more memory in its last iteration than in its first
        self.loss = torch.full((steps, number), math.nan, dtype=torch.float64, device=device)
        self.accepted = torch.zeros(steps, number, dtype=torch.bool, device=device)
        self.history: dict[str, Any] = {}
        self.films = {image: Film() for image in films if image in oracle.ids}
        self.steps = 0

    def settle_clean(self, wrong: Tensor, failed: Tensor, solved: Tensor, pred: Tensor) -> None:
        """Images that need no attack, or cannot be attacked."""
        self.skipped, self.failed, self.success, self.preds = wrong, failed, solved, pred
        self._finish((wrong | failed | solved).nonzero().squeeze(1))

    def book(self, walk: Walk, number: int, step: Step) -> None:
        """One iteration; images that are finished leave the walk."""
        self.steps = number + 1
        self.loss[number, walk.rows], self.accepted[number, walk.rows] = step.loss, step.accepted
        failed = step.loss.isnan()
        self.success[walk.rows], self.failed[walk.rows] = step.solved, failed
        moved = step.accepted | step.solved | failed  # else the image is still what it was
        self.preds[walk.rows] = torch.where(moved, step.pred, self.preds[walk.rows])
        self._show(walk, number)
        if (gone := step.solved | failed).any():
            self.close(walk, gone)
            walk.keep(~gone)

    def _show(self, walk: Walk, number: int) -> None:
        for place, row in enumerate(walk.rows.tolist()) if self.films else ():
            film = self.films.get(self.oracle.ids[row])
            if film is not None and film.wants(number):
                film.show(number, walk.current(walk.rows == walk.rows[place])[0][0])

    def close(self, walk: Walk, which: Tensor) -> None:
        """These are finished."""
        rows = walk.rows[which]
        self.adv[rows], self.unclipped[rows] = walk.current(which)
        walk.leave(which, self.history)
        for row in rows.tolist():
            if film := self.films.get(self.oracle.ids[row]):
                film.end(self.steps - 1, self.adv[row])
        self._finish(rows)

    def _finish(self, rows: Tensor) -> None:
        self.rounded[rows] = self._verify(rows[self.success[rows]], rows)
        if self.oracle.ledger is not None:
            l2 = self._l2()
            for row in rows.tolist():
                self.oracle.ledger.finish(self.oracle.ids[row], self._line(row, l2[row]))

    def _verify(self, solved: Tensor, rows: Tensor) -> Tensor:
        """Whether each of ``rows`` is a success after rounding to 8 bits; asks about ``solved`` alone."""
        holds = self.success.clone()
        if len(solved) and not self.oracle.eight_bit:
            loss, pred = self.oracle.ask(
                solved, lambda part: to_eight_bits(self.adv[solved[part], None]), counted=False
            )
            holds[solved] = self.oracle.goal.reached(loss, pred, solved).squeeze(1)
        return holds[rows]

    def _l2(self) -> Tensor:
        return (self.adv - self.images).flatten(1).norm(dim=1)

    def _line(self, row: int, l2: Tensor) -> dict[str, Any]:
        label, true = self.oracle.labels[row], getattr(self.oracle.goal, "true_labels", None)
        return {
            "label": sorted(label) if isinstance(label, set | frozenset) else label,
            **({} if true is None else {"true_label": int(true[row])}),
            "success": bool(self.success[row]),
            "queries": int(self.oracle.queries[row]),
            "max_queries": self.max_queries,
            "l2": float(l2),
            "l2_unclipped": float(self.unclipped[row]),
            "skipped": bool(self.skipped[row]),
            "failed": bool(self.failed[row]),
            "success_uint8": bool(self.rounded[row]),
            "pred": int(self.preds[row]),
            "checks": int(self.oracle.checks[row]),
        }

    def result(self) -> AttackResult:
        return AttackResult(
            adv=self.adv,
            success=self.success,
            queries=self.oracle.queries,
            l2=self._l2(),
            history={
                "loss": self.loss[: self.steps],
                "accepted": self.accepted[: self.steps],
                "films": {image: film for image, film in self.films.items() if film.frames},
            }
            | self.history,
            l2_unclipped=self.unclipped,
            skipped=self.skipped,
            success_uint8=self.rounded,
            failed=self.failed,
            preds=self.preds,
            checks=self.oracle.checks,
            ids=torch.tensor(self.oracle.ids),
        )


def some(values: Tensor, rows: Tensor) -> Tensor:
    """Rows of a tensor by rising numbers; the tensor itself, uncopied, where these are all.

    Example:
        >>> values = torch.arange(3)
        >>> some(values, torch.arange(3)) is values, some(values, torch.tensor([0, 2]))
        (True, tensor([0, 2]))
    """
    return values if len(rows) == len(values) else values[rows]


def to_eight_bits(images: Tensor) -> Tensor:
    """Images in [0, 1] as they are after saving with 8 bits per channel: the nearest multiples of 1/255.

    Example:
        >>> to_eight_bits(torch.tensor([0.0, 0.0021, 1.0])) * 255
        tensor([  0.,   1., 255.])
    """
    return (torch.floor(images.double().clamp(0, 1) * 255 + 0.5) / 255).to(images.dtype)
