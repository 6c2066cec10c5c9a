"""Loggers of a run: a ``metrics.csv`` that can be continued, and Weights & Biases on request."""

import csv
import netrc
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.loggers.logger import DummyLogger, rank_zero_experiment
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from lit_methods.checkpoint_io import read_checkpoint
from lit_methods.cli.run_directory import RunDirectory, is_first_process
from lit_methods.functional.suggestions import first_line


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
            # a full disk or a lost node may have cut off the last line
            reader = csv.DictReader(line for line in file if line.endswith("\n"))
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


class RunWandbLogger(WandbLogger):
    """A run at Weights & Biases that can neither stop nor delay the training.

    It begins with the first use, so a command that fails before leaves nothing behind. Where the server does not answer
    the run is logged offline, for ``wandb sync``. Where that fails too, or W&B does not take something later, one
    warning says so, and ``metrics.csv`` has it. ``wandb.config`` is what ``config.yaml`` holds, and ``run_dir``.

    Environment variables of W&B win over everything here. Those that this class sets where the user has not (see
    :meth:`_surroundings`) are gone again after :meth:`close`.

    Args:
        run_dir: the run's directory; everything that W&B writes is in ``wandb/`` below it, nothing at home.
        config: plain values.
        offline: never talk to the server.
        run: id, project and entity of the run that goes on.
        log_from: no step is lower; see :class:`RunCSVLogger`.
    """

    def __init__(
        self, run_dir: Path, config: dict[str, Any], offline: bool, run: dict[str, str], log_from: int = 0
    ) -> None:
        chosen = "WANDB_RUN_ID" in os.environ or "WANDB_SWEEP_ID" in os.environ  # by an agent, say
        super().__init__(
            name=os.environ.get("WANDB_NAME", run_dir.name),
            project=os.environ.get("WANDB_PROJECT", run.get("project", "lit-methods")),
            entity=os.environ.get("WANDB_ENTITY", run.get("entity")),
            id=None if chosen else run.get("id"),
            save_dir=run_dir,
            config=config | {"run_dir": str(run_dir)},
        )
        self._wandb_init.pop("anonymous", None)  # private: Lightning 2.6 always passes it, wandb 0.31 warns about it
        if offline:
            self._wandb_init["mode"] = "offline"  # Lightning's offline=True would set the mode of later runs, too
        self.run_dir, self.log_from = run_dir, log_from
        self._tried = self._borrowed = self._over = self._warned = False
        self._added: list[str] = []  # environment variables

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """W&B's run. Before it has begun, an object that begins it on use: Lightning asks for it early."""
        return self._experiment or _Later(self)

    def begin(self) -> Any:
        """W&B's run, begun if need be; a stand-in that swallows everything where that fails or all is over."""
        if self._experiment is None and not self._over:
            self._tried = True
            try:
                self._begin()
            except Exception as ex:  # W&B's own, of the network, of the disk
                self._over = True
                self._warn(ex, "the run is logged in metrics.csv alone")
        return self._experiment or DummyLogger().experiment

    def _begin(self) -> None:
        import wandb

        (self.run_dir / "wandb").mkdir(exist_ok=True)  # else wandb falls back to a temporary directory
        for name, value in self._surroundings().items():
            if name not in os.environ:
                os.environ[name] = value
                self._added.append(name)
        self._borrowed = wandb.run is not None  # one that the user's own script began: Lightning goes on with it
        try:
            _ = super().experiment
        except Exception as ex:
            if self._wandb_init.get("mode") == "offline":
                raise
            folder = self.run_dir / "wandb"
            _say(f"{first_line(ex)}; the run is logged offline, for wandb sync, in {folder}")
            wandb.teardown()  # else the id counts as in use
            self._wandb_init["mode"] = "offline"
            _ = super().experiment

    def _surroundings(self) -> dict[str, str]:
        folder = self.run_dir / "wandb"
        return {
            "WANDB_DATA_DIR": str(folder / "data"),  # tables, until they are uploaded: they go where the run goes
            "WANDB_CACHE_DIR": str(folder / "cache"),
            "WANDB_SILENT": "true",  # it would talk about itself; the directory says all
            "WANDB_CONSOLE": "off",
            "WANDB_INIT_TIMEOUT": "30",  # seconds
            "WANDB_FINISH_TIMEOUT": "120",  # W&B's own is none: without a network the process would never end
            "WANDB_FINISH_TIMEOUT_RAISES": "true",
        }

    @rank_zero_only
    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        """Log values or media under a step."""
        try:
            super().log_metrics(metrics, max(step or 0, self.log_from))
        except Exception as ex:
            self._warn(ex, "what W&B did not take is in metrics.csv")

    def log_hyperparams(self, params: Any) -> None:
        """Nothing: the whole configuration is there from the beginning."""

    def finalize(self, status: str) -> None:
        """After a failure nothing follows; after a fit a test may."""
        if status != "success":
            self.close(failed=True)

    def close(self, failed: bool = False) -> None:
        """End the run at W&B: upload what is left, stop its process, leave the environment as it was.

        Args:
            failed: how the run is marked there.
        """
        run, self._experiment, self._over = self._experiment, None, True
        if self._tried and not self._borrowed:
            import wandb

            try:
                try:
                    if run is not None:
                        self._id = run.id
                        run.finish(int(failed))
                finally:
                    wandb.teardown(int(failed))
            except Exception as ex:
                self._warn(ex, f"wandb sync {self.run_dir / 'wandb'}/*run-* sends the rest")
        while self._added:
            os.environ.pop(self._added.pop(), None)

    def _warn(self, error: Exception, text: str) -> None:
        if not self._warned:
            _say(f"{first_line(error)}; {text}")
        self._warned = True


