"""Reading picture files: any common kind of file in, 8-bit RGB out, one error for what cannot be read."""

import os
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from lit_methods.functional.suggestions import shorten

# what Pillow raises for a file that is missing, no picture, cut off or far too large
_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, Image.DecompressionBombError)
SUFFIXES = (".jpeg", ".jpg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff")


class BadImageError(ValueError):
    """A picture file that cannot be read; the message names it."""


def read_rgb(path: str | os.PathLike[str]) -> Image.Image:
    """Read a picture file as 8-bit RGB, see :func:`to_rgb`.

    The rotation noted in EXIF is ignored, as in torchvision.

    Args:
        path: the file.

    Returns:
        A loaded picture of mode ``RGB``.

    Raises:
        BadImageError: the file is missing, no picture, cut off, far too large, or holds floating point values.

    Example:
        >>> import tempfile
        >>> with tempfile.NamedTemporaryFile(suffix=".png") as file:
        ...     Image.new("L", (4, 2), 90).save(file.name)
        ...     read_rgb(file.name).getpixel((0, 0))
        (90, 90, 90)
    """
    try:
        with Image.open(path) as image:
            image.load()  # a file that is cut off is noticed here
            return to_rgb(image)
    except _UNREADABLE as error:
        raise BadImageError(f"cannot read the image {os.fspath(path)!r}: {error}") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """A loaded picture of any common mode as 8-bit RGB.

    Grey, palette, RGBA and CMYK become RGB; alpha is dropped and 16-bit grey is divided by 257 (Pillow's own conversion
    would cut everything above 255 to white).

    Args:
        image: loaded; not changed.

    Raises:
        ValueError: floating point pixels.

    Example:
        >>> to_rgb(Image.new("CMYK", (1, 1), (0, 255, 255, 0))).getpixel((0, 0))
        (255, 0, 0)
    """
    if image.mode.startswith("I"):  # 16-bit grey; older Pillow calls it "I" when it comes from a PNG
        return Image.fromarray(np.rint(np.asarray(image) / 257).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating point pixels have no agreed range")
    if "transparency" in image.info:  # Pillow warns about palettes that are converted in one step
        return image.convert("RGBA").convert("RGB")
    return image.convert("RGB")


def resize_side(size: int) -> int:
    """Short side to resize to before the centre crop of evaluation: 256 for 224, the same margin for other sizes.

    Pictures of 64 pixels and less, such as CIFAR's, are not cropped.

    Args:
        size: side of the crop, in pixels.

    Example:
        >>> resize_side(224), resize_side(112), resize_side(32)
        (256, 128, 32)
    """
    return round(size * 256 / 224) if size > 64 else size


def list_images(folder: Path) -> list[str]:
    """Names of the picture files directly inside a folder, sorted; endings in any case.

    Hidden files are left out: copying from some systems leaves a ``._name.jpg`` beside each picture.

    Args:
        folder: its own folders are not looked into.

    Raises:
        OSError: there is no such folder, or it cannot be read.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("b.JPG", "a.png", "notes.txt", "._a.png"):
        ...         Path(folder, name).touch()
        ...     list_images(Path(folder))
        ['a.png', 'b.JPG']
    """
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if entry.name.lower().endswith(SUFFIXES) and entry.name[0] != "."]
    return sorted(names)


def require_files(folder: Path, files: Sequence[str], source: str) -> None:
    """Refuse a list with pictures that are not there; every folder is listed once, no file is opened.

    Args:
        folder: paths count from it.
        files: the paths.
        source: what names them, for the message.

    Raises:
        FileNotFoundError: some are missing; says how many, and the first.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Path(folder, "1.jpg").touch()
        ...     require_files(Path(folder), ["1.jpg"], "list.txt")
    """
    there: dict[str, set[str]] = {}
    missing = []
    for file in files:
        event, _, name = file.rpartition("/")
        if event not in there:
            there[event] = _names_in(folder / event)
        if name not in there[event]:
            missing.append(file)
    if missing:
        raise FileNotFoundError(
            f"{source} names {len(files)} pictures, of which {len(missing)} are not in {str(folder)!r}: "
            f"{shorten(missing, 1)}. Unpack the pictures there, or take them off the list."
        )


def _names_in(folder: Path) -> set[str]:
    try:
        return set(os.listdir(folder))
    except OSError:  # not there: neither are its pictures
        return set()
