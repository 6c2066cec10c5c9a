"""Lists of refs as JSON, which every program reads, instead of the pickles that they are distributed as.

``python -m datamodules.refcoco_json "data/refer/refcoco/refs(unc).p"`` writes ``refs(unc).json`` beside it, which the
data module then reads instead.
"""

import json
import os
import sys
from pathlib import Path

from datamodules.pickles import read_plain
from datamodules.refcoco_files import checked_refs
from lit_methods.functional.suggestions import first_line


def convert_refs(path: str | Path, target: str | Path | None = None) -> Path:
    """Write the list of refs of a pickle as JSON; the same list, with all its fields.

    Args:
        path: the pickle, such as ``refs(unc).p``.
        target: the file to write; ``None`` is beside the pickle, with the ending ``.json``.

    Returns:
        The file that was written.

    Raises:
        FileNotFoundError: there is no such pickle, or no folder of the target.
        FileExistsError: the target is there already.
        ValueError: the pickle is damaged, is no list of refs, or holds something that JSON has no word for.

    Example:
        >>> import pickle, tempfile
        >>> with tempfile.TemporaryDirectory() as root:
        ...     ref = {"ref_id": 7, "ann_id": 8, "image_id": 9, "split": "val", "sentences": [{"sent": "left cat"}]}
        ...     _ = Path(root, "refs(unc).p").write_bytes(pickle.dumps([ref], protocol=2))
        ...     written = convert_refs(Path(root, "refs(unc).p"))
        ...     written.name, json.loads(written.read_text()) == [ref]
        ('refs(unc).json', True)
    """
    path = Path(path)
    target = path.with_suffix(".json") if target is None else Path(target)
    if target.exists():
        raise FileExistsError(f"target={str(target)!r} is there already; remove it, or give another")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"target={str(target)!r}: there is no folder {str(target.parent)!r}")
    content = read_plain(path)
    checked_refs(content, path)
    try:
        text = json.dumps(content, allow_nan=False)
        if json.loads(text) != content:  # keys that are numbers
            raise ValueError("a dict in it has keys that are no strings")
    except ValueError as error:
        raise ValueError(f"{str(path)!r} cannot be written as JSON: {first_line(error)}") from None
    part = target.with_name(f".{target.name}.{os.urandom(8).hex()}.part")
    try:
        part.write_text(text, "utf-8")
        os.replace(part, target)
    except OSError:
        part.unlink(missing_ok=True)
        raise
    return target


def main(words: list[str] | None = None) -> int:
    """Convert the pickles that the command line names.

    Args:
        words: of the command line; ``None`` is this process's.

    Returns:
        The exit code: 0, or 2 for a mistake, which is told in one line.
    """
    words = sys.argv[1:] if words is None else words
    if not words or words[0] in ("-h", "--help"):
        print('usage: python -m datamodules.refcoco_json "data/refer/refcoco/refs(unc).p" ...')
        return 0 if words else 2
    for word in words:
        try:
            print(f"wrote {convert_refs(word)}")
        except (OSError, ValueError) as error:
            print(f"error: {first_line(error)}", file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
