"""VOT2018 and VOT2019 (short-term challenges) on disk.

Recalled from the data sets, and from toolkits that read them; not checked on the data themselves.
"""

from pathlib import Path

import numpy as np

from datamodules.lasot_files import GROUND_TRUTH
from datamodules.tracking_files import subfolders
from datamodules.tracking_polygons import boxes_of, corners
from datamodules.tracking_sequences import TrackingSequence
from datamodules.tracking_text import Lengths, list_frames, read_flags, read_rows
from lit_methods.functional.suggestions import shorten
from lit_methods.functional.text_lines import read_lines


def read_vot(root: Path) -> list[TrackingSequence]:
    """Read sequence folders of VOT: ``<name>/00000001.jpg`` or ``<name>/color/00000001.jpg``, and ``groundtruth.txt``.

    ``list.txt`` names the sequences in their order; without it all folders with ground truth are read. A line of ground
    truth has eight numbers, the corners of a polygon, or four. Files such as ``camera_motion.tag`` have a 0 or a 1 for
    each frame; an empty one tags no frame.

    Args:
        root: holds the folders of the sequences.

    Returns:
        Sequences with ``polygons`` and ``tags``; ``boxes`` are upright and of the same area, see
        :func:`~datamodules.tracking_polygons.boxes_of`.

    Raises:
        FileNotFoundError: there are none, one of the list is missing, or lacks its ground truth or frames.
        ValueError: a line does not parse, or frames and lines differ much in number.

    Source:
        Recalled.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as root:
        ...     Path(root, "ants1").mkdir()
        ...     Path(root, "ants1", "00000001.jpg").touch()
        ...     _ = Path(root, "ants1", "groundtruth.txt").write_text("0,0,0,9,9,9,9,0\\n")
        ...     _ = Path(root, "ants1", "occlusion.tag").write_text("1\\n")
        ...     video, = read_vot(Path(root))
        >>> video.boxes.tolist(), video.tags["occlusion"].tolist()
        ([[-0.5, -0.5, 10.0, 10.0]], [True])
    """
    listed = root / "list.txt"
    if listed.is_file():
        folders = [root / line.text.strip() for line in read_lines(listed)]
        if missing := [folder.name for folder in folders if not (folder / GROUND_TRUTH).is_file()]:
            raise FileNotFoundError(
                f"{str(listed)!r} names sequences without a folder with {GROUND_TRUTH}: {shorten(missing)}. Complete "
                "the download, or take them off the list."
            )
    else:
        folders = [folder for folder in subfolders(root) if (folder / GROUND_TRUTH).is_file()]
    if not folders:
        raise FileNotFoundError(f"root={str(root)!r} has no folders with {GROUND_TRUTH}; VOT has one for each sequence")
    lengths = Lengths()
    found = [_read(folder, lengths) for folder in folders]
    lengths.tell()
    return found


def _read(folder: Path, lengths: Lengths) -> TrackingSequence:
    color = folder / "color"
    frames, rows = list_frames(color if color.is_dir() else folder), read_rows(folder / GROUND_TRUTH, (4, 8))
    tags = {path.stem: read_flags(path) for path in sorted(folder.glob("[!.]*.tag"))}
    tags = {name: tag if len(tag) else np.zeros(len(rows), bool) for name, tag in tags.items()}
    counts = {f"lines in {str(folder / GROUND_TRUTH)!r}": len(rows), "frames": len(frames)}
    count = lengths.shortest(folder.name, counts | {f"flags in {name}.tag": len(tag) for name, tag in tags.items()})
    polygons = corners(rows[:count])
    return TrackingSequence(
        folder.name,
        frames[:count],
        boxes_of(polygons),
        polygons=polygons,
        tags={name: tag[:count] for name, tag in tags.items()},
    )
