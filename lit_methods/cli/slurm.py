"""A SLURM job that was started again, by its own request or after its node failed, goes on where it stood."""

import os
from contextlib import suppress
from pathlib import Path

MARK = "slurm_job"  # in the run's directory: which job writes there


def current_job() -> str | None:
    """The job, or the task of a job array, that this process is a step of; ``None`` elsewhere and in a shell."""
    if "SLURM_NTASKS" not in os.environ or os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive"):
        return None
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


def claim(run_dir: Path) -> None:
    """Note that this job writes there."""
    if job := current_job():
        (run_dir / MARK).write_text(f"{job}\n", encoding="utf-8")


def restarted(run_dir: Path) -> bool:
    """Whether the directory is that of an earlier start of this same job."""
    job = current_job()
    with suppress(OSError):
        return job is not None and (run_dir / MARK).read_text(encoding="utf-8").strip() == job
    return False
