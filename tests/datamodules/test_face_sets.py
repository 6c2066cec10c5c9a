"""Batches of the evaluation sets, whatever form they are read from."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close
from torch.utils.data import DataLoader

from datamodules.classification import EvaluationLoader
from datamodules.face_pictures import PictureFiles
from datamodules.face_sets import read_set
from datamodules.loaders import loader_options
from datamodules.samplers import ShardSampler
from lit_methods.functional.pictures import BadImageError

PAIRS = "1\t2\nAda\t1\t2\nBob\t1\t2\nAda\t1\tBob\t2\nBob\t1\tAda\t1\n"
PROBES = """path,label,group
Bob/Bob_0002.png,Bob,hard
Ada/Ada_0002.png,Ada,easy
Bob/Bob_0001.png,Bob,gallery
Ada/Ada_0001.png,Ada,gallery
Ada/Ada_0002.png,Ada,hard
"""
VALUES = {"Ada_0001": 10, "Ada_0002": 20, "Bob_0001": 30, "Bob_0002": 40}


@pytest.fixture
def root(tmp_path):
    """The same four pictures of one colour each in all four forms."""
    for name, value in VALUES.items():
        person, number = name[:3], name[-1]
        (tmp_path / person).mkdir(exist_ok=True)
        picture = Image.new("RGB", (6, 6), (value, 0, 255))
        picture.save(tmp_path / person / f"{name}.png")
        (tmp_path / "scface").mkdir(exist_ok=True)
        subject = 1 if person == "Ada" else 2
        names = ["frontal"] if number == "1" else ["cam1_1", "cam2_2", "cam3_3"]
        for end in names:
            picture.save(tmp_path / "scface" / f"00{subject}_{end}.png")
    (tmp_path / "pairs.txt").write_text(PAIRS)
    (tmp_path / "probes.csv").write_text(PROBES)
    files = [(tmp_path / name[:3] / f"{name}.png").read_bytes() for name in VALUES]
    order = [files[i] for i in (0, 1, 2, 3, 0, 3, 2, 0)]
    (tmp_path / "own.bin").write_bytes(pickle.dumps((order, [True, True, False, False])))
    return tmp_path


@pytest.mark.parametrize("form", ["pairs.txt", "own.bin"])
def test_pairs(root, form):
    faces = read_set("own", root / form, 6)
    assert (faces.name, faces.kind, faces.groups, len(faces)) == ("own", "pairs", (), 4)
    assert faces.counts() == {"pairs": 4, "same": 2}
    batch = faces.__getitems__([0, 2, 3])
    assert list(batch) == ["pair", "same", "index"]
    first, second = batch["pair"]
    assert first.dtype == second.dtype == torch.uint8
    assert first.shape == second.shape == (3, 3, 6, 6)
    assert first[:, 0, 0, 0].tolist() == [10, 10, 30]
    assert second[:, 0, 5, 5].tolist() == [20, 40, 10]
    assert_close(batch["same"], torch.tensor([True, False, False]))
    assert_close(batch["index"], torch.tensor([0, 2, 3]))


def test_the_pictures_of_a_pair_have_names(root):
    assert read_set("own", root / "pairs.txt", 6).sources(2) == (
        str(root / "Ada/Ada_0001.png"),
        str(root / "Bob/Bob_0002.png"),
    )
    assert read_set("own", root / "own.bin", 6).sources(1)[1] == f"image 3 of '{root / 'own.bin'}'"
    assert read_set("own", root / "probes.csv", 6).sources(2) == (str(root / "Bob/Bob_0001.png"),)


def test_probes_come_person_by_person_gallery_first(root):
    faces = read_set("own", root / "probes.csv", 6)
    assert (faces.kind, faces.groups, len(faces)) == ("probes", ("hard", "easy"), 5)
    assert faces.counts() == {"identities": 2, "gallery": 2, "hard": 2, "easy": 1}
    batch = faces.__getitems__([(3, position) for position in range(5)])
    assert list(batch) == ["image", "label", "group", "index"]
    assert batch["image"].shape == (5, 3, 6, 6)
    assert batch["image"][:, 0, 0, 0].tolist() == [30, 40, 10, 20, 20]
    assert batch["label"].tolist() == [0, 0, 1, 1, 1]
    assert batch["group"].tolist() == [-1, 0, -1, 0, 1]
    assert batch["index"].tolist() == [2, 0, 3, 4, 1]  # lines of the file


def test_scface(root):
    faces = read_set("scface", root / "scface", 6)
    assert (faces.kind, faces.groups) == ("probes", ("d1", "d2", "d3"))
    batch = faces.fetch(np.arange(8))
    assert batch["group"].tolist() == [-1, 0, 1, 2] * 2
    assert batch["image"][:, 0, 0, 0].tolist() == [10, 20, 20, 20, 30, 40, 40, 40]


@pytest.mark.parametrize("form", ["pairs.txt", "own.bin", "probes.csv", "scface"])
def test_a_batch_of_nothing_has_all_keys_and_shapes(root, form):
    faces = read_set("own", root / form, 6)
    some, none = faces.__getitems__([0, 1]), faces.__getitems__([])
    assert list(some) == list(none)
    flat = [
        (a, b)
        for key in some
        for a, b in (zip(some[key], none[key], strict=True) if key == "pair" else [(some[key], none[key])])
    ]
    for full, empty in flat:
        assert (empty.dtype, empty.shape) == (full.dtype, (0, *full.shape[1:]))


@pytest.mark.parametrize("form", ["pairs.txt", "own.bin", "probes.csv", "scface"])
def test_workers_and_ranks_give_what_one_process_gives(root, form):
    faces = read_set("own", root / form, 6)
    parts = []
    for rank in (0, 1):
        sampler = ShardSampler(faces, 2, rank)
        parts += list(
            EvaluationLoader(faces, sampler=sampler, **loader_options(2, rank, 0))
        )  # one of them has a worker
    once = next(iter(DataLoader(faces, **loader_options(100, 0, 0))))
    order = torch.cat([batch["index"] for batch in parts])
    assert sorted(order.tolist()) == list(range(len(faces)))
    places = torch.argsort(once["index"])[order]  # where the one batch has them
    for key, value in once.items():
        if key == "pair":
            for side in (0, 1):
                assert_close(torch.cat([batch[key][side] for batch in parts]), value[side][places])
        else:
            assert_close(torch.cat([batch[key] for batch in parts]), value[places])


@pytest.mark.parametrize("form", ["pairs.txt", "own.bin", "probes.csv", "scface"])
def test_a_set_survives_the_way_to_a_spawned_worker(root, form):
    faces = read_set("own", root / form, 6)
    copy = pickle.loads(pickle.dumps(faces))
    assert copy[1]["index"] == faces[1]["index"]
    for name, value in faces[1].items():
        for a, b in zip(value, copy[1][name], strict=True) if name == "pair" else [(value, copy[1][name])]:
            assert_close(a, b)


def test_a_picture_of_several_pairs_is_read_once_a_batch(root, monkeypatch):
    read = []
    real = PictureFiles.read
    monkeypatch.setattr(PictureFiles, "read", lambda self, row: read.append(row) or real(self, row))
    read_set("own", root / "pairs.txt", 6).fetch(np.arange(4))
    assert sorted(read) == [0, 1, 2, 3]  # of eight places


def test_other_sizes_are_brought_to_one(root):
    wide = Image.linear_gradient("L").resize((40, 20)).convert("RGB")
    wide.save(root / "Ada" / "Ada_0001.png")
    first = read_set("own", root / "pairs.txt", 8).fetch(np.array([0]))["pair"][0][0]
    expected = np.asarray(wide.resize((8, 8), Image.Resampling.BILINEAR))
    assert_close(first, torch.from_numpy(expected.copy()).permute(2, 0, 1))


def test_a_picture_that_cannot_be_read_is_never_left_out(root):
    (root / "Bob" / "Bob_0002.png").write_bytes(b"no picture")
    for form, positions in (("pairs.txt", [0, 1]), ("probes.csv", [0, 1])):
        with pytest.raises(BadImageError, match=r"Bob_0002\.png'.*An evaluation leaves nothing out"):
            read_set("own", root / form, 6).__getitems__(positions)


def test_other_forms_are_refused_with_the_four(root):
    (root / "lfw.rec").touch()
    for name, error, message in (
        ("lfw.rec", ValueError, "has none of the four forms: a .bin .*; a .txt .*; a .csv .*; or a folder of SCface"),
        ("none.bin", FileNotFoundError, "no '.*none.bin'. It may be a .bin verification set; a .txt"),
    ):
        with pytest.raises(error, match=rf"^set 'own' of val_sets or test_sets: .*{message}"):
            read_set("own", root / name, 6)
