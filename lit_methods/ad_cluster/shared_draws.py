"""Draws for a batch that several processes share: each gets what it would have in the batch of one process."""

import torch
from torch import Tensor

from lit_methods.ad_cluster.camera_translation import draw_alpha, draw_targets
from lit_methods.functional.processes import gather_rows


def drawn(camid: Tensor, *key: int) -> tuple[Tensor, Tensor]:
    """This process's target cameras and shares for the penalty, as one process would draw them for the whole batch.

    Args:
        camid: cameras of this process's pictures, (B,) int64: each process has every so many-th of the batch.
        key: whole numbers that say which batch it is.

    Example:
        >>> target, alpha = drawn(torch.tensor([0, 1, 2]), 0, 7)
        >>> sorted(target.tolist()), alpha.shape
        ([0, 1, 2], torch.Size([3]))
    """
    everyone = gather_rows(camid)
    processes = len(everyone) // len(camid)
    whole = everyone.view(processes, len(camid)).T.flatten()  # the order of the batch of one process
    rank = torch.distributed.get_rank() if processes > 1 else 0
    alpha = draw_alpha(len(whole), *key).to(camid.device)
    return draw_targets(whole, *key)[rank::processes], alpha[rank::processes]
