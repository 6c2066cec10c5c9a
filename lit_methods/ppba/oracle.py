"""The only door between an attack and its black box: it counts, checks, pads, and asks nothing twice."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_methods.ppba.black_box import BlackBox
from lit_methods.ppba.functional import margin_loss
from lit_methods.ppba.identity import image_key
from lit_methods.ppba.ledger import Answer, Ledger

Render = Callable[[Tensor], Tensor]  # places (k',) among the rows of a question -> their images (k', n, C, H, W)


class Goal(ABC):
    """What an attack wants: a loss that falls, and when it is there.

    Attributes:
        labels: what the loss takes beside the scores, (N,) tensor, or a list with one entry per image.
        true_labels: (N,) int64, where ``labels`` are classes to reach; ``None`` where they are not known.
    """

    labels: Tensor | Sequence[Any]
    true_labels: Tensor | None = None

    @abstractmethod
    def measure(self, scores: Any, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Loss (k,) and predicted class (k,) int64 from the black box's scores for k images; NaN and -1 for none."""

    @abstractmethod
    def reached(self, loss: Tensor, pred: Tensor, rows: Tensor) -> Tensor:
        """Whether such an answer is a success, (...,) bool like ``loss``; rows (k,) belong to the first dimension."""

    @abstractmethod
    def pointless(self, pred: Tensor) -> Tensor:
        """Images (N,) bool that there is no point in attacking, by the predictions (N,) for the clean ones."""


class ClassGoal(Goal):
    """Another class than the label, or the label where ``targeted``.

    Args:
        labels: (N,) int64.
        targeted: whether ``labels`` are the classes to reach.
        loss: ``"margin"`` in logits, or ``"nats"``: the cross entropy, negative where it is to rise.
        true_labels: (N,) int64, where ``targeted``.
    """

    labels: Tensor

    def __init__(
        self, labels: Tensor, targeted: bool, loss: Literal["margin", "nats"], true_labels: Tensor | None = None
    ) -> None:
        self.labels, self.targeted, self.loss, self.true_labels = labels, targeted, loss, true_labels
        self._looked = False

    def measure(self, scores: Any, rows: Tensor) -> tuple[Tensor, Tensor]:
        """From logits (k, classes)."""
        try:
            logits = torch.as_tensor(scores).to(self.labels.device)
        except (TypeError, ValueError, RuntimeError):
            raise ValueError(
                f"model_fn returned a {type(scores).__name__} that is no array; give logits (N, classes), or for a "
                "service loss_fn=label_score_loss or HTTPLabelService(classes=...)"
            ) from None
        if logits.ndim != 2 or len(logits) != len(rows):
            raise ValueError(
                f"model_fn returned scores of shape {tuple(logits.shape)} for {len(rows)} images; give (N, classes), "
                "or loss_fn=label_score_loss for a service that returns labels"
            )
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if not self._looked:
            self._look(logits)
        labels = self.labels[rows]
        if self.loss == "margin":
            loss = margin_loss(logits, labels, self.targeted)
        else:
            nats = F.cross_entropy(logits, labels, reduction="none")
            loss = nats if self.targeted else -nats
        unusable = logits.isnan().any(1)
        return loss.double().masked_fill(unusable, math.nan), logits.argmax(1).masked_fill(unusable, -1)

    def _look(self, logits: Tensor) -> None:
        """The first answer shows what kind of model this is."""
        classes = logits.shape[1]
        for name, labels in (("labels", self.labels), ("true_labels", self.true_labels)):
            if labels is not None and len(odd := labels[(labels < 0) | (labels >= classes)]):
                raise ValueError(
                    f"{name} holds the class {odd[0]}, but model_fn scores {classes} classes, 0 to {classes - 1}"
                )
        if not len(logits := logits[~logits.isnan().any(1)]):
            return
        self._looked = True
        sums = logits.double().sum(1)
        if (logits >= 0).all() and (sums - 1).abs().max() < 1e-3:
            raise ValueError(
                "model_fn returns probabilities (no score is negative, and each image's add up to 1), and the attack "
                "needs logits: leave the softmax out, or give model_fn=lambda images: model(images).log()"
            )

    def reached(self, loss: Tensor, pred: Tensor, rows: Tensor) -> Tensor:
        """The prediction decides; with a margin that has to be zero, too."""
        labels = self.labels[rows].view(-1, *[1] * (pred.ndim - 1))
        moved = (pred == labels) if self.targeted else (pred != labels)
        there = loss <= 0 if self.loss == "margin" else torch.ones_like(moved)
        return moved & there & (pred >= 0)

    def pointless(self, pred: Tensor) -> Tensor:
        """Those that are wrong, or belong to the class to reach."""
        known = self.true_labels if self.targeted else self.labels
        if known is None:
            return torch.zeros_like(pred, dtype=torch.bool)
        return (pred != known) | (self.labels == known) if self.targeted else pred != known


