"""The score of a filter as a metric: the mean rank of its feature maps."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lit_methods.functional.feature_rank import feature_map_rank


class RankScore(Metric):
    """Mean rank of the feature maps of each channel, over images and processes.

    The sums are exact, so the score does not depend on how images are dealt to batches or processes; the official
    code keeps a running mean in float32.

    Args:
        num_channels: channels of the maps.
        kwargs: of ``torchmetrics.Metric``.

    Raises:
        ValueError: from ``update``: maps with another number of channels; from ``compute``: no image was seen.

    Source:
        HRank, arXiv 2002.10179: score of a filter, before its objective.

    Example:
        >>> score = RankScore(2)
        >>> score.update(torch.eye(3).expand(4, 2, 3, 3))
        >>> score.compute()
        tensor([3., 3.], dtype=torch.float64)
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False
    rank_sum: Tensor
    images: Tensor

    def __init__(self, num_channels: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("rank_sum", torch.zeros(num_channels, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("images", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, maps: Tensor) -> None:
        """Add a batch of maps (N, C, H, W)."""
        if maps.ndim != 4 or maps.shape[1] != len(self.rank_sum):
            raise ValueError(f"maps must be (N, {len(self.rank_sum)}, H, W), got {tuple(maps.shape)}")
        self.rank_sum += feature_map_rank(maps).sum(0)
        self.images += len(maps)

    def compute(self) -> Tensor:
        """(C,) float64 mean rank."""
        if self.images == 0:
            raise ValueError("RankScore has seen no image; call update with at least one before compute")
        return self.rank_sum / self.images
