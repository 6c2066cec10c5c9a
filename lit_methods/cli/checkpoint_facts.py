"""What a checkpoint says of itself, as plain values: method, data, metrics, sizes, versions.

Nothing is built but shapes, and nothing in the file is executed. What it does not hold is looked up in the directory
of its run, where that is still around it; else it is ``None``.
"""

import json
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from lit_methods.backbones import build_backbone, planned_network, read_plan
from lit_methods.checkpoint_io import CheckpointError, read_checkpoint
from lit_methods.cli.checkpoints import resumed_step

_WEIGHTS, _OPTIMISERS = "state_dict", "optimizer_states"
_COUNTED = ("running_mean", "running_var", "num_batches_tracked")  # of a batch norm: no parameters


def describe_checkpoint(path: str | Path) -> dict[str, Any]:
    """What a checkpoint is.

    Args:
        path: a file that a run wrote.

    Returns:
        Plain values, the same keys for every file; what neither it nor its run's directory says is ``None``:

        - ``method``: import path of the class that wrote it; ``arguments``: those of its constructor;
        - ``recipe``, ``run_dir`` (where a ``config.yaml`` lies there), ``description``;
        - ``data``: ``class``, ``arguments`` and ``samples``;
        - ``progress``: ``epoch`` (from 0 on), ``epoch_done``, ``max_epochs`` of the run and whether it has ``ended``,
          ``step`` (of ``metrics.csv``), ``optimizer_steps``;
        - ``best``: ``monitor``, ``mode``, ``score`` and ``file``; ``metrics``: what was logged last; ``summary``: the
          numbers of the run's ``summary.json``, which its end wrote;
        - ``parameters``; ``pruned``: ``params`` and ``dense_params`` of a network under a plan; ``bytes``: of the file,
          its ``weights``, ``optimisers`` and the ``rest``;
        - ``written``: when the file was; ``callbacks``: those with a state; ``resumable``; ``versions``; ``wandb``: the
          run there.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, a directory, or not a checkpoint of a run.

    Example:
        >>> import tempfile
        >>> from lightning.pytorch import Trainer
        >>> from lit_methods import ImageClassifier
        >>> trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_model_summary=False)
        >>> trainer.strategy.connect(ImageClassifier("resnet20"))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     trainer.save_checkpoint(f"{folder}/a.ckpt")
        ...     facts = describe_checkpoint(f"{folder}/a.ckpt")
        >>> facts["method"], facts["parameters"], facts["arguments"]["backbone"], facts["data"]
        ('lit_methods.classification.ImageClassifier', 269722, 'resnet20', None)
    """
    path = Path(path)
    checkpoint = read_checkpoint(path)
    about, run = checkpoint.get("about", {}), _RunAround(path)
    hparams = checkpoint.get("hyper_parameters", {})
    callbacks = checkpoint.get("callbacks", {})
    try:
        progress = _progress(checkpoint, run.max_epochs())
    except (KeyError, TypeError, AttributeError):  # a dictionary that only looks like one
        raise CheckpointError(f"ckpt_path={str(path)!r} is not a checkpoint of a run: no loop states in it") from None
    weights, optimisers = (_bytes(checkpoint.get(key)) for key in (_WEIGHTS, _OPTIMISERS))
    size, written = path.stat().st_size, datetime.fromtimestamp(path.stat().st_mtime)
    return {
        "method": checkpoint.get("lit_methods", {}).get("class"),
        "arguments": {key: value for key, value in hparams.items() if not key.startswith("_")},
        "recipe": about.get("recipe") or run.config.get("recipe"),
        "run_dir": str(run.path) if run.path else None,
        "description": run.config.get("description"),
        "data": about.get("data") or run.data(),
        "progress": progress,
        "best": _best(callbacks),
        "metrics": about.get("metrics"),
        "summary": run.summary,
        "parameters": about.get("parameters") or _count(checkpoint[_WEIGHTS]),
        "pruned": _pruned(hparams),
        "bytes": {
            "file": size,
            "weights": weights,
            "optimisers": optimisers,
            "rest": max(size - weights - optimisers, 0),
        },
        "written": written.isoformat(" ", "minutes"),
        "callbacks": [key.partition("{")[0] for key in callbacks],
        "resumable": _OPTIMISERS in checkpoint,
        "versions": _versions(about, checkpoint, run.summary),
        "wandb": next((s["wandb"] for s in callbacks.values() if isinstance(s, dict) and s.get("wandb")), None),
    }


