"""The generator and the discriminator as a pair: their losses on batches of images in [0, 1], and their steps.

Nothing here belongs to Lightning: ``CameraStarGAN`` trains the pair alone, the augmentation between AD-Cluster's
iterations trains it against an encoder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Adam

from lit_methods.ad_cluster.losses import cluster_diversity, diversity_weight
from lit_methods.ad_cluster.model import CameraDiscriminator, CameraGenerator
from lit_methods.ad_cluster.star_gan import gradient_penalty, stargan_d_loss, stargan_g_loss
from lit_methods.functional.draws import permutation, purpose, uniforms
from lit_methods.functional.processes import in_company

Encode = Callable[[Tensor], Tensor]


class Steps(Protocol):
    """What a step needs of an optimiser; Lightning's wrapped ones have it, too."""

    def zero_grad(self) -> None:
        """Forget the gradients."""

    def step(self) -> object:
        """Use them."""


class CameraTranslation(nn.Module):
    """StarGAN between cameras: generator, discriminator of matching size, and what each of them minimises.

    Args:
        num_cameras: C.
        height: of the images, a multiple of ``2 ** num_layers``.
        width: of the images, likewise.
        generator_width: channels of the generator's first convolution.
        num_blocks: its residual blocks.
        discriminator_width: channels of the discriminator's first convolution.
        num_layers: its convolutions.
        skip: of the generator, see ``CameraGenerator``.
        cls_weight: of the camera classifier in both losses.
        rec_weight: of the reconstruction.
        gp_weight: of the gradient penalty.

    Raises:
        ValueError: sizes that the networks cannot have, a negative weight. From its methods: a camera that does not
            exist, images of another size.

    Source:
        AD-Cluster, sections 2.4 and 3.2; HHL code.

    Example:
        >>> pair = CameraTranslation(3, 16, 8, generator_width=4, num_blocks=1, discriminator_width=4, num_layers=2)
        >>> pair.translate(torch.rand(2, 3, 16, 8), torch.tensor([0, 2])).shape
        torch.Size([2, 3, 16, 8])
    """

    def __init__(
        self,
        num_cameras: int,
        height: int = 256,
        width: int = 128,
        generator_width: int = 64,
        num_blocks: int = 6,
        discriminator_width: int = 64,
        num_layers: int = 6,
        skip: bool = False,
        cls_weight: float = 1.0,
        rec_weight: float = 10.0,
        gp_weight: float = 10.0,
    ) -> None:
        super().__init__()
        for name, weight in (("cls_weight", cls_weight), ("rec_weight", rec_weight), ("gp_weight", gp_weight)):
            if not weight >= 0:
                raise ValueError(f"{name}={weight} must not be negative")
        if height % 4 or width % 4 or height * width <= 16:
            raise ValueError(f"height={height} and width={width} must be multiples of 4, and not 4x4")
        self.num_cameras = num_cameras
        self.generator = CameraGenerator(num_cameras, generator_width, num_blocks, skip)
        self.discriminator = CameraDiscriminator(num_cameras, (height, width), discriminator_width, num_layers)
        self.cls_weight, self.rec_weight, self.gp_weight = cls_weight, rec_weight, gp_weight

    def translate(self, image: Tensor, camera: Tensor) -> Tensor:
        """Images in the style of other cameras; the same in train and eval mode.

        Args:
            image: (B, 3, H, W) in [0, 1], sides multiples of 4; B may be 0.
            camera: (B,) int64, 0 to C - 1.

        Returns:
            The same shape and type, in [0, 1], with a graph where gradients are on.
        """
        self._check(image, camera=camera)
        if not len(image):
            return image
        return (self.generator(2 * image - 1, camera).to(image.dtype) + 1) / 2

    def discriminator_losses(self, image: Tensor, camid: Tensor, target: Tensor, alpha: Tensor) -> dict[str, Tensor]:
        """What the discriminator minimises; the generator is left without gradients.

        Args:
            image: real ones, (B, 3, H, W) in [0, 1].
            camid: their cameras, (B,) int64.
            target: cameras they are translated to, (B,) int64.
            alpha: share of the real images where the penalty is taken, (B,) in [0, 1].

        Returns:
            ``loss`` with its graph; ``real``, ``fake``, ``cls`` and ``gp`` as in ``stargan_d_loss``, without.
        """
        self._check_batch(image, camid, target)
        real = 2 * image - 1
        with torch.no_grad():
            fake = self.generator(real, target)
        score, logits = self.discriminator(real)
        penalty = gradient_penalty(lambda x: self.discriminator(x)[0], real, fake, alpha)
        return _parts_detached(
            stargan_d_loss(
                score,
                self.discriminator(fake)[0],
                logits,
                camid,
                penalty,
                cls_weight=self.cls_weight,
                gp_weight=self.gp_weight,
            )
        )

    def generator_losses(
        self,
        image: Tensor,
        camid: Tensor,
        target: Tensor,
        *,
        encode: Encode | None = None,
        labels: Tensor | None = None,
        centroids: Tensor | None = None,
        lam: float = 0.03,
        div_weight: float = 1.0,
    ) -> dict[str, Tensor]:
        """What the generator minimises; the discriminator is left without gradients.

        With ``encode``, ``div_weight`` L_div is added: generated images are to lie far from the centroids of their
        clusters. Its D_div is the mean over the labelled images of all processes, all of which then have to call.

        Args:
            image: real ones, (B, 3, H, W) in [0, 1].
            camid: their cameras, (B,) int64.
            target: cameras they are translated to, (B,) int64.
            encode: images (B, 3, H, W) in [0, 1] to features (B, D), frozen and in eval mode; gradients pass through.
            labels: pseudo-labels of the images, (B,) int64, below 0 for none; with ``encode``.
            centroids: (K, D), of the same clustering; with ``encode``.
            lam: of L_div.
            div_weight: of L_div, not negative.

        Returns:
            ``loss`` with its graph; ``fake``, ``cls`` and ``rec`` as in ``stargan_g_loss``, and with ``encode``
            ``diversity`` (D_div) and ``div`` (L_div), without.
        """
        self._check_batch(image, camid, target)
        real = 2 * image - 1
        fake = self.generator(real, target)
        with without_gradients(self.discriminator):
            score, logits = self.discriminator(fake)
        terms = stargan_g_loss(
            score,
            logits,
            target,
            real,
            self.generator(fake, camid),
            cls_weight=self.cls_weight,
            rec_weight=self.rec_weight,
        )
        if encode is not None:
            if labels is None or centroids is None:
                raise ValueError("encode needs the labels of the images and the centroids of the clusters beside it")
            if not div_weight >= 0:
                raise ValueError(f"div_weight={div_weight} must not be negative")
            features = encode((fake.to(image.dtype) + 1) / 2)
            diversity = _over_processes(cluster_diversity(features, labels, centroids), (labels >= 0).sum())
            terms["diversity"], terms["div"] = diversity, diversity_weight(diversity, lam)
            terms["loss"] = terms["loss"] + div_weight * terms["div"]
        return _parts_detached(terms)

    def make_optimizers(self, lr: float = 1e-4, betas: tuple[float, float] = (0.5, 0.999)) -> tuple[Adam, Adam]:
        """Adam for the discriminator and Adam for the generator.

        Args:
            lr: rate of both.
            betas: of both.
        """
        betas = (betas[0], betas[1])  # a list, where a recipe gave it
        return (
            Adam(self.discriminator.parameters(), lr=lr, betas=betas),
            Adam(self.generator.parameters(), lr=lr, betas=betas),
        )

    def _check_batch(self, image: Tensor, camid: Tensor, target: Tensor) -> None:
        if not len(image):
            raise ValueError("image holds no images; a step needs at least one")
        self._check(image, camid=camid, target=target)

    def _check(self, image: Tensor, **cameras: Tensor) -> None:
        for name, camera in cameras.items():
            if camera.shape != image.shape[:1]:
                raise ValueError(f"{name} must hold one camera per image, ({len(image)},), got {tuple(camera.shape)}")
            if ((camera < 0) | (camera >= self.num_cameras)).any():
                raise ValueError(
                    f"{name} holds camera {_odd_one(camera, self.num_cameras)}; there are num_cameras="
                    f"{self.num_cameras}, counted from 0"
                )


