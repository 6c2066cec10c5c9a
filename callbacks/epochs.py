"""Which validations of a run are those of every so many epochs."""

from lightning.pytorch import Trainer


def epoch_is_due(trainer: Trainer, every_n_epochs: int) -> bool:
    """Whether the validation of this epoch is one of every so many epochs, the first one included.

    Where not every epoch has a validation, that of the next epoch which has one stands in for an epoch without.

    Args:
        trainer: while it validates.
        every_n_epochs: 1 is all of them.

    Example:
        >>> from types import SimpleNamespace
        >>> epochs = [SimpleNamespace(current_epoch=epoch, check_val_every_n_epoch=2) for epoch in (1, 3, 5, 7)]
        >>> [epoch_is_due(epoch, 4) for epoch in epochs]
        [True, False, True, False]
    """
    since_the_last = trainer.check_val_every_n_epoch or 1
    return trainer.current_epoch % every_n_epochs < since_the_last
