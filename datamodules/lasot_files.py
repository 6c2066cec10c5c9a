"""LaSOT on disk: its videos, its split, and the annotation alone as its evaluation toolkit has it."""

import os
import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn

from datamodules.lasot_split import TEST_VIDEOS
from datamodules.tracking_sequences import NumberedFrames, TrackingSequence
from datamodules.tracking_text import Lengths, flags_of, list_frames, read_flags, read_rows
from lit_methods.functional.frames import natural_key
from lit_methods.functional.suggestions import shorten
from lit_methods.functional.text_lines import read_lines

GROUND_TRUTH, SPLIT_FILE, IMAGES = "groundtruth.txt", "testing_set.txt", "img"
FLAGS = ("full_occlusion.txt", "out_of_view.txt")
ATTRIBUTE_FOLDERS = ("att", "annos/att")
ATTRIBUTES = (  # in the order of run_tracker_performance_evaluation.m of the toolkit
    "Illumination Variation", "Partial Occlusion", "Deformation", "Motion Blur", "Camera Motion", "Rotation",
    "Background Clutter", "Viewpoint Change", "Scale Variation", "Full Occlusion", "Fast Motion", "Out-of-View",
    "Low Resolution", "Aspect Ratio Change",
)  # fmt: skip
_THREADS = 8  # most of the time goes into opening small files


def find_videos(root: Path) -> dict[str, Path]:
    """The videos below the root of LaSOT, in natural order.

    They lie in a folder for each category, ``airplane/airplane-1``, as distributed, or directly in the root.

    Args:
        root: of the data set.

    Returns:
        Name to folder; nothing where the root does not exist.

    Source:
        The nested layout is the official one; the flat one is inferred.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as root:
        ...     for name in ("dog/dog-10", "dog/dog-9", "cat-1"):
        ...         Path(root, name, "img").mkdir(parents=True)
        ...     list(find_videos(Path(root)))
        ['cat-1', 'dog-9', 'dog-10']
    """
    found: dict[str, Path] = {}
    for folder in _folders(root):
        if (folder / GROUND_TRUTH).is_file() or (folder / IMAGES).is_dir():
            found[folder.name] = folder
        else:
            found |= {video.name: video for video in _folders(folder) if category_of(video.name) == folder.name}
    return {name: found[name] for name in sorted(found, key=natural_key)}


def category_of(name: str) -> str:
    """The category of a video: what stands before the last hyphen of its name.

    Example:
        >>> category_of("rubicCube-14")
        'rubicCube'
    """
    return name.rpartition("-")[0]


def read_test_names(root: Path, split: str | None = None) -> list[str]:
    """The names of the test videos; all other videos are there to train on.

    Args:
        root: of the data set.
        split: a file with a name on each line, from the root or absolute; ``None`` takes ``testing_set.txt`` of the
            root if there is one, else the official list.

    Raises:
        FileNotFoundError: the file is not there.
        ValueError: it is empty, or names a video twice.

    Example:
        >>> names = read_test_names(Path("nowhere"))
        >>> len(names), names[:2]
        (280, ['airplane-1', 'airplane-9'])
    """
    path = root / (split or SPLIT_FILE)
    if split is None and not path.is_file():
        return list(TEST_VIDEOS)
    if not path.is_file():
        raise FileNotFoundError(
            f"test_split={split!r} is not in root={str(root)!r}: it must be a file with the name of a test video on "
            "each line; null takes the official list"
        )
    names: list[str] = []
    for line in read_lines(path):
        if not line.text.strip() or line.text.strip() in names:
            raise line.fault("expected the name of a video that does not come twice")
        names.append(line.text.strip())
    if not names:
        raise ValueError(f"{str(path)!r} is empty; it must have the name of a test video on each line")
    return names


def read_videos(videos: Mapping[str, Path], root: Path) -> list[TrackingSequence]:
    """Read the annotation of videos; no picture is opened.

    The target is present where both ``full_occlusion.txt`` and ``out_of_view.txt`` say 0. Attributes are known where
    the files of the evaluation toolkit lie in ``att`` or ``annos/att`` of the root. A video whose frames and lines
    differ a little in number is cut, with one warning for all, see :class:`~datamodules.tracking_text.Lengths`.

    Args:
        videos: name to folder, see :func:`find_videos`.
        root: of the data set.

    Raises:
        FileNotFoundError: a video lacks its ground truth, a file of flags or its frames.
        ValueError: a line does not parse, or frames and lines differ much in number.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as root:
        ...     folder = Path(root, "dog", "dog-1")
        ...     (folder / "img").mkdir(parents=True)
        ...     (folder / "img" / "00000001.jpg").touch()
        ...     _ = (folder / "groundtruth.txt").write_text("1,2,3,4\\n")
        ...     for name in FLAGS:
        ...         _ = (folder / name).write_text("0\\n")
        ...     video, = read_videos(find_videos(Path(root)), Path(root))
        >>> video.name, video.category, video.boxes.tolist(), video.present.tolist()
        ('dog-1', 'dog', [[1.0, 2.0, 3.0, 4.0]], [True])
    """
    attributes = next((root / name for name in ATTRIBUTE_FOLDERS if (root / name).is_dir()), None)
    lengths = Lengths()
    with ThreadPoolExecutor(_THREADS) as threads:
        found = list(threads.map(lambda item: _read_video(item[0], item[1], attributes, lengths), videos.items()))
    lengths.cut.sort(key=natural_key)  # threads end in any order
    lengths.tell()
    return found


