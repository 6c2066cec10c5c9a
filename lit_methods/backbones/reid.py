"""ReIDEncoder: pictures of persons to features, for any method that re-identifies."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from lit_methods.backbones import build_backbone
from lit_methods.backbones.weights import load_weights
from lit_methods.functional.complexity import blank_images
from lit_methods.functional.modes import evaluating
from lit_methods.functional.suggestions import first_line, nearest

RESNETS = ("resnet50", "resnet34", "resnet18")
ENCODERS = (*RESNETS, "tiny")


class ReIDEncoder(nn.Module):
    """Images to one feature vector each: a network without its classifier, and the average over its last maps.

    Args:
        backbone: ``"resnet50"`` as in the papers, ``"resnet34"``, ``"resnet18"``, or ``"tiny"``, five convolutions for
            images from 32x16 on; in code also a network of your own that gives (N, D, h, w) or (N, D).
        width: channels of the first convolution of ``"tiny"``, which puts out four times as many features; without
            effect for others.
        last_stride: of the last stage, 2 as AD-Cluster has it, or 1 as DDL has it, for maps twice as large; 2 for your
            own network.
        normalize: divide features by their Euclidean length.
        input_size: (C, H, W) of an image, for one pass that finds ``num_features`` of your own network.

    Attributes:
        network: the part with the weights, under torchvision's names for the ResNets.
        num_features: D.

    Raises:
        ValueError: an unknown name, a stride or width that cannot be, a network that does not run on such images or
            gives something else.

    Source:
        AD-Cluster, ResNet-50 (section 3.1); features as they are, U's code. DDL, ResNet-50 with a last stride of 1 for
        Market-1501. ``normalize`` is an option that later work uses.

    Example:
        >>> import torch
        >>> encoder = ReIDEncoder("tiny", width=8)
        >>> encoder.num_features, encoder(torch.zeros(2, 3, 64, 32)).shape
        (32, torch.Size([2, 32]))
    """

    def __init__(
        self,
        backbone: str | nn.Module = "resnet50",
        *,
        width: int = 32,
        last_stride: int = 2,
        normalize: bool = False,
        input_size: tuple[int, int, int] = (3, 256, 128),
    ) -> None:
        super().__init__()
        if last_stride not in (1, 2):
            raise ValueError(f"last_stride={last_stride} must be 2, as in torchvision's networks, or 1")
        if isinstance(backbone, nn.Module):
            if last_stride != 2:
                raise ValueError("last_stride=1 is for networks given by name; change the strides of your own yourself")
            self.network = backbone
            self.num_features = _probe(backbone, input_size)
        elif backbone == "tiny":
            if not isinstance(width, int) or width < 1:
                raise ValueError(f"width={width} must be a whole number, at least 1")
            self.network = _tiny(width, last_stride)
            self.num_features = 4 * width
        elif backbone in RESNETS:
            self.network = build_backbone(backbone, 1)
            self.num_features = self.network.fc.in_features  # type: ignore[union-attr,assignment]
            self.network.fc = nn.Identity()
            if last_stride == 1:
                _keep_size(self.network.layer4)  # type: ignore[arg-type]
        else:
            raise ValueError(
                f"backbone={backbone!r} is no encoder{nearest(str(backbone), ENCODERS)}; there are "
                f"{', '.join(ENCODERS)}. In code a network without classifier can be given instead"
            )
        self.normalize = normalize

    def forward(self, image: Tensor) -> Tensor:
        """Features (N, D) of images (N, 3, H, W) that are normalised already."""
        features = self.network(image)
        if features.ndim == 4:
            features = features.mean((2, 3))
        return F.normalize(features) if self.normalize else features

    def load_backbone(self, tensors: dict[str, Tensor], source: str = "base_checkpoint") -> None:
        """Copy trained weights of a classifier, such as torchvision's, and leave its last layer out.

        Args:
            tensors: as ``lit_methods.backbones.weights.read_weights`` gives them.
            source: what an error names.

        Raises:
            ValueError: they do not fit.

        Example:
            >>> import torch
            >>> trained = build_backbone("resnet18", 1000).state_dict()
            >>> encoder = ReIDEncoder("resnet18")
            >>> encoder.load_backbone(trained)
            >>> torch.equal(encoder.network.conv1.weight, trained["conv1.weight"])
            True
        """
        wanted = self.network.state_dict()
        last = {key for key in tensors if key.startswith("fc.") and key not in wanted}
        load_weights(self.network, {key: value for key, value in tensors.items() if key not in last}, source)


def _tiny(width: int, last_stride: int) -> nn.Sequential:
    """Sizes halve three times; 14.6 million multiply-adds for 64x32 at width 32."""
    steps = [(3, 1, 2), (1, 2, 2), (2, 2, 1), (2, 4, last_stride), (4, 4, 1)]  # inputs and outputs in widths, stride
    network = nn.Sequential()
    for number, (inputs, outputs, stride) in enumerate(steps):
        channels = inputs if number == 0 else inputs * width
        conv = nn.Conv2d(channels, outputs * width, 3, stride, padding=1, bias=False)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        network.extend([conv, nn.BatchNorm2d(outputs * width), nn.ReLU(inplace=True)])
    return network


def _keep_size(stage: nn.Module) -> None:
    """Take the stride out of a stage; weights and names stay."""
    for part in stage.modules():
        if isinstance(part, nn.Conv2d):
            part.stride = (1, 1)


def answer_to_one_image(network: nn.Module, input_size: tuple[int, ...]) -> Any:
    """What a stranger's network gives for one blank image, in eval mode.

    Args:
        network: the network; it may have no weights.
        input_size: (C, H, W) of the image.

    Raises:
        ValueError: it does not run on such an image.

    Example:
        >>> answer_to_one_image(nn.Flatten(), (3, 4, 4)).shape
        torch.Size([1, 48])
    """
    weighted = any(parameter.is_floating_point() for parameter in network.parameters())
    image = blank_images(network if weighted else nn.Linear(1, 1), input_size)
    with evaluating(network):
        try:
            return network(image)
        except Exception as ex:
            raise ValueError(f"backbone does not run on images of input_size={input_size}: {first_line(ex)}") from None


def _probe(network: nn.Module, input_size: tuple[int, int, int]) -> int:
    """Features per image of a stranger's network."""
    out: Any = answer_to_one_image(network, input_size)
    if not isinstance(out, Tensor) or out.ndim not in (2, 4) or len(out) != 1:
        got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise ValueError(f"backbone must give (N, D, h, w) or (N, D), got {got} for one image of {input_size}")
    return out.shape[1]
