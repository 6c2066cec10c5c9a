"""AD-Cluster's networks: encoder and classifier (``encoder.py``), and StarGAN's generator and discriminator."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lit_methods.ad_cluster.encoder import (
    ENCODERS as ENCODERS,
    IdentityHead as IdentityHead,
    ReIDEncoder as ReIDEncoder,
)


class CameraGenerator(nn.Module):
    """Translate images into the style of a camera: StarGAN's generator, with cameras as domains.

    Args:
        num_cameras: C, at least 1.
        width: channels of the first convolution; twice and four times as many follow.
        num_blocks: residual blocks at a quarter of the size.
        skip: the last convolution sees the picture and the camera, too, and at first gives the picture back: for
            trainings of minutes.

    Raises:
        ValueError: a number below 1. From ``forward``: images whose sides are no multiples of 4, or that shrink to one
            pixel, which has no instance statistics.

    Source:
        HHL code (section 3.2). Its instance norm keeps running statistics that are never used; ours keeps none, so that
        train and eval mode are the same. ``skip`` is ours: of the camera, instance norm behind the first convolution
        leaves little but what enters by the borders, which takes long to learn from.

    Example:
        >>> generator = CameraGenerator(3, width=4, num_blocks=1)
        >>> generator(torch.zeros(2, 3, 16, 8), torch.tensor([0, 2])).shape
        torch.Size([2, 3, 16, 8])
    """

    def __init__(self, num_cameras: int, width: int = 64, num_blocks: int = 6, skip: bool = False) -> None:
        super().__init__()
        _at_least_one(num_cameras=num_cameras, width=width, num_blocks=num_blocks)
        self.num_cameras, self.skip = num_cameras, skip
        inner = 4 * width
        self.layers = nn.Sequential(
            *_normed(nn.Conv2d(3 + num_cameras, width, 7, padding=3, bias=False)),
            *_normed(nn.Conv2d(width, 2 * width, 4, stride=2, padding=1, bias=False)),
            *_normed(nn.Conv2d(2 * width, inner, 4, stride=2, padding=1, bias=False)),
            *(_ResidualBlock(inner) for _ in range(num_blocks)),
            *_normed(nn.ConvTranspose2d(inner, 2 * width, 4, stride=2, padding=1, bias=False)),
            *_normed(nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1, bias=False)),
        )
        self.last = nn.Conv2d(width + skip * (3 + num_cameras), 3, 7, padding=3, bias=False)
        if skip:
            nn.init.zeros_(self.last.weight)
            nn.init.dirac_(self.last.weight[:, :3])

    def forward(self, image: Tensor, camera: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] and cameras (B,) int64, 0 to C - 1, to images of the same shape in [-1, 1]."""
        height, width = image.shape[2:]
        if height % 4 or width % 4 or height * width <= 16:
            raise ValueError(
                f"images must have sides that are multiples of 4, and more than 4x4 pixels, got {height}x{width}"
            )
        asked = torch.cat([image, camera_planes(camera, self.num_cameras, image)], 1)
        features = self.layers(asked)
        return torch.tanh(self.last(torch.cat([asked, features], 1) if self.skip else features))


class _ResidualBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        conv, norm, relu = _normed(nn.Conv2d(channels, channels, 3, padding=1, bias=False))
        last, last_norm, _ = _normed(nn.Conv2d(channels, channels, 3, padding=1, bias=False))
        self.layers = nn.Sequential(conv, norm, relu, last, last_norm)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class CameraDiscriminator(nn.Module):
    """Score the patches of images as real or generated, and name the camera: StarGAN's discriminator.

    Args:
        num_cameras: C, at least 1.
        image_size: height and width of the images, multiples of ``2 ** num_layers``.
        width: channels of the first convolution; they double from layer to layer.
        num_layers: convolutions that halve the size.

    Raises:
        ValueError: a number below 1, or a size that cannot be halved so often.

    Source:
        HHL code (section 3.2).

    Example:
        >>> score, logits = CameraDiscriminator(3, (32, 16), width=4, num_layers=3)(torch.zeros(2, 3, 32, 16))
        >>> score.shape, logits.shape
        (torch.Size([2, 1, 4, 2]), torch.Size([2, 3]))
    """

    def __init__(
        self, num_cameras: int, image_size: tuple[int, int] = (256, 128), width: int = 64, num_layers: int = 6
    ) -> None:
        super().__init__()
        _at_least_one(num_cameras=num_cameras, width=width, num_layers=num_layers)
        height, image_width = image_size
        step = 2**num_layers
        if height < 1 or image_width < 1 or height % step or image_width % step:
            raise ValueError(
                f"image_size={height}x{image_width} cannot be halved num_layers={num_layers} times; take multiples of "
                f"{step}, or fewer layers"
            )
        self.image_size = (height, image_width)
        self.layers = nn.Sequential()
        channels = 3
        for number in range(num_layers):
            outputs = width * 2**number
            self.layers.extend([nn.Conv2d(channels, outputs, 4, stride=2, padding=1), nn.LeakyReLU(0.01)])
            channels = outputs
        self.score = nn.Conv2d(channels, 1, 3, padding=1, bias=False)
        self.camera = nn.Conv2d(channels, num_cameras, (height // step, image_width // step), bias=False)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, 3, H, W) in [-1, 1] to scores (B, 1, h, w), high for real, and logits (B, C) of the camera."""
        if image.shape[2:] != self.image_size:
            height, width = self.image_size
            raise ValueError(f"images must be {height}x{width}, got {image.shape[2]}x{image.shape[3]}")
        x = self.layers(image)
        return self.score(x), self.camera(x).flatten(1)


def camera_planes(camera: Tensor, num_cameras: int, image: Tensor) -> Tensor:
    """One plane per camera, of ones for an image's own and of zeros for the others.

    Args:
        camera: (B,) int64.
        num_cameras: C.
        image: (B, ..., H, W); gives size, type and device.

    Returns:
        (B, C, H, W).

    Example:
        >>> camera_planes(torch.tensor([1, 0]), 2, torch.zeros(2, 3, 1, 1)).flatten(1)
        tensor([[0., 1.],
                [1., 0.]])
    """
    hot = camera[:, None] == torch.arange(num_cameras, device=camera.device)
    return hot.to(image.dtype)[:, :, None, None].expand(-1, -1, *image.shape[2:])


def _normed(conv: nn.Conv2d | nn.ConvTranspose2d) -> list[nn.Module]:
    norm = nn.InstanceNorm2d(conv.out_channels, affine=True, track_running_stats=False)
    return [conv, norm, nn.ReLU(inplace=True)]


def _at_least_one(**numbers: int) -> None:
    for name, number in numbers.items():
        if not isinstance(number, int) or number < 1:
            raise ValueError(f"{name}={number} must be a whole number, at least 1")
