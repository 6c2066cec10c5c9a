"""Random numbers that depend on their key and on nothing else.

A generator has a state, and whoever advances it once more than before changes everything that follows: another
number of workers, a resumed run, a second rank. Here a number is a hash of what it is for, such as
``(purpose, seed, epoch, index)``. Nothing has to be kept, stored or restored, and a whole batch is drawn at once.

The first part of a key says what the numbers are for, a ``Purpose`` or, for a method's own, ``purpose("name")``: equal
seeds must not give equal numbers to two purposes.

The hash is the finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), applied once per part of the key.
"""

import zlib
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray


class Purpose(IntEnum):
    """What numbers are drawn for."""

    SPLIT, ORDER, AUGMENT, CALIBRATION, TEST, ATTACK, TARGET = 1, 2, 3, 4, 5, 6, 7


def purpose(name: str) -> int:
    """A purpose of its own for each name; no number of ``Purpose`` is among them.

    Args:
        name: such as ``"widget_net/search"``.

    Example:
        >>> purpose("widget_net/search") == purpose("widget_net/search"), purpose("a") == purpose("b")
        (True, False)
    """
    return (1 << 32) + zlib.crc32(name.encode())


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MASK = (1 << 64) - 1


def hash64(*parts: int | NDArray[np.int64]) -> NDArray[np.uint64]:
    """Hash a key; arrays among its parts are broadcast against each other.

    Args:
        parts: whole numbers, or int64 arrays of them, of any sign.

    Returns:
        uint64 of the parts' common shape, ``(1,)`` when all of them are plain numbers.

    Example:
        >>> bool(hash64(1, 2)[0] == hash64(1, np.array([3, 2]))[1]), bool(hash64(1, 2)[0] == hash64(2, 1)[0])
        (True, False)
    """
    state = np.zeros(1, np.uint64)
    for part in parts:
        word = np.array([part & _MASK], np.uint64) if isinstance(part, int) else part.astype(np.uint64)
        state = _mix(state ^ _mix(word + _GOLDEN))
    return state


def uniforms(count: int, *key: int | NDArray[np.int64]) -> NDArray[np.float64]:
    """Draw numbers in [0, 1) for each key.

    Args:
        count: how many per key.
        key: as in :func:`hash64`; arrays are 1-D.

    Returns:
        ``(B, count)`` float64, ``B`` being the length of the arrays in the key, or 1.

    Example:
        >>> draws = uniforms(3, 1, 0, np.array([5, 6, 7]))
        >>> draws.shape, bool((draws[1:2] == uniforms(3, 1, 0, 6)).all())
        ((3, 3), True)
    """
    steps = np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN
    bits = _mix(hash64(*key)[:, None] + steps)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53  # the 53 bits that a float64 holds


def permutation(size: int, *key: int) -> NDArray[np.int64]:
    """Put the numbers 0 to ``size - 1`` into an order that the key decides.

    Args:
        size: how many numbers.
        key: whole numbers, as in :func:`hash64`.

    Returns:
        ``(size,)`` int64.

    Example:
        >>> sorted(permutation(4, 2, 0, 1).tolist())
        [0, 1, 2, 3]
    """
    return np.argsort(hash64(*key, np.arange(size)), kind="stable")


def _mix(word: NDArray[np.uint64]) -> NDArray[np.uint64]:
    word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return word ^ (word >> np.uint64(31))
