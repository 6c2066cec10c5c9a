"""MCN's network: an image and a sentence to box codes, mask logits, and what both branches attend to."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lit_methods.functional.suggestions import nearest
from lit_methods.mcn.blocks import begin
from lit_methods.mcn.darknet import DarkNet53
from lit_methods.mcn.decoder import ASPPDecoder
from lit_methods.mcn.fusion import BottomUp, SimpleFusion, TopDown
from lit_methods.mcn.garan import GARAN
from lit_methods.mcn.language import AttentiveGRUEncoder
from lit_methods.mcn.vgg import VGG16Features

__all__ = [
    "GARAN",
    "MCN_BACKBONES",
    "ASPPDecoder",
    "AttentiveGRUEncoder",
    "DarkNet53",
    "MCNet",
    "SimpleFusion",
    "VGG16Features",
    "VisualMaps",
]

STRIDE = 32  # pixels between the cells of the coarse map


def tiny_darknet() -> DarkNet53:
    """A Darknet for pictures of 64 to 128 pixels on a CPU: an eighth of the channels, one block per stage.

    Example:
        >>> sum(parameter.numel() for parameter in tiny_darknet().parameters())
        456000
    """
    return DarkNet53(width=1 / 8, depths=(1, 1, 1, 1, 1), least=8)


MCN_BACKBONES: dict[str, Callable[[], DarkNet53 | VGG16Features]] = {
    "darknet53": DarkNet53,
    "vgg16": VGG16Features,
    "tiny": tiny_darknet,
}


class VisualMaps(NamedTuple):
    """All that the network knows of images without a sentence; rows belong to images.

    Args:
        coarse: the image's factor of the fusion, (N, C, h, w).
        middle: what stride 16 adds to the top-down sum, (N, dim, 2h, 2w).
        fine: what stride 8 adds, (N, dim, 4h, 4w).
    """

    coarse: Tensor
    middle: Tensor
    fine: Tensor

    def rows(self, index: Tensor) -> VisualMaps:
        """Some rows, as often as they are named: an image's for each of its sentences.

        Args:
            index: (M,) int64.

        Example:
            >>> maps = VisualMaps(*(torch.zeros(2, 1, 1, 1) for _ in range(3)))
            >>> maps.rows(torch.tensor([0, 0, 1])).coarse.shape
            torch.Size([3, 1, 1, 1])
        """
        return VisualMaps(*(maps[index] for maps in self))  # index_select would lose channels_last


class MCNet(nn.Module):
    """The whole network; ``forward`` is ``ground(visual(image), language(words))``.

    Args:
        backbone: a key of ``MCN_BACKBONES``.
        word_dim: of word vectors.
        hidden: size of the sentence's vector.
        dim: channels of both branches.
        num_heads: of GARAN; divides ``hidden`` and ``dim``.
        num_anchors: boxes per cell.
        dropout: in the language encoder.
        mask_padding: whether the sentence's attention leaves padding out.
        bn_momentum: weight of a new batch in the running statistics of batch norm.

    Attributes:
        cem_s, cem_c: the 1x1 convolutions to one channel that consistency energy wants; ``forward`` does not use them.

    Raises:
        ValueError: an argument is out of range. From ``forward``: sides that are no multiples of 32.

    Source:
        Sections 2 and 3 of MCN's specification (arXiv 2003.08813). What does not depend on the sentence, also within
        the 1x1 convolutions of joined maps, is computed in ``visual``; results are the same.

    Example:
        >>> net = MCNet("tiny", word_dim=6, hidden=16, dim=8).eval()
        >>> maps = net.visual(torch.zeros(1, 3, 64, 64))  # once for both sentences
        >>> out = net.ground(maps.rows(torch.tensor([0, 0])), net.language(torch.zeros(2, 5, 6)))
        >>> {name: tuple(x.shape) for name, x in out.items()}
        {'rec_raw': (2, 15, 2, 2), 'seg_logits': (2, 1, 8, 8), 'attn_s': (2, 8, 8, 8), 'attn_c': (2, 8, 2, 2)}
    """

    def __init__(
        self,
        backbone: str = "darknet53",
        word_dim: int = 300,
        hidden: int = 1024,
        dim: int = 512,
        num_heads: int = 2,
        num_anchors: int = 3,
        dropout: float = 0.1,
        mask_padding: bool = False,
        bn_momentum: float = 0.01,
    ) -> None:
        super().__init__()
        if backbone not in MCN_BACKBONES:
            raise ValueError(
                f"backbone={backbone!r} is none of MCN's{nearest(backbone, MCN_BACKBONES)}; "
                f"there are {', '.join(MCN_BACKBONES)}"
            )
        for name, value in {"word_dim": word_dim, "hidden": hidden, "num_anchors": num_anchors}.items():
            if value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        if dim < 2 or dim % 2:
            raise ValueError(f"dim={dim} must be even and at least 2, since branches have half as many channels inside")
        self.backbone = MCN_BACKBONES[backbone]()
        coarse = self.backbone.channels[0]
        self.encoder = AttentiveGRUEncoder(word_dim, hidden, dropout, mask_padding)
        self.fusion = SimpleFusion(coarse, hidden)
        self.top_down = TopDown(self.backbone.channels, dim)
        self.garan_s = GARAN(dim, hidden, num_heads)
        self.decoder = ASPPDecoder(dim)
        self.bottom_up = BottomUp(coarse, dim)
        self.garan_c = GARAN(dim, hidden, num_heads)
        self.rec = nn.Conv2d(dim, 5 * num_anchors, 1)
        self.cem_s = nn.Conv2d(dim, 1, 1)
        self.cem_c = nn.Conv2d(dim, 1, 1)
        begin(self)
        for part in self.modules():
            if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
                part.momentum = bn_momentum

    def forward(self, image: Tensor, words: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
        """One sentence about each image.

        Args:
            image: RGB (N, 3, H, W) in [0, 1]; sides are multiples of 32.
            words: vectors (N, T, word_dim), padded with zeros.
            mask: (N, T), true where there is a word; for ``mask_padding`` alone.

        Returns:
            ``rec_raw`` (N, 5 A, h, w) with h = H / 32, channel 5 a + j is code j of anchor a; ``seg_logits``
            (N, 1, 4h, 4w); and the attention features ``attn_s`` (N, dim, 4h, 4w) and ``attn_c`` (N, dim, h, w).
        """
        return self.ground(self.visual(image), self.language(words, mask))

    def visual(self, image: Tensor) -> VisualMaps:
        """What depends on images alone, to be computed once for all sentences about them.

        Where no parameter of ``frozen_part`` wants a gradient, nor the image, that part keeps nothing for one.

        Args:
            image: RGB (N, 3, H, W) in [0, 1]; sides are multiples of 32.
        """
        if image.ndim != 4 or image.shape[1] != 3 or image.shape[2] % STRIDE or image.shape[3] % STRIDE:
            raise ValueError(f"image must be (N, 3, H, W), H and W multiples of {STRIDE}, got {tuple(image.shape)}")
        with nullcontext() if self._early_learns(image) else torch.no_grad():
            deep, v2, v3 = self.backbone.early(image)
        return VisualMaps(self.fusion.visual(self.backbone.late(deep)), *self.top_down.lateral(v2, v3))

    def language(self, words: Tensor, mask: Tensor | None = None) -> Tensor:
        """Word vectors (N, T, word_dim) to sentences (N, hidden); ``mask`` as in ``forward``."""
        return self.encoder(words, mask)

    def ground(self, visual: VisualMaps, language: Tensor) -> dict[str, Tensor]:
        """As ``forward``, from what ``visual`` and ``language`` gave, with as many rows each."""
        fused = self.fusion.fuse(visual.coarse, language)
        u2, u3 = self.top_down(fused, visual.middle, visual.fine)
        fine, attn_s = self.garan_s(u3, language)
        coarse, attn_c = self.garan_c(self.bottom_up(fine, u2, fused), language)
        return {"rec_raw": self.rec(coarse), "seg_logits": self.decoder(fine), "attn_s": attn_s, "attn_c": attn_c}

    def frozen_part(self) -> list[nn.Module]:
        """What the official code freezes: the backbone without its last two convolutions, of VGG16 the last one."""
        return self.backbone.frozen_part()

    def _early_learns(self, image: Tensor) -> bool:
        """Whether a gradient may be wanted of the part that can be frozen; without autograd it does not matter."""
        if image.requires_grad or not torch.is_grad_enabled():
            return True
        return any(parameter.requires_grad for part in self.frozen_part() for parameter in part.parameters())
