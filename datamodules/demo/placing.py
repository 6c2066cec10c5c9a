"""A set appears in its place when it is complete, and not before."""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

_CURE = "name a folder that is empty or not there yet"


def place_set(root: Path, write: Callable[[Path], object], is_there: Callable[[], bool], who: str = "") -> None:
    """Write a set beside its place and rename it, so that nobody finds half of it.

    Of several writers at the same time one wins, and the others leave it at that.

    Args:
        root: a folder that is empty or not there yet.
        write: gets the folder to make, beside ``root``.
        is_there: whether somebody else has written the set at ``root`` in the meantime.
        who: what of the user's wants it, such as an argument, for the message.

    Raises:
        ValueError: it cannot be written there.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     place_set(Path(folder, "set"), lambda draft: draft.mkdir(), lambda: False)
        ...     os.listdir(folder)
        ['set']
    """
    draft = None
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
        write(draft / "root")
        os.rename(draft / "root", root)
    except OSError as error:
        if not is_there():
            subject = f"{who} cannot" if who else "cannot"
            raise ValueError(f"root={str(root)!r}: {subject} write a set there ({error}); {_CURE}") from error
    finally:
        if draft is not None:
            shutil.rmtree(draft, ignore_errors=True)


def place_described(root: Path, readme: str, write: Callable[[Path], object]) -> None:
    """Write a set that is told by its ``readme.txt``, as :func:`place_set` does; the very same set is left as it is.

    Args:
        root: a folder that is empty or not there yet.
        readme: what the set is and every argument that decides it.
        write: gets the folder to make; the readme is added.

    Raises:
        ValueError: it cannot be written there, or ``root`` has something else in it.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for _ in range(2):
        ...         place_described(Path(folder, "set"), "seed=0", lambda draft: draft.mkdir())
        ...     Path(folder, "set", "readme.txt").read_text()
        'seed=0'
    """

    def is_there() -> bool:
        return (root / "readme.txt").is_file() and (root / "readme.txt").read_text() == readme

    def described(draft: Path) -> None:
        write(draft)
        (draft / "readme.txt").write_text(readme)

    if is_there():
        return
    if root.is_file() or (root.is_dir() and any(root.iterdir())):
        raise ValueError(f"root={str(root)!r}: cannot write a set there, it has something else in it; {_CURE}")
    place_set(root, described, is_there)
