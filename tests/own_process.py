"""The command line in a process of its own, as a user starts it."""

import os
import subprocess
import sys
from pathlib import Path


def run_entry(
    entry: str, *words: object, folder: Path, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """``python -m lit_methods.<entry>``, to its end; what it says is in ``stdout`` and ``stderr``.

    Args:
        entry: ``"fit"``, ``"export"``, ...
        words: what follows.
        folder: the working directory.
        environment: instead of this process's, without the number of threads.
    """
    return subprocess.run(
        [sys.executable, "-m", f"lit_methods.{entry}", *map(str, words)],
        cwd=folder, env=(os.environ if environment is None else environment) | {"OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
