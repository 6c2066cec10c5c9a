"""What the doctor says, and a recipe of a real method, for its tests."""

from lit_methods.cli.recipes import find_recipes

HRANK = find_recipes()["hrank"]


def lines(answer, level: str, topic: str = "") -> list[str]:
    """Those of a level, ``"ok"``, ``"warning"`` or ``"FAIL"``, whose topic begins like this."""
    return [line for line in answer.out if line.startswith(f"{level:<8}{topic}")]
