"""The report: one self-contained HTML page that explains a run directory, or several side by side.

Torch is not imported: a page takes a second or two. :mod:`.reading` finds what a run left, :mod:`.comparing` what
differs from its recipe and from the paper's settings, :mod:`.curves` and :mod:`.pictures` make what is seen, and
:mod:`.page` puts it into the templates.
"""

import os
import sys
from pathlib import Path
from typing import NamedTuple

NAME = "report.html"  # unless the user names another


def report(argv: list[str]) -> int:
    """Write the page.

    Args:
        argv: the words after the command: the runs' directories, ``--output FILE``.

    Returns:
        0, after the page's path as the last line; 2 for a mistake in what the user gave, after one line on stderr.

    Example:
        >>> from tempfile import mkdtemp
        >>> run = Path(mkdtemp())
        >>> _ = (run / "config.yaml").write_text("recipe: toy")
        >>> report([str(run)])  # doctest: +ELLIPSIS
        1 run, 0 pictures, ... kB
        .../report.html
        0
        >>> "<h1>toy</h1>" in (run / "report.html").read_text("utf-8")
        True
    """
    from lit_methods.cli.report.page import render
    from lit_methods.cli.report.reading import read_runs

    try:
        words = _words(argv)
        runs = read_runs(words.folders)
        output = words.output or runs[0].path / NAME
        _check(output)
        text = render(runs)
        _write(output, text)
    except (ValueError, OSError) as ex:
        print(f"error: {ex}", file=sys.stderr)
        return 2
    shown = sum(len(run.pictures) for run in runs)
    print(f"{_counted(len(runs), 'run')}, {_counted(shown, 'picture')}, {-(-len(text.encode()) // 1000)} kB")
    print(os.path.abspath(output))
    return 0


class Words(NamedTuple):
    """What the user gave: the runs' directories, and where the page goes; ``None`` is beside the first run."""

    folders: list[Path]
    output: Path | None = None


def _words(argv: list[str]) -> Words:
    """The words of the command.

    Raises:
        ValueError: no directory, an option that there is not, or ``--output`` without a file.

    Example:
        >>> words = _words(["a", "--output=c.html", "b"])
        >>> [str(folder) for folder in words.folders], str(words.output)
        (['a', 'b'], 'c.html')
    """
    folders: list[Path] = []
    output: str | None = None
    rest = iter(argv)
    for word in rest:
        name, equals, value = word.partition("=")
        if name == "--output":
            output = value if equals else next(rest, "")
            if not output or output.startswith("--"):
                raise ValueError("output: name the HTML file, as in --output report.html")
        elif word.startswith("-"):
            raise ValueError(f"no option {name!r}: python -m lit_methods.report RUN_DIR [RUN_DIR...] [--output FILE]")
        else:
            folders.append(Path(word))
    if not folders:
        raise ValueError("RUN_DIR: missing; name the directory of a run, which fit prints as its last line")
    return Words(folders, Path(output) if output else None)


def _check(output: Path) -> None:
    if output.is_dir():
        raise ValueError(f"output={str(output)!r} is a directory; name the file")
    if not output.parent.is_dir():
        raise ValueError(f"output={str(output)!r}: there is no directory {str(output.parent)!r}")


def _write(output: Path, text: str) -> None:
    """Beside its place first: whoever reads meanwhile sees the old page or the new one, and no half of it."""
    beside = output.with_name(f".{output.name}.{os.getpid()}")
    try:
        beside.write_text(text, "utf-8")
        os.replace(beside, output)
    except OSError as ex:
        raise ValueError(f"output={str(output)!r} cannot be written ({ex.strerror}); name another --output") from None
    finally:
        beside.unlink(missing_ok=True)


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
