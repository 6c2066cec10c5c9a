"""Base of the attacks: a batch of images goes in, iteration by iteration, until each is solved or its budget spent.

Each iteration asks a black box about candidates for all images that are left. Every image has its own random numbers,
so what becomes of it does not depend on its company.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from lit_methods.ppba.account import Account, AttackResult
from lit_methods.ppba.black_box import BlackBox, ModelBlackBox
from lit_methods.ppba.eight_bits import to_eight_bits as to_eight_bits
from lit_methods.ppba.functional import LowFrequencyProjection
from lit_methods.ppba.identity import tensor_key
from lit_methods.ppba.ledger import Ledger
from lit_methods.ppba.oracle import ClassGoal, Goal, Oracle
from lit_methods.ppba.walk import Walk

PADDED = 8  # images per question with pad_batch=True


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
    loss: ClassVar[Literal["margin", "nats"]] = "nats"  # of ClassGoal

    def __init__(self, *, eps: float, max_queries: int, targeted: bool, seed: int, pad_batch: bool | int) -> None:
        check_positive(eps=eps)
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

    def goal(self, labels: Any, true_labels: Tensor | None = None) -> Goal:
        """What is to be reached; arguments as in ``__call__``."""
        if not isinstance(labels, Tensor):
            raise ValueError(
                f"labels must be a tensor (N,) of class ids, got a {type(labels).__name__}; sets of names are for "
                "PPBAAttack(loss_fn=label_score_loss)"
            )
        return ClassGoal(labels, self.targeted, self.loss, true_labels)

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
        labels, ids, true_labels = self._check(images, labels, image_ids, true_labels)
        images = images.detach()
        model_fn = ModelBlackBox(model_fn) if isinstance(model_fn, nn.Module) else model_fn
        if ledger is not None:
            asked = model_fn.identity() if isinstance(model_fn, ModelBlackBox) else {}
            ledger.start(self.settings() | asked | ({} if draws is None else {"draws": tensor_key(draws)}))
        goal = self.goal(labels) if true_labels is None else self.goal(labels, true_labels)
        oracle = Oracle(model_fn, goal, images, ids, ledger, self.pad_batch)
        steps = (self.max_queries - self.first_queries) // self.step_queries
        if draws is not None:
            if draws.ndim < 3 or draws.shape[1] != len(images):
                raise ValueError(f"draws must be (T, N, ...) for {len(images)} images, got {tuple(draws.shape)}")
            steps = min(steps, len(draws))
        account = Account(oracle, images, steps, self.max_queries, films)
        left, loss = self._look_at_the_clean_images(oracle, account, images)
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

    def _look_at_the_clean_images(self, oracle: Oracle, account: Account, images: Tensor) -> tuple[Tensor, Tensor]:
        """Settle those that need no attack; rows and losses of the others."""
        rows = torch.arange(len(images), device=images.device)
        if not len(rows):
            return rows, torch.zeros(0, dtype=torch.float64, device=images.device)
        answers = oracle.ask(rows, lambda part: images[part, None], counts_as="nothing")
        loss, pred = (answer.squeeze(1) for answer in answers)
        failed = loss.isnan()
        skipped = oracle.goal.pointless(pred) & ~failed
        solved = oracle.goal.reached(loss, pred, rows) & ~skipped & ~failed
        oracle.queries[~skipped] = self.first_queries  # free for some attacks, and for images that are skipped
        account.settle_clean(skipped, failed, solved, pred)
        left = rows[~(skipped | failed | solved)]
        return left, loss[left]

    def _check(
        self, images: Tensor, labels: Any, image_ids: Tensor | None, true_labels: Any
    ) -> tuple[Any, Tensor, Tensor | None]:
        """Refuse what does not belong together; labels, ids and true labels on the device of the images."""
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
        ids: Any = torch.arange(len(images)) if image_ids is None else torch.as_tensor(image_ids)
        if len(ids.unique()) < len(ids):
            raise ValueError(f"image_ids holds an id twice, so two would draw the same random numbers: {ids.tolist()}")
        parts = (labels, ids, true_labels)
        labels, ids, true_labels = (p.to(images.device, torch.int64) if isinstance(p, Tensor) else p for p in parts)
        return labels, ids, true_labels


def check_positive(**values: float) -> None:
    """Refuse arguments, given by their names, that are not above zero.

    Raises:
        ValueError: one is not.

    Example:
        >>> check_positive(eps=1.0, lr=0.0)
        Traceback (most recent call last):
            ...
        ValueError: lr=0.0 must be positive
    """
    for name, value in values.items():
        if not value > 0:  # true for NaN, too
            raise ValueError(f"{name}={value} must be positive")
