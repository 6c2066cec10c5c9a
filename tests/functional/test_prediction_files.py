"""Files of detections are written as WIDER FACE's tool reads them, and those of any detector are read."""

import numpy as np
import pytest
import torch

from lit_methods.functional import wider_files
from lit_methods.functional.wider_files import (
    prediction_path,
    predictions_folder,
    read_prediction_folder,
    read_predictions,
    write_predictions,
)

NAMES = ["0--Parade/0_Parade_a", "0--Parade/0_Parade_b", "59--people--driving--car/59_c.d"]


def some_rows(count, seed=0):
    draw = np.random.default_rng(seed)
    rows = np.column_stack([draw.normal(200, 300, (count, 4)), draw.uniform(-0.1, 1, count)])
    return torch.from_numpy(rows[np.argsort(-rows[:, 4])])


def write(path, rows, name="a"):
    write_predictions(path, name, rows[:, :4], rows[:, 4])


def folder_of(folder, names=NAMES):
    for i, name in enumerate(names):
        write(prediction_path(folder, name), some_rows(i, seed=i), name)
    return folder


@pytest.mark.parametrize("count", [0, 1, 50])
def test_rows_come_back_with_six_decimals(tmp_path, count):
    rows = some_rows(count)
    write(tmp_path / "0--Parade" / "a.txt", rows)
    read = read_predictions(tmp_path / "0--Parade" / "a.txt")
    assert read.dtype == torch.float64
    assert read.shape == (count, 5)
    assert torch.equal(read, (rows * 1e6).round() / 1e6)


def test_the_file_is_that_of_the_tool(tmp_path):
    boxes, scores = torch.tensor([[1.0, 2, 3.5, 4], [5, 6, 7, 8], [9, 9, 9, 9]]), torch.tensor([0.25, 0.5, 0.25])
    write_predictions(tmp_path / "a.txt", "0_Parade_a", boxes.requires_grad_(), scores.half())
    assert (tmp_path / "a.txt").read_bytes().decode() == (
        "0_Parade_a\n3\n5.000000 6.000000 7.000000 8.000000 0.500000\n"
        "1.000000 2.000000 3.500000 4.000000 0.250000\n9.000000 9.000000 9.000000 9.000000 0.250000\n"
    )


@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize(
    ("text", "is_quick"),
    [
        ("0--Parade/a.jpg\n2\n1.0 2.0 3.0 4.0 0.999\n5.0 6.0 7.0 8.0 0.500\n", True),  # DSFD
        ("a\n2\n1 2 3 4 0.999\n5 6 7 8 .5", True),
        ("a.jpg \r\n2 \r\n1 2 3 4 0.999 \r\n5 6 7 8 5e-1\t\r\n \r\n\n", True),
        ("\xe9t\xe9\n2\n1\t2\t3\t4\t0.999\n5 6  7 8 0.5\n", True),
        ("\ufeff\n 2\n1,2,3,4,0.999\n5, 6, 7 ,8 0.5,\n", False),
        ("a b c\n02\n1 2 3 4 0.999\n5 6 7 8 0.5\n", True),
    ],
)
def test_files_of_all_kinds_are_read(tmp_path, monkeypatch, text, is_quick, quick):
    (tmp_path / "a.txt").write_bytes(text.encode())
    assert (wider_files._quick_predictions(tmp_path / "a.txt") is not None) == is_quick
    if not quick:
        monkeypatch.setattr(wider_files, "_quick_predictions", lambda path: None)
    assert read_predictions(tmp_path / "a.txt").tolist() == [[1, 2, 3, 4, 0.999], [5, 6, 7, 8, 0.5]]


