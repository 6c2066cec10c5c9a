"""The networks that DDL trains: names and own networks to one form, normalised images to embeddings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from lit_methods.backbones.iresnet import LAYERS, IResNet
from lit_methods.backbones.reid import RESNETS, ReIDEncoder, answer_to_one_image
from lit_methods.functional.suggestions import first_line, nearest


class TinyFaceNet(nn.Module):
    """Five convolutions and a linear layer: for small pictures and trainings of minutes.

    Args:
        input_size: (C, H, W) of an image; sides are multiples of 16.
        width: channels of the first convolution; up to four times as many follow.
        num_features: length of an embedding.

    Raises:
        ValueError: an argument that cannot be.

    Example:
        >>> import torch
        >>> TinyFaceNet((3, 48, 32), width=4, num_features=8)(torch.zeros(2, 3, 48, 32)).shape
        torch.Size([2, 8])
    """

    def __init__(self, input_size: Sequence[int] = (3, 48, 48), width: int = 16, num_features: int = 64) -> None:
        super().__init__()
        if width < 1 or num_features < 1:
            raise ValueError(f"width={width} and num_features={num_features} must be at least 1")
        height, across = input_size[-2:]
        if height < 16 or across < 16 or height % 16 or across % 16:
            raise ValueError(f"input_size={list(input_size)} must have sides that are multiples of 16 for tiny")
        self.num_features = num_features
        self.layers = nn.Sequential()
        inputs = 3
        for factor, stride in [(1, 2), (2, 2), (2, 1), (4, 2), (4, 2)]:
            outputs = factor * width
            conv = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
            self.layers.extend([conv, nn.BatchNorm2d(outputs), nn.PReLU(outputs)])
            inputs = outputs
        self.output = nn.Sequential(
            nn.Flatten(),  # where in the face something is matters
            nn.Linear(inputs * (height // 16) * (across // 16), num_features),
            nn.BatchNorm1d(num_features, affine=False),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, image: Tensor) -> Tensor:
        """Embeddings (N, num_features) of images (N, 3, H, W) that are normalised already."""
        return self.output(self.layers(image))


class _ReIDEmbedding(nn.Module):
    """ResNet-50 without the stride of its last stage, average pooling, and a batch norm ("BN-neck")."""

    def __init__(self, name: str, **arguments: Any) -> None:
        super().__init__()
        self.encoder = ReIDEncoder(name, **{"last_stride": 1, **arguments})
        self.num_features = self.encoder.num_features
        self.neck = nn.BatchNorm1d(self.num_features)
        nn.init.zeros_(self.neck.bias)
        self.neck.bias.requires_grad_(False)  # as BN-necks are: the hypersphere's centre stays

    def forward(self, image: Tensor) -> Tensor:
        return self.neck(self.encoder(image))


def _iresnet(name: str, input_size: Sequence[int], **arguments: Any) -> IResNet:
    if input_size[-1] != input_size[-2]:
        raise ValueError(f"input_size={list(input_size)} must be a square for {name}")
    return IResNet(LAYERS[name], input_size=input_size[-1], **arguments)


def _resnet(name: str, input_size: Sequence[int], **arguments: Any) -> _ReIDEmbedding:
    return _ReIDEmbedding(name, **arguments)


ENCODERS: dict[str, Callable[..., nn.Module]] = {
    **{name: partial(_iresnet, name) for name in LAYERS},
    **{name: partial(_resnet, name) for name in RESNETS},
    "tiny": TinyFaceNet,
}


def build_encoder(
    backbone: str | nn.Module, input_size: Sequence[int] = (3, 112, 112), arguments: dict[str, Any] | None = None
) -> tuple[nn.Module, int]:
    """An embedding network by name, or one of your own.

    Args:
        backbone: ``"iresnet18"``, ``"iresnet34"``, ``"iresnet50"`` or ``"iresnet101"`` for faces; ``"resnet50"``,
            ``"resnet34"`` or ``"resnet18"`` for persons, with average pooling and a BN-neck; ``"tiny"``; or a network
            that takes (N, 3, H, W) and gives (N, D).
        input_size: (C, H, W) of an image.
        arguments: further arguments of the named network, such as ``{"se": True}``.

    Returns:
        The network and D.

    Raises:
        ValueError: an unknown name, arguments that the network does not take, or a network that does not run on such
            images or gives something else.

    Source:
        DDL, arXiv 2002.03662: IR-ResNets; for Market-1501 the BN-neck is ours. Ours: ``tiny``.

    Example:
        >>> network, features = build_encoder("tiny", (3, 48, 48), {"width": 4})
        >>> features
        64
    """
    arguments = dict(arguments or {})
    if isinstance(backbone, nn.Module):
        if arguments:
            raise ValueError(f"backbone_args={arguments} are for networks given by name; build your own with them")
        return backbone, _probe(backbone, input_size)
    if backbone not in ENCODERS:
        raise ValueError(
            f"backbone={backbone!r} is unknown{nearest(str(backbone), list(ENCODERS))}; there are "
            f"{', '.join(ENCODERS)}. In code a network that gives (N, D) can be given instead"
        )
    try:
        network = ENCODERS[backbone](input_size, **arguments)
    except TypeError as ex:
        raise ValueError(f"backbone_args={arguments} do not fit {backbone}: {first_line(ex)}") from None
    return network, int(network.num_features)  # type: ignore[arg-type]


def _probe(network: nn.Module, input_size: Sequence[int]) -> int:
    out: Any = answer_to_one_image(network, tuple(input_size))
    if not isinstance(out, Tensor) or out.ndim != 2:
        got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise ValueError(f"backbone must give (N, D), got {got} for images of input_size={list(input_size)}")
    return out.shape[1]
