"""The lists of WIDER FACE and the files of its evaluation, as they are and as they should not be."""

import os
import shutil

import numpy as np
import pytest
from scipy.io import loadmat, savemat

from datamodules import wider_files
from datamodules.wider_files import ATTRIBUTES, read_face_list, require_files
from datamodules.wider_truth import find_truth, levelled_truth, read_truth, truth_of_list
from tests.wider_data import list_text, write_mat, write_truth

FACE = "1 2 30 40 0 0 0 0 0 0"
BOXES = {
    "0--Parade/a": [[1, 2, 30, 40], [5, 6, 7, 8]],
    "0--Parade/b": [[0, 0, 0, 0]],
    "1--Handshaking/c": [[9, 9, 9, 9]],
}


@pytest.fixture
def written(tmp_path):
    def write(text):
        path = tmp_path / "list.txt"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


@pytest.fixture(scope="module")
def real():
    from tests.conftest import SHARED

    folder = SHARED / "data" / "widerface"
    if not folder.is_dir():
        pytest.skip("no ../shared/data/widerface beside this checkout")
    faces = read_face_list(folder / "wider_face_split" / "wider_face_val_bbx_gt.txt")
    truth_folder = find_truth(folder)
    return faces, read_truth(truth_folder), truth_folder


def test_columns_are_in_the_order_of_the_official_readme(written):
    faces = read_face_list(written(f"a/1.jpg\n1\n1 2 30 40 {' '.join('012345')}\n")).faces
    assert faces.tolist() == [[1, 2, 30, 40, 0, 1, 2, 3, 4, 5]]
    assert ATTRIBUTES == ("blur", "expression", "illumination", "invalid", "occlusion", "pose")


def test_the_line_of_zeros_is_no_face_and_may_be_left_out(written):
    pictures = {"a/1.jpg": [], "a/2.jpg": [[1, 2, 3, 4]], "b/3.png": [], "b/4.JPG": []}
    for zero_line in (True, False):
        found = read_face_list(written(list_text(pictures, zero_line)))
        assert found.files == list(pictures)
        assert [len(found.faces_of(number)) for number in range(4)] == [0, 1, 0, 0]
    mixed = read_face_list(written("a/1.jpg\n0\n0 0 0 0 0 0 0 0 0 0\na/2.jpg\n0\na/3.jpg\n0"))
    assert mixed.names == ["a/1", "a/2", "a/3"]
    assert mixed.faces.shape == (0, 10)


def test_event_folders_may_have_more_dashes_and_files_more_dots(written):
    found = read_face_list(written(list_text({"59--people--driving--car/59_a.b--c.jpg": [], "loose.jpg": []})))
    assert found.names == ["59--people--driving--car/59_a.b--c", "loose"]


def test_sizes_of_zero_and_below_are_data(written):
    rows = [[5, 5, 0, 0], [5, 5, 3, -2], [-1, 5, 3, 3]]
    assert read_face_list(written(list_text({"a/1.jpg": rows}))).faces[:, :4].tolist() == rows


