"""RefCOCO as data to train and evaluate on: batches, words, every fault."""

import os
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

import datamodules.refcoco
from datamodules import RefCOCODataModule
from datamodules.refcoco_samples import MaskCache
from lit_methods.functional.letterbox import letterbox_boxes, letterbox_params
from lit_methods.functional.pictures import BadImageError
from tests.refer_data import BOX, PICTURES, REFS, SMALL, ready, write_refer

TRAIN = [ref for ref in REFS if ref["split"] == "train"]
CORNERS = [BOX[0], BOX[1], BOX[0] + BOX[2], BOX[1] + BOX[3]]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Not to be changed."""
    return write_refer(tmp_path_factory.mktemp("own data ü"))


@pytest.fixture
def own(tmp_path):
    return write_refer(tmp_path)


def steps(data, epoch=0):
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)
    return list(loader)


def rows(batches):
    """Number of the ref to what a batch had of it."""
    keys = ("image", "tokens", "box", "mask")
    return {
        number: [batch[key][place] for key in keys]
        for batch in batches
        for place, number in enumerate(batch["index"].tolist())
    }


def same(one, other):
    return one.keys() == other.keys() and all(
        torch.equal(mine, its) for key in one for mine, its in zip(one[key], other[key], strict=True)
    )


def picture(root, number):
    return root / "images" / "train2014" / f"COCO_train2014_{number:012d}.png"


def extent(mask):
    """The box of a mask, right and bottom ends outside."""
    y, x = mask.nonzero().T.tolist()
    return [min(x), min(y), max(x) + 1, max(y) + 1]


def spoken(data, tokens):
    names = ["", "?", *data.vocabulary]
    return " ".join(names[token] for token in tokens.tolist()).strip()


def test_a_training_batch_is_letterboxed_pictures_with_a_sentence_a_box_and_a_mask(root):
    data = ready(root)
    assert data.input_size == [3, 64, 64]
    batches = steps(data)
    assert [batch["index"].tolist() for batch in batches] != [[0, 1], [2, 3], [4, 0]]
    assert [len(batch["index"]) for batch in batches] == [2, 2, 2]  # five refs, and the first one again
    first = batches[0]["index"][0].item()
    assert sorted(n for batch in batches for n in batch["index"].tolist()) == sorted([*range(5), first])
    shapes = {key: (tuple(value.shape), value.dtype) for key, value in batches[0].items()}
    assert shapes == {
        "image": ((2, 3, 64, 64), torch.uint8),
        "tokens": ((2, 4), torch.int64),
        "box": ((2, 4), torch.float32),
        "mask": ((2, 1, 64, 64), torch.uint8),
        "index": ((2,), torch.int64),
    }
    for number, (image, tokens, box, mask) in rows(batches).items():
        ref = TRAIN[number]
        w, h = PICTURES[ref["image"]]
        params = letterbox_params(w, h, 64)
        assert image.unique().tolist() == sorted({ref["image"], *([128] if w != h else [])})
        assert image[:, 32, 32].tolist() == [ref["image"]] * 3
        x, y, wide, high = map(int, ref.get("box", BOX))
        corners = torch.tensor([x, y, x + wide, y + high], dtype=torch.float64)
        assert torch.equal(box, letterbox_boxes(corners, params).float())
        if "box" not in ref:  # whole numbers, and the scale is 1 or 2
            assert extent(mask[0]) == box.tolist()
            assert mask.sum() == (box[2] - box[0]) * (box[3] - box[1])
        assert mask.unique().tolist() == [0, 1]
        assert spoken(data, tokens) in [" ".join(told.split()[:4]) for told in ref["told"] if told]
    moved = data.on_after_batch_transfer(batches[0], 0)
    assert torch.equal(moved["image"], batches[0]["image"] / 255)
    assert moved["mask"] is batches[0]["mask"]


def test_an_item_is_its_row_of_a_batch(root):
    views = pickle.loads(pickle.dumps(ready(root).train_dataloader().dataset))  # as workers that are spawned get it
    batch, item = views.__getitems__([(3, 1), (3, 0)]), views[3, 0]
    assert all(torch.equal(item[key], batch[key][1]) for key in batch)
    assert torch.equal(views[0]["tokens"], views[0, 0]["tokens"])


def test_sentences_depend_on_seed_epoch_and_ref_and_not_on_batches_memory_or_earlier_draws(root):
    data = ready(root)
    one = rows(steps(data, epoch=1))
    assert same(one, rows(steps(ready(root, batch_size=3, in_memory=True), epoch=1)))
    steps(data)
    assert same(one, rows(steps(data, epoch=1)))
    orders = [list(ready(root, seed=seed).train_dataloader().sampler) for seed in (0, 1, 2)]
    assert orders[0] != orders[1] or orders[0] != orders[2]
    views = [ready(root, seed=seed).train_dataloader().dataset for seed in (0, 1)]
    told = [[view.sentence(0, epoch) for epoch in range(60)] for view in views]
    assert told[0] != told[1]
    assert all(10 <= told[0].count(sentence) <= 30 for sentence in TRAIN[0]["told"])  # each in time, as likely
    pairs = [(views[0].sentence(0, epoch), views[0].sentence(2, epoch)) for epoch in range(60)]
    assert len(set(pairs)) == 6  # one ref's says nothing of another's
    assert {views[0].sentence(3, epoch) for epoch in range(20)} == {"blue man"}  # not the one without words


@pytest.mark.slow
def test_workers_give_the_same_batches(root):
    one, other = steps(ready(root)), steps(ready(root, num_workers=2))
    assert [batch["index"].tolist() for batch in one] == [batch["index"].tolist() for batch in other]
    assert same(rows(one), rows(other))
    test = [list(ready(root, "test", num_workers=number).test_dataloader()) for number in (0, 2)]
    assert [batch["sentence"] for batch in test[0]] == [batch["sentence"] for batch in test[1]]
    assert all(torch.equal(a["tokens"], b["tokens"]) for a, b in zip(*test, strict=True))
    assert all(torch.equal(x, y) for a, b in zip(*test, strict=True) for x, y in zip(a["mask"], b["mask"], strict=True))


def test_pictures_and_masks_in_memory_are_made_once(root, monkeypatch):
    data = ready(root, in_memory=True)
    loader = data.train_dataloader()
    first = list(loader)
    monkeypatch.setattr("datamodules.refcoco_samples.read_rgb", lambda path: pytest.fail("read again"))
    monkeypatch.setattr("datamodules.refcoco_samples.letterbox_mask", lambda *_: pytest.fail("drawn again"))
    assert same(rows(first), rows(list(loader)))
    monkeypatch.undo()
    data.setup("test")
    loader = data.test_dataloader()
    (once,) = loader
    monkeypatch.setattr("datamodules.refcoco_targets.segmentation_to_mask", lambda *_: pytest.fail("drawn again"))
    (again,) = loader
    assert all(torch.equal(mask, other) for mask, other in zip(once["mask"], again["mask"], strict=True))


@pytest.mark.parametrize("mask", [np.zeros((2, 3)), np.ones((2, 3)), np.eye(4), np.eye(3)[:1], 1 - np.eye(5)])
def test_a_kept_mask_comes_back_as_it_was(mask):
    cache = MaskCache()
    drawn = cache.get(1, lambda: mask.astype(np.uint8))
    again = cache.get(1, lambda: pytest.fail("drawn again"))
    assert again.dtype == np.uint8
    np.testing.assert_array_equal(again, drawn)


def test_an_evaluation_has_a_row_for_every_sentence_and_goes_picture_by_picture(root):
    data = ready(root, "fit", "test")
    (batch,) = data.test_dataloader()  # both pictures of testA
    assert batch["sentence"] == ["blue dog", "the man", "", "zebra", "zebra", "red zebra"]
    assert batch["sentence"] == data.evaluation_sentences("test")
    assert batch["image_id"].tolist() == [22, 22, 22, 22, 21, 21]
    assert batch["ref_id"].tolist() == [2, 9, 9, 9, 7, 7]
    assert batch["index"].tolist() == [0, 1, 2, 3, 4, 5]
    assert batch["size"].tolist() == [[48, 64]] * 4 + [[64, 96]] * 2
    assert batch["file"] == [str(picture(root, number)) for number in batch["image_id"].tolist()]
    assert batch["image"][:, 0, 32, 32].tolist() == batch["image_id"].tolist()
    assert batch["box"].dtype == torch.float32
    params = letterbox_params(96, 64, 64)
    box = letterbox_boxes(torch.tensor([10, 20, 50, 50], dtype=torch.float64), params).float()
    assert batch["box"][4].tolist() == batch["box"][5].tolist() == box.tolist()  # neither cut nor rounded
    assert [tuple(mask.shape) for mask in batch["mask"]] == [(48, 64)] * 4 + [(64, 96)] * 2
    assert [extent(mask) for mask in batch["mask"]] == [CORNERS] * 4 + [[10, 20, 50, 50]] * 2
    assert all(mask.dtype == torch.uint8 and mask.max() == 1 for mask in batch["mask"])
    assert batch["mask"][1] is batch["mask"][3]
    assert len({mask.untyped_storage().data_ptr() for mask in batch["mask"]}) == 1  # one open file between processes
    assert [spoken(data, tokens) for tokens in batch["tokens"]] == ["blue dog", "the man", "", "?", "?", "red ?"]
    assert batch["tokens"][2].tolist() == [0, 0, 0, 0]
    assert torch.equal(data.on_after_batch_transfer(batch, 0)["image"], batch["image"] / 255)
    assert [one["sentence"] for one in data.val_dataloader()] == [["the red man", "person"]]
    alone = list(ready(root, "predict", eval_batch_size=1).predict_dataloader())
    assert [one["index"].tolist() for one in alone] == [[0, 1, 2, 3], [4, 5]]


def test_an_empty_batch_has_what_others_have(root):
    data = ready(root, "test")
    images = data.test_dataloader().dataset
    empty, full = images.__getitems__([]), images[0]
    assert empty.keys() == full.keys()
    for key, value in full.items():
        assert len(empty[key]) == 0
        if isinstance(value, torch.Tensor):
            assert (empty[key].dtype, empty[key].shape[1:]) == (value.dtype, value.shape[1:])
    assert data.on_after_batch_transfer(empty, 0)["image"].dtype == torch.float32


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "I;16"])
def test_pictures_of_every_mode_become_rgb(own, mode):
    grey = Image.new("I;16", (64, 48), 51 * 257) if mode == "I;16" else Image.new("RGB", (64, 48), (51,) * 3)
    kind = "TIFF" if mode == "CMYK" else "PNG"
    (grey if mode == "I;16" else grey.convert(mode)).save(picture(own, 11), kind)
    (batch,) = ready(own, "validate").val_dataloader()
    assert batch["image"][0, :, 32, 32].tolist() == [51] * 3


@pytest.mark.parametrize(("stage", "number"), [("fit", 1), ("test", 22)])
def test_a_picture_of_another_size_is_refused_with_both_sizes(own, stage, number):
    Image.new("RGB", (32, 24)).save(picture(own, number))
    data = ready(own, stage, on_bad_image="skip")
    with pytest.raises(ValueError, match=rf"{number:012d}.*32 x 24 pixels.*64 x 48.*image_dir"):
        list(data.train_dataloader() if stage == "fit" else data.test_dataloader())


def test_a_picture_that_cannot_be_read_stops_or_gives_way_to_the_next_ref(own):
    picture(own, 1).write_bytes(b"no picture")
    with pytest.raises(BadImageError, match=r'000001\.png.*on_bad_image="skip"'):
        steps(ready(own))
    data = ready(own, on_bad_image="skip")
    with pytest.warns(UserWarning, match="skipped: ") as caught:
        batches = steps(data)
    assert len([one for one in caught if "skipped" in str(one.message)]) == 1
    assert [len(batch["index"]) for batch in batches] == [2, 2, 2]
    assert set(rows(batches)) == {2, 3, 4}  # refs 0 and 1 are of this picture
    assert data.bad_images == data.summary()["data/bad_image_files"] == [str(picture(own, 1))]
    picture(own, 21).write_bytes(b"no picture")
    with pytest.raises(BadImageError, match="An evaluation leaves nothing out"):
        list(ready(own, "test", on_bad_image="skip").test_dataloader())


def test_without_any_readable_picture_training_stops(own):
    for number in (1, 2, 3, 4):
        picture(own, number).write_bytes(b"no picture")
    with pytest.warns(UserWarning, match="skipped"), pytest.raises(ValueError, match="not one readable picture"):
        steps(ready(own, on_bad_image="skip"))


def test_words_of_training_are_the_vocabulary_and_others_are_counted(root, caplog):
    with caplog.at_level("INFO"):
        data = ready(root)
    assert data.vocabulary == ["blue", "dog", "in", "left", "man", "red", "shirt", "the"]
    assert data.word_vectors is None
    assert data.sentence_words == sorted([*data.vocabulary, "person", "zebra"])
    found = data.summary()
    assert (found["data/unknown_words"], found["data/unknown_word_list"]) == (2, ["zebra", "person"])
    assert (found["data/unknown_word_uses"], found["data/truncated_sentences"]) == (4, 1)
    assert (found["data/train_refs"], found["data/train_sentences"]) == (5, 9)
    assert (found["data/testA_refs"], found["data/testA_sentences"]) == (3, 6)
    assert (found["data/empty_sentences"], found["data/test_split"]) == (2, "testA")
    for text in (
        "train 5 refs with 9 sentences",
        "not in the vocabulary and count as unknown: 2, used 4 times: zebra, person",
        "sentences of more than max_words=4 words: 1, of up to 5 words",
        "sentences without words: 2",
    ):
        assert sum(text in record.getMessage() for record in caplog.records) == 1
    with pytest.raises(ValueError, match="glove=None"):
        data.vectors_of(["red"])


def test_a_module_tells_its_own_words(root):
    data = ready(root, "fit", "test")
    loader = data.test_dataloader()
    data.use_vocabulary(["zebra", "blue"])
    assert data.vocabulary == ["zebra", "blue"]
    (batch,) = loader
    assert batch["tokens"].tolist() == [[3, 1, 0, 0], [1, 1, 0, 0], [0] * 4, [2, 0, 0, 0], [2, 0, 0, 0], [1, 2, 0, 0]]
    assert set(rows(steps(data))[2][1].tolist()) == {1, 0}
    assert data.summary()["data/vocabulary"] == 2
    assert "red" in data.summary()["data/unknown_word_list"]
    data.setup("validate")  # another stage does not change them back
    assert data.vocabulary == ["zebra", "blue"]
    assert data.training_words == ["blue", "dog", "in", "left", "man", "red", "shirt", "the"]
    with pytest.raises(ValueError, match="'a' twice"):
        data.use_vocabulary(["a", "a"])


@pytest.fixture
def glove(tmp_path):
    path = tmp_path / "glove.txt"
    path.write_text("the 1 2 3\nzebra 4 5 6\nred 7 8 9\nmauve 1 1 1\nred 0 0 0\n")
    return path


def test_with_glove_the_vocabulary_is_what_the_file_has_of_all_splits(own, glove, caplog):
    with caplog.at_level("INFO"):
        data = ready(own, glove=str(glove))
    assert data.vocabulary == ["red", "the", "zebra"]
    assert data.word_vectors.tolist() == [[0, 0, 0], [0, 0, 0], [7, 8, 9], [1, 2, 3], [4, 5, 6]]
    assert data.word_vectors.dtype == torch.float32
    assert data.summary()["data/unknown_words"] == 7
    assert f"not in {str(glove)!r} and count as unknown: 7, used" in caplog.text
    data.use_vocabulary(["zebra", "man"])
    assert data.word_vectors.tolist() == [[0] * 3, [0] * 3, [4, 5, 6], [0, 0, 0]]
    assert data.vectors_of(["mauve", "dog", "red"]).tolist() == [[1, 1, 1], [0, 0, 0], [7, 8, 9]]
    assert data.vectors_of([]).shape == (0, 3)


def test_vectors_that_were_found_are_kept_until_the_file_changes(own, glove, monkeypatch):
    data = ready(own, glove=str(glove))
    (kept,) = (own / ".cache").iterdir()
    reads = []
    original = datamodules.refcoco_words.read_glove
    monkeypatch.setattr("datamodules.refcoco_words.read_glove", lambda *args: reads.append(args) or original(*args))
    again = ready(own, glove=str(glove))
    assert not reads
    assert (again.vocabulary, again.word_vectors.tolist()) == (data.vocabulary, data.word_vectors.tolist())
    kept.write_bytes(kept.read_bytes()[:-30])  # damaged: made anew
    assert ready(own, glove=str(glove)).vocabulary == data.vocabulary
    assert len(reads) == 1
    glove.write_text(glove.read_text().replace("zebra 4", "zebra 3"))
    os.utime(glove, ns=(1, 1))
    assert ready(own, glove=str(glove)).word_vectors[4].tolist() == [3, 5, 6]
    assert len(reads) == 2
    assert all(path.name.startswith("glove_") for path in (own / ".cache").iterdir())


def test_a_folder_that_cannot_be_written_to_keeps_nothing(own, glove):
    (own / ".cache").write_text("a file where the folder would be")
    assert ready(own, glove=str(glove)).vocabulary == ["red", "the", "zebra"]


def test_faults_of_word_vectors_come_before_training(own, glove, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.txt"):
        RefCOCODataModule(str(own), glove=str(tmp_path / "none.txt")).prepare_data()
    glove.write_text("red 1 2\nthe 1\n")
    with pytest.raises(ValueError, match="line 2"):
        ready(own, glove=str(glove))
    glove.write_text("rouge 1 2\nle 1 3\n")
    with pytest.raises(ValueError, match=r"glove\.txt' has none of the words of refcoco"):
        ready(own, glove=str(glove))


@pytest.mark.parametrize(
    ("dataset", "split_by", "chosen", "split"),
    [
        ("refcoco", None, None, "testA"),
        ("refcoco+", None, "testB", "testB"),
        ("refcocog", None, None, "test"),
        ("refcocog", "umd", "val", "val"),
        ("refcocog", "google", None, "val"),
        ("unc", "unc", "testB", "testB"),
    ],
)
def test_which_split_is_tested(dataset, split_by, chosen, split):
    data = RefCOCODataModule(dataset=dataset, split_by=split_by, test_split=chosen)
    assert data.test_split == split
    assert data.split_by == (split_by or {"refcocog": "umd"}.get(dataset, "unc"))


def test_another_test_split_is_read(root):
    (batch,) = ready(root, "test", test_split="testB").test_dataloader()
    assert batch["image_id"].tolist() == [12]
    assert ready(root, "fit", "test", test_split="val").evaluation_sentences("test") == ["the red man", "person"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"eval_batch_size": 0}, "eval_batch_size must be at least 1"),
        ({"max_words": 0}, "max_words must be at least 1"),
        ({"num_workers": -1}, "num_workers must be 0"),
        ({"size": 100}, "size must be a multiple of 32, got 100"),
        ({"size": 0}, "size must be a multiple of 32"),
        ({"on_bad_image": "ignore"}, "on_bad_image must be"),
        ({"test_split": "testC"}, "test_split='testC' is no split of refcoco by unc; choose one of testA, testB, val"),
        ({"dataset": "refcocog", "test_split": "testA"}, "choose one of test, val"),
        ({"dataset": "coco"}, "coco"),
        ({"dataset": "refcoco+", "split_by": "umd"}, "umd"),
    ],
)
def test_arguments_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        RefCOCODataModule(**options)


def test_what_is_missing_is_named(own, tmp_path):
    nothing = RefCOCODataModule(str(tmp_path / "none"))
    with pytest.raises(FileNotFoundError, match=r"does not exist.*instances\.json and refs\(unc\)\.p"):
        nothing.prepare_data()
    with pytest.raises(FileNotFoundError, match=r"instances\.json"):
        nothing.setup("fit")
    RefCOCODataModule(str(own)).prepare_data()
    with pytest.raises(FileNotFoundError, match=r"lacks refs\(google\)\.p"):
        RefCOCODataModule(str(own), split_by="google").prepare_data()
    with pytest.raises(FileNotFoundError, match=r"elsewhere.*image_dir"):
        RefCOCODataModule(str(own), image_dir=str(tmp_path / "elsewhere")).prepare_data()
    picture(own, 2).unlink()
    with pytest.raises(FileNotFoundError, match=r"'train' names 4 pictures, of which 1 are not.*000002\.png"):
        ready(own)
    ready(own, "test")  # needs others


def test_pictures_may_be_elsewhere(own, tmp_path):
    (own / "images" / "train2014").rename(tmp_path / "pictures")
    data = ready(own, image_dir=str(tmp_path / "pictures"))
    assert set(rows(steps(data))) == set(range(5))


def test_nothing_to_train_or_to_test_on_is_said(tmp_path):
    root = write_refer(tmp_path / "a", [ref for ref in REFS if ref["split"] == "train"])
    data = ready(root)
    assert data.val_dataloader() == []
    with pytest.raises(ValueError, match="no refs in the split 'testA', but in train"):
        data.setup("test")
    silent = write_refer(tmp_path / "b", [TRAIN[0], TRAIN[1] | {"told": ["", " "]}])
    with pytest.raises(ValueError, match="1 refs to train on have no sentence with a word, such as ref_id=2"):
        ready(silent)


def test_before_setup_it_says_what_to_call(root):
    data = RefCOCODataModule(str(root), **SMALL)
    for ask in (lambda: data.vocabulary, lambda: data.word_vectors, data.train_dataloader, data.val_dataloader):
        with pytest.raises(RuntimeError, match="setup"):
            ask()
    assert data.summary()["data/bad_images"] == 0


def test_the_demo_is_written_where_there_is_nothing(tmp_path, monkeypatch):
    wanted = []
    monkeypatch.setattr("datamodules.refcoco.write_refcoco", lambda *args: wanted.append(args) or write_refer(args[0]))
    for _ in range(2):
        data = RefCOCODataModule(str(tmp_path / "new"), demo=True)
        data.prepare_data()
    assert wanted == [(tmp_path / "new", "refcoco", "unc")]


def test_what_the_page_of_the_data_names_is_there():
    for name in ("polygons_to_mask", "rle_to_mask", "mask_to_rle", "read_glove", "SyntheticReferDataset"):
        assert callable(getattr(datamodules.refcoco, name))
