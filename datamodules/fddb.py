"""FDDB, faces in photographs of the news, marked by ellipses: to test detectors on."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info

from datamodules.fddb_files import FOLDS, EllipseList, read_folds
from datamodules.listed_pictures import ListedPictures
from datamodules.loaders import EvaluationLoader, loader_options, ready
from datamodules.samplers import ShardSampler, refuse_replaced_samplers
from datamodules.transforms import to_float
from lit_methods.functional.pictures import require_files

LISTS, PICTURES = "FDDB-folds", "originalPics"
SIZE = 2845


class FDDBDataModule(LightningDataModule):
    """FDDB (Jain and Learned-Miller, 2010); for testing alone.

    ``root`` holds ``FDDB-folds/FDDB-fold-01-ellipseList.txt`` to ``-10-`` and the pictures, such as
    ``2002/08/11/big/img_591.jpg``, in ``originalPics`` or themselves.

    A batch has ``image``, a list of (3, H, W) float32, RGB in [0, 1] (uint8 until ``on_after_batch_transfer``) of
    different sizes, ``ellipses``, a list of (n, 5) float64, which stay on the CPU: major radius, minor radius, angle in
    radians from the x axis to the major one, clockwise as seen in the picture, x and y of the centre; ``name``, a list
    of str such as ``2002/08/11/big/img_591``, and ``index`` (B,) int64.

    Args:
        root: the folder.
        folds: the only ones to use, numbers from 1 to 10; ``None`` is all, as in published figures.
        eval_batch_size: pictures at a time.
        num_workers: worker processes of the loader; 0 loads in the main process.

    Attributes:
        pictures_needed: set to ``False`` before :meth:`test_dataloader` it leaves ``image`` out: detections of others
            are scored, and the pictures need not be there.

    Raises:
        ValueError: an argument is out of range; from :meth:`setup`: a stage other than test, or a list that does not
            parse.
        FileNotFoundError: from :meth:`setup`: a list is missing; from :meth:`test_dataloader`: pictures are.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as root:
        ...     Path(root, "FDDB-folds").mkdir()
        ...     text = "2002/img_1\\n1\\n20.0 15.0 1.5 40.0 30.0  1\\n"
        ...     _ = Path(root, "FDDB-folds", "FDDB-fold-01-ellipseList.txt").write_text(text)
        ...     data = FDDBDataModule(root, folds=[1])
        ...     data.pictures_needed = False
        ...     data.setup("test")
        >>> next(iter(data.test_dataloader()))["ellipses"]
        [tensor([[20.0000, 15.0000,  1.5000, 40.0000, 30.0000]], dtype=torch.float64)]
    """

    pictures_needed = True
    ellipses = True  # how faces are marked

    def __init__(
        self, root: str, folds: list[int] | None = None, eval_batch_size: int = 1, num_workers: int = 2
    ) -> None:
        super().__init__()
        if folds is not None and (not folds or len(set(folds)) < len(folds) or not set(folds) <= set(FOLDS)):
            raise ValueError(f"folds must be different numbers from 1 to 10, at least one, got {folds}; null takes all")
        if eval_batch_size < 1:
            raise ValueError(f"eval_batch_size must be at least 1, got {eval_batch_size}")
        if num_workers < 0:
            raise ValueError(f"num_workers must be 0 (load in the main process) or more, got {num_workers}")
        self.root, self.folds = Path(root), list(FOLDS) if folds is None else folds
        self.eval_batch_size, self.num_workers = eval_batch_size, num_workers
        self._test: EllipseList | None = None

    def prepare_data(self) -> None:
        """Look for the lists.

        Raises:
            FileNotFoundError: some are missing.
        """
        names = [f"{LISTS}/FDDB-fold-{fold:02d}-ellipseList.txt" for fold in self.folds]
        if missing := [name for name in names if not (self.root / name).is_file()]:
            problem = "lacks" if self.root.is_dir() else "does not exist; it should hold"
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise FileNotFoundError(
                f"root={str(self.root)!r} {problem} {missing[0]}{more}. Unpack FDDB-folds.tgz of "
                "http://vis-www.cs.umass.edu/fddb there, and originalPics.tar.gz beside it."
            )

    def setup(self, stage: str) -> None:
        """Read the lists; no picture is opened."""
        refuse_replaced_samplers(self.trainer)
        if stage in ("fit", "validate"):
            raise ValueError(
                f"FDDBDataModule has no pictures for the stage {stage!r}: FDDB is for testing alone; train and "
                "validate on WIDERFaceDataModule"
            )
        if stage == "test" and self._test is None:
            self.prepare_data()
            self._test = read_folds(self.root / LISTS, self.folds)
            if len(self.folds) == len(FOLDS) and len(self._test) != SIZE:
                place = f"root={str(self.root)!r}"
                rank_zero_info(f"FDDB: {len(self._test)} pictures in {place}; published figures are of {SIZE}")

    def test_dataloader(self) -> EvaluationLoader:
        """The pictures in the order of the lists, each once over all ranks.

        Raises:
            FileNotFoundError: pictures are needed, and some are missing.
            RuntimeError: before ``setup("test")``.
        """
        listed, folder = self._listed(), None
        if self.pictures_needed:
            folder = self.root / PICTURES if (self.root / PICTURES).is_dir() else self.root
            require_files(folder, listed.files, str(self.root / LISTS))
        pictures = EllipsePictures(folder, listed)
        options = loader_options(self.eval_batch_size, self.num_workers, 0)
        loader = EvaluationLoader(pictures, sampler=ShardSampler(pictures), **options)
        loader.in_step = True
        return loader

    def evaluation_names(self, stage: Literal["test"] = "test") -> list[str]:
        """What the pictures are called, in the order of ``index``.

        Args:
            stage: there is one.

        Raises:
            RuntimeError: before ``setup("test")``.
        """
        return self._listed().names

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move all but the ellipses, which are float64 and matched on the CPU."""
        rest = {name: part for name, part in batch.items() if name != "ellipses"}
        return batch | super().transfer_batch_to_device(rest, device, dataloader_idx)

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Turn uint8 into float32 in [0, 1] on the device."""
        if "image" not in batch:
            return batch
        return batch | {"image": to_float(batch["image"])}

    def summary(self) -> dict[str, float | str | list]:
        """Pictures and faces that are tested on."""
        if self._test is None:
            return {}
        return {"data/test_images": len(self._test), "data/test_faces": sum(map(len, self._test.ellipses))}

    def _listed(self) -> EllipseList:
        return ready(self._test, self, "the lists", "test")


class EllipsePictures(ListedPictures):
    """Pictures as they are, with the ellipses of their faces.

    Args:
        folder: paths count from it; ``None``: the pictures are not read, and there is no ``image``.
        listed: the pictures.

    Example:
        >>> import numpy as np
        >>> EllipsePictures(None, EllipseList(["a/1"], [np.ones((1, 5))])).__getitems__([0])["name"]
        ['a/1']
    """

    def __init__(self, folder: Path | None, listed: EllipseList) -> None:
        super().__init__(folder, listed)
        self.listed = listed

    def known(self, numbers: Sequence[int]) -> dict[str, list[Any]]:
        """``ellipses``, a list of (n, 5) float64."""
        return {"ellipses": [torch.tensor(self.listed.ellipses[number]) for number in numbers]}
