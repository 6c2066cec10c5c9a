import copy
import gc
import json
import pickle

import pytest

from datamodules.refcoco_files import (
    Referent,
    Refs,
    find_refs,
    read_instances,
    read_refs,
    referents_of,
    resolve_dataset,
    splits_to_test,
    truncated_box,
)
from lit_methods.functional.coco_masks import compressed_rle, polygons_to_mask, segmentation_to_mask

SQUARE = [1.0, 1.0, 4.0, 1.0, 4.0, 3.0, 1.0, 3.0]


def make_ref(ref_id, **fields):
    sentences = [
        {"sent_id": 2 * ref_id + n, "sent": text, "raw": text, "tokens": text.split()}
        for n, text in enumerate(("a cat", ""))
    ]
    ref = {"ref_id": ref_id, "ann_id": 100 + ref_id, "image_id": 9, "category_id": 18, "split": "train"}
    return ref | {"file_name": f"9_{ref_id}.jpg", "sent_ids": [], "sentences": sentences} | fields


def make_instances():
    """Three annotations of two pictures: polygons, a compressed code, and a list of counts that no ref uses."""
    image = {"id": 9, "file_name": "COCO_train2014_000000000009.jpg", "height": 6, "width": 8}
    code = {"size": [6, 8], "counts": compressed_rle(polygons_to_mask([SQUARE], 6, 8))}
    shared = {"image_id": 9, "category_id": 18, "bbox": [1, 1.5, 3.25, 2], "area": 6, "iscrowd": 0}
    return {
        "images": [image, image | {"id": 10, "width": 5, "file_name": "COCO_train2014_000000000010.jpg"}],
        "annotations": [
            shared | {"id": 101, "segmentation": [SQUARE, [5, 5, 7, 5]]},
            shared | {"id": 102, "segmentation": code},
            shared | {"id": 103, "segmentation": None},
        ],
        "categories": [{"id": 18, "name": "dog", "supercategory": "animal"}],
    }


@pytest.fixture
def write(tmp_path):
    def write(refs=None, instances=None, by="unc", form="p"):
        refs = [make_ref(1), make_ref(2, split="testA")] if refs is None else refs
        content = json.dumps(refs).encode() if form == "json" else pickle.dumps(refs, protocol=2)
        (tmp_path / f"refs({by}).{form}").write_bytes(content)
        (tmp_path / "instances.json").write_text(json.dumps(instances or make_instances()), "utf-8")
        return tmp_path

    return write


def read(folder):
    refs = read_refs(folder, "unc")
    return refs, read_instances(folder / "instances.json", refs)


@pytest.mark.parametrize("form", ["p", "json"])
def test_refs_and_their_annotations_are_read(write, form):
    refs, instances = read(write(form=form))
    assert refs.path.name == f"refs(unc).{form}"
    assert refs.referents[0] == Referent(1, 101, 9, 18, "train", ("a cat", ""))
    assert [len(refs), len(instances), sorted(instances.annotations)] == [2, 2, [101, 102]]
    for ann_id in (101, 102):
        found = instances[ann_id]
        assert found.bbox == (1.0, 1.5, 3.25, 2.0)
        assert (found.height, found.width, found.file_name) == (6, 8, "COCO_train2014_000000000009.jpg")
        assert segmentation_to_mask(found.segmentation, 6, 8).sum() == 6
    assert gc.isenabled()


def test_json_is_preferred(write):
    folder = write(refs=[make_ref(1)], form="p")
    write(refs=[make_ref(1), make_ref(2)], form="json")
    assert find_refs(folder, "unc").name == "refs(unc).json"
    assert len(read_refs(folder, "unc")) == 2
    assert find_refs(folder, "google") is None


def test_missing_files_are_named(write, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"neither refs\(unc\)\.p nor refs\(unc\)\.json in .*; unpack"):
        read_refs(tmp_path, "unc")
    folder = write(by="google")
    with pytest.raises(FileNotFoundError, match=r"neither refs\(unc\)\.p nor .*, but refs\(google\)\.p"):
        read_refs(folder, "unc")
    with pytest.raises(FileNotFoundError, match=r"there is no file '.*other\.json'"):
        read_instances(folder / "other.json", read_refs(folder, "google"))


