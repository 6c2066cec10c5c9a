"""Faces in folders or lists, easy ones and hard ones apart, with sets to evaluate on."""

from inspect import signature
from pathlib import Path
from typing import Any, Literal

import numpy as np
from lightning.pytorch import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from datamodules.branches import Branch, BranchBatches, branch_loader
from datamodules.demo.faces import write_faces
from datamodules.face_options import FaceSplitOptions
from datamodules.face_sets import FaceSet, read_set
from datamodules.face_splits import FaceSplit
from datamodules.face_views import FaceViews
from datamodules.loaders import EvaluationLoader, loader_options, ready
from datamodules.samplers import ResumableLoader, ShardSampler, refuse_replaced_samplers
from datamodules.transforms import to_float
from lit_methods.functional.suggestions import shorten

DEMO_IDENTITIES: int = signature(write_faces).parameters["train_ids"].default


class FaceFolderDataModule(LightningDataModule):
    """Aligned faces: folders of identities or index lists to train on, any number of sets to evaluate on.

    A training batch is a dict of branches, ``"easy"`` first and then the hard ones. Each is a dict of ``image``
    (b, 3, image_size, image_size) of ``b`` different identities, ``label`` (b,) int64, and ``pair``, two tensors like
    ``image`` whose equal rows show the same person. Pictures are float32 in [0, 1], mirrored in half of the cases, each
    on its own. Batches depend on the seed, the epoch and the place in it alone.

    Training pictures are ``train/<identity>/<picture>``, or a list with lines ``path<TAB>label``, or
    ``pathA<TAB>pathB<TAB>label``, which stands for the pictures in it: pairs are drawn anew. Paths in a list count from
    ``root``. What is hard is said in one of these ways; with none all pictures are easy:

    - ``easy`` and ``hard``: a folder or a list for each branch, in place of ``train``.
    - ``difficulty``: a CSV table with columns ``path`` (as in the list, or from the folder ``train``) and
      ``difficulty``: ``easy``, ``hard``, or ``hard:<name>`` for a branch of that name. Pictures without a line are not
      used.
    - ``rule="pose"``: the table has ``yaw`` in degrees; easy up to ``easy_yaw``, hard from ``hard_yaw`` on, by amount.
    - ``rule="group"``: the table has ``group``; ``easy_group`` is easy, each other one a hard branch of its name.
    - ``rule="resolution"``: easy is a short side of ``easy_side`` pixels or more as the file is stored, hard is one
      below ``hard_side``.
    - ``hard_scales``: hard are copies of the easy pictures, brought down by one of these factors and back to size.

    A batch of a set of pairs has ``pair``, two tensors (B, 3, image_size, image_size), ``same`` (B,) bool and ``index``
    (B,) int64; one of a set for identification has ``image``, ``label``, ``group`` (B,) int64, -1 for the gallery and
    from 0 on for the groups of probes, and ``index``. There is a loader for each set, in the order given.

    Args:
        root: holds what the other arguments name.
        train: folder or list.
        easy: folder or list of the easy branch.
        hard: name of each hard branch to its folder or list.
        difficulty: table that says what is hard.
        rule: see above.
        easy_side: smallest short side that is easy, in pixels.
        hard_side: smallest one that is no longer hard.
        easy_yaw: largest yaw that is easy, in degrees.
        hard_yaw: smallest one that is hard.
        easy_group: the easy group.
        hard_scales: factors of the degraded copies, drawn evenly.
        hard_pairs: the second picture of a hard pair is any other one of the person (``"mixed"``), or one of the same
            branch (``"hard"``).
        identities: whether equal names or labels of several folders or lists are the same persons (``"shared"``), who
            then have one class, or each branch has classes of its own (``"separate"``). ``None``: they are the same
            where all pictures are of one folder or list; of several, no name may be in two, and classes are separate.
        pairs: whether training batches have ``pair``. Identities with one usable picture have none.
        b: pictures and pairs of each branch in a training batch of each process.
        batch_size: pictures or pairs in a batch of evaluation, per process.
        image_size: side of the pictures that come out, in pixels; others are resized (bilinear).
        num_workers: worker processes per loader; 0 loads in the main process.
        seed: decides the order of training, the pairs and the augmentation.
        val_sets: name to file or folder of each set to validate on, from ``root``: a ``.bin`` verification file, a
            ``.txt`` of pairs as LFW's, a ``.csv`` with path, label and group, or a folder of SCface. ``None`` is none.
        test_sets: the same for testing.
        in_memory: keep training pictures once they were read, resized; for sets that fit, in each worker process.
        on_bad_image: ``raise`` stops at a training picture that cannot be read and names it. ``skip`` reads all once at
            the beginning, warns, and goes on without those that are broken (:attr:`bad_images`, :meth:`summary`).
            Evaluation always stops.
        demo: write a set of drawn faces to ``root`` where there is none.

    Attributes:
        mean, std: 0.5 per channel.
        input_size: 3, image_size, image_size.

    Raises:
        ValueError: an argument is out of range, or there are two ways to say what is hard.

    Example:
        >>> import tempfile
        >>> from datamodules.demo import write_faces
        >>> with tempfile.TemporaryDirectory() as root:
        ...     root = str(write_faces(root, train_ids=2, val_ids=2, test_ids=2, folds=1, size=16))
        ...     data = FaceFolderDataModule(root, difficulty="difficulty.csv", b=2, num_workers=0)
        ...     data.setup("fit")
        ...     batch = next(iter(data.train_dataloader()))
        >>> data.branch_names, batch["hard"]["image"].shape, len(batch["easy"]["pair"])
        (['easy', 'hard'], torch.Size([2, 3, 112, 112]), 2)
    """

    def __init__(
        self,
        root: str = "data/faces",
        train: str = "train",
        easy: str | None = None,
        hard: dict[str, str] | None = None,
        difficulty: str | None = None,
        rule: Literal["resolution", "pose", "group"] | None = None,
        easy_side: int | None = None,
        hard_side: int | None = None,
        easy_yaw: float = 15.0,
        hard_yaw: float = 45.0,
        easy_group: str | None = None,
        hard_scales: list[int] | None = None,
        hard_pairs: Literal["mixed", "hard"] = "mixed",
        identities: Literal["shared", "separate"] | None = None,
        pairs: bool = True,
        b: int = 32,
        batch_size: int = 64,
        image_size: int = 112,
        num_workers: int = 2,
        seed: int = 0,
        val_sets: dict[str, str] | None = None,
        test_sets: dict[str, str] | None = None,
        in_memory: bool = False,
        on_bad_image: Literal["raise", "skip"] = "raise",
        demo: bool = False,
    ) -> None:
        super().__init__()
        if b < 2:
            raise ValueError(f"b must be at least 2, got {b}: a batch with one identity has no negatives")
        for name, value in (("batch_size", batch_size), ("image_size", image_size)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if num_workers < 0:
            raise ValueError(f"num_workers must be 0 (load in the main process) or more, got {num_workers}")
        for name, choice, choices in (
            ("hard_pairs", hard_pairs, ("mixed", "hard")),
            ("on_bad_image", on_bad_image, ("raise", "skip")),
        ):
            if choice not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {choice!r}")
        self.root = Path(root)
        self._how = FaceSplitOptions(
            self.root, train, easy, hard, difficulty, rule, easy_side, hard_side, easy_yaw, hard_yaw, easy_group,
            hard_scales, identities, on_bad_image == "skip",
        )  # fmt: skip
        self.hard_pairs, self.pairs, self.b = hard_pairs, pairs, b
        self.batch_size, self.image_size, self.num_workers, self.seed = batch_size, image_size, num_workers, seed
        self._places = {
            stage: {name: self.root / place for name, place in (sets or {}).items()}
            for stage, sets in (("val", val_sets), ("test", test_sets))
        }
        self.in_memory, self.on_bad_image, self.demo = in_memory, on_bad_image, demo
        self.mean, self.std = [0.5] * 3, [0.5] * 3
        self.input_size = [3, image_size, image_size]
        self.bad_images: list[str] = []
        self._split: FaceSplit | None = None
        self._branches: list[Branch] | None = None
        self._alone: dict[str, list[str]] = {}
        self._sets: dict[str, list[FaceSet]] = {}
        self._told: int | list[int] = 0  # classes that were expected before the data were there

    @property
    def num_classes(self) -> int | list[int]:
        """Identities that are trained on, or those of each branch where classes are separate.

        Folders, lists and tables are read for it. Where they are not there yet, it is what ``demo`` will write, or 0.
        """
        if self._split is None and self._how.missing():
            if self.demo and not (self.root / "train").is_dir():
                self._told = self._how.expected_classes(DEMO_IDENTITIES)
            return self._told
        return self._training().num_classes

    @property
    def branch_names(self) -> list[str]:
        """The branches, ``"easy"`` first; before a table is there that names more, ``"easy"`` and ``"hard"``."""
        return self._how.branch_names if self._split is None and self._how.missing() else self._training().branch_names

    def prepare_data(self) -> None:
        """Look for all that is named; with ``demo`` write the set first.

        Before a fit it looks for what is to train and to validate on, before a test for the test sets, and so on;
        without a trainer for everything.

        Raises:
            FileNotFoundError: something is missing; names it and what to do.
            ValueError: ``demo`` meets a folder with something else in it.
        """
        if self.demo and not (self.root / "train").is_dir():
            write_faces(self.root)
        stage = None if self.trainer is None else self.trainer.state.fn
        missing = self._how.missing() if stage in (None, TrainerFn.FITTING) else []
        for name in {None: ("val", "test"), TrainerFn.TESTING: ("test",), TrainerFn.PREDICTING: ()}.get(
            stage, ("val",)
        ):
            places = self._places[name].items()
            missing += [f"{name}_sets.{key}={str(path)!r}" for key, path in places if not path.exists()]
        if missing:
            raise FileNotFoundError(
                f"root={str(self.root)!r} {'lacks' if self.root.is_dir() else 'does not exist; it should hold'} "
                f"{shorten(missing)}. Point root at the folder with train/<identity>/<picture>, or say what else to "
                "read; demo=True writes a drawn set."
            )

    def setup(self, stage: str) -> None:
        """Read what this stage needs: folders, lists and tables for training, the sets for evaluation.

        Raises:
            FileNotFoundError: something is not there.
            ValueError: something does not parse, or there is too little to train on.
        """
        refuse_replaced_samplers(self.trainer)
        if stage == "fit" and self._branches is None:
            self._branches = self._read_branches()
        if stage in ("fit", "validate"):
            self._tell_test_sets()
            self._read_sets("val")
        if stage == "test":
            self._read_sets("test")

    def train_dataloader(self) -> ResumableLoader:
        """Batches of all branches, resumable after any batch.

        Raises:
            ValueError: a branch has fewer identities than a batch takes.
        """
        branches = ready(self._branches, self, "these pictures", "fit")
        batches = BranchBatches(self._views(), branches, self.b, self.pairs, self.seed)
        return branch_loader(batches, self.num_workers, self.seed, self.trainer)

    def val_dataloader(self) -> list[EvaluationLoader]:
        """A loader for each set to validate on, in the order given; each pair or picture once over all ranks."""
        return [self._evaluation_loader(faces, persistent=True) for faces in self.evaluation_sets("val")]

    def test_dataloader(self) -> list[EvaluationLoader]:
        """A loader for each set to test on, in the order given; each pair or picture once over all ranks."""
        return [self._evaluation_loader(faces) for faces in self.evaluation_sets("test")]

    def evaluation_sets(self, stage: Literal["val", "test"]) -> list[FaceSet]:
        """The sets of a stage, in the order of its loaders.

        Args:
            stage: which.

        Raises:
            RuntimeError: before :meth:`setup`.
        """
        return ready(self._sets.get(stage), self, "these sets", stage)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Turn uint8 into float32 in [0, 1] on the device: a quarter of the bytes to move there."""
        return to_float(batch)

    def summary(self) -> dict[str, float | str | list]:
        """Pictures and identities of each branch, those without a pair, and the files that were skipped."""
        found: dict[str, float | str | list] = {}
        for branch in self._branches or ():
            found[f"data/{branch.name}_pictures"] = len(branch)
            found[f"data/{branch.name}_identities"] = len(np.unique(branch.labels))
            if self.pairs:
                found[f"data/{branch.name}_without_pair"] = len(self._alone[branch.name])
        if self._split is not None and self._split.unused:
            found["data/unused_pictures"] = self._split.unused
        return found | {"data/bad_images": len(self.bad_images), "data/bad_image_files": self.bad_images}

    def _training(self) -> FaceSplit:
        if self._split is None:
            self._split = self._how.read()
        return self._split

    def _read_branches(self) -> list[Branch]:
        split, views = self._training(), self._views()
        if self._told not in (0, split.num_classes):
            raise ValueError(
                f"root={str(self.root)!r} has {split.num_classes} classes to train on, but {self._told} were expected "
                "before demo=True wrote it; now that it is there, start again"
            )
        used = np.flatnonzero(split.kinds >= 0)
        if self.on_bad_image == "raise":
            bad = used[:0]
            views.picture(int(used[0]))
        else:
            bad = views.unreadable(used)
            broken = np.union1d(bad, used[:0] if split.unreadable is None else split.unreadable)
            self.bad_images = [str(split.path(row)) for row in broken.tolist()]
        if self.bad_images:
            rank_zero_warn(
                f"skipped {len(self.bad_images)} of {len(split.names)} pictures that cannot be read: "
                f"{shorten(self.bad_images)}"
            )
        branches = split.branches(self.hard_pairs, bad)
        if self.pairs:
            self._alone = {branch.name: split.without_pair(branch) for branch in branches}
        sizes = [f"{branch.name} {len(branch)} of {len(np.unique(branch.labels))} identities" for branch in branches]
        rank_zero_info(f"pictures to train on: {'; '.join(sizes)}; {split.unused} are of no branch")
        for name, alone in self._alone.items():
            if alone:
                rank_zero_warn(
                    f"branch {name!r}: {len(alone)} identities have one usable picture and so no pair: {shorten(alone)}"
                )
        return branches

    def _views(self) -> FaceViews:
        split = self._training()
        scales = self._how.hard_scales or ()
        return FaceViews(split.root, split.names, self.image_size, self.seed, scales, self.in_memory)

    def _read_sets(self, stage: str) -> None:
        if stage not in self._sets:
            self._sets[stage] = [read_set(name, path, self.image_size) for name, path in self._places[stage].items()]
            for faces in self._sets[stage]:
                counts = ", ".join(f"{count} {what}" for what, count in faces.counts().items())
                rank_zero_info(f"{stage}_sets: {faces.name} has {counts}")

    def _tell_test_sets(self) -> None:
        tests = {path.resolve(): name for name, path in self._places["test"].items()}
        for name, path in self._places["val"].items():
            if (test := tests.get(path.resolve())) is not None and "val" not in self._sets:
                rank_zero_info(
                    f"val_sets: {name} is the test set {test}; figures of a checkpoint chosen by it are too good"
                )

    def _evaluation_loader(self, faces: FaceSet, persistent: bool = False) -> EvaluationLoader:
        options = loader_options(self.batch_size, self.num_workers, self.seed, persistent)
        loader = EvaluationLoader(faces, sampler=ShardSampler(faces), **options)
        loader.in_step = True
        return loader
