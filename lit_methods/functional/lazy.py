"""Names of a package that are imported when they are first used, each of them written once."""

import ast
import re
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any


def lazy_names(
    package: str, file: str, found: str | None = None
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """``__getattr__``, ``__dir__`` and ``__all__`` of a package whose import costs next to nothing.

    Its names are those that ``__init__.py`` imports under ``if TYPE_CHECKING:``, where editors and type checkers read
    them, too; and those of classes that are found by their place, see ``found``. For both the sources are read, which
    therefore lie in a folder.

    Args:
        package: ``__name__``.
        file: ``__file__``.
        found: files below the package whose class needs no line in ``__init__.py``: ``"*.py"`` for classes called like
            their file (``WidgetSearch`` in ``widget_search.py``), ``"*/module.py"`` for all public ones in these.

    Example:
        >>> import lit_methods
        >>> "HRank" in lit_methods.__all__, lit_methods.HRank.__module__
        (True, 'lit_methods.hrank.module')
    """
    homes = _listed(Path(file)) | (_found(package, Path(file).parent, found or ""))

    def get(name: str) -> Any:  # object would forbid to subclass what is not listed
        if name in homes:
            return getattr(import_module(homes[name]), name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    def names() -> list[str]:
        here = vars(import_module(package))
        inside = {name for name, value in here.items() if isinstance(value, ModuleType) or name.startswith("__")}
        return sorted(inside | {*homes})

    return get, names, sorted(homes)


def _listed(init: Path) -> dict[str, str]:
    """Name to module of what stands under ``if TYPE_CHECKING:``."""
    blocks = [node for node in ast.parse(init.read_text("utf-8")).body if isinstance(node, ast.If)]
    lines = [line for block in blocks if ast.unparse(block.test) == "TYPE_CHECKING" for line in block.body]
    return {name.name: str(line.module) for line in lines if isinstance(line, ast.ImportFrom) for name in line.names}


def _found(package: str, folder: Path, pattern: str) -> dict[str, str]:
    homes: dict[str, str] = {}
    for path in sorted(folder.glob(pattern)) if pattern else ():
        parts = path.relative_to(folder).with_suffix("").parts
        for name in re.findall(r"^class ([A-Z]\w*)", path.read_text("utf-8"), re.MULTILINE):
            if parts[-1] == "module" or name.lower() == parts[-1].replace("_", ""):
                home = ".".join((package, *parts))
                if homes.setdefault(name, home) != home:
                    raise ImportError(f"two classes are called {name}: in {homes[name]} and in {home}")
    return homes
