"""Inception v3 and VGG-16-BN for ImageNet: torchvision's own networks under its parameter names, never downloaded."""

from torch import Tensor, nn
from torchvision import models
from torchvision.models.inception import Inception3, InceptionAux


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


def vgg16_bn(num_classes: int = 1000) -> nn.Module:
    """VGG-16 with batch norm for 224x224 images; ``VGG16_BN_Weights.IMAGENET1K_V1`` are weights for it.

    Args:
        num_classes: outputs.

    Source:
        arXiv 1409.1556, configuration D, as torchvision builds it.
    """
    return models.vgg16_bn(weights=None, num_classes=num_classes)
