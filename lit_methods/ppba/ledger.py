"""The query ledger: what an attack asked and what it got, on disk as it goes, so that nothing is asked twice.

``ledger.jsonl`` has one line per finished image. ``ledger.answers`` beside it has every answer: attacks draw their
random numbers from (seed, image id, iteration), so given the answers so far a killed attack comes to the same place
again without asking, also in the middle of an image.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, Self


class Answer(NamedTuple):
    """What the black box said about one image.

    Args:
        loss: of the attack; NaN where the answer was of no use.
        pred: the most likely class, -1 where that is not known.
    """

    loss: float
    pred: int


class Ledger:
    """The ledger of one attack, in a file and its neighbour.

    Answers that were given under other settings are left alone: the old files get a number at the end of their names,
    and the ledger begins anew. Answers about another image of the same id are not taken for this one's.

    Args:
        path: of the lines, such as ``runs/mine/ledger.jsonl``; the folder is made.
        context: plain values that have to be the same for old answers to hold, such as which network is attacked.
        rank: of this process. All read what any wrote; each writes files of its own, until :func:`merge`.

    Raises:
        ValueError: ``path`` does not end in ``.jsonl``.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> with Ledger(f"{folder}/ledger.jsonl") as ledger:
        ...     ledger.start({"seed": 0})
        ...     ledger.begin([7], ["a picture"])
        ...     ledger.note([7], [0], [[Answer(0.5, 3)]])
        >>> with Ledger(f"{folder}/ledger.jsonl") as again:
        ...     again.start({"seed": 0})
        ...     again.begin([7], ["a picture"])
        ...     again.known(7, 0)
        Answer(loss=0.5, pred=3)
    """

    def __init__(self, path: str | Path, context: dict[str, Any] | None = None, rank: int = 0) -> None:
        self.path, self.rank = Path(path), rank
        if self.path.suffix != ".jsonl":
            raise ValueError(f"path={str(path)!r} must end in .jsonl; the answers go beside it, into .answers")
        self.context = context or {}
        self._settings: dict[str, Any] | None = None
        self._keys: dict[int, str] = {}  # of the images that are being attacked
        self._known: dict[tuple[int, str], list[Answer]] = {}  # what is on the disk, of images that were not finished
        self._finished: dict[int, str] = {}  # id -> key of its last line
        self._files: dict[str, Any] = {}

    # -- before and after ---------------------------------------------------------------------------------------------

    def start(self, settings: dict[str, Any]) -> None:
        """Open the files for an attack of these settings; does nothing the second time.

        Raises:
            ValueError: the ledger is open for other settings.
        """
        settings = json.loads(json.dumps(self.context | settings))  # as they come back from the disk
        if self._settings is not None:
            if settings != self._settings:
                raise ValueError(f"ledger={str(self.path)!r} is open for another attack; give each a ledger of its own")
            return
        self._settings = settings
        self._keys = {}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        mine = self._name("answers")
        self._read()
        if mine.exists() and _settings_of(mine) != settings:
            for file in (mine, self._name("jsonl")):
                _put_aside(file)
        for file in (mine, self._name("jsonl")):
            _cut_torn_line(file)
        self._finished = {line["id"]: line["key"] for line in _lines(self._name("jsonl"))}
        new = not mine.exists() or not mine.stat().st_size
        self._files = {name: self._name(name).open("a", encoding="utf-8") for name in ("answers", "jsonl")}
        if new:
            self._write("answers", {"settings": settings})

    def close(self) -> None:
        """Close the files."""
        for file in self._files.values():
            file.close()
        self._files, self._settings = {}, None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # -- what an attack tells and asks --------------------------------------------------------------------------------

    def begin(self, ids: Sequence[int], keys: Sequence[str]) -> None:
        """These images are attacked now; ``keys`` tell apart what may not share an id."""
        begun = dict(zip(ids, keys, strict=True))
        if any(i in self._keys or (i in self._finished and (i, key) not in self._known) for i, key in begun.items()):
            self._read()  # an attack that broke off, or ended, comes again
        self._keys.update(begun)
        self._write("answers", {"images": [[image, self._keys[image]] for image in ids]})

    def known(self, image: int, number: int) -> Answer | None:
        """The answer to a question about an image, by its number from 0; ``None`` if it was never answered."""
        answers = self._known.get((image, self._keys[image]), [])
        return answers[number] if number < len(answers) else None

    def note(self, ids: Sequence[int], numbers: Sequence[int], answers: Sequence[Sequence[Answer]]) -> None:
        """Write down new answers.

        Args:
            ids: of the images.
            numbers: per image, the number of its first question here.
            answers: per image, one answer per question.
        """
        entries = [
            [image, number, [a.loss for a in said], [a.pred for a in said]]
            for image, number, said in zip(ids, numbers, answers, strict=True)
        ]
        self._write("answers", {"answers": entries})

    def finish(self, image: int, line: dict[str, Any]) -> None:
        """Write the line of a finished image."""
        key = self._keys.pop(image)
        self._known.pop((image, key), None)  # nobody asks again
        if self._finished.get(image) != key:
            self._finished[image] = key
            self._write("jsonl", {"id": image} | line | {"key": key})

    # -- files --------------------------------------------------------------------------------------------------------

    def _name(self, suffix: str) -> Path:
        return _of_rank(self.path, self.rank).with_suffix(f".{suffix}")

    def _write(self, name: str, line: dict[str, Any]) -> None:
        file = self._files[name]
        file.write(json.dumps(line) + "\n")
        file.flush()  # a killed process loses nothing that it wrote to the system

    def _read(self) -> None:
        """What any process wrote under these settings."""
        self._known = {}
        found: list[tuple[int, tuple[int, str], list[Answer]]] = []
        for path in _of_all_ranks(self.path.with_suffix(".answers")):
            if _settings_of(path) != self._settings:
                continue
            keys: dict[int, str] = {}
            for line in _lines(path):
                keys.update(line.get("images", []))
                for image, number, losses, preds in line.get("answers", []):
                    said = [Answer(loss, pred) for loss, pred in zip(losses, preds, strict=True)]
                    found.append((number, (image, keys[image]), said))
        for number, which, said in sorted(found, key=lambda entry: entry[0]):  # an image may go on in another file
            answers = self._known.setdefault(which, [])
            if number <= len(answers):
                answers[number : number + len(said)] = said


def read_ledger(path: str | Path) -> list[dict[str, Any]]:
    """The lines of a ledger, those of all processes, by rising image id.

    Args:
        path: as it was given to :class:`Ledger`.

    Returns:
        One dict per finished image, with the ``id``, the ``key``, and what an attack tells of it; none without a file.
    """
    path = Path(path)
    lines = [line for file in [path, *_other_ranks(path)] for line in _lines(file)]
    newest = {line["id"]: line for line in lines}
    return [newest[image] for image in sorted(newest)]


def merge(path: str | Path) -> list[dict[str, Any]]:
    """Make one file of the lines of all processes, sorted by image id; to be called by one, when all are done.

    Args:
        path: as it was given to :class:`Ledger`.

    Returns:
        The lines.
    """
    path = Path(path)
    lines = read_ledger(path)
    aside = path.with_suffix(".tmp")
    aside.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    os.replace(aside, path)
    for other in _other_ranks(path):
        other.unlink()
    return lines


def _other_ranks(path: Path) -> list[Path]:
    """Files of lines that other processes wrote under the settings of the first."""
    files = [file for file in _of_all_ranks(path) if file != path]
    settings = _settings_of(path.with_suffix(".answers"))
    return [file for file in files if settings is None or _settings_of(file.with_suffix(".answers")) == settings]


def _of_all_ranks(path: Path) -> list[Path]:
    """The file and those that other processes have in its place; not files whose names only begin alike."""
    name = re.compile(re.escape(path.stem) + r"(-\d+)?" + re.escape(path.suffix))
    files = sorted(path.parent.iterdir()) if path.parent.is_dir() else []
    return [file for file in files if name.fullmatch(file.name)]


def _of_rank(path: Path, rank: int) -> Path:
    return path.with_stem(f"{path.stem}-{rank}") if rank else path


def _lines(path: Path) -> Iterable[dict[str, Any]]:
    """The whole lines of a file; a last one that was torn, or a file that is gone, is none."""
    with suppress(FileNotFoundError), path.open(encoding="utf-8") as file:
        for text in file:
            if text.endswith("\n"):
                yield json.loads(text)


def _settings_of(path: Path) -> dict[str, Any] | None:
    return next(iter(_lines(path)), {}).get("settings")


def _cut_torn_line(path: Path) -> None:
    if path.exists():
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(path, whole)


def _put_aside(path: Path) -> None:
    number = 1
    while (other := path.with_name(f"{path.name}.{number}")).exists():
        number += 1
    with suppress(FileNotFoundError):
        os.replace(path, other)
