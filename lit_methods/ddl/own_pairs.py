"""The user's list of pairs of pictures."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from lit_methods.functional.face_pairs import read_pairs
from lit_methods.functional.text_lines import read_lines


class OwnPair(NamedTuple):
    """Two pictures, and whether they show one person, where that is known."""

    first: Path
    second: Path
    same: bool | None = None


def own_pairs(path: str | Path) -> list[OwnPair]:
    r"""Read a list of pairs.

    Either two paths per line with a tab between them, relative to the list's folder, or the layout of LFW's
    ``pairs.txt``, which begins with a line of numbers; see ``read_pairs``.

    Args:
        path: of the list.

    Returns:
        The pairs in its order.

    Raises:
        FileNotFoundError: the list or a picture of it is not there.
        ValueError: a line does not parse; names file and line.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("a.png", "b.png"):
        ...         Path(folder, name).touch()
        ...     _ = Path(folder, "pairs.txt").write_text("a.png\tb.png\n")
        ...     [(pair.first.name, pair.second.name) for pair in own_pairs(Path(folder, "pairs.txt"))]
        [('a.png', 'b.png')]
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"pairs={str(path)!r} does not exist; give a file with two paths per line")
    lines = read_lines(path)
    if not lines:
        raise ValueError(f"pairs={str(path)!r} is empty; give a file with two paths per line")
    if all(word.isdigit() for word in lines[0].text.split()):
        found = read_pairs(path)
        files = [path.parent / file for file in found.files]
        rows = zip(found.first.tolist(), found.second.tolist(), found.same.tolist(), strict=True)
        return [OwnPair(files[first], files[second], same) for first, second, same in rows]
    pairs = []
    for line in lines:
        names = line.text.split("\t")
        if len(names) != 2:
            raise line.fault(f"it has {len(names)} fields; give two paths with a tab between them")
        both = [path.parent / name.strip() for name in names]
        if missing := [file for file in both if not file.is_file()]:
            raise FileNotFoundError(f"{line.where}: there is no picture {str(missing[0])!r}")
        pairs.append(OwnPair(both[0], both[1]))
    return pairs
