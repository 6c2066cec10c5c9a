"""What the doctor asks of a recipe: does it build, are its data there, does its first step work, does it resume."""

import contextlib
import io
import re
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.accelerators import AcceleratorRegistry, CPUAccelerator, CUDAAccelerator, MPSAccelerator
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor

from callbacks.interruption import Interrupted
from lit_methods.checkpoint_io import readable_size
from lit_methods.cli.endings import mistake
from lit_methods.cli.environment import existing
from lit_methods.cli.errors import root as root_cause
from lit_methods.cli.findings import Report, describe
from lit_methods.cli.given import collect, last
from lit_methods.cli.parsing import RunCLI
from lit_methods.cli.quiet import quiet
from lit_methods.cli.resume_drill import STEPS, DrillError, Outcome, resume_drill, steps_for
from lit_methods.cli.run_directory import place
from lit_methods.functional.suggestions import first_line

_SUSPECTS = (
    "usual suspects: a training loader without state (DataLoader(shuffle=True)), random numbers from a generator that "
    "is in no checkpoint, state set in on_train_epoch_start, nondeterministic GPU kernels"
)
_SHOWN = 8  # of the parts of a batch


class RecipeCheck:
    """One command's recipe, built as ``fit`` builds it, but in a temporary folder.

    Every method reports its lines and returns whether it found no fault.

    Args:
        report: takes the findings.
        words: as after ``python -m lit_methods.fit``.
        run_dir: where the checks may write.
    """

    def __init__(self, report: Report, words: list[str], run_dir: Path) -> None:
        self.report, self.words, self.run_dir = report, words, run_dir
        self.argv = [*words, "--run_dir", str(run_dir)]
        self.cli: RunCLI | None = None
        self.has_weights = True

    def build(self) -> bool:
        """Parse and build; the same one-line errors as ``fit``."""
        given = collect(self.words)
        entry = next((str(p.value) for p in reversed(given) if p.plain_key == "model.base_checkpoint" and p.value), "")
        if not _on_this_machine(entry):
            self.report.warn("recipe", f"model.base_checkpoint={entry!r} is not on this machine yet; fit downloads it")
            self.argv += ["--model.base_checkpoint", "null"]
            self.has_weights = False
        with self._as_fit("recipe") as attempt:
            self.cli = cli = RunCLI("fit", self.argv)
            _require_accelerator(cli.config.trainer.accelerator)
            cli.build()
            run_dir = last(given, "run_dir")
            if run_dir and Path(run_dir).exists():  # fit refuses one that is not empty
                place("fit", run_dir, cli.config.ckpt_path, cli.recipe)
            trainer, size = cli.trainer, sum(parameter.numel() for parameter in cli.model.parameters())
            kind = type(trainer.accelerator).__name__.removesuffix("Accelerator").lower()
            self.report.ok(
                "recipe",
                f"{cli.recipe}: {type(cli.model).__name__} with {size:,} parameters, "
                f"{type(cli.datamodule).__name__ if cli.datamodule else 'no datamodule'}, {trainer.num_devices} {kind} "
                f"device(s) on {trainer.num_nodes} node(s)",
            )
        return attempt.succeeded

    def space(self, root: Path) -> bool:
        """Free space against what the run's checkpoints will take, as ``fit`` looks at it."""
        assert self.cli is not None
        if (checkpoint := self.cli.checkpoint) is None:
            self.report.warn("space", "enable_checkpointing=False: nothing of the run can be continued or evaluated")
            return True
        free = shutil.disk_usage(existing(root)).free
        with self._as_fit("space") as attempt:
            checkpoint.check_room(root.absolute(), free, self.cli.model)
        if attempt.succeeded and not attempt.warned:
            self.report.ok("space", f"{readable_size(free)} free, enough for the run's checkpoints")
        return attempt.succeeded

    def data(self) -> bool:
        """The files on disk, and one batch of every loader."""
        assert self.cli is not None
        data: Any = self.cli.datamodule
        if data is None:
            self.report.fail("data", "the recipe has no data; give --data, or a --config that has it")
            return False
        data.trainer = self.cli.trainer  # it may ask how many processes there are
        if fetches := getattr(data, "download", False):
            data.download = False  # look only
        with self._as_fit("data") as attempt:
            try:
                data.prepare_data()
            except FileNotFoundError as ex:
                if not fetches:
                    raise
                self.report.warn("data", f"{first_line(ex)} It says download=True: fit fetches them.")
                return False
        sound = attempt.succeeded
        for stage, name in (("fit", "train"), ("fit", "val"), ("test", "test")) if sound else ():
            if not is_overridden(f"{name}_dataloader", data):
                continue
            with self._as_fit("data") as attempt:
                data.setup(stage)
                loaders = getattr(data, f"{name}_dataloader")()
                loaders = loaders if isinstance(loaders, list | tuple) else [loaders]
                for loader in loaders:
                    self._describe_loader(name, loader, data)
                if not loaders:
                    self.report.ok("data", f"{name}: no loader")
            sound &= attempt.succeeded
        return sound

    def _describe_loader(self, name: str, loader: Any, data: Any) -> None:
        first = next(iter(loader))
        batch = data.on_after_batch_transfer(first[0] if isinstance(loader, CombinedLoader) else first, 0)
        faults = [fault for path, value in _leaves("", batch) if (fault := _fault(path, value, data))]
        length = f"{len(loader)} batches, " if hasattr(loader, "__len__") else ""
        if faults:
            raise ValueError(f"{name}: {', '.join(faults[:_SHOWN])}")
        parts = [f"{path} {_shape(value)}" for path, value in _leaves("", batch)]
        contents = "; ".join(parts[:_SHOWN]) + (f" and {len(parts) - _SHOWN} more" if len(parts) > _SHOWN else "")
        self.report.ok("data", f"{name}: {length}the first has {contents}")

    def step(self) -> bool:
        """One training and one validation batch through the Trainer, on one device, with everything ``fit`` does."""
        assert self.cli is not None
        if not self.has_weights:
            self.report.warn("step", "not tried, since the trained weights are not here yet")
            return False
        losses = _Losses()
        with self._as_fit("step", tell_warnings=False) as attempt:  # warnings about the one epoch say nothing
            trainer = self.cli.instantiate_trainer(
                fast_dev_run=True,
                devices=1,
                num_nodes=1,
                strategy="auto",
                enable_progress_bar=False,
                enable_model_summary=False,
            )
            trainer.callbacks.append(losses)  # type: ignore[attr-defined]
            trainer.fit(self.cli.model, datamodule=self.cli.datamodule)
            logged = {key: float(value) for key, value in trainer.callback_metrics.items() if value.numel() == 1}
            values = losses.values or logged
            text = ", ".join(f"{key} {value:.4g}" for key, value in values.items()) or "nothing was logged"
            if not all(torch.tensor(list(values.values())).isfinite()):
                raise ValueError(f"{text} in the first batch; look at the data's values, or lower the learning rate")
            self.report.ok("step", f"fit ran for one batch of training and validation: {text}")
        return attempt.succeeded

    def resume(self, steps: int | None, root: Path) -> None:
        """The drill of :mod:`lit_methods.cli.resume_drill`."""
        assert self.cli is not None
        on_cpu = isinstance(self.cli.trainer.accelerator, CPUAccelerator)
        try:
            outcome = resume_drill(self.words, steps or STEPS, root, repeatable=on_cpu)
        except DrillError as ex:
            self.report.fail("resume", f"{ex}; the same words after python -m lit_methods.fit show more")
            return
        except OSError as ex:
            self.report.fail("resume", describe(ex))
            return
        text = _tell(outcome) + ("" if on_cpu else "; with trainer.deterministic=warn, without which GPUs differ")
        if outcome.differences:
            self.report.fail("resume", f"{text}; {_SUSPECTS}; the runs are in {outcome.folder}")
        else:
            self.report.ok("resume", text)
        for callback in self.cli.trainer.callbacks:  # type: ignore[attr-defined]
            if due := [epoch for epoch in _epochs_of(callback, self.cli.model) if epoch >= outcome.epochs]:
                self.report.warn(
                    "resume",
                    f"{type(callback).__name__} acts in epoch {due[0]}, which the drill did not reach; "
                    f"--steps {steps_for(due[0])} does",
                )

    @contextlib.contextmanager
    def _as_fit(self, topic: str, tell_warnings: bool = True) -> Iterator["_Attempt"]:
        """A fault inside becomes the line that ``fit`` would print; what it would warn of becomes a warning.

        Raises:
            SystemExit: ``--print_config`` and the like were answered, or a signal came.
        """
        attempt, said = _Attempt(), io.StringIO()
        fault = ""
        try:
            with contextlib.redirect_stderr(said), quiet(), warnings.catch_warnings(record=True) as caught:
                yield attempt
        except SystemExit as ex:
            if ex.code in (0, None) or isinstance(ex, Interrupted):
                raise
            fault = said.getvalue().strip().removeprefix("error: ") or f"exit code {ex.code}"
        except Exception as ex:
            fault = mistake(ex, self.cli, self.argv) or describe(root_cause(ex))
            # a file that a callback wrote will be gone
            fault = re.sub(rf"; see {re.escape(str(self.run_dir))}[^.]*\.\w+", "", fault)
        for warning in caught if tell_warnings else ():
            self.report.warn(topic, str(warning.message))
            attempt.warned = True
        attempt.succeeded = not fault
        if fault:
            self.report.fail(topic, fault)