def translation_step(
    translation: CameraTranslation,
    optimizers: tuple[Steps, Steps],
    step: int,
    image: Tensor,
    camid: Tensor,
    target: Tensor,
    alpha: Tensor,
    n_critic: int = 5,
    *,
    encode: Encode | None = None,
    labels: Tensor | None = None,
    centroids: Tensor | None = None,
    lam: float = 0.03,
    div_weight: float = 1.0,
) -> dict[str, Tensor]:
    """One step of the discriminator and, after each ``n_critic`` of them, one of the generator on the same images.

    Gradients are averaged over the processes of ``torch.distributed``, if there are any; with equally many images in
    each, and equal weights at first, they do what one process does with all images.

    Args:
        translation: changed.
        optimizers: of the discriminator and of the generator.
        step: counts the steps of the discriminator from 0.
        image: (B, 3, H, W) in [0, 1], B at least 1.
        camid: cameras, (B,) int64.
        target: cameras they are translated to, (B,) int64; see ``draw_targets``.
        alpha: (B,), see ``draw_alpha``.
        n_critic: steps of the discriminator per step of the generator.
        encode: see ``generator_losses``, as are the next four.
        labels: pseudo-labels.
        centroids: of the clusters.
        lam: of L_div.
        div_weight: of L_div.

    Returns:
        The losses and their terms without graph, ``d_loss``, ``d_real``, ...; with a step of the generator also
        ``g_loss``, ``g_fake``, ...

    Raises:
        ValueError: ``n_critic`` below 1; as the losses.

    Source:
        HHL and StarGAN code.

    Example:
        >>> pair = CameraTranslation(3, 16, 8, generator_width=4, num_blocks=1, discriminator_width=4, num_layers=2)
        >>> image, camid = torch.rand(2, 3, 16, 8), torch.tensor([0, 2])
        >>> target, alpha = draw_targets(camid, 0, 0), draw_alpha(2, 0, 0)
        >>> sorted(translation_step(pair, pair.make_optimizers(), 0, image, camid, target, alpha))
        ['d_cls', 'd_fake', 'd_gp', 'd_loss', 'd_real']
    """
    if n_critic < 1:
        raise ValueError(f"n_critic={n_critic} must be at least 1")
    d_optimizer, g_optimizer = optimizers
    terms = translation.discriminator_losses(image, camid, target, alpha)
    _descend(terms["loss"], d_optimizer, translation.discriminator)
    logged = {f"d_{name}": value.detach() for name, value in terms.items()}
    if (step + 1) % n_critic == 0:
        terms = translation.generator_losses(
            image,
            camid,
            target,
            encode=encode,
            labels=labels,
            centroids=centroids,
            lam=lam,
            div_weight=div_weight,
        )
        _descend(terms["loss"], g_optimizer, translation.generator)
        logged |= {f"g_{name}": value.detach() for name, value in terms.items()}
    return logged


