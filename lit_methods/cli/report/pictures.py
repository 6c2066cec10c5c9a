"""Pictures of a run as data URIs, small enough for a page that is sent to somebody."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, features

from lit_methods.cli.report.reading import Run
from lit_methods.functional.suggestions import first_line

WIDEST, TALLEST = 1200, 6000  # pixels
AS_IT_IS = 150_000  # bytes of a picture that is not written anew
FEW_COLOURS = 4096  # a drawing rather than a photograph: no losses
QUALITY = 82


@dataclass(frozen=True)
class Picture:
    """A picture as the page shows it.

    Args:
        run: the number of its run.
        caption: its name in words.
        uri: ``data:...``; empty where it cannot be read.
        width: in pixels, of what is embedded.
        height: likewise.
        note: that it was made smaller, or why it cannot be read.
    """

    run: int
    caption: str
    uri: str
    width: int = 0
    height: int = 0
    note: str = ""


def gallery(runs: Sequence[Run]) -> list[list[Picture]]:
    """The pictures of some runs: those of one name are together, in the order of the runs; those of the test first.

    Args:
        runs: one or more.
    """
    stages = {"test": 0, "val": 2, "train": 3}
    names = {path.name for run in runs for path in run.pictures}
    return [
        [embed(path, number) for number, run in enumerate(runs) for path in run.pictures if path.name == name]
        for name in sorted(names, key=lambda name: (stages.get(name.partition("_")[0], 1), name))
    ]


def embed(path: Path, run: int = 0) -> Picture:
    """One picture.

    A film (GIF) and a small picture stay as they are. Others are scaled to 1200 pixels at most and written as WebP,
    which every browser reads: drawings without losses, photographs with such as are not seen at this size.

    Args:
        path: the file.
        run: the number of its run.

    Example:
        >>> from tempfile import mkdtemp
        >>> path = Path(mkdtemp(), "test_predictions.png")
        >>> Image.new("RGB", (2400, 300)).save(path)
        >>> picture = embed(path)
        >>> picture.caption, picture.width, picture.height, picture.uri[:16], picture.note
        ('test predictions', 1200, 150, 'data:image/webp;', 'scaled down from 2400 x 300')
    """
    caption = path.stem.replace("_", " ")
    try:
        data = path.read_bytes()
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            kind, size = image.format or "PNG", image.size
            scale = min(1.0, WIDEST / size[0], TALLEST / size[1])
            film = getattr(image, "n_frames", 1) > 1
            if not film and (scale < 1 or len(data) > AS_IT_IS):
                kind, data, size = _again(image, scale, data)
            note = "" if film or scale == 1 else f"scaled down from {image.width} x {image.height}"
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as ex:  # SyntaxError: Pillow, of PNG
        return Picture(run, caption, "", note=f"{path.name} cannot be read: {first_line(ex)}")
    uri = f"data:image/{kind.lower()};base64,{base64.b64encode(data).decode()}"
    return Picture(run, caption, uri, *size, note)


def _again(image: Image.Image, scale: float, data: bytes) -> tuple[str, bytes, tuple[int, int]]:
    """Format, bytes and size of the picture written anew; of one that is not scaled the smaller of both."""
    drawn = image.convert("RGBA" if "A" in image.getbands() or "transparency" in image.info else "RGB")
    drawing = drawn.getcolors(FEW_COLOURS) is not None
    if scale < 1:
        wanted = max(1, round(image.width * scale)), max(1, round(image.height * scale))
        drawn = drawn.resize(wanted, Image.Resampling.LANCZOS)
    kind = "WEBP" if features.check("webp") else "PNG"
    file = io.BytesIO()
    drawn.save(file, kind, quality=QUALITY, lossless=drawing, method=4)
    if scale == 1 and len(data) <= file.tell():
        return image.format or "PNG", data, image.size
    return kind, file.getvalue(), drawn.size
