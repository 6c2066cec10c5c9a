"""Verification sets in one pickle, and files that are not what they say."""

import io
import pickle
import struct

import numpy as np
import pytest
from PIL import Image

from datamodules.face_bins import read_bin
from datamodules.face_sets import read_set
from lit_methods.functional.pictures import BadImageError


def encoded(value, kind="PNG"):
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (value, 0, 0)).save(buffer, kind)
    return buffer.getvalue()


IMAGES = [encoded(value) for value in (10, 20, 30, 40)]


@pytest.fixture
def write(tmp_path):
    def file(content, protocol=4):
        data = content if isinstance(content, bytes) else pickle.dumps(content, protocol=protocol)
        (tmp_path / "own.bin").write_bytes(data)
        return tmp_path / "own.bin"

    return file


def python_2(images, flags):
    """What Python 2 with an old NumPy wrote: strings are bytes, and the bools an array."""
    strings = b"".join(b"T" + struct.pack("<i", len(image)) + image for image in images)
    dtype = b"cnumpy\ndtype\nU\x02b1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR"
    data = bytes(flags)
    state = b"(K\x01K" + bytes([len(flags)]) + b"\x85" + dtype + b"\x89U" + bytes([len(data)]) + data + b"tb"
    return b"\x80\x02](" + strings + b"e" + array + state + b"\x86."


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    "content",
    [
        (IMAGES, [True, False]),
        [tuple(IMAGES), (np.True_, np.False_)],
        ([np.frombuffer(image, np.uint8) for image in IMAGES], np.array([True, False])),
        ([np.frombuffer(image, np.uint8)[:, None] for image in IMAGES], [True, False]),
    ],
    ids=["lists", "tuples", "arrays", "columns"],
)
def test_forms_of_a_set(write, protocol, content):
    pictures, same = read_bin(write(content, protocol))
    assert same.tolist() == [True, False]
    assert [pictures.read(row).getpixel((0, 0)) for row in range(4)] == [(v, 0, 0) for v in (10, 20, 30, 40)]


def test_a_set_of_python_2(write):
    pictures, same = read_bin(write(python_2(IMAGES, [True, False])))
    assert same.tolist() == [True, False]
    assert pictures.read(3).getpixel((0, 0)) == (40, 0, 0)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"\xff\xd8\xff\xe0 JFIF", "it is no pickle, or damaged"),
        (b"", "it is no pickle, or damaged"),
        ({"images": IMAGES}, "it holds a value of type dict instead of two lists"),
        ((IMAGES, [True, False], 1), "it holds a tuple of 3 instead of two lists"),
        ((IMAGES, None), "its bools are None instead of a list"),
        ((b"images", [True]), "its images are a value of type bytes instead of a list"),
        ((IMAGES, [True]), "it holds 4 images for 1 pairs, which need 2"),
        ((IMAGES[:3], [True, False]), "it holds 3 images for 2 pairs, which need 4"),
        ((IMAGES, [True, 0]), "flag 1 is a value of type int instead of a bool"),
        ((IMAGES, np.array([1, 0])), r"flag 0 is a value of type int\d+ instead of a bool"),
        ((IMAGES, np.array([[True, False]])), r"its bools are an array of bool \(1, 2\) instead of a list"),
        (([], []), "it holds no pairs"),
        (([IMAGES[0], "text"], [True]), "image 1 is a value of type str instead of encoded bytes"),
        (
            ([np.zeros((4, 4, 3), np.uint8)] * 2, [True]),
            r"image 0 is an array of uint8 \(4, 4, 3\) instead of encoded bytes",
        ),
        (([np.zeros(5)] * 2, [True]), r"image 0 is an array of float64 \(5,\) instead of encoded bytes"),
    ],
)
def test_what_is_there_instead_is_said(write, content, found):
    with pytest.raises(ValueError, match=rf"own\.bin'.*({found})\. A verification set is a pickle of"):
        read_bin(write(content))


def test_nothing_is_run(write, tmp_path):
    class Touch:
        def __reduce__(self):
            return open, (str(tmp_path / "touched"), "w")

    for content in (Touch(), (IMAGES, [True, Touch()]), ([Touch()] * 4, [True, False])):
        with pytest.raises(ValueError, match=r"own\.bin': it asks for \S+open, but only arrays"):
            read_bin(write(content))
    assert not (tmp_path / "touched").exists()


def test_the_first_picture_is_looked_at_at_once_and_the_others_when_they_are_needed(write):
    with pytest.raises(BadImageError, match=r"cannot decode image 0 of '.*own\.bin': no known kind of picture"):
        read_bin(write(([b"nothing", *IMAGES[1:]], [True, False])))
    cut = encoded(9, "JPEG")[:200]
    faces = read_set("own", write(([*IMAGES[:3], cut], [True, False])), 4)
    assert len(faces.fetch(np.array([0]))["index"]) == 1
    with pytest.raises(BadImageError, match=r"cannot decode image 3 of '.*own\.bin'"):
        faces.fetch(np.array([0, 1]))
