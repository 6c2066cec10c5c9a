"""Videos of tracking benchmarks on disk, as they are distributed; and any folder of frames.

What is said of OTB100 and NFS is recalled. Which frames of OTB100 count was compared with the table of pytracking
(visionml/pytracking, otbdataset.py); nothing was checked on the data themselves.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datamodules.lasot_files import FLAGS
from datamodules.tracking_polygons import boxes_of, corners
from datamodules.tracking_sequences import TrackingSequence
from datamodules.tracking_text import Lengths, list_frames, read_flags, read_rows
from lit_methods.functional.frames import natural_key
from lit_methods.functional.pictures import list_images
from lit_methods.functional.text_lines import read_lines
from lit_methods.functional.video import GROUND_TRUTHS, IMAGE_FOLDERS

OTB_TRUTH = "groundtruth_rect.txt"
OTB_RANGES = {  # first and last number of a frame that counts; the folders hold more
    "BlurCar1": (247, None),
    "BlurCar3": (3, None),
    "BlurCar4": (18, None),
    "David": (300, 770),
    "Diving": (1, 215),
    "Football1": (1, 74),
    "Freeman3": (1, 460),
    "Freeman4": (1, 283),
    "Tiger1": (6, None),
}
OTB_SECOND_ONLY = ("Human4",)  # OTB100 has its second target alone


def read_folder(folder: Path) -> TrackingSequence:
    """Read a folder of frames as a video; with ground truth where it lies beside them.

    Frames are pictures in the folder itself, or in ``img`` or ``color`` of it, in natural order. Ground truth is
    ``groundtruth.txt`` or ``groundtruth_rect.txt``: four numbers x, y, w, h or eight of a polygon on each line; a
    single line is the box of the first frame, the others are not known then. Flags are read as LaSOT's where they are
    there.

    Args:
        folder: of the video.

    Returns:
        The video, called like its folder; without ground truth its boxes are NaN.

    Raises:
        FileNotFoundError: there are no frames.
        ValueError: a line does not parse, or frames and lines differ much in number.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for number in (2, 10, 1):
        ...         Path(folder, f"{number}.jpg").touch()
        ...     _ = Path(folder, "groundtruth.txt").write_text("5,6,7,8\\n")
        ...     video = read_folder(Path(folder))
        >>> [Path(frame).name for frame in video.frames], video.first_box.tolist()
        (['1.jpg', '2.jpg', '10.jpg'], [5.0, 6.0, 7.0, 8.0])
    """
    lengths = Lengths()
    video = _read_folder(folder, lengths)
    lengths.tell()
    return video


def read_folders(root: Path) -> list[TrackingSequence]:
    """Read a folder of frames, or a folder of such folders, see :func:`read_folder`.

    Args:
        root: of one video, or of several in natural order.

    Raises:
        FileNotFoundError: there is neither.
        ValueError: as :func:`read_folder`.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as root:
        ...     for name in ("b", "a"):
        ...         Path(root, name).mkdir()
        ...         Path(root, name, "1.jpg").touch()
        ...     [video.name for video in read_folders(Path(root))]
        ['a', 'b']
    """
    if _frame_folder(root):
        return [read_folder(root)]
    folders = [folder for folder in subfolders(root) if _frame_folder(folder)]
    if not folders:
        raise FileNotFoundError(f"root={str(root)!r} has no pictures, nor folders with pictures of one video each")
    lengths = Lengths()
    found = [_read_folder(folder, lengths) for folder in folders]
    lengths.tell()
    return found


def read_otb(root: Path) -> list[TrackingSequence]:
    """Read OTB100: ``<Sequence>/img/0001.jpg`` and ``<Sequence>/groundtruth_rect.txt``.

    Two sequences have two targets, ``groundtruth_rect.1.txt`` and ``.2.txt``, and count twice, as ``Jogging-1`` and
    ``Jogging-2``, ``Skating2-1`` and ``Skating2-2``; of ``Human4`` the second alone counts, as ``Human4-2``. Of some
    sequences not all frames count. Names of frames have four digits, those of ``Board`` five, and one sequence has
    PNGs. Lines have commas, tabs or blanks. Boxes count pixels from 1 and are left so, as by the toolkits.

    Args:
        root: holds the folders of the sequences.

    Raises:
        FileNotFoundError: there are none, or one lacks its frames.
        ValueError: a line does not parse, or frames and lines differ much in number.

    Source:
        The layout is recalled, and so is which frames count, which agrees with pytracking.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as root:
        ...     Path(root, "Jogging", "img").mkdir(parents=True)
        ...     Path(root, "Jogging", "img", "0001.jpg").touch()
        ...     for target in (1, 2):
        ...         _ = Path(root, "Jogging", f"groundtruth_rect.{target}.txt").write_text("1,2,3,4\\n")
        ...     [video.name for video in read_otb(Path(root))]
        ['Jogging-1', 'Jogging-2']
    """
    lengths = Lengths()
    found = [
        _read_otb(folder, truth, lengths)
        for folder in subfolders(root)
        for truth in _otb_truths(folder)
    ]  # fmt: skip
    if not found:
        raise FileNotFoundError(f"root={str(root)!r} has no folders with {OTB_TRUTH}; OTB100 has one for each sequence")
    lengths.tell()
    return found


def read_nfs(root: Path) -> list[TrackingSequence]:
    """Read NFS at 30 frames a second: ``<name>/30/<name>/00001.jpg`` and ``<name>/30/<name>.txt``.

    A line begins with a number that means nothing here, then x0, y0, x1, y1. Where there are eight times as many lines
    as frames, they belong to the video at 240 frames a second, and each eighth is read, from the first on.

    Args:
        root: holds the folders of the sequences.

    Raises:
        FileNotFoundError: there are none, or one lacks its frames.
        ValueError: a line does not parse, or frames and lines differ much in number.

    Source:
        Recalled.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as root:
        ...     Path(root, "bee", "30", "bee").mkdir(parents=True)
        ...     Path(root, "bee", "30", "bee", "00001.jpg").touch()
        ...     _ = Path(root, "bee", "30", "bee.txt").write_text('0 10 20 40 60 0 0 0 "bee"\\n')
        ...     read_nfs(Path(root))[0].boxes.tolist()
        [[10.0, 20.0, 30.0, 40.0]]
    """
    lengths, found = Lengths(), []
    for folder in subfolders(root):
        name = folder.name
        truth = folder / "30" / f"{name}.txt"
        if not truth.is_file():
            continue
        frames, corners_xyxy = list_frames(folder / "30" / name), _nfs_rows(truth)
        if abs(len(corners_xyxy) / len(frames) - 8) < 1:
            corners_xyxy = corners_xyxy[::8]
        count = lengths.shortest(name, {f"lines in {str(truth)!r}": len(corners_xyxy), "frames": len(frames)})
        boxes = np.concatenate([corners_xyxy[:, :2], corners_xyxy[:, 2:] - corners_xyxy[:, :2]], axis=1)
        found.append(TrackingSequence(name, frames[:count], boxes[:count]))
    if not found:
        raise FileNotFoundError(f"root={str(root)!r} has no <name>/30/<name>.txt; NFS at 30 frames a second has them")
    lengths.tell()
    return found


def subfolders(root: Path) -> list[Path]:
    """The folders in a folder, in natural order; hidden ones are left out.

    Args:
        root: need not be there.

    Example:
        >>> subfolders(Path("nowhere"))
        []
    """
    folders = (path for path in root.iterdir() if path.is_dir()) if root.is_dir() else iter(())
    return sorted((path for path in folders if path.name[0] not in "._"), key=lambda path: natural_key(path.name))


def frame_number(path: str) -> int:
    """The number that the name of a frame ends in; -1 without one.

    Example:
        >>> frame_number("David/img/0300.jpg"), frame_number("x/first.png")
        (300, -1)
    """
    digits = re.search(r"([0-9]+)$", Path(path).stem)
    return int(digits[1]) if digits else -1


def _frame_folder(folder: Path) -> Path | None:
    return next(
        (folder / name for name in (".", *IMAGE_FOLDERS) if (folder / name).is_dir() and list_images(folder / name)),
        None,
    )


def _read_folder(folder: Path, lengths: Lengths) -> TrackingSequence:
    place = _frame_folder(folder)
    if place is None:
        raise FileNotFoundError(f"{str(folder)!r} has no pictures, also not in its folders img or color")
    frames = list_frames(place)
    truth = next((folder / name for name in GROUND_TRUTHS if (folder / name).is_file()), None)
    name = folder.resolve().name
    if truth is None:
        return TrackingSequence(name, frames, np.full((len(frames), 4), np.nan))
    rows = read_rows(truth, (4, 8))
    if len(rows) == 1 < len(frames):
        rows = np.concatenate([rows, np.full((len(frames) - 1, rows.shape[1]), np.nan)])
    flags = {file: read_flags(folder / file) for file in FLAGS if (folder / file).is_file()}
    counts = {f"lines in {str(truth)!r}": len(rows)} | {f"flags in {file}": len(flags[file]) for file in flags}
    count = lengths.shortest(name, counts | {"frames": len(frames)})
    present = ~np.any([values[:count] for values in flags.values()], axis=0) if flags else None
    polygons = corners(rows[:count]) if rows.shape[1] == 8 else None
    boxes = rows[:count] if polygons is None else boxes_of(polygons)
    return TrackingSequence(name, frames[:count], boxes, present, polygons)


def _otb_truths(folder: Path) -> Iterator[tuple[str, Path]]:
    """Name and ground truth of each target of an OTB folder."""
    numbered = [(number, folder / f"groundtruth_rect.{number}.txt") for number in (1, 2)]
    for number, path in numbered:
        if path.is_file() and (number == 2 or folder.name not in OTB_SECOND_ONLY):
            yield f"{folder.name}-{number}", path
    if (folder / OTB_TRUTH).is_file() and not any(path.is_file() for _, path in numbered):
        yield folder.name, folder / OTB_TRUTH


def _read_otb(folder: Path, truth: tuple[str, Path], lengths: Lengths) -> TrackingSequence:
    name, path = truth
    frames, boxes = list_frames(folder / "img"), read_rows(path)
    first, last = OTB_RANGES.get(folder.name, (-1, None))
    counts = [first <= number and (last is None or number <= last) for number in map(frame_number, frames)]
    if len(boxes) == len(frames):  # a line also for the frames that do not count
        boxes = boxes[counts]
    frames = tuple(frame for frame, does in zip(frames, counts, strict=True) if does)
    least = lengths.shortest(name, {f"lines in {str(path)!r}": len(boxes), "frames in img": len(frames)})
    return TrackingSequence(name, frames[:least], boxes[:least])


def _nfs_rows(path: Path) -> NDArray[np.float64]:
    """x0, y0, x1, y1 of each line, between a number and the rest."""
    rows = []
    for line in read_lines(path):
        try:
            row = [float(part) for part in line.text.split()[1:5]]
        except ValueError:
            row = []
        if len(row) != 4 or not np.isfinite(row).all():
            raise line.fault("expected a number and then x0 y0 x1 y1 with blanks between them")
        rows.append(row)
    if not rows:
        raise ValueError(f"{str(path)!r} is empty; it must have a line for each frame")
    return np.array(rows)
