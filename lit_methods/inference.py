"""A checkpoint and the user's own pictures in, plain results out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as tvf

from lit_methods.checkpoint_io import read_checkpoint
from lit_methods.contract import checkpoint_class
from lit_methods.functional.pictures import SUFFIXES, read_rgb, resize_side, to_rgb

Picture = str | Path | Image.Image | np.ndarray | Tensor


class Predictor:
    """A trained module that answers for pictures.

    Args:
        module: one of this package's modules, or your subclass; it is put into eval mode.

    Example:
        >>> from lit_methods import ImageClassifier
        >>> predictor = Predictor(ImageClassifier("resnet20", num_classes=10))
        >>> predictor
        Predictor(ImageClassifier, backbone='resnet20', num_classes=10)
        >>> result = predictor(np.zeros((48, 40, 3), np.uint8))
        >>> sorted(result[0]), len(result[0]["scores"])
        (['labels', 'names', 'scores'], 5)
    """

    def __init__(self, module: LightningModule) -> None:
        self.module = module.eval()

    def __repr__(self) -> str:
        hparams = self.module.hparams
        network = {"backbone": getattr(self.module, "arch", None), "num_classes": hparams.get("num_classes")}
        known = [f"{name}={value!r}" for name, value in network.items() if value is not None]
        return f"{type(self).__name__}({', '.join([type(self.module).__name__, *known])})"

    @classmethod
    def from_checkpoint(
        cls, path: str | Path, module_class: type[LightningModule] | None = None, **overrides: Any
    ) -> Predictor:
        """Rebuild the module that wrote a checkpoint, pruned or not.

        Args:
            path: a checkpoint of a run.
            module_class: its class; needed only for a class of your own, outside ``lit_methods``.
            overrides: hyperparameters that beat the checkpoint's, such as ``backbone=net`` (``model=net`` for PPBA and
                NAD) for a network given in code.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is no checkpoint, or does not say which class wrote it.
        """
        checkpoint = read_checkpoint(path)
        module_class = module_class or checkpoint_class(checkpoint)
        return cls(module_class.load_from_checkpoint(path, map_location="cpu", weights_only=True, **overrides))

    @torch.no_grad()
    def __call__(self, images: Picture | Sequence[Picture]) -> list[dict[str, Any]]:
        """What ``predict_step`` gives, one dict per picture.

        Args:
            images: a path, a PIL image, an RGB array (H, W, 3) uint8, a tensor (3, H, W) in [0, 1], or a list of these.
                Grey, palette, RGBA and CMYK pictures become RGB. A folder stands for the pictures in it, in the order
                of :func:`find_pictures`.

        Raises:
            ValueError: a picture cannot be read, or has another shape, type or range; a folder has no pictures.
        """
        pictures: Sequence[Any] = images if isinstance(images, list | tuple) else [images]
        size, view = self.module.hparams.get("input_size"), getattr(self.module, "view", fit_size)
        results: list[dict[str, Any]] = []
        for picture in chain.from_iterable(map(_unfolded, pictures)):  # one by one: pictures may differ in size
            image = view(as_image(picture), size)
            results += self.module.predict_step({"image": image[None].to(self.module.device)}, 0)
        return results


def find_pictures(paths: Iterable[str | Path]) -> list[Path]:
    """The picture files among ``paths``: folders are walked, in sorted order; files named outright are all taken.

    Args:
        paths: files and folders; in folders, files that begin with a dot or are no pictures by their ending are passed
            over.

    Raises:
        FileNotFoundError: a path does not exist.
        ValueError: there is no picture in any of them.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            files = (p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
            found += sorted(p for p in files if not p.name.startswith("."))  # some systems leave ._name.jpg beside each
        elif path.exists():
            found.append(path)
        else:
            raise FileNotFoundError(f"input={str(path)!r} does not exist")
    if not found:
        raise ValueError(f"input={[str(p) for p in paths]}: no pictures there ({', '.join(SUFFIXES)})")
    return found


def _unfolded(picture: Picture) -> Sequence[Picture]:
    if isinstance(picture, str | Path) and Path(picture).is_dir():
        return find_pictures([picture])
    return [picture]


def as_image(picture: Picture) -> Tensor:
    """One picture of any accepted kind as float32 (3, H, W) in [0, 1].

    Args:
        picture: a path, a PIL image, an RGB array (H, W, 3) uint8, or a floating point tensor (3, H, W) in [0, 1].

    Raises:
        ValueError: another shape, type or range.

    Example:
        >>> as_image(np.full((1, 2, 3), 51, np.uint8))[:, 0, 0]
        tensor([0.2000, 0.2000, 0.2000])
    """
    if isinstance(picture, str | Path):
        picture = read_rgb(picture)
    if isinstance(picture, Image.Image):
        picture = np.array(to_rgb(picture))
    if isinstance(picture, np.ndarray):
        if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8 or picture.size == 0:
            raise ValueError(
                f"an array must be RGB (H, W, 3) uint8, got {picture.dtype} {picture.shape}; "
                "a tensor (3, H, W) in [0, 1] is taken too"
            )
        return torch.from_numpy(picture).permute(2, 0, 1).float() / 255
    if not isinstance(picture, Tensor):
        raise ValueError(f"a picture is a path, a PIL image, an array or a tensor, not {type(picture).__name__}")
    if picture.ndim != 3 or picture.shape[0] != 3 or not picture.is_floating_point() or picture.numel() == 0:
        raise ValueError(
            f"a tensor must be float (3, H, W), got {picture.dtype} {tuple(picture.shape)}; several go into a list"
        )
    if not (picture.min() >= 0 and picture.max() <= 1):  # false for NaN too
        raise ValueError(
            f"a tensor must lie in [0, 1], not {picture.min():.3g}..{picture.max():.3g}; do not normalise it"
        )
    return picture.float()


def fit_size(image: Tensor, size: Sequence[int] | None) -> Tensor:
    """The usual view for evaluation: short side to ``resize_side``, then the centre.

    Args:
        image: (3, H, W) in [0, 1].
        size: (C, H, W) that comes out; ``None`` leaves the image as it is.

    Example:
        >>> fit_size(torch.rand(3, 300, 400), [3, 224, 224]).shape
        torch.Size([3, 224, 224])
    """
    if size is None or tuple(image.shape[1:]) == tuple(size[1:]):
        return image
    height, width = size[1:]
    resized = tvf.resize(image, [resize_side(max(height, width))], antialias=True)
    return tvf.center_crop(resized, [height, width]).clamp(0, 1)


def stretch(image: Tensor, size: Sequence[int] | None) -> Tensor:
    """The whole image at another height and width: nothing is cut off, proportions change.

    Args:
        image: (3, H, W) in [0, 1].
        size: (C, H, W) that comes out; ``None`` leaves the image as it is.

    Example:
        >>> stretch(torch.rand(3, 300, 400), [3, 256, 128]).shape
        torch.Size([3, 256, 128])
    """
    if size is None or tuple(image.shape[1:]) == tuple(size[1:]):
        return image
    return F.interpolate(image[None], list(size[1:]), mode="bilinear", antialias=True)[0].clamp(0, 1)


def prepare_inputs(
    paths: Sequence[str | Path],
    input_size: Sequence[int] | None = None,
    batch_size: int = 1,
    view: Callable[[Tensor, Sequence[int] | None], Tensor] = fit_size,
) -> Iterator[dict[str, Tensor]]:
    """The user's picture files as batches for ``predict_step``.

    Args:
        paths: readable picture files.
        input_size: (C, H, W) that the network wants; ``None`` hands pictures on at their own size, one by one.
        batch_size: pictures per batch; needs ``input_size``.
        view: ``view(image, input_size)`` makes a picture what the network is fed with.

    Yields:
        ``{"image": (B, 3, H, W)}``, float32 in [0, 1], in the order of ``paths``.

    Raises:
        ValueError: a file cannot be read as a picture.
    """
    step = batch_size if input_size else 1
    for start in range(0, len(paths), step):
        yield {"image": torch.stack([view(as_image(p), input_size) for p in paths[start : start + step]])}
