"""Reading pickles that are data and cannot be anything else."""

import io
import pickle
from typing import Any

# Both names: numpy 2 moved the functions, and old files keep the old place. `_codecs.encode` is how Python 3 writes
# bytes under protocol 2. None of these runs code of the file's choosing.
_ALLOWED = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
    *((f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")),
    *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
}


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ALLOWED:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, but only arrays and plain values are allowed")


def load_arrays(data: bytes, name: str) -> Any:
    """Unpickle numbers, strings, bytes, lists, tuples, dicts and NumPy arrays, and refuse everything else.

    Args:
        data: the pickle; strings of Python 2 are read as latin-1.
        name: what to call it in the error, usually the file's path.

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
        return _ArraysOnly(io.BytesIO(data), encoding="latin1").load()
    except Exception as error:  # a damaged pickle raises nearly anything, from EOFError to MemoryError
        raise ValueError(f"cannot read the pickle {name!r}: {error or type(error).__name__}") from None
