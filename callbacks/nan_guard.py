"""NaNGuard: a loss or a gradient that is not finite, or far too large a loss, never reaches the weights."""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from lit_methods.functional.processes import gather_objects
from lit_methods.functional.suggestions import shorten

FILE = "nan_batches.jsonl"
_KEPT = 1000  # batches of one step at most; without steps there would be ever more
_SHOWN = 3  # parameters and samples that a message names; the file names all samples


class NonFiniteError(MisconfigurationException):
    """Training met NaN or infinity. Nearly always a setting or the data, so the command line shows it as one line."""


@dataclass
class _Seen:
    """What is known of a batch until the optimiser steps; its pictures are not kept."""

    epoch: int
    batch_idx: int
    index: Tensor | None
    inputs: Tensor  # () norm of everything in it that is a float
    losses: list[Tensor] = field(default_factory=list)


class NaNGuard(Callback):
    """Stop a run whose loss or gradient is NaN or infinite, or leave such steps out.

    The check comes between the backward pass and the optimiser's step. A bad step is not taken: parameters, momentum
    and Adam's moments stay as they are, and buffers (the running statistics of batch norm, which the forward pass has
    spoiled already) go back to what they were before. So the last checkpoint is always a good one. Weights that
    overflow by themselves are refused when a checkpoint is about to be written, except in files of weights alone
    (``save_weights_only``), of which Lightning tells no callback. With several processes, one bad rank makes all of
    them stop or skip. Schedules and ``global_step`` count a skipped step. Under ``accumulate_grad_batches=N`` all N
    batches of the step are left out. Optimisers must leave parameters without a gradient alone, as all of torch's do
    but LBFGS. Steps that a method takes past Lightning (``use_pl_optimizer=False``) are not seen.

    Each bad batch becomes one line of JSON in ``nan_batches.jsonl`` in the run's directory: ``step``, ``epoch``,
    ``batch_idx``, ``rank``, ``samples`` (its ``batch["index"]``, where it has one), ``loss``, ``not_finite`` (which of
    input, loss, gradient and weights, a loss above ``max_loss`` included) and ``parameters`` (the first few with a bad
    gradient). Where only the gradient is bad, all batches of the step are listed, since any of them may be the reason.

    Under ``16-mixed`` infinite gradients are the loss scaler's daily work: it skips the step and lowers its scale. They
    count here only once the scale is below 1, where it can no longer be the reason; a bad loss counts at once.

    Args:
        action: ``"stop"`` raises at the first bad step; ``"skip"`` leaves bad steps out.
        max_skips: for ``"skip"``: how many steps in total over the whole run, parts before a resume included; one more
            stops it.
        max_loss: a loss above is as bad as one that is not finite; ``None``: any finite one is good.

    Raises:
        ValueError: an unknown action, ``max_skips`` below 1, or a ``max_loss`` that is not positive.
        NonFiniteError: during training, on every process.

    Example:
        >>> NaNGuard(action="skip", max_skips=3).summary()
        {}
    """

    def __init__(
        self, action: Literal["stop", "skip"] = "stop", max_skips: int = 10, max_loss: float | None = None
    ) -> None:
        if action not in ("stop", "skip"):
            raise ValueError(f"action={action!r} must be 'stop' or 'skip'")
        if max_skips < 1:
            raise ValueError(f"max_skips={max_skips} must be at least 1; action='stop' skips nothing")
        if max_loss is not None and not max_loss > 0:
            raise ValueError(f"max_loss={max_loss} must be positive")
        self.action, self.max_skips, self.max_loss = action, max_skips, math.inf if max_loss is None else max_loss
        self.skipped = 0
        self._module: LightningModule | None = None
        self._buffers = _Buffers(nn.Module())
        self._window: deque[_Seen] = deque(maxlen=_KEPT)  # batches since the last optimiser step
        self._stepped = self._dropped = False  # in this batch
        self._clip: int | float | None = None  # while there are no gradients; clipping by value would fail

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """A new run, until a checkpoint says otherwise."""
        if stage == "fit":
            self.skipped = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look up the buffers; batches of an earlier fit are forgotten."""
        self._module = pl_module
        self._begin_step(trainer)
        self.start_afresh()

    def start_afresh(self) -> None:
        """The network was replaced, perhaps after this callback has noted its buffers."""
        if self._module is not None:
            self._buffers = _Buffers(self._module)
            self._buffers.note()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Note the batch, and the buffers as they are before the first batch of a step."""
        if not self._window:
            self._buffers.note()
        index = batch.get("index") if isinstance(batch, Mapping) else None
        floats = [tensor for tensor in _tensors(batch) if tensor.is_floating_point()]
        self._window.append(_Seen(trainer.current_epoch, batch_idx, index, _norm(floats)))

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Note the loss; asking for its value here would make a GPU wait."""
        if self._window:  # not so in a method's own backward pass outside the batches
            self._window[-1].losses.append(loss.detach())

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Check losses and gradients with one question to the device; on trouble raise, or let nothing be stepped."""
        self._stepped = True
        # a norm may also overflow where every value is finite: then nothing is found below
        limit = self.max_loss / self._factor(trainer)
        fine = [_norm(self._gradients(trainer, optimizer)).isfinite()]
        fine += [(loss.isfinite() & (loss <= limit)).all() for seen in self._window for loss in seen.losses]
        bad = torch.stack([~value.to(pl_module.device) for value in fine]).any()
        if not trainer.strategy.reduce(bad.float(), reduce_op="sum"):  # equal on all ranks
            return
        found = gather_objects((self._batches(trainer), self._bad_gradients(trainer, pl_module, optimizer)))
        batches = [line for lines, _ in found for line in lines]
        gradients: list[str] = next((names for _, names in found if names), [])
        if not gradients and not any("loss" in line["not_finite"] for line in batches):
            return
        blamed, spoiled = [line for line in batches if line["not_finite"]] or batches, _spoiled(pl_module)
        self._buffers.restore()
        if not self._dropped:  # the first of several optimisers in this batch
            also = ["gradient"] * bool(gradients) + ["weights"] * bool(spoiled)
            for line in blamed:
                line["not_finite"] += also
                line["parameters"] = gradients[:_SHOWN]
            self._write(trainer, blamed)
            self._stop_or_count(trainer, blamed, spoiled)
        self._dropped = True
        _drop_step(optimizer, _scaler(trainer))
        self._clip, trainer.gradient_clip_val = self._clip or trainer.gradient_clip_val, None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """After a step the next batch begins a new one."""
        if self._stepped:
            self._begin_step(trainer)

    def _begin_step(self, trainer: Trainer) -> None:
        self._window.clear()
        self._stepped = self._dropped = False
        if self._clip is not None:
            trainer.gradient_clip_val, self._clip = self._clip, None

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Weights may overflow from finite gradients: do not let them replace a good checkpoint."""
        if spoiled := _spoiled(pl_module):
            raise NonFiniteError(
                f"step {trainer.global_step}: {shorten(spoiled, _SHOWN)} not finite any more: training has diverged, "
                f"so no checkpoint is written and the last one stays; {_CURE}"
            )

    def state_dict(self) -> dict[str, Any]:
        """Plain types."""
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Skips of the earlier part of the run count; the best checkpoint, tested after the fit, may know fewer."""
        self.skipped = max(self.skipped, state_dict["skipped"])

    def summary(self) -> dict[str, int]:
        """``nan_guard/skipped_steps`` for ``summary.json``, where any were skipped."""
        return {"nan_guard/skipped_steps": self.skipped} if self.skipped else {}

    # -- what was it --------------------------------------------------------------------------------------------------

    def _gradients(self, trainer: Trainer, optimizer: Optimizer) -> list[Tensor]:
        scaler = _scaler(trainer)
        if scaler is not None and scaler.get_scale() >= 1:
            return []  # the scaler looks at them itself
        return [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]

    def _bad_gradients(self, trainer: Trainer, module: LightningModule, optimizer: Optimizer) -> list[str]:
        bad = {id(grad) for grad in self._gradients(trainer, optimizer) if not grad.isfinite().all()}
        return [name for name, p in module.named_parameters() if id(p.grad) in bad]

    @staticmethod
    def _factor(trainer: Trainer) -> float:
        """What a noted loss, that of the backward pass, is multiplied by to be the method's."""
        scaler = _scaler(trainer)
        return trainer.accumulate_grad_batches / (scaler.get_scale() if scaler is not None else 1.0)

    def _batches(self, trainer: Trainer) -> list[dict[str, Any]]:
        """One line for every batch of the step on this process."""
        factor = self._factor(trainer)
        lines = []
        for seen in self._window:
            values = [float(loss) * factor for loss in seen.losses]
            wrong = [name for name, bad in (
                ("input", not seen.inputs.isfinite()),
                ("loss", not all(math.isfinite(value) and value <= self.max_loss for value in values)),
            ) if bad]  # fmt: skip
            lines.append({
                "step": trainer.global_step,
                "epoch": seen.epoch,
                "batch_idx": seen.batch_idx,
                "rank": trainer.global_rank,
                "samples": None if seen.index is None else seen.index.tolist(),
                "loss": [value if math.isfinite(value) else str(value) for value in values],  # JSON has no NaN
                "not_finite": wrong,
            })  # fmt: skip
        return lines

    def _write(self, trainer: Trainer, lines: list[dict[str, Any]]) -> None:
        if trainer.is_global_zero:
            path = Path(trainer.default_root_dir, FILE)
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(line) + "\n" for line in lines)

    def _stop_or_count(self, trainer: Trainer, lines: list[dict[str, Any]], spoiled: list[str]) -> None:
        first = lines[0]
        where = f"step {first['step']} (epoch {first['epoch']}, batch {first['batch_idx']}"
        where += f", rank {first['rank']}" if trainer.world_size > 1 else ""
        where += f", samples {shorten(first['samples'], _SHOWN)}" if first["samples"] else ""
        fault = f"{', '.join(first['not_finite'])} not finite"
        if first["not_finite"] == ["loss"] and all(isinstance(value, float) for value in first["loss"]):
            fault = f"loss {max(first['loss']):g}, above max_loss={self.max_loss:g}"
        what = f"{where}): {fault}; see {Path(trainer.default_root_dir, FILE)}"
        if spoiled:
            raise NonFiniteError(f"{what}. The weights were spoiled before ({shorten(spoiled, _SHOWN)}): {_CURE}")
        if self.action == "stop":
            cure = "look at these samples" if "input" in first["not_finite"] else _CURE
            raise NonFiniteError(f"{what}. The step was not taken: {cure}, or go on with NaNGuard(action='skip')")
        if self.skipped >= self.max_skips:
            raise NonFiniteError(f"{what}. All max_skips={self.max_skips} skips are used up: {_CURE}")
        self.skipped += 1
        rank_zero_warn(f"{what}. Skipped, {self.skipped} of at most {self.max_skips}")


