"""Loggers of a run: a ``metrics.csv`` that can be continued, and Weights & Biases on request."""

import csv
import netrc
import os
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lightning.pytorch.loggers import CSVLogger, Logger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from lit_methods.cli.run_directory import RunDirectory


class ContinuedWriter(ExperimentWriter):
    """Lightning's CSV writer, which deletes an existing file, made to go on with it.

    Args:
        log_dir: the run's directory.
        keep_below: rows with a step below this stay; ``None`` keeps all.
    """

    def __init__(self, log_dir: str, keep_below: int | None) -> None:
        self.keep_below = keep_below
        super().__init__(log_dir)

    def _check_log_dir_exists(self) -> None:  # the parent's __init__ calls it: the place where it deletes the file
        if not os.path.isfile(self.metrics_file_path):
            return
        with open(self.metrics_file_path, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            self.metrics_keys = list(reader.fieldnames or [])
            rows = [row for row in reader if self.keep_below is None or int(row["step"]) < self.keep_below]
        self._replace(rows)

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:  # the parent truncates the file first
        with open(self.metrics_file_path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        self.metrics_keys = fieldnames
        self._replace(rows)

    def _replace(self, rows: list[dict[str, Any]]) -> None:
        part = self.metrics_file_path + ".part"
        with open(part, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=self.metrics_keys)
            writer.writeheader()
            writer.writerows(rows)
        os.replace(part, self.metrics_file_path)

    def log_hparams(self, params: dict[str, Any]) -> None:
        """Nothing: ``config.yaml`` has them."""


class RunCSVLogger(CSVLogger):
    """``metrics.csv`` of a run, one row per logging call, on disk at once.

    Args:
        run_dir: the run's directory.
        keep_below: of a file that is there already, rows with a step below this stay; ``None`` keeps all.
        log_from: no row gets a lower step; evaluations of a checkpoint would all be logged under 0, and stay in the way
            of a run that goes on.
    """

    def __init__(self, run_dir: str | Path, keep_below: int | None = None, log_from: int = 0) -> None:
        super().__init__(str(run_dir), name="", version="", flush_logs_every_n_steps=1)
        self.keep_below, self.log_from = keep_below, log_from

    @rank_zero_only
    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        """Write one row."""
        super().log_metrics(metrics, max(step or 0, self.log_from))

    @property
    @rank_zero_experiment
    def experiment(self) -> ContinuedWriter:
        """The writer, made on first use."""
        if self._experiment is None:
            os.makedirs(self.root_dir, exist_ok=True)
            self._experiment = ContinuedWriter(self.log_dir, self.keep_below)
        return self._experiment  # type: ignore[return-value]


def make_loggers(kind: str, directory: RunDirectory) -> list[Logger]:
    """The loggers of a run: CSV always, W&B where asked for.

    Args:
        kind: ``"csv"`` or ``"wandb"``.
        directory: where the run writes, and from which step on.
    """
    loggers: list[Logger] = [RunCSVLogger(directory.path, directory.keep_below, directory.log_from)]
    if kind == "wandb":
        loggers.append(_wandb(directory.path))
    return loggers


def _wandb(run_dir: Path) -> Logger:
    from lightning.pytorch.loggers import WandbLogger

    try:
        import wandb
    except ImportError:
        raise ValueError("logger='wandb': the package wandb is not installed (pip install wandb)") from None
    mode = os.environ.get("WANDB_MODE", "")
    offline = mode in ("offline", "dryrun") or (mode in ("", "online") and not has_wandb_key())
    if offline and mode not in ("offline", "dryrun"):
        print(f"wandb: no API key is configured, so the run is logged offline, in {run_dir / 'wandb'}", file=sys.stderr)
    (run_dir / "wandb").mkdir(exist_ok=True)  # else wandb falls back to a temporary directory
    logger = WandbLogger(
        name=run_dir.name,
        project="lit-methods",
        save_dir=run_dir,
        offline=offline,
        log_model=False,
        settings=wandb.Settings(silent=True, console="off"),  # it would talk about itself; the directory says all
    )
    logger._wandb_init.pop("anonymous", None)  # private: Lightning 2.6 always passes it, wandb 0.31 warns about it
    return logger


def has_wandb_key() -> bool:
    """Whether W&B can log in without asking: a key in the environment or in the netrc file."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    places = [os.environ["NETRC"]] if "NETRC" in os.environ else ["~/.netrc", "~/_netrc"]
    for place in places:
        try:
            if netrc.netrc(os.path.expanduser(place)).authenticators(host):
                return True
        except (OSError, netrc.NetrcParseError):
            continue
    return False
