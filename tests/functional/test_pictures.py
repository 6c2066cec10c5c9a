"""Every kind of picture file becomes RGB, and one that cannot be read is named."""

import warnings

import numpy as np
import pytest
from PIL import Image

from lit_methods.functional.pictures import BadImageError, list_images, read_rgb

COLOUR = (200, 100, 40)


@pytest.mark.parametrize(
    ("mode", "colour", "file", "expected"),
    [
        ("RGB", COLOUR, "a.png", COLOUR),
        ("L", 90, "a.jpg", (90, 90, 90)),
        ("LA", (90, 7), "a.png", (90, 90, 90)),
        ("1", 1, "a.png", (255, 255, 255)),
        ("RGBA", (*COLOUR, 0), "a.png", COLOUR),
        ("CMYK", (0, 255, 255, 0), "a.jpg", (255, 0, 0)),
        ("CMYK", (0, 255, 255, 0), "a.tif", (255, 0, 0)),
        ("I;16", 257 * 90, "a.png", (90, 90, 90)),
        ("I;16", 65535, "a.tif", (255, 255, 255)),
        ("RGB", COLOUR, "a.bmp", COLOUR),
        ("RGB", COLOUR, "a.ppm", COLOUR),
    ],
)
def test_every_kind_of_file_becomes_rgb(tmp_path, mode, colour, file, expected):
    Image.new(mode, (8, 6), colour).save(tmp_path / file)
    image = read_rgb(tmp_path / file)
    assert (image.mode, image.size) == ("RGB", (8, 6))
    assert abs(np.asarray(image).astype(int) - expected).max() <= 2  # JPEG is not exact


@pytest.mark.parametrize("transparency", [None, b"\x00\xff"])
def test_palettes_become_rgb_without_a_warning(tmp_path, transparency):
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, *COLOUR])
    image.save(tmp_path / "a.png", **({"transparency": transparency} if transparency else {}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_rgb(tmp_path / "a.png").getpixel((0, 0)) == COLOUR


def test_rotation_noted_in_exif_is_ignored(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    Image.new("RGB", (8, 6)).save(tmp_path / "a.jpg", exif=exif)
    assert read_rgb(tmp_path / "a.jpg").size == (8, 6)


@pytest.mark.parametrize("kept", [0, 30, 0.5, 0.98])
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_cut_off_file_is_named(tmp_path, suffix, kept):
    path = tmp_path / f"cut.{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content)) if kept < 1 else kept])
    with pytest.raises(BadImageError, match=r"cannot read the image .*cut\."):
        read_rgb(path)


def test_other_files_are_named(tmp_path):
    (tmp_path / "text.jpg").write_text("not a picture")
    Image.new("F", (2, 2), 0.5).save(tmp_path / "float.tif")
    for name, why in {
        "text.jpg": "cannot identify",
        "float.tif": "no agreed range",
        "none.jpg": "No such file",
    }.items():
        with pytest.raises(BadImageError, match=rf"{name}.*{why}"):
            read_rgb(tmp_path / name)


def test_pictures_are_listed_sorted_in_any_case(tmp_path):
    for name in ("b.JPEG", "a.Png", "c.txt", "._b.JPEG", "Z.webp", "ä.jpg"):
        (tmp_path / name).touch()
    assert list_images(tmp_path) == ["Z.webp", "a.Png", "b.JPEG", "ä.jpg"]
