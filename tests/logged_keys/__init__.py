"""What runs of the packaged recipes log at W&B: ``<recipe>.txt``, one key and the kind of its values per line.

The lists are written from the records of whole runs, so that cheap tests can ask what exists:
``python -m tests.logged_keys RUN_DIR RECIPE``, after ``fit RECIPE --logger wandb`` without an account.
``tests/cli/test_dashboard.py`` compares them with small runs.
"""

from pathlib import Path
from typing import Any

from tests.wandb_record import Record

FOLDER = Path(__file__).parent
KINDS = {
    "images/separated": "picture",
    "image-file": "picture",
    "video-file": "film",
    "table-file": "table",
    "histogram": "histogram",
}


def logged_keys(recipe: str) -> dict[str, str]:
    """Key to kind, as listed."""
    lines = (FOLDER / f"{recipe}.txt").read_text("utf-8").splitlines()
    return dict(line.rsplit(maxsplit=1) for line in lines)  # type: ignore[misc]


def keys_of(record: Record) -> dict[str, str]:
    """Key to kind, of the rows of a run; kinds of a key that has more than one are joined by "+"."""
    found: dict[str, dict[str, None]] = {}
    for row in record.history:
        for key, value in row.items():
            if key not in ("_step", "_timestamp"):  # W&B's own, like the _runtime in seconds
                found.setdefault(key, {})[_kind(value)] = None
    return {key: "+".join(kinds) for key, kinds in sorted(found.items())}


def write(record: Record, recipe: str) -> None:
    """Write a recipe's list."""
    lines = [f"{key} {kind}\n" for key, kind in keys_of(record).items()]
    (FOLDER / f"{recipe}.txt").write_text("".join(lines), "utf-8")


def _kind(value: Any) -> str:
    if isinstance(value, dict):
        return KINDS[value["_type"]]
    return "text" if isinstance(value, str) else "number"