class _Attempt:
    succeeded = warned = False


class _Losses(Callback):
    """The loss of the last training batch, where the method hands one to Lightning."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if isinstance(loss, Tensor):
            self.values["loss"] = float(loss)


def _require_accelerator(name: Any) -> None:
    """Lightning's own complaint names neither the option nor what to do.

    Raises:
        ValueError: this machine has no such device.
    """
    if name == "gpu":
        there = CUDAAccelerator.is_available() or MPSAccelerator.is_available()
    else:
        there = name not in AcceleratorRegistry or AcceleratorRegistry.get(name).is_available()
    if not there:
        raise ValueError(f"trainer.accelerator={name!r}: none here; leave it out (auto) or give cpu")


def _on_this_machine(entry: str) -> bool:
    """Whether weights need no download: anything but a torchvision entry that is not in torch's cache."""
    if not re.fullmatch(r"\w+_Weights\.\w+", entry):
        return True
    from torchvision.models import get_weight

    try:
        name = get_weight(entry).url.rpartition("/")[2]
    except (AttributeError, KeyError, ValueError):
        return True  # no such entry: building says so
    return Path(torch.hub.get_dir(), "checkpoints", name).is_file()


def _leaves(path: str, batch: Any) -> Iterator[tuple[str, Any]]:
    """Dotted names and values of everything in a batch."""
    items: Any = ()
    if isinstance(batch, dict):
        items = batch.items()
    elif isinstance(batch, list | tuple) and any(isinstance(value, Tensor) for value in batch):
        items = enumerate(batch)
    if not items:
        yield path or "batch", batch
    for key, value in items:
        yield from _leaves(f"{path}.{key}".lstrip("."), value)


