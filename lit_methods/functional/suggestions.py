"""The nearest names, for the ends of error messages."""

from collections.abc import Iterable
from difflib import get_close_matches


def nearest(name: str, known: Iterable[str]) -> str:
    """``"; did you mean 'a' or 'b'?"``, or nothing where no known name is near.

    Example:
        >>> nearest("resnet65", ["resnet56", "vgg16_bn_cifar"])
        "; did you mean 'resnet56'?"
    """
    close = get_close_matches(name, list(known), n=3)
    return f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
