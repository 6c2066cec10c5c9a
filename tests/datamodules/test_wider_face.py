"""WIDER FACE as data to train and evaluate on: batches, splits, every fault."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules import WIDERFaceDataModule
from datamodules.wider_face import halves, hold_out
from lit_methods.functional.pictures import BadImageError
from tests.wider_data import list_text, write_split, write_truth
from tests.wider_fits import FACE, SMALL, TRAIN, VAL, Seen, ready, write_plain

PLAIN = {"crop": "none", "brightness": 0, "contrast": 0, "saturation": 0, "hue": 0, "permute": 0, "flip": 0}
BOXES = {file[:-4]: [face[:4] for face in faces] or [[0, 0, 0, 0]] for file, faces in VAL.items()}


@pytest.fixture
def root(tmp_path):
    return write_plain(tmp_path)


def levels(root):
    return write_truth(
        root / "eval_tools" / "ground_truth", BOXES, easy={"0--Parade/a": [1]},
        hard={"0--Parade/a": [1], "1--Handshaking/c": [1]},
    )  # fmt: skip


def steps(data, epoch=0):
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)
    return list(loader)


def by_index(batches):
    return {
        int(index): (image, boxes)
        for batch in batches
        for index, image, boxes in zip(batch["index"], batch["image"], batch["boxes"], strict=True)
    }


def same(one, other):
    return one.keys() == other.keys() and all(
        torch.equal(image, other[key][0]) and torch.equal(boxes, other[key][1]) for key, (image, boxes) in one.items()
    )


def test_a_training_batch_is_views_with_boxes_and_numbers(root):
    data = ready(root)
    batches = steps(data)
    assert [len(batch["index"]) for batch in batches] == [2, 2, 2, 1]
    assert batches[0]["image"].shape == (2, 3, 32, 32)
    assert batches[0]["image"].dtype == torch.uint8
    assert all(boxes.dtype == torch.float32 and boxes.shape == (1, 4) for boxes in batches[0]["boxes"])
    numbers = sorted(number for batch in batches for number in batch["index"].tolist())
    assert numbers == hold_out(9, 2, 0)[0].tolist()
    moved = data.on_after_batch_transfer(batches[0], 0)
    assert torch.equal(moved["image"], batches[0]["image"] / 255)
    assert moved["boxes"] is batches[0]["boxes"]


def test_an_item_is_its_row_of_a_batch(root):
    views = ready(root).train_dataloader().dataset
    batch, item = views.__getitems__([(3, 1), (3, 4)]), views[3, 4]
    assert torch.equal(item["image"], batch["image"][1])
    assert torch.equal(item["boxes"], batch["boxes"][1])
    assert item["index"] == batch["index"][1]


def test_boxes_and_numbers_belong_to_their_pictures(root):
    for number, (image, boxes) in by_index(steps(ready(root, **PLAIN))).items():
        assert (image.float() - number).abs().max() <= 1  # picture k has the grey level k
        assert boxes.tolist() == [[4, 8, 12, 24]]  # 64 x 48 pixels to 32 x 32


def test_views_depend_on_seed_and_epoch_and_not_on_workers_or_what_is_held_out(root):
    views = by_index(steps(ready(root)))
    assert same(views, by_index(steps(ready(root))))
    assert same(views, by_index(steps(ready(root, batch_size=3, in_memory=True))))
    assert not same(views, by_index(steps(ready(root), epoch=1)))
    other = by_index(steps(ready(root, val_images=0)))
    assert views.keys() < other.keys()
    assert same(views, {number: other[number] for number in views})
    assert not same(other, by_index(steps(ready(root, val_images=0, seed=1))))
    assert list(by_index(steps(ready(root, val_images=0, seed=1)))) != list(other)  # nor in the same order


@pytest.mark.slow
def test_workers_give_the_same_batches(root):
    one, other = steps(ready(root)), steps(ready(root, num_workers=2))
    assert [batch["index"].tolist() for batch in one] == [batch["index"].tolist() for batch in other]
    assert same(by_index(one), by_index(other))


def test_pictures_in_memory_are_read_once(root, monkeypatch):
    data = ready(root, in_memory=True)
    first = steps(data)
    monkeypatch.setattr("datamodules.wider_images.read_rgb", lambda path: pytest.fail("read again"))
    assert same(by_index(first), by_index(steps(data))) is True


def test_validation_is_a_part_of_training_and_fewer_are_part_of_more(root):
    data = ready(root)
    names = [file[:-4] for file in TRAIN]
    held = data.evaluation_names("val")
    trained = [names[number] for number in by_index(steps(data))]
    assert sorted(held + trained) == sorted(names)
    assert held == [name for name in names if name in held]  # in the order of the list
    assert set(held) < set(ready(root, "validate", val_images=4).evaluation_names("val"))
    assert [batch["name"] for batch in data.val_dataloader()] == [[name] for name in held]
    assert "keep_easy" not in next(iter(data.val_dataloader()))
    assert any(hold_out(9, 2, seed)[1].tolist() != hold_out(9, 2, 0)[1].tolist() for seed in (1, 2, 3))


def test_no_pictures_to_validate_on_is_no_loader(root):
    data = ready(root, val_images=0)
    assert data.val_dataloader() == []
    assert len(by_index(steps(data))) == 9


def test_a_test_batch_has_whole_pictures_of_different_sizes(root):
    Image.new("L", (30, 20), 7).save(root / "WIDER_val/images/0--Parade/b.jpg")
    data = ready(root, "test", eval_batch_size=2)
    first, last = data.test_dataloader()
    assert [image.shape for image in first["image"]] == [(3, 48, 64), (3, 20, 30)]
    assert [image.dtype for image in first["image"]] == [torch.uint8] * 2
    assert [boxes.tolist() for boxes in first["boxes"]] == [[[1, 2, 31, 42], [5, 6, 5, 14]], []]
    assert [tuple(boxes.shape) for boxes in first["boxes"]] == [(2, 4), (0, 4)]
    assert first["attributes"][0].tolist() == [[2, 1, 0, 0, 1, 0], [0, 0, 0, 1, 0, 0]]
    assert (first["name"], first["index"].tolist()) == (["0--Parade/a", "0--Parade/b"], [0, 1])
    assert (last["name"], last["index"].tolist()) == (["1--Handshaking/c"], [2])
    assert data.levels == ()
    assert not [key for key in first if key.startswith("keep")]
    moved = data.on_after_batch_transfer(first, 0)
    assert torch.equal(moved["image"][1], torch.full((3, 20, 30), 7 / 255))


def test_levels_come_with_the_files_of_the_evaluation(root):
    levels(root)
    data = WIDERFaceDataModule(str(root), **SMALL)
    assert data.levels == ("easy", "medium", "hard")  # before they are read, too
    data.setup("test")
    batches = list(data.test_dataloader())
    assert [batch["keep_easy"][0].tolist() for batch in batches] == [[True, False], [False], [False]]
    assert [batch["keep_hard"][0].tolist() for batch in batches] == [[True, False], [False], [True]]
    assert batches[0]["keep_medium"][0].dtype == torch.bool
    assert batches[1]["boxes"][0].tolist() == [[0, 0, 0, 0]]  # as the official tool has it
    assert data.summary()["data/test_faces"] == 4


def test_files_beside_root_are_for_the_official_list_alone(root):
    write_truth(root.parent / "eval_tools" / "ground_truth", BOXES)
    assert ready(root, "test").levels == ("easy", "medium", "hard")
    (root / "own.txt").write_text(list_text({"1--Handshaking/c.jpg": [[1, 1, 9, 9]]}))
    assert ready(root, "test", test_list="own.txt").levels == ()


def test_detections_of_others_are_scored_without_pictures(root):
    levels(root)
    shutil.rmtree(root / "WIDER_val")
    data = ready(root, "test")
    with pytest.raises(FileNotFoundError, match=r"names 3 pictures, of which 3 are not in .*WIDER_val/images'"):
        data.test_dataloader()
    data.pictures_needed = False
    with_list = list(data.test_dataloader())
    assert all("image" not in data.on_after_batch_transfer(batch, 0) for batch in with_list)
    shutil.rmtree(root / "wider_face_split")
    data = WIDERFaceDataModule(str(root), **SMALL)
    with pytest.raises(FileNotFoundError, match=r"wider_face_train_bbx_gt.txt"):
        data.prepare_data()
    data.setup("test")
    with pytest.raises(FileNotFoundError, match=r"lacks .*wider_face_val_bbx_gt.txt"):
        data.test_dataloader()
    data.pictures_needed = False
    assert [batch["name"] for batch in data.test_dataloader()] == [batch["name"] for batch in with_list]


def test_faces_that_nobody_can_learn_from_are_left_out_of_training_alone(root):
    invalid = [8, 12, 16, 24, 0, 0, 0, 1, 0, 0]
    faces = [FACE, [5, 5, 1, 9], [5, 5, 9, 0], [5, 5, 9, -2], [-1, 5, 9, 9], [5, -1, 9, 9], invalid, [-1, 5, 1, 9]]
    write_split(root, "train", {"a/0.jpg": faces, "a/1.jpg": [invalid], "a/2.jpg": []})
    data = ready(root, val_images=0, **PLAIN)
    assert {number: boxes.tolist() for number, (_, boxes) in by_index(steps(data)).items()} == {0: [[4, 8, 12, 24]]}
    counts = data.summary()
    assert {key: counts[f"data/train_{key}"] for key in ("images", "images_without_faces", "faces")} == {
        "images": 1, "images_without_faces": 2, "faces": 1,
    }  # fmt: skip
    dropped = [counts[f"data/train_faces_{reason}"] for reason in ("small", "outside", "invalid")]
    assert dropped == [4, 2, 2]
    kept = by_index(steps(ready(root, val_images=0, keep_invalid=True, **PLAIN)))
    assert {number: len(boxes) for number, (_, boxes) in kept.items()} == {0: 2, 1: 1}
    (batch,) = list(ready(root, "validate", val_images=2, eval_batch_size=2).val_dataloader())
    listed = {"a/0": 8, "a/1": 1, "a/2": 0}
    assert {name: len(boxes) for name, boxes in zip(batch["name"], batch["boxes"], strict=True)} == {
        name: listed[name] for name in batch["name"]
    }


def test_pictures_without_faces_are_background_where_they_are_wanted(root):
    write_split(root, "train", TRAIN | {"9--Empty/9.jpg": []})
    assert 9 not in by_index(steps(ready(root, val_images=0)))
    views = by_index(steps(ready(root, val_images=0, keep_faceless=True)))
    assert len(views) == 10
    assert views[9][1].shape == (0, 4)


def test_two_halves_are_trained_on_side_by_side(root):
    data = ready(root, val_images=0, split_halves=True)
    loader = data.train_dataloader()
    assert [len(each.dataset) for each in loader.flattened] == [4, 4]  # of nine
    iter(loader)
    for each in loader.flattened:
        each.sampler.set_epoch(0)
    batches = [batch for batch, _, _ in loader]
    parts = [{int(number) for batch in batches for number in batch[half]["index"]} for half in ("weights", "alphas")]
    assert [len(part) for part in parts] == [4, 4]
    assert not parts[0] & parts[1]
    moved = data.on_after_batch_transfer(batches[0], 0)
    assert {half: part["image"].dtype for half, part in moved.items()} == dict.fromkeys(moved, torch.float32)
    rows = np.arange(20)
    assert not np.array_equal(halves(rows, 0)[0], halves(rows, 1)[0])


def test_a_broken_training_picture_stops_or_is_skipped(root):
    broken = root / "WIDER_train/images" / list(TRAIN)[4]
    broken.write_bytes(broken.read_bytes()[:200])
    with pytest.raises(BadImageError, match=r"4.jpg.*Replace the file, or set on_bad_image"):
        steps(ready(root, val_images=0))
    data = ready(root, val_images=0, on_bad_image="skip")
    with pytest.warns(UserWarning, match="skipped: cannot read") as warned:
        first, _ = steps(data), steps(data)
    assert len(warned) == 1  # of two times that it was wanted
    assert [len(batch["index"]) for batch in first] == [2, 2, 2, 2, 1]
    numbers = [number for batch in first for number in batch["index"].tolist()]
    assert sorted(numbers) == [0, 1, 2, 3, 5, 5, 6, 7, 8]
    data.teardown("fit")
    assert data.summary()["data/bad_image_files"] == [str(broken)]


def test_an_evaluation_leaves_nothing_out(root):
    (root / "WIDER_val/images/0--Parade/b.jpg").write_bytes(b"no picture")
    with pytest.raises(BadImageError, match=r"b.jpg.*An evaluation leaves nothing out"):
        list(ready(root, "test", on_bad_image="skip").test_dataloader())


def test_absent_pictures_stop_the_stage_that_needs_them(root):
    (root / "WIDER_train/images" / list(TRAIN)[3]).unlink()
    message = r"train_bbx_gt.txt names 9 pictures, of which 1 are not in .*WIDER_train/images': 0--Event--0/3.jpg"
    with pytest.raises(FileNotFoundError, match=message):
        ready(root, val_images=0)
    assert len(ready(root, "test").evaluation_names("test")) == 3


def test_a_missing_root_is_told_when_it_is_wanted_and_not_before(tmp_path, root):
    data = WIDERFaceDataModule(str(tmp_path / "nowhere"))
    assert (data.levels, data.bad_images) == ((), [])
    for ask in (
        data.prepare_data,
        lambda: data.setup("fit"),
        lambda: data.setup("validate"),
        lambda: data.setup("test"),
    ):
        with pytest.raises(FileNotFoundError, match=r"nowhere' does not exist.*WIDER_train.zip.*demo=True"):
            ask()
    for ask, stage in ((data.train_dataloader, "fit"), (data.val_dataloader, "fit"), (data.test_dataloader, "test")):
        with pytest.raises(RuntimeError, match=rf'call setup\("{stage}"\) first'):
            ask()
    shutil.rmtree(root / "WIDER_train")
    with pytest.raises(FileNotFoundError, match=r"widerface' lacks [^,]*WIDER_train/images. Unpack"):
        WIDERFaceDataModule(str(root)).prepare_data()


def test_each_stage_needs_its_own_files_alone(root, make_trainer):
    shutil.rmtree(root / "WIDER_train")
    (root / "wider_face_split/wider_face_train_bbx_gt.txt").unlink()
    seen = Seen()
    make_trainer().test(seen, WIDERFaceDataModule(str(root), **SMALL), verbose=False)
    assert seen.names == list(BOXES)
    with pytest.raises(FileNotFoundError, match=r"wider_face_train_bbx_gt\.txt"):
        make_trainer().validate(seen, WIDERFaceDataModule(str(root), **SMALL), verbose=False)


def test_own_lists_and_folders_are_read(tmp_path):
    own = tmp_path / "own"
    write_split(own, "val", VAL)
    (own / "lists").mkdir()
    text = (own / "wider_face_split/wider_face_val_bbx_gt.txt").read_text()
    (own / "lists" / "faces.txt").write_text(text)
    places = {"train_list": "lists/faces.txt", "train_images": "WIDER_val/images", "test_list": "lists/faces.txt"}
    data = ready(own, "fit", "test", val_images=1, **places)
    data.prepare_data()
    assert len(data.evaluation_names("val")) == 1
    assert data.evaluation_names("test") == list(BOXES)


def test_too_little_to_train_on_is_told(root):
    with pytest.raises(ValueError, match=r"val_images=9 leaves none of the 9 pictures of .*train_bbx_gt.txt"):
        ready(root, val_images=9)
    with pytest.raises(ValueError, match=r"split_halves=True needs two pictures, but .* has 1 to train on"):
        ready(root, val_images=8, split_halves=True)
    write_split(root, "train", {"a/0.jpg": [[1, 1, 0, 9]], "a/1.jpg": []})
    for keep in (False, True):
        with pytest.raises(ValueError, match="no usable face in the 2 pictures to train on: of 1 faces 1 are below 2"):
            ready(root, val_images=0, keep_faceless=keep)


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [({"batch_size": 0}, "batch_size must be at least 1"), ({"eval_batch_size": 0}, "eval_batch_size must be at least"),
     ({"val_images": -1}, "val_images must be 0 or more"), ({"num_workers": -1}, "num_workers must be 0 or more"),
     ({"on_bad_image": "stop"}, "on_bad_image must be"), ({"crop": "round"}, "crop must be")],
)  # fmt: skip
def test_arguments_out_of_range_are_named(arguments, fault):
    with pytest.raises(ValueError, match=fault):
        WIDERFaceDataModule("nowhere", **arguments)


def test_demo_writes_a_set_once(tmp_path, monkeypatch):
    calls = []

    def write(root):
        calls.append(root)
        write_split(root, "train", TRAIN)
        write_split(root, "val", VAL)

    monkeypatch.setattr("datamodules.wider_face.write_wider_face", write)
    data = WIDERFaceDataModule(str(tmp_path / "demo"), demo=True)
    data.prepare_data()
    data.prepare_data()
    assert calls == [tmp_path / "demo"]


def test_a_trainer_validates_on_what_is_held_out(root, make_trainer):
    data, seen = WIDERFaceDataModule(str(root), **SMALL), Seen()
    make_trainer(max_epochs=1, num_sanity_val_steps=0).fit(seen, data)
    assert seen.names == data.evaluation_names("val")


def test_the_drawn_set_is_read_in_every_stage(wider_root):
    data = ready(wider_root, "fit", "test", val_images=1, image_size=64)
    assert data.levels == ("easy", "medium", "hard")
    batches = steps(data)
    assert sum(len(boxes) for batch in batches for boxes in batch["boxes"])
    for boxes in (boxes for batch in batches for boxes in batch["boxes"]):
        assert ((boxes >= 0) & (boxes <= 64)).all()
    found = list(data.test_dataloader())
    assert [batch["name"][0] for batch in found] == data.evaluation_names("test")
    counted = {level: sum(int(batch[f"keep_{level}"][0].sum()) for batch in found) for level in data.levels}
    assert 0 < counted["easy"] <= counted["medium"] <= counted["hard"]


@pytest.mark.slow
def test_real_pictures_are_trained_and_tested_on(shared):
    folder = shared / "data" / "widerface"
    if not folder.is_dir():
        pytest.skip("no ../shared/data/widerface beside this checkout")
    names = "wider_face_split/wider_face_val_bbx_gt_16images.txt"
    own = {"train_list": names, "test_list": names, "train_images": "WIDER_val/images"}
    data = WIDERFaceDataModule(str(folder), image_size=128, val_images=14, num_workers=0, **own)
    data.prepare_data()
    data.setup("fit")
    (batch,) = steps(data)
    assert batch["image"].shape == (2, 3, 128, 128)
    assert all(len(boxes) for boxes in batch["boxes"])
    with pytest.warns(UserWarning, match="has 16 of the 3226 pictures of the evaluation's files"):
        data.setup("test")
    assert data.summary()["data/test_faces"] == 417
    shapes = [tuple(batch["image"][0].shape) for batch, _ in zip(data.test_dataloader(), range(2), strict=False)]
    assert {width for _, _, width in shapes} == {1024}