@pytest.mark.parametrize("text", ["a\n0\n", "\n0", "a.jpg\r\n0\r\n\r\n", "a\n 0 \n\n\n"])
def test_an_image_without_detections_has_a_file(tmp_path, text):
    (tmp_path / "a.txt").write_bytes(text.encode())
    read = read_predictions(tmp_path / "a.txt")
    assert (read.shape, read.dtype) == ((0, 5), torch.float64)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "a.txt' has 0 lines; a file of detections has the name"),
        ("a\n", "a.txt' has 1 lines"),
        ("a\n1 2 3 4 0.5\n", "line 2: the number of detections must be a whole number from 0 up, got '1 2 3 4 0.5'"),
        ("a\n-1\n", "line 2: the number of detections"),
        ("a\n2.0\n1 2 3 4 0.5\n1 2 3 4 0.5\n", "line 2: the number of detections"),
        ("a\n2\n1 2 3 4 0.5\n", "line 2: it announces 2 detections, but 1 lines follow; the file may be cut off"),
        ("a\n1\n1 2 3 4 0.5\n1 2 3 4 0.5\n", "line 2: it announces 1 detections, but 2 lines follow"),
        ("a\n0\n1 2 3 4 0.5\n", "line 2: it announces 0 detections"),
        ("a\n2\n1 2 3 4 0.5\n1 2 3 4\n", "line 4: expected a detection x y w h score of five finite numbers"),
        ("a\n1\n1 2 3 4 0.5 6\n", "line 3: expected a detection"),
        ("a\n2\n1 2 3 4 nan\n1 2 3 4 0.5\n", "line 3: expected a detection"),
        ("a\n1\n1 2 inf 4 0.5\n", "line 3: expected a detection"),
        ("a\n1\n1 2 three 4 0.5\n", "line 3: expected a detection"),
        ("a\n2\n1 2 3 4 0.5\n\n1 2 3 4 0.5\n", "line 4: expected a detection"),
        ("a\n3\n1 2 3 4 0.5\n\n1 2 3 4 0.5\n", "line 4: expected a detection"),
        ("a\n1\n1 2 3 4 0.5 # mine\n", "line 3: expected a detection"),
    ],
)
def test_faults_name_file_and_line(tmp_path, text, said):
    (tmp_path / "a.txt").write_text(text)
    with pytest.raises(ValueError, match=said):
        read_predictions(tmp_path / "a.txt")


def test_what_no_tool_reads_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="'a' have NaN or infinity in 1 of 2 rows"):
        write_predictions(tmp_path / "a.txt", "a", torch.tensor([[1.0, 1, 1, torch.inf], [1, 1, 1, 1]]), torch.ones(2))
    with pytest.raises(ValueError, match=r"of 'a' must be \(n, 4\) and \(n,\), got \(2, 4\) and \(3,\)"):
        write_predictions(tmp_path / "a.txt", "a", torch.ones(2, 4), torch.ones(3))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["", "/a", "../a", "a/../../b", "a//b", "a/", "a\\b", "a/."])
def test_names_that_lead_elsewhere_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match="cannot have a file of detections"):
        prediction_path(tmp_path, name)


@pytest.mark.parametrize("inner", [".", "mine"])
def test_a_folder_is_read_in_the_order_of_names(tmp_path, inner, recwarn):
    folder_of(tmp_path / inner)
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "notes.txt").touch()
    (tmp_path / "pictures").mkdir()
    read = read_prediction_folder(tmp_path, NAMES[::-1])
    assert list(read) == NAMES[::-1]
    assert [len(rows) for rows in read.values()] == [2, 1, 0]
    assert not len(recwarn)


def test_files_of_other_images_are_counted_in_one_warning(tmp_path):
    folder_of(tmp_path)
    with pytest.warns(UserWarning, match="has 2 files of images that are not among the 1 evaluated") as caught:
        assert list(read_prediction_folder(tmp_path, NAMES[:1])) == NAMES[:1]
    assert len(caught) == 1


def test_missing_files_are_counted_and_the_first_few_named(tmp_path):
    folder_of(tmp_path, NAMES[:1])
    names = [*NAMES[:1], *(f"1--Handshaking/{i}" for i in range(9))]
    with pytest.raises(
        FileNotFoundError, match=r"lacks the files of 9 of 10 images: 1--H\S+/0, .*/4 and 4 more\. An im"
    ):
        read_prediction_folder(tmp_path, names)


def test_folders_without_files_or_with_several_detectors_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="none' is no folder; it must hold the files of a detector, <event>/"):
        predictions_folder(tmp_path / "none", NAMES)
    with pytest.raises(FileNotFoundError, match="no file of any of the 3 images, such as '0--Parade/0_Parade_a'"):
        predictions_folder(tmp_path, NAMES)
    for name in ("mine", "theirs"):
        folder_of(tmp_path / name)
    with pytest.raises(ValueError, match="has files of 2 detectors: mine, theirs; give the folder of one"):
        predictions_folder(tmp_path, NAMES)
