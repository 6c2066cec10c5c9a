"""Drawn faces: LFW's layout, the same files every time, and people whom few pixels do not tell apart."""

import csv
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from datamodules.demo import faces, write_faces
from datamodules.demo.face_drawing import Light, Pose, draw_face
from datamodules.demo.face_identity import RANGES, face_identity
from datamodules.demo.faces import EASY_YAW, HARD_YAW, NAMES, SPLITS, picture_of
from tests.datamodules.two_writers import in_step, twice_at_once

SMALL = {"train_ids": 3, "val_ids": 2, "test_ids": 4, "easy": 3, "hard": 4, "probes": 2, "folds": 2, "size": 32}
LISTS = [
    "difficulty.csv",
    "test/hard_pairs.txt",
    "test/pairs.txt",
    "test/probes.csv",
    "val/pairs.txt",
    "val/probes.csv",
]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_faces(tmp_path_factory.mktemp("faces"), **SMALL)


def content(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def pairs(path):
    """Folds, pairs per fold and the lines as (identity, number, identity, number)."""
    first, *lines = path.read_text().splitlines()
    folds, count = map(int, first.split("\t"))
    fields = [line.split("\t") for line in lines]
    assert [len(line) for line in fields] == ([3] * count + [4] * count) * folds
    return (
        folds,
        count,
        [(line[0], int(line[1]), line[-2] if len(line) == 4 else line[0], int(line[-1])) for line in fields],
    )


def test_the_same_arguments_write_the_same_files(root, tmp_path):
    first, again = content(root), content(write_faces(tmp_path / "again", **SMALL))
    assert first == again
    other = content(write_faces(tmp_path / "other", **SMALL, seed=1))
    same = {name for name in first if first[name] == other.get(name)}
    assert not same, same  # not one picture, name or list is the other seed's


def test_the_layout_is_that_of_lfw(root):
    files = content(root)
    pictures = [name for name in files if name.endswith(".jpg")]
    assert sorted(set(files) - set(pictures)) == sorted([*LISTS, "readme.txt"])
    assert all(re.fullmatch(r"(train|val|test)/([A-Z][a-z]+_[A-Z][a-z]+)/\2_\d{4}\.jpg", name) for name in pictures)
    people = {split: {path.name for path in (root / split).iterdir() if path.is_dir()} for split in SPLITS}
    assert {split: len(names) for split, names in people.items()} == {"train": 3, "val": 2, "test": 4}
    assert len(set.union(*people.values())) == 9  # nobody is in two splits
    assert len(pictures) == 3 * 7 + (2 + 4) * 5
    for name in pictures:
        picture = Image.open(root / name)
        assert (picture.format, picture.mode, picture.size) == ("JPEG", "RGB", (32, 32))


def test_difficulty_says_what_each_training_picture_is(root):
    rows = table(root / "difficulty.csv")
    assert list(rows[0]) == ["path", "difficulty", "yaw", "group", "resolution"]
    assert sorted(row["path"] for row in rows) == sorted(
        str(path.relative_to(root / "train")) for path in (root / "train").rglob("*.jpg")
    )
    easy, hard = ([row for row in rows if row["difficulty"] == kind] for kind in ("easy", "hard"))
    assert (len(easy), len(hard)) == (9, 12)
    assert all(row["resolution"] == "1" and abs(float(row["yaw"])) <= EASY_YAW for row in easy)
    assert {int(row["resolution"]) for row in hard} <= {4, 5, 6, 7, 8}
    turns = np.abs([float(row["yaw"]) for row in hard]).reshape(3, 4)
    quarters = np.sort((turns / HARD_YAW * 4).astype(int), axis=1)
    assert quarters.tolist() == [[0, 1, 2, 3]] * 3  # everybody is seen at all turns
    looks = {row["path"].split("/")[0]: row["group"] for row in rows}
    assert sorted(looks.values()) == ["a", "a", "b"]


def test_pairs_are_of_one_identity_then_of_two_and_none_comes_twice(root):
    for name, second in (
        ("val/pairs.txt", range(1, 4)),
        ("test/pairs.txt", range(1, 4)),
        ("test/hard_pairs.txt", range(4, 6)),
    ):
        folds, count, found = pairs(root / name)
        same = np.array([a == b for a, _, b, _ in found]).reshape(folds, 2, count)
        assert (folds, same[:, 0].all(), same[:, 1].any()) == (2, True, False)
        assert len({frozenset([(a, i), (b, j)]) for a, i, b, j in found}) == len(found)
        assert all(i in range(1, 4) and j in second for _, i, _, j in found)  # the first three are easy
        folder = (root / name).parent
        assert all((folder / a / f"{a}_{i:04d}.jpg").is_file() for *_, a, i in found)
    assert pairs(root / "test/pairs.txt")[1] == 4 * 3 // 2  # fewer than 30: there are not so many
    assert pairs(root / "test/hard_pairs.txt")[1] == 4 * 3 * 2 // 2


def test_as_many_pairs_as_asked_for_where_there_are_enough(tmp_path):
    root = write_faces(tmp_path / "faces", **SMALL | {"pairs": 2, "folds": 3, "val_ids": 0})
    assert pairs(root / "test/pairs.txt")[:2] == (3, 2)
    assert not (root / "val").exists()


def test_the_gallery_is_one_easy_picture_of_everybody(root):
    for split, ids in (("val", 2), ("test", 4)):
        rows = table(root / split / "probes.csv")
        assert list(rows[0]) == ["path", "label", "group"]
        assert [row["group"] for row in rows] == ["gallery", "easy", "easy", "hard", "hard"] * ids
        assert all(row["path"].split("/")[0] == row["label"] for row in rows)
        assert all((root / split / row["path"]).is_file() for row in rows)
        assert len({row["path"] for row in rows}) == len(rows)


def test_the_test_set_does_not_depend_on_the_training_set(root, tmp_path):
    more = content(write_faces(tmp_path / "more", **SMALL | {"train_ids": 5, "easy": 1}))
    few = content(root)
    assert {name for name in few if name.startswith(("val/", "test/")) and few[name] != more[name]} == set()


def detail(picture):
    """What is left of a picture without its coarse part."""
    small = picture.resize((8, 8), Image.Resampling.BOX).resize(picture.size, Image.Resampling.BILINEAR)
    return np.abs(np.asarray(picture, float) - np.asarray(small, float)).mean()


def test_hard_pictures_have_lost_their_details():
    for number in range(4):
        sharp, four, eight = (detail(picture_of(number, 0, 1, 0.0, factor)) for factor in (1, 4, 8))
        assert sharp > 1.4 * four > 1.4 * eight


def features(picture):
    """The middle of the face, in grey and without its mean."""
    pixels = np.asarray(picture.convert("L"), float)[20:54, 16:48]
    return (pixels - pixels.mean()).ravel() / pixels.std()


def found(resolution):
    """How many of 20 people of one look their nearest neighbour in pixels is."""
    people = range(0, 40, 2)
    gallery = np.stack([features(picture_of(number, 0, 1, 0.0)) for number in people])
    probes = np.stack([features(picture_of(number, 0, 2, 0.0, resolution)) for number in people])
    return ((probes @ gallery.T).argmax(1) == np.arange(20)).mean()


def test_features_tell_people_apart_and_few_pixels_do_not():
    sharp, coarse = found(1), found(8)
    assert sharp >= 0.5
    assert coarse <= sharp - 0.2


def test_people_differ_in_every_feature():
    people = [face_identity(number) for number in range(40)]
    for name, (low, high) in RANGES.items():
        values = np.array([getattr(who, name) for who in people])
        assert low <= values.min() < values.max() <= high, name
        assert values.max() - values.min() > 0.7 * (high - low), name
    assert {who.look for who in people} == {"a", "b"}
    assert face_identity(3, seed=1) != face_identity(3, seed=2)
    assert len(set(faces._names(0))) == len(faces._names(0)) == np.prod([len(parts) for parts in NAMES])
    assert len(faces._names(0)) >= faces.MOST * len(SPLITS)


def centre_of_lips(yaw, who):
    """The mean column of the pixels that change with the colour of the lips."""
    pale, red = (draw_face(replace(who, lip_red=share), Pose(yaw=yaw), Light(), 128).astype(int) for share in (0, 1))
    return np.nonzero(np.abs(pale - red).sum(2) > 30)[1].mean()


def test_a_turned_head_shows_its_features_on_that_side():
    for number in (0, 1):
        left, front, right = (centre_of_lips(yaw, face_identity(number)) for yaw in (-30, 0, 30))
        assert front == pytest.approx(63.5, abs=0.5)
        assert left < front - 3 < front + 3 < right


def test_light_comes_from_its_side_and_size_is_free():
    who = face_identity(0)
    lit = draw_face(who, Pose(), Light(azimuth=60, strength=0.8), 96).astype(float)
    other = draw_face(who, Pose(), Light(azimuth=-60, strength=0.8), 96).astype(float)
    assert lit.shape == (96, 96, 3)
    assert (lit - other)[40:70, 55:65].mean() > 10 > -10 > (lit - other)[40:70, 31:41].mean()
    empty = draw_face(who, Pose(), Light(strength=0.8, gain=(1, 0.5, 0)), 48, np.array([0.8, 0.8, 0.8]))
    assert empty[0, 0].tolist() == [204, 102, 0]  # the background gets the gain, no shade


def test_extreme_poses_are_drawn():
    for number in range(6):
        for yaw in (-90, -60, 60, 90):
            picture = draw_face(face_identity(number), Pose(yaw, roll=40, shift=(1.5, -1.5), scale=0.4), Light(), 24)
            assert picture.dtype == np.uint8


def test_a_folder_with_something_else_is_left_alone(root, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("do not touch")
    with pytest.raises(
        ValueError,
        match=r"root='.*mine': cannot write a set there, it has something else in it; name a folder that is empty",
    ):
        write_faces(tmp_path / "mine", **SMALL)
    assert content(tmp_path) == {"mine/thesis.txt": b"do not touch"}  # and no draft beside it
    before = content(root)
    with pytest.raises(ValueError, match="cannot write a set there"):
        write_faces(root, **SMALL | {"train_ids": 1})  # another set is something else
    assert content(root) == before


def test_the_very_same_set_is_left_as_it_is(root, monkeypatch):
    monkeypatch.setattr(faces, "_write", None)
    assert write_faces(root, **SMALL) == root


def test_of_two_writers_at_the_same_time_one_wins(tmp_path, monkeypatch):
    in_step(monkeypatch, faces)
    few = SMALL | {"train_ids": 1, "val_ids": 0, "test_ids": 0, "easy": 1, "hard": 0}
    twice_at_once(write_faces, tmp_path / "faces", **few)
    assert len([name for name in content(tmp_path) if name.endswith(".jpg")]) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["faces"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"train_ids": 0}, "train_ids must be at least 1, got 0"),
        ({"easy": 0}, "easy must be at least 1, got 0"),
        ({"hard": -1}, "hard must be at least 0, got -1"),
        ({"size": 8}, "size must be at least 16, got 8"),
        ({"val_ids": 1}, "val_ids must be 0 .* or at least 2, since pairs need other identities, got 1"),
        ({"test_ids": 10_001}, "test_ids must be at most 10000, got 10001"),
        ({"folds": 10}, "folds=10 are too many for val_ids=2 and probes=2: at most 4"),
        ({"factors": [4, 1]}, r"factors must be whole numbers from 2 on, got \[4, 1\]"),
        ({"factors": []}, r"factors must be whole numbers from 2 on, got \[\]"),
    ],
)
def test_bad_arguments(wrong, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        write_faces(tmp_path / "faces", **SMALL | wrong)
    assert not (tmp_path / "faces").exists()
