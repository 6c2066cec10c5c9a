"""UAV123 on disk.

The layout and the order of attributes are recalled; the first frames are those in the table of pytracking
(visionml/pytracking, uavdataset.py). Nothing was checked on the data themselves.
"""

import re
from pathlib import Path

from datamodules.tracking_files import frame_number
from datamodules.tracking_sequences import NumberedFrames, TrackingSequence
from datamodules.tracking_text import Lengths, flags_of, list_frames, read_flags, read_rows
from lit_methods.functional.frames import natural_key

FRAMES, ANNOTATION = Path("data_seq", "UAV123"), Path("anno", "UAV123")
FIRST_FRAMES = {  # of the sequences that do not begin where their folder does
    "bird1_2": 775, "bird1_3": 1573, "car1_2": 751, "car1_3": 1627, "car6_2": 487, "car6_3": 1807, "car6_4": 2953,
    "car6_5": 3925, "car8_2": 1357, "car16_2": 415, "group1_2": 1333, "group1_3": 2515, "group1_4": 3925,
    "group2_2": 907, "group2_3": 1771, "group3_2": 1567, "group3_3": 2827, "group3_4": 4369, "person2_2": 1189,
    "person4_2": 1501, "person5_2": 877, "person7_2": 1249, "person8_2": 1075, "person12_2": 601, "person14_2": 847,
    "person14_3": 1813, "person17_2": 1501, "person19_2": 1243, "person19_3": 2791, "truck4_2": 577, "uav1_2": 1555,
    "uav1_3": 2473,
}  # fmt: skip
ATTRIBUTES = (  # in the order of the files in att
    "Scale Variation", "Aspect Ratio Change", "Low Resolution", "Fast Motion", "Full Occlusion", "Partial Occlusion",
    "Out-of-View", "Background Clutter", "Illumination Variation", "Viewpoint Change", "Camera Motion",
    "Similar Object",
)  # fmt: skip


def read_uav123(root: Path) -> list[TrackingSequence]:
    """Read UAV123: ``data_seq/UAV123/<folder>/000001.jpg`` and ``anno/UAV123/<name>.txt``.

    A folder may hold several sequences, such as ``bird1`` those called ``bird1_1`` to ``bird1_3``: each begins at the
    frame that the data set's configuration says, and has as many frames as lines. A line is NaN where the target is
    not in view; ``present`` stays ``None``, as the official evaluation counts these frames. Attributes are known where
    ``anno/UAV123/att`` has them.

    Args:
        root: holds ``data_seq`` and ``anno``, or a folder ``UAV123`` with these.

    Raises:
        FileNotFoundError: there is no annotation, or frames are missing.
        ValueError: a line does not parse, or frames and lines differ much in number.

    Source:
        The layout is recalled, the first frames are pytracking's.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as root:
        ...     Path(root, "data_seq", "UAV123", "bike1").mkdir(parents=True)
        ...     Path(root, "data_seq", "UAV123", "bike1", "000001.jpg").touch()
        ...     Path(root, "anno", "UAV123").mkdir(parents=True)
        ...     _ = Path(root, "anno", "UAV123", "bike1.txt").write_text("1,2,3,4\\n")
        ...     [video.name for video in read_uav123(Path(root))]
        ['bike1']
    """
    if not (root / ANNOTATION).is_dir() and (root / "UAV123" / ANNOTATION).is_dir():
        root = root / "UAV123"
    truths = sorted((root / ANNOTATION).glob("[!.]*.txt"), key=lambda path: natural_key(path.stem))
    if not truths:
        raise FileNotFoundError(f"root={str(root)!r} has no {ANNOTATION}/<name>.txt; UAV123 has one for each sequence")
    lengths = Lengths()
    found = [_read(root, truth, lengths) for truth in truths]
    lengths.tell()
    return found


def _read(root: Path, truth: Path, lengths: Lengths) -> TrackingSequence:
    name = truth.stem
    folder = root / FRAMES / name
    if not folder.is_dir():  # one of several in a folder; car1_s is none of those
        folder = root / FRAMES / re.sub(r"_[0-9]+$", "", name)
    boxes, first = read_rows(truth), FIRST_FRAMES.get(name, 1)
    numbered = NumberedFrames(str(folder), first, len(boxes), 6)
    if all(Path(numbered[place]).is_file() for place in (0, -1)):
        frames: NumberedFrames | tuple[str, ...] = numbered
        count = len(boxes)
    else:
        last = first + len(boxes) - 1
        frames = tuple(frame for frame in list_frames(folder) if first <= frame_number(frame) <= last)
        place = f"frames {first} to {last} in {str(folder)!r}"
        count = lengths.shortest(name, {f"lines in {str(truth)!r}": len(boxes), place: len(frames)})
        frames = frames[:count]
    attributes: tuple[str, ...] = ()
    if (path := truth.parent / "att" / truth.name).is_file():
        flags = read_flags(path)
        if len(flags) != len(ATTRIBUTES):
            raise ValueError(
                f"{str(path)!r} must have {len(ATTRIBUTES)} flags, one for each attribute, got {len(flags)}"
            )
        attributes = flags_of(ATTRIBUTES, flags)
    return TrackingSequence(name, frames, boxes[:count], attributes=attributes)
