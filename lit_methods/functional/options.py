"""CommandOptions: options of several classes that one module is made of, beside each other on the command line."""

from typing import Any


class CommandOptions:
    """Base of mixins with options of their own on the command line.

    Each adds its options in ``add_cli_arguments``, and those of the classes behind it by ``super()``.

    Example:
        >>> class Zoom(CommandOptions):
        ...     @classmethod
        ...     def add_cli_arguments(cls, parser, entry):
        ...         super().add_cli_arguments(parser, entry)
        ...         parser.append("zoom")
        >>> class Turn:
        ...     @classmethod
        ...     def add_cli_arguments(cls, parser, entry):
        ...         parser.append("turn")
        >>> class Both(Zoom, Turn):
        ...     pass
        >>> Both.add_cli_arguments(options := [], "predict")
        >>> options
        ['turn', 'zoom']
    """

    @classmethod
    def add_cli_arguments(cls, parser: Any, entry: str) -> None:
        """The options of the classes behind this one, if any has some.

        Args:
            parser: takes them.
            entry: such as ``"predict"``.
        """
        inherited = getattr(super(), "add_cli_arguments", None)
        if inherited is not None:
            inherited(parser, entry)
