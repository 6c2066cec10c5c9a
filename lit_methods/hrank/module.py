"""HRank: the classifier that ``HRankPruning`` prunes."""

from lit_methods.base_checkpoint import CheckpointStart


class HRank(CheckpointStart):
    """A CNN that is pruned by the rank of its feature maps (HRank, arXiv 2002.10179).

    The module trains and fine-tunes; *what* is removed and *when* is the business of the callback
    ``callbacks.HRankPruning``. Arguments, batch, logs and predictions are those of ``ImageClassifier``; a checkpoint
    carries its pruning plan, so ``HRank.load_from_checkpoint(path)`` rebuilds the small network by itself.

    Example:
        >>> HRank("resnet20", plan={"arch": "resnet20", "keep": {"conv1": [0, 3, 5]}, "residual": "live"}).model.conv1
        Conv2d(3, 3, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), bias=False)
    """
