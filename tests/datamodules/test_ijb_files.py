"""Files of IJB-B and IJB-C."""

import numpy as np
import pytest

from datamodules.ijb_files import read_landmarks, read_template_pairs, read_templates

POINTS = "46.1 62 87.9 62.7 68 89.7 49 108 85.2 108.5 0.99"


@pytest.fixture
def write(tmp_path):
    def file(text):
        (tmp_path / "ijb.txt").write_text(text, "utf-8")
        return tmp_path / "ijb.txt"

    return file


def test_templates(write):
    found = read_templates(write("1.jpg 17 4020\n20000.jpg 17 4021\n\n3é.jpg\t18  4020\n"))
    assert [name.decode() for name in found.images.tolist()] == ["1.jpg", "20000.jpg", "3é.jpg"]
    assert found.images.dtype == "S9"
    assert found.templates.tolist() == [17, 17, 18]
    assert found.medias.tolist() == [4020, 4021, 4020]


def test_pairs(write):
    random = np.random.default_rng(0)
    expected = np.stack([*random.integers(1, 2**40, (2, 1000)), random.integers(0, 2, 1000)], 1)
    found = read_template_pairs(write("".join(f"{a} {b} {same}\n" for a, b, same in expected.tolist())))
    assert found.same.dtype == bool
    assert np.array_equal(np.stack([found.p1, found.p2, found.same], 1), expected)


def test_one_line_is_a_table_of_one(write):
    assert read_template_pairs(write("5 6 1")).p2.tolist() == [6]
    assert read_templates(write("a 6 1")).medias.tolist() == [1]


def test_landmarks(write):
    found = read_landmarks(write(f"1.jpg {POINTS}\n2.jpg {POINTS}\n"))
    assert found.points.shape == (2, 5, 2)
    assert found.points[1].tolist() == [[46.1, 62], [87.9, 62.7], [68, 89.7], [49, 108], [85.2, 108.5]]
    assert found.scores.tolist() == [0.99, 0.99]


@pytest.mark.parametrize(
    ("read", "text", "message"),
    [
        (read_template_pairs, "1 2 0\n\n1 2\n", "line 3: 2 fields; a line is template template label"),
        (read_template_pairs, "1 2 0\n1 2 0 1 2 1\n", "line 2: 6 fields"),
        (read_template_pairs, "1 2\n3 4\n", "line 1: 2 fields"),
        (read_template_pairs, "1 2 0\n1 2.5 0\n", "line 2: template must be a whole number, got '2.5'"),
        (read_template_pairs, "1 2 0\n1 2 yes\n", "line 2: label must be a whole number, got 'yes'"),
        (read_template_pairs, f"1 2 0\n1 {10**20} 1\n", "line 2: template must be a whole number, got '10000"),
        (read_template_pairs, "1 2 0\n\n1 2 2\n", r"line 3: label must be 1 \(same\) or 0, got 2"),
        (read_template_pairs, "# a b\n1 2 0\n", "line 1: template must be a whole number, got '#'"),
        (read_template_pairs, "", "cannot be read; .* one at least"),
        (read_templates, "1.jpg 1 2\n2.jpg 1\n", "line 2: 2 fields; a line is image template media"),
        (read_templates, "1.jpg 1 2\n2.jpg x 1\n", "line 2: template must be a whole number, got 'x'"),
        (read_templates, "\n", "cannot be read"),
        (
            read_landmarks,
            f"1.jpg {POINTS}\n2.jpg {POINTS} 1\n",
            "line 2: 13 fields; a line is image x1 y1 x2 .* y5 score",
        ),
        (read_landmarks, f"1.jpg {POINTS}\n2.jpg {POINTS}x\n", "line 2: score must be a number, got '0.99x'"),
        (read_landmarks, f"\n1.jpg {POINTS.replace('62 ', 'nan ')}\n", "line 2: a number is not finite"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(write, read, text, message):
    with pytest.raises(ValueError, match=rf"ijb\.txt'(, )? ?{message}"):
        read(write(text))


@pytest.mark.parametrize("read", [read_templates, read_template_pairs, read_landmarks])
def test_a_file_that_is_not_there(read, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.txt"):
        read(tmp_path / "none.txt")