class CustomGoal(Goal):
    """A loss of the user's that is zero on success.

    Args:
        labels: what ``loss_fn`` takes beside the scores: (N,) tensor, or a list with one entry per image.
        loss_fn: (scores, labels) -> (N,).
    """

    def __init__(self, labels: Tensor | Sequence[Any], loss_fn: Callable[[Any, Any], Tensor]) -> None:
        self.labels, self.loss_fn = labels, loss_fn

    def measure(self, scores: Any, rows: Tensor) -> tuple[Tensor, Tensor]:
        """From whatever ``loss_fn`` takes."""
        labels = self.labels[rows] if isinstance(self.labels, Tensor) else [self.labels[row] for row in rows.tolist()]
        loss = torch.as_tensor(self.loss_fn(scores, labels)).to(rows.device)
        if loss.shape != rows.shape:
            raise ValueError(f"loss_fn must give one value per image, {tuple(rows.shape)}, got {tuple(loss.shape)}")
        classes = isinstance(scores, Tensor) and scores.ndim == 2
        return loss.double(), scores.argmax(1).to(rows.device) if classes else torch.full_like(rows, -1)

    def reached(self, loss: Tensor, pred: Tensor, rows: Tensor) -> Tensor:
        """The loss alone decides."""
        return loss <= 0

    def pointless(self, pred: Tensor) -> Tensor:
        """None: what is wrong is not known."""
        return torch.zeros_like(pred, dtype=torch.bool)


class Oracle:
    """Ask a black box about candidates for some images.

    Args:
        model_fn: the black box.
        goal: what its scores are measured by.
        images: (N, C, H, W), for identity and number.
        ids: (N,) int64.
        ledger: what was answered before, and where new answers go.
        pad_batch: ask about exactly so many images at once; 0 about as many as there are.

    Attributes:
        queries: (N,) int64, counted so far.
        checks: (N,) int64, images shown beside them.
        labels: N plain values; part of an image's identity in the ledger.
    """

    def __init__(
        self,
        model_fn: BlackBox,
        goal: Goal,
        images: Tensor,
        ids: Tensor,
        ledger: Ledger | None = None,
        pad_batch: int = 0,
    ) -> None:
        self.model_fn, self.goal, self.ledger, self.pad_batch = model_fn, goal, ledger, pad_batch
        self.eight_bit = bool(getattr(model_fn, "eight_bit", False))
        self.ids = ids.tolist()
        self.labels = goal.labels.tolist() if isinstance(goal.labels, Tensor) else list(goal.labels)
        self.queries = torch.zeros(len(images), dtype=torch.int64, device=images.device)
        self.checks = torch.zeros_like(self.queries)
        self._asked = [0] * len(images)
        if ledger is not None:
            ledger.begin(self.ids, [image_key(i, label) for i, label in zip(images, self.labels, strict=True)])

    def ask(
        self, rows: Tensor, render: Render, count: int = 1, counts_as: Literal["query", "check", "nothing"] = "query"
    ) -> tuple[Tensor, Tensor]:
        """Ask about ``count`` candidates for each of some images.

        Args:
            rows: (k,) which images.
            render: makes the candidates of those that were not answered before.
            count: n.
            counts_as: what goes up by ``count`` for each.

        Returns:
            Loss (k, n) float64 and predicted class (k, n) int64.
        """
        if counts_as != "nothing":
            (self.queries if counts_as == "query" else self.checks)[rows] += count
        loss = torch.full((len(rows), count), math.nan, dtype=torch.float64, device=rows.device)
        pred = torch.full_like(loss, -1, dtype=torch.int64)
        missing = torch.ones_like(pred, dtype=torch.bool)
        if self.ledger is not None:
            self._recall(rows, loss, pred, missing)
        lacking = missing.any(1).nonzero().squeeze(1)
        most = self._most()
        for part in lacking.split(max(1, most // count) if most else max(1, len(lacking))):
            if len(part):
                lacks, size = missing[part], most or len(part) * count
                candidates = render(part)
                candidates = candidates.flatten(0, 1) if lacks.all() else candidates[lacks]
                for images, which in zip(candidates.split(size), lacks.nonzero().split(size), strict=True):
                    place, number = part[which[:, 0]], which[:, 1]
                    loss[place, number], pred[place, number] = self._forward(images, rows[place])
                    if self.ledger is not None:  # at once: the next one may never be answered
                        self._note(rows[place], number, loss[place, number], pred[place, number])
        for row in rows.tolist():
            self._asked[row] += count
        return loss, pred

    def _most(self) -> int | None:
        """How many images go to the black box at once."""
        limits = [limit for limit in (self.pad_batch, getattr(self.model_fn, "max_batch", None)) if limit]
        return min(limits) if limits else None

    def _forward(self, candidates: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        number = len(rows)
        if self.pad_batch and (lacking := (self._most() or 0) - number) > 0:  # rows of convolutions depend on the shape
            candidates = torch.cat([candidates, candidates[:1].expand(lacking, -1, -1, -1)])
            rows = torch.cat([rows, rows[:1].expand(lacking)])
        with torch.no_grad():
            loss, pred = self.goal.measure(self.model_fn(candidates), rows)
        return loss[:number], pred[:number]

    def _recall(self, rows: Tensor, loss: Tensor, pred: Tensor, missing: Tensor) -> None:
        """Fill in what the ledger knows, and take it off ``missing``; all are (k, n)."""
        assert self.ledger is not None
        for place, row in enumerate(rows.tolist()):
            for number in range(loss.shape[1]):
                answer = self.ledger.known(self.ids[row], self._asked[row] + number)
                if answer is None:
                    break
                loss[place, number], pred[place, number] = answer
                missing[place, number] = False

    def _note(self, rows: Tensor, numbers: Tensor, loss: Tensor, pred: Tensor) -> None:
        assert self.ledger is not None
        said: dict[int, list[Answer]] = {}
        first: dict[int, int] = {}
        for row, number, *answer in zip(*(v.tolist() for v in (rows, numbers, loss, pred)), strict=True):
            said.setdefault(row, []).append(Answer(*answer))
            first.setdefault(row, self._asked[row] + number)
        self.ledger.note([self.ids[row] for row in said], list(first.values()), list(said.values()))
