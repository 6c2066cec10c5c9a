"""Stored crops, as the official preparation leaves them."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from datamodules.crop_sets import CropSet
from datamodules.track_table import Canvas
from datamodules.tracking_pairs import PairDataset, SequenceSource
from datamodules.tracking_sequences import TrackingSequence
from lit_methods.functional.pictures import BadImageError
from tests.crop_data import write_crops


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A set of two usable videos. Do not change its files."""
    return write_crops(tmp_path_factory.mktemp("crops"))


def test_videos_tracks_and_frames_are_those_with_a_box(stored):
    crops = CropSet(stored, frame_range=1, uses=10)
    names = [crops.path(place).removeprefix(f"{stored}/crop511/train/") for place in range(len(crops.table.frames))]
    assert names == [
        "a/000000.00.x.jpg", "a/000002.00.x.jpg", "a/000007.00.x.jpg", "b/000000.00.x.jpg", "b/000000.01.x.jpg",
    ]  # fmt: skip
    assert crops.wh(np.arange(5)).tolist() == [[40, 40], [20, 20], [20, 40], [40, 30], [20.5, 30]]
    assert len(crops.table) == 2


def test_pairs_keep_to_a_track_and_to_the_range_of_its_frames(stored):
    for options, wanted in (
        ({"frame_range": 1}, {(0, 0), (1, 1), (2, 2)}),
        ({"frame_range": 2}, {(0, 0), (1, 1), (2, 2), (0, 1), (1, 0)}),
        ({"frame_range": 1, "range_of": "list"}, {(0, 0), (1, 1), (2, 2), (0, 1), (1, 0), (1, 2), (2, 1)}),
    ):
        pairs = PairDataset([CropSet(stored, uses=10, **options)], 400, neg_prob=0)
        places = pairs.choose(np.zeros(400, np.int64), np.arange(400)).places
        assert set(map(tuple, places.tolist())) == wanted | {(3, 3), (4, 4)}


def test_the_target_is_where_the_box_says(stored):
    options = {"search_colour": 0, "search_blur": 0, "template_colour": 0}
    batch = PairDataset([CropSet(stored, 1, 10)], 8, **options).__getitems__([(0, n) for n in range(8)])
    for search, box in zip(batch["search"], batch["box"], strict=True):
        target = search[1] > 155
        rows, columns = target.any(1).nonzero().flatten(), target.any(0).nonzero().flatten()
        seen = torch.stack([columns[0], rows[0], columns[-1], rows[-1]]).float()
        assert (seen - box.clamp(0, 254)).abs().max() < 1.6


@pytest.mark.parametrize("template_size", [127, 63])
def test_a_canvas_of_another_scale_shows_the_same(stored, template_size):
    crops, scale = CropSet(stored, 1, 10), template_size / 127
    stored_crop = np.asarray(Image.open(crops.path(3)).convert("RGB")).transpose(2, 0, 1)[::-1]
    canvas = Canvas(template_size, 120)
    crop = crops.cut(3, canvas, [120 - 40 * scale, 120 - 40 * scale, 120 + 40 * scale, 120 + 40 * scale], 81)
    assert_close(crop, torch.from_numpy(stored_crop[:, 215:296, 215:296].astype(np.float32)), rtol=0, atol=1e-2)


def test_a_cache_of_ours_is_a_set_of_stored_crops(tmp_path):
    boxes = np.array([[12.0, 9, 20, 15], [14, 9, 20, 15]])
    for frame in range(2):
        noise = np.random.default_rng(frame).integers(0, 255, (12, 16, 3), np.uint8)
        Image.fromarray(noise).resize((64, 48)).save(tmp_path / f"{frame}.png")
    video = TrackingSequence("a-1", [str(tmp_path / f"{frame}.png") for frame in range(2)], boxes)
    cached = SequenceSource([video], cache_dir=str(tmp_path / "cache"))
    wanted = [cached.cut(place, Canvas(), (100.0, 120, 226, 246), 127) for place in range(2)]
    tracks = {"00": {f"{frame:06d}": [*box[:2], *(box[:2] + box[2:])] for frame, box in enumerate(boxes)}}
    (tmp_path / "cache" / "train.json").write_text(json.dumps({"a-1": tracks}))
    crops = CropSet(str(tmp_path / "cache"), 1, 1)
    for place, crop in enumerate(wanted):
        assert torch.equal(crops.cut(place, Canvas(), (100.0, 120, 226, 246), 127), crop)
    direct = SequenceSource([video]).cut(0, Canvas(), (100.0, 120, 226, 246), 127)
    assert 0 < (direct - wanted[0]).abs().mean() < 3


def test_what_is_missing_is_named(stored, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"root='nowhere' has no annotation 'train.json'"):
        CropSet("nowhere", 1, 1)
    with pytest.raises(FileNotFoundError, match=r"has no annotation 'val.json'"):
        CropSet(stored, 1, 1, annotation="val.json")
    with pytest.raises(FileNotFoundError, match=r"a crop that is not there: '.*crop271/train/a/000000.00.x.jpg'"):
        CropSet(stored, 1, 1, crops="crop271")
    root = write_crops(tmp_path)
    (tmp_path / "crop511/train/b/000000.01.x.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"'.*crop511/train/b/000000.01.x.jpg'"):
        CropSet(root, 1, 1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is no JSON"),
        ("[1]", "must map videos to tracks"),
        ('{"a": {"00": [1, 2]}}', "'a': expected tracks that map frames to boxes"),
        ('{"a": {"00": {"000001": [1, 2, 3]}}}', r"a/00/000001: expected x0, y0, x1, y1 or w, h, got \[1, 2, 3\]"),
        ('{"a": {"00": {"000001": "none"}}}', "a/00/000001: expected x0, y0, x1, y1 or w, h, got 'none'"),
        ('{"a": {"00": {"000001": [0, 5]}}}', "has no box with an area"),
        ("{}", "has no box with an area"),
    ],
)
def test_an_annotation_of_another_form_is_refused(tmp_path, content, message):
    (tmp_path / "train.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        CropSet(str(tmp_path), 1, 1)


def test_options_out_of_range_are_refused(stored):
    for options, message in (
        ({"frame_range": -1, "uses": 1}, "frame_range must be 0 or more"),
        ({"frame_range": 1, "uses": 0}, "uses must be 1 or more"),
        ({"frame_range": 1, "uses": 1, "range_of": "time"}, "range_of must be 'frames' or 'list', got 'time'"),
    ):
        with pytest.raises(ValueError, match=message):
            CropSet(stored, **options)
    with pytest.raises(ValueError, match=r"stored crops reach 255 pixels .* search_size=400 need 400"):
        PairDataset([CropSet(stored, 1, 1)], search_size=400)


def test_a_crop_of_another_size_or_no_picture_is_named(tmp_path):
    crops = CropSet(write_crops(tmp_path, side=255), 1, 1)
    with pytest.raises(BadImageError, match=r"000000.00.x.jpg' must be 511 x 511 pixels, got 255 x 255"):
        crops.cut(0, Canvas(), (0, 0, 10, 10), 11)
    (tmp_path / "crop511/train/a/000002.00.x.jpg").write_bytes(b"none")
    pairs = PairDataset([crops], 30, on_bad_frame="raise")
    with pytest.raises(BadImageError, match=r'x\.jpg.*on_bad_frame="skip"'):
        pairs.__getitems__([(0, number) for number in range(30)])
