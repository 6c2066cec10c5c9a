"""Inception v3, VGG-16 and DenseNet-121 for ImageNet: torchvision's own, under its names, never downloaded."""

from torch import Tensor, nn
from torchvision import models
from torchvision.models.inception import Inception3, InceptionAux

_MIXED = ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c")


class _AuxiliaryHead(InceptionAux):
    """Keeps the parameters that the published weights have for it, and hands the maps on instead of classifying."""

    def forward(self, x: Tensor) -> Tensor:
        """The same maps; nobody looks at them."""
        return x


class InceptionV3(Inception3):
    """torchvision's Inception v3, with plain logits in training mode too.

    Like all networks here it takes images normalised with ImageNet's mean and standard deviation. Its published weights
    come from TensorFlow, where pixels ran from -1 to 1; ``transform_input=True``, which torchvision sets for them too,
    turns the former into the latter.

    Args:
        num_classes: outputs.

    Source:
        arXiv 1512.00567. Differences from torchvision: the auxiliary head keeps its parameters, frozen, but does not
        run, so there is no auxiliary loss, and training takes images from 75 pixels on, as evaluation does. Initial
        weights are PyTorch's usual ones; with torchvision's, a fresh network evaluates to logits around 1e11.
    """

    def __init__(self, num_classes: int = 1000) -> None:
        super().__init__(num_classes, aux_logits=True, transform_input=True, init_weights=False)
        self.AuxLogits = _AuxiliaryHead(768, num_classes).requires_grad_(False)  # unused, which DDP would complain of
        self.aux_logits = False  # forward then returns the logits alone, not a tuple of both heads'


def inception_v3(num_classes: int = 1000) -> InceptionV3:
    """``InceptionV3`` for 299x299 images; ``Inception_V3_Weights.IMAGENET1K_V1`` are weights for it."""
    return InceptionV3(num_classes)


def inception_gates() -> dict[str, tuple[str, ...]]:
    """Where NAD gates ``inception_v3``: both pools of the stem and every mixed stage; its paper has no such network.

    Example:
        >>> list(inception_gates())[:3]
        ['maxpool1', 'maxpool2', 'Mixed_5b']
    """
    return dict.fromkeys(["maxpool1", "maxpool2", *(f"Mixed_{stage}" for stage in _MIXED)], ())


def vgg16(num_classes: int = 1000) -> nn.Module:
    """VGG-16 without batch norm for 224x224 images; ``VGG16_Weights.IMAGENET1K_V1`` are weights for it.

    Arguments and source are those of ``vgg16_bn``.
    """
    return models.vgg16(weights=None, num_classes=num_classes)


def vgg16_gates() -> dict[str, tuple[str, ...]]:
    """Where NAD gates ``vgg16``: behind the ReLU of every convolution, or behind the pool where one follows it.

    The last pool is followed by the average that makes maps of any size 7x7, and the gate is behind that.

    Source:
        NAD, arXiv 2003.13268, official code.

    Example:
        >>> list(vgg16_gates())[:3]
        ['features.1', 'features.4', 'features.6']
    """
    return _vgg16_gates(modules_per_conv=2)


def vgg16_bn(num_classes: int = 1000) -> nn.Module:
    """VGG-16 with batch norm for 224x224 images; ``VGG16_BN_Weights.IMAGENET1K_V1`` are weights for it.

    Args:
        num_classes: outputs.

    Source:
        arXiv 1409.1556, configuration D, as torchvision builds it.
    """
    return models.vgg16_bn(weights=None, num_classes=num_classes)


def vgg16_bn_gates() -> dict[str, tuple[str, ...]]:
    """Where NAD gates ``vgg16_bn``: by the rule for ``vgg16``; its paper has no such network.

    Example:
        >>> list(vgg16_bn_gates())[:3]
        ['features.2', 'features.6', 'features.9']
    """
    return _vgg16_gates(modules_per_conv=3)


def _vgg16_gates(modules_per_conv: int) -> dict[str, tuple[str, ...]]:
    points, end = [], 0  # end: modules so far
    for convs in (2, 2, 3, 3, 3):
        for _ in range(convs):
            end += modules_per_conv
            points.append(f"features.{end - 1}")
        points[-1] = f"features.{end}"
        end += 1
    return dict.fromkeys([*points[:-1], "avgpool"], ())


def densenet121(num_classes: int = 1000) -> nn.Module:
    """DenseNet-121 for 224x224 images; ``DenseNet121_Weights.IMAGENET1K_V1`` are weights for it.

    Its last ReLU has no module: a function that works in place on what ``features.norm5`` puts out.

    Args:
        num_classes: outputs.

    Source:
        arXiv 1608.06993, as torchvision builds it.
    """
    return models.densenet121(weights=None, num_classes=num_classes)


def densenet121_gates() -> dict[str, tuple[str, ...]]:
    """Where NAD gates ``densenet121``: the stem, three dense blocks with their transitions, and the end.

    The fourth dense block has no gate. The last gate of the official code is behind the last ReLU; a factor that is
    not negative does the same in front of it, behind ``features.norm5``.

    Source:
        NAD, arXiv 2003.13268, official code.

    Example:
        >>> list(densenet121_gates())[:3]
        ['features.pool0', 'features.denseblock1', 'features.transition1']
    """
    stages = [f"{part}{i}" for i in (1, 2, 3) for part in ("denseblock", "transition")]
    return dict.fromkeys([f"features.{name}" for name in ("pool0", *stages, "norm5")], ())
