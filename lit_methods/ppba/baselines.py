"""What PPBA is compared with: gradient estimates (NES, Bandits) and one coefficient at a time (SimBA-DCT)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_methods.ppba.attack import Attack, check_positive
from lit_methods.ppba.functional import LowFrequencyProjection, clip_l2
from lit_methods.ppba.oracle import Oracle
from lit_methods.ppba.streams import normal_draws, uniform_draws
from lit_methods.ppba.walk import CoefficientWalk, Step, Walk, some

TINY = 1e-8  # the norm of a zero vector


def unit(vectors: Tensor) -> Tensor:
    """Images of L2 norm one; zero stays zero.

    Args:
        vectors: ``(..., C, S, S)``, any scale.

    Returns:
        the same shape.

    Example:
        >>> unit(torch.full((1, 1, 2, 2), 3.0)).flatten()
        tensor([0.5000, 0.5000, 0.5000, 0.5000])
    """
    norm = vectors.flatten(-3).norm(dim=-1)[..., None, None, None]
    return vectors / torch.where(norm > 0, norm, TINY)


class NES(Attack):
    """Natural evolution strategies: a gradient from antithetic pairs of random directions.

    Args:
        projection: search among its coefficients; ``None`` searches all pixels.
        eps: radius of the L2 ball around the image.
        max_queries: per image; the clean image and the test for success after each step are not counted.
        samples: pairs of queries per step.
        fd_eta: how far from the image the pairs are, per unit direction.
        lr: length of a step, as an L2 norm.
        targeted: whether ``labels`` are the classes to reach.
        seed: of the random streams, together with the image ids.
        pad_batch: as in ``Attack``.

    Raises:
        ValueError: an argument is out of range, or the budget is smaller than one step.

    Source:
        Ilyas et al., arXiv 1804.08598, with the constants of the Bandits authors' code. Candidates are not clipped to
        [0, 1], as there. With a projection: PPBA's plug-in, whose constants are not published; ours are the same.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3))
        >>> images = torch.rand(2, 3, 2, 2)
        >>> result = NES(eps=2.0, max_queries=500)(model, images, model(images).argmax(1))
        >>> set(result.queries.remainder(10).tolist())
        {0}
    """

    def __init__(
        self,
        projection: LowFrequencyProjection | None = None,
        *,
        eps: float = 5.0,
        max_queries: int = 10000,
        samples: int = 5,
        fd_eta: float = 0.1,
        lr: float = 0.3,
        targeted: bool = False,
        seed: int = 0,
        pad_batch: bool | int = False,
    ) -> None:
        check_positive(samples=samples, fd_eta=fd_eta, lr=lr)
        self.samples = samples
        super().__init__(eps=eps, max_queries=max_queries, targeted=targeted, seed=seed, pad_batch=pad_batch)
        self.projection, self.fd_eta, self.lr = projection, fd_eta, lr

    @property
    def step_queries(self) -> int:
        """Two per pair."""
        return 2 * self.samples

    def walk(self, oracle: Oracle, images: Tensor, rows: Tensor, loss: Tensor) -> Walk:
        """The images themselves."""
        return _NESWalk(self, oracle, images, rows)


class Bandits(Attack):
    """Bandits with time and data priors: a gradient estimate that is carried along and corrected.

    Args:
        projection: search among its coefficients; ``None`` searches a coarse image that is enlarged.
        tile: side of the coarse image, without a projection.
        eps: radius of the L2 ball around the image.
        max_queries: per image; the clean image and the test for success after each step are not counted.
        fd_eta: how far from the image the two queries are.
        exploration: how far they are from the prior.
        online_lr: step of the prior.
        lr: length of an image's step, as an L2 norm.
        targeted: whether ``labels`` are the classes to reach.
        seed: of the random streams, together with the image ids.
        pad_batch: as in ``Attack``.

    Raises:
        ValueError: an argument is out of range, or the budget is smaller than one step.

    Source:
        Ilyas, Engstrom and Madry, arXiv 1807.07978, L2 version with the constants of the authors' code. Candidates are
        not clipped to [0, 1], as there. With a projection: PPBA's plug-in, whose constants are not published; ours are
        the same.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 3))
        >>> images = torch.rand(2, 3, 4, 4)
        >>> result = Bandits(tile=2, eps=2.0, max_queries=500)(model, images, model(images).argmax(1))
        >>> bool((result.l2 <= 2.0).all()), set(result.queries.remainder(2).tolist())
        (True, {0})
    """

    def __init__(
        self,
        projection: LowFrequencyProjection | None = None,
        *,
        tile: int = 50,
        eps: float = 5.0,
        max_queries: int = 10000,
        fd_eta: float = 0.01,
        exploration: float = 0.01,
        online_lr: float = 0.1,
        lr: float = 0.5,
        targeted: bool = False,
        seed: int = 0,
        pad_batch: bool | int = False,
    ) -> None:
        check_positive(tile=tile, fd_eta=fd_eta, exploration=exploration, online_lr=online_lr, lr=lr)
        super().__init__(eps=eps, max_queries=max_queries, targeted=targeted, seed=seed, pad_batch=pad_batch)
        self.projection, self.tile, self.fd_eta = projection, tile, fd_eta
        self.exploration, self.online_lr, self.lr = exploration, online_lr, lr

    @property
    def step_queries(self) -> int:
        """Two."""
        return 2

    def walk(self, oracle: Oracle, images: Tensor, rows: Tensor, loss: Tensor) -> Walk:
        """The images themselves, and a prior of zero."""
        if self.projection is None and self.tile > images.shape[2]:
            raise ValueError(
                f"tile={self.tile} is the side of a coarse image, and the images have {images.shape[2]}; give less"
            )
        return _BanditsWalk(self, oracle, images, rows)


class _GradientWalk(Walk):
    """What both share: steps along a direction, the ball, and a test for success that is not counted."""

    per_image = (*Walk.per_image, "now", "norms")

    def __init__(self, attack: NES | Bandits, oracle: Oracle, images: Tensor, rows: Tensor, pixels: int) -> None:
        super().__init__(oracle, images, rows)
        self.eps, self.lr = attack.eps, attack.lr
        self.projection = None if attack.projection is None else attack.projection.like(images)
        self.dim = pixels if self.projection is None else self.projection.dim  # of a search vector
        self.now, self.norms = images, images.new_zeros(len(images))

    def ask_around(self, offsets: Tensor) -> Tensor:
        """Losses (k, n) of the images moved by ``offsets`` (k, n, C, S, S)."""
        return self.oracle.ask(
            self.rows, lambda part: some(self.now, part)[:, None] + some(offsets, part), offsets.shape[1]
        )[0]

    def move(self, direction: Tensor, loss: Tensor) -> Step:
        """Take a step along ``direction`` (k, C, S, S), down the loss, and look where that leads."""
        sane = ~loss.isnan().any(1)  # the others stay where they are, and are not asked about
        direction = direction.where(sane[:, None, None, None], 0)
        delta = self.now - self.lr * unit(direction) - self.images
        delta = clip_l2(delta.flatten(1), self.eps).view_as(delta)
        self.norms = delta.flatten(1).norm(dim=1)
        self.now = (self.images + delta).clamp(0, 1)
        now, reached, pred = self.now[sane], torch.full_like(loss[:, 0], math.nan), torch.full_like(self.rows, -1)
        answers = self.oracle.ask(self.rows[sane], lambda part: now[part, None], counts_as="check")
        reached[sane], pred[sane] = (answer.squeeze(1) for answer in answers)
        solved = self.oracle.goal.reached(reached, pred, self.rows)
        return Step(loss.amin(1).masked_fill(reached.isnan(), math.nan), sane, solved, pred)

    def current(self, which: Tensor) -> tuple[Tensor, Tensor]:
        return self.now[which], self.norms[which]


class _NESWalk(_GradientWalk):
    def __init__(self, attack: NES, oracle: Oracle, images: Tensor, rows: Tensor) -> None:
        super().__init__(attack, oracle, images, rows, pixels=images.shape[1:].numel())
        self.attack = attack

    def draw(self, seed: int, ids: Tensor, number: int) -> Tensor:
        """Standard normal, (k, samples, dim)."""
        return normal_draws(seed, ids, number, (self.attack.samples, self.dim))

    def up(self, vectors: Tensor) -> Tensor:
        """Images (..., C, S, S) of search vectors (..., dim)."""
        return vectors.unflatten(-1, self.images.shape[1:]) if self.projection is None else self.projection(vectors)

    def step(self, draws: Tensor) -> Step:
        directions = (draws / math.sqrt(draws.shape[-1])).to(self.now.dtype)
        offsets = self.attack.fd_eta * self.up(directions)
        loss = self.ask_around(torch.cat([offsets, -offsets], 1))
        plus, minus = loss.chunk(2, dim=1)
        slopes = ((plus - minus) / self.attack.fd_eta).to(self.now.dtype)
        return self.move(self.up((slopes[..., None] * directions).sum(1)), loss)


class _BanditsWalk(_GradientWalk):
    per_image = (*_GradientWalk.per_image, "prior")

    def __init__(self, attack: Bandits, oracle: Oracle, images: Tensor, rows: Tensor) -> None:
        super().__init__(attack, oracle, images, rows, pixels=images.shape[1] * attack.tile**2)
        self.attack = attack
        self.prior = images.new_zeros(len(images), self.dim)

    def draw(self, seed: int, ids: Tensor, number: int) -> Tensor:
        """Standard normal, (k, dim)."""
        return normal_draws(seed, ids, number, (self.dim,))

    def up(self, vectors: Tensor) -> Tensor:
        """Images (k, C, S, S) of search vectors (k, dim)."""
        if self.projection is not None:
            return self.projection(vectors)
        coarse = vectors.view(len(vectors), -1, self.attack.tile, self.attack.tile)
        return F.interpolate(coarse, size=self.images.shape[2:], mode="nearest")

    def step(self, draws: Tensor) -> Step:
        attack = self.attack
        noise = (attack.exploration * draws / math.sqrt(draws.shape[-1])).to(self.now.dtype)
        directions = torch.stack([unit(self.up(self.prior + noise)), unit(self.up(self.prior - noise))], 1)
        loss = self.ask_around(attack.fd_eta * directions)
        # the prior points to where the loss of the true class rises, as in the paper: what falls here is its negative
        rise = ((loss[:, 1:] - loss[:, :1]) / (attack.fd_eta * attack.exploration)).to(self.now.dtype)
        self.prior = self.prior + attack.online_lr * rise * noise
        return self.move(-self.up(self.prior), loss)


class SimBA(Attack):
    """SimBA-DCT: one coefficient at a time, up or else down, in random order.

    Args:
        projection: the coefficients that are tried; when all have been, they come again in another order.
        step: how much a coefficient changes.
        eps: radius of the L2 ball around the image.
        max_queries: per image, the clean one included.
        targeted: whether ``labels`` are the classes to reach.
        seed: of the random streams, together with the image ids.
        pad_batch: as in ``Attack``.

    Raises:
        ValueError: an argument is out of range, or the budget is smaller than one step.

    Source:
        Guo et al., arXiv 1905.07121. Ours: the ball (a candidate outside is pulled back), and the logarithm of the
        class's probability in the place of the probability, which falls and rises with it.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 3))
        >>> images = torch.rand(2, 3, 4, 4)
        >>> projection = LowFrequencyProjection(torch.arange(48), 4)
        >>> bool((SimBA(projection, max_queries=100)(model, images, model(images).argmax(1)).l2 <= 5.0).all())
        True
    """

    first_queries = 1

    def __init__(
        self,
        projection: LowFrequencyProjection,
        *,
        step: float = 0.2,
        eps: float = 5.0,
        max_queries: int = 2000,
        targeted: bool = False,
        seed: int = 0,
        pad_batch: bool | int = False,
    ) -> None:
        check_positive(step=step)
        super().__init__(eps=eps, max_queries=max_queries, targeted=targeted, seed=seed, pad_batch=pad_batch)
        self.projection, self.step = projection, step

    @property
    def step_queries(self) -> int:
        """One: the other sign is the next iteration's."""
        return 1

    def walk(self, oracle: Oracle, images: Tensor, rows: Tensor, loss: Tensor) -> Walk:
        """No perturbation yet."""
        return _SimBAWalk(self, oracle, images, rows, loss)