def test_ends_of_lines_and_a_byte_order_mark_do_not_matter(written):
    text = list_text({"a/1.jpg": [[1, 2, 3, 4]], "a/2.jpg": []})
    plain = read_face_list(written(text))
    other = read_face_list(written(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode() + b"\r\n\r\n"))
    assert (other.files, other.faces.tolist()) == (plain.files, plain.faces.tolist())


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", r"list.txt' is empty"),
        (f"a/1.jpg\n1\n{FACE}\n{FACE}\n", r"list.txt', line 4: expected the path of a picture here; is the number of"),
        (f"a/1.jpg\n2\n{FACE}\na/2.jpg\n0\n", r"line 4: expected a face, ten whole numbers: x y w h blur .* pose. The"),
        (f"a/1.jpg\n2\n{FACE}\n", r"line 2: so many faces were to follow, but the list ends after 1"),
        ("a/1.jpg\n", r"line 1: the list ends before the number of faces"),
        ("a/1.jpg\none\n", r"line 2: the number of faces of 'a/1.jpg' must be a whole number from 0 up, got 'one'"),
        ("a/1.jpg\n-1\n", r"line 2: the number of faces .* got '-1'"),
        (f"a/1.jpg\n0\n{FACE}\n", r"line 3: a face follows the number 0"),
        ("a/1.jpg\n1\n1 2 30 40 0 0 0 0 0\n", r"line 3: expected a face"),
        (f"a/1.jpg\n2\n{FACE}\n{FACE} 0\n", r"line 4: expected a face"),
        (f"a/1.jpg\n1\n{FACE.replace('30', '3.5')}\n", r"line 3: expected a face"),
        (f"a/1.jpg\n1\n{FACE.replace('30', 'nan')}\n", r"line 3: expected a face"),
        (f"a/1.jpg\n1\n{FACE.replace('30', '3-0')}\n", r"line 3: expected a face"),
        (f"a/1.jpg\n1\n{FACE.replace('30', '9' * 25)}\n", r"line 3: expected a face"),
        (f"a/1.jpg\n2\n{FACE}\n\n{FACE}\n", r"line 4: expected a face"),
        (f"a/1.jpg\n1\n{FACE}\na/1.png\n1\n{FACE}\n", r"line 4: the picture 'a/1' was in line 1 already"),
        (f"../a/1.jpg\n1\n{FACE}\n", r"line 1: the path of a picture must lead into the folder"),
        (f"/a/1.jpg\n1\n{FACE}\n", r"line 1: the path of a picture must lead into the folder"),
        (b"a/1.jpg\n1\n\xff\n", r"line 3: not UTF-8"),
    ],
)
def test_faults_of_a_list_name_file_and_line(written, text, fault):
    with pytest.raises(ValueError, match=fault):
        read_face_list(written(text))


def test_a_list_without_a_fault_is_read_at_once(written, monkeypatch):
    monkeypatch.setattr(wider_files, "_face", lambda line: pytest.fail("line by line"))
    assert len(read_face_list(written(list_text({"a/1.jpg": [[1, 2, 3, 4]] * 3}))).faces) == 3


def test_a_part_of_a_list_has_the_faces_of_its_pictures(written):
    found = read_face_list(written(list_text({f"a/{n}.jpg": [[n, 0, 1, 1]] * n for n in range(5)})))
    part = found.part(np.array([0, 2, 4]))
    assert part.files == ["a/0.jpg", "a/2.jpg", "a/4.jpg"]
    assert [part.faces_of(number)[:, 0].tolist() for number in range(3)] == [[], [2, 2], [4] * 4]


