"""What the data modules for person re-identification have in common."""

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from datamodules.branches import BranchBatches
from datamodules.class_batches import ClassBatches
from datamodules.demo.people import DEMOS, Demo, write_once
from datamodules.identity_batches import StepSampler
from datamodules.loaders import ready
from datamodules.low_resolution import FACTORS
from datamodules.reid_files import (
    FOLDERS,
    LAYOUTS,
    TRAIN,
    EvaluationFiles,
    ReIDFiles,
    ReIDLayout,
    read_folder,
    require_folders,
)
from datamodules.reid_images import Batch, CameraImages
from datamodules.reid_loaders import ReIDLoaders
from datamodules.reid_low_resolution import NAMES, protocol
from datamodules.reid_options import check_options
from datamodules.reid_splits import ReIDSplits, require_two_persons, without_junk
from datamodules.samplers import (
    ResumableLoader,
    refuse_replaced_samplers,
)
from datamodules.transforms import to_float


class ReIDDataModule(ReIDLoaders):
    """Base of the data modules for person re-identification; a subclass says its :attr:`layout`.

    All batches have ``image`` (B, 3, height, width) float32 in [0, 1], ``camid`` (B,) int64 from 0 and ``index`` (B,)
    int64. Batches for training an encoder add ``label`` (B,) int64, ``style`` (B,) int64, the camera to translate the
    picture to (-1: leave it as it is), and ``erased`` (B, 4) int64, the rectangle y0, x0, y1, x1 that random erasing
    takes away (all 0: none). Those of validation and test add ``pid`` (B,) int64, the person as in the file name, and
    ``is_query`` (B,) bool; ``index`` is the position among the queries or in the gallery, both sorted by file name.
    They come person by person, so that a limit on batches leaves whole persons out. With ``lr_query`` they have ``low``
    (B,) bool, see there.

    ``train_on`` says what ``fit`` trains on:

    - ``"ids"``: the persons of the own training set, relabelled from 0 in the order of their numbers; batches of
      ``p`` persons with ``k`` pictures, cropped, mirrored, partly erased. For pre-training.
    - ``"clusters"``: pseudo-labels that a callback hands to :meth:`set_pseudo_labels`; the persons of the training set
      are not read. Batches of ``p`` labels with ``k`` pictures, ``generated_per_id`` of which are to be translated;
      mirrored, partly erased. Until there are labels, batches are those of the labelled source in ``source_root``,
      as for ``"ids"``.
    - ``"branches"``: the persons of the own training set in easy pictures and in hard ones, down-sampled copies of
      the same pictures. A batch is ``{"easy": branch, "hard": branch}``, each with ``image`` and ``label`` of ``b``
      different persons and ``pair``, two tensors of ``b`` pictures whose equal rows show one person. Pictures are
      cropped as ``source_crop`` says and mirrored, each on its own; none is erased: batches have no place to say it.
    - ``"cameras"``: all training pictures, shuffled, without labels, for a generator between cameras; resized to 9/8,
      cropped, mirrored.

    What is random depends on the seed, the epoch and the place in it alone. Junk (id -1) is left out everywhere, as no
    figure counts it, unless ``keep_junk``; distractors (id 0) stay. Queries without a picture of their person from
    another camera stay, too, and are counted in the log: the metric leaves them out.

    Args:
        root: holds ``bounding_box_train``, ``query`` and ``bounding_box_test``.
        height: of the pictures that come out, in pixels.
        width: of the pictures that come out, in pixels.
        p: persons or clusters in a training batch of each process.
        k: pictures of each.
        generated_per_id: so many of these are to be translated (``train_on="clusters"``).
        train_on: see above.
        source_root: a labelled set in the layout of either data set, recognised by its file names, of which only
            ``bounding_box_train`` is read. Without effect unless ``train_on="clusters"``.
        source_p: as ``p``, for batches of the source.
        source_k: as ``k``, for batches of the source.
        batch_size: of evaluation, clustering and ``train_on="cameras"``, per process.
        num_workers: worker processes per loader; 0 loads in the main process.
        seed: decides the order of training, the augmentation and the persons held out.
        val_source: ``"test"`` validates on the test queries and gallery, as is usual in this field: it is said in the
            log, and figures of a checkpoint chosen so are too good. ``"train"`` holds out ``val_ids`` persons.
            ``"none"`` is for sets without known persons; only ``bounding_box_train`` needs to be there for it.
        val_ids: persons of the training set that are held out of all training, clusters and cameras included; of each
            one picture per camera is a query. Needs their ids, also with ``train_on="clusters"``.
        erase_probability: that a training picture is partly erased. Without effect with ``train_on="branches"``.
        source_crop: whether labelled pictures are cropped (64 to 100 % of the area, 2 to 3 times as high as wide).
        keep_junk: leave junk in the gallery, with ``pid`` -1.
        on_bad_image: ``raise`` stops at a file that cannot be read and names it. ``skip`` reads all files once at the
            beginning, warns, and goes on without those that are broken (:attr:`bad_images`, :meth:`summary`).
        demo: write a small drawn set to ``root``, and another to ``source_root`` if that is given, where there is none.
        lr_query: have each query twice in validation and test, clean and down-sampled by 2 + CRC32(file name) mod 3, as
            it is stored, then resized; ``low`` (B,) bool is true for the latter, and ``index`` the same. The gallery is
            clean. On Market-1501 this is LR-Market (ours).
        lr_factors: by one of these, drawn anew each time, a hard picture is down-sampled (``train_on="branches"``);
            ``None`` is 2, 3, 4.
        b: pictures, and pairs, of each branch in a training batch of each process (``train_on="branches"``).
        pairs: whether its batches have pairs.
        hard_pairs: ``"mixed"``: the second picture of a hard pair is any other of the person, easy or hard; ``"hard"``:
            both are hard.

    Attributes:
        num_classes: persons that an identity classifier is trained on, those of ``root`` with ``"ids"`` and
            ``"branches"``, those of ``source_root`` with ``"clusters"``; else 0.
        branch_names: ``["easy", "hard"]`` with ``"branches"`` (without ``lr_factors`` the first alone), else empty.
        num_cameras: of the training pictures: their highest camera number.
        label_source: asked by ``train_dataloader`` for the pseudo-labels of the epoch at hand, if it is there;
            ``PseudoLabelClustering`` puts it there for a fit.

    Raises:
        ValueError: an argument is out of range.
    """

    layout: ReIDLayout

    def __init__(
        self,
        root: str,
        height: int = 256,
        width: int = 128,
        p: int = 32,
        k: int = 8,
        generated_per_id: int = 2,
        train_on: Literal["ids", "clusters", "cameras", "branches"] = "ids",
        source_root: str | None = None,
        source_p: int = 16,
        source_k: int = 8,
        batch_size: int = 64,
        num_workers: int = 2,
        seed: int = 0,
        val_source: Literal["test", "train", "none"] = "test",
        val_ids: int = 0,
        erase_probability: float = 0.5,
        source_crop: bool = True,
        keep_junk: bool = False,
        on_bad_image: Literal["raise", "skip"] = "raise",
        demo: bool = False,
        lr_query: bool = False,
        lr_factors: list[int] | None = None,
        b: int = 32,
        pairs: bool = True,
        hard_pairs: Literal["mixed", "hard"] = "mixed",
    ) -> None:
        super().__init__()
        self.root, self.source_root = Path(root), None if source_root is None else Path(source_root)
        self.train_on: str = train_on
        self.height, self.width = height, width
        self.p, self.k, self.generated_per_id, self.source_p, self.source_k = p, k, generated_per_id, source_p, source_k
        self.batch_size, self.num_workers, self.seed = batch_size, num_workers, seed
        self.val_source, self.val_ids = val_source, val_ids
        self.erase_probability, self.source_crop = erase_probability, source_crop
        self.keep_junk, self.on_bad_image, self.demo = keep_junk, on_bad_image, demo
        self.lr_query, self.lr_factors = lr_query, list(FACTORS if lr_factors is None else lr_factors)
        self.b, self.pairs, self.hard_pairs = b, pairs, hard_pairs
        check_options(self)
        held = val_ids if val_source == "train" else 0
        self._split = ReIDSplits(self.root, self.layout, held, seed, keep_junk, on_bad_image == "skip")
        self.mean, self.std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
        self.input_size = [3, height, width]
        self._train: ReIDFiles | None = None
        self._source: ReIDFiles | None = None
        self._val: EvaluationFiles | None = None
        self._test: EvaluationFiles | None = None
        self._labels: NDArray[np.int64] | None = None
        self._loader: ResumableLoader | None = None  # of the labels at hand
        self._branches: BranchBatches | None = None
        self.branch_names = NAMES[: 1 + bool(self.lr_factors)] if train_on == "branches" else []
        self.label_source: Callable[[], Tensor | None] | None = None

    @cached_property
    def num_classes(self) -> int:
        """Persons that an identity classifier is trained on; the files are listed for it."""
        if self.train_on == "cameras" or (self.train_on == "clusters" and self.source_root is None):
            return 0
        own = self.train_on != "clusters"
        root = self.root if own else self.source_root
        layout = self.layout if own else None
        assert root is not None
        if self.demo and not _begun(root):
            persons = self._demo(own).train_ids
        elif not _begun(root):  # prepare_data will say so
            persons = self._layout(own).counts[TRAIN][1]
        else:
            persons = len(np.unique(without_junk(read_folder(root, TRAIN, layout)).pids))
        return persons - (self.val_ids if own else 0)

    @cached_property
    def num_cameras(self) -> int:
        """Cameras of the training pictures; the files are listed for it."""
        if self.demo and not _begun(self.root):
            return self._demo(own=True).cameras
        return int(without_junk(read_folder(self.root, TRAIN, self.layout)).camids.max()) + 1

    def prepare_data(self) -> None:
        """Look for the folders; with ``demo`` write the sets first.

        Raises:
            FileNotFoundError: a folder is missing; names it and what to do.
            ValueError: ``demo`` meets a folder with something else in it.
        """
        for root, own in ((self.root, True), (self.source_root, False)) if self.demo else ():
            if root is not None and not _begun(root):
                write_once(root, self._demo(own))
        folders = FOLDERS if self.val_source == "test" else [TRAIN]  # those of the test are wanted by the test alone
        require_folders(self.root, self.layout, folders=folders)
        if self.source_root is not None:
            require_folders(self.source_root, folders=[TRAIN])

    def setup(self, stage: str) -> None:
        """Read what this stage needs: names of training pictures, of queries and of the gallery.

        Raises:
            FileNotFoundError: a folder is missing.
            ValueError: names do not parse or are those of the other set, or there is nothing to train or to evaluate.
        """
        refuse_replaced_samplers(self.trainer)
        if stage == "fit" and self._train is None:
            self._train = self._split.train()
            if self.train_on in ("ids", "branches"):
                require_two_persons(self._train, self._split.where)
            if self.train_on == "clusters" and self.generated_per_id and len(np.unique(self._train.camids)) < 2:
                raise ValueError(
                    f"generated_per_id={self.generated_per_id} needs pictures of two cameras in {TRAIN} of "
                    f"{self._split.where}, got one; set it to 0"
                )
        if stage == "fit" and self._source is None and self.source_root is not None and self.train_on == "clusters":
            self._source = self._split.readable(without_junk(read_folder(self.source_root, TRAIN)))
            require_two_persons(self._source, f"source_root={str(self.source_root)!r}")
        if self.lr_query and stage != "predict" and (stage == "test" or self.val_source != "none"):
            rank_zero_info(f"lr_query=True: {protocol(self.layout)}")
        if stage in ("fit", "validate") and self._val is None:
            if self.val_source == "test":
                rank_zero_info(
                    'val_source="test": validation is on the test queries and gallery; figures of a checkpoint that '
                    "is chosen by them are too good"
                )
                self._test = self._val = self._test or self._split.test()
            elif self.val_source == "train":
                self._val = self._split.held_out()
        if stage in ("test", "predict") and self._test is None:
            self._test = self._split.test()

    def set_pseudo_labels(self, labels: Tensor | None) -> None:
        """Say what ``train_on="clusters"`` trains on from the next ``train_dataloader()`` on, the same on all ranks.

        With fewer than two clusters an epoch is one batch of length 0.

        Args:
            labels: ``(N,)`` whole numbers, cluster of each training picture in the order of :attr:`train_files`, -1 for
                none. ``None`` goes back to the source.

        Raises:
            ValueError: another shape, dtype or number below -1; or ``train_on`` is another one.
            RuntimeError: before ``setup("fit")``.
        """
        if self.train_on != "clusters":
            raise ValueError(f'pseudo-labels have no effect with train_on="{self.train_on}"; set train_on="clusters"')
        size = len(self._ready(self._train, "fit"))
        if labels is None:
            self._loader = None if self._labels is not None else self._loader
            self._labels = None
            return
        if labels.shape != (size,) or labels.is_floating_point() or labels.dtype == torch.bool:
            raise ValueError(
                f"labels must be ({size},) whole numbers, one per training picture, got {tuple(labels.shape)} "
                f"{str(labels.dtype).removeprefix('torch.')}"
            )
        if size and int(labels.min()) < -1:
            raise ValueError(f"labels must be -1 (none) or more, got {int(labels.min())}")
        new = labels.detach().cpu().numpy().astype(np.int64)  # a copy
        if self._labels is None or not np.array_equal(new, self._labels):
            self._labels, self._loader = new, None

    @property
    def pseudo_labels(self) -> Tensor | None:
        """The labels that were set last, ``(N,)`` int64; ``None`` if there are none."""
        return None if self._labels is None else torch.from_numpy(self._labels.copy())

    def train_dataloader(self) -> ResumableLoader:
        """What ``train_on`` says, resumable after any batch.

        Raises:
            ValueError: ``train_on="clusters"`` without labels and without a source.
        """
        train = self._ready(self._train, "fit")
        if self.label_source is not None:
            self.set_pseudo_labels(self.label_source())
        if self.train_on == "cameras":
            return self._camera_loader(train)
        if self.train_on == "ids":
            return self._labelled_loader(train, self.p, self.k)
        if self.train_on == "branches":
            loader, self._branches = self._branch_loader(train)
            return loader
        if self._labels is not None:
            if self._loader is None:  # else the same one: its workers go on
                self._loader = self._cluster_loader(train, self._labels)
            return self._loader
        if self._source is None:
            raise ValueError(
                'train_on="clusters" has no pseudo-labels to train on: it needs the callback PseudoLabelClustering, '
                "or a labelled set in source_root to begin with"
            )
        if self._loader is None:
            self._loader = self._labelled_loader(self._source, self.source_p, self.source_k)
        return self._loader

    def val_dataloader(self) -> DataLoader | list:
        """Queries and gallery, person by person; each picture once over all ranks. Nothing with ``"none"``."""
        if self.val_source == "none":
            return []
        return self._ranking_loader(self._ready(self._val, "fit"), persistent=True)

    def predict_dataloader(self) -> DataLoader:
        """The queries of the test."""
        return self._evaluation_loader(self._images(self._ready(self._test, "test").query))

    def test_dataloader(self) -> DataLoader:
        """Queries and gallery, person by person; each picture once over all ranks."""
        return self._ranking_loader(self._ready(self._test, "test"))

    def cluster_dataloader(self) -> DataLoader:
        """All training pictures in the view of evaluation: ``image``, ``camid``, ``index``, each once over all ranks.

        Run the batches through ``trainer.strategy.batch_to_device``, which includes :meth:`on_after_batch_transfer`.
        """
        return self._evaluation_loader(self._images(self._ready(self._train, "fit")))

    def source_cluster_dataloader(self) -> DataLoader:
        """The same for the pictures of the source.

        Raises:
            ValueError: there is no source.
        """
        if self.train_on != "clusters" or self.source_root is None:
            raise ValueError(
                "there are no source pictures: this needs source_root, a labelled set, with train_on='clusters'"
            )
        return self._evaluation_loader(self._images(self._ready(self._source, "fit")))

    def camera_batches(self, steps: range, batch_size: int, part: int = 0) -> DataLoader:
        """Batches for training a generator outside the Trainer's loop: ``image``, ``camid``, ``index`` and ``label``.

        The pictures of a step depend on (seed, part, step) alone, so that a later call can go on anywhere. Over the
        steps of a part all training pictures come equally often. The view is that of ``train_on="cameras"``; ``label``
        is the pseudo-label, -1 where there is none.

        Args:
            steps: numbers of the steps.
            batch_size: over all ranks together.
            part: number of the training, for different pictures each time.

        Raises:
            ValueError: ``batch_size`` cannot be shared out evenly over the ranks.
        """
        train = self._ready(self._train, "fit")
        sampler = StepSampler(len(train), steps, batch_size, part, self.seed)
        labels = np.full(len(train), -1) if self._labels is None else self._labels
        images = CameraImages(train, self.height, self.width, {"label": labels}, self.seed)
        options = self._options() | {"batch_size": None}
        return DataLoader(ClassBatches(images, sampler), sampler=sampler, **options)  # type: ignore[arg-type]

    @property
    def train_files(self) -> list[Path]:
        """The training pictures, as ``index`` counts them."""
        return self._ready(self._train, "fit").paths()

    @property
    def train_camids(self) -> Tensor:
        """Camera of each training picture, ``(N,)`` int64 from 0."""
        return torch.from_numpy(self._ready(self._train, "fit").camids.copy())

    def true_train_ids(self) -> Tensor | None:
        """Person of each training picture, ``(N,)`` int64 as in the file names.

        For reports alone, such as the purity of clusters: adaptation must not see them. ``None`` where all pictures
        bear one number: nobody knows who they are.
        """
        pids = self._ready(self._train, "fit").pids
        return torch.from_numpy(pids.copy()) if len(np.unique(pids[pids > 0])) > 1 else None

    def thumbnail(self, index: int) -> NDArray[np.uint8]:
        """A training picture in the view of evaluation, ``(height, width, 3)`` uint8."""
        images = self._images(self._ready(self._train, "fit"))
        return np.asarray(images.transform(images.picture(index), np.empty(0)))

    @property
    def query_files(self) -> list[Path]:
        """The test queries, as ``index`` counts them."""
        return self._ready(self._test, "test").query.paths()

    @property
    def gallery_files(self) -> list[Path]:
        """The test gallery, as ``index`` counts it."""
        return self._ready(self._test, "test").gallery.paths()

    @property
    def val_query_files(self) -> list[Path]:
        """The queries of validation, as ``index`` counts them."""
        return self._ready(self._val, "fit").query.paths()

    @property
    def val_gallery_files(self) -> list[Path]:
        """The gallery of validation, as ``index`` counts it."""
        return self._ready(self._val, "fit").gallery.paths()

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Turn uint8 into float32 in [0, 1] on the device: a quarter of the bytes to move there."""
        return to_float(batch)

    @property
    def bad_images(self) -> list[str]:
        """Files that were left out because they cannot be read."""
        return self._split.bad

    def summary(self) -> dict[str, float | str | list]:
        """Number and names of skipped files; sizes of the branches; what figures of degraded queries belong to."""
        found: dict[str, float | str | list] = {
            "data/bad_images": len(self.bad_images),
            "data/bad_image_files": self.bad_images,
        }
        found |= {} if self._branches is None else self._branches.summary()
        return found | ({"data/protocol": protocol(self.layout)} if self.lr_query else {})

    def _ready(self, files: Any, stage: str) -> Any:
        return ready(files, self, "these pictures", stage)

    def _demo(self, own: bool) -> Demo:
        """The demo set of this layout, or that of the other one for the source."""
        return DEMOS[self._layout(own).name]

    def _layout(self, own: bool) -> ReIDLayout:
        """This layout, or the other one, which the source has as long as it is not there."""
        (layout,) = [layout for layout in LAYOUTS if (layout == self.layout) == own]
        return layout


def _begun(root: Path) -> bool:
    return any((root / folder).is_dir() for folder in FOLDERS)