def _shape(value: Any) -> str:
    if not isinstance(value, Tensor):
        return type(value).__name__
    shape = f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    return f"{shape} {float(value.min()):.4g} to {float(value.max()):.4g}" if value.numel() else shape


def _fault(path: str, value: Any, data: Any) -> str | None:
    """What no batch may hold: NaN, pictures outside [0, 1], classes that do not exist."""
    if not isinstance(value, Tensor) or not value.numel() or value.is_complex():
        return None
    low, high = float(value.min()), float(value.max())
    if not value.isfinite().all():
        return f"{path} holds NaN or infinity"
    name = path.rpartition(".")[2]
    if name == "image" and not 0 <= low <= high <= 1:
        return f"{path} must be in [0, 1], got {low:.4g} to {high:.4g}"
    classes = getattr(data, "num_classes", None)
    if name == "label" and isinstance(classes, int) and not 0 <= low <= high < classes:
        return f"{path} must be 0 to {classes - 1}, got {low:g} to {high:g}"
    return None


def _tell(outcome: Outcome) -> str:
    course = (
        f"epochs 0 to {outcome.epochs - 1} trained, killed in epoch {outcome.killed_epoch}, resumed from step "
        f"{outcome.resumed_step}"
    )
    if not outcome.differences:
        return f"weights, optimisers and schedules are bit-identical ({outcome.compared} values; {course})"
    few = ", ".join(f"{key} by {size}" for key, size in list(outcome.differences.items())[:3])
    return f"{len(outcome.differences)} of {outcome.compared} values differ: {few} ({course})"


def _epochs_of(callback: Callback, module: LightningModule) -> list[int]:
    """The epochs in which a callback does what a short run may never come to."""
    if callable(stages := getattr(callback, "stage_epochs", None)):
        return list(stages(getattr(module, "arch", None)))
    at_epoch = getattr(callback, "at_epoch", None)
    return [at_epoch] if isinstance(at_epoch, int) else []