def test_absent_pictures_are_counted_and_the_first_is_named(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.jpg").touch()
    looked = []
    listdir = os.listdir
    monkeypatch.setattr(os, "listdir", lambda folder: looked.append(folder) or listdir(folder))
    require_files(tmp_path, ["a/1.jpg"] * 9, "list.txt")
    assert len(looked) == 1  # no picture is asked for by itself
    with pytest.raises(FileNotFoundError, match=r"list.txt names 4 pictures, of which 3 .*: a/2.jpg and 2 more"):
        require_files(tmp_path, ["a/1.jpg", "a/2.jpg", "b/1.jpg", "b/2.jpg"], "list.txt")


def test_the_real_list_has_the_known_counts_and_attributes(real, shared):
    faces, _, folder = real
    assert (len(faces), len(faces.faces)) == (3226, 39704)
    assert (np.diff(faces.ends, prepend=0) == 0).sum() == 4
    content = loadmat(folder / "wider_face_val.mat")
    for column, name in enumerate(ATTRIBUTES):
        cells = [cell for event in content[f"{name}_label_list"].ravel() for cell in event.ravel()]
        labels = [cell.ravel() for number, cell in enumerate(cells) if len(faces.faces_of(number))]
        assert np.array_equal(np.concatenate(labels), faces.faces[:, 4 + column]), name


def test_the_real_files_of_the_evaluation_have_the_standard_totals(real):
    faces, truth, folder = real
    levelled = levelled_truth(faces, truth, folder)
    assert {level: sum(mask.sum() for mask in masks) for level, masks in levelled.keep.items()} == {
        "easy": 7211, "medium": 13319, "hard": 31958,
    }  # fmt: skip
    assert sum(map(len, levelled.boxes)) == 39708
    assert levelled.names == truth.names == faces.names
    faceless = np.flatnonzero(np.diff(faces.ends, prepend=0) == 0).tolist()
    assert [levelled.boxes[number].tolist() for number in faceless] == [[[0, 0, 0, 0]]] * 4
    assert all(np.array_equal(one, other) for one, other in zip(levelled.attributes, truth.attributes, strict=True))


def test_faces_that_count_are_numbered_from_one(tmp_path):
    folder = write_truth(
        tmp_path, BOXES, easy={"0--Parade/a": [2]}, hard={"0--Parade/a": [1, 2], "1--Handshaking/c": [1]}
    )
    truth = read_truth(folder)
    assert truth.names == list(BOXES)
    assert [boxes.tolist() for boxes in truth.boxes] == list(BOXES.values())
    masks = {level: [mask.tolist() for mask in each] for level, each in truth.keep.items()}
    assert masks == {
        "easy": [[False, True], [False], [False]],
        "medium": [[False, False], [False], [False]],
        "hard": [[True, True], [False], [True]],
    }


def test_pictures_come_in_the_order_of_the_list_with_its_attributes(tmp_path, written):
    folder = write_truth(tmp_path / "truth", BOXES, easy={"1--Handshaking/c": [1]})
    rows = {"1--Handshaking/c.jpg": [[9, 9, 9, 9, 1, 1, 1, 0, 2, 1]], "0--Parade/b.jpg": [],
            "0--Parade/a.jpg": [[1, 2, 30, 40], [5, 6, 7, 8, 2]]}  # fmt: skip
    truth = levelled_truth(read_face_list(written(list_text(rows))), read_truth(folder), folder)
    assert truth.names == ["1--Handshaking/c", "0--Parade/b", "0--Parade/a"]
    assert truth.files == list(rows)
    assert truth.keep["easy"][0].tolist() == [True]
    assert [each.tolist() for each in truth.attributes] == [
        [[1, 1, 1, 0, 2, 1]], [[0] * 6], [[0] * 6, [2, 0, 0, 0, 0, 0]],
    ]  # fmt: skip


def test_a_list_may_leave_pictures_out_and_says_so(tmp_path, written):
    folder = write_truth(tmp_path / "truth", BOXES)
    faces = read_face_list(written(list_text({"1--Handshaking/c.jpg": [[9, 9, 9, 9]]})))
    with pytest.warns(UserWarning, match="has 1 of the 3 pictures of the evaluation's files"):
        assert levelled_truth(faces, read_truth(folder), folder).names == ["1--Handshaking/c"]


def test_files_of_another_split_are_refused_with_the_first_picture(tmp_path, written):
    folder = write_truth(tmp_path / "truth", BOXES)
    faces = read_face_list(
        written(list_text({"0--Parade/b.jpg": [], "7--Cheering/x.jpg": [], "7--Cheering/y.jpg": []}))
    )
    fault = (
        r"wider_face_val.mat' is of another split than .*list.txt': it lacks 2 of its 3 pictures, the first is '7-.*x'"
    )
    with pytest.raises(ValueError, match=fault):
        levelled_truth(faces, read_truth(folder), folder)


@pytest.mark.parametrize("faces", [[[9, 9, 9, 8]], [[9, 9, 9, 9]] * 2, []])
def test_faces_that_differ_from_the_list_are_refused(tmp_path, written, faces):
    folder = write_truth(tmp_path / "truth", BOXES)
    listed = read_face_list(written(list_text({"1--Handshaking/c.jpg": faces})))
    with pytest.raises(ValueError, match=r"wider_face_val.mat' has other faces of '1--Handshaking/c' than .*list.txt'"):
        levelled_truth(listed, read_truth(folder), folder)


def test_levels_must_fit_the_faces(tmp_path):
    folder = write_truth(tmp_path, BOXES)
    fewer = {name: BOXES[name] for name in list(BOXES)[:2]}
    write_mat(folder / "wider_medium_val.mat", fewer, {})
    fault = r"wider_medium_val.mat' is of other pictures than wider_face_val.mat beside it: .* in '1--Handshaking/c'"
    with pytest.raises(ValueError, match=fault):
        read_truth(folder)
    write_mat(folder / "wider_medium_val.mat", BOXES | {"2--D/d": []}, {})
    with pytest.raises(ValueError, match=r"they differ in '2--D/d'"):
        read_truth(folder)
    write_mat(folder / "wider_medium_val.mat", BOXES | {"0--Parade/b": [[0, 0, 0, 1]]}, {})
    with pytest.raises(ValueError, match=r"wider_medium_val.mat' has other faces of '0--Parade/b'"):
        read_truth(folder)


@pytest.mark.parametrize("number", [0, 3])
def test_a_face_that_does_not_exist_cannot_count(tmp_path, number):
    folder = write_truth(tmp_path, BOXES, hard={"0--Parade/a": [number]})
    fault = rf"wider_hard_val.mat'.*gt_list must count the 2 faces of '0--Parade/a' from 1, got \[{number}\]"
    with pytest.raises(ValueError, match=fault):
        read_truth(folder)


def test_files_of_another_form_are_refused_by_name(tmp_path):
    folder = write_truth(tmp_path, BOXES)
    shutil.copy(folder / "wider_face_val.mat", folder / "wider_easy_val.mat")
    with pytest.raises(ValueError, match=r"wider_easy_val.mat' is no such file of .*: it has no gt_list"):
        read_truth(folder)
    for text in (b"", b"no matlab", (folder / "wider_hard_val.mat").read_bytes()[:300]):
        (folder / "wider_easy_val.mat").write_bytes(text)
        with pytest.raises(ValueError, match=r"wider_easy_val.mat' is no such file of .*: it"):
            read_truth(folder)
    savemat(folder / "wider_face_val.mat", {"event_list": np.zeros(3), "file_list": np.zeros(2)})
    with pytest.raises(
        ValueError, match=r"wider_face_val.mat' is no such file of .*: event_list and file_list do not fit"
    ):
        read_truth(folder)


def test_the_files_are_looked_for_in_the_usual_places(tmp_path):
    root = tmp_path / "widerface"
    root.mkdir()
    assert find_truth(root) is None
    for place in ("../eval_tools/ground_truth", "eval_ground_truth", "eval_tools/ground_truth"):
        write_truth(root / place, BOXES)
        assert find_truth(root).resolve() == (root / place).resolve()
    other = write_truth(tmp_path / "other" / "ground_truth", BOXES)
    assert find_truth(root, str(other)) == find_truth(root, str(other.parent)) == other
    for place in ("eval_ground_truth", "eval_tools"):
        shutil.rmtree(root / place)
    assert find_truth(root, beside=False) is None


def test_missing_files_of_the_evaluation_are_named(tmp_path):
    folder = write_truth(tmp_path / "eval_ground_truth", BOXES)
    (folder / "wider_easy_val.mat").unlink()
    (folder / "wider_face_val.mat").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"eval_ground_truth': no wider_face_val.mat, wider_easy_val.mat. Unpack"
    ):
        find_truth(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"eval_tools='.*nowhere' has none of wider_face_val.mat, wider_easy"):
        find_truth(tmp_path, str(tmp_path / "nowhere"))


def test_without_these_files_all_faces_of_the_list_are_the_truth(written):
    rows = [[5, 5, 0, 0], [5, 5, 9, 9, 0, 0, 0, 1, 0, 0]]
    truth = truth_of_list(read_face_list(written(list_text({"a/1.jpg": rows, "a/2.jpg": []}))))
    assert [len(boxes) for boxes in truth.boxes] == [2, 0]
    assert truth.attributes[0][:, 3].tolist() == [0, 1]
    assert truth.keep == {}
