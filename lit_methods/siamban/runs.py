"""Whole sequences through a tracker: in one pass, or with VOT's resets."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lit_methods.functional.pictures import BadImageError
from lit_methods.functional.polygon_overlap import vot_overlap
from lit_methods.functional.regions import rectangle_corners, region_to_box
from lit_methods.functional.vot import FAILURE, INIT, RESTART, SKIPPED, TRACKED
from lit_methods.siamban.frame_queue import FrameQueue
from lit_methods.siamban.tracker import SiamBANTracker, TrackerState

Frames = Sequence[str | Tensor]  # of a sequence: paths of picture files, or (3, H, W) tensors, BGR


@dataclass(frozen=True)
class Track:
    """What a tracker says of one sequence; on the CPU.

    Args:
        boxes_xywh: ``(n, 4)`` float64, pixels.
        scores: ``(n,)`` float64 from 0 to 1; of the frame that it was started in 1.
        image_wh: width and height of the frames.
        state: ``(n,)`` int64, VOT's codes of a run with resets: 1 started, 9 tracked, 2 failure, 0 left out; ``None``
            of one pass.
    """

    boxes_xywh: Tensor
    scores: Tensor
    image_wh: tuple[int, int] = (0, 0)
    state: Tensor | None = None


def track_sequences(
    tracker: SiamBANTracker,
    frames: Sequence[Frames],
    boxes: Tensor,
    ahead: int = 2,
    on_bad_frame: str = "raise",
) -> list[Track]:
    """Track several sequences at once, each from its first box to its end.

    A sequence that is over leaves the batch. Frames are decoded ahead in threads; boxes come from the device when all
    sequences are over.

    Args:
        tracker: begins anew.
        frames: of each sequence, one frame at least.
        boxes: ``(S, 4)`` first boxes x, y, w, h.
        ahead: frames of each sequence that are decoded ahead.
        on_bad_frame: what becomes of a frame that cannot be decoded: ``"raise"`` names it, ``"hold"`` keeps the box of
            the one before, with score 0, and warns.

    Returns:
        One for each sequence; what is recorded of the first frame is its ``start_box``.

    Raises:
        ValueError: a sequence has no frames, a first box is unusable, or a frame is of another size than the first.
        BadImageError: a frame cannot be decoded, the first one in any case.

    Source:
        SiamBAN, official code (one-pass evaluation).
    """
    if on_bad_frame not in ("raise", "hold"):
        raise ValueError(f"on_bad_frame={on_bad_frame!r} must be 'raise' or 'hold'")
    if empty := [number for number, paths in enumerate(frames) if not len(paths)]:
        raise ValueError(f"sequence {empty[0]} has no frames; there must be one at least")
    bad: dict[int, list[BadImageError]] = {}
    with FrameQueue(frames, ahead, tracker.on_cuda) as queue:
        last = [_readable(queue.next(number)) for number in range(len(frames))]
        starts = start_box(boxes.detach().cpu().double())
        tracker.init(last, starts)
        assert tracker.state is not None
        shapes = list(tracker.state.shapes)
        first = torch.cat([starts, torch.ones(len(starts), 1)], 1).to(tracker.state.centre)  # its type and device
        found = [[row] for row in first]  # x, y, w, h, score
        running = list(range(len(frames)))
        for index in range(1, max(map(len, frames))):
            still = [number for number in running if index < len(frames[number])]
            if len(still) < len(running):
                tracker.state = tracker.state.select([running.index(number) for number in still])
                running = still
            held = []
            for row, number in enumerate(running):
                frame = queue.next(number)
                if isinstance(frame, BadImageError):
                    if on_bad_frame == "raise":
                        raise frame
                    bad.setdefault(number, []).append(frame)
                    held.append(row)
                else:
                    last[number] = _of_size(frame, shapes[number], frames[number][index])
            before = tracker.state
            rows = torch.cat([part.reshape(len(running), -1) for part in tracker.track([last[n] for n in running])], 1)
            if held:
                tracker.state = _held(before, tracker.state, held)
                rows[held] = torch.stack([found[running[row]][-1] for row in held])
                rows[held, 4] = 0
            for number, row_of in zip(running, rows, strict=True):
                found[number].append(row_of)
    for number, errors in bad.items():
        warnings.warn(
            f"{len(errors)} of {len(frames[number])} frames cannot be read, each kept the box before it: {errors[0]}",
            stacklevel=2,
        )
    return [_track(torch.stack(rows), shape) for rows, shape in zip(found, shapes, strict=True)]


def track_with_resets(tracker: SiamBANTracker, frames: Frames, polygons: Tensor, ahead: int = 2) -> Track:
    """Track a sequence as VOT does: a tracker that has lost its target is started again.

    Where the box of a frame and the annotation have nothing in common, that is a failure; the four frames after it are
    left out, and in the next the tracker starts from the annotation.

    Args:
        tracker: begins anew.
        frames: of the sequence.
        polygons: ``(n, 8)``, the annotation.
        ahead: frames that are decoded ahead.

    Returns:
        With ``state``: 1 started, 9 tracked, 2 failure, 0 left out.

    Raises:
        ValueError: as many polygons as frames are needed; or a box to start from is unusable.
        BadImageError: a frame cannot be decoded.

    Source:
        The VOT toolkit of the official code.
    """
    if len(polygons) != len(frames) or not len(frames):
        raise ValueError(f"polygons has {len(polygons)} rows for {len(frames)} frames; one for each, one at least")
    polygons = polygons.detach().cpu().double()
    rows = torch.zeros(len(frames), 5, dtype=torch.float64)
    state = torch.full((len(frames),), SKIPPED)
    shape = (0, 0)
    with FrameQueue([frames], ahead, tracker.on_cuda) as queue:
        index, start = 0, 0
        while index < len(frames):
            frame = _readable(queue.next(0))
            shape = (frame.shape[1], frame.shape[2]) if index == 0 else shape
            _of_size(frame, shape, frames[index])
            if index == start:
                box = start_box(polygons[index])
                try:
                    tracker.init(frame, box)
                except ValueError as error:
                    raise ValueError(f"the tracker cannot start in frame {index}: {error}") from error
                rows[index], state[index] = torch.cat([box, torch.ones(1)]), INIT
            else:
                box, score = tracker.track(frame)
                rows[index] = torch.cat([box, score[None]]).cpu()  # VOT decides on the host what comes next
                overlap = vot_overlap(rectangle_corners(rows[index, None, :4]), polygons[index, None], shape[::-1])
                state[index] = FAILURE if float(overlap) == 0 else TRACKED  # NaN: where the target is nobody knows
            if state[index] == FAILURE:
                start = index + RESTART
                queue.seek(0, start)
            index = start if state[index] == FAILURE else index + 1
    return replace(_track(rows, shape), state=state)


def _readable(frame: Tensor | BadImageError) -> Tensor:
    if isinstance(frame, BadImageError):
        raise frame
    return frame


def _of_size(frame: Tensor, shape: tuple[int, int], place: str | Tensor) -> Tensor:
    if frame.shape[1:] != shape:
        name = repr(place) if isinstance(place, str) else "a frame"
        raise BadImageError(
            f"{name} is {frame.shape[2]} x {frame.shape[1]} pixels, the first frame of its sequence "
            f"{shape[1]} x {shape[0]}: the frames of a sequence must have one size"
        )
    return frame


def start_box(region: Tensor) -> Tensor:
    """The box x, y, w, h that evaluations start a tracker with; it is also recorded for that frame.

    Args:
        region: ``(..., 4)`` boxes x, y, w, h or ``(..., 8)`` polygons.

    Returns:
        ``(..., 4)``; a box as (x + 0.5, y + 0.5, w, h).

    Source:
        SiamBAN, official code: the middle is x + w / 2 there, while a tracker takes it for x + (w - 1) / 2.

    Example:
        >>> start_box(torch.tensor([10.0, 20.0, 5.0, 3.0])).tolist()
        [10.5, 20.5, 5.0, 3.0]
    """
    middle, size = region_to_box(region).split(2, -1)
    return torch.cat([middle - (size - 1) / 2, size], -1)


def _held(before: TrackerState, after: TrackerState, rows: list[int]) -> TrackerState:
    """As after a frame, but these sequences as before it."""
    centre, size = after.centre.clone(), after.size.clone()
    centre[rows], size[rows] = before.centre[rows], before.size[rows]
    return replace(after, centre=centre, size=size)


def _track(rows: Tensor, shape: tuple[int, int]) -> Track:
    rows = rows.cpu().double()
    return Track(rows[:, :4], rows[:, 4], (shape[1], shape[0]))
