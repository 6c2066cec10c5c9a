"""Drawn scenes in RefCOCO's layout: every sentence means one shape, and the files say what was drawn."""

import json
import pickle
import pickletools

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from datamodules.demo import refer_drawing, write_refcoco
from datamodules.demo.refcoco import PARTS, SyntheticReferDataset
from datamodules.demo.refer_drawing import COLOURS, KINDS, Shape
from datamodules.demo.refer_scenes import SPLITS, refer_scene
from datamodules.demo.refer_sentences import DATASETS, WORDS, draw_sentences, referring_sentences
from lit_methods.functional.coco_masks import segmentation_to_mask

TINY = {"images": {"train": 2, "val": 1}, "size": (64, 48)}
COUNTS = {"train": 8, "val": 2, "testA": 1, "testB": 1}
MOST = {"leftmost": (0, min), "rightmost": (0, max), "topmost": (1, min), "lowest": (1, max)}
SIDES = {"left": (0, -1), "right": (0, 1), "top": (1, -1), "bottom": (1, 1)}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_refcoco(tmp_path_factory.mktemp("refcoco") / "demo", images=COUNTS)


@pytest.fixture(scope="module")
def instances(root):
    return json.loads((root / "refcoco" / "instances.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def refs(root):
    with open(root / "refcoco" / "refs(unc).p", "rb") as file:
        return pickle.load(file)


@pytest.fixture(scope="module")
def scenes():
    return [refer_scene("train" if number % 2 else "val", number)[1] for number in range(16)]


def content(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def meant(sentence, shapes, size):
    """Places of the shapes that a sentence is true of, by plain reading."""
    words = sentence.removesuffix(" of the picture").split()
    named = [
        i
        for i, shape in enumerate(shapes)
        if all(shape.colour == word for word in words if word in COLOURS)
        and all(shape.kind == word for word in words if word in KINDS)
    ]
    middles = {i: [(shapes[i].box[k] + shapes[i].box[k + 2]) / 2 for k in (0, 1)] for i in named}
    for word in words:
        if word in MOST:
            axis, best = MOST[word]
            extreme = best(middles[i][axis] for i in named)
            named = [i for i in named if middles[i][axis] == extreme]
        if word in SIDES:
            axis, way = SIDES[word]
            named = [i for i in named if way * (middles[i][axis] - size[axis] / 2) > 0]
    return named


@pytest.mark.parametrize("dataset", DATASETS)
def test_every_sentence_means_exactly_one_shape(dataset, scenes):
    told = set()
    for shapes in scenes:
        for which in range(len(shapes)):
            sentences = referring_sentences(shapes, which, (128, 112), dataset)
            assert sentences["both"]
            for what, each in sentences.items():
                for sentence in each:
                    assert meant(sentence, shapes, (128, 112)) == [which], sentence
                    told |= {(what, word) for word in sentence.split()}
    places = {word for what, word in told if what == "place"} & {*MOST, *SIDES}
    assert places == (set() if dataset == "refcoco+" else {*MOST, *SIDES})
    assert {word for _, word in told} >= {*COLOURS, *KINDS}
    if dataset != "refcocog":
        assert {word for _, word in told} <= set(WORDS)


def test_places_are_told_where_they_are_needed_and_beyond_doubt(scenes):
    found = 0
    for shapes in scenes:
        for which in range(len(shapes)):
            for sentence in referring_sentences(shapes, which, (128, 112)).get("place", []):
                words = sentence.split()
                name = " ".join(word for word in words if word not in {*MOST, *SIDES})
                others = [i for i in meant(name, shapes, (128, 112)) if i != which]
                assert others, sentence  # without the place it could be another one
                (axis, way) = next((MOST | SIDES)[word] for word in words if word in {*MOST, *SIDES})
                way = {min: -1, max: 1}.get(way, way)
                place = [way * (shape.box[axis] + shape.box[axis + 2]) / 2 / (128, 112)[axis] for shape in shapes]
                edge = [max(way * shape.box[axis], way * shape.box[axis + 2]) for shape in shapes]
                assert place[which] - max(place[i] for i in others) >= 0.12 - 1e-9
                if set(words) & {*MOST}:
                    assert edge[which] > max(edge[i] for i in others)
                    assert place[which] - max(place[i] for i in others) >= 0.15 - 1e-9
                found += 1
    assert found > 150


def test_what_reaches_less_far_is_not_called_the_leftmost():
    def leftmost(edge):
        boxes = ((20, 40, 30, 50), (edge, 10, 90 - edge, 50))  # the middle of the first is 0.2 further left
        shapes = [Shape("square", c, None, None, box) for c, box in zip(("red", "blue"), boxes, strict=True)]
        return "leftmost square" in referring_sentences(shapes, 0, (100, 100)).get("place", [])

    assert leftmost(21)
    assert not leftmost(19)


def test_without_the_sentence_one_can_only_guess(scenes):
    assert {len(shapes) for shapes in scenes} == {3, 4}
    for shapes in scenes:
        looks = [(shape.kind, shape.colour) for shape in shapes]
        assert len(set(looks)) == len(looks)
        for kind, colour in looks:
            assert sum((kind == k) + (colour == c) for k, c in looks) > 2  # with itself it shares both


def test_sentences_are_drawn_once_each_and_of_every_sort():
    sentences = {"both": ["a", "b"], "either": ["c"], "place": ["d", "e", "f"]}
    drawn = [draw_sentences(sentences, 3, np.random.default_rng(seed)) for seed in range(30)]
    assert {len(set(each)) for each in drawn} == {3}
    assert {first for first, *_ in drawn} == set("abcdef")
    assert sorted(draw_sentences(sentences, 9, np.random.default_rng(0))) == list("abcdef")
    assert len(sentences["place"]) == 3  # the argument is left alone


@pytest.mark.parametrize("number", range(4))
def test_the_mask_is_where_the_colour_is(number):
    picture, shapes = refer_scene("train", number)
    names = list(COLOURS)
    distance = np.abs(picture[:, :, None].astype(float) - np.array([COLOURS[name] for name in names])).max(3)
    coloured = np.ptp(picture, 2) > 90  # photographs are pale
    covered = np.zeros(coloured.shape, bool)
    for shape in shapes:
        inside = shape.mask.astype(bool)
        assert ((distance.argmin(2) == names.index(shape.colour)) & coloured)[inside].mean() > 0.9
        rows, columns = np.nonzero(inside)
        assert shape.box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        assert not (covered & inside).any()
        assert 18 <= max(shape.box[2] - shape.box[0], shape.box[3] - shape.box[1]) <= 46
        covered |= inside
    assert coloured[~covered].mean() < 0.05


@pytest.mark.parametrize("split", SPLITS)
def test_training_pictures_have_a_part_of_the_photographs_of_their_own(split, monkeypatch):
    parts, part = set(), refer_drawing.photograph_part
    monkeypatch.setattr(refer_drawing, "photograph_part", lambda name, of: parts.add(of) or part(name, of))
    refer_scene(split, 0, (64, 48))
    assert parts == {"train" if split == "train" else "test"}


def test_a_plain_pickle_reads_the_refs(root, refs, instances):
    written = (root / "refcoco" / "refs(unc).p").read_bytes()
    codes = {code.name for code, _, _ in pickletools.genops(written)}
    assert written[:2] == b"\x80\x02"
    assert not codes & {"GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD", "NEWOBJ"}
    notes = {note["id"]: note for note in instances["annotations"]}
    names = {image["id"]: image["file_name"] for image in instances["images"]}
    for ref in refs:
        assert set(ref) == {
            *("ref_id", "ann_id", "image_id", "category_id", "file_name", "split", "sent_ids", "sentences")
        }
        note = notes[ref["ann_id"]]
        assert (note["image_id"], note["category_id"]) == (ref["image_id"], ref["category_id"])
        assert ref["file_name"].rpartition("_")[0] + ".jpg" == names[ref["image_id"]]
        assert [sentence["sent_id"] for sentence in ref["sentences"]] == ref["sent_ids"]
        for sentence in ref["sentences"]:
            assert set(sentence) == {"sent_id", "sent", "raw", "tokens"}
            assert sentence["sent"] == " ".join(sentence["tokens"]) == sentence["raw"].lower().rstrip(".")
        assert 2 <= len({sentence["sent"] for sentence in ref["sentences"]}) <= 3
    ids = [i for ref in refs for i in ref["sent_ids"]]
    assert len(set(ids)) == len(ids)
    assert len({ref["ref_id"] for ref in refs}) == len(refs)
    for split, count in COUNTS.items():
        per_image = [ref["image_id"] for ref in refs if ref["split"] == split]
        assert len(set(per_image)) == count
        assert max(per_image.count(i) for i in per_image) <= 3


def test_the_files_say_what_was_drawn(root, refs, instances):
    assert [category["name"] for category in instances["categories"]] == list(KINDS)
    splits = {ref["image_id"]: ref["split"] for ref in refs}
    forms = set()
    for image in instances["images"]:
        assert image["file_name"] == f"COCO_train2014_{image['id']:012d}.jpg"
        here = [note for note in instances["annotations"] if note["image_id"] == image["id"]]
        picture, shapes = refer_scene(splits[image["id"]], image["id"] % 100_000 - 1)
        with Image.open(root / "images" / "train2014" / image["file_name"]) as file:
            assert (file.mode, file.size) == ("RGB", (image["width"], image["height"]))
            assert np.abs(np.asarray(file).astype(int) - picture).mean() < 6
        assert len(here) == len(shapes)
        for note, shape in zip(here, shapes, strict=True):
            segmentation = note["segmentation"]
            forms |= {type(segmentation) if isinstance(segmentation, list) else type(segmentation["counts"])}
            forms |= {"rle"} if isinstance(segmentation, dict) else set()
            mask = segmentation_to_mask(segmentation, image["height"], image["width"])
            assert (mask == shape.mask).all()
            x, y, w, h = note["bbox"]
            assert (x, y, x + w, y + h) == shape.box
            assert note["area"] == mask.sum()
            assert KINDS[note["category_id"] - 1] == shape.kind
        for ref in refs:
            if ref["image_id"] == image["id"]:
                which = [note["id"] for note in here].index(ref["ann_id"])
                for sentence in ref["sentences"]:
                    assert meant(sentence["sent"], shapes, (128, 112)) == [which]
    assert forms == {list, str, "rle"}


def test_run_lengths_are_written_in_both_forms(instances):
    codes = [note["segmentation"] for note in instances["annotations"]]
    assert {type(code["counts"]) for code in codes if isinstance(code, dict)} == {str, list}
    assert sum(isinstance(code, list) for code in codes) > len(codes) / 2


def test_the_same_arguments_write_the_same_files(tmp_path):
    first, again, other = (
        content(write_refcoco(tmp_path / name, **TINY, seed=seed))
        for name, seed in (("first", 0), ("again", 0), ("other", 1))
    )
    assert first == again
    assert first.keys() == other.keys()
    assert not [name for name in first if first[name] == other[name]]


def test_what_a_split_holds_does_not_depend_on_the_others(tmp_path):
    few = content(write_refcoco(tmp_path / "few", **TINY))
    more = content(write_refcoco(tmp_path / "more", **TINY | {"images": {"testB": 1, "val": 1, "train": 3}}))
    assert {name: more[name] for name in few if name.endswith(".jpg")} == {
        name: few[name] for name in few if name.endswith(".jpg")
    }
    kept, all_of_them = (pickle.loads(each["refcoco/refs(unc).p"]) for each in (few, more))
    assert [ref for ref in all_of_them if ref in kept] == kept


@pytest.mark.parametrize(("dataset", "split_by"), PARTS)
def test_each_data_set_has_its_own_folder_splits_and_words(dataset, split_by, tmp_path):
    images = dict.fromkeys(PARTS[dataset, split_by], 1)
    root = write_refcoco(tmp_path / "set", dataset, split_by, images, (64, 48))
    refs = pickle.loads((root / dataset / f"refs({split_by}).p").read_bytes())
    assert list(dict.fromkeys(ref["split"] for ref in refs)) == list(images)
    words = {word for ref in refs for sentence in ref["sentences"] for word in sentence["tokens"]}
    assert dataset != "refcoco+" or not words & {*MOST, *SIDES}


def test_the_very_same_set_is_left_and_another_one_refused(tmp_path):
    root = write_refcoco(tmp_path / "set", **TINY)
    before = (root / "readme.txt").stat().st_mtime_ns
    write_refcoco(root, **TINY | {"images": {"val": 1, "train": 2}})  # in another order
    assert (root / "readme.txt").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="something else in it"):
        write_refcoco(root, **TINY, seed=1)


def test_other_data_sets_of_the_same_scenes_share_their_pictures(tmp_path):
    sets = {
        ("refcoco", "unc"): {"train": 1, "val": 1},
        ("refcoco+", "unc"): {"train": 2},
        ("refcocog", "umd"): {"test": 1},
    }
    root = tmp_path / "all"
    alone = {}
    for (dataset, split_by), images in sets.items():
        write_refcoco(root, dataset, split_by, images, (64, 48))
        alone |= content(write_refcoco(tmp_path / dataset, dataset, split_by, images, (64, 48)))
    together = content(root)
    readmes = {name for name in together if name.endswith("readme.txt")}
    assert readmes == {"readme.txt", "refcoco+/readme.txt", "refcocog/readme.txt"}
    assert len([name for name in together if name.endswith(".jpg")]) == 4
    assert {name: together[name] for name in together.keys() - readmes} == {
        name: alone[name] for name in alone if name != "readme.txt"
    }
    for (dataset, split_by), images in sets.items():
        write_refcoco(root, dataset, split_by, images, (64, 48))  # there already
    assert content(root) == together
    for other in (
        {"images": {"train": 1}},
        {"seed": 1},
        {"dataset": "refcoco+", "images": {"train": 3}},
        {"dataset": "refcoco+", "images": {"train": 2}, "seed": 1},
        {"dataset": "refcocog", "split_by": "google", "images": {"train": 1}},
    ):
        with pytest.raises(ValueError, match="something else in it"):
            write_refcoco(root, **{"size": (64, 48)} | other)
    assert content(root) == together
    assert {path.name for path in root.iterdir()} == {"images", "readme.txt", *DATASETS}


def test_what_somebody_else_has_put_there_gets_no_data_set(tmp_path):
    (tmp_path / "readme.txt").write_text("About my photographs. size=(64, 48) objects=(3, 4) seed=0\n")
    with pytest.raises(ValueError, match="something else in it"):
        write_refcoco(tmp_path, **TINY)
    assert [path.name for path in tmp_path.iterdir()] == ["readme.txt"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"dataset": "refcocog"}, "dataset='refcocog', split_by='unc': there is no such split; one of refcoco by unc"),
        ({"images": {"test": 1}}, "images: there is no split 'test' here; name some of train, val, testA, testB"),
        ({"images": {"train": -1}}, "images: train must be between 0 and 100000, got -1"),
        ({"images": {}}, "images={} are none; name a split and a number"),
        ({"size": (40, 96)}, "width of size must be at least 48, got 40"),
        ({"size": (96, 40)}, "height of size must be at least 48, got 40"),
        ({"objects": (2, 4)}, r"objects must be two numbers from 3 to 5, .* got \[2, 4\]"),
        ({"objects": (4, 3)}, r"objects must be two numbers from 3 to 5, .* got \[4, 3\]"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
    ],
)
def test_arguments_out_of_range_are_refused(wrong, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        write_refcoco(tmp_path / "set", **TINY | wrong)
    assert not (tmp_path / "set").exists()


def test_sentences_of_an_unknown_data_set_are_refused(scenes):
    with pytest.raises(ValueError, match="dataset must be one of refcoco, refcoco"):
        referring_sentences(scenes[0], 0, (128, 112), "referit")


def test_the_synthetic_set_needs_no_files_and_batches_plainly():
    data = SyntheticReferDataset(length=8, size=64)
    batch = next(iter(DataLoader(data, batch_size=8)))
    for key, shape, dtype in (
        ("image", (8, 3, 64, 64), torch.float32),
        ("tokens", (8, 8), torch.int64),
        ("box", (8, 4), torch.float32),
        ("mask", (8, 1, 64, 64), torch.uint8),
        ("index", (8,), torch.int64),
    ):
        assert (batch[key].shape, batch[key].dtype) == (shape, dtype), key
    assert 0 <= batch["image"].min() < batch["image"].max() <= 1
    assert batch["index"].tolist() == list(range(8))
    words = ["", "?", *data.vocabulary]
    assert data.vocabulary == sorted(set(data.vocabulary))
    for i in range(8):
        assert " ".join(words[token] for token in batch["tokens"][i]).strip() == batch["sentence"][i]
        rows, columns = np.nonzero(batch["mask"][i, 0].numpy())
        box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert batch["box"][i].tolist() == box
        shapes = refer_scene("train", i, (64, 64))[1]
        which = [shape.box for shape in shapes].index(tuple(box))
        assert meant(batch["sentence"][i], shapes, (64, 64)) == [which]


def test_the_synthetic_set_is_the_same_every_time_and_ends():
    data, other = SyntheticReferDataset(length=2, size=48), SyntheticReferDataset(length=2, size=48, seed=1)
    one, again = data[1], data[-1]
    assert all(torch.equal(one[key], again[key]) for key in ("image", "tokens", "box", "mask", "index"))
    assert not torch.equal(one["image"], other[1]["image"])
    assert len(list(data)) == len(data) == 2
    short = SyntheticReferDataset(length=2, size=48, max_words=1)
    assert short[1]["tokens"].tolist() == one["tokens"][:1].tolist()


@pytest.mark.parametrize("wrong", [{"length": 0}, {"size": 47}, {"seed": -1}, {"max_words": 0}])
def test_numbers_of_the_synthetic_set_out_of_range_are_refused(wrong):
    (name, value), *_ = wrong.items()
    with pytest.raises(ValueError, match=rf"{name} must be at least \d+, got {value}"):
        SyntheticReferDataset(**wrong)
