"""A progress bar for loops outside the Trainer's own: rank passes, attacks, searches."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

from lightning.pytorch import Trainer
from rich.console import Console
from rich.progress import track

T = TypeVar("T")


def progress(trainer: Trainer, items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Iterate with a bar on the first process's terminal; silent elsewhere, in files and where the Trainer has no bar.

    Args:
        trainer: the running trainer.
        items: what to go through.
        description: what is being done, such as ``"feature map ranks"``.
        total: how many items; ``None`` asks ``len(items)``.
    """
    console = Console()
    shown = trainer.is_global_zero and console.is_terminal and trainer.progress_bar_callback is not None
    if not shown:  # a disabled bar of rich 14.1 still ends its line
        return iter(items)
    return iter(track(items, description, total=total, console=console, transient=True))
