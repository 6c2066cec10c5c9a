"""Reading pickles that are data and cannot be anything else."""

import io
import pickle
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

# Both names: numpy 2 moved the functions, and old files keep the old place. `_codecs.encode` is how Python 3 writes
# bytes under protocol 2. None of these runs code of the file's choosing.
_ALLOWED = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
    *((f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
    *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
}


class _ArraysOnly(pickle._Unpickler):  # the one in Python, for the C one does not let states be looked at
    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(pickle._Unpickler.dispatch)

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ALLOWED:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, but only arrays and plain values are allowed")

    def load_build(self) -> None:
        # A state changes what is there: an attribute of a function, or the flags of a dtype, after which eight bytes
        # of the file pass for the address of a Python object.
        value, state = self.stack[-2:]  # type: ignore[attr-defined]
        if isinstance(value, np.dtype):
            _check_dtype_state(value, state)
        elif type(value) is not np.ndarray:
            raise pickle.UnpicklingError(f"it changes a {type(value).__name__}, but only arrays are allowed to change")
        super().load_build()  # type: ignore[misc]

    dispatch[pickle.BUILD[0]] = load_build


def load_arrays(data: bytes, name: str, encoding: str = "latin1") -> Any:
    """Unpickle numbers, strings, bytes, lists, tuples, dicts, NumPy arrays and scalars, and refuse everything else.

    Arrays with named fields are refused, too.

    Args:
        data: the pickle.
        name: what to call it in the error, usually the file's path.
        encoding: how strings of Python 2 are read; ``"bytes"`` leaves them bytes, which is what pictures want.

    Returns:
        The object.

    Raises:
        ValueError: the pickle is damaged, or names a class or function; nothing of it was run.

    Example:
        >>> load_arrays(pickle.dumps({"labels": [1, 2]}), "batch")
        {'labels': [1, 2]}
        >>> load_arrays(pickle.dumps(print), "batch")
        Traceback (most recent call last):
        ValueError: cannot read the pickle 'batch': it asks for builtins.print, but only arrays and plain values ...
    """
    try:
        return _ArraysOnly(io.BytesIO(data), encoding=encoding).load()
    except Exception as error:  # a damaged pickle raises nearly anything, from EOFError to MemoryError
        wordless = isinstance(error, LookupError | EOFError) or not str(error)
        what = "it is no pickle, or damaged" if wordless else error
        raise ValueError(f"cannot read the pickle {name!r}: {what}") from None


def _check_dtype_state(dtype: np.dtype, state: Any) -> None:
    """Let a state say no more of a dtype than its byte order (and the unit of a time)."""
    if (
        not isinstance(state, tuple)
        or len(state) not in (8, 9)
        or state[0] not in (3, 4)
        or any(part is not None for part in state[2:5])  # no parts and no named fields
        or state[5] not in (-1, dtype.itemsize)
        or state[6] not in (-1, dtype.alignment)
        or state[7] != dtype.flags
    ):
        raise pickle.UnpicklingError(f"it asks for a dtype that is not a plain {dtype.name}")
