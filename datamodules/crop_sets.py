"""Training crops as the official preparation of trackers' data sets leaves them on disk."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from datamodules.sequence_source import check_source
from datamodules.track_table import Canvas, TrackTable, table_of
from datamodules.tracking_crops_cache import crop_name
from lit_methods.functional.frames import from_rgb
from lit_methods.functional.pictures import BadImageError, read_rgb
from lit_methods.functional.tracking_views import warp_crop

SIDE, TEMPLATE_SIZE = 511, 127  # of the stored crops, and of a target with its context in them
_LOOKED_FOR = 32  # files, before training starts


class CropSet:
    """Videos, or single pictures, whose targets were cut out before: ImageNet VID and DET, YouTube-BB, COCO and more.

    ``root`` has ``crop511/<video>/<frame>.<track>.x.jpg`` (``frame`` of six digits, 511 x 511 pixels, the target in the
    middle), and a JSON file that maps video to track to frame to the target's box in the frame, x0, y0, x1, y1 or w, h.
    Boxes without an area are left out. Some of the files are looked for at once; none is opened.

    Args:
        root: the folder.
        frame_range: largest distance of the two frames of a pair.
        uses: pairs of a round of mixing that begin with one of these videos.
        annotation: the JSON file, from ``root``.
        crops: the folder of crops, from ``root``.
        range_of: what ``frame_range`` counts: ``frames`` the numbers of frames, ``list`` places in the list of a
            track's frames, which is another distance where there are gaps.

    Attributes:
        table: the usable frames.

    Raises:
        FileNotFoundError: the annotation or a crop is not there.
        ValueError: the annotation is not of this form, has no usable box, or an argument is out of range.

    Source:
        Official code, ``training_dataset`` and its reader, which goes by the list. The tested crops are written by the
        tests; no set that the official scripts have made was at hand.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as root:
        ...     _ = Path(root, "train.json").write_text('{"ILSVRC/a": {"00": {"000003": [10, 20, 50, 60]}}}')
        ...     Path(root, "crop511", "ILSVRC", "a").mkdir(parents=True)
        ...     Image.new("RGB", (511, 511), (30, 20, 10)).save(Path(root, "crop511/ILSVRC/a/000003.00.x.jpg"))
        ...     crops = CropSet(root, frame_range=1, uses=10)
        ...     crop = crops.cut(0, Canvas(), (192.0, 192.0, 318.0, 318.0), 127)
        >>> crops.wh(np.array([0])).tolist(), crop[:, 0, 0].tolist()
        ([[40.0, 40.0]], [10.0, 20.0, 30.0])
    """

    def __init__(
        self,
        root: str,
        frame_range: int,
        uses: int,
        annotation: str = "train.json",
        crops: str = "crop511",
        range_of: Literal["frames", "list"] = "frames",
    ) -> None:
        check_source(frame_range, uses)
        if range_of not in ("frames", "list"):
            raise ValueError(f"range_of must be 'frames' or 'list', got {range_of!r}")
        self.root, self.frame_range, self.uses = Path(root), frame_range, uses
        self.folder = self.root / crops
        self.videos, self.tracks, self.table, self._wh = _read(self.root, self.root / annotation, range_of == "list")
        step = max(1, len(self.table.frames) // _LOOKED_FOR)
        for place in range(0, len(self.table.frames), step):
            if not Path(self.path(place)).is_file():
                raise FileNotFoundError(
                    f"{annotation} in root={root!r} has a crop that is not there: {self.path(place)!r}. Complete the "
                    f"set, or name its folder of crops in place of crops={crops!r}."
                )

    def wh(self, places: NDArray[np.int64]) -> NDArray[np.float64]:
        """Width and height of the target in the frame, ``(n, 2)``.

        Args:
            places: ``(n,)`` of the table.
        """
        return self._wh[places].astype(np.float64)

    def path(self, place: int) -> str:
        """The file of a crop."""
        track = int(self.table.track_of_frame[place])
        video = self.videos[self.table.video_of_track[track]]
        return f"{self.folder}/{video}/{crop_name(int(self.table.frames[place]), self.tracks[track])}"

    def cut(self, place: int, canvas: Canvas, window: Sequence[float], out: int) -> Tensor:
        """Cut a crop, as :meth:`SequenceSource.cut <datamodules.sequence_source.SequenceSource.cut>` does.

        Args:
            place: in the table.
            canvas: that the window lies in; its scale may differ from that of the stored crop.
            window: xyxy in pixels of the canvas.
            out: side of the crop.

        Raises:
            BadImageError: the file cannot be read or is not 511 x 511 pixels; names it.
        """
        picture = read_rgb(self.path(place))
        if picture.size != (SIDE, SIDE):
            raise BadImageError(
                f"the crop {self.path(place)!r} must be {SIDE} x {SIDE} pixels, got {picture.width} x {picture.height}"
            )
        scale = TEMPLATE_SIZE / canvas.template_size
        x0, y0, x1, y1 = (SIDE // 2 + (end - canvas.centre) * scale for end in window)
        left, top = max(0, math.floor(x0)), max(0, math.floor(y0))
        part = picture.crop((left, top, min(SIDE, math.floor(x1) + 2), min(SIDE, math.floor(y1) + 2)))
        return warp_crop(from_rgb(np.asarray(part)), (x0 - left, y0 - top, x1 - left, y1 - top), out)

    def check(self, canvas: Canvas) -> None:
        """Refuse a canvas that the stored crops are too small for.

        Args:
            canvas: of the data set.

        Raises:
            ValueError: its search region is too large for its template.
        """
        reach = canvas.centre * TEMPLATE_SIZE / canvas.template_size
        if reach > SIDE // 2:
            raise ValueError(
                f"root={str(self.root)!r}: stored crops reach {SIDE // 2} pixels around the target, "
                f"template_size={canvas.template_size} and search_size={canvas.search_size} need {reach:g}; make "
                "search_size smaller or template_size larger"
            )


def _read(root: Path, path: Path, by_list: bool) -> tuple[list[str], list[str], TrackTable, NDArray[np.float32]]:
    """Names of videos, names of tracks, the table and width and height of each row."""
    if not path.is_file():
        raise FileNotFoundError(
            f"root={str(root)!r} has no annotation {path.name!r}: it must hold this file and crop511, as the "
            "preparation of the official code leaves them"
        )
    try:
        annotation = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{str(path)!r} is no JSON: {error}") from None
    names: list[str] = []
    tracks: list[str] = []
    numbers: list[list[NDArray[np.int64]]] = []
    sizes: list[NDArray[np.float32]] = []
    if not isinstance(annotation, dict):
        raise ValueError(f"{str(path)!r} must map videos to tracks to frames to boxes")
    for video, parts in annotation.items():
        if not isinstance(parts, dict) or not all(isinstance(part, dict) for part in parts.values()):
            raise ValueError(f"{str(path)!r}, {video!r}: expected tracks that map frames to boxes")
        found = {track: _read_track(path, f"{video}/{track}", boxes) for track, boxes in parts.items()}
        found = {track: (frames, wh) for track, (frames, wh) in found.items() if len(frames)}
        if found:
            names.append(video)
            tracks += found
            numbers.append([frames for frames, _ in found.values()])
            sizes += [wh for _, wh in found.values()]
    if not names:
        raise ValueError(f"{str(path)!r} has no box with an area")
    return names, tracks, table_of(numbers, by_list), np.concatenate(sizes)


def _read_track(path: Path, name: str, boxes: dict[str, Any]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Numbers of frames, rising, and width and height in each; keys that are no number, such as "meta", are notes."""
    frames = sorted((key for key in boxes if key.isdigit()), key=int)
    wh = np.empty((len(frames), 2), np.float32)
    for row, frame in enumerate(frames):
        try:
            box = [float(number) for number in boxes[frame]]
        except (TypeError, ValueError):
            box = []
        if len(box) not in (2, 4):
            raise ValueError(f"{str(path)!r}, {name}/{frame}: expected x0, y0, x1, y1 or w, h, got {boxes[frame]!r}")
        wh[row] = box if len(box) == 2 else (box[2] - box[0], box[3] - box[1])
    usable = (wh > 0).all(1) & np.isfinite(wh).all(1)
    return np.array([int(frame) for frame in frames], np.int64)[usable], wh[usable]
