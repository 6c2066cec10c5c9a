"""The account of a batch under attack: what has become of every image, in the ledger and in the result."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lit_methods.ppba.eight_bits import to_eight_bits
from lit_methods.ppba.film import Film
from lit_methods.ppba.oracle import Oracle
from lit_methods.ppba.walk import Step, Walk


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


class Account:
    """What has become of every image so far.

    Args:
        oracle: answers, and counts what it was asked.
        images: ``(N, C, S, S)`` as they were.
        steps: most iterations.
        max_queries: per image, for the ledger's lines.
        films: ids of images whose path is kept.
    """

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

    def settle_clean(self, skipped: Tensor, failed: Tensor, solved: Tensor, pred: Tensor) -> None:
        """Images that need no attack, or cannot be attacked; all are ``(N,)``, bool and int64 classes."""
        self.skipped, self.failed, self.success, self.preds = skipped, failed, solved, pred
        self._finish((skipped | failed | solved).nonzero().squeeze(1))

    def book(self, walk: Walk, number: int, step: Step) -> None:
        """Write down iteration ``number``, from 0; images that are finished leave the walk."""
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
        """Finish those of the walk's k images, ``(k,)`` bool."""
        rows = walk.rows[which]
        self.adv[rows], self.unclipped[rows] = walk.current(which)
        walk.leave(which, self.history)
        for row in rows.tolist():
            if film := self.films.get(self.oracle.ids[row]):
                film.end(self.steps - 1, self.adv[row])
        self._finish(rows)

    def _finish(self, rows: Tensor) -> None:
        self.rounded[rows] = self.success[rows]
        if len(solved := rows[self.success[rows]]) and not self.oracle.eight_bit:
            loss, pred = self.oracle.ask(
                solved, lambda part: to_eight_bits(self.adv[solved[part], None]), counts_as="check"
            )
            self.rounded[solved] = self.oracle.goal.reached(loss, pred, solved).squeeze(1)
        if self.oracle.ledger is not None:
            l2 = self._l2()
            for row in rows.tolist():
                self.oracle.ledger.finish(self.oracle.ids[row], self._line(row, l2[row]))

    def _l2(self) -> Tensor:
        return (self.adv - self.images).flatten(1).norm(dim=1)

    def _line(self, row: int, l2: Tensor) -> dict[str, Any]:
        label, true = self.oracle.labels[row], self.oracle.goal.true_labels
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
        """The account as it stands."""
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
