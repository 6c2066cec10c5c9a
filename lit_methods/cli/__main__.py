"""``python -m lit_methods``: which commands there are. The standard library alone."""

import sys

from lit_methods.cli.usage import ENTRIES, overview


def main(argv: list[str]) -> int:
    """Print one line per command.

    Args:
        argv: the words after ``python -m lit_methods``.

    Returns:
        The exit code: 0, or 2 after one line on stderr where a word is more than a call for help.
    """
    if unknown := [word for word in argv if word not in ("-h", "--help")]:
        word = unknown[0]
        entry = word if word in ENTRIES else "fit"
        print(f"error: {word!r}: a command has a dot before it, as in python -m lit_methods.{entry}", file=sys.stderr)
        return 2
    print(overview())
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
