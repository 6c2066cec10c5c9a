"""The user's own videos with the boxes from which they are tracked."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from lit_methods.functional.pictures import BadImageError
from lit_methods.functional.suggestions import shorten
from lit_methods.functional.text_lines import read_lines
from lit_methods.functional.video import GROUND_TRUTHS, IMAGE_FOLDERS, Video, open_video
from lit_methods.siamban.clip_rows import ClipRow
from lit_methods.siamban.runs import start_box

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class OwnClip:
    """A video that is to be tracked.

    Args:
        video: an open one.
        name: what its film and its rows are called; no other clip of the same prediction has it.
        box: x, y, w, h as the tracker is started with them.
        start: index of the frame that ``box`` belongs to.
        done: rows from ``start`` on that an earlier run has left; the last one holds the state to go on from.
    """

    video: Video
    name: str
    box: Box
    start: int = 0
    done: tuple[ClipRow, ...] = ()


def own_clips(
    paths: Sequence[str | Path],
    boxes: Sequence[str] = (),
    start: int | None = None,
    rows: Sequence[ClipRow] | None = None,
    decodable: bool = True,
) -> tuple[list[OwnClip], dict[Path, str]]:
    """Pair videos with their first boxes.

    Args:
        paths: films, GIFs and folders of frames.
        boxes: ``"x,y,w,h"`` for each path, in pixels of its first frame, or none: then a folder's ``groundtruth.txt``
            or ``groundtruth_rect.txt`` gives it, or the first of ``rows``.
        start: index of the frame to begin at, to which the box belongs; with ``rows`` the last one that counts.
        rows: of an earlier run that is to be continued.
        decodable: whether a folder with a picture that cannot be read is one of the unreadable paths.

    Returns:
        The clips, and for each path that cannot be read the reason.

    Raises:
        FileNotFoundError: none of ``paths`` exists.
        ValueError: a box is missing, does not parse or lies outside of the frames; a path is no video; ``start`` or
            ``rows`` do not fit.

    Source:
        ``start_box``, as in evaluations: the same sequence gets the same boxes here and there.
    """
    if boxes and len(boxes) != len(paths):
        raise ValueError(
            f"box: given {len(boxes)} times for {len(paths)} inputs; repeat --box x,y,w,h in the order of the inputs, "
            f"or leave it out where folders have a {GROUND_TRUTHS[0]}"
        )
    given = [_parse(text) for text in boxes]
    if start is not None and start < 0:
        raise ValueError(f"start={start} must be the index of a frame, from 0")
    videos: list[tuple[int, Video]] = []
    faults: dict[Path, str] = {}
    for number, path in enumerate(map(Path, paths)):
        try:
            video = open_video(path)
            video.check(decodable)
            videos.append((number, video))
        except (BadImageError, FileNotFoundError) as error:
            faults[path] = str(error)
    if not videos and not any(path.exists() for path in faults):
        raise FileNotFoundError(f"input={str(next(iter(faults)))!r} does not exist")
    known = [_rows_of(video, rows or (), len(paths) == 1) for _, video in videos]
    if rows is not None and videos and not any(known):
        theirs = shorten(dict.fromkeys(row.file for row in rows), 3) or "nothing"
        raise ValueError(f"resume: holds no rows of {str(videos[0][1].path)!r}; it has those of {theirs}")
    clips: list[OwnClip] = []
    for (number, video), done in zip(videos, known, strict=True):
        box = given[number] if given else None
        clip = _continued(video, done, box, start) if done else _begun(video, box, start or 0)
        clips.append(replace(clip, name=_unique(video.name, [clip.name for clip in clips])))
    return clips, faults


def _begun(video: Video, box: Box | None, start: int) -> OwnClip:
    if video.length is not None and start >= video.length:
        raise ValueError(f"start={start}: the last frame of {str(video.path)!r} is {video.length - 1}")
    if box is not None:
        _check_box(box, f"box={list(box)}", video)
        return OwnClip(video, video.name, _tracked(box), start)
    if (file := _ground_truth(video.path)) is None:
        raise ValueError(
            f"box: missing for {str(video.path)!r}, which has no {' and no '.join(GROUND_TRUTHS)}; give --box x,y,w,h"
        )
    return OwnClip(video, video.name, _annotated(file, start, video), start)


def _continued(video: Video, rows: list[ClipRow], box: Box | None, start: int | None) -> OwnClip:
    first, last = rows[0].frame, rows[-1].frame
    begun = rows[0].x, rows[0].y, rows[0].w, rows[0].h
    if [row.frame for row in rows] != list(range(first, last + 1)):
        raise ValueError(f"resume: the frames of {str(video.path)!r} are not one after another")
    if start is not None and not first <= start <= last:
        raise ValueError(f"start={start}: resume has the frames {first} to {last} of {str(video.path)!r}")
    if video.length is not None and last >= video.length:
        raise ValueError(f"resume: has frame {last} of {str(video.path)!r}, which has {video.length} frames")
    if box is not None and _tracked(box) != begun:
        before = [begun[0] - 0.5, begun[1] - 0.5, *begun[2:]]
        raise ValueError(f"box={list(box)}: the run in resume began with {before}; leave box out")
    return OwnClip(video, video.name, begun, first, tuple(rows[: len(rows) if start is None else start - first + 1]))


def _parse(text: str) -> Box:
    try:
        x, y, w, h = (float(word) for word in re.split(r"[,\s]+", text.strip()))
    except ValueError:
        raise ValueError(f"box={text!r} must be four numbers x,y,w,h, in pixels of the first frame") from None
    return x, y, w, h


def _check_box(box: Box, shown: str, video: Video) -> None:
    x, y, w, h = box
    height, width = video.size
    frames = f"the frames of {str(video.path)!r}, which are {width}x{height} (width x height)"
    if not all(map(math.isfinite, box)):
        raise ValueError(f"{shown} must be four finite numbers x, y, w, h")
    if w <= 0 or h <= 0:
        raise ValueError(f"{shown} has no area: the third and fourth numbers are width and height")
    if x + 0.5 >= width or y + 0.5 >= height or x + w <= 0 or y + h <= 0:  # 0.5: as it is tracked
        raise ValueError(f"{shown} lies outside of {frames}")


def _tracked(region: Sequence[float]) -> Box:
    x, y, w, h = start_box(torch.tensor(region, dtype=torch.float64)).tolist()
    return x, y, w, h


def _ground_truth(path: Path) -> Path | None:
    folders = [path, path.parent] if path.name in IMAGE_FOLDERS else [path]
    files = [folder / name for folder in folders if folder.is_dir() for name in GROUND_TRUTHS]
    return next((file for file in files if file.is_file()), None)


def _annotated(file: Path, index: int, video: Video) -> Box:
    """The box of a frame in a file of ground truth, which may hold polygons."""
    lines = read_lines(file)
    if index >= len(lines):
        raise ValueError(f"{str(file)!r} has {len(lines)} lines, none for frame {index}; give --box x,y,w,h")
    line = lines[index]
    try:
        box = _tracked(line.numbers())
    except ValueError:
        raise line.fault("it must hold 4 or 8 numbers; give --box x,y,w,h") from None
    plain = box[0] - 0.5, box[1] - 0.5, box[2], box[3]
    _check_box(plain, f"{line.where}: the box {list(plain)}", video)
    return box


def _rows_of(video: Video, rows: Sequence[ClipRow], alone: bool) -> list[ClipRow]:
    """Those of one video; alone in its prediction it may have moved since."""

    def same(row: ClipRow) -> bool:
        if video.length is not None and row.frame >= video.length:
            return Path(row.file).resolve() == video.path.resolve()  # of a film that became shorter
        ours, theirs = Path(video.frame_name(row.frame)), Path(row.file)
        return ours.name == theirs.name if alone else ours.resolve() == theirs.resolve()

    return [row for row in rows if same(row)]


def _unique(name: str, taken: Sequence[str]) -> str:
    """A name that no other clip has, on disks that ignore case, too."""
    known, number, found = {other.lower() for other in taken}, 1, name
    while found.lower() in known:
        number += 1
        found = f"{name}-{number}"
    return found
