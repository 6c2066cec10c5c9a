"""Benchmarks of trackers, to test on."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from lightning.pytorch.utilities import rank_zero_info

from datamodules.lasot_files import read_test_videos
from datamodules.loaders import EvaluationLoader, ready
from datamodules.samplers import refuse_replaced_samplers
from datamodules.tracking_files import read_folders, read_nfs, read_otb
from datamodules.tracking_json import read_json
from datamodules.tracking_loaders import VideoDataModule, check_counts, sequence_loader
from datamodules.tracking_sequences import TrackingSequence
from datamodules.uav123_files import read_uav123
from datamodules.vot_files import read_vot
from lit_methods.functional.suggestions import nearest, shorten

READERS: dict[str, Callable[[Path], list[TrackingSequence]]] = {
    "otb100": read_otb,
    "uav123": read_uav123,
    "nfs": read_nfs,
    "vot2018": read_vot,
    "vot2019": read_vot,
    "lasot": read_test_videos,
    "folder": read_folders,
    "json": read_json,
}
SIZES = {"otb100": 100, "uav123": 123, "nfs": 100, "vot2018": 60, "vot2019": 60, "lasot": 280}


class TrackingBenchmarkDataModule(VideoDataModule):
    """A benchmark of trackers on disk; for testing alone.

    ``benchmark`` says how ``root`` is read:

    - ``otb100``, ``uav123``, ``nfs``, ``vot2018``, ``vot2019``: as these are distributed.
    - ``lasot``: the test videos of LaSOT, or ``annos`` of its evaluation toolkit, which has no frames: results can be
      scored against it, but nothing can be tracked.
    - ``folder``: a folder of frames with ``groundtruth.txt`` or ``groundtruth_rect.txt``, or a folder of such folders.
    - ``json``: a JSON file of the official code's toolkit, or the folder that holds it, with the frames beside it.

    A batch is what :class:`~datamodules.tracking_sequences.TrackingSequences` says; the layouts are described where
    they are read, in :mod:`~datamodules.tracking_files`, :mod:`~datamodules.uav123_files`,
    :mod:`~datamodules.vot_files`, :mod:`~datamodules.lasot_files` and :mod:`~datamodules.tracking_json`.

    Args:
        benchmark: see above.
        root: the folder, or the file.
        sequences: videos that are tracked at a time, as one batch.
        frames: the first so many frames of each video alone; ``None`` is all.
        names: the only videos to use, in this order; ``None`` is all.
        num_workers: worker processes of the loader, which reads no frames.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as root:
        ...     Image.new("RGB", (32, 24)).save(Path(root, "1.png"))
        ...     _ = Path(root, "groundtruth.txt").write_text("5,6,7,8\\n")
        ...     data = TrackingBenchmarkDataModule("folder", root)
        ...     data.setup("test")
        >>> next(iter(data.test_dataloader()))["boxes"]
        [tensor([[5., 6., 7., 8.]], dtype=torch.float64)]
    """

    def __init__(
        self,
        benchmark: Literal["otb100", "uav123", "nfs", "vot2018", "vot2019", "lasot", "folder", "json"],
        root: str,
        sequences: int = 4,
        frames: int | None = None,
        names: list[str] | None = None,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        if benchmark not in READERS:
            raise ValueError(f"benchmark must be one of {', '.join(READERS)}, got {benchmark!r}")
        check_counts(sequences=sequences, frames=frames)
        if num_workers < 0:
            raise ValueError(f"num_workers must be 0 (load in the main process) or more, got {num_workers}")
        if names is not None and (not names or len(set(names)) < len(names)):
            raise ValueError(f"names must be different names of videos, at least one, got {names}; null takes all")
        self.benchmark, self.root = benchmark, Path(root)
        self.sequences, self.frames, self.names, self.num_workers = sequences, frames, names, num_workers
        self._test: list[TrackingSequence] | None = None

    def prepare_data(self) -> None:
        """Look for the benchmark.

        Raises:
            FileNotFoundError: ``root`` is not there.
        """
        if not self.root.exists():
            raise FileNotFoundError(
                f"root={str(self.root)!r} does not exist; it must hold the benchmark {self.benchmark}"
            )

    def setup(self, stage: str) -> None:
        """Read which videos there are, and their annotation.

        Raises:
            FileNotFoundError: something is missing; names it.
            ValueError: something does not parse, or a name is unknown.
        """
        refuse_replaced_samplers(self.trainer)
        if stage == "test" and self._test is None:
            self.prepare_data()
            found = READERS[self.benchmark](self.root)
            size = SIZES.get(self.benchmark, len(found))
            if len(found) != size:
                rank_zero_info(
                    f"{self.benchmark}: {len(found)} videos in root={str(self.root)!r}; published figures are of {size}"
                )
            self._test = [sequence.first(self.frames) for sequence in self._chosen(found)]

    def test_dataloader(self) -> EvaluationLoader:
        """The videos in their order, each once over all ranks.

        Raises:
            RuntimeError: before ``setup("test")``.
            ValueError: a video has no frames, or no box to start from.
        """
        place = f"root={str(self.root)!r}"
        return sequence_loader(self.evaluation_sequences(), self.sequences, self.num_workers, place, self.frames_needed)

    def evaluation_sequences(self, stage: Literal["test"] = "test") -> list[TrackingSequence]:
        """The videos in the order of their ``index``, with attributes and tags.

        Args:
            stage: there is one.

        Raises:
            RuntimeError: before ``setup("test")``.
        """
        return ready(self._test, self, "the videos", "test")

    def _chosen(self, found: list[TrackingSequence]) -> list[TrackingSequence]:
        if self.names is None:
            return found
        known = {sequence.name: sequence for sequence in found}
        if unknown := [name for name in self.names if name not in known]:
            raise ValueError(
                f"names: {shorten(map(repr, unknown))} not in root={str(self.root)!r}{nearest(unknown[0], known)}"
            )
        return [known[name] for name in self.names]
