"""The loaders of re-identification data modules, made of pictures that were chosen."""

from typing import Any

import numpy as np
from lightning.pytorch import LightningDataModule
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from datamodules.branches import BranchBatches, branch_loader
from datamodules.class_batches import ClassBatches
from datamodules.identity_batches import AugmentedPKSampler, IdleSampler, PKSampler
from datamodules.loaders import EvaluationLoader, loader_options
from datamodules.reid_files import EvaluationFiles, ReIDFiles
from datamodules.reid_images import CameraImages, RankingImages, ReIDImages, TrainingImages
from datamodules.reid_low_resolution import BranchPictures, branch_batches
from datamodules.samplers import EpochSampler, ResumableLoader, ResumableSampler, ShardSampler


class ReIDLoaders(LightningDataModule):
    """Makes loaders; what they load, :class:`~datamodules.reid.ReIDDataModule` says, which has these attributes."""

    height: int
    width: int
    p: int
    k: int
    generated_per_id: int
    batch_size: int
    num_workers: int
    seed: int
    erase_probability: float
    source_crop: bool
    lr_query: bool
    lr_factors: list[int]
    b: int
    pairs: bool
    hard_pairs: str

    def _labelled_loader(self, files: ReIDFiles, p: int, k: int) -> ResumableLoader:
        labels = np.unique(files.pids, return_inverse=True)[1]
        columns = {"label": labels, "pid": files.pids}
        images = TrainingImages(
            files, self.height, self.width, columns, self.seed, self.source_crop, self.erase_probability
        )
        return self._batch_loader(images, PKSampler(labels, p, k, self.seed))

    def _cluster_loader(self, files: ReIDFiles, labels: NDArray[np.int64]) -> ResumableLoader:
        images = TrainingImages(
            files, self.height, self.width, {"label": labels}, self.seed, erase_probability=self.erase_probability
        )
        if len(np.unique(labels[labels >= 0])) < 2:
            return self._batch_loader(images, IdleSampler())
        sampler = AugmentedPKSampler(labels, files.camids, self.p, self.k, self.generated_per_id, self.seed)
        return self._batch_loader(images, sampler)

    def _branch_loader(self, files: ReIDFiles) -> tuple[ResumableLoader, BranchBatches]:
        pictures = BranchPictures(files, self.height, self.width, self.lr_factors, self.seed, self.source_crop)
        batches = branch_batches(pictures, self.b, self.pairs, self.hard_pairs)
        return branch_loader(batches, self.num_workers, self.seed, self.trainer), batches

    def _batch_loader(self, images: ReIDImages, sampler: ResumableSampler) -> ResumableLoader:
        options = self._options() | {"batch_size": None, "persistent_workers": self.num_workers > 0}
        batches = ClassBatches(images, sampler)  # type: ignore[arg-type]  # it asks for batches and len
        return self._counted(ResumableLoader(batches, sampler=sampler, **options))

    def _camera_loader(self, files: ReIDFiles) -> ResumableLoader:
        images = CameraImages(files, self.height, self.width, seed=self.seed)
        options = self._options() | {"persistent_workers": self.num_workers > 0}
        return self._counted(ResumableLoader(images, sampler=EpochSampler(images, self.seed), **options))

    def _counted(self, loader: ResumableLoader) -> ResumableLoader:
        loader.trainer = self.trainer
        return loader

    def _ranking_loader(self, evaluation: EvaluationFiles, persistent: bool = False) -> DataLoader:
        images = RankingImages(evaluation, self.height, self.width, self.lr_query)
        loader = self._evaluation_loader(images, persistent_workers=persistent and self.num_workers > 0)
        loader.in_step = True
        return loader

    def _evaluation_loader(self, images: ReIDImages, **options: Any) -> EvaluationLoader:
        return EvaluationLoader(images, sampler=ShardSampler(images), **self._options() | options)

    def _images(self, files: ReIDFiles) -> ReIDImages:
        return ReIDImages(files, self.height, self.width)

    def _options(self) -> dict[str, Any]:
        return {**loader_options(self.batch_size, self.num_workers, self.seed)}
