"""OwnVideo: track a target in the user's own videos."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lit_methods.functional.modes import evaluating
from lit_methods.functional.pictures import BadImageError
from lit_methods.functional.video_writing import check_video_path
from lit_methods.siamban.clip_record import ClipRecord, drawn, film_suffix
from lit_methods.siamban.clip_rows import ClipRow, read_clip_rows
from lit_methods.siamban.clip_run import ClipRun
from lit_methods.siamban.own_clips import OwnClip, own_clips
from lit_methods.siamban.tracker import SiamBANTracker

AT_ONCE = 4  # frames between two looks at the outside: signals, rows on disk; also the most that are held
Source = str | Path | OwnClip


class OwnVideo:
    """Mixin: ``predict`` tracks a target from its first box through films, GIFs and folders of frames.

    ``predict_step`` gives per frame the dict of a ``ClipRow``: ``file``, ``frame``, the box ``x``, ``y``, ``w``, ``h``
    in pixels, ``score`` and the centre ``cx``, ``cy``. The first frame's box is the given one as trackers of this kind
    are started with it, half a pixel further right and down.

    ``videos/`` of the run's directory gets for each video its rows, ``<name>.csv``, while it is tracked, and its film.
    """

    trainer: Any
    _clips: list[OwnClip]  # of this prediction
    _out: str | None = None
    _hold = False
    _run: ClipRun | None = None

    @classmethod
    def add_cli_arguments(cls, parser: Any, entry: str) -> None:
        """The first boxes and the other options of ``predict``."""
        if entry == "predict":
            parser.add_argument(
                "--box", action="append", type=str, default=None, help="x,y,w,h in the first frame, for each input"
            )
            parser.add_argument("--out", type=str | None, default=None, help=".mp4, .gif, folder of films, or 'none'")
            parser.add_argument("--start", type=int | None, default=None, help="frame to begin or to go on at, from 0")
            parser.add_argument("--resume", type=str | None, default=None, help="rows of an earlier run to go on from")
            parser.add_argument(
                "--on_bad_frame", type=Literal["raise", "hold"], default="raise", help="hold keeps the box before it"
            )

    def tracker(self) -> SiamBANTracker:
        """A tracker with the network and the constants of the class that takes this mixin."""
        raise NotImplementedError

    def sift_inputs(
        self,
        paths: Sequence[str | Path],
        box: Sequence[str] | None = None,
        start: int | None = None,
        resume: str | None = None,
        on_bad_frame: Literal["raise", "hold"] = "raise",
        **options: Any,
    ) -> tuple[list[OwnClip], dict[Path, str]]:
        """The user's videos that can be read, and of the others the reason; the arguments are those of
        :meth:`prepare_inputs`."""
        rows = None if resume is None else read_clip_rows(resume)
        return own_clips(paths, box or (), start, rows, on_bad_frame == "raise")

    def prepare_inputs(
        self,
        paths: Sequence[Source],
        box: Sequence[str] | None = None,
        out: str | None = None,
        start: int | None = None,
        resume: str | None = None,
        on_bad_frame: Literal["raise", "hold"] = "raise",
    ) -> FrameBatches:
        """The user's videos as batches for ``predict_step``, some frames of one video each.

        Args:
            paths: films, GIFs and folders of frames; or the clips that ``sift_inputs`` made of them.
            box: ``"x,y,w,h"`` for each path, in pixels of its first frame; a folder with ``groundtruth.txt`` or
                ``groundtruth_rect.txt`` needs none.
            out: where the film goes, ``.mp4`` or ``.gif``; a folder for the films of several videos; ``"none"`` makes
                none. By default films go to ``videos/`` of the run's directory, as ``.mp4`` where the package ``av`` is
                installed, else as ``.gif``.
            start: frame to begin at, to which ``box`` belongs; with ``resume`` the one after which to go on.
            resume: ``predictions.csv`` of a shorter run, or the CSV file that an interrupted one left in ``videos/``.
                Its rows are kept and tracking goes on after the last one, exactly as if it had not been interrupted.
            on_bad_frame: what becomes of a frame that cannot be decoded: ``"raise"`` ends the run, ``"hold"`` keeps the
                box of the one before it, with score 0.

        Raises:
            FileNotFoundError: a path or ``resume`` does not exist.
            ValueError: a path cannot be read, a box is missing or lies outside of its frame, or another argument does
                not fit.
        """
        if on_bad_frame not in ("raise", "hold"):
            raise ValueError(f"on_bad_frame={on_bad_frame!r} must be 'raise' or 'hold'")
        clips = [path for path in paths if isinstance(path, OwnClip)]
        if others := [path for path in paths if not isinstance(path, OwnClip)]:
            clips, faults = self.sift_inputs(others, box, start, resume, on_bad_frame)
            if faults:
                raise ValueError(next(iter(faults.values())))
        _check_out(out, clips)
        self._clips, self._out, self._hold, self._run = clips, out, on_bad_frame == "hold", None
        return FrameBatches(self, clips, skip=out == "none")

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> list[dict[str, Any]]:
        """A row per frame, as the class says."""
        if "clip" not in batch:
            raise ValueError(
                "a tracker needs a video and a first box: give prepare_inputs(paths, box=['x,y,w,h']), or use tracker()"
            )
        clip = self._clips[batch["clip"]]
        if batch["first"] == clip.start:
            self._run = ClipRun(clip, self.tracker(), self._record(clip), self._hold)
        assert self._run is not None
        with evaluating(self):  # type: ignore[arg-type]
            rows = self._run.step(batch["first"], batch["frames"], batch["skipped"])
        if batch["last"]:
            run, self._run = self._run, None
            run.close()
        return [row._asdict() for row in rows]

    def draw(self, image: np.ndarray, prediction: dict[str, Any]) -> np.ndarray:
        """The frame with its box.

        Args:
            image: (H, W, 3) uint8 RGB.
            prediction: one dict of ``predict_step``.

        Returns:
            (H, W, 3) uint8 RGB.
        """
        return drawn(image, ClipRow(**prediction))

    def leave(self) -> None:
        """Give up a clip that is not complete, and say where its rows are."""
        run, self._run = self._run, None
        if run is None:
            return
        run.record.abandon()
        if run.frames and (table := run.record.table) is not None:
            warnings.warn(
                f"{str(run.clip.video.path)!r} is not complete; --resume {table} goes on after {run.frames} frames",
                stacklevel=2,
            )

    def _record(self, clip: OwnClip) -> ClipRecord:
        try:
            folder = Path(self.trainer.default_root_dir, "videos")
        except RuntimeError:  # in a script, without a Trainer
            folder = None
        film = None if folder is None else folder / f"{clip.name}{film_suffix()}"
        if self._out == "none":
            film = None
        elif self._out is not None:
            out = Path(self._out)
            film = out if out.suffix else out / f"{clip.name}{film_suffix()}"
        if film is not None:
            _spare_inputs(film, self._clips)
        return ClipRecord(clip.video, clip.done, None if folder is None else folder / f"{clip.name}.csv", film)


class FrameBatches:
    """Frames of clips, some of one clip at a time.

    A batch has ``clip``, its number, ``first``, the index of the first of its ``frames``, ``skipped``, how many frames
    are left out after them, and ``last``, whether the clip ends. A frame that cannot be read is the reason as text.

    Args:
        module: that tracks; told when nobody asks for more.
        clips: one after another.
        skip: whether frames that an earlier run has tracked are left out, but for the first.
    """

    def __init__(self, module: OwnVideo, clips: Sequence[OwnClip], skip: bool) -> None:
        self.module, self.clips, self.skip = module, clips, skip

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for number, clip in enumerate(self.clips):
            batch: dict[str, Any] | None = None
            skipped = max(0, len(clip.done) - 1) if self.skip else 0
            for first, frames in self._parts(clip, skipped):
                if batch is not None:
                    yield batch
                batch = {"clip": number, "first": first, "frames": frames, "skipped": 0, "last": False}
                batch["skipped"] = skipped if first == clip.start else 0
            if batch is None:
                raise BadImageError(f"the video {str(clip.video.path)!r} has no frame {clip.start}")
            yield batch | {"last": True}

    def _parts(self, clip: OwnClip, skipped: int) -> Iterator[tuple[int, list[Any]]]:
        start = clip.start
        if skipped:
            yield start, [_plain(frame) for frame in islice(clip.video.read(start), 1)]
            start += 1 + skipped
        frames = map(_plain, clip.video.read(start))
        while part := list(islice(frames, AT_ONCE)):
            yield start, part
            start += len(part)

    def close(self) -> None:
        """The prediction has ended, in whatever way."""
        self.module.leave()


def _plain(frame: Any) -> Any:
    return str(frame) if isinstance(frame, BadImageError) else frame


def _check_out(out: str | None, clips: Sequence[OwnClip]) -> None:
    if out in (None, "none"):
        return
    path = Path(str(out))
    if not path.suffix:
        if path.exists() and not path.is_dir():
            raise ValueError(f"out={out!r} is no folder: give .mp4, .gif or a folder for the films")
        for clip in clips:
            _spare_inputs(path / f"{clip.name}{film_suffix()}", clips)
        return
    if path.suffix.lower() not in (".mp4", ".gif"):
        raise ValueError(f"out={out!r} must end in .mp4 or .gif, be a folder for the films, or 'none'")
    if len(clips) > 1:
        raise ValueError(f"out={out!r} is one film, but there are {len(clips)} inputs: give a folder for their films")
    check_video_path(path)
    _spare_inputs(path, clips)


def _spare_inputs(film: Path, clips: Sequence[OwnClip]) -> None:
    if film.resolve() in [clip.video.path.resolve() for clip in clips]:
        raise ValueError(f"out: the film {str(film)!r} is the input itself: give another file or folder")
