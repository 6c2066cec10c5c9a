"""How well an attack does: the share of images that it turns, and the queries that it spends on them."""

from abc import abstractmethod
from typing import Any, Literal, Self

import torch
from torch import Tensor
from torchmetrics import Metric


class ExactMetric(Metric):
    """Base of metrics whose states keep their type: no precision of the module around them touches them.

    Args:
        kwargs: of ``torchmetrics.Metric``.
    """

    is_differentiable = False
    full_state_update = False

    def set_dtype(self, dst_type: str | torch.dtype) -> Self:
        """Nothing."""
        return self


class AttackMetric(ExactMetric):
    """Base of the metrics here: ``update`` takes one row per attacked image, whole numbers are all that is kept.

    Whole numbers add up exactly in any order, and no conversion of the module around them (``half()``,
    ``to(torch.bfloat16)``, Lightning's precision) touches them. Subclasses name their ``counts`` and implement
    :meth:`count` and ``compute``.

    Args:
        max_queries: the budget of an image, at least 1; a success that took more counts as a failure.
        kwargs: of ``torchmetrics.Metric``.

    Raises:
        ValueError: ``max_queries`` is below 1.
    """

    counts: tuple[str, ...] = ()  # names of states: int64 scalars that start at 0 and are summed over processes

    def __init__(self, max_queries: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if max_queries < 1:
            raise ValueError(f"max_queries must be at least 1, the first look at the image, got {max_queries}")
        self.max_queries = max_queries
        for name in self.counts:
            self.add_state(name, torch.zeros([], dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, success: Tensor, queries: Tensor) -> None:
        """Add images, possibly none.

        Args:
            success: (N,) bool, or int with 0 for failures.
            queries: (N,) int of 0 or more, what each image cost.

        Raises:
            ValueError: not as many queries as images, or not whole numbers of 0 or more.
        """
        if success.ndim != 1 or success.shape != queries.shape:
            raise ValueError(
                f"success and queries must be (N,) each, one entry per image, got {tuple(success.shape)} and "
                f"{tuple(queries.shape)}"
            )
        if queries.is_floating_point():
            raise ValueError(f"queries must be whole numbers, got {queries.dtype}")
        if (queries < 0).any():
            raise ValueError(f"queries must be 0 or more, got {queries.min()}")
        queries = queries.long()
        self.count(success.bool() & (queries <= self.max_queries), queries)

    @abstractmethod
    def count(self, success: Tensor, queries: Tensor) -> None:
        """Add images, (N,) bool and (N,) int64, to the states; ``success`` is within the budget."""


class AttackSuccessRate(AttackMetric):
    """Share of the attacked images that were turned within the budget; float64 in [0, 1], NaN without any image.

    Args:
        max_queries: the budget of an image; a success that took more counts as a failure.
        kwargs: of ``torchmetrics.Metric``.

    Source:
        PPBA, arXiv 2005.03837, and its official code, which tries 2,000 steps after the first query and calls a
        success at query 2,001 a failure.

    Example:
        >>> rate = AttackSuccessRate(max_queries=2000)
        >>> rate.update(torch.tensor([True, True, False]), torch.tensor([12, 2001, 2000]))
        >>> rate.compute()
        tensor(0.3333, dtype=torch.float64)
    """

    higher_is_better = True
    counts = ("successes", "images")
    successes: Tensor
    images: Tensor

    def count(self, success: Tensor, queries: Tensor) -> None:
        """Count them."""
        self.successes += success.sum()
        self.images += len(success)

    def compute(self) -> Tensor:
        """Scalar float64."""
        return self.successes.double() / self.images


class MeanQueries(AttackMetric):
    """Mean number of queries of an image, float64.

    Args:
        on: ``"success"`` is the mean over the images that were turned within the budget, NaN without any; ``"all"`` is
            the plain mean of what was spent, failures included, NaN without any image.
        max_queries: the budget of an image; a success that took more counts as a failure.
        kwargs: of ``torchmetrics.Metric``.

    Raises:
        ValueError: ``on`` is neither; see also :class:`AttackMetric`.

    Source:
        PPBA, arXiv 2005.03837: average queries.

    Example:
        >>> for on in ("success", "all"):
        ...     queries = MeanQueries(on, max_queries=2000)
        ...     queries.update(torch.tensor([True, True, False]), torch.tensor([12, 2001, 2000]))
        ...     print(float(queries.compute()))
        12.0
        1337.6666666666667
    """

    higher_is_better = False
    counts = ("spent", "images")
    spent: Tensor
    images: Tensor

    def __init__(self, on: Literal["success", "all"], max_queries: int, **kwargs: Any) -> None:
        super().__init__(max_queries, **kwargs)
        if on not in ("success", "all"):
            raise ValueError(f'on must be "success" (images that were turned) or "all", got {on!r}')
        self.on: str = on

    def count(self, success: Tensor, queries: Tensor) -> None:
        """Add up their queries."""
        chosen = queries[success] if self.on == "success" else queries
        self.spent += chosen.sum()
        self.images += len(chosen)

    def compute(self) -> Tensor:
        """Scalar float64."""
        return self.spent.double() / self.images


class MedianQueries(AttackMetric):
    """Median number of queries of the images that were turned within the budget, float64; NaN without any.

    Of an even number it is the mean of the two in the middle. The state is how many images took 0, 1, ... queries, so
    it is exact, does not grow with the images, and sums over processes, also over one that has seen none.

    Args:
        max_queries: the budget of an image; a success that took more counts as a failure.
        kwargs: of ``torchmetrics.Metric``.

    Source:
        PPBA's papers and code report means alone, which a few hard images decide.

    Example:
        >>> median = MedianQueries(max_queries=2000)
        >>> median.update(torch.tensor([1, 1, 0, 1, 1]), torch.tensor([12, 300, 2000, 15, 2]))
        >>> median.compute()
        tensor(13.5000, dtype=torch.float64)
    """

    higher_is_better = False
    images_at: Tensor

    def __init__(self, max_queries: int, **kwargs: Any) -> None:
        super().__init__(max_queries, **kwargs)
        self.add_state("images_at", torch.zeros(max_queries + 1, dtype=torch.int64), dist_reduce_fx="sum")

    def count(self, success: Tensor, queries: Tensor) -> None:
        """Count those that were turned, by their queries."""
        self.images_at.index_add_(0, queries[success], torch.ones_like(queries[success]))

    def compute(self) -> Tensor:
        """Scalar float64."""
        until = self.images_at.cumsum(0)  # images that took so many queries or fewer
        total = until[-1:]
        if total == 0:
            return torch.full_like(total[0], torch.nan, dtype=torch.float64)
        middle = torch.cat([(total + 1) // 2, total // 2 + 1])  # counted from 1; the same twice where the number is odd
        return torch.searchsorted(until, middle).double().mean()


class SuccessAUC(AttackMetric):
    """Area under the curve of success against queries, divided by the budget; float64, NaN without any image.

    The curve at t is the share of images that were turned by t queries or fewer; the area runs from 0 to
    ``max_queries``. An image that is turned at q adds (max_queries - q) / max_queries, a failure nothing. So 1 would be
    success without a query; times ``max_queries`` it is the raw area.

    Args:
        max_queries: the budget of an image, Q.
        kwargs: of ``torchmetrics.Metric``.

    Source:
        PPBA, arXiv 2005.03837: success curves. The division by Q is ours; how the paper scales its area is not known.

    Example:
        >>> auc = SuccessAUC(max_queries=100)
        >>> auc.update(torch.tensor([True, False]), torch.tensor([20, 100]))
        >>> auc.compute()
        tensor(0.4000, dtype=torch.float64)
    """

    higher_is_better = True
    counts = ("left", "images")
    left: Tensor
    images: Tensor

    def count(self, success: Tensor, queries: Tensor) -> None:
        """Add up what successes have left of their budgets."""
        self.left += (self.max_queries - queries[success]).sum()
        self.images += len(success)

    def compute(self) -> Tensor:
        """Scalar float64."""
        return self.left.double() / (self.max_queries * self.images)


class ImageCount(ExactMetric):
    """How many images are so, a whole number.

    Args:
        kwargs: of ``torchmetrics.Metric``.

    Example:
        >>> count = ImageCount()
        >>> count.update(torch.tensor([True, False, True]))
        >>> count.compute()
        tensor(2)
    """

    number: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("number", torch.zeros([], dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, which: Tensor) -> None:
        """Add images, (N,) bool."""
        self.number += which.sum()

    def compute(self) -> Tensor:
        """The number, int64."""
        return self.number


class MeanDistance(ExactMetric):
    """Mean of some distances, summed in float64; NaN without any.

    Args:
        kwargs: of ``torchmetrics.Metric``.

    Example:
        >>> mean = MeanDistance()
        >>> mean.update(torch.tensor([1.0, 2.0]))
        >>> mean.compute()
        tensor(1.5000, dtype=torch.float64)
    """

    total: Tensor
    number: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("total", torch.zeros([], dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("number", torch.zeros([], dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, distances: Tensor) -> None:
        """Add distances, (N,), possibly none."""
        self.total += distances.double().sum()
        self.number += len(distances)

    def compute(self) -> Tensor:
        """Their mean, float64."""
        return self.total / self.number
