"""What Lightning says that nobody can act on."""

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_FILTERED = (
    r"Checkpoint directory .* exists and is not empty",  # a run that goes on in place means to
    r".*does not have many workers",  # the recipes choose their workers
    r".*GPU available but not used",  # the recipe or the user chose the CPU
    r".*LeafSpec",  # Lightning's own use of a deprecated name of torch
    r".*treespec, LeafSpec",
    r".*is an instance of `nn\.Module` and is already saved during checkpointing",  # classifier objects given in code
    r"[\s\S]*(was deprecated in v4\.49\.0|only one JsonargparseDeprecationWarning)",  # Lightning's use of jsonargparse
    r"The number of training batches .* is smaller than the logging interval",  # epoch values are logged all the same
    r"Found \d+ module\(s\) in eval mode",  # a frozen network
    r"Using ModelCheckpoint with manual optimization and every_n_train_steps",  # weights after the step are wanted
    r"# The axis name: .* will not be used, since it shares",  # two inputs of an exported graph share their batch
    r"Discarding init_args:",  # another class on the command line than in the recipe: that was the wish
)


def _one_line(message: Warning | str, *_: object) -> str:
    return f"warning: {' '.join(str(message).split())}\n"


@contextmanager
def quiet() -> Iterator[None]:
    """Filter the warnings above, and tell others on one line, without the place in the code.

    Without a terminal, Lightning's notices (devices, tips, seed) are filtered too.
    """
    wanted = {"matplotlib": logging.ERROR}  # where the home directory is read-only it says so at length
    if not sys.stderr.isatty():
        wanted |= dict.fromkeys(("lightning.pytorch", "lightning.fabric", "lightning"), logging.WARNING)
    levels = {name: logging.getLogger(name).level for name in wanted}
    layout = warnings.formatwarning
    for name, level in wanted.items():
        logging.getLogger(name).setLevel(level)
    warnings.formatwarning = _one_line  # type: ignore[assignment]
    try:
        with warnings.catch_warnings():
            for pattern in _FILTERED:
                warnings.filterwarnings("ignore", pattern)
            yield
    finally:
        warnings.formatwarning = layout
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
