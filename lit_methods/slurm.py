"""A SLURM job asks to be started again when its time is nearly up, and goes on where it stood."""

import os
import re
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_warn

MARK = "slurm_job"  # in the run's directory: which job writes there
WARNING: int | None = getattr(signal, "SIGUSR1", None)  # what --signal=SIGUSR1@120 sends; not on Windows


def current_job() -> str | None:
    """The job, or the task of a job array, that this process is a step of; ``None`` elsewhere and in a shell."""
    if "SLURM_NTASKS" not in os.environ or os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive"):
        return None
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


def claim(run_dir: Path) -> None:
    """Note in a run's directory that this job writes there; nothing outside of jobs.

    To be called once all processes of the job know the directory: from then on ``restarted`` says so.
    """
    if job := current_job():
        (run_dir / MARK).write_text(f"{job}\n", encoding="utf-8")


def restarted(run_dir: Path) -> bool:
    """Whether the directory is that of an earlier start of this same job."""
    job = current_job()
    with suppress(OSError):
        return job is not None and (run_dir / MARK).read_text(encoding="utf-8").strip() == job
    return False


def requeue() -> bool:
    """Ask SLURM to start this job again by ``scontrol requeue``; whether it will. If not, a warning says why."""
    job = current_job() or ""
    if not re.fullmatch(r"[0-9_]+", job):
        rank_zero_warn(f"not requeued: SLURM_JOB_ID={job!r} is no job number")
        return False
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
    except OSError as ex:
        rank_zero_warn(f"not requeued: scontrol: {ex}")
        return False
    if done.returncode:
        rank_zero_warn(f"not requeued: scontrol requeue {job}: {done.stderr.strip() or done.returncode}")
    return done.returncode == 0
