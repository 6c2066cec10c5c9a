"""LFW's pairs.txt: what is read, and where it says what is wrong."""

import pytest

from lit_methods.functional import face_pairs
from lit_methods.functional.face_pairs import read_pairs

LIST = "2\t2\nAda\t1\t2\nBob\t1\t3\nAda\t1\tBob\t2\nBob\t2\tCy\t1\nCy\t1\t2\nAda\t2\t3\nCy\t2\tAda\t3\nCy\t2\tBob\t3\n"


@pytest.fixture
def people(tmp_path):
    """``people(text)`` writes the list beside three pictures each of Ada, Bob and Cy."""
    for name in ("Ada", "Bob", "Cy"):
        (tmp_path / name).mkdir()
        for number, ending in enumerate((".jpg", ".PNG", ".jpeg"), 1):
            (tmp_path / name / f"{name}_{number:04d}{ending}").touch()

    def write(text, name="pairs.txt", encoding="utf-8"):
        (tmp_path / name).write_text(text, encoding, newline="")
        return tmp_path / name

    return write


def named(pairs):
    return [
        (pairs.files[a], pairs.files[b], same)
        for a, b, same in zip(pairs.first.tolist(), pairs.second.tolist(), pairs.same.tolist(), strict=True)
    ]


def test_a_list_of_two_folds(people):
    pairs = read_pairs(people(LIST))
    assert pairs.folds == 2
    assert pairs.same.tolist() == [True, True, False, False] * 2
    assert named(pairs)[:3] == [
        ("Ada/Ada_0001.jpg", "Ada/Ada_0002.PNG", True),
        ("Bob/Bob_0001.jpg", "Bob/Bob_0003.jpeg", True),
        ("Ada/Ada_0001.jpg", "Bob/Bob_0002.PNG", False),
    ]
    assert len(set(pairs.files)) == len(pairs.files) == 8  # each picture once


@pytest.mark.parametrize(
    "text",
    [LIST.replace("\t", " "), LIST.replace("\n", "\r\n"), LIST + "\n\n", LIST.rstrip(), "\ufeff" + LIST],
    ids=["blanks", "windows", "empty lines at the end", "no last end", "byte order mark"],
)
def test_harmless_differences(people, text):
    assert named(read_pairs(people(text))) == named(read_pairs(people(LIST, "plain.txt")))


def test_one_number_is_one_fold(people):
    pairs = read_pairs(people("1\nAda\t1\t2\nAda\t1\tBob\t2\n"))
    assert (pairs.folds, len(pairs.same)) == (1, 2)


def test_names_may_have_blanks_where_tabs_separate(people, tmp_path):
    (tmp_path / "Ada van B").mkdir()
    for number in (1, 12345):
        (tmp_path / "Ada van B" / f"Ada van B_{number:04d}.webp").touch()
    pairs = read_pairs(people("1\nAda van B\t1\t12345\nAda van B\t1\tAda\t1\n"))
    assert pairs.files[1] == "Ada van B/Ada van B_12345.webp"
    with pytest.raises(ValueError, match=r"line 2: 5 fields where pair 1 of fold 1 must be name<TAB>number<TAB>number"):
        read_pairs(people("1\nAda van B 1 12345\nAda van B\t1\tAda\t1\n"))


def test_each_folder_is_listed_once(people, monkeypatch):
    listed = []
    real = face_pairs.list_images
    monkeypatch.setattr(face_pairs, "list_images", lambda folder: listed.append(folder.name) or real(folder))
    read_pairs(people(LIST))
    assert sorted(listed) == ["Ada", "Bob", "Cy"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("2\t2\n", "2\t2\t2\n", r"line 1: the first line must be folds<TAB>pairs"),
        ("2\t2\n", "", r"line 1: the first line must be folds<TAB>pairs"),
        ("2\t2\n", "ten\t2\n", r"line 1: the number of folds or pairs must be a whole number from 1 up, got 'ten'"),
        ("2\t2\n", "0\t2\n", r"line 1: .* from 1 up, got '0'"),
        ("Bob\t1\t3", "Bob\t1", r"line 3: 2 fields where pair 2 of fold 1 must be name<TAB>number<TAB>number \(same\)"),
        ("Bob\t1\t3", "Bob  1 3", r"line 3: 4 fields where pair 2"),  # which blank separates?
        ("Bob\t1\t3", "", r"line 3: 1 fields"),
        ("Bob\t1\t3", "Bob\t1\t3.0", r"line 3: the number of a picture must be a whole number from 0 up, got '3.0'"),
        ("Bob\t1\t3", "Bob\t-1\t3", r"line 3: the number .* got '-1'\. The line is 'Bob\\t-1\\t3'"),
        ("Bob\t1\t3", "Bob\t1\t1", r"line 3: a picture is paired with itself"),
        ("Ada\t1\tBob\t2", "Ada\t1\tAda\t2", r"line 4: a pair of different persons is 'Ada' twice"),
        ("Ada\t1\tBob\t2", "../Ada\t1\tBob\t2", r"line 4: '../Ada' or 'Bob' is no name of a folder"),
        ("Bob\t1\t3\n", "", r"line 3: 4 fields where pair 2 of fold 1 .*all folds have the size"),
        ("2\t2\n", "2\t3\n", r"line 4: 4 fields where pair 3 of fold 1 .*all folds have the size"),
        (
            "2\t2\n",
            "3\t2\n",
            r"line 9: the list ends here after 8 pairs, but its first line promises 12 \(3 folds of 2",
        ),
        ("2\t2\n", "1\t2\n", r"line 9: the list ends here after 8 pairs, but its first line promises 4 \(1 folds of 2"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(people, old, new, message):
    path = people(LIST.replace(old, new, 1))
    with pytest.raises(ValueError, match=rf"pairs\.txt', {message}"):
        read_pairs(path)


def test_a_list_of_another_kind(people):
    with pytest.raises(ValueError, match=r"pairs\.txt' is empty\. Its first line must be"):
        read_pairs(people("\n"))
    with pytest.raises(ValueError, match=r"pairs\.txt', line 2: not UTF-8"):
        read_pairs(people("1\nÅda\t1\t2\n", encoding="latin1"))


@pytest.mark.parametrize(("line", "wanted"), [("Ada\t1\t4", "Ada/Ada_0004"), ("Eve\t1\t2", "Eve/Eve_0001")])
def test_a_picture_that_is_not_there(people, line, wanted):
    with pytest.raises(FileNotFoundError, match=rf"pairs\.txt', line 3: no picture '.*{wanted}' with \.jpg"):
        read_pairs(people(LIST.replace("Bob\t1\t3", line)))


def test_two_files_for_one_picture(people, tmp_path):
    (tmp_path / "Ada" / "Ada_0001.png").touch()
    with pytest.raises(ValueError, match=r"line 2: Ada_0001\.jpg and Ada_0001\.png of Ada are both picture 1"):
        read_pairs(people(LIST))