_CURE = "lower the learning rate, or set trainer.gradient_clip_val"


class _Buffers:
    """A copy of a module's buffers, one tensor per type: two kernels for hundreds of small buffers."""

    def __init__(self, module: nn.Module) -> None:
        self._places: dict[tuple[torch.device, torch.dtype], list[tuple[nn.Module, str]]] = {}
        for part in module.modules():
            for name, buffer in part.named_buffers(recurse=False):
                self._places.setdefault((buffer.device, buffer.dtype), []).append((part, name))
        self._copies: list[Tensor] = []

    def _all(self) -> Iterator[list[Tensor]]:
        for places in self._places.values():
            yield [getattr(part, name) for part, name in places]

    def note(self) -> None:
        self._copies = [torch.cat([buffer.flatten() for buffer in buffers]) for buffers in self._all()]

    def restore(self) -> None:
        for buffers, copy in zip(self._all(), self._copies, strict=True):
            for buffer, old in zip(buffers, copy.split([buffer.numel() for buffer in buffers]), strict=True):
                buffer.copy_(old.view_as(buffer))


def _norm(tensors: list[Tensor]) -> Tensor:
    """A number that is not finite if any value in the tensors is not."""
    return get_total_norm([tensor.detach() for tensor in tensors])


def _spoiled(module: nn.Module) -> list[str]:
    """Parameters that are not finite."""
    if _norm(list(module.parameters())).isfinite():
        return []
    return [name for name, p in module.named_parameters() if not p.isfinite().all()]


def _tensors(data: Any) -> Iterator[Tensor]:
    if isinstance(data, Tensor):
        yield data
    elif isinstance(data, Mapping | list | tuple):
        for value in data.values() if isinstance(data, Mapping) else data:
            yield from _tensors(value)


def _scaler(trainer: Trainer) -> Any:
    return getattr(trainer.precision_plugin, "scaler", None)


def _drop_step(optimizer: Optimizer, scaler: Any) -> None:
    if scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False):
        # a fused optimiser under the scaler asks for gradients: with a bad one among them it does nothing
        next(p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None).fill_(torch.nan)
    else:
        optimizer.zero_grad(set_to_none=True)  # zeros would still be moved by momentum and weight decay
