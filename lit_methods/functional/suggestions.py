"""Parts of error messages: the nearest names, the first few of many, the gist of another error."""

from collections.abc import Iterable
from difflib import get_close_matches


def nearest(name: str, known: Iterable[str]) -> str:
    """``"; did you mean 'a' or 'b'?"``, or nothing where no known name is near.

    Args:
        name: what was given.
        known: what it may have been; three of them at most are named.

    Example:
        >>> nearest("resnet65", ["resnet56", "vgg16_bn_cifar"])
        "; did you mean 'resnet56'?"
    """
    close = get_close_matches(name, list(known), n=3)
    return f"; did you mean {' or '.join(map(repr, close))}?" if close else ""


def shorten(names: Iterable[object], most: int = 5) -> str:
    """Join names for a message, and say how many there are beyond the first few.

    Args:
        names: anything that can be printed.
        most: so many are named.

    Example:
        >>> shorten(["a", "b", "c"], most=2)
        'a, b and 1 more'
    """
    words = list(map(str, names))
    return ", ".join(words[:most]) + (f" and {len(words) - most} more" if len(words) > most else "")


def first_line(error: BaseException) -> str:
    """What an error says in its first line; the name of its type where it says nothing.

    Args:
        error: any.

    Example:
        >>> first_line(ValueError("no weights\\n  in this file")), first_line(EOFError())
        ('no weights', 'EOFError')
    """
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
