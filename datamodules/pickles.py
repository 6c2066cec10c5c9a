"""Reading pickles that are data and cannot be anything else."""

import io
import pickle
import pickletools
from collections.abc import Callable, Iterable
from pathlib import Path
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


# What lists, dicts and plain values are written with. REDUCE is for OrderedDict alone; INST says what it asks for.
_PLAIN_OPERATIONS = frozenset(
    """
    PROTO FRAME STOP MARK POP POP_MARK NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT
    STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8
    EMPTY_LIST LIST APPEND APPENDS EMPTY_DICT DICT SETITEM SETITEMS EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3
    PUT BINPUT LONG_BINPUT MEMOIZE GET BINGET LONG_BINGET GLOBAL STACK_GLOBAL INST REDUCE
    """.split()  # noqa: SIM905
)
_PLAIN = frozenset({str, int, float, bool, type(None)})
_MOST_BYTES = 500 * 2**20  # of a file
_MOST_CHARACTERS = 2**31  # of all values, those that are referred to again counted again
_DEEPEST = 32  # of lists and dicts in each other


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


class _PlainOnly(pickle._Unpickler):  # the one in C reserves memory for whatever place of its memo a file names
    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(pickle._Unpickler.dispatch)

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return dict
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, but only lists, dicts and plain values are allowed")

    def load_reduce(self) -> None:
        if self.stack[-2] is not dict:  # type: ignore[attr-defined]
            kind = type(self.stack[-2]).__name__  # type: ignore[attr-defined]
            raise pickle.UnpicklingError(f"it calls a {kind}, but only lists, dicts and plain values are allowed")
        super().load_reduce()  # type: ignore[misc]

    dispatch[pickle.REDUCE[0]] = load_reduce


def _decoded(load: Callable[[Any], None]) -> Callable[[Any], None]:
    def load_text(unpickler: Any) -> None:
        load(unpickler)
        unpickler.stack[-1] = unpickler.stack[-1].decode("latin1")

    return load_text


def _refused(name: str) -> Callable[[Any], None]:
    def refuse(unpickler: Any) -> None:
        raise pickle.UnpicklingError(f"it uses {name}, which lists, dicts and plain values do not need")

    return refuse


for _operation in pickletools.opcodes:
    _code = ord(_operation.code)
    if _operation.name not in _PLAIN_OPERATIONS:
        _PlainOnly.dispatch[_code] = _refused(_operation.name)
    elif "BINBYTES" in _operation.name:
        _PlainOnly.dispatch[_code] = _decoded(_PlainOnly.dispatch[_code])


def read_plain(path: Path) -> Any:
    """Read a pickle file of lists, dicts and plain values, up to 500 MB, and refuse everything else.

    Args:
        path: the file.

    Returns:
        The object, as of :func:`load_plain`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is larger, damaged, or more than such values; nothing of it was run.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "refs.p")
        ...     _ = path.write_bytes(pickle.dumps([{"split": "val"}], protocol=2))
        ...     read_plain(path)
        [{'split': 'val'}]
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {str(path)!r}")
    if (size := path.stat().st_size) > _MOST_BYTES:
        raise ValueError(f"cannot read the pickle {str(path)!r}: it has {size} bytes, more than {_MOST_BYTES}")
    return load_plain(path.read_bytes(), str(path))


def load_plain(data: bytes, name: str) -> Any:
    """Unpickle lists, dicts, strings, numbers, booleans and ``None``, and refuse everything else.

    An ``OrderedDict`` becomes a dict, and bytes, as strings of Python 2 are in some files, become strings by latin1.

    Args:
        data: the pickle.
        name: what to call it in the error, usually the file's path.

    Returns:
        The object.

    Raises:
        ValueError: the pickle is damaged, names a class or function, changes or calls anything, holds other values,
            whole numbers of more than 64 bits among them, nests deeper than 32 levels or within itself, or unfolds to
            more than 2 billion characters; nothing of it was run.

    Source:
        Section 5.1 of the paper's file; ``OrderedDict`` is its one optional exception.

    Example:
        >>> load_plain(pickle.dumps({"sent": b"red one", "ids": [1, 2.5, None]}), "refs")
        {'sent': 'red one', 'ids': [1, 2.5, None]}
        >>> load_plain(pickle.dumps(print), "refs")
        Traceback (most recent call last):
        ValueError: cannot read the pickle 'refs': it asks for builtins.print, but only lists, dicts and plain ...
    """
    try:
        value = _PlainOnly(io.BytesIO(data), encoding="latin1").load()
        _unfolded([value], {}, 0)
    except Exception as error:  # a damaged pickle raises nearly anything, from EOFError to MemoryError
        wordless = isinstance(error, LookupError | EOFError) or not str(error)
        what = "it is no pickle, or damaged" if wordless else error
        raise ValueError(f"cannot read the pickle {name!r}: {what}") from None
    return value


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


def _unfolded(value: Any, known: dict[int, tuple[int, int]], level: int) -> tuple[int, int]:
    """Levels of a list or dict, and about how many characters it has where all that it refers to is written out.

    Args:
        value: what was read.
        known: answers for lists and dicts that were seen before, by their ``id``.
        level: in which it lies.
    """
    levels, size = known.get(id(value), (1, 0))
    if level + levels - 1 > _DEEPEST:
        raise pickle.UnpicklingError(f"it nests deeper than {_DEEPEST} levels")
    if id(value) in known:
        return levels, size
    parts: Iterable[Any] = value
    if type(value) is dict:
        if any(type(key) not in _PLAIN for key in value):
            raise pickle.UnpicklingError("it holds a dict whose keys are neither strings nor numbers")
        parts = value.values()
        size += sum(len(str(key)) for key in value)
    for part in parts:
        kind = type(part)
        if kind is list or kind is dict:
            below, characters = _unfolded(part, known, level + 1)
            levels, size = max(levels, below + 1), size + characters
        elif kind not in _PLAIN:
            what = f"it holds a {kind.__name__}"
            raise pickle.UnpicklingError(f"{what}, but only lists, dicts and plain values are allowed")
        elif kind is int and not -(2**63) <= part < 2**63:
            raise pickle.UnpicklingError("it holds a whole number of more than 64 bits")
        else:
            size += 2 + (len(part) if kind is str else 0)
    if size > _MOST_CHARACTERS:
        raise pickle.UnpicklingError("what it refers to again and again unfolds to more than 2 billion characters")
    known[id(value)] = levels, size + 2
    return levels, size + 2
