"""The packaged recipes by short name; the standard library alone."""

import difflib
from importlib.resources import files
from pathlib import Path


def find_recipes(folder: Path | None = None) -> dict[str, Path]:
    """Short name to YAML file of every recipe.

    Args:
        folder: where to look; ``None`` is the package's own ``recipes/``.
    """
    folder = folder or Path(str(files("lit_methods") / "recipes"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def describe(path: Path) -> str:
    """A recipe's own line about itself: its first line, ``description: ...``, read without a YAML parser.

    Example:
        >>> from tempfile import mkdtemp
        >>> recipe = Path(mkdtemp(), "a.yaml")
        >>> _ = recipe.write_text('description: "Prune, then train: digits"\\ntrainer: {}\\n')
        >>> describe(recipe)
        'Prune, then train: digits'
    """
    with path.open(encoding="utf-8") as file:
        for line in file:
            key, colon, text = line.partition(":")
            if colon and key.strip() == "description":
                return text.strip().strip("'\"")
            if line.strip() and not line.startswith("#"):
                break
    return ""


def list_recipes(folder: Path | None = None) -> str:
    """One line per recipe, name and description, as ``--list`` prints it."""
    recipes = find_recipes(folder)
    width = max(map(len, recipes), default=0)
    return "\n".join(f"{name:{width}}  {describe(path)}".rstrip() for name, path in recipes.items())


def no_such_recipe(word: str, recipes: dict[str, Path]) -> str:
    """What to say about a name that is none, with the closest ones that are.

    Example:
        >>> no_such_recipe("hrnk", {"hrank": Path("hrank.yaml")})
        "no recipe 'hrnk'; did you mean hrank? (--list shows all; a file of your own goes after --config)"
    """
    near = difflib.get_close_matches(word, recipes, 3)
    hint = f"did you mean {', '.join(near)}? (--list shows all" if near else "(--list shows all"
    return f"no recipe {word!r}; {hint}; a file of your own goes after --config)"