def test_splits_are_chosen_by_the_rule_of_the_reference_reader():
    names = ("train", "val", "testA", "testB", "testAB", "test", "training")
    refs = Refs(None, tuple(Referent(n, n, 1, None, name, ("x",)) for n, name in enumerate(names)))
    chosen = {split: [names[r.ref_id] for r in referents_of(refs, split)] for split in (*names[:6], "testC")}
    assert chosen == {
        "train": ["train"],
        "val": ["val"],
        "testA": ["testA", "testAB"],
        "testB": ["testB", "testAB"],
        "testAB": ["testAB"],
        "test": ["testA", "testB", "testAB", "test"],
        "testC": [],
    }


@pytest.mark.parametrize(
    ("given", "resolved"),
    [
        (("refcoco",), ("refcoco", "unc")),
        (("refcoco", "google"), ("refcoco", "google")),
        (("refcoco+",), ("refcoco+", "unc")),
        (("refcocog",), ("refcocog", "umd")),
        (("refcocog", "google"), ("refcocog", "google")),
        (("unc",), ("refcoco", "unc")),
        (("unc+", "unc"), ("refcoco+", "unc")),
        (("gref",), ("refcocog", "google")),
        (("gref_umd", "umd"), ("refcocog", "umd")),
    ],
)
def test_both_conventions_of_names(given, resolved):
    assert resolve_dataset(*given) == resolved


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        (("refcocog", "unc"), r"dataset='refcocog' has no split_by='unc'; there is .*refcocog with umd or google"),
        (("refcoco+", "google"), r"dataset='refcoco\+' has no split_by='google'"),
        (("gref", "umd"), "dataset='gref' is refcocog with split_by='google', which split_by='umd' is not"),
        (("unc", "umd"), "dataset='unc' has no split_by='umd'"),
        (("refcocg",), "dataset='refcocg' is unknown; did you mean 'refcocog'"),
    ],
)
def test_wrong_pairs_list_the_right_ones(given, fault):
    with pytest.raises(ValueError, match=fault):
        resolve_dataset(*given)


def test_splits_to_test_on():
    assert splits_to_test("refcoco+", "unc") == ("testA", "testB")
    assert splits_to_test("refcoco", "google") == ("test",)
    assert splits_to_test("refcocog", "google") == ()


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"ann_id": "8"}, "ref_id 2: the field 'ann_id' must be a whole number, got str"),
        ({"image_id": True}, "ref_id 2: the field 'image_id' must be a whole number, got bool"),
        ({"ref_id": 1.0}, "ref 1: the field 'ref_id' must be a whole number, got float"),
        ({"ref_id": 1}, "two refs with ref_id 1"),
        ({"category_id": "dog"}, "ref_id 2: the field 'category_id' must be a whole number"),
        ({"split": None}, "ref_id 2: the field 'split' must be a string, got NoneType"),
        ({"sentences": "a cat"}, "ref_id 2: the field 'sentences' must be a list, got str"),
        ({"sentences": []}, "ref_id 2: the field 'sentences' is empty"),
        ({"sentences": ["a cat"]}, "ref_id 2: sentence 0 must be a dict, got str"),
        ({"sentences": [{"raw": "x"}]}, "ref_id 2, sentence 0: the field 'sent' is missing; expected a string"),
        ({"sentences": [{"sent": 5}]}, "ref_id 2, sentence 0: the field 'sent' must be a string, got int"),
    ],
)
@pytest.mark.parametrize("form", ["p", "json"])
def test_faults_of_refs_name_file_ref_and_field(write, form, change, fault):
    folder = write(refs=[make_ref(1), make_ref(2) | change], form=form)
    with pytest.raises(ValueError, match=rf"refs\(unc\)\.{form}'.*{fault}"):
        read_refs(folder, "unc")


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ({"refs": []}, "must hold a list of refs, got dict"),
        ([], "holds no refs"),
        ([[]], "ref 0 must be a dict, got list"),
        ([{}], "ref 0: the field 'ref_id' is missing"),
    ],
)
def test_what_is_no_list_of_refs_is_refused(write, content, fault):
    with pytest.raises(ValueError, match=fault):
        read_refs(write(refs=content), "unc")


@pytest.mark.parametrize("text", ["", "[1,", "\x00", "[" * 100_000])
def test_damaged_json_is_named(write, text):
    folder = write()
    (folder / "refs(unc).json").write_text(text)
    with pytest.raises(ValueError, match=r"refs\(unc\)\.json' is no JSON"):
        read_refs(folder, "unc")


