"""Which class a checkpoint belongs to: the one to build from it, and the one that may go on with it."""

from typing import Any

from lit_methods.checkpoint_io import read_checkpoint
from lit_methods.cli.classes import signature
from lit_methods.contract import checkpoint_class


def class_in(path: str) -> type | None:
    """The class that wrote a checkpoint, before the parser is built; what is wrong with the file shows later."""
    try:
        return checkpoint_class(read_checkpoint(path))
    except (ValueError, OSError):
        return None


def class_to_load(path: str, named: type | None) -> Any:
    """The class that a checkpoint is loaded with.

    Args:
        path: the checkpoint.
        named: the class that the recipe or ``--model`` names.

    Raises:
        ValueError: the checkpoint was written by a method of this package, and ``named`` is of another one; or nothing
            says which class it is.
    """
    checkpoint = read_checkpoint(path)
    written_by = _written_by(checkpoint)
    if named is not None and not written_by.startswith("lit_methods."):
        return named
    module_class = checkpoint_class(checkpoint)  # never imports from outside this package
    if named is not None and not issubclass(named, module_class):
        raise ValueError(
            f"ckpt_path={path!r} was written by {written_by}, but the recipe is one of {named.__name__}: name one of "
            "that method"
        )
    return module_class


def check_resumable(path: str, module_class: type) -> None:
    """A run goes on with the class that began it; names alone are compared, since files of code may move.

    Raises:
        ValueError: another class wrote the checkpoint, or it holds weights alone.
    """
    checkpoint = read_checkpoint(path)
    starts = "base_checkpoint" in signature(module_class)
    start = "; to start from its weights: --model.base_checkpoint" if starts else ""
    written_by = _written_by(checkpoint)
    if written_by and written_by.rpartition(".")[2] != module_class.__name__:
        raise ValueError(
            f"ckpt_path={path!r} was written by {written_by}, and a run goes on with the class that began it, "
            f"not with {module_class.__name__}{start}"
        )
    if "optimizer_states" not in checkpoint:
        raise ValueError(f"ckpt_path={path!r} holds weights alone, from which no run goes on{start}")


def _written_by(checkpoint: dict[str, Any]) -> str:
    return str(checkpoint.get("lit_methods", {}).get("class", ""))
