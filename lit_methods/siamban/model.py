"""SiamBAN's network: a template and a search region to scores and distances of every point."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lit_methods.backbones.atrous_resnet import STRIDE, AtrousResNet
from lit_methods.siamban.head import NARROW, BANHead, BANNeck, unfolded_correlation

__all__ = ["BANHead", "BANNeck", "SearchGraph", "SiamBANNet", "TemplateGraph"]

TEMPLATE = 127  # pixels, of which the neck cuts the middle
_MARGIN = 7  # pixels beyond 8 k, of an image with k positions
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet in RGB, as torchvision's weights want it


class SiamBANNet(nn.Module):
    """The whole network; it keeps no state between frames.

    Crops are BGR from 0 to 255. Point i of the response map, along each axis, is centred on pixel 8 i + 31 of the
    search region, which is where ``point_grid`` puts it for an odd number of points; for an even one that grid begins
    4 pixels earlier.

    Args:
        depth: of the ResNet: 18, 34 or 50.
        width: channels of its first stage.
        channels: of neck and head.
        levels: stages whose features are used, of 2, 3 and 4.
        weighted: learn the weights of the levels, else a plain mean.
        template_size: side of the template, pixels; the neck cuts the middle out of the maps of 127 alone.
        search_size: side of the search region, pixels: 8 k + 7, from 167 on, since a narrower map would be cut, too.
        normalize: turn crops into RGB with ImageNet's mean and standard deviation first, as torchvision's weights
            want it.

    Attributes:
        stride: pixels between points.
        size: points per side, n; 25 for a search region of 255.
        kernel_names: of what ``template`` gives.
        template_size, search_size, levels: as given.

    Raises:
        ValueError: an argument is out of range. From ``template`` and ``track``: crops of another size.

    Source:
        SiamBAN, arXiv 2003.06761, and its official code, whose parameter names these are where the levels begin at 2.
        With other levels the code numbers neck and boxes from 2 on, ours have the level's own number.

    Example:
        >>> net = SiamBANNet(18, width=4, channels=8, levels=[2, 3], search_size=191)
        >>> cls, loc = net(torch.zeros(1, 3, 127, 127), torch.zeros(1, 3, 191, 191))
        >>> net.size, cls.shape, loc.shape
        (17, torch.Size([1, 2, 17, 17]), torch.Size([1, 4, 17, 17]))
    """

    stride = STRIDE
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        depth: int = 50,
        width: int = 64,
        channels: int = 256,
        levels: Sequence[int] = (2, 3, 4),
        weighted: bool = True,
        template_size: int = TEMPLATE,
        search_size: int = 255,
        normalize: bool = False,
    ) -> None:
        super().__init__()
        if template_size != TEMPLATE:
            raise ValueError(
                f"template_size={template_size} must be {TEMPLATE}: of the maps of a template the fixed positions 4 to "
                "10 are cut out, which are its middle for this size alone"
            )
        least = STRIDE * NARROW + _MARGIN
        if search_size < least or search_size % STRIDE != _MARGIN:
            lower = max(least, search_size - (search_size - _MARGIN) % STRIDE)
            raise ValueError(
                f"search_size={search_size} must be 8 k + 7 and at least {least}; the nearest are {lower} and "
                f"{lower + STRIDE}"
            )
        if channels < 1:
            raise ValueError(f"channels={channels} must be at least 1")
        self.backbone = AtrousResNet(depth, width, levels)
        self.levels = self.backbone.levels
        self.neck = BANNeck(self.backbone.out_channels, channels, self.levels)
        self.head = BANHead([channels] * len(self.levels), weighted=weighted, levels=self.levels)
        self.template_size, self.search_size = template_size, search_size
        self.size = (search_size - template_size) // STRIDE + 1 + STRIDE
        self.kernel_names = [f"{branch}_kernel_{level}" for level in self.levels for branch in ("cls", "loc")]
        self.normalize = normalize
        if normalize:
            for name, values in {"mean": _MEAN, "std": _STD}.items():
                buffer = 255 * torch.tensor(values).view(1, 3, 1, 1)
                self.register_buffer(name, buffer, persistent=False)

    def forward(self, z: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, 2, n, n), background and target, and distances (B, 4, n, n), l, t, r, b in pixels.

        Args:
            z: templates (B, 3, 127, 127).
            x: search regions (B, 3, search_size, search_size).
        """
        return self.track(self.template(z), x)

    def template(self, z: Tensor) -> list[Tensor]:
        """All that ``track`` needs of templates, to be computed once for a sequence.

        Args:
            z: (B, 3, 127, 127).

        Returns:
            Correlation kernels (B, channels, 5, 5): for each level that of the scores, then that of the distances.
            Rows belong to templates, so rows of several calls may be joined and selected.
        """
        return self.head.kernels(self.features(z, "template"))

    def track(self, template: Sequence[Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
        """As ``forward``, from what ``template`` gave.

        Args:
            template: with as many rows as ``x``.
            x: search regions (B, 3, search_size, search_size).
        """
        return self.head.respond(template, self.features(x, "search"))

    def features(self, crops: Tensor, kind: str) -> list[Tensor]:
        """What the neck gives of crops, (B, channels, h, w) per level.

        Args:
            crops: (B, 3, side, side).
            kind: ``"template"`` or ``"search"``.
        """
        side = self.template_size if kind == "template" else self.search_size
        if crops.shape[1:] != (3, side, side):
            raise ValueError(f"{kind} crops must be (B, 3, {side}, {side}), got {tuple(crops.shape)}")
        if self.normalize:
            crops = (crops.flip(1) - self.mean) / self.std
        return self.neck(self.backbone(crops))


class TemplateGraph(nn.Module):
    """``SiamBANNet.template`` alone, to be exported.

    Args:
        net: the network, shared.

    Example:
        >>> net = SiamBANNet(18, width=4, channels=8, levels=[2])
        >>> TemplateGraph(net)(torch.zeros(1, 3, 127, 127)).shape
        torch.Size([1, 2, 8, 5, 5])
    """

    def __init__(self, net: SiamBANNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, template: Tensor) -> Tensor:
        """(B, 3, 127, 127) to all kernels (B, K, channels, 5, 5), in the order of ``net.kernel_names``."""
        return torch.stack(self.net.template(template), 1)


class SearchGraph(nn.Module):
    """``SiamBANNet.track`` alone, to be exported with a batch of any size.

    Args:
        net: the network, shared.

    Example:
        >>> net = SiamBANNet(18, width=4, channels=8, levels=[2], search_size=191)
        >>> kernels = TemplateGraph(net)(torch.zeros(1, 3, 127, 127))
        >>> cls, loc = SearchGraph(net)(torch.zeros(1, 3, 191, 191), kernels)
        >>> loc.shape
        torch.Size([1, 4, 17, 17])
    """

    def __init__(self, net: SiamBANNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, search: Tensor, kernels: Tensor) -> tuple[Tensor, Tensor]:
        """Regions (B, 3, search_size, search_size) and what ``TemplateGraph`` gives to ``cls`` and ``loc``."""
        return self.net.head.respond(kernels.unbind(1), self.net.features(search, "search"), unfolded_correlation)
