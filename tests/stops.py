"""Where a run is stopped to be resumed: places that differ in what the checkpoint must bring back."""

import pytest

STEPS = 4  # batches per epoch
AT_EPOCH = 2  # pruning, before the epoch's first batch
EVERY_STOP = pytest.mark.parametrize(
    "step",
    [
        pytest.param(STEPS - 1, id="middle of an epoch"),
        pytest.param(STEPS, id="last batch of an epoch"),
        pytest.param(AT_EPOCH * STEPS, id="right before pruning"),
        pytest.param(AT_EPOCH * STEPS + 1, id="right after pruning"),
        pytest.param((AT_EPOCH + 1) * STEPS + 2, id="in fine-tuning"),
    ],
)
