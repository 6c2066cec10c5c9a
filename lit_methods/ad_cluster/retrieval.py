"""PersonRetrieval: an encoder of person pictures, judged by how it ranks a gallery; the base of its trainings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lit_methods.ad_cluster.jaccard import k_reciprocal_rerank
from lit_methods.ad_cluster.model import ReIDEncoder
from lit_methods.backbones.weights import load_weights, read_weights
from lit_methods.classification import Normalize, check_rgb
from lit_methods.contract import Described, ExportGraph
from lit_methods.functional.drawing import caption
from lit_methods.functional.framing import ranked_list
from lit_methods.functional.modes import evaluating
from lit_methods.functional.pictures import read_rgb
from lit_methods.inference import as_image, find_pictures, prepare_inputs, stretch
from lit_methods.metrics.reid import ReIDRanking

BATCH_SIZE = 32  # of the user's pictures


class PersonRetrieval(Described, LightningModule):
    """Features of person pictures, and how well they rank a gallery; base of ``SourceReID`` and ``ADCluster``.

    An evaluation batch has ``image``, ``pid``, ``camid``, ``index`` and ``is_query``. Logs ``val/mAP``, ``val/mINP``,
    ``val/rank1``, ``val/rank5`` and ``val/rank10`` (fractions of 1, all of queries and gallery together, over all
    processes), the same for ``test``, and in ``summary()`` how many queries had no valid match and were left out. Where
    a batch has ``low``, degraded queries are counted by themselves: ``val/low_mAP`` and so on.

    ``predict_step`` gives ``features`` (D,) per picture; with a gallery, as ``predict --gallery FOLDER`` gives it,
    ``nearest`` and ``distances`` in its place: the paths of the ``top`` nearest gallery pictures and how far they are.
    A query that is in the gallery itself is not among its own.

    Args:
        encoder: ``"resnet50"``, ``"resnet18"`` or ``"tiny"``; in code also your own network, see ``ReIDEncoder``.
        encoder_args: further arguments of ``ReIDEncoder``, such as ``{last_stride: 1}``.
        mean: per channel, for images in [0, 1]; ``None`` hands pixels on as they are.
        std: per channel; given together with ``mean``.
        input_size: (C, H, W) that the encoder is fed with.
        base_checkpoint: weights of the encoder to start from: a checkpoint of one of our re-ID modules, a saved state
            dict, or a torchvision entry such as ``ResNet50_Weights.IMAGENET1K_V1``. Classifiers in it are left out.
        ap: how average precision is computed, ``"step"`` or, as the data set's own MATLAB code, ``"trapezoid"``.
        rerank: evaluate with k-reciprocal re-ranking (k1 20, k2 6, lambda 0.3) of the whole gallery.

    Raises:
        ValueError: an argument is out of range, or the weights do not fit.
        FileNotFoundError: ``base_checkpoint`` does not exist.

    Source:
        Theory and Practice of UDA re-ID, public code: the feature; Market-1501's own evaluation, see ``ReIDRanking``.

    Example:
        >>> module = PersonRetrieval("tiny", encoder_args={"width": 8}, input_size=[3, 64, 32])
        >>> module(torch.rand(2, 3, 64, 32)).shape
        torch.Size([2, 32])
    """

    model: ReIDEncoder

    def __init__(
        self,
        encoder: str | nn.Module = "resnet50",
        encoder_args: dict[str, Any] | None = None,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        input_size: list[int] | None = None,
        base_checkpoint: str | None = None,
        ap: Literal["step", "trapezoid"] = "step",
        rerank: bool = False,
    ) -> None:
        if encoder is None:
            raise ValueError(
                "encoder: missing; the checkpoint is of a network given as an object: give encoder=network"
            )
        super().__init__()
        self.keep_arguments()  # here once, for subclasses too
        if (mean is None) != (std is None):
            raise ValueError(f"mean={mean} and std={std} go together: give both or neither")
        self.hparams["input_size"] = list(input_size or (3, 256, 128))
        self.model = ReIDEncoder(encoder, **(encoder_args or {}))
        self.normalize = Normalize(mean, std)
        ranking = _RerankedRanking if rerank else ReIDRanking
        self.val_ranking, self.test_ranking = ranking(ap=ap), ranking(ap=ap)
        self.low_ranking = ranking(ap=ap)  # of degraded queries
        self._has_low = False
        self._invalid: dict[str, float] = {}
        self._gallery: _Gallery | None = None
        if base_checkpoint is not None:
            self._start_from(base_checkpoint)

    def _start_from(self, source: str) -> None:
        """Take the encoder out of a file, whatever classifier or network of ours was saved around it."""
        tensors, _ = read_weights(source)
        named, wanted = f"base_checkpoint={source!r}", "model.network."
        ours = {name.removeprefix("model."): values for name, values in tensors.items() if name.startswith(wanted)}
        if ours:
            load_weights(self.model, ours, named)
        elif all(name.startswith("network.") for name in tensors):  # a checkpoint with nothing but the encoder
            load_weights(self.model, tensors, named)
        else:
            self.model.load_backbone(tensors, named)

    def forward(self, image: Tensor) -> Tensor:
        """Features (B, D) of RGB pictures (B, 3, H, W) in [0, 1]."""
        check_rgb(image)
        return self.model(self.normalize(image).contiguous(memory_format=torch.channels_last))

    # -- evaluation ---------------------------------------------------------------------------------------------------

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Keep the features of queries and gallery."""
        self.update_ranking(self.val_ranking, batch)

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """As ``validation_step``."""
        self.update_ranking(self.test_ranking, batch)

    def update_ranking(self, ranking: ReIDRanking, batch: dict[str, Tensor]) -> None:
        """Add the features of a batch, which may be of length 0, to a metric, but not those of degraded queries."""
        image, query = batch["image"], batch["is_query"]
        features = self(image) if len(image) else image.new_zeros(0, self.model.num_features)
        columns = (features.float(), batch["pid"], batch["camid"], batch["index"], query)
        self._has_low = "low" in batch
        if not self._has_low:
            ranking.update(*columns)
            return
        ranking.update(*(column[~batch["low"]] for column in columns))
        if ranking is self.val_ranking or ranking is self.test_ranking:
            self.low_ranking.update(*(column[batch["low"] | ~query] for column in columns))

    def on_validation_epoch_end(self) -> None:
        """Rank, unless this is only a trial of the first batches."""
        if not self.trainer.sanity_checking:
            self._log_ranking("val", self.val_ranking)
        self.val_ranking.reset()
        self.low_ranking.reset()

    def on_test_epoch_end(self) -> None:
        """Rank."""
        self._log_ranking("test", self.test_ranking)

    def on_test_end(self) -> None:
        """Let the features go: callbacks had their look."""
        self.test_ranking.reset()
        self.low_ranking.reset()

    def _log_ranking(self, stage: str, ranking: ReIDRanking) -> None:
        for name, value in ranking.compute().items():
            self.log(f"{stage}/{name}", value, prog_bar=stage == "val" and name == "mAP")
        self._invalid[f"{stage}/invalid_queries"] = ranking.invalid_queries or 0
        if self._has_low:
            self.log_dict({f"{stage}/low_{name}": value for name, value in self.low_ranking.compute().items()})

    def summary(self) -> dict[str, float | str | list]:
        """Queries of the last evaluations that had no match in another camera, and were left out."""
        return dict(self._invalid)

    # -- the user's own pictures --------------------------------------------------------------------------------------

    @classmethod
    def add_cli_arguments(cls, parser: Any, entry: str) -> None:
        """``--gallery`` and ``--top`` of ``predict``."""
        if entry == "predict":
            parser.add_argument("--gallery", type=str | None, default=None, help="folder of pictures to be ranked")
            parser.add_argument("--top", type=int, default=10, help="how many of the nearest pictures are listed")

    @staticmethod
    def view(image: Tensor, size: Sequence[int] | None) -> Tensor:
        """A person's picture stretched to the encoder's height and width, as in training: nothing is cut off."""
        return stretch(image, size)

    def prepare_inputs(
        self, paths: Sequence[str | Path], gallery: str | None = None, top: int = 10
    ) -> Iterator[dict[str, Tensor]]:
        """Pictures as batches for ``predict_step``; the gallery is encoded first.

        Args:
            paths: readable picture files: the queries.
            gallery: a folder of pictures, in any layout; ``None`` asks for features alone.
            top: how many of its pictures are listed for each query, nearest first.

        Raises:
            FileNotFoundError: there is no such folder.
            ValueError: it has no pictures, or one of them cannot be read; ``top`` is below 1.
        """
        if top < 1:
            raise ValueError(f"top={top} must be at least 1")
        files = None if gallery is None else _gallery_files(gallery)  # at once: a generator would be too late
        return self._batches(paths, files, top)

    def _batches(self, paths: Sequence[str | Path], files: list[Path] | None, top: int) -> Iterator[dict[str, Tensor]]:
        self._gallery = None
        if files is not None:
            size = self.hparams["input_size"]
            with evaluating(self):  # the Trainer asks for the first batch before it says so
                parts = [self(b["image"].to(self.device)) for b in prepare_inputs(files, size, BATCH_SIZE, self.view)]
            self._gallery = _Gallery(files, torch.cat(parts).float(), top)
        for start, batch in enumerate(prepare_inputs(paths, self.hparams["input_size"], BATCH_SIZE, self.view)):
            own = paths[start * BATCH_SIZE : (start + 1) * BATCH_SIZE]
            yield batch if self._gallery is None else batch | {"own": self._gallery.places(own)}

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> list[dict[str, Any]]:
        """Per picture ``features``, or with a gallery ``nearest`` and ``distances``."""
        features = self(batch["image"])
        if self._gallery is None:
            return [{"features": row} for row in features.float().cpu()]
        return self._gallery.nearest(features.float(), batch["own"])

    def draw(self, image: np.ndarray, prediction: dict[str, Any]) -> np.ndarray:
        """The picture and beside it its matches, nearest first, with their distances; without a gallery it alone.

        Args:
            image: (H, W, 3) uint8 RGB.
            prediction: one dict of ``predict_step``.

        Returns:
            (H', W', 3) uint8 RGB.
        """
        if "nearest" not in prediction:
            return caption(image, f"|f| {float(torch.as_tensor(prediction['features']).norm()):.2f}")
        found = [np.asarray(read_rgb(path)) for path in prediction["nearest"]]
        return ranked_list(image, found, [f"{distance:.2f}" for distance in prediction["distances"]])

    def export_graphs(self) -> dict[str, ExportGraph]:
        """One graph ``encoder``: ``image`` (B, 3, H, W) in [0, 1] to ``features`` (B, D), with a dynamic batch."""
        example = torch.zeros(2, *self.hparams["input_size"], device=self.device)
        axes = {"image": {0: torch.export.Dim("batch")}}
        return {"encoder": ExportGraph(_Features(self.normalize, self.model), (example,), axes, outputs=("features",))}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """A checkpoint holds its weights: the file that they once started from may be gone when it is loaded."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["hyper_parameters"]["base_checkpoint"] = None
        checkpoint["hyper_parameters"].setdefault("encoder", None)  # an object, which no file holds


class _Features(nn.Module):
    """What ``PersonRetrieval.forward`` computes, for export."""

    def __init__(self, normalize: nn.Module, encoder: nn.Module) -> None:
        super().__init__()
        self.normalize, self.encoder = normalize, encoder

    def forward(self, image: Tensor) -> Tensor:
        return self.encoder(self.normalize(image))


class _RerankedRanking(ReIDRanking):
    """With k-reciprocal distances in the place of Euclidean ones."""

    chunk = 1 << 62  # all queries at once: they are neighbours, too

    def distances(self, query_features: Tensor, gallery_features: Tensor) -> Tensor:
        return k_reciprocal_rerank(query_features, gallery_features)


class _Gallery:
    """Pictures that queries are held against.

    Args:
        files: of the pictures.
        features: (G, D), on the encoder's device.
        top: how many are listed.
    """

    def __init__(self, files: list[Path], features: Tensor, top: int) -> None:
        self.files, self.features, self.top = files, features, top
        self._place = {path.resolve(): place for place, path in enumerate(files)}

    def places(self, paths: Sequence[str | Path]) -> Tensor:
        """Where these files are in the gallery, (B,) int64; -1 for those that are not."""
        return torch.tensor([self._place.get(Path(path).resolve(), -1) for path in paths])

    def nearest(self, features: Tensor, own: Tensor) -> list[dict[str, Any]]:
        """For each query paths and distances, nearest first; of equally near ones the first file."""
        centre = self.features.mean(0)  # small numbers keep more digits
        distances = torch.cdist((features - centre).double(), (self.features - centre).double())
        results = []
        for found, place in zip(distances, own.tolist(), strict=True):
            order = [i for i in found.argsort(stable=True)[: self.top + 1].tolist() if i != place][: self.top]
            results.append({"nearest": [str(self.files[i]) for i in order], "distances": found[order].tolist()})
        return results


def _gallery_files(gallery: str) -> list[Path]:
    if not Path(gallery).is_dir():
        raise FileNotFoundError(f"gallery={gallery!r} is no folder; give the folder that holds the pictures to rank")
    files = find_pictures([gallery])
    for path in files:
        as_image(path)  # before anything is encoded
    return files
