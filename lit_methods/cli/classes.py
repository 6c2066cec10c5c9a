"""Classes that a configuration names, by dotted path or by the short name of one of this project."""

from collections.abc import Iterable
from importlib import import_module
from typing import Any

from jsonargparse import ArgumentParser
from lightning.pytorch import Callback, LightningDataModule, LightningModule

from lit_methods.cli.given import Given

PACKAGES = ("lit_methods", "datamodules", "callbacks")  # their lazily imported names count as short class names
BASES = {"model": LightningModule, "data": LightningDataModule, "trainer.callbacks": Callback}


def signature(cls: type) -> dict[str, Any]:
    """Argument names of a class with their defaults, those behind ``**kwargs`` included.

    Example:
        >>> class Base:
        ...     def __init__(self, lr: float = 0.1): ...
        >>> class Method(Base):
        ...     def __init__(self, rate: float = 0.5, **kwargs): super().__init__(**kwargs)
        >>> signature(Base)
        {'lr': 0.1}
    """
    parser = ArgumentParser(exit_on_error=False)
    names = parser.add_class_arguments(cls, fail_untyped=False)
    defaults = parser.get_defaults()
    return {name: defaults.get(name) for name in names}


def find_class(path: str) -> type | None:
    """The class of a dotted path, or of a short name of this project; ``None`` where there is none."""
    home, _, name = path.rpartition(".")
    for package in (home,) if home else PACKAGES:
        try:
            found = getattr(import_module(package), name, None)
        except ImportError:
            continue
        if isinstance(found, type):
            return found
    return None


def offered(key: str) -> dict[str, type]:
    """This project's classes that may stand under a key such as ``"model"``, by short name; imports all of them.

    Example:
        >>> list(offered("data"))[:4]
        ['CIFARDataModule', 'DukeMTMCDataModule', 'FDDBDataModule', 'FaceFolderDataModule']
    """
    names = [name for package in PACKAGES for name in import_module(package).__all__]
    classes = {name: found for name in names if (found := find_class(name))}
    return {name: found for name, found in classes.items() if issubclass(found, BASES.get(key, ()))}


def import_short_names(pairs: Iterable[Given]) -> None:
    """Import what short class names of this project stand for: jsonargparse finds only what is imported.

    Raises:
        ValueError: the class is there, but its module cannot be imported.
    """
    for pair in pairs:
        for package in map(import_module, PACKAGES):
            if isinstance(pair.value, str) and pair.value in getattr(package, "__all__", ()):
                try:
                    getattr(package, pair.value)
                except ImportError as ex:
                    raise ValueError(f"{pair.key}={pair.value!r}: {ex}") from ex


def known_classes(key: str) -> set[type]:
    """The imported classes that may stand under a key such as ``"model"``; none for a key that takes no class."""
    base = BASES.get(key)
    return {c for c in _subclasses(base) if not c.__name__.startswith("_")} if base else set()


def _subclasses(cls: type) -> set[type]:
    direct: set[type] = set(cls.__subclasses__())
    return direct.union(*map(_subclasses, direct))
