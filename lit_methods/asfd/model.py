"""ASFD's network: images to class scores and box codes of every anchor."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lit_methods.asfd.auto_fem import AutoFEM, repeated
from lit_methods.asfd.features import Neck, build_features
from lit_methods.asfd.genotype import LEVELS, Genotype, default_genotype, read_genotype
from lit_methods.asfd.operations import MixedOp, begin, conv_bn_relu
from lit_methods.asfd.sizes import ASFD_SIZES, Size, find_size
from lit_methods.backbones.mobilenet import MobileNetV1

__all__ = ["ASFD_SIZES", "ASFDHead", "ASFDNet", "AutoFEM", "MixedOp", "MobileNetV1", "Size"]

Mode = Literal["logit", "cosine"]


class ASFDHead(nn.Module):
    """Two classes and four codes for each position of each level; all convolutions are shared by the levels.

    Args:
        channels: of the maps.
        convs: in each branch, in front of its prediction.
        cls_mode: ``"logit"``: a 3x3 convolution with bias gives the two logits. ``"cosine"``: the branch ends with its
            features, and ``cls_weight`` holds the directions that they are compared with.
        prior: face probability that an untrained head says everywhere: both predicting convolutions begin near zero,
            so that boxes are the anchors at first, and a bias says this. ``None``: they begin like all others, and say
            anything. Only for ``"logit"``.

    Attributes:
        cls_weight: (2, channels), background and face; ``None`` for ``"logit"``.

    Raises:
        ValueError: ``cls_mode`` is another, or ``prior`` is out of range or has no bias to go to.

    Source:
        Sections 2.6 and 3 of ASFD's specification. ``prior`` is that of RetinaNet, arXiv 1708.02002, which begins the
        predicting convolution with a deviation of 0.01, too.

    Example:
        >>> cls, loc = ASFDHead(8, convs=1)([torch.zeros(2, 8, 4, 6), torch.zeros(2, 8, 2, 3)])
        >>> cls.shape, loc.shape
        (torch.Size([2, 30, 2]), torch.Size([2, 30, 4]))
    """

    cls_weight: nn.Parameter | None

    def __init__(self, channels: int, convs: int = 0, cls_mode: Mode = "logit", prior: float | None = None) -> None:
        super().__init__()
        if cls_mode not in ("logit", "cosine"):
            raise ValueError(f"cls_mode={cls_mode!r} must be 'logit' or 'cosine'")
        if prior is not None and (cls_mode != "logit" or not 0 < prior < 1):
            raise ValueError(f"prior={prior} must lie between 0 and 1, and needs cls_mode='logit', which has a bias")
        self.cls_convs, self.loc_convs = (
            nn.Sequential(*(conv_bn_relu(channels, channels) for _ in range(convs))) for _ in range(2)
        )
        self.loc = nn.Conv2d(channels, 4, 3, padding=1)
        self.cls = nn.Conv2d(channels, 2, 3, padding=1) if cls_mode == "logit" else nn.Identity()
        begin(self)
        if cls_mode == "cosine":
            self.cls_weight = nn.Parameter(torch.randn(2, channels) * math.sqrt(2 / channels))
        else:
            self.register_parameter("cls_weight", None)
        if prior is not None and isinstance(self.cls, nn.Conv2d):
            for conv in (self.cls, self.loc):
                nn.init.normal_(conv.weight, std=0.01)
            with torch.no_grad():
                self.cls.bias.copy_(torch.tensor([0.0, math.log(prior / (1 - prior))]))  # type: ignore[union-attr]

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Maps (B, channels, h, w) to scores (B, A, 2), or features (B, A, channels), and codes (B, A, 4).

        Anchors are in the order of the maps, then row by row.
        """
        cls = [_rows(self.cls(self.cls_convs(x))) for x in maps]
        loc = [_rows(self.loc(self.loc_convs(x))) for x in maps]
        return torch.cat(cls, 1), torch.cat(loc, 1)


def _rows(x: Tensor) -> Tensor:
    """(B, C, h, w) to (B, h * w, C), without a copy where the channels come last in memory."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


class ASFDNet(nn.Module):
    """The whole detector: backbone, laterals, Auto-FEM, head.

    Args:
        size: ``"d0"`` to ``"d6"``, a row of ``ASFD_SIZES``.
        genotype: of Auto-FEM: a ``Genotype``, its dict, or the path of its JSON file; ``None``: the default of the
            size.
        channels: of Auto-FEM and head; ``None``: those of the size.
        cls_mode: ``"logit"`` or ``"cosine"``, see ``ASFDHead``.
        prior: face probability that an untrained head says; see ``ASFDHead``.

    Attributes:
        genotype: as a ``Genotype``.
        channels: as built.
        cls_weight: (2, channels) in mode ``"cosine"``, else ``None``.

    Raises:
        FileNotFoundError: ``genotype`` does not exist.
        ValueError: an argument is out of range, or ``genotype`` has not the levels 2 to 7.

    Source:
        Section 3 of ASFD's specification (arXiv 2003.11228).

    Example:
        >>> cls, loc = ASFDNet("d0", channels=8)(torch.zeros(1, 3, 128, 160))
        >>> cls.shape, loc.shape  # 32 x 40 + 16 x 20 + 8 x 10 + 4 x 5 + 2 x 3 + 1 x 2 anchors
        (torch.Size([1, 1708, 2]), torch.Size([1, 1708, 4]))
    """

    def __init__(
        self,
        size: str = "d0",
        genotype: Genotype | Mapping[str, Any] | str | Path | None = None,
        channels: int | None = None,
        cls_mode: Mode = "logit",
        prior: float | None = None,
    ) -> None:
        super().__init__()
        row = find_size(size)
        self.size = size
        self.genotype = read_genotype(genotype) or default_genotype(row.ops)
        if self.genotype.levels != LEVELS:
            raise ValueError(f"genotype has nodes for the levels {list(self.genotype.levels)}; a detector has 2 to 7")
        self.channels = checked_channels(channels, row)
        self.backbone = build_features(row.backbone)
        fem = repeated(self.genotype, self.channels, row.repeats)
        first = fem[0]
        assert isinstance(first, AutoFEM)
        self.neck = Neck(self.backbone.out_channels, self.channels, row.ops == "separable", first.inputs)
        self.fem = fem
        self.head = ASFDHead(self.channels, row.convs, cls_mode, prior)

    @property
    def cls_weight(self) -> nn.Parameter | None:
        """Directions of background and face, (2, channels), that features are compared with; ``None`` for logits."""
        return self.head.cls_weight

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised images (B, 3, H, W) to scores (B, A, 2), or features (B, A, channels), and codes (B, A, 4).

        A is the sum of ceil(H / stride) * ceil(W / stride) over the strides 4 to 128; anchors are in the order of
        ``make_anchors``.
        """
        return self.head(self.fem(self.neck(self.backbone(image))))

    def extra_repr(self) -> str:
        """Which detector it is."""
        return f"size={self.size!r}, channels={self.channels}, genotype={self.genotype.key()!r}"


def checked_channels(channels: int | None, row: Size) -> int:
    """The number of channels to build, by default that of a size.

    Args:
        channels: ``None`` is the default.
        row: of the size.

    Raises:
        ValueError: it is below 1.

    Example:
        >>> checked_channels(None, ASFD_SIZES["d6"])
        192
    """
    if channels is not None and channels < 1:
        raise ValueError(f"channels={channels} must be at least 1; the size has {row.channels}")
    return row.channels if channels is None else channels