def draw_targets(camid: Tensor, *key: int) -> Tensor:
    """The cameras to translate to: those of the batch, in another order.

    Args:
        camid: (B,) int64.
        key: whole numbers that say which batch it is, such as the seed and the step; equal keys give equal orders.

    Returns:
        (B,) int64 on the same device. An image may stay with its own camera.

    Source:
        StarGAN and HHL code.

    Example:
        >>> camid = torch.tensor([0, 0, 1, 2])
        >>> sorted(draw_targets(camid, 0, 7).tolist())
        [0, 0, 1, 2]
    """
    order = permutation(len(camid), purpose("ad_cluster/target_cameras"), *key)
    return camid[torch.from_numpy(order).to(camid.device)]


def draw_alpha(count: int, *key: int) -> Tensor:
    """Shares of the real images for the gradient penalty, uniform.

    Args:
        count: images.
        key: whole numbers, as in ``draw_targets``.

    Returns:
        (count,) float32 in [0, 1], on the CPU.

    Example:
        >>> alpha = draw_alpha(3, 0, 7)
        >>> alpha.shape, bool((alpha == draw_alpha(3, 0, 7)).all())
        (torch.Size([3]), True)
    """
    return torch.from_numpy(uniforms(count, purpose("ad_cluster/penalty_shares"), *key)[0]).float()


