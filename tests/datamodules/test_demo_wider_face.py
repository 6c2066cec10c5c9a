"""Drawn pictures in WIDER FACE's layout: the same files every time, and an annotation that is true."""

import itertools
import math

import numpy as np
import pytest
from PIL import Image

from datamodules.demo import face_scenes, write_wider_face
from datamodules.demo.face_drawing import Pose, _Drawing
from datamodules.demo.face_identity import face_identity
from datamodules.demo.face_scenes import MOST, SPLITS, SceneFace, face_scene
from datamodules.demo.wider_face import LEAST, LEVELS, levels_of
from datamodules.wider_files import read_face_list

TINY = {"train": 1, "val": 1, "size": (128, 128), "faces": 2}
SMALL = {"train": 6, "val": 12, "test": 1, "size": (128, 144)}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_wider_face(tmp_path_factory.mktemp("wider") / "widerface", **SMALL)


def content(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def list_of(root, split):
    return read_face_list(root / "wider_face_split" / f"wider_face_{split}_bbx_gt.txt")


def test_the_same_arguments_write_the_same_files(tmp_path):
    first, again, other = (
        content(write_wider_face(tmp_path / name, **TINY, seed=seed))
        for name, seed in (("first", 0), ("again", 0), ("other", 1))
    )
    assert first == again
    assert not [name for name in first if first[name] == other[name] and name.endswith((".jpg", ".txt"))]


def test_the_very_same_set_is_left_and_another_one_refused(tmp_path):
    root = write_wider_face(tmp_path / "set", **TINY)
    readme = (root / "readme.txt").stat().st_mtime_ns
    write_wider_face(tmp_path / "set", **TINY)
    assert (root / "readme.txt").stat().st_mtime_ns == readme
    with pytest.raises(ValueError, match="something else in it"):
        write_wider_face(tmp_path / "set", **TINY | {"faces": 1})


def test_the_lists_name_the_pictures_that_are_there(root):
    for split in ("train", "val"):
        folder = root / f"WIDER_{split}" / "images"
        there = sorted(path.relative_to(folder).as_posix() for path in folder.glob("*/*.jpg"))
        assert sorted(list_of(root, split).files) == there
        assert len(there) == SMALL[split]
    assert "59--people--driving--car/59_peopledrivingcar_peopledrivingcar_59_1.jpg" in list_of(root, "val").files
    listed = (root / "wider_face_split" / "wider_face_test_filelist.txt").read_text().splitlines()
    assert listed == [
        path.relative_to(root / "WIDER_test/images").as_posix() for path in sorted(root.glob("WIDER_test/images/*/*"))
    ]


def test_a_picture_without_faces_has_a_line_of_zeros(root):
    lines = (root / "wider_face_split" / "wider_face_train_bbx_gt.txt").read_text().splitlines()
    assert lines[lines.index("0") + 1] == "0 0 0 0 0 0 0 0 0 0 "
    assert lines[-2:] == ["0", "0 0 0 0 0 0 0 0 0 0 "]  # the sixth of six events


def test_the_faces_lie_in_their_pictures_and_are_higher_than_wide(root):
    sizes = set()
    for split in ("train", "val"):
        faces = list_of(root, split)
        for number, file in enumerate(faces.files):
            with Image.open(root / f"WIDER_{split}" / "images" / file) as picture:
                wide, high = picture.size
            sizes |= {(split, high, wide)}
            x, y, w, h = faces.faces_of(number)[:, :4].T
            assert min(x.min(initial=0), y.min(initial=0)) >= 0
            assert (x + w).max(initial=0) <= wide
            assert (y + h).max(initial=0) <= high
            assert h.min(initial=9) >= 6
            assert h.max(initial=9) <= 0.6 * min(wide, high)
    assert {size for size in sizes if size[0] == "train"} == {("train", 128, 144)}
    assert len({size for size in sizes if size[0] == "val"}) > 2
    assert min(min(size[1:]) for size in sizes) >= 128
    found = np.concatenate([list_of(root, split).faces for split in ("train", "val")])
    assert 1.1 < (found[:, 3] / found[:, 2]).mean() < 1.5


def test_the_evaluation_files_are_read_like_the_official_ones(root):
    from scipy.io import loadmat

    faces, folder = list_of(root, "val"), root / "eval_tools" / "ground_truth"
    keep = {}
    for level in (*LEVELS, "face"):
        file = loadmat(folder / f"wider_{level}_val.mat")
        events, names, boxes = file["event_list"], file["file_list"], file["face_bbx_list"]
        place, counted = 0, []
        for i in range(len(events)):
            for j in range(len(names[i][0])):
                assert f"{events[i][0][0]}/{names[i][0][j][0][0]}" == faces.names[place]
                truth = faces.faces_of(place)
                wanted = truth if len(truth) else np.zeros((1, 10), int)
                assert boxes[i][0][j][0].tolist() == wanted[:, :4].tolist()
                assert file["occlusion_label_list"][i][0][j][0].ravel().tolist() == wanted[:, 8].tolist()
                if level != "face":
                    places = file["gt_list"][i][0][j][0]
                    assert places.shape[1:] == (1,)
                    rows = [SceneFace(tuple(row[:4]), *row[4:]) for row in truth.tolist()]
                    assert places.ravel().tolist() == [n for n, row in enumerate(rows, 1) if level in levels_of(row)]
                    counted += [(place, int(n)) for n in places.ravel()]
                place += 1
        assert place == len(faces)
        keep[level] = set(counted)
    assert set() < keep["easy"] < keep["medium"] < keep["hard"]
    assert len(keep["hard"]) < len(faces.faces)


def test_levels_follow_height_occlusion_blur_and_validity():
    def levels(height, **changes):
        told = {"blur": 0, "expression": 0, "illumination": 0, "invalid": 0, "occlusion": 0, "pose": 0}
        return levels_of(SceneFace((0, 0, 9, height), **told | changes))

    assert [len(levels(LEAST[level])) for level in LEVELS] == [3, 2, 1]
    assert [len(levels(LEAST[level] - 1)) for level in LEVELS] == [2, 1, 0]
    assert levels(90, occlusion=1) == levels(90, blur=2) == ("medium", "hard")
    assert levels(90, occlusion=2) == levels(90, invalid=1) == ()


@pytest.mark.parametrize(("yaw", "roll"), [(0.0, 0.0), (25.0, -8.0), (-50.0, 20.0)])
def test_a_box_is_the_extent_of_the_head_that_is_drawn(yaw, roll):
    for number in range(4):
        who, pose, side = face_identity(number), Pose(yaw=yaw, roll=roll, scale=0.5), 300
        rows, columns = np.nonzero(_Drawing(who, pose, side, None).canvas.inside >= 0.5)
        height = (who.chin + who.crown) * pose.scale * side / 2
        outline = face_scenes._outline(who, pose) * height + side / 2
        low, high = outline.min(0), outline.max(0)
        assert np.abs([columns.min() - low[0], rows.min() - low[1]]).max() < 1.5
        assert np.abs([columns.max() + 1 - high[0], rows.max() + 1 - high[1]]).max() < 1.5


def test_what_is_hidden_is_told(monkeypatch):
    scene, described = [], face_scenes._described
    monkeypatch.setattr(face_scenes, "_described", lambda head, least: scene.append(head) or described(head, least))
    faces, shares, overlaps = [], [], 0
    for number in range(10):
        scene.clear()
        faces += face_scene("val", number, (128, 144))[1]
        shares += [head.share for head in scene]
        for far, near in itertools.combinations(scene, 2):  # where two heads meet, only the nearer one is seen
            overlaps += int((far.mask & near.mask).sum())
            assert not (far.seen & near.mask).any()
    assert overlaps > 100
    assert len(faces) == len(shares) > 12
    for face, share in zip(faces, shares, strict=True):
        assert face.occlusion == (0 if share > 0.95 else 1 if share > 0.7 else 2)
    assert {face.occlusion for face in faces} == {0, 1, 2}


@pytest.mark.parametrize("split", SPLITS)
def test_each_split_has_people_and_photographs_of_its_own(split, monkeypatch):
    people, parts = set(), set()
    part = face_scenes.things.photograph_part
    monkeypatch.setattr(face_scenes, "face_identity", lambda n, seed: people.add(n) or face_identity(n, seed))
    monkeypatch.setattr(face_scenes.things, "photograph_part", lambda name, of: parts.add(of) or part(name, of))
    for number in range(2):
        face_scene(split, number, (128, 128), faces=3)
    assert {number // MOST for number in people} == {SPLITS.index(split)}
    assert parts == {"train" if split == "train" else "test"}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"train": 0}, "train must be at least 1, got 0"),
        ({"val": 0}, "val must be at least 1, got 0"),
        ({"faces": 0}, "faces must be at least 1, got 0"),
        ({"size": (128, 100)}, "width of size must be at least 128, got 100"),
        ({"heights": (4, 60)}, "heights must be two numbers from 8 up"),
        ({"heights": (60, 40)}, "heights must be two numbers from 8 up"),
        ({"heights": (math.nan, 40)}, "heights must be two numbers from 8 up"),
    ],
)
def test_numbers_out_of_range_are_refused(tmp_path, wrong, message):
    with pytest.raises(ValueError, match=message):
        write_wider_face(tmp_path / "set", **TINY | wrong)
    assert not (tmp_path / "set").exists()
