"""Where a run is stopped to be resumed: places that differ in what the checkpoint must bring back."""

import pytest

STEPS = 4  # batches per epoch
AT_EPOCH = 2  # pruning, before the epoch's first batch
STOPS = {
    "middle of an epoch": STEPS - 1,
    "last batch of an epoch": STEPS,
    "right before pruning": AT_EPOCH * STEPS,
    "right after pruning": AT_EPOCH * STEPS + 1,
    "in fine-tuning": (AT_EPOCH + 1) * STEPS + 2,
}
EVERY_STOP = pytest.mark.parametrize("step", [pytest.param(step, id=name) for name, step in STOPS.items()])


def stops_of_two_epochs(steps: int) -> pytest.MarkDecorator:
    """A ``step`` to go on from in each epoch, and between them; the last one in the default run.

    Args:
        steps: of an epoch.
    """
    return pytest.mark.parametrize(
        "step",
        [
            pytest.param(1, id="in the first epoch", marks=pytest.mark.slow),
            pytest.param(steps, id="in the last batch of an epoch", marks=pytest.mark.slow),
            pytest.param(steps + 1, id="in the second epoch"),
        ],
    )