def decayed_rate(step: int, lr: float, total: int, decay_steps: int, every: int = 1000) -> float:
    """The learning rate of both Adams: constant, then falling in a straight line to zero.

    Args:
        step: steps of the discriminator done so far.
        lr: at the beginning.
        total: steps of the whole training; the rate is 0 from there on where there is a fall.
        decay_steps: how many of them, the last ones, the fall takes; 0 is a constant rate.
        every: the rate changes only at multiples of it.

    Raises:
        ValueError: negative numbers, a fall longer than the training, ``every`` below 1.

    Source:
        HHL: 220,000 steps, the last 110,000 falling, changed every 1,000.

    Example:
        >>> [decayed_rate(step, 1.0, 220_000, 110_000) for step in (0, 110_999, 165_500, 220_000)]
        [1.0, 1.0, 0.5, 0.0]
    """
    if step < 0 or not lr >= 0 or every < 1 or not 0 <= decay_steps <= total:
        raise ValueError(
            f"step={step} and lr={lr} must not be negative, every={every} at least 1, and decay_steps={decay_steps} "
            f"between 0 and total={total}"
        )
    if decay_steps == 0:
        return lr
    fallen = step // every * every - (total - decay_steps)
    if step >= total:  # also where total is no multiple of every
        fallen = decay_steps
    return lr * (1 - min(max(fallen / decay_steps, 0.0), 1.0))


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace gradients by their means over all processes, all of which have to call; alone it does nothing.

    Args:
        parameters: the same ones in the same order everywhere; those without a gradient are passed over.

    Example:
        >>> average_gradients(nn.Linear(2, 1).parameters())
    """
    if not in_company():
        return
    grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not grads:
        return
    flat = torch.cat([grad.flatten() for grad in grads])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for grad, mean in zip(grads, flat.split([grad.numel() for grad in grads]), strict=True):
        grad.copy_(mean.view_as(grad))


@contextmanager
def without_gradients(module: nn.Module) -> Iterator[None]:
    """While open, what is computed passes gradients on to inputs but not to the parameters of a module.

    Args:
        module: its parameters take gradients again afterwards, as far as they did before.

    Example:
        >>> layer, x = nn.Linear(2, 1), torch.zeros(1, 2, requires_grad=True)
        >>> with without_gradients(layer):
        ...     layer(x).sum().backward()
        >>> layer.weight.grad is None, x.grad is None
        (True, False)
    """
    taking = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in taking:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in taking:
            parameter.requires_grad_(True)


def _descend(loss: Tensor, optimizer: Steps, network: nn.Module) -> None:
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    # not loss.backward(): DDP, around a module that has both networks, would wait for gradients of the other one
    gradients = torch.autograd.grad(loss, parameters)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    average_gradients(parameters)
    optimizer.step()
    optimizer.zero_grad()


def _over_processes(mean: Tensor, count: Tensor) -> Tensor:
    """The mean over all processes' rows; the mean over processes of its gradient is the gradient of that mean."""
    if not in_company():
        return mean
    total = mean * count
    sums = torch.stack([total.detach(), count.to(total.dtype)])
    dist.all_reduce(sums)
    count = sums[1].clamp(min=1)
    return sums[0] / count + dist.get_world_size() * (total - total.detach()) / count


def _parts_detached(terms: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value if name == "loss" else value.detach() for name, value in terms.items()}


def _odd_one(camera: Tensor, num_cameras: int) -> int:
    return int(camera[(camera < 0) | (camera >= num_cameras)][0])
