"""FilterSketch: the classifier that ``FilterSketchPruning`` narrows."""

from lit_methods.base_checkpoint import CheckpointStart


class FilterSketch(CheckpointStart):
    """A CNN whose layers are shrunk by matrix sketches of their weights (FilterSketch, arXiv 2001.08514).

    The module trains and fine-tunes; *how narrow* it becomes and *when* is the business of the callback
    ``callbacks.FilterSketchPruning``. Arguments, batch, logs and predictions are those of ``ImageClassifier``; a
    checkpoint carries its widths, so ``FilterSketch.load_from_checkpoint(path)`` rebuilds the small network by itself.

    Example:
        >>> FilterSketch("resnet20", plan={"arch": "resnet20", "mid": {"layer1.0.conv1": 9}}).model.layer1[0].conv2
        Conv2d(9, 16, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), bias=False)
    """
