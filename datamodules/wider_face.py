"""WIDER FACE: random views with boxes to train a detector on, whole pictures to evaluate it on."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from numpy.typing import NDArray

from datamodules.demo.wider_face import write_wider_face
from datamodules.draws import SPLIT, permutation
from datamodules.face_boxes_views import ViewOptions
from datamodules.loaders import EvaluationLoader, loader_options, ready
from datamodules.samplers import EpochSampler, ResumableLoader, ShardSampler, refuse_replaced_samplers
from datamodules.transforms import to_float
from datamodules.wider_files import FaceList, read_face_list
from datamodules.wider_images import FaceBoxViews, RandomView, WholePictures, usable_faces, xyxy
from datamodules.wider_truth import LEVELS, FaceTruth, find_truth, levelled_truth, read_truth, truth_of_list
from lit_methods.functional.pictures import require_files
from lit_methods.functional.processes import gather_objects

TRAIN_LIST, TEST_LIST = (f"wider_face_split/wider_face_{split}_bbx_gt.txt" for split in ("train", "val"))


class WIDERFaceDataModule(LightningDataModule):
    """WIDER FACE (Yang et al., CVPR 2016), or own pictures with a list in its layout.

    A training batch has ``image`` (B, 3, image_size, image_size) float32 in [0, 1], ``boxes``, a list of (n, 4)
    float32, xyxy in pixels of the view, and ``index`` (B,) int64, the picture's number in the list. Views depend on the
    seed, the epoch and this number alone. With ``split_halves`` it is two such batches of different pictures,
    ``{"weights": batch, "alphas": batch}``. A batch of an evaluation has whole pictures of different sizes, see
    :class:`~datamodules.wider_images.WholePictures`.

    The layout is that of the archives, unpacked in ``root``: ``WIDER_train/images/<event>/<picture>``, ``WIDER_val``
    likewise, and ``wider_face_split/wider_face_{train,val}_bbx_gt.txt``; see
    :func:`~datamodules.wider_files.read_face_list`. As the field does, tests are on WIDER_val (the faces of WIDER_test
    are not public), and validation is on ``val_images`` pictures of WIDER_train, which are not trained on.

    With the four ``.mat`` files of the official evaluation, their boxes are the truth of a test, all of them, and it
    has the levels easy, medium and hard. Without them it is all faces of the list, without levels, as in validation.
    Faces marked as invalid and boxes without an area stay in evaluations, where the official tool has them. Training
    leaves out faces below 2 pixels, those that begin outside of the picture, and invalid ones.

    Args:
        root: holds the folders and lists.
        eval_tools: folder with ``wider_{face,easy,medium,hard}_val.mat``; ``None`` looks for
            ``eval_tools/ground_truth`` in ``root`` and beside it, and for ``eval_ground_truth`` in ``root``;
            ``"none"`` tests without levels, such as on another list.
        batch_size: views in a batch of training, per process.
        image_size: side of the views in pixels.
        crop: ``"square"``, ``"anchor_sampling"`` or ``"none"``, see
            :func:`~datamodules.face_boxes_windows.choose_window`.
        brightness: largest change, of 255; half of the views are changed, likewise for the next three.
        contrast: largest change, as a part.
        saturation: likewise.
        hue: largest change in degrees, of the circle's 360.
        permute: part of the views whose channels are put into a random order.
        flip: part of the views that are mirrored.
        min_face: faces of a smaller area than this squared, in pixels of the view, are left out.
        val_images: pictures of the training list that are held out for validation; 0 is no validation.
        eval_batch_size: pictures in a batch of evaluation, per process.
        num_workers: worker processes per loader; 0 loads in the main process.
        seed: decides which pictures are held out, the halves, the order of training and the views.
        in_memory: keep decoded training pictures; for small sets, in each worker process.
        split_halves: train on two halves of equal size side by side; of an odd number one picture is left out.
        keep_invalid: train on faces marked as invalid, too.
        keep_faceless: train on pictures without a usable face, too, as background.
        on_bad_image: ``raise`` stops at a training picture that cannot be read and names it; ``skip`` warns once per
            file, takes the next one, and counts (:attr:`bad_images`, :meth:`summary`). Evaluation always stops.
        train_list: the list to train on, from ``root``; ``None`` is that of the layout.
        train_images: folder of its pictures, from ``root``.
        test_list: the list to test on, from ``root``; ``None`` is that of the layout.
        test_images: folder of its pictures, from ``root``.
        demo: write a small set of drawn faces to ``root`` where there is none.

    Attributes:
        pictures_needed: set to ``False`` before :meth:`test_dataloader` it leaves ``image`` out of tests: detections
            come from files, and neither the pictures nor, with the ``.mat`` files, the list need be there.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> import tempfile
        >>> from datamodules.demo import write_wider_face
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     root = write_wider_face(Path(folder, "widerface"), train=2, val=1, size=(128, 128), faces=2)
        ...     data = WIDERFaceDataModule(str(root), batch_size=2, image_size=128, val_images=0, num_workers=0)
        ...     data.setup("fit")
        ...     batch = next(iter(data.train_dataloader()))
        >>> batch["image"].shape, batch["image"].dtype, len(batch["boxes"])
        (torch.Size([2, 3, 128, 128]), torch.uint8, 2)
    """

    pictures_needed = True

    def __init__(
        self,
        root: str = "data/widerface",
        eval_tools: str | None = None,
        batch_size: int = 16,
        image_size: int = 640,
        crop: Literal["square", "anchor_sampling", "none"] = "square",
        brightness: float = 32,
        contrast: float = 0.5,
        saturation: float = 0.5,
        hue: float = 18,
        permute: float = 0.5,
        flip: float = 0.5,
        min_face: float = 8,
        val_images: int = 500,
        eval_batch_size: int = 1,
        num_workers: int = 2,
        seed: int = 0,
        in_memory: bool = False,
        split_halves: bool = False,
        keep_invalid: bool = False,
        keep_faceless: bool = False,
        on_bad_image: Literal["raise", "skip"] = "raise",
        train_list: str | None = None,
        train_images: str = "WIDER_train/images",
        test_list: str | None = None,
        test_images: str = "WIDER_val/images",
        demo: bool = False,
    ) -> None:
        super().__init__()
        for name, value in (("batch_size", batch_size), ("eval_batch_size", eval_batch_size)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        for name, value in (("val_images", val_images), ("num_workers", num_workers)):
            if value < 0:
                raise ValueError(f"{name} must be 0 or more, got {value}")
        if on_bad_image not in ("raise", "skip"):
            raise ValueError(f'on_bad_image must be "raise" or "skip", got {on_bad_image!r}')
        options = ViewOptions(
            image_size=image_size, crop=crop, brightness=brightness, contrast=contrast, saturation=saturation, hue=hue,
            permute=permute, flip=flip, min_face=min_face,
        )  # fmt: skip
        self.view, self.image_size = RandomView(options, seed), image_size
        self.root, self.eval_tools, self.demo = Path(root), eval_tools, demo
        self.batch_size, self.eval_batch_size, self.val_images = batch_size, eval_batch_size, val_images
        self.num_workers, self.seed, self.in_memory, self.split_halves = num_workers, seed, in_memory, split_halves
        self.keep_invalid, self.keep_faceless, self.on_bad_image = keep_invalid, keep_faceless, on_bad_image
        self._lists = {"train": self.root / (train_list or TRAIN_LIST), "test": self.root / (test_list or TEST_LIST)}
        self._folders = {"train": self.root / train_images, "test": self.root / test_images}
        self._beside = test_list is None  # the files of the evaluation may lie beside root, too
        self._listed: FaceList | None = None
        self._train: FaceBoxViews | None = None
        self._truth: dict[str, FaceTruth] = {}
        self._counts: dict[str, int] = {}

    @property
    def levels(self) -> tuple[str, ...]:
        """The levels of a test: easy, medium and hard where the files of the evaluation are there, else none."""
        if "test" in self._truth:
            return tuple(self._truth["test"].keep)
        return LEVELS if find_truth(self.root, self.eval_tools, self._beside) else ()

    @property
    def bad_images(self) -> list[str]:
        """Training pictures skipped so far by this process and its workers; after a fit, by all processes."""
        return [] if self._train is None else self._train.bad_files()

    def prepare_data(self) -> None:
        """Look for lists and folders; with ``demo`` write the set first.

        Before a test it looks for what that needs, before a fit or a validation for the training list; without a
        trainer for everything.

        Raises:
            FileNotFoundError: something is missing; names it and how to get it.
            ValueError: ``demo`` meets a folder with something else in it.
        """
        if self.demo and not any(path.is_file() for path in self._lists.values()):
            write_wider_face(self.root)
        stage = None if self.trainer is None else self.trainer.state.fn
        missing: list[str] = []
        if stage != TrainerFn.TESTING:
            missing += [str(path) for path in (self._lists["train"], self._folders["train"]) if not path.exists()]
        if stage in (None, TrainerFn.TESTING):
            known = find_truth(self.root, self.eval_tools, self._beside)
            missing += [] if known or self._lists["test"].is_file() else [str(self._lists["test"])]
        if missing:
            raise FileNotFoundError(self._missing(missing))

    def setup(self, stage: str) -> None:
        """Read the lists that this stage needs; no picture is opened, but those to train and validate on must be there.

        Raises:
            FileNotFoundError: a list or a picture is missing.
            ValueError: a list does not parse, the files of the evaluation are of other pictures, or there is too little
                to train on.
        """
        refuse_replaced_samplers(self.trainer)
        if stage == "fit" and self._train is None:
            self._train = self._read_training()
        if stage in ("fit", "validate") and "val" not in self._truth:
            self._truth["val"] = truth_of_list(self._held_out())
            require_files(self._folders["train"], self._truth["val"].files, str(self._lists["train"]))
        if stage == "test" and "test" not in self._truth:
            self._truth["test"] = self._read_test()

    def train_dataloader(self) -> ResumableLoader | CombinedLoader:
        """Random views in random order by (seed, epoch), resumable after any batch; two loaders with ``split_halves``.

        Raises:
            RuntimeError: before ``setup("fit")``.
        """
        train = ready(self._train, self, "the training list", "fit")
        if not self.split_halves:
            return self._training_loader(train)
        weights, alphas = halves(train.rows, self.seed)
        return CombinedLoader(
            {
                "weights": self._training_loader(train.part(weights)),
                "alphas": self._training_loader(train.part(alphas), part=1),
            },
            mode="min_size",
        )

    def val_dataloader(self) -> EvaluationLoader | list[EvaluationLoader]:
        """The pictures that are held out, each once over all ranks; no loader at all where there are none."""
        truth = self._evaluated("val")
        return self._evaluation_loader(truth, self._folders["train"], persistent=True) if len(truth) else []

    def test_dataloader(self) -> EvaluationLoader:
        """The test pictures in the order of the list, each once over all ranks.

        Raises:
            FileNotFoundError: pictures are needed, and some are missing.
        """
        truth = self._evaluated("test")
        if not self.pictures_needed:
            return self._evaluation_loader(truth, None)
        if not truth.files:
            raise FileNotFoundError(self._missing([str(self._lists["test"])]))
        require_files(self._folders["test"], truth.files, str(self._lists["test"]))
        return self._evaluation_loader(truth, self._folders["test"])

    def evaluation_names(self, stage: Literal["val", "test"] = "test") -> list[str]:
        """What the pictures of a stage are called, event and stem, in the order of ``index``.

        Args:
            stage: which.

        Raises:
            RuntimeError: before :meth:`setup`.
        """
        return self._evaluated(stage).names

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Turn uint8 into float32 in [0, 1] on the device, in lists and in both halves of a batch."""
        if "index" not in batch:
            return {half: self.on_after_batch_transfer(part, dataloader_idx) for half, part in batch.items()}
        if "image" not in batch:
            return batch
        return batch | {"image": to_float(batch["image"])}

    def summary(self) -> dict[str, float | str | list]:
        """Pictures and faces of each stage, those that training leaves out, and the files that were skipped."""
        found: dict[str, float | str | list] = {f"data/{name}": count for name, count in self._counts.items()}
        for stage, truth in self._truth.items():
            found[f"data/{stage}_images"] = len(truth)
            found[f"data/{stage}_faces"] = sum(map(len, truth.boxes))
        return found | {"data/bad_images": len(self.bad_images), "data/bad_image_files": self.bad_images}

    def teardown(self, stage: str) -> None:
        """Tell all processes what each of them could not read."""
        if self._train is not None and self._train.skip:
            found = gather_objects(torch.nonzero(self._train.bad).flatten())
            self._train.bad[torch.cat(found)] = True

    def _read_list(self) -> FaceList:
        if self._listed is None:
            self._listed = self._read("train")
            if len(self._listed) <= self.val_images:
                raise ValueError(
                    f"val_images={self.val_images} leaves none of the {len(self._listed)} pictures of "
                    f"{str(self._lists['train'])!r} to train on; hold out fewer"
                )
        return self._listed

    def _read(self, split: str) -> FaceList:
        if not self._lists[split].is_file():
            raise FileNotFoundError(self._missing([str(self._lists[split])]))
        return read_face_list(self._lists[split])

    def _held_out(self) -> FaceList:
        listed = self._read_list()
        return listed.part(hold_out(len(listed), self.val_images, self.seed)[1])

    def _read_training(self) -> FaceBoxViews:
        listed = self._read_list()
        kept, _ = hold_out(len(listed), self.val_images, self.seed)
        mine = listed.faces_in(kept)
        usable, dropped = usable_faces(listed.faces[mine], self.keep_invalid)
        if not usable.any():
            raise ValueError(
                f"{str(self._lists['train'])!r} has no usable face in the {len(kept)} pictures to train on: of "
                f"{len(usable)} faces {dropped['small']} are below 2 pixels, {dropped['outside']} begin outside of the "
                f"picture and {dropped['invalid']} are marked as invalid; name a list with faces in train_list, or "
                "hold fewer pictures out"
            )
        chosen = np.zeros(len(listed.faces), bool)
        chosen[mine] = usable
        ends = np.concatenate([[0], np.cumsum(chosen)])[listed.ends]
        has_faces = np.diff(ends, prepend=0)[kept] > 0
        rows = kept if self.keep_faceless else kept[has_faces]
        if self.split_halves and len(rows) < 2:
            raise ValueError(
                f"split_halves=True needs two pictures, but {str(self._lists['train'])!r} has {len(rows)} to train on"
            )
        require_files(self._folders["train"], [listed.files[row] for row in rows], str(self._lists["train"]))
        self._counts = {
            "train_images": len(rows),
            "train_images_without_faces": int((~has_faces).sum()),
            "train_faces": int(usable.sum()),
        } | {f"train_faces_{name}": count for name, count in dropped.items()}
        left_out = f"{len(kept) - len(rows)} pictures without faces and {sum(dropped.values())} faces are left out"
        rank_zero_info(f"{len(rows)} pictures to train on with {int(usable.sum())} faces; {left_out}")
        return FaceBoxViews(
            self._folders["train"], listed.files, xyxy(listed.faces[chosen]), ends, rows, self.view,
            self.on_bad_image == "skip", self.in_memory,
        )  # fmt: skip

    def _read_test(self) -> FaceTruth:
        folder = find_truth(self.root, self.eval_tools, self._beside)
        if folder is None:
            truth = truth_of_list(self._read("test"))
        elif self._lists["test"].is_file():
            truth = levelled_truth(self._read("test"), read_truth(folder), folder)
        else:  # enough to score detections of others
            truth = read_truth(folder)
        where = "without levels" if folder is None else f"with the levels of {str(folder)!r}"
        rank_zero_info(f"{len(truth)} pictures to test on with {sum(map(len, truth.boxes))} faces, {where}")
        return truth

    def _evaluated(self, stage: str) -> FaceTruth:
        return ready(self._truth.get(stage), self, "these pictures", stage)

    def _training_loader(self, views: FaceBoxViews, part: int = 0) -> ResumableLoader:
        options = loader_options(self.batch_size, self.num_workers, self.seed, persistent=True)
        loader = ResumableLoader(views, sampler=EpochSampler(views, self.seed, part=part), **options)
        loader.trainer = self.trainer
        return loader

    def _evaluation_loader(self, truth: FaceTruth, folder: Path | None, persistent: bool = False) -> EvaluationLoader:
        options = loader_options(self.eval_batch_size, self.num_workers, self.seed, persistent)
        pictures = WholePictures(folder, truth)
        loader = EvaluationLoader(pictures, sampler=ShardSampler(pictures), **options)
        loader.in_step = True
        return loader

    def _missing(self, names: list[str]) -> str:
        problem = "lacks" if self.root.is_dir() else "does not exist; it should hold"
        return (
            f"root={str(self.root)!r} {problem} {', '.join(names)}. Unpack WIDER_train.zip, WIDER_val.zip and "
            "wider_face_split.zip of http://shuoyang1213.me/WIDERFACE there, or name own lists and folders in "
            "train_list, train_images, test_list and test_images; demo=True writes a drawn set."
        )


def hold_out(total: int, count: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Choose pictures to validate on; fewer are part of more.

    Args:
        total: number of pictures.
        count: how many are held out.
        seed: decides which.

    Returns:
        Numbers of those kept and of those held out, both rising.

    Example:
        >>> kept, held = hold_out(5, 2, seed=0)
        >>> len(held), sorted([*kept.tolist(), *held.tolist()])
        (2, [0, 1, 2, 3, 4])
    """
    order = permutation(total, SPLIT, seed)
    return np.sort(order[count:]), np.sort(order[:count])


def halves(rows: NDArray[np.int64], seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Split pictures in two halves of equal size; of an odd number one is left out.

    Args:
        rows: numbers of the pictures.
        seed: decides the halves.

    Example:
        >>> one, other = halves(np.array([3, 5, 8, 9, 11]), seed=0)
        >>> len(one), len(other), len({*one.tolist(), *other.tolist()})
        (2, 2, 4)
    """
    order, size = permutation(len(rows), SPLIT, seed, 1), len(rows) // 2
    return rows[np.sort(order[:size])], rows[np.sort(order[size : 2 * size])]
