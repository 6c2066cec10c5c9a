"""``--safe``: a configuration of unknown origin may name classes of known packages alone.

A configuration is code: ``class_path: anything.importable`` is imported and called. Two guards stand before the first
import. The pairs that the user gave name the offender with its key; jsonargparse's own policy covers what flat pairs
cannot show (short forms, configurations inside configurations, functions given as values).
"""

from jsonargparse import set_parsing_settings

from lit_methods.cli.given import Given

OPTION = "--safe"
ALLOWED = ("lit_methods", "datamodules", "callbacks", "lightning", "torch", "torchmetrics", "torchvision")
# Below the allowed ones, what loads, builds or starts foreign code itself.
_DENIED = (
    "torch.hub",
    "torch.jit",
    "torch.load",
    "torch.multiprocessing",
    "torch.ops",
    "torch.package",
    "torch.serialization",
    "torch.testing",
    "torch.utils.bundled_inputs",
    "torch.utils.cpp_extension",
    "lightning.app",
    "lightning.pytorch.cli",
)


def allow_known_packages(pairs: list[Given]) -> None:
    """Refuse every class path outside :data:`ALLOWED`, now and for the rest of this process.

    Only the command line can ask for this, and no configuration can take it back.

    Raises:
        ValueError: a class path of another package.

    Example:
        >>> _check([Given("trainer.callbacks[0].class_path", "os.system", "their.yaml")])
        Traceback (most recent call last):
            ...
        ValueError: trainer.callbacks[0].class_path='os.system': with --safe classes and functions come from ...
    """
    _check(pairs)
    set_parsing_settings(import_path_denylist=["*", *_DENIED], import_path_allowlist=list(ALLOWED))


def _check(pairs: list[Given]) -> None:
    for pair in pairs:
        named = pair.key.endswith("class_path") or pair.key in ("model", "data")
        if named and isinstance(pair.value, str) and "." in pair.value and not _known(pair.value):
            raise ValueError(f"{pair.key}={pair.value!r}: {refusal()}")


def refusal() -> str:
    """What is said of a class path from elsewhere."""
    return f"with {OPTION} classes and functions come from {', '.join(ALLOWED)}, save those that run foreign code"


def _known(path: str) -> bool:
    inside = (f"{path}.".startswith(f"{name}.") for name in ALLOWED)
    return any(inside) and not any(f"{path}.".startswith(f"{name}.") for name in _DENIED)
