"""Folders, lists and tables of faces: what they are read as, what is easy and hard, and every fault with its line."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.face_lists import read_column, read_faces
from datamodules.face_options import FaceSplitOptions
from datamodules.face_rules import short_sides
from lit_methods.functional.pictures import BadImageError
from tests.face_data import fill


@pytest.fixture
def root(tmp_path):
    return fill(tmp_path / "own faces ü", {"Ada": 3, "Bo": 2, "Cy": 2})


def write(root, name, *lines):
    (root / name).write_text("".join(line + "\n" for line in lines))


def table(root, *lines, header="path,difficulty", name="d.csv"):
    write(root, name, header, *lines)


def read(root, **options):
    return FaceSplitOptions(root, **options).read()


def by_branch(split):
    """Branch to its files."""
    return {
        name: sorted(str(split.path(row).relative_to(split.root)) for row in np.flatnonzero(split.kinds == number))
        for number, name in enumerate(split.branch_names)
    }


class TestReading:
    def test_a_folder_gives_its_identities_sorted_by_name(self, root):
        (root / "train" / ".hidden").mkdir()
        (root / "train" / "notes.txt").touch()
        faces = read_faces(root, "train")
        assert faces.identities == ["Ada", "Bo", "Cy"]
        assert faces.ids.tolist() == [0, 0, 0, 1, 1, 2, 2]
        assert [faces.path(row) for row in (0, 6)] == [root / "train/Ada/1.png", root / "train/Cy/2.png"]

    def test_a_list_numbers_its_labels_in_order(self, root):
        write(root, "list.txt", "train/Bo/1.png\t10", "", "train/./Ada/1.png\t9", "train/Ada/2.png\t9")
        faces = read_faces(root, "list.txt")
        assert (faces.identities, faces.ids.tolist()) == (["9", "10"], [1, 0, 0])
        assert faces.names.tolist() == [b"train/Bo/1.png", b"train/Ada/1.png", b"train/Ada/2.png"]

    def test_a_list_of_pairs_stands_for_the_pictures_in_it(self, root):
        pairs = ["train/Ada/1.png\ttrain/Ada/2.png\t0", "train/Ada/2.png\ttrain/Ada/3.png\t0"]
        write(root, "pairs.txt", *pairs, "train/Bo/1.png\ttrain/Bo/2.png\t1")
        faces = read_faces(root, "pairs.txt")
        assert [name.decode()[6:-4] for name in faces.names] == ["Ada/1", "Ada/2", "Ada/3", "Bo/1", "Bo/2"]
        assert faces.ids.tolist() == [0, 0, 0, 1, 1]

    def test_absolute_paths_and_a_list_elsewhere(self, root, tmp_path):
        write(tmp_path, "list.txt", f"{root}/train/Ada/1.png\t0", "train/Bo/1.png\t1")
        faces = read_faces(root, str(tmp_path / "list.txt"))
        assert [faces.path(row).is_file() for row in range(2)] == [True, True]

    @pytest.mark.parametrize(
        ("lines", "message"),
        [
            (["{a}\t0", "{b} 1"], "list.txt, line 2: expected path<TAB>label, got '.*Bo/1.png 1'"),
            (["{a}\t0", "", "{b}\tBo"], "line 3: the label must be a whole number from 0, got 'Bo'"),
            (["{a}\t-1"], "line 1: the label must be a whole number from 0, got '-1'"),
            (["{a}\t" + "9" * 30], "line 1: the label must be a whole number from 0"),
            (["{a}\t{b}\t0", "{b}\t1"], "line 2: expected pathA<TAB>pathB<TAB>label, as the lines before it"),
            (["{a}\t0", "{b}\t{a}\t1"], "line 2: expected path<TAB>label"),
            (["\t0"], "line 1: expected path<TAB>label"),
            (["faces\t0\t77\t5"], "line 1: 4 fields, as in lists of TFRecord files"),
            (["faces\t0\t77\t5\tfaces\t0\t99\t5"], "line 1: 8 fields, as in lists of TFRecord files"),
            (["{a}\t0", "{b}\t1", "{a}\t0"], "line 3: 'train/Ada/1.png' stands in line 1 already"),
            (["{a}\t0", "{a}\t1"], "line 2: 'train/Ada/1.png' has label 1, in line 1 it has 0"),
            (["{a}\t{a}\t0"], "line 1: 'train/Ada/1.png' makes a pair with itself"),
            (["{a}\t{b}\t0", "{b}\ttrain/Cy/1.png\t1"], "line 2: 'train/Bo/1.png' has label 1, in line 1 it has 0"),
            ([], "names no pictures"),
        ],
    )
    def test_a_line_that_does_not_parse_is_named(self, root, lines, message):
        write(root, "list.txt", *(line.format(a="train/Ada/1.png", b="train/Bo/1.png") for line in lines))
        with pytest.raises(ValueError, match=message):
            read_faces(root, "list.txt")

    def test_a_picture_of_a_list_that_is_not_there_is_named_with_its_line(self, root):
        lines = ["train/Ada/1.png\t0", "train/Ada/9.png\t0", "train/Bo/8.png\t1", "nowhere/1.png\t2"]
        write(root, "list.txt", *lines)
        with pytest.raises(
            FileNotFoundError, match=r"list.txt, line 2: there is no picture 'train/Ada/9.png' in root="
        ):
            read_faces(root, "list.txt")
        write(root, "list.txt", lines[0], lines[3])
        with pytest.raises(FileNotFoundError, match=r"list.txt, line 2: there is no picture 'nowhere/1.png'"):
            read_faces(root, "list.txt")

    def test_a_folder_that_is_none_of_identities(self, root):
        with pytest.raises(ValueError, match=r"train='train/Ada' .* has no folders of identities. Its pictures lie l"):
            read_faces(root, "train/Ada")
        (root / "train/Di/1").mkdir(parents=True)
        with pytest.raises(ValueError, match="no pictures in these identity folders of train='train': Di"):
            read_faces(root, "train")
        with pytest.raises(FileNotFoundError, match="train='nowhere' is not in root="):
            read_faces(root, "nowhere")


class TestTables:
    def test_difficulties(self, root):
        masked = ["Bo/2.png,hard:mask", "Ada/2.png,hard: mask"]
        table(root, "Ada/1.png,easy", *masked, "Bo/1.png,easy", "Cy/1.png,hard", "Ada/3.png,hard")
        split = read(root, difficulty="d.csv")
        assert by_branch(split) == {
            "easy": ["train/Ada/1.png", "train/Bo/1.png"],
            "hard": ["train/Ada/3.png", "train/Cy/1.png"],
            "mask": ["train/Ada/2.png", "train/Bo/2.png"],
        }
        assert (split.num_classes, split.unused) == (3, 1)

    def test_other_columns_quotes_and_marks_of_spreadsheets(self, root):
        text = (
            '\ufeffdifficulty,who, path\neasy,"a, b",Ada/1.png\neasy,b,Bo/1.png\n\nhard,c,Ada/2.png\nhard,c,Bo/2.png\n'
        )
        (root / "d.csv").write_text(text, encoding="utf-8")
        assert by_branch(read(root, difficulty="d.csv"))["hard"] == ["train/Ada/2.png", "train/Bo/2.png"]

    def test_a_table_about_a_list_has_the_paths_of_the_list(self, root):
        names = [f"train/{name}.png" for name in ("Ada/1", "Ada/2", "Bo/1", "Bo/2")]
        write(root, "list.txt", *(f"{name}\t{i // 2}" for i, name in enumerate(names)))
        table(root, *(f"{name},{word}" for name, word in zip(names, ["easy", "hard"] * 2, strict=True)))
        assert by_branch(read(root, train="list.txt", difficulty="d.csv"))["easy"] == [names[0], names[2]]

    @pytest.mark.parametrize(
        ("lines", "message"),
        [
            (["Ada/1.png,easy", "Ada/2.png,medium"], "d.csv, line 3: the difficulty must be easy, hard or hard:<name>"),
            (["Ada/1.png,"], "line 2: the difficulty must be easy, hard or hard:<name>, got ''"),
            (["Ada/1.png,hard:"], "line 2: the difficulty must be .* got 'hard:'"),
            (["Ada/1.png,hard:easy"], "line 2: the difficulty must be .* got 'hard:easy'"),
            (["Ada/1.png,easy", "Ada/9.png,easy"], "line 3: 'Ada/9.png' is none of the 7 pictures of train='train'"),
            (["Ada/1.png,easy", "Bo/1.png,hard", "Ada/1.png,hard"], "line 4: 'Ada/1.png' stands in line 2 already"),
            (["Ada/1.png"], "line 2: expected 2 fields with commas between them"),
            (["Ada/1.png,easy", "Bo/1.png,easy"], "no picture is hard by column difficulty of .*d.csv"),
            (["Ada/1.png,hard", "Bo/1.png,hard"], "no picture is easy by column difficulty"),
            (["Ada/1.png,easy", "Bo/1.png,easy", "Bo/2.png,hard"], "branch 'hard' shows one identity, Bo"),
        ],
    )
    def test_a_fault_is_named_with_its_line(self, root, lines, message):
        table(root, *lines)
        with pytest.raises(ValueError, match=message):
            read(root, difficulty="d.csv")

    def test_columns_that_are_missing(self, root):
        table(root, "Ada/1.png;easy", header="path;difficulty")
        with pytest.raises(
            ValueError, match=r"d.csv has no column path and no column difficulty; .* got 'path;difficu"
        ):
            read(root, difficulty="d.csv")
        table(root, "Ada/1.png,3", header="path,yaw")
        with pytest.raises(ValueError, match=r"d.csv has no column group"):
            read(root, difficulty="d.csv", rule="group", easy_group="a")
        (root / "d.csv").write_text("")
        with pytest.raises(ValueError, match="got an empty file"):
            read(root, difficulty="d.csv")
        with pytest.raises(FileNotFoundError, match=r"difficulty='.*e.csv' is not there"):
            read(root, difficulty="e.csv")

    def test_a_field_without_end(self, root):
        (root / "d.csv").write_text('path,difficulty\n"' + "x" * 200_000)
        with pytest.raises(ValueError, match=r"d.csv, line 2: field larger than field limit"):
            list(read_column(root / "d.csv", "difficulty", read_faces(root, "train")))


class TestRules:
    def test_pose_leaves_out_what_is_between(self, root):
        yaws = {"Ada/1": 15, "Ada/2": -45, "Ada/3": 44.9, "Bo/1": -15, "Bo/2": 90, "Cy/1": 15.1, "Cy/2": -3}
        table(root, *(f"{name}.png,{yaw}" for name, yaw in yaws.items()), header="path,yaw")
        split = read(root, difficulty="d.csv", rule="pose")
        easy = ["train/Ada/1.png", "train/Bo/1.png", "train/Cy/2.png"]
        assert by_branch(split) == {"easy": easy, "hard": ["train/Ada/2.png", "train/Bo/2.png"]}
        split = read(root, difficulty="d.csv", rule="pose", easy_yaw=15.1, hard_yaw=44.9)
        assert by_branch(split)["easy"] == [*easy[:2], "train/Cy/1.png", "train/Cy/2.png"]
        assert by_branch(split)["hard"] == ["train/Ada/2.png", "train/Ada/3.png", "train/Bo/2.png"]

    @pytest.mark.parametrize("yaw", ["", "left", "nan", "inf", "181"])
    def test_a_yaw_that_is_none(self, root, yaw):
        table(root, "Ada/1.png,3", f"Ada/2.png,{yaw}", header="path,yaw")
        with pytest.raises(ValueError, match=r"d.csv, line 3: the yaw must be degrees from -180 to 180"):
            read(root, difficulty="d.csv", rule="pose")

    def test_each_other_group_is_a_branch(self, root):
        groups = {"Ada/1": "x", "Ada/2": "b", "Ada/3": "a", "Bo/1": "x", "Bo/2": "b", "Cy/1": "a"}
        table(root, *(f"{name}.png,{group}" for name, group in groups.items()), header="path,group")
        split = read(root, difficulty="d.csv", rule="group", easy_group="x")
        assert split.branch_names == ["easy", "a", "b"]
        assert by_branch(split)["a"] == ["train/Ada/3.png", "train/Cy/1.png"]
        with pytest.raises(ValueError, match="easy_group='y': no picture is easy by column group"):
            read(root, difficulty="d.csv", rule="group", easy_group="y")
        table(root, "Ada/1.png,x", "Ada/2.png,", header="path,group")
        with pytest.raises(ValueError, match=r"d.csv, line 3: the group must be a name"):
            read(root, difficulty="d.csv", rule="group", easy_group="x")

    def test_resolution_is_the_short_side_as_stored(self, root):
        sizes = {"Ada/1": (64, 90), "Ada/2": (90, 31), "Ada/3": (32, 32), "Bo/1": (63, 64), "Bo/2": (31, 31)}
        for name, size in sizes.items():
            Image.new("RGB", size).save(root / f"train/{name}.png")
        Image.new("RGB", (64, 64)).save(root / "train/Cy/1.png")
        split = read(root, rule="resolution", easy_side=64, hard_side=32)
        assert by_branch(split) == {
            "easy": ["train/Ada/1.png", "train/Cy/1.png"],
            "hard": ["train/Ada/2.png", "train/Bo/2.png", "train/Cy/2.png"],
        }
        with pytest.raises(
            ValueError, match="easy_side=100 and hard_side=2: no picture is easy and none is hard; short"
        ):
            read(root, rule="resolution", easy_side=100, hard_side=2)

    def test_only_the_beginning_of_a_file_is_read_for_its_size(self, root, monkeypatch):
        monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda *_: pytest.fail("pixels were read"))
        assert short_sides(read_faces(root, "train")).tolist() == [4] * 7

    def test_a_file_without_a_size(self, root):
        (root / "train/Cy/1.png").write_bytes(b"no picture")
        faces = read_faces(root, "train")
        with pytest.raises(BadImageError, match=r'cannot read the image .*Cy/1.png.* or set on_bad_image="skip"'):
            short_sides(faces)
        assert short_sides(faces, skip=True).tolist() == [4, 4, 4, 4, 4, 0, 4]

    def test_without_any_rule_all_is_easy(self, root):
        split = read(root)
        assert (split.branch_names, split.num_classes, split.unused) == (["easy"], 3, 0)
        (branch,) = split.branches()
        assert branch.positions.tolist() == list(range(7))
        assert branch.labels.tolist() == [0, 0, 0, 1, 1, 2, 2]

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"easy": "a", "hard": {"hard": "b"}, "difficulty": "d"}, "easy and hard, difficulty: what is hard must"),
            ({"difficulty": "d", "hard_scales": [2]}, "difficulty, hard_scales: what is hard must be said in one way"),
            ({"rule": "resolution", "easy_side": 9, "hard_side": 9, "difficulty": "d"}, "difficulty, rule=resolution:"),
            ({"rule": "pose", "difficulty": "d", "hard_scales": [2]}, "rule=pose, hard_scales: what is hard"),
            ({"easy": "a"}, "easy is given without hard"),
            ({"hard": {"hard": "b"}}, "hard is given without easy"),
            ({"easy": "a", "hard": {}}, "hard must name one branch at least"),
            ({"easy": "a", "hard": {"easy": "b"}}, "hard must not call a branch 'easy'"),
            ({"rule": "pose"}, 'rule="pose" needs difficulty, a CSV table with path,yaw'),
            ({"rule": "group", "easy_group": "a"}, 'rule="group" needs difficulty, a CSV table with path,group'),
            ({"rule": "group", "difficulty": "d"}, 'rule="group" needs easy_group'),
            ({"rule": "resolution", "easy_side": 9}, 'rule="resolution" needs hard_side'),
            ({"rule": "resolution", "easy_side": 9, "hard_side": 10}, "hard_side must be between 1 and easy_side=9"),
            ({"rule": "age"}, "rule must be resolution, pose, group or null, got 'age'"),
            ({"easy_side": 3}, 'easy_side=3 has no effect without rule="resolution"'),
            ({"easy_group": "a"}, "easy_group='a' has no effect without rule=\"group\""),
            ({"easy_yaw": 50}, "0 <= easy_yaw < hard_yaw <= 180, got 50 and 45"),
            ({"hard_scales": []}, r"hard_scales must be factors of 2 or more, such as \[2, 3, 4\], got \[\]"),
            ({"hard_scales": [2, 1]}, "hard_scales must be factors of 2 or more"),
            ({"identities": "both"}, "identities must be shared, separate or null, got 'both'"),
        ],
    )
    def test_what_is_hard_is_said_in_one_way(self, options, message):
        with pytest.raises(ValueError, match=message):
            FaceSplitOptions(Path("nowhere"), **options)


class TestIdentities:
    @pytest.fixture
    def lists(self, root):
        write(root, "easy.txt", "train/Ada/1.png\t0", "train/Ada/2.png\t0", "train/Bo/1.png\t1", "train/Cy/1.png\t2")
        write(root, "hard.txt", "train/Bo/2.png\t1", "train/Cy/2.png\t2")
        return {"easy": "easy.txt", "hard": {"hard": "hard.txt"}}

    def test_labels_that_overlap_silently_are_refused(self, root, lists):
        with pytest.raises(
            ValueError, match=r"2 identities are in easy='easy.txt' and in hard.hard='hard.txt': 1, 2. S"
        ):
            read(root, **lists)

    def test_shared_labels_are_one_class(self, root, lists):
        split = read(root, **lists, identities="shared")
        easy, hard = split.branches()
        assert split.num_classes == 3
        assert (easy.labels.tolist(), hard.labels.tolist()) == ([0, 0, 1, 2], [1, 2])
        assert hard.partners.tolist() == [2, 3, 4, 5]  # of Bo and Cy, easy and hard; none of Ada
        assert hard.partner_labels.tolist() == [1, 2, 1, 2]

    def test_separate_labels_are_other_persons(self, root, lists):
        split = read(root, **lists, identities="separate")
        easy, hard = split.branches()
        assert split.num_classes == [3, 2]
        assert (easy.labels.tolist(), hard.labels.tolist()) == ([0, 0, 1, 2], [0, 1])
        assert hard.partners.tolist() == [4, 5]

    def test_labels_of_different_numbers_are_separate_by_themselves(self, root, lists):
        write(root, "hard.txt", "train/Bo/2.png\t10", "train/Cy/2.png\t9")
        assert read(root, **lists).num_classes == [3, 2]
        shared = read(root, **lists, identities="shared")
        assert shared.num_classes == 5
        assert shared.branches()[1].labels.tolist() == [4, 3]  # in the order of the numbers, not of the text

    def test_two_folders(self, root):
        fill(root, {"Bo": 2, "Cy": 2}, folder="dark")
        places = {"easy": "train", "hard": {"dark": "dark"}}
        with pytest.raises(
            ValueError, match=r"2 identities are in easy='train' and in hard.dark='dark': Bo, Cy. Set ident"
        ):
            read(root, **places)
        shared = read(root, **places, identities="shared")
        assert (shared.branch_names, shared.num_classes) == (["easy", "dark"], 3)
        assert shared.branches()[1].labels.tolist() == [1, 1, 2, 2]

    def test_a_picture_in_two_lists_is_refused(self, root, lists):
        write(root, "hard.txt", "train/Bo/2.png\t1", f"{root}/train/../train/Cy/1.png\t2")
        with pytest.raises(
            ValueError, match=r"/train/Cy/1.png' is in easy='easy.txt' and in hard.hard='hard.txt'; a picture is easy"
        ):
            read(root, **lists, identities="shared")

    def test_separate_heads_of_one_folder_still_make_mixed_pairs(self, root):
        table(root, "Ada/1.png,easy", "Bo/1.png,easy", "Cy/1.png,easy", "Bo/2.png,hard", "Cy/2.png,hard")
        split = read(root, difficulty="d.csv", identities="separate")
        easy, hard = split.branches()
        assert (split.num_classes, easy.labels.tolist(), hard.labels.tolist()) == ([3, 2], [0, 1, 2], [0, 1])
        assert dict(zip(hard.partners.tolist(), hard.partner_labels.tolist(), strict=True)) == {3: 0, 4: 0, 5: 1, 6: 1}

    def test_classes_are_those_that_are_used(self, root):
        table(root, "Ada/1.png,easy", "Cy/1.png,easy", "Ada/2.png,hard", "Cy/2.png,hard")
        split = read(root, difficulty="d.csv")
        assert (split.num_classes, split.branches()[0].labels.tolist()) == (2, [0, 1])

    def test_one_identity_is_refused(self, tmp_path):
        with pytest.raises(ValueError, match=r"train='train' of root=.* shows 1 identity, Ada; it takes two at least"):
            read(fill(tmp_path, {"Ada": 3}))


class TestPairs:
    def test_hard_pairs_of_hard_pictures_alone(self, root):
        table(root, "Ada/1.png,easy", "Bo/1.png,easy", "Ada/2.png,hard", "Ada/3.png,hard", "Bo/2.png,hard")
        split = read(root, difficulty="d.csv")
        mixed, hard = (split.branches(how)[1] for how in ("mixed", "hard"))
        assert (mixed.partners.tolist(), hard.partners) == ([0, 1, 2, 3, 4], None)
        assert split.without_pair(mixed) == []
        with pytest.raises(
            ValueError, match="branch 'hard' needs positive pairs of two identities at least, but 1 of its"
        ):
            split.without_pair(hard)

    def test_identities_with_one_picture_are_found_by_name(self, tmp_path):
        split = read(fill(tmp_path, {"Ada": 1, "Bo": 2, "Cy": 1, "Di": 2}))
        assert split.without_pair(split.branches()[0]) == ["Ada", "Cy"]
        split = read(fill(tmp_path / "b", {"Ada": 1, "Bo": 1, "Cy": 1}))
        with pytest.raises(ValueError, match=r"3 of its 3 identities have one usable picture alone: Ada, Bo, Cy. Give"):
            split.without_pair(split.branches()[0])

    def test_a_picture_and_its_copy_are_no_pair(self, tmp_path):
        split = read(fill(tmp_path, {"Ada": 1, "Bo": 2, "Cy": 2}), hard_scales=[2])
        easy, hard = split.branches()
        assert (easy.positions.tolist(), hard.positions.tolist()) == ([0, 1, 2, 3, 4], [5, 6, 7, 8, 9])
        assert hard.partners.tolist() == list(range(10))
        assert hard.sources.tolist() == [0, 1, 2, 3, 4] * 2
        assert split.without_pair(hard) == ["Ada"]
        assert split.num_classes == 3

    def test_broken_pictures_leave_the_classes_as_they_are(self, root):
        split = read(root)
        (branch,) = split.branches(bad=np.array([0, 1, 2, 4]))
        assert (branch.positions.tolist(), branch.labels.tolist(), split.num_classes) == ([3, 5, 6], [1, 2, 2], 3)