class _Later:
    def __init__(self, logger: RunWandbLogger) -> None:
        self._logger = logger

    def __getattr__(self, name: str) -> Any:
        return getattr(self._logger.begin(), name)


def make_loggers(kind: str, directory: RunDirectory, read_config: Callable[[], dict[str, Any]]) -> list[Logger]:
    """The loggers of a run: CSV always, W&B where asked for and possible.

    Args:
        kind: ``"csv"`` or ``"wandb"``.
        directory: where the run writes, from which checkpoint it starts, and from which step on it logs.
        read_config: gives the run's configuration as plain values.
    """
    loggers: list[Logger] = [RunCSVLogger(directory.path, directory.keep_below, directory.log_from)]
    if kind == "wandb" and is_first_process() and (logger := _wandb(directory, read_config)):
        loggers.append(logger)
    return loggers


def close_loggers(loggers: list[Logger]) -> None:
    """End what a command's loggers have left open, after its last stage; see :meth:`RunWandbLogger.close`."""
    for logger in loggers:
        if isinstance(logger, RunWandbLogger):
            logger.close()


def _wandb(directory: RunDirectory, read_config: Callable[[], dict[str, Any]]) -> Logger | None:
    mode = os.environ.get("WANDB_MODE", "")
    if mode == "disabled":
        return None
    if mode not in ("", "online", "offline", "dryrun", "shared"):
        _say(f"WANDB_MODE={mode!r} is not online, offline or disabled; the run is logged in metrics.csv alone")
        return None
    try:
        import wandb  # noqa: F401
    except ImportError as ex:
        _say(f"{first_line(ex)} (pip install wandb); the run is logged in metrics.csv alone")
        return None
    offline = mode in ("offline", "dryrun") or (mode in ("", "online") and not has_wandb_key())
    if offline and mode not in ("offline", "dryrun"):
        where = directory.path / "wandb"
        print(f"wandb: no API key is configured, so the run is logged offline, in {where}", file=sys.stderr)
    run, config = {}, read_config()
    if directory.ckpt_path:
        run = read_checkpoint(directory.ckpt_path).get("callbacks", {}).get("RunReport", {}).get("wandb", {})
        config["ckpt_path"] = directory.ckpt_path
    if run and not directory.in_place:  # a branch of that run: its steps would mix with those of a run that goes on
        config["parent_run"], run = run["id"], {}
    return RunWandbLogger(directory.path, config, offline, run, directory.log_from)


def _say(text: str) -> None:
    print(f"warning: wandb: {text}", file=sys.stderr)


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
