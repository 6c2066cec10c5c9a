"""The demo sets: exact layouts, the same files every time, pictures that tell people apart."""

import re
import threading

import numpy as np
import pytest
from PIL import Image

from datamodules.demo import people, write_duke_mtmc, write_market1501
from datamodules.demo.people import DEMOS, Demo, person, write_once
from datamodules.reid_files import DUKE, FOLDERS, GALLERY, MARKET, QUERY, TRAIN, EvaluationFiles, has_match, read_folder
from tests.datamodules.two_writers import twice_at_once

SMALL = {"train_ids": 3, "test_ids": 2}


def content(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("write", [write_market1501, write_duke_mtmc])
def test_the_same_arguments_write_the_same_files(write, tmp_path):
    first, again = content(write(tmp_path / "a", **SMALL)), content(write(tmp_path / "b", **SMALL))
    other = content(write(tmp_path / "c", seed=1, **SMALL))
    assert first == again
    assert first.keys() == other.keys()
    changed = [name for name in first if first[name] != other[name]]
    assert changed == [name for name in first if name.endswith(".jpg")]


def test_market_has_the_names_of_the_real_set(tmp_path, market1501_root):
    pattern = re.compile(r"(-1|\d{4})_c[1-6]s\d_\d{6}_\d\d\.jpg|Thumbs\.db")
    for folder in FOLDERS:
        assert all(pattern.fullmatch(path.name) for path in (market1501_root / folder).iterdir())
        assert (market1501_root / folder / "Thumbs.db").is_file()
    train, query, gallery = (read_folder(market1501_root, folder, MARKET) for folder in FOLDERS)
    assert (len(train), len(query), len(gallery)) == (8 * 9, 6 * 3, 6 * 6 + 12 + 6)
    assert np.unique(train.pids).tolist() == list(range(2, 26, 3))
    assert set(query.pids) | {0, -1} == set(gallery.pids)
    assert not set(query.pids) & set(train.pids)
    assert has_match(EvaluationFiles(query, gallery)).all()
    picture = Image.open(train.path(0))
    assert (picture.format, picture.mode, picture.size) == ("JPEG", "RGB", (64, 128))


def test_duke_has_the_names_of_the_real_set_and_sizes_of_its_own(duke_root):
    pattern = re.compile(r"\d{4}_c[1-8]_f\d{7}\.jpg")
    for folder in FOLDERS:
        assert all(pattern.fullmatch(path.name) for path in (duke_root / folder).iterdir())
    train, query, gallery = (read_folder(duke_root, folder, DUKE) for folder in FOLDERS)
    assert (len(train), len(query), len(gallery)) == (7 * 8, 4 * 2, 4 * 4 + 6)
    assert len(set(gallery.pids) - set(query.pids)) == 6
    assert len({Image.open(path).size for path in train.paths()}) > 10


@pytest.mark.parametrize("name", DEMOS)
def test_what_is_known_beforehand_is_what_is_written(name, tmp_path, monkeypatch):
    monkeypatch.setattr(people, "draw_person", lambda who, camera, random, size: Image.new("RGB", (4, 8)))
    root = DEMOS[name].write(tmp_path)
    train = read_folder(root, TRAIN)
    assert (len(np.unique(train.pids)), len(np.unique(train.camids))) == (DEMOS[name].train_ids, DEMOS[name].cameras)


def colours(files):
    """Mean colours of the upper and the lower body."""
    pictures = [np.asarray(Image.open(path).convert("RGB").resize((64, 128))) for path in files.paths()]
    return np.stack([[p[30:60, 24:40].mean((0, 1)), p[75:105, 24:40].mean((0, 1))] for p in pictures]).reshape(-1, 6)


def hits(root, shift):
    """How many queries find their person first in another camera, by the colours of the clothes."""
    query, gallery = read_folder(root, QUERY, MARKET), read_folder(root, GALLERY, MARKET)
    q, g = colours(query), colours(gallery)
    if shift:  # take away what a camera does to all pictures
        for files, values in ((query, q), (gallery, g)):
            for camera in range(3):
                values[files.camids == camera] -= g[gallery.camids == camera].mean(0)
    distance = np.linalg.norm(q[:, None] - g[None], axis=2)
    distance[(query.pids[:, None] == gallery.pids) & (query.camids[:, None] == gallery.camids)] = np.inf
    distance[:, gallery.pids == -1] = np.inf
    return (gallery.pids[distance.argmin(1)] == query.pids).mean()


def test_clothes_tell_people_apart_once_the_colour_cast_is_known(tmp_path):
    strong = write_market1501(tmp_path / "strong", train_ids=0, test_ids=12, cast=1)
    none = write_market1501(tmp_path / "none", train_ids=0, test_ids=12, cast=0)
    assert hits(none, shift=False) > 0.8
    assert hits(strong, shift=False) < 0.3
    assert hits(strong, shift=True) > 0.8


def test_persons_differ():
    assert len({(person(number).top, person(number).legs) for number in range(132)}) == 132
    assert person(3, seed=1) != person(3, seed=2)


def test_of_two_writers_at_the_same_time_one_wins(tmp_path):
    both = threading.Barrier(2)

    def write(root):
        (root / TRAIN).mkdir(parents=True)
        (root / TRAIN / "0001_c1s1_000001_01.jpg").touch()
        both.wait()  # both drafts are complete before either is renamed
        return root

    twice_at_once(write_once, tmp_path / "data" / "people", Demo(write, 1, 1))
    assert list(content(tmp_path)) == [f"data/people/{TRAIN}/0001_c1s1_000001_01.jpg"]
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["people"]  # no drafts are left


def test_a_folder_with_something_else_is_left_alone(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("do not touch")
    with pytest.raises(
        ValueError, match=r"root='.*mine': demo=True cannot write a set there .*; name a folder that is"
    ):
        write_once(tmp_path / "mine", Demo(lambda root: write_duke_mtmc(root, 1, 1), 1, 2))
    assert content(tmp_path) == {"mine/thesis.txt": b"do not touch"}


@pytest.mark.parametrize(("write", "most"), [(write_market1501, 6), (write_duke_mtmc, 3)])
def test_bad_arguments(write, most, tmp_path):
    for cameras in (0, most + 1):
        with pytest.raises(ValueError, match=f"cameras must be 1 to {most}, got {cameras}"):
            write(tmp_path, cameras=cameras)
