"""Small attacks by the command line, and what their directories hold."""

import json
from pathlib import Path

from tests.two_processes import CPU

IMAGES = 7  # successes, failures and one that is wrong from the start
SMALL = ["--model.eps", 8, "--model.max_queries", 30, "--model.attack_args", '{"rho": 0.4}']
SMALL += ["--data.num_test_images", IMAGES, "--data.batch_size", 4, "--trainer.limit_val_batches", 1]
LEDGERS = ("ledger.jsonl", "ledger_fixed.jsonl")
ONE = [str(word) for word in CPU]


def lines(folder: Path, name: str = "ledger.jsonl") -> list[dict]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def figures(folder: Path) -> dict:
    found = json.loads((folder / "summary.json").read_text())
    return {key: value for key, value in found.items() if key.startswith(("test/", "attack/"))}


def assert_same_run(ours: Path, theirs: Path) -> None:
    """The same ledgers, figures, pictures and tables, byte for byte."""
    assert figures(ours) == figures(theirs)
    files = [theirs / name for name in LEDGERS if (theirs / name).exists()]
    files += sorted((theirs / "pictures").glob("attack*")) + sorted((theirs / "tables").glob("attack*"))
    assert len(files) > 3
    for file in files:
        assert (ours / file.relative_to(theirs)).read_bytes() == file.read_bytes(), file.name
