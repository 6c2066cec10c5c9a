"""The losses of StarGAN with cameras as domains: Wasserstein scores, camera classifier, reconstruction.

Pure functions of what the discriminator and the generator put out. Half precision is computed in float32.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_methods.functional.precision import at_least_float32


def gradient_penalty(critic: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor, alpha: Tensor) -> Tensor:
    """Mean over images of ``(||gradient of the score|| - 1)^2``, between real and generated images.

    The score of an image is the sum of its patches. It is computed outside of autocast, with a graph for the critic's
    parameters, also where gradients are switched off.

    Args:
        critic: images (B, 3, H, W) to scores (B, ...), the real/fake output alone; no batch norm in it.
        real: (B, 3, H, W).
        fake: of the same shape.
        alpha: share of the real image, (B,) in [0, 1].

    Returns:
        Scalar, before its weight.

    Raises:
        ValueError: shapes that do not fit.

    Source:
        WGAN-GP (arXiv 1704.00028) as in StarGAN's and HHL's code, which add up the patches as well. Ours: a gradient of
        zero has a finite derivative.

    Example:
        >>> images = torch.rand(2, 3, 4, 4)
        >>> gradient_penalty(lambda x: 2 * x[:, 0, 0, 0], images, 1 - images, torch.tensor([0.0, 0.5]))
        tensor(1.)
    """
    if fake.shape != real.shape or alpha.shape != real.shape[:1]:
        raise ValueError(
            f"real and fake must have one shape and alpha one number per image, got {tuple(real.shape)}, "
            f"{tuple(fake.shape)} and {tuple(alpha.shape)}"
        )
    with torch.enable_grad(), torch.autocast(real.device.type, enabled=False):
        real, fake = real.detach(), fake.detach().to(real.dtype)  # which is the critic's; autocast may have made fakes
        share = alpha.to(real).view(-1, *(1,) * (real.ndim - 1))
        between = (share * real + (1 - share) * fake).requires_grad_()
        score = at_least_float32(critic(between)).sum()
        (gradient,) = torch.autograd.grad(score, between, create_graph=True)
        return (torch.linalg.vector_norm(gradient.flatten(1), dim=1) - 1).square().mean()


def stargan_d_loss(
    real_score: Tensor,
    fake_score: Tensor,
    camera_logits: Tensor,
    camid: Tensor,
    penalty: Tensor,
    *,
    cls_weight: float = 1.0,
    gp_weight: float = 10.0,
) -> dict[str, Tensor]:
    """What the discriminator minimises: ``-real + fake + cls_weight cls + gp_weight gp``.

    Args:
        real_score: of real images, (B, ...), any number of patches.
        fake_score: of generated ones.
        camera_logits: of the real images, (B, C).
        camid: their cameras, (B,) int64.
        penalty: ``gradient_penalty`` of the same images, a scalar.
        cls_weight: of the camera classifier, not negative.
        gp_weight: of the penalty, not negative.

    Returns:
        ``loss`` and its terms before weights and signs: ``real`` and ``fake`` (mean scores), ``cls`` (cross entropy in
        nats) and ``gp``; scalars, all with their graph.

    Raises:
        ValueError: a negative weight.

    Source:
        StarGAN (arXiv 1711.09020) with cameras as domains, HHL code; section 2.4 of AD-Cluster's specification.

    Example:
        >>> one, camid = torch.ones(()), torch.tensor([1])
        >>> terms = stargan_d_loss(one, 0 * one, torch.zeros(1, 2), camid, one)
        >>> {name: round(float(value), 4) for name, value in terms.items()}
        {'loss': 9.6931, 'real': 1.0, 'fake': 0.0, 'cls': 0.6931, 'gp': 1.0}
    """
    _check_weights(cls_weight=cls_weight, gp_weight=gp_weight)
    with torch.autocast(real_score.device.type, enabled=False):
        real, fake = at_least_float32(real_score).mean(), at_least_float32(fake_score).mean()
        cls = F.cross_entropy(at_least_float32(camera_logits), camid)
        gp = at_least_float32(penalty)
        loss = fake - real + cls_weight * cls + gp_weight * gp
        return {"loss": loss, "real": real, "fake": fake, "cls": cls, "gp": gp}


def stargan_g_loss(
    fake_score: Tensor,
    camera_logits: Tensor,
    target: Tensor,
    image: Tensor,
    reconstruction: Tensor,
    *,
    cls_weight: float = 1.0,
    rec_weight: float = 10.0,
) -> dict[str, Tensor]:
    """What the generator minimises: ``-fake + cls_weight cls + rec_weight rec``, without the diversity of the clusters.

    Args:
        fake_score: of generated images, (B, ...), any number of patches.
        camera_logits: of the generated images, (B, C).
        target: cameras they were translated to, (B,) int64.
        image: the real ones, (B, 3, H, W) in [-1, 1].
        reconstruction: translated to the target and back.
        cls_weight: of the camera classifier, not negative.
        rec_weight: of the reconstruction, not negative.

    Returns:
        ``loss`` and its terms before weights and signs: ``fake`` (mean score), ``cls`` (cross entropy in nats) and
        ``rec`` (mean absolute difference); scalars, all with their graph.

    Raises:
        ValueError: a negative weight, images that differ in shape.

    Source:
        As ``stargan_d_loss``.

    Example:
        >>> image = torch.zeros(1, 3, 2, 2)
        >>> terms = stargan_g_loss(torch.ones(1, 1), torch.zeros(1, 2), torch.tensor([1]), image, image + 0.5)
        >>> {name: round(float(value), 4) for name, value in terms.items()}
        {'loss': 4.6931, 'fake': 1.0, 'cls': 0.6931, 'rec': 0.5}
    """
    _check_weights(cls_weight=cls_weight, rec_weight=rec_weight)
    if reconstruction.shape != image.shape:
        raise ValueError(
            f"reconstruction must have the shape of image, {tuple(image.shape)}, got {tuple(reconstruction.shape)}"
        )
    with torch.autocast(fake_score.device.type, enabled=False):
        fake, cls = at_least_float32(fake_score).mean(), F.cross_entropy(at_least_float32(camera_logits), target)
        rec = (at_least_float32(image) - at_least_float32(reconstruction)).abs().mean()
        return {"loss": cls_weight * cls + rec_weight * rec - fake, "fake": fake, "cls": cls, "rec": rec}


def _check_weights(**weights: float) -> None:
    for name, weight in weights.items():
        if not weight >= 0:
            raise ValueError(f"{name}={weight} must not be negative")
