"""IR-ResNet-18, -34, -50 and -101: faces of 112x112 pixels to embeddings."""

from collections.abc import Sequence

from torch import Tensor, nn

LAYERS = {  # blocks in each stage
    "iresnet18": (2, 2, 2, 2),
    "iresnet34": (3, 4, 6, 3),
    "iresnet50": (3, 4, 14, 3),
    "iresnet101": (3, 13, 30, 3),
}
_WIDTHS = (64, 128, 256, 512)


class IResNet(nn.Module):
    """A residual network that keeps where things are: its last maps are flattened, not averaged.

    Images are aligned faces, normalised to [-1, 1].

    Args:
        layers: blocks in each of the four stages, as in ``LAYERS``.
        se: squeeze-and-excitation at the end of each block's branch.
        input_size: height and width of an image, a multiple of 16; the linear layer is made for it.
        num_features: D, length of an embedding.
        dropout: in front of the linear layer, in [0, 1).

    Attributes:
        input_size: as given.
        num_features: as given.

    Raises:
        ValueError: a number out of range. From ``forward``: images of another size.

    Source:
        DDL's official code (TFace), whose parameter names these are; they were not tried on a released file. The older
        networks of face.evoLVe have the same nesting, but no batch norm between a block's first convolution and its
        PReLU, so that their weights do not fit. Ours takes any number of blocks and any such size, where the code has
        112 and 224. Blocks that change nothing about the shape have no max-pool of one pixel in the shortcut.

    Example:
        >>> from torch import zeros
        >>> IResNet((1, 1, 1, 1), input_size=32, num_features=64)(zeros(2, 3, 32, 32)).shape
        torch.Size([2, 64])
    """

    def __init__(
        self,
        layers: Sequence[int],
        se: bool = False,
        input_size: int = 112,
        num_features: int = 512,
        dropout: float = 0.4,
    ) -> None:
        super().__init__()
        if len(layers) != len(_WIDTHS) or not all(isinstance(blocks, int) and blocks >= 1 for blocks in layers):
            raise ValueError(f"layers={layers} must be four whole numbers of at least 1, one per stage: {LAYERS}")
        if not isinstance(input_size, int) or input_size < 16 or input_size % 16:
            raise ValueError(f"input_size={input_size} cannot be halved four times; give a multiple of 16, such as 112")
        if not isinstance(num_features, int) or num_features < 1:
            raise ValueError(f"num_features={num_features} must be a whole number, at least 1")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout={dropout} must lie in [0, 1)")
        self.input_size, self.num_features = input_size, num_features
        self.input_layer = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.PReLU(64))
        self.output_layer = nn.Sequential(
            nn.BatchNorm2d(512),
            nn.Dropout(dropout),
            nn.Flatten(),
            nn.Linear(512 * (input_size // 16) ** 2, num_features),
            nn.BatchNorm1d(num_features, affine=False),
        )
        self.body = nn.Sequential()
        channels = 64
        for width, blocks in zip(_WIDTHS, layers, strict=True):
            for number in range(blocks):
                self.body.append(_Block(channels, width, 2 if number == 0 else 1, se))
                channels = width
        for part in self.modules():  # batch norm and PReLU begin as PyTorch makes them
            if isinstance(part, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
                if part.bias is not None:
                    nn.init.zeros_(part.bias)

    def forward(self, image: Tensor) -> Tensor:
        """(N, 3, input_size, input_size) in [-1, 1] to embeddings (N, D), of any length."""
        size = self.input_size
        if image.shape[2:] != (size, size):
            got = "x".join(str(side) for side in image.shape[2:])
            raise ValueError(f"images must be {size}x{size}, got {got}; resize them, or build with another input_size")
        return self.output_layer(self.body(self.input_layer(image)))


class _Block(nn.Module):
    """Batch norm, 3x3 convolution, batch norm, PReLU, 3x3 convolution (with the stride), batch norm beside a shortcut.

    Nothing follows the sum.
    """

    def __init__(self, channels: int, width: int, stride: int, se: bool) -> None:
        super().__init__()
        self.shortcut_layer: nn.Module
        if channels != width:
            self.shortcut_layer = nn.Sequential(
                nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width)
            )
        else:
            self.shortcut_layer = nn.MaxPool2d(1, stride) if stride > 1 else nn.Identity()
        self.res_layer = nn.Sequential(
            nn.BatchNorm2d(channels),
            nn.Conv2d(channels, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.PReLU(width),
            nn.Conv2d(width, width, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )
        if se:
            self.res_layer.add_module("se_block", _SqueezeExcitation(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.res_layer(x) + self.shortcut_layer(x)


class _SqueezeExcitation(nn.Module):
    """Weigh every channel by a function of all channels' averages."""

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // reduction, 1, bias=False)
        self.fc2 = nn.Conv2d(channels // reduction, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc2(self.fc1(x.mean((2, 3), keepdim=True)).relu()).sigmoid()


def iresnet18(se: bool = False) -> IResNet:
    """IR-ResNet-18, of 8 blocks; argument and result as ``iresnet50``."""
    return IResNet(LAYERS["iresnet18"], se)


def iresnet34(se: bool = False) -> IResNet:
    """IR-ResNet-34, of 16 blocks; argument and result as ``iresnet50``."""
    return IResNet(LAYERS["iresnet34"], se)


def iresnet50(se: bool = False) -> IResNet:
    """IR-ResNet-50, of 24 blocks, which DDL trains on CASIA-WebFace and VGGFace2.

    Args:
        se: squeeze-and-excitation in every block.

    Returns:
        Images (N, 3, 112, 112) in [-1, 1] to embeddings (N, 512), fresh weights.

    Example:
        >>> import torch
        >>> with torch.device("meta"):
        ...     network = iresnet50()
        >>> sum(parameter.numel() for parameter in network.parameters())
        43585600
    """
    return IResNet(LAYERS["iresnet50"], se)


def iresnet101(se: bool = False) -> IResNet:
    """IR-ResNet-101, of 49 blocks, the papers' R100; argument and result as ``iresnet50``."""
    return IResNet(LAYERS["iresnet101"], se)