def changed(where, number, **fields):
    content = copy.deepcopy(make_instances())
    content[where][number] |= fields
    return content


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (changed("annotations", 1, id=104), "there is no such annotation"),
        (changed("images", 0, id=11), "there is no image with id 9"),
        (changed("annotations", 1, image_id=10), "annotation is of image_id 10, the ref of image_id 9"),
        (changed("annotations", 1, bbox=[1, 1, 0, 2]), r"bbox \[1, 1, 0, 2\] has no area"),
        (changed("annotations", 1, bbox=[1, 1, 2, -2]), "has no area"),
        (changed("annotations", 1, bbox=[8, 1, 2, 2]), "outside of its picture of width 8 and height 6"),
        (changed("annotations", 1, bbox=[-5, -5, 5, 9]), "outside of its picture"),
        (changed("annotations", 1, bbox=[1, 6, 2, 2]), "outside of its picture"),
        (changed("annotations", 1, bbox=[1, -5, 2, 5]), "outside of its picture"),
        (changed("annotations", 1, bbox=[1, 1, float("nan"), 2]), "must be finite"),
        (changed("annotations", 1, bbox=[1, 1, float("inf"), 2]), "must be finite"),
        (changed("annotations", 1, bbox=[1, 1, 2]), "must be four numbers x, y, w, h"),
        (changed("annotations", 1, bbox=None), "bbox None must be four numbers"),
        (changed("annotations", 1, bbox=["1", 1, 2, 2]), "must be four numbers"),
        (changed("annotations", 1, segmentation=[]), "segmentation is empty"),
        (changed("annotations", 1, segmentation=None), "segmentation must be a list of polygons"),
        (changed("annotations", 1, segmentation=[[1, 1, 2, 2]]), "1 polygon, but none with three corners"),
        (changed("annotations", 1, segmentation=[[1, 1, 2, 2, 3]]), "polygon 0 must be pairs of x and y"),
        (changed("annotations", 1, segmentation=[[1, 1, 2, 2, 3, float("nan")]]), "not finite"),
        (changed("annotations", 1, segmentation={"size": [8, 6], "counts": "123"}), "is of height and width"),
        (changed("annotations", 1, segmentation={"size": [6, 8], "counts": [48]}), "all background"),
        (changed("images", 0, height=0), "height 0 of its image must be a whole number from 1"),
        (changed("images", 0, width="8"), "width '8' of its image"),
        (changed("images", 0, file_name=""), "file_name '' of its image"),
        (changed("images", 0, file_name="../secret.jpg"), "must lead into the folder of the pictures"),
    ],
)
def test_faults_of_annotations_name_file_ref_and_annotation(write, content, fault):
    broken = make_ref(2)
    first = make_ref(1, image_id=10, ann_id=105)  # a sound one of another picture comes before
    content["annotations"].append(make_instances()["annotations"][0] | {"id": 105, "image_id": 10})
    folder = write(refs=[first, broken], instances=content)
    with pytest.raises(ValueError, match=rf"instances\.json', ref_id 2 of refs\(unc\)\.p, ann_id 102: .*{fault}"):
        read(folder)
    assert gc.isenabled()


def test_a_box_that_is_partly_outside_is_kept(write):
    _, instances = read(write(instances=changed("annotations", 1, bbox=[-2, -1, 90, 90])))
    assert instances[102].bbox == (-2.0, -1.0, 90.0, 90.0)


def test_refs_may_share_an_annotation_but_not_its_picture(write):
    _, instances = read(write(refs=[make_ref(1), make_ref(2, ann_id=101)]))
    assert len(instances) == 1
    with pytest.raises(ValueError, match=r"ref_id 2 .*annotation is of image_id 9, the ref of image_id 10"):
        read(write(refs=[make_ref(1), make_ref(2, ann_id=101, image_id=10)]))


@pytest.mark.parametrize("content", [[], {"images": []}, {"images": {}, "annotations": []}, 5])
def test_what_is_no_file_of_instances_is_refused(write, content):
    folder = write()
    (folder / "instances.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"instances\.json' must have lists 'images' and 'annotations'"):
        read(folder)


def test_rows_without_numbers_or_with_the_same_are_refused(write):
    content = make_instances()
    content["annotations"].append(content["annotations"][0])
    with pytest.raises(ValueError, match="two of 'annotations' have the id 101"):
        read(write(instances=content))
    with pytest.raises(ValueError, match="number 1 of 'images' must be a dict with a whole number 'id'"):
        read(write(instances=changed("images", 1, id="10")))


def test_boxes_are_truncated_as_by_the_official_code():
    assert truncated_box([10.9, 20.2, 30.8, 40.7]) == (10, 20, 40, 60)
    assert truncated_box([-0.5, -1.5, 3, 3]) == (0, -1, 3, 2)
    assert truncated_box([5.5, 5.5, 0.9, 0.2]) == (5, 5, 6, 6)
