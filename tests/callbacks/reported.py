"""What a callback that reports at the end of a test hands to the report."""

import csv

from callbacks import RunReport


def run_hooks(callback, trainer, module, batches, key):
    """The hooks of a test, as the Trainer calls them, with pairs of a batch and what the step found, under its key."""
    callback.on_test_start(trainer, module)
    for number, (batch, found) in enumerate(batches):
        module.figures["test"].update(batch, found)
        callback.on_test_batch_end(trainer, module, {key: found}, batch, number)
    callback.on_test_epoch_end(trainer, module)
    callback.on_test_end(trainer, module)
    return callback


def drawn_figures(monkeypatch, user, *draws):
    """What is drawn from here on, under its key, although the quick trainer draws nothing.

    Args:
        monkeypatch: of the test.
        user: the module that imports the functions below.
        draws: functions that give figures.
    """
    drawn = {}
    for draw in draws:
        monkeypatch.setattr(user, draw.__name__, draw)
    monkeypatch.setattr(RunReport, "figure", lambda self, trainer, key, figure: drawn.update({key: figure}))
    return drawn


def table(folder, name):
    """The rows of a table of a test."""
    with (folder / "tables" / f"test_{name}.csv").open() as file:
        return list(csv.DictReader(file))