class _RunAround:
    """What the directory of a checkpoint's run says; ``path`` is ``None`` where the file lies elsewhere."""

    def __init__(self, checkpoint: Path) -> None:
        self.path = next((p for p in list(checkpoint.absolute().parents)[:2] if (p / "config.yaml").is_file()), None)
        self.config: dict[str, Any] = {}
        self.summary: dict[str, Any] | None = None
        if self.path is None:
            return
        with suppress(OSError, ValueError, yaml.YAMLError):
            if isinstance(config := yaml.safe_load((self.path / "config.yaml").read_text("utf-8")), dict):
                self.config = config
        with suppress(OSError, ValueError):
            if isinstance(summary := json.loads((self.path / "summary.json").read_text("utf-8")), dict):
                self.summary = summary

    def max_epochs(self) -> int | None:
        """How many epochs the run was to train; ``None`` where that is not known or not limited."""
        trainer = self.config.get("trainer")
        given = trainer.get("max_epochs") if isinstance(trainer, dict) else None
        return given if isinstance(given, int) and given > 0 else None

    def data(self) -> dict[str, Any] | None:
        """As in the record of a newer checkpoint."""
        data = self.config.get("data")
        if not isinstance(data, dict) or "class_path" not in data:
            return None
        given = data.get("init_args") or {}
        plain = {key: value for key, value in given.items() if type(value) in (str, int, float, bool)}
        return {"class": data["class_path"], "arguments": plain, "samples": {}}


def _progress(checkpoint: dict[str, Any], max_epochs: int | None) -> dict[str, Any]:
    loop = checkpoint["loops"]["fit_loop"]
    batches = loop["epoch_loop.batch_progress"]
    whole = batches["is_last_batch"] and batches["current"]["ready"] == batches["current"]["completed"]
    return {
        "epoch": checkpoint["epoch"],
        "epoch_done": bool(whole),
        "max_epochs": max_epochs,
        "ended": bool(whole and max_epochs and checkpoint["epoch"] + 1 >= max_epochs),
        "step": resumed_step(checkpoint),
        "optimizer_steps": checkpoint["global_step"],
    }


def _best(callbacks: dict[str, Any]) -> dict[str, Any] | None:
    """The best score so far, of the callback that keeps the best checkpoints."""
    for key, state in callbacks.items():
        if isinstance(state, dict) and state.get("monitor") and isinstance(state.get("best_model_score"), Tensor):
            return {
                "monitor": state["monitor"],
                "mode": "max" if "'max'" in key else "min",
                "score": float(state["best_model_score"]),
                "file": Path(str(state.get("best_model_path", ""))).name,
            }
    return None


def _pruned(hparams: dict[str, Any]) -> dict[str, int | None] | None:
    """Parameters of the network under the plan and of the full one, from their shapes alone."""
    if not (given := hparams.get("plan")):
        return None
    counts: dict[str, int | None] = {"params": None, "dense_params": None}
    with suppress(Exception):  # a network that is not in the table, such as one given as an object
        plan, classes = read_plan(given), hparams.get("num_classes", 10)
        with torch.device("meta"):
            dense = _parameters(build_backbone(plan.arch, classes))
        counts = {"params": _parameters(planned_network(plan, classes)), "dense_params": dense}
    return counts


def _parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _count(states: dict[str, Any]) -> int:
    """Parameters of an older checkpoint: floating point numbers that are no statistics of a batch norm."""
    found = [value for name, value in states.items() if isinstance(value, Tensor) and not name.endswith(_COUNTED)]
    return sum(value.numel() for value in found if value.is_floating_point())


def _bytes(value: Any) -> int:
    """Of all tensors in a state."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return sum(map(_bytes, parts))


def _versions(about: dict[str, Any], checkpoint: dict[str, Any], summary: dict[str, Any] | None) -> dict[str, str]:
    if "versions" in about:
        return dict(about["versions"])
    pairs = [str(line).split(maxsplit=1) for line in (summary or {}).get("versions", [])]
    told = {pair[0]: pair[1] for pair in pairs if len(pair) == 2}
    return told | {"lightning": str(checkpoint.get("pytorch-lightning_version", told.get("lightning", "")))}
