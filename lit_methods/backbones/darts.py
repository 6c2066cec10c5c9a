"""The network that DARTS found for ImageNet."""

from torch import Tensor, nn

from lit_methods.backbones.darts_cells import Cell, Genotype

DARTS_V2 = Genotype(  # second-order search on CIFAR-10, two pairs a line
    normal=(
        *(("sep_conv_3x3", 0), ("sep_conv_3x3", 1)),
        *(("sep_conv_3x3", 0), ("sep_conv_3x3", 1)),
        *(("sep_conv_3x3", 1), ("skip_connect", 0)),
        *(("skip_connect", 0), ("dil_conv_3x3", 2)),
    ),
    normal_concat=(2, 3, 4, 5),
    reduce=(
        *(("max_pool_3x3", 0), ("max_pool_3x3", 1)),
        *(("skip_connect", 2), ("max_pool_3x3", 1)),
        *(("max_pool_3x3", 0), ("skip_connect", 2)),
        *(("skip_connect", 2), ("max_pool_3x3", 1)),
    ),
    reduce_concat=(2, 3, 4, 5),
)


class AuxiliaryHead(nn.Module):
    """A second classifier on maps from the middle of the network, 7x7 or 8x8.

    Args:
        source: channels of these maps.
        num_classes: outputs.
    """

    def __init__(self, source: int, num_classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.ReLU(),
            nn.AvgPool2d(5, stride=2, count_include_pad=False),
            nn.Conv2d(source, 128, 1, bias=False),
            nn.BatchNorm2d(128),
            nn.ReLU(),
            nn.Conv2d(128, 768, 2, bias=False),  # no batch norm behind it, as in the experiments of the paper
            nn.ReLU(),
        )
        self.classifier = nn.Linear(768, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, source, 7, 7) to logits (N, num_classes)."""
        return self.classifier(self.features(x).flatten(1))


class DARTS(nn.Module):
    """A stem and a row of cells, two of them reductions, for ImageNet.

    ``stem0`` ends in the ReLU with which the authors' ``stem1`` begins. That one works in place, so there too the first
    cell gets maps behind it. Nothing here works in place, so the output of every part can be kept or changed.

    Args:
        num_classes: outputs.
        C: channels of a node in the first cells, even; they double at each reduction.
        layers: cells; reductions are number ``layers // 3`` and ``2 * layers // 3``, counted from 0.
        genotype: of the cells.

    Raises:
        ValueError: ``C`` or ``layers`` is out of range; in a pass, images whose sides are no multiples of 32.

    Source:
        DARTS, arXiv 1806.09055, section 3.3 and the authors' ``NetworkImageNet``, whose parameter names these are.
        Differences: the auxiliary head keeps its parameters, frozen, but runs in ``with_auxiliary`` alone, so that a
        pass gives plain logits in training mode too. There is no drop path, which the authors do not use on ImageNet
        either. The average at the end takes maps of any size.

    Example:
        >>> from torch import zeros
        >>> DARTS(num_classes=7, C=4, layers=3)(zeros(2, 3, 64, 64)).shape
        torch.Size([2, 7])
    """

    def __init__(self, num_classes: int = 1000, C: int = 48, layers: int = 14, genotype: Genotype = DARTS_V2) -> None:
        super().__init__()
        if C < 2 or C % 2:
            raise ValueError(f"C={C} must be an even number from 2; half of the channels come from even pixels")
        if layers < 1:
            raise ValueError(f"layers={layers} must be at least 1; it is the number of cells")
        self.stem0 = nn.Sequential(
            *(_halving(3, C // 2), nn.BatchNorm2d(C // 2), nn.ReLU()),
            *(_halving(C // 2, C), nn.BatchNorm2d(C), nn.ReLU()),
        )
        self.stem1 = nn.Sequential(nn.Identity(), _halving(C, C), nn.BatchNorm2d(C))  # Identity: in the ReLU's place
        self.reductions = (layers // 3, 2 * layers // 3)
        self.cells = nn.ModuleList()
        sources, width = (C, C), C
        for i in range(layers):
            width *= 2 if i in self.reductions else 1
            cell = Cell(genotype, sources, width, i in self.reductions, i == 0 or i - 1 in self.reductions)
            sources = (sources[1], cell.channels)
            self.cells.append(cell)
            if i == self.reductions[1]:
                self.auxiliary_head = AuxiliaryHead(cell.channels, num_classes).requires_grad_(False)
        self.global_pooling = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(sources[1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) to logits (N, num_classes); H and W multiples of 32."""
        return self._logits(x)[0]

    def with_auxiliary(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and the auxiliary head's, both (N, num_classes), of images of 224 or 256 pixels.

        To train with it, thaw the head first: ``network.auxiliary_head.requires_grad_()``. The authors add its loss
        with weight 0.4.

        Raises:
            ValueError: images whose maps do not fit the head.

        Example:
            >>> from torch import zeros
            >>> main, auxiliary = DARTS(7, C=4, layers=3).with_auxiliary(zeros(2, 3, 224, 224))
            >>> main.shape == auxiliary.shape == (2, 7)
            True
        """
        logits, maps = self._logits(x)
        if not all(side in (7, 8) for side in maps.shape[-2:]):
            raise ValueError(
                f"the auxiliary head takes maps of 7x7 or 8x8, images of {tuple(x.shape[-2:])} make "
                f"{tuple(maps.shape[-2:])}; give images of 224 or 256 pixels, or call the network itself"
            )
        return logits, self.auxiliary_head(maps)

    def _logits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The logits, and the maps behind the second reduction."""
        if any(side % 32 for side in x.shape[-2:]):
            raise ValueError(f"images of {tuple(x.shape[-2:])} cannot be halved five times; give multiples of 32")
        s0 = self.stem0(x)
        s1 = middle = self.stem1(s0)
        for i, cell in enumerate(self.cells):
            s0, s1 = s1, cell(s0, s1)
            if i == self.reductions[1]:
                middle = s1
        return self.classifier(self.global_pooling(s1).flatten(1)), middle


def _halving(source: int, channels: int) -> nn.Conv2d:
    return nn.Conv2d(source, channels, 3, stride=2, padding=1, bias=False)


def darts_imagenet(num_classes: int = 1000, C: int = 48, layers: int = 14) -> DARTS:
    """The network that the authors publish weights of, 224x224 images in; arguments and errors as ``DARTS``.

    Example:
        >>> from torch import device
        >>> with device("meta"):
        ...     network = darts_imagenet()
        >>> sum(p.numel() for name, p in network.named_parameters() if not name.startswith("auxiliary_head."))
        4718752
    """
    return DARTS(num_classes, C, layers)


def gates() -> dict[str, tuple[str, ...]]:
    """Where NAD gates ``darts_imagenet``: both stems and every cell (arXiv 2003.13268, official code).

    Example:
        >>> list(gates())[:3]
        ['stem0', 'stem1', 'cells.0']
    """
    return dict.fromkeys(["stem0", "stem1", *(f"cells.{i}" for i in range(14))], ())
