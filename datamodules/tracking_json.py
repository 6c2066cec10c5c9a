"""The JSON files that the official code's toolkit reads benchmarks from."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.tracking_polygons import boxes_of, corners
from datamodules.tracking_sequences import TrackingSequence
from datamodules.tracking_text import Lengths
from lit_methods.functional.suggestions import shorten

TAGS = ("camera_motion", "illum_change", "motion_change", "size_change", "occlusion")


def read_json(root: Path) -> list[TrackingSequence]:
    """Read a benchmark from its JSON file, such as ``OTB100/OTB100.json``.

    The file maps the name of each sequence to ``video_dir``, ``init_rect``, ``img_names`` (paths from the folder of the
    file), ``gt_rect`` (lists of four or eight numbers), and perhaps ``attr`` (names of attributes), ``absent`` (a
    number for each frame, where 1 means that the target is PRESENT), and tags of frames such as ``camera_motion``.
    VOT's files may name frames without the folder ``color`` that they lie in.

    Args:
        root: the file, or a folder with one such file.

    Raises:
        FileNotFoundError: there is no such file, or not one alone.
        ValueError: it is no such JSON; names the sequence and the field.

    Source:
        Section 5; the fields of tags and ``color`` are recalled.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as root:
        ...     fields = {"img_names": ["Deer/img/0001.jpg"], "gt_rect": [[1, 2, 3, 4]], "attr": ["Fast Motion"]}
        ...     _ = Path(root, "OTB100.json").write_text(json.dumps({"Deer": fields}))
        ...     video, = read_json(Path(root))
        >>> video.name, video.boxes.tolist(), video.attributes
        ('Deer', [[1.0, 2.0, 3.0, 4.0]], ('Fast Motion',))
    """
    path = root
    if not root.is_file():
        files = sorted(root.glob("[!.]*.json"))
        if len(files) != 1:
            problem = f"has {shorten(file.name for file in files)}" if files else "has no JSON file"
            raise FileNotFoundError(f"root={str(root)!r} {problem}; name the one file of the benchmark")
        path = files[0]
    try:
        videos = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{str(path)!r} is no JSON: {error}") from None
    if not isinstance(videos, dict) or not videos:
        raise ValueError(f"{str(path)!r} must map the name of each sequence to its fields")
    lengths = Lengths()
    found = [_read(path, name, fields, lengths) for name, fields in videos.items()]
    lengths.tell()
    return found


def _read(path: Path, name: str, fields: Any, lengths: Lengths) -> TrackingSequence:
    where = f"{str(path)!r}, {name!r}"
    missing = {"img_names", "gt_rect"} - set(fields if isinstance(fields, dict) else ())
    if missing:
        raise ValueError(f"{where} lacks {' and '.join(sorted(missing))}")
    try:
        rows = np.array(fields["gt_rect"], np.float64)
    except (TypeError, ValueError):
        rows = np.zeros((0, 0))
    if rows.ndim != 2 or rows.shape[1] not in (4, 8):
        raise ValueError(f"{where}: gt_rect must have four or eight numbers for each frame")
    names = [*map(str, fields["img_names"])]
    flags = {key: fields[key] for key in ("absent", *TAGS) if fields.get(key)}
    counts = {"boxes in gt_rect": len(rows), "names in img_names": len(names)}
    count = lengths.shortest(f"{name} of {path}", counts | {f"numbers in {key}": len(flags[key]) for key in flags})
    parts = {key: np.array(flags[key][:count], np.float64) == 1 for key in flags}
    polygons = corners(rows[:count]) if rows.shape[1] == 8 else None
    return TrackingSequence(
        name,
        _paths(path.parent, names[:count]),
        rows[:count] if polygons is None else boxes_of(polygons),
        parts.pop("absent", None),
        polygons,
        tuple(map(str, fields.get("attr", ()))),
        tags=parts,
    )


def _paths(root: Path, names: list[str]) -> tuple[str, ...]:
    folder, _, file = names[0].rpartition("/")
    if not (root / names[0]).is_file() and (root / folder / "color" / file).is_file():
        names = [f"{folder}/color/{name.rpartition('/')[2]}" for name in names]
    return tuple(f"{root}/{name}" for name in names)