def read_annotations(root: Path, names: Iterable[str] | None = None) -> list[TrackingSequence]:
    """Read annotation without frames, as the evaluation toolkit has it: enough to score results against.

    The toolkit has ``annos/<video>.txt``, ``annos/absent/<video>.txt`` (1: the target is absent) and
    ``annos/att/<video>.txt``.

    Args:
        root: holds ``annos``.
        names: which; ``None`` is all, in natural order.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: a line does not parse, or lines and flags differ in number.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as root:
        ...     Path(root, "annos", "absent").mkdir(parents=True)
        ...     _ = Path(root, "annos", "dog-1.txt").write_text("1,2,3,4\\n")
        ...     _ = Path(root, "annos", "absent", "dog-1.txt").write_text("1\\n")
        ...     video, = read_annotations(Path(root))
        >>> video.present.tolist(), len(video.frames)
        ([False], 0)
    """
    folder = root / "annos"
    if names is None:
        names = sorted((path.stem for path in folder.glob("[!.]*.txt")), key=natural_key)
    lengths, found = Lengths(), []
    for name in names:
        boxes, absent = read_rows(folder / f"{name}.txt"), read_flags(folder / "absent" / f"{name}.txt")
        count = lengths.shortest(name, {f"lines in {name}.txt": len(boxes), f"flags in absent/{name}.txt": len(absent)})
        attributes = _read_attributes(folder / "att" / f"{name}.txt")
        found.append(TrackingSequence(name, (), boxes[:count], ~absent[:count], None, attributes, category_of(name)))
    lengths.tell()
    return found


def read_test_videos(root: Path, split: str | None = None) -> list[TrackingSequence]:
    """Read the test videos, or their annotation where the root has that alone.

    Test videos that are not there are left out with a warning: published figures are of all 280.

    Args:
        root: of the data set, or of the evaluation toolkit.
        split: as in :func:`read_test_names`.

    Raises:
        FileNotFoundError: there are no test videos at all, or one lacks a file.
        ValueError: as :func:`read_videos`.

    Example:
        >>> read_test_videos(Path("nowhere"))
        Traceback (most recent call last):
        FileNotFoundError: root='nowhere' does not exist. ...
    """
    videos, names = find_videos(root), read_test_names(root, split)
    annotated = not videos and (root / "annos").is_dir()
    there = {path.stem for path in (root / "annos").glob("*.txt")} if annotated else set(videos)
    if not there:
        raise FileNotFoundError(missing_root(root))
    missing = [name for name in names if name not in there]
    if len(missing) == len(names):
        raise FileNotFoundError(f"root={str(root)!r} has none of the {len(names)} test videos, such as {names[0]}")
    if missing:
        rank_zero_warn(
            f"{len(missing)} of {len(names)} test videos are not in root={str(root)!r} and are left out: "
            f"{shorten(missing)}. Published figures are of all."
        )
    chosen = [name for name in names if name in there]
    if annotated:
        return read_annotations(root, chosen)
    return read_videos({name: videos[name] for name in chosen}, root)


def missing_root(root: Path) -> str:
    """What to say where no videos are found.

    Example:
        >>> missing_root(Path("nowhere"))
        "root='nowhere' does not exist. ..."
    """
    problem = "holds no videos" if root.is_dir() else "does not exist"
    return (
        f"root={str(root)!r} {problem}. Point root at the folder with <category>/<category>-<n>/{GROUND_TRUTH}, as "
        "LaSOT is distributed: its archives, for research alone, are linked from https://vision.cs.stonybrook.edu/"
        "~lasot/. demo=True of LaSOTDataModule writes a small drawn set."
    )


def _read_video(name: str, folder: Path, attributes: Path | None, lengths: Lengths) -> TrackingSequence:
    for file in (GROUND_TRUTH, *FLAGS):
        if not (folder / file).is_file():
            raise FileNotFoundError(
                f"the video {str(folder)!r} lacks {file}; the archives of LaSOT have it. If it was lost, write "
                f"{'x,y,w,h on a line for each frame' if file == GROUND_TRUTH else 'a 0 or 1 for each frame'}."
            )
    boxes = read_rows(folder / GROUND_TRUTH)
    flags = {file: read_flags(folder / file) for file in FLAGS}
    images = _frames(folder / IMAGES, len(boxes))
    counts = {f"lines in {str(folder / GROUND_TRUTH)!r}": len(boxes)}
    counts |= {f"flags in {file}": len(values) for file, values in flags.items()} | {"frames in img": len(images)}
    count = lengths.shortest(name, counts)
    absent = np.any([values[:count] for values in flags.values()], axis=0)
    return TrackingSequence(
        name,
        images if len(images) == count else images[:count],
        boxes[:count],
        ~absent,
        attributes=_read_attributes(attributes / f"{name}.txt") if attributes else (),
        category=category_of(name),
    )


def _frames(folder: Path, count: int) -> NumberedFrames | tuple[str, ...]:
    """The frames of a folder; three of them are looked at where there are as many as expected, named as expected."""
    numbered = NumberedFrames(str(folder), 1, count + 1, 8)
    if [os.path.exists(numbered[place]) for place in (0, count - 1, count)] == [True, True, False]:
        return NumberedFrames(str(folder), 1, count, 8)
    return list_frames(folder)


def _read_attributes(path: Path) -> tuple[str, ...]:
    if not path.is_file():
        return ()
    flags = read_flags(path)
    if len(flags) != len(ATTRIBUTES):
        raise ValueError(f"{str(path)!r} must have {len(ATTRIBUTES)} flags, one for each attribute, got {len(flags)}")
    return flags_of(ATTRIBUTES, flags)


def _folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return [Path(entry.path) for entry in entries if not re.match(r"[._]", entry.name) and entry.is_dir()]
