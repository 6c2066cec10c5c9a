"""Training pairs: which frames they are of, where the target is in them, and that nothing but the key decides."""

import pickle
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from datamodules.loaders import loader_options
from datamodules.samplers import EpochSampler, ResumableLoader
from datamodules.sequence_source import usable_frames
from datamodules.track_table import Canvas, table_of
from datamodules.tracking_pairs import PairDataset, SequenceSource
from datamodules.tracking_sequences import TrackingSequence
from lit_methods.functional.pictures import BadImageError

SMALL = {"template_size": 31, "search_size": 63, "search_shift": 16}
PLAIN = {"template_colour": 0, "search_colour": 0, "search_blur": 0}
SIZE = (48, 64)  # of frames, height and width


def box_of(number, frame):
    return 6 + 3 * frame + number, 9 + 2 * frame, 12 + number, 10


def paint(number, frame):
    """A frame in which the target alone has much green, on a background of two halves."""
    picture = np.zeros((*SIZE, 3), np.uint8)
    picture[:, :, 0], picture[:, 32:, 2] = 40 + 50 * number, 90
    x, y, w, h = box_of(number, frame)
    picture[y : y + h, x : x + w, 1] = 250
    return Image.fromarray(picture)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Three videos of 9, 8 and 7 frames. Do not change their files."""
    root, videos = tmp_path_factory.mktemp("videos"), []
    for number in range(3):
        count = 9 - number
        paths = [str(root / f"{number}-{frame}.png") for frame in range(count)]
        for frame, path in enumerate(paths):
            paint(number, frame).save(path)
        boxes = np.array([box_of(number, frame) for frame in range(count)], np.float64)
        videos.append(TrackingSequence(f"thing-{number}", paths, boxes))
    return videos


def pairs_of(videos, pairs=40, source=None, **options):
    kept = {"frame_range": 3, "uses": 20} | (source or {})
    return PairDataset([SequenceSource(videos, **kept)], pairs, **SMALL | options)


def keys(count, epoch=0):
    return [(epoch, number) for number in range(count)]


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


def test_a_pair_depends_on_its_key_alone(drawn):
    chances = {f"{side}_{name}": 0.5 for side in ("template", "search") for name in ("blur", "colour", "flip")}
    options = {"grey": 0.5, "neg_prob": 0.5} | chances
    wanted = [*keys(6), *keys(6, epoch=7)]
    whole, again = pairs_of(drawn, **options).__getitems__(wanted), pairs_of(drawn, **options)
    for row, key in reversed(list(enumerate(wanted))):
        assert_same(again[key], {name: part[row] for name, part in whole.items()})
    assert_same(again[3], again[0, 3])
    for other in (pairs_of(drawn, seed=1, **options).__getitems__(keys(6)), again.__getitems__(keys(6, epoch=1))):
        assert not torch.equal(other["search"], whole["search"][:6])


def test_chances_of_different_things_are_drawn_apart(drawn):
    def batch(**options):
        return pairs_of(drawn, 80, source={"in_memory": True}, **PLAIN | options).__getitems__(keys(80))

    plain, mirrored = batch(neg_prob=0.5), batch(neg_prob=0.5, template_flip=0.5, search_flip=0.5)
    flags = [(mirrored[side] != plain[side]).flatten(1).any(1) for side in ("template", "search")]
    grey = batch(neg_prob=0.5, grey=0.5)["search"]
    flags += [(grey == grey[:, :1]).flatten(1).all(1), plain["negative"]]
    both = torch.stack(flags).double()
    assert (both.mean(1) - 0.5).abs().max() < 0.2
    assert (torch.corrcoef(both) - torch.eye(4)).abs().max() < 0.35


def test_a_batch_has_the_promised_shapes_and_types(drawn):
    batch = pairs_of(drawn).__getitems__(keys(5))
    assert batch["template"].shape == (5, 3, 31, 31)
    assert batch["search"].shape == (5, 3, 63, 63)
    assert batch["box"].shape == (5, 4)
    assert {batch[name].dtype for name in ("template", "search", "box")} == {torch.float32}
    assert batch["negative"].dtype == torch.bool
    assert {name: len(part) for name, part in pairs_of(drawn).__getitems__([]).items()} == dict.fromkeys(batch, 0)
    with pytest.raises(IndexError, match=r"pairs \[40\] of 40"):
        pairs_of(drawn)[40]


def batches_of(pairs, workers, world=1, rank=0):
    sampler = EpochSampler(pairs, 5, num_replicas=world, rank=rank)
    return list(ResumableLoader(pairs, sampler=sampler, **loader_options(8, workers, 0)))


def test_two_workers_make_the_batches_that_none_makes(drawn):
    for one, other in zip(batches_of(pairs_of(drawn), 0), batches_of(pairs_of(drawn), 2), strict=True):
        assert_same(one, other)


def test_two_ranks_share_the_pairs_out(drawn):
    pairs = pairs_of(drawn)

    def rows(batches):
        return sorted(tuple(row.tolist()) for batch in batches for row in batch["box"])

    assert rows(batches_of(pairs, 0)) == rows(batches_of(pairs, 0, 2, 0) + batches_of(pairs, 0, 2, 1))


def test_a_copy_in_another_process_would_be_the_same(drawn):
    pairs = pairs_of(drawn, source={"in_memory": True})
    assert_same(pickle.loads(pickle.dumps(pairs)).__getitems__(keys(3)), pairs.__getitems__(keys(3)))


def test_positive_pairs_are_of_one_video_and_near_each_other(drawn):
    pairs = pairs_of(drawn, 3000, neg_prob=0, source={"frame_range": 2})
    table = pairs.sources[0].table
    chosen = pairs.choose(np.zeros(3000, np.int64), np.arange(3000))
    videos = table.video_of_track[table.track_of_frame[chosen.places]]
    frames = table.frames[chosen.places]
    assert not chosen.negative.any()
    assert (videos[:, 0] == videos[:, 1]).all()
    gaps = frames[:, 1] - frames[:, 0]
    assert sorted(set(gaps.tolist())) == [-2, -1, 0, 1, 2]
    inner = gaps[(frames[:, 0] >= 2) & (frames[:, 0] <= 4)]  # both neighbours are there in all videos
    share = np.bincount(inner + 2) / len(inner)
    assert abs(share - 0.2).max() < 0.05
    templates = np.bincount(frames[videos[:, 0] == 0, 0]) / 1000
    assert len(templates) == 9
    assert abs(templates - 1 / 9).max() < 0.03


def test_negative_pairs_are_of_two_videos_and_as_many_as_asked_for(drawn):
    sources = [SequenceSource(drawn[:2], uses=3), SequenceSource(drawn[2:], uses=1)]
    pairs = PairDataset(sources, 2000, neg_prob=0.2, **SMALL)
    chosen = pairs.choose(np.zeros(2000, np.int64), np.arange(2000))
    videos = np.empty((2000, 2, 2), np.int64)
    for row, column in np.ndindex(2000, 2):
        source = chosen.sources[row, column]
        videos[row, column] = source, sources[source].table.video(chosen.places[row, column])
    same = (videos[:, 0] == videos[:, 1]).all(1)
    assert (same == ~chosen.negative).all()
    assert abs(chosen.negative.mean() - 0.2) < 0.03
    of_first = chosen.sources[chosen.negative & (chosen.sources[:, 0] == 0), 1]
    assert abs(of_first.mean() - 0.5) < 0.1  # each source, whatever its uses
    batch = pairs.__getitems__(keys(50))
    assert batch["negative"].tolist() == chosen.negative[:50].tolist()


def test_rounds_give_each_source_its_uses_and_each_video_as_many(drawn):
    sources = [SequenceSource(drawn, uses=7), SequenceSource(drawn[:2], uses=4)]
    pairs = PairDataset(sources, 5, **SMALL)  # 11 in a round, so that rounds go over several epochs
    mixed = np.concatenate([pairs._mixed(np.full(5, epoch), np.arange(5)) for epoch in range(11)]).reshape(5, 11, 2)
    for turn in mixed:
        assert np.bincount(turn[:, 0]).tolist() == [7, 4]
        assert sorted(np.bincount(turn[turn[:, 0] == 0, 1]).tolist()) == [2, 2, 3]
        assert np.bincount(turn[turn[:, 0] == 1, 1]).tolist() == [2, 2]
    assert len({tuple(turn[:, 0]) for turn in mixed}) == 5
    assert len({int(np.bincount(turn[turn[:, 0] == 0, 1]).argmax()) for turn in mixed}) > 1  # the odd one changes


@pytest.mark.parametrize("sizes", [{}, {"template_size": 63, "search_size": 127, "search_shift": 30}])
def test_the_target_is_where_the_box_says(drawn, sizes):
    options = PLAIN | {"search_scale": 0.3, "search_flip": 0.5} | sizes
    batch = pairs_of(drawn, neg_prob=0.3, **options).__getitems__(keys(30))
    size = batch["search"].shape[-1]
    for search, box in zip(batch["search"], batch["box"], strict=True):
        target = search[1] > 125
        rows, columns = target.any(1).nonzero().flatten(), target.any(0).nonzero().flatten()
        seen = torch.stack([columns[0], rows[0], columns[-1], rows[-1]]).float()
        # a pixel of the frame is a few of the crop; the drawn box ends at the middle of the last one
        assert (seen - box.clamp(0, size - 1)).abs().max() < 0.06 * size


def test_a_template_has_the_target_in_its_middle(drawn):
    batch = pairs_of(drawn, template_shift=0, template_scale=0, **PLAIN).__getitems__(keys(12))
    target = batch["template"][:, 1] > 125
    middle = torch.stack([part.nonzero().float().mean(0) for part in target])
    assert (middle - 15).abs().max() < 1.2


def test_frames_kept_in_memory_change_nothing(drawn, monkeypatch):
    kept = pairs_of(drawn, source={"in_memory": True})
    wanted = pairs_of(drawn).__getitems__(keys(20))
    monkeypatch.setattr("datamodules.sequence_source.read_rgb", None)  # no file is read any more
    found = kept.__getitems__(keys(20))
    for name, part in wanted.items():
        assert_close(found[name], part, rtol=0, atol=1e-3)


def test_outside_of_a_frame_is_its_mean_colour(drawn):
    source = SequenceSource(drawn)
    crop = source.cut(0, Canvas(31, 63), (0, 0, 126, 126), 127)
    red, green, blue = np.asarray(paint(0, 0)).reshape(-1, 3).mean(0)
    assert_close(crop[:, 0, 0], torch.tensor([blue, green, red]).float(), rtol=0, atol=1e-2)


def test_options_of_one_side_leave_the_other_side_alone(drawn):
    plain = pairs_of(drawn, **PLAIN).__getitems__(keys(10))
    changes = {"shift": 9, "scale": 0.3, "blur": 1.0, "colour": 1.0, "flip": 1.0}
    for side, other in (("template", "search"), ("search", "template")):
        for name, value in changes.items():
            batch = pairs_of(drawn, **PLAIN | {f"{side}_{name}": value}).__getitems__(keys(10))
            assert torch.equal(batch[other], plain[other])
            assert not torch.equal(batch[side], plain[side]), (side, name)


def test_a_mirrored_pair_is_the_mirror_of_the_pair(drawn):
    plain = pairs_of(drawn, **PLAIN).__getitems__(keys(6))
    mirrored = pairs_of(drawn, **PLAIN, search_flip=1.0).__getitems__(keys(6))
    assert_close(mirrored["search"], plain["search"].flip(-1))
    assert_close(mirrored["box"][:, [0, 2]], 62 - plain["box"][:, [2, 0]])
    assert_close(mirrored["box"][:, [1, 3]], plain["box"][:, [1, 3]])


def test_grey_takes_the_colours_of_both_crops_or_of_neither(drawn):
    batch = pairs_of(drawn, grey=0.5, **PLAIN).__getitems__(keys(30))
    grey = [(batch[side] == batch[side][:, :1]).flatten(1).all(1) for side in ("template", "search")]
    assert torch.equal(*grey)
    assert 8 <= int(grey[0].sum()) <= 22


def test_other_colours_are_as_the_spec_draws_them(drawn):
    options = {"source": {"in_memory": True}, "template_size": 3, "search_size": 3, "search_blur": 0}
    plain = pairs_of(drawn, 200, **options | PLAIN).__getitems__(keys(200))["template"]
    offset = (pairs_of(drawn, 200, **options).__getitems__(keys(200))["template"] - plain).mean((2, 3)).double()
    blue, _, red = offset.std(0).tolist()
    assert blue == pytest.approx(np.hypot(4.64467907, np.hypot(4.73710203, 4.88324118)), rel=0.15)
    assert red == pytest.approx(np.hypot(0.55919361, np.hypot(0.98062831, 0.41940627)), rel=0.15)
    assert offset.mean(0).abs().max() < 2


def test_frames_without_a_whole_box_are_not_used(drawn):
    boxes = drawn[0].boxes.copy()
    boxes[0], boxes[1], boxes[2] = (5, 5, 0, 4), (5, 5, 4, -1), np.nan
    boxes[3], boxes[4], boxes[5] = (-0.5, 5, 4, 4), (60, 5, 4.5, 4), (60.5, 38.5, 3.5, 9.5)  # the last one just fits
    present = np.ones(9, bool)
    present[7] = False
    video = TrackingSequence("a-1", drawn[0].frames, boxes, present)
    assert usable_frames(video).tolist() == [5, 6, 7, 8]
    assert usable_frames(video, skip_absent=True).tolist() == [5, 6, 8]
    gone = TrackingSequence("gone-1", drawn[0].frames, np.zeros((9, 4)))
    with pytest.warns(UserWarning, match="1 of 2 videos have no frame to train on, .* gone-1"):
        source = SequenceSource([gone, video])
    assert (len(source.table), source.left_out) == (1, ["gone-1"])
    with pytest.raises(ValueError, match=r"none of the 1 videos has a frame to train on, .* gone-1"):
        SequenceSource([gone])


def test_boxes_keep_their_fractions(drawn):
    boxes = drawn[0].boxes + 0.25
    source = SequenceSource([TrackingSequence("a-1", drawn[0].frames, boxes)])
    assert source.wh(np.array([2])).tolist() == [boxes[2, 2:].tolist()]


def broken(drawn, tmp_path, frames):
    """The first video, some of whose frames are no pictures."""
    paths = list(drawn[0].frames)
    for frame in frames:
        paths[frame] = str(tmp_path / f"broken-{frame}.png")
        (tmp_path / f"broken-{frame}.png").write_bytes(b"no picture")
    return TrackingSequence("broken-1", paths, drawn[0].boxes)


def test_a_frame_that_cannot_be_read_is_named_or_skipped(drawn, tmp_path):
    videos = [broken(drawn, tmp_path, [0, 4]), drawn[1]]
    with pytest.raises(BadImageError, match=r'cannot read the image .*broken-[04]\.png.*on_bad_frame="skip"'):
        pairs_of(videos).__getitems__(keys(24))
    pairs = pairs_of(videos, on_bad_frame="skip")
    with pytest.warns(UserWarning, match=r"broken-[04]\.png") as told:
        batch = pairs.__getitems__(keys(24))
    assert len(told) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # told once
        again = pairs.__getitems__(keys(24))
    assert_same(again, batch)
    good = pairs_of([drawn[0], drawn[1]]).__getitems__(keys(24))
    kept = [torch.equal(one, other) for one, other in zip(batch["search"], good["search"], strict=True)]
    assert 8 <= sum(kept) < 24  # all the others are what they would have been
    single = pairs_of(videos, on_bad_frame="skip")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert_same(single[0, 11], {name: part[11] for name, part in batch.items()})


def test_videos_without_a_frame_that_can_be_read_are_an_error(drawn, tmp_path):
    with pytest.raises(BadImageError, match=r"cannot read the first frame of 'broken-1'.*nor any other of its frames"):
        SequenceSource([broken(drawn, tmp_path, range(9))])
    pairs = pairs_of([broken(drawn, tmp_path, range(8))], neg_prob=0, on_bad_frame="skip", source={"frame_range": 0})
    pairs.sources[0].sequences[0].frames[8] = pairs.sources[0].sequences[0].frames[0]
    with (
        pytest.warns(UserWarning, match="other pairs"),
        pytest.raises(BadImageError, match=r"20 pairs in turn .*broken-\d\.png"),
    ):
        pairs.__getitems__(keys(3))


def test_a_cache_holds_what_the_official_preparation_would(drawn, tmp_path):
    folder = tmp_path / "cache"
    source = {"cache_dir": str(folder)}
    first = pairs_of(drawn, source=source, **PLAIN).__getitems__(keys(12))
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.*")}
    crops = sorted(name for name in files if name.endswith(".jpg"))
    assert crops
    assert all(name.startswith("crop127_31/thing-") and name.endswith(".00.x.jpg") for name in crops)
    assert not [name for name in files if ".part" in name]
    assert Image.open(folder / crops[0]).size == (127, 127)
    assert_same(pairs_of(drawn, source=source, **PLAIN).__getitems__(keys(12)), first)  # from the files alone
    assert {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.*")} == files
    direct = pairs_of(drawn, **PLAIN).__getitems__(keys(12))
    assert torch.equal(first["box"], direct["box"])
    difference = (first["search"] - direct["search"]).abs()
    assert 0 < difference.mean() < 8  # a JPEG and a second resampling of hard edges


def test_a_cache_of_other_boxes_is_refused(drawn, tmp_path):
    source = {"cache_dir": str(tmp_path)}
    pairs_of(drawn, source=source).__getitems__(keys(20))
    moved = [TrackingSequence(video.name, video.frames, video.boxes + 0.5) for video in drawn]
    with pytest.raises(ValueError, match=r"cache_dir: .*thing-\d' holds crops of other frames, boxes or settings"):
        pairs_of(moved, source=source).__getitems__(keys(20))
    with pytest.raises(ValueError, match="holds crops of other frames"):
        pairs_of(drawn, source=source | {"cache_quality": 50}).__getitems__(keys(20))
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"cache_dir: cannot write .*; make room, or set cache_dir to null"):
        pairs_of(drawn, source={"cache_dir": str(tmp_path / "file")}).__getitems__(keys(1))


def test_a_damaged_file_of_the_cache_is_named(drawn, tmp_path):
    source = {"cache_dir": str(tmp_path)}
    pairs_of(drawn, source=source).__getitems__(keys(20))
    for path in tmp_path.rglob("*.jpg"):
        path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(BadImageError, match="Remove this file of cache_dir"):
        pairs_of(drawn, source=source).__getitems__(keys(20))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pairs_per_epoch": 0}, "pairs_per_epoch must be 1 or more, got 0"),
        ({"neg_prob": 1.5}, "neg_prob must be between 0 and 1, got 1.5"),
        ({"search_blur": -0.1}, "search_blur must be between 0 and 1, got -0.1"),
        ({"grey": float("nan")}, "grey must be between 0 and 1, got nan"),
        ({"template_shift": -1}, "template_shift must be 0 or more pixels, got -1"),
        ({"search_scale": 1}, "search_scale must be at least 0 and below 1, got 1"),
        ({"template_size": 64}, "got template_size=64 and search_size=63"),
        ({"on_bad_frame": "hold"}, "on_bad_frame must be 'raise' or 'skip', got 'hold'"),
    ],
)
def test_arguments_out_of_range_are_named(drawn, options, message):
    with pytest.raises(ValueError, match=message):
        PairDataset([SequenceSource(drawn)], **SMALL | options)


def test_sources_refuse_what_they_cannot_do(drawn, tmp_path):
    for options, message in (
        ({"frame_range": -1}, "frame_range must be 0 or more, got -1"),
        ({"uses": 0}, "uses must be 1 or more, got 0"),
        ({"in_memory": True, "cache_dir": str(tmp_path)}, "in_memory=True leaves nothing to do for cache_dir"),
        ({"cache_quality": 101}, "cache_quality must be between 1 and 100, got 101"),
    ):
        with pytest.raises(ValueError, match=message):
            SequenceSource(drawn, **options)
    with pytest.raises(ValueError, match=r"neg_prob=0.2 needs a second video"):
        PairDataset([SequenceSource(drawn[:1])], **SMALL)
    with pytest.raises(ValueError, match="sources is empty"):
        PairDataset([], **SMALL)


def test_distances_are_of_frames_or_of_places_in_the_list():
    draws = np.linspace(0, 1, 200, endpoint=False)
    for by_list, reach, wanted in ((False, 5, {0, 1, 2}), (False, 4, {0, 1}), (True, 1, {0, 1, 2}), (True, 0, {1})):
        table = table_of([[[0, 4, 9, 100], [3, 4]]], by_list)
        assert set(table.near(np.full(200, 1), reach, draws).tolist()) == wanted
    tracks = table_of([[[0]], [[0, 1, 2], [7]]]).any_frame(np.ones(200, np.int64), np.stack([draws, draws[::-1]], 1))
    assert np.bincount(tracks).tolist()[4] == 100  # tracks of a video equally often, whatever their lengths
