"""OwnResults: score what any tracker left in files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lit_methods.functional.options import CommandOptions
from lit_methods.siamban.evaluation import RESETS
from lit_methods.siamban.results import read_results, tracker_folder
from lit_methods.siamban.runs import Track


class OwnResults(CommandOptions):
    """Mixin: ``test --results DIR`` takes the boxes from the files of a tracker instead of tracking.

    ``DIR`` has ``<video>.txt`` with lines x,y,w,h for each test video, or of VOT ``baseline/<video>/<video>_001.txt``,
    see :mod:`~lit_methods.siamban.results`; it may also hold a single folder that has them. Everything is read before
    the test begins. The network is not used, and neither are frames, but for their size in VOT.

    The class that takes it calls ``super().setup(stage)``, and :meth:`results_of` in ``test_step``.
    """

    trainer: Any
    results: str | None = None  # the folder
    tracker_name: str | None = None  # whose boxes are scored, where it is not this method
    _tracks: list[Track] | None = None  # of the test videos, in their order

    @classmethod
    def add_cli_arguments(cls, parser: Any, entry: str) -> None:
        """``--results`` of ``test``, beside the options of other mixins."""
        super().add_cli_arguments(parser, entry)
        if entry == "test":
            helps = "folder with a tracker's files, whose boxes are scored instead of tracking"
            parser.add_argument("--results", type=str | None, default=None, help=helps)

    def take_options(self, results: str | None = None) -> None:
        """Score files from now on, or with ``None`` track again.

        Args:
            results: folder of a tracker.
        """
        self.results, self.tracker_name, self._tracks = results, None, None

    def setup(self, stage: str) -> None:
        """Read the files of all test videos.

        Raises:
            FileNotFoundError: some are missing; names all of them.
            ValueError: a line does not parse, a file is shorter than its video, or the data do not tell their videos.
        """
        super().setup(stage)  # type: ignore[misc]
        if stage != "test":
            return
        data: Any = getattr(self.trainer, "datamodule", None)
        if hasattr(data, "frames_needed"):
            data.frames_needed = self.results is None
        if self.results is None:
            return
        if not hasattr(data, "evaluation_sequences"):
            raise ValueError(
                f"results={self.results!r} can be scored on a datamodule that knows its videos, such as "
                f"TrackingBenchmarkDataModule, not on {type(data).__name__}"
            )
        videos = data.evaluation_sequences("test")
        resets = getattr(data, "benchmark", None) in RESETS
        frames = {video.name: len(video) for video in videos}
        folder = tracker_folder(Path(self.results), frames, resets)
        read = read_results(folder, frames, resets)
        self.tracker_name = folder.resolve().name
        self._tracks = []
        for video in videos:
            boxes, state = read[video.name]
            size = video.image_wh if resets else (0, 0)
            self._tracks.append(Track(boxes, boxes.new_empty(0), image_wh=size, state=state))

    def results_of(self, batch: dict[str, Any]) -> list[Track] | None:
        """What the files have of the videos of a batch; ``None`` where no files were given, so that one has to track.

        Scores are not in such files: there are none.

        Args:
            batch: of sequences.
        """
        if self._tracks is None:
            return None
        return [self._tracks[index] for index in batch["index"].tolist()]

    def summary(self) -> dict[str, float | str | list]:
        """Which files were scored, if any."""
        return {} if self.results is None else {"test/results": self.results}
