"""ComplexityLogger: what a network costs, and what pruning saved."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from callbacks.evaluation import input_size
from callbacks.report import RunReport
from lit_methods.functional.complexity import measure_complexity, measure_latency


class ComplexityLogger(Callback):
    """Multiply-adds, parameters, file size and measured latency of ``module.model`` at the end of a fit.

    A pruned network is measured side by side with the full network of its architecture (``complexity/dense_*``).
    ``macs`` are multiply-adds of convolutions and linear layers for one image, without biases and batch norm;
    ``params`` all parameters; ``file_bytes`` the saved state dict; ``latency_ms`` the median of interleaved forward
    passes of one image on the module's device.

    Args:
        repeats: timed forward passes per network, at least 1.

    Raises:
        ValueError: ``repeats`` is below 1.
    """

    def __init__(self, repeats: int = 20) -> None:
        if repeats < 1:
            raise ValueError(f"repeats={repeats} must be at least 1")
        self.repeats = repeats
        self.results: dict[str, float] = {}

    @classmethod
    def of(cls, trainer: Trainer) -> ComplexityLogger | None:
        """The trainer's own, if it has one."""
        return next((c for c in trainer.callbacks if isinstance(c, cls)), None)  # type: ignore[attr-defined]

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure, log and write the table ``complexity``; the first process alone does it."""
        if not trainer.is_global_zero:
            return
        networks: dict[str, nn.Module] = {"": pl_module.model}  # type: ignore[dict-item]
        if pl_module.hparams.get("plan") is not None:
            networks["dense_"] = pl_module.full_network().to(pl_module.device)  # type: ignore[operator]
        size = input_size(trainer, pl_module)
        latency = measure_latency(networks, size, repeats=self.repeats)  # in turns: a busy machine is fair to both
        for prefix, network in networks.items():
            cost = measure_complexity(network, size, latency_ms=latency[prefix])
            self.results |= {f"complexity/{prefix}{name}": value for name, value in cost._asdict().items()}
        for logger in trainer.loggers:
            logger.log_metrics(self.results, step=trainer.global_step)
        names = [key.removeprefix("complexity/") for key in self.results if "dense_" not in key]
        columns: list[list[Any]] = [
            [name, *(self.results[f"complexity/{prefix}{name}"] for prefix in reversed(networks))] for name in names
        ]
        header = ["", "dense", "pruned"] if len(networks) == 2 else ["", "network"]
        RunReport.of(trainer).table(trainer, "complexity", header, columns)

    def summary(self) -> dict[str, float]:
        """``complexity/*`` for ``summary.json``."""
        return dict(self.results)
