"""Word vectors in GloVe's text format: every form, every fault."""

import gzip

import numpy as np
import pytest

from lit_methods.functional.glove import read_glove

TEXT = "the 0.1 -0.2 3\n, 1 2 3\nred 4 5e-1 -.5\n. . . 7 8 9\nred 0 0 0\nblue 1 1 2"


@pytest.fixture
def write(tmp_path):
    def make(text, name="vectors ü.txt"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return make


def test_all_words_come_in_the_order_of_the_file_and_the_first_of_two_counts(write):
    words, vectors = read_glove(write(TEXT))
    assert words == ["the", ",", "red", ". . .", "blue"]
    assert vectors.dtype == np.float32
    expected = [[0.1, -0.2, 3], [1, 2, 3], [4, 0.5, -0.5], [7, 8, 9], [1, 1, 2]]
    np.testing.assert_array_equal(vectors, np.float32(expected))


def test_wanted_words_have_the_vectors_that_they_have_among_all(write):
    path = write(TEXT)
    words, vectors = read_glove(str(path), ["blue", ". . .", "mauve", "red", "."])
    assert words == ["red", ". . .", "blue"]
    np.testing.assert_array_equal(vectors, read_glove(path)[1][[2, 3, 4]])
    words, vectors = read_glove(path, [])
    assert (words, vectors.shape) == ([], (0, 3))


@pytest.mark.parametrize(
    "change",
    [
        lambda text: gzip.compress(text.encode()),
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.replace("\n", " \n"),
        lambda text: "\ufeff" + text,
        lambda text: text + "\n\n",
        lambda text: "6 3\n" + text,
    ],
)
def test_other_forms_of_the_file_give_the_same(write, change):
    words, vectors = read_glove(write(TEXT))
    found, others = read_glove(write(change(TEXT)))
    assert found == words
    np.testing.assert_array_equal(others, vectors)


def test_numbers_may_be_words(write):
    assert read_glove(write("7 1\n8 2\n"))[0] == ["7", "8"]  # no header: vectors have one number
    assert read_glove(write("3 1 2\n7 1 2\n"))[0] == ["3", "7"]


def test_words_are_utf8(write):
    assert read_glove(write("caf\u00e9 1 2\n\u00a0 3 4\n\u0085 5 6\n"), ["caf\u00e9", "\u0085"])[0] == [
        "caf\u00e9", "\u0085",
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"caf\\xe9.*UTF-8"):
        read_glove(write("caf\u00e9 1 2\n".encode("latin1")))


@pytest.mark.parametrize(
    ("text", "words", "message"),
    [
        ("a 1 2\nb 1 2\nred 1\n", None, "line 3: expected a word and 2 finite numbers"),
        ("a 1 2\nb 1 2\nred 1\n", ["a"], "line 3: "),  # cut off in a line that nobody wants
        ("a 1 2\nred 1 x\n", ["red"], "line 2: "),
        ("a 1 2\nred 1 nan\n", ["red"], "line 2: "),
        ("a 1 2\nred 1 1e99\n", ["red"], "line 2: "),
        ("a 1 2\n\nred 1 2\n", None, "line 2: "),
        ("5 2\na 1 2\nred 1 2\n", ["a"], "promises 5 words, but it has 2"),
        ("", None, "has no word vectors"),
        ("red\nblue\n", None, "has no word vectors"),
        (b"PK\x03\x04rest", None, "zip archive; unpack it"),
        (gzip.compress(TEXT.encode(), mtime=0)[:-20], None, "damaged or cut off"),
        (b"\x1f\x8bnonsense", None, "damaged or cut off"),
    ],
)
def test_a_damaged_file_is_refused_with_its_name_and_line(write, text, words, message):
    path = write(text)
    with pytest.raises(ValueError, match=message) as caught:
        read_glove(path, words)
    assert str(path) in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.txt"):
        read_glove(tmp_path / "none.txt", ["a"])


@pytest.mark.parametrize("size", [100, 300])
def test_a_sample_of_the_real_file_is_read(shared, size):
    path = shared / f"data/word_vectors/glove.6B.{size}d.sample.txt.gz"
    if not path.is_file():
        pytest.skip("no sample of word vectors")
    words, vectors = read_glove(path)
    assert (len(words), vectors.shape, words[:3]) == (100, (100, size), ["the", ",", "."])
    with gzip.open(path, "rt", encoding="utf-8") as file:
        lines = [line.split() for line in file]
    assert words == [line[0] for line in lines]
    np.testing.assert_array_equal(vectors, np.array([line[1:] for line in lines], np.float64).astype(np.float32))