class _SimBAWalk(CoefficientWalk):
    per_image = (*CoefficientWalk.per_image, "untried", "chosen", "sign")

    def __init__(self, attack: SimBA, oracle: Oracle, images: Tensor, rows: Tensor, loss: Tensor) -> None:
        super().__init__(attack.projection, oracle, images, rows, loss)
        self.attack = attack
        self.untried = torch.ones_like(self.z, dtype=torch.bool)
        self.chosen = torch.zeros_like(rows)
        self.sign = torch.ones_like(rows)  # +1: a new coefficient is due; -1: the other direction of the last one

    def draw(self, seed: int, ids: Tensor, number: int) -> Tensor:
        """Uniform, (k, 1): which of the coefficients that were not tried yet comes next."""
        return uniform_draws(seed, ids, number, (1,))

    def step(self, draws: Tensor) -> Step:
        fresh = self.sign > 0
        self.chosen = torch.where(fresh, self._choose(draws, fresh), self.chosen)
        self.untried[torch.arange(len(self.rows)), self.chosen] = False
        change = self.attack.step * self.sign[:, None].to(self.z)
        candidates = clip_l2(self.z.scatter_add(1, self.chosen[:, None], change), self.attack.eps)
        loss, pred = self.ask(candidates[:, None])
        solved = self.oracle.goal.reached(loss, pred, self.rows).squeeze(1)
        loss, pred = loss.squeeze(1), pred.squeeze(1)
        accepted = (loss < self.loss) | solved
        self.z = torch.where(accepted[:, None], candidates, self.z)
        self.loss = torch.where(accepted, loss, self.loss)
        self.sign = torch.where(accepted | ~fresh, 1, -1)
        return Step(loss, accepted, solved, pred)

    def _choose(self, draws: Tensor, fresh: Tensor) -> Tensor:
        """(k,) coefficients; where one is due and all have been tried, all may come again."""
        self.untried |= (fresh & ~self.untried.any(1))[:, None]
        counts = self.untried.cumsum(1)
        return (counts > (draws.to(counts.device) * counts[:, -1:]).floor()).to(torch.uint8).argmax(1)
