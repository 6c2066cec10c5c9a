"""Verification sets in one file: ``lfw.bin``, ``cfp_fp.bin``, ``agedb_30.bin`` and others like them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from datamodules.face_pictures import EncodedPictures
from datamodules.pickles import load_arrays

_FORM = "A verification set is a pickle of (list of 2N encoded images, list of N bools), image 2i against 2i + 1."


class VerificationBin(NamedTuple):
    """What :func:`read_bin` finds: 2N pictures, and for each pair of neighbours whether they are the same person."""

    pictures: EncodedPictures
    same: NDArray[np.bool_]


def read_bin(path: Path) -> VerificationBin:
    """Read a verification set; the pictures stay encoded, but the first is decoded to see whether it can be.

    Images may be bytes or uint8 arrays of encoded bytes, the bools a list or an array. Strings of Python 2 are bytes.
    Nothing that the file names is run, see :func:`~datamodules.pickles.load_arrays`.

    Args:
        path: of the file.

    Returns:
        Pictures and ``(N,)`` bool.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is something else; says what was found.
        BadImageError: the first picture does not decode.

    Source:
        The reader of the official code, which unpickles whatever there is and runs it.

    Example:
        >>> import io, pickle, tempfile
        >>> from PIL import Image
        >>> buffer = io.BytesIO()
        >>> Image.new("RGB", (112, 112)).save(buffer, "JPEG")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "two.bin")
        ...     _ = path.write_bytes(pickle.dumps(([buffer.getvalue()] * 4, [True, False])))
        ...     found = read_bin(path)
        >>> len(found.pictures), found.same
        (4, array([ True, False]))
    """
    try:
        content = load_arrays(path.read_bytes(), str(path), encoding="bytes")
    except ValueError as error:
        raise ValueError(f"{error}. {_FORM}") from None
    if not isinstance(content, list | tuple) or len(content) != 2:
        raise _wrong(path, f"it holds {_kind(content)} instead of two lists")
    images, flags = content
    if not _is_list(images):
        raise _wrong(path, f"its images are {_kind(images)} instead of a list")
    if not _is_list(flags) and not (isinstance(flags, np.ndarray) and flags.ndim == 1):
        raise _wrong(path, f"its bools are {_kind(flags)} instead of a list")
    same = _bools(path, flags)
    if len(images) != 2 * len(same):
        raise _wrong(path, f"it holds {len(images)} images for {len(same)} pairs, which need {2 * len(same)}")
    if not len(same):
        raise _wrong(path, "it holds no pairs")
    pictures = EncodedPictures([_encoded(path, row, image) for row, image in enumerate(images)], str(path))
    pictures.read(0)
    return VerificationBin(pictures, same)


def _bools(path: Path, flags: Sequence[Any] | NDArray) -> NDArray[np.bool_]:
    for row, flag in enumerate(flags):
        if not isinstance(flag, bool | np.bool_):
            raise _wrong(path, f"flag {row} is {_kind(flag)} instead of a bool")
    return np.array(flags, np.bool_)


def _encoded(path: Path, row: int, image: Any) -> bytes:
    if isinstance(image, bytes):
        return image
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.size == max(image.shape, default=0):
        return image.tobytes()  # (n,), or (n, 1) as some encoders give
    raise _wrong(path, f"image {row} is {_kind(image)} instead of encoded bytes")


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.dtype == object)


def _kind(value: Any) -> str:
    """What something is, in a few words."""
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype} {value.shape}"
    if isinstance(value, list | tuple):
        return f"a {type(value).__name__} of {len(value)}"
    return "None" if value is None else f"a value of type {type(value).__name__}"


def _wrong(path: Path, found: str) -> ValueError:
    return ValueError(f"{str(path)!r} is no verification set: {found}. {_FORM}")
