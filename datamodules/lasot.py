"""LaSOT: pairs of crops to train a tracker on, videos to evaluate it on."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from datamodules.crop_sets import CropSet
from datamodules.demo.tracking import write_tracking
from datamodules.draws import SPLIT, hash64
from datamodules.lasot_files import (
    category_of,
    find_videos,
    missing_root,
    read_test_names,
    read_test_videos,
    read_videos,
)
from datamodules.loaders import EvaluationLoader, loader_options, ready
from datamodules.samplers import EpochSampler, ResumableLoader, refuse_replaced_samplers
from datamodules.tracking_loaders import VideoDataModule, check_counts, sequence_loader
from datamodules.tracking_pairs import PairDataset, SequenceSource
from datamodules.tracking_sequences import TrackingSequence


class LaSOTDataModule(VideoDataModule):
    """LaSOT (Fan et al., 2019), or own videos in its layout: pairs of crops to train on, whole videos to evaluate on.

    A training batch has ``template`` (B, 3, template_size, template_size) and ``search`` (B, 3, search_size,
    search_size) float32, BGR, 0 to 255, ``box`` (B, 4) float32, xyxy in search pixels, ``negative`` (B,) bool, pairs
    of different objects, and ``keys``; see :class:`~datamodules.tracking_pairs.PairDataset`. One of validation or test
    has videos, see :class:`~datamodules.tracking_sequences.TrackingSequences`.

    Videos are ``<category>/<category>-<n>`` below ``root``, as distributed, or directly in it, with
    ``img/00000001.jpg`` and so on, ``groundtruth.txt``, ``full_occlusion.txt`` and ``out_of_view.txt``. The test videos
    are those of the official list (4 of each category), or of ``testing_set.txt`` in ``root`` if it is there; all
    others are to train on, but for ``val_videos`` of these.

    Args:
        root: holds the videos.
        batch_size: pairs in a batch of training, per process.
        pairs_per_epoch: pairs drawn anew for each epoch, over all processes.
        frame_range: largest distance of the two frames of a pair.
        neg_prob: part of the pairs that show two different objects.
        template_size: side of the template in pixels; of the network, too.
        search_size: side of the search region in pixels; of the network, too.
        template_shift: the template is moved by up to so many pixels.
        template_scale: its sides change by up to this part.
        template_blur: part of the templates that are blurred.
        template_colour: part that get another colour.
        template_flip: part that are mirrored.
        search_shift: the same of search regions, in pixels.
        search_scale: likewise.
        search_blur: likewise.
        search_colour: likewise.
        search_flip: likewise.
        grey: part of the pairs that are grey, template and search region together.
        in_memory: keep the decoded frames of the training videos; for small sets.
        cache_dir: a folder for cut-out frames, which spares decoding whole ones again; for what it changes, see
            :class:`~datamodules.sequence_source.SequenceSource`.
        cache_quality: of these JPEG files, 1 to 100.
        skip_absent: train on no frame whose target is said to be absent.
        on_bad_frame: ``raise`` stops at a training frame that cannot be read and names it, ``skip`` draws another pair.
        uses: of LaSOT in a round of mixing with ``extra_sets``.
        extra_sets: more sets to train on, name to arguments of :class:`~datamodules.crop_sets.CropSet`, such as
            ``root``, ``frame_range`` and ``uses``.
        num_workers: worker processes for training; 0 loads in the main process.
        seed: decides the pairs, their order and augmentation, and the videos to validate on.
        test_split: a file with the names of the test videos, from ``root``; ``None``: see above.
        val_videos: training videos to validate on instead, of as many categories as possible; 0 is no validation.
        val_frames: the first so many frames of each of them alone; ``None`` is all.
        test_frames: likewise of the test videos.
        sequences: videos that are tracked at a time in evaluation, as one batch.
        demo: write a small drawn set to ``root`` where there is none.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> import tempfile
        >>> from datamodules.demo import write_tracking
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     root = write_tracking(Path(folder, "lasot"), train=2, test=1, frames=3, size=(48, 64))
        ...     data = LaSOTDataModule(str(root), batch_size=2, pairs_per_epoch=2, num_workers=0, val_videos=0)
        ...     data.setup("fit")
        ...     batch = next(iter(data.train_dataloader()))
        >>> batch["template"].shape, batch["search"].shape, batch["box"].shape
        (torch.Size([2, 3, 127, 127]), torch.Size([2, 3, 255, 255]), torch.Size([2, 4]))
    """

    benchmark = "lasot"  # how a tracker is evaluated

    def __init__(
        self,
        root: str = "data/lasot",
        batch_size: int = 28,
        pairs_per_epoch: int = 60_000,
        frame_range: int = 100,
        neg_prob: float = 0.2,
        template_size: int = 127,
        search_size: int = 255,
        template_shift: float = 4,
        template_scale: float = 0.05,
        template_blur: float = 0.0,
        template_colour: float = 1.0,
        template_flip: float = 0.0,
        search_shift: float = 64,
        search_scale: float = 0.18,
        search_blur: float = 0.2,
        search_colour: float = 1.0,
        search_flip: float = 0.0,
        grey: float = 0.0,
        in_memory: bool = False,
        cache_dir: str | None = None,
        cache_quality: int = 95,
        skip_absent: bool = False,
        on_bad_frame: Literal["raise", "skip"] = "raise",
        uses: int = 200_000,
        extra_sets: dict[str, dict[str, Any]] | None = None,
        num_workers: int = 2,
        seed: int = 0,
        test_split: str | None = None,
        val_videos: int = 20,
        val_frames: int | None = None,
        test_frames: int | None = None,
        sequences: int = 4,
        demo: bool = False,
    ) -> None:
        super().__init__()
        check_counts(
            batch_size=batch_size, pairs_per_epoch=pairs_per_epoch, val_frames=val_frames, test_frames=test_frames,
            sequences=sequences,
        )  # fmt: skip
        for name, value in (("num_workers", num_workers), ("val_videos", val_videos)):
            if value < 0:
                raise ValueError(f"{name} must be 0 or more, got {value}")
        self.root = Path(root)
        self.batch_size, self.num_workers, self.seed = batch_size, num_workers, seed
        self.test_split, self.val_videos, self.sequences, self.demo = test_split, val_videos, sequences, demo
        self._first = {"val": val_frames, "test": test_frames}
        self.template_size, self.search_size = template_size, search_size
        self._pair_options: dict[str, Any] = {
            "pairs_per_epoch": pairs_per_epoch,
            "neg_prob": neg_prob,
            "template_size": template_size,
            "search_size": search_size,
            "template_shift": template_shift,
            "template_scale": template_scale,
            "template_blur": template_blur,
            "template_colour": template_colour,
            "template_flip": template_flip,
            "search_shift": search_shift,
            "search_scale": search_scale,
            "search_blur": search_blur,
            "search_colour": search_colour,
            "search_flip": search_flip,
            "grey": grey,
            "on_bad_frame": on_bad_frame,
            "seed": seed,
        }
        self._source_options: dict[str, Any] = {
            "frame_range": frame_range, "uses": uses, "in_memory": in_memory, "cache_dir": cache_dir,
            "cache_quality": cache_quality, "skip_absent": skip_absent,
        }  # fmt: skip
        self.extra_sets = extra_sets or {}
        self._training: list[TrackingSequence] = []
        self._evaluated: dict[str, list[TrackingSequence]] = {}
        self._pairs: PairDataset | None = None

    def prepare_data(self) -> None:
        """Look for the videos; with ``demo`` write the set first.

        Raises:
            FileNotFoundError: there are none; says how to get them.
            ValueError: ``demo`` meets a folder with something else in it.
        """
        if self.demo and not find_videos(self.root) and not (self.root / "annos").is_dir():
            write_tracking(self.root)
        if not find_videos(self.root) and not (self.root / "annos").is_dir():
            raise FileNotFoundError(missing_root(self.root))

    def setup(self, stage: str) -> None:
        """Read the annotation of the videos that this stage needs.

        Of the videos to train on the first frames are opened for their size; with ``in_memory`` all frames are read.

        Raises:
            FileNotFoundError: videos or parts of one are missing; names them.
            ValueError: an annotation does not parse, or there is too little to train on.
        """
        refuse_replaced_samplers(self.trainer)
        if stage == "fit" and self._pairs is None:
            train, _ = self._training_videos()
            self._training = read_videos(train, self.root)
            self._pairs = self._pair_dataset(self._training)
        if stage in ("fit", "validate") and "val" not in self._evaluated:
            _, held = self._training_videos()
            self._evaluated["val"] = [video.first(self._first["val"]) for video in read_videos(held, self.root)]
        if stage == "test" and "test" not in self._evaluated:
            found = read_test_videos(self.root, self.test_split)
            self._evaluated["test"] = [video.first(self._first["test"]) for video in found]

    def train_dataloader(self) -> ResumableLoader:
        """Pairs, drawn and augmented by (seed, epoch, number); resumes after any batch.

        Raises:
            RuntimeError: before ``setup("fit")``.
        """
        pairs = ready(self._pairs, self, "the training videos", "fit")
        options = loader_options(self.batch_size, self.num_workers, self.seed, persistent=True)
        loader = ResumableLoader(pairs, sampler=EpochSampler(pairs, self.seed), **options)
        loader.trainer = self.trainer
        return loader

    def val_dataloader(self) -> EvaluationLoader | list[EvaluationLoader]:
        """The training videos that are held out, each once over all ranks; no loader at all where there are none."""
        videos = self.evaluation_sequences("val")
        return self._sequence_loader(videos) if videos else []

    def test_dataloader(self) -> EvaluationLoader:
        """The test videos, each once over all ranks."""
        return self._sequence_loader(self.evaluation_sequences("test"), self.frames_needed)

    def evaluation_sequences(self, stage: Literal["val", "test"] = "test") -> list[TrackingSequence]:
        """The videos of a stage in the order of their ``index``, with attributes where these are known.

        Args:
            stage: which.

        Raises:
            RuntimeError: before :meth:`setup`.
        """
        return ready(self._evaluated.get(stage), self, "these videos", stage)

    def training_sequences(self) -> list[TrackingSequence]:
        """The videos to train on, those held out not among them.

        Raises:
            RuntimeError: before ``setup("fit")``.
        """
        return ready(self._training or None, self, "the training videos", "fit")

    def summary(self) -> dict[str, float | str | list]:
        """How many videos there are to train, to validate and to test on."""
        counts: dict[str, float | str | list] = {
            f"data/{name}_videos": len(each) for name, each in self._evaluated.items()
        }
        return counts | ({"data/train_videos": len(self._training)} if self._training else {})

    def _pair_dataset(self, videos: list[TrackingSequence]) -> PairDataset:
        sources: list[Any] = [SequenceSource(videos, **self._source_options)]
        for name, arguments in self.extra_sets.items():
            try:
                sources.append(CropSet(**arguments))
            except TypeError as error:  # of an argument that is missing or unknown
                raise ValueError(f"extra_sets: {name!r} does not say how to read it: {error}") from None
        return PairDataset(sources, **self._pair_options)

    def _sequence_loader(self, videos: list[TrackingSequence], frames_needed: bool = True) -> EvaluationLoader:
        return sequence_loader(videos, self.sequences, place=f"root={str(self.root)!r}", frames_needed=frames_needed)

    def _training_videos(self) -> tuple[dict[str, Path], dict[str, Path]]:
        """Names and folders of the videos to train on, and of those to validate on."""
        found, test = find_videos(self.root), set(read_test_names(self.root, self.test_split))
        if not found:
            raise FileNotFoundError(missing_root(self.root))
        names = [name for name in found if name not in test]
        if len(names) <= self.val_videos:
            raise ValueError(
                f"val_videos={self.val_videos} leaves none of the {len(names)} videos in root={str(self.root)!r} that "
                "are no test videos; hold out fewer, or complete the download"
            )
        held = set(hold_out(names, self.val_videos, self.seed))
        train = {name: found[name] for name in names if name not in held}
        return train, {name: found[name] for name in names if name in held}


def hold_out(names: Sequence[str], count: int, seed: int) -> list[str]:
    """Choose videos to validate on, of as many categories as possible; fewer are part of more.

    Args:
        names: of the training videos, ``<category>-<n>``.
        count: how many.
        seed: decides which.

    Returns:
        Their names, in the order given.

    Example:
        >>> chosen = hold_out(["cat-1", "cat-2", "dog-1", "dog-2", "cow-1"], 3, seed=0)
        >>> sorted(name[:3] for name in chosen)
        ['cat', 'cow', 'dog']
    """
    categories = {category_of(name) for name in names}
    shuffled = np.array(sorted(categories))[np.argsort(hash64(SPLIT, seed, 1, np.arange(len(categories))))].tolist()
    turns: dict[str, int] = dict.fromkeys(shuffled, 0)
    order = []
    for position in np.argsort(hash64(SPLIT, seed, np.arange(len(names)))).tolist():
        category = category_of(names[position])
        order.append((turns[category], shuffled.index(category), names[position]))
        turns[category] += 1
    chosen = {name for _, _, name in sorted(order)[:count]}
    return [name for name in names if name in chosen]
