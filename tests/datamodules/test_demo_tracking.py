"""Drawn videos: LaSOT's layout, the same files every time, and boxes that are true."""

import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from datamodules.demo import tracking, write_tracking
from datamodules.demo.tracking import attributes
from datamodules.demo.tracking_clips import tracking_clip
from datamodules.demo.tracking_drawing import HELD_OUT, PATTERNS, PHOTOGRAPHS, SHAPES, Shot, draw_thing, photograph_part
from tests.datamodules.two_writers import in_step, twice_at_once

TINY = {"train": 2, "test": 1, "frames": 3, "size": (48, 64)}
SIZE, SPEED, FRAMES = (120, 160), 3.0, 40
SMALL = {"train": 6, "test": 6, "frames": FRAMES, "size": SIZE, "speed": SPEED}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_tracking(tmp_path_factory.mktemp("tracking") / "lasot", **SMALL)


@pytest.fixture(scope="module")
def clips():
    return [tracking_clip(s, i, FRAMES, SIZE, SPEED) for s in ("test", "train") for i in range(6)]


def content(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def videos(root):
    return sorted(path.parent for path in root.glob("*/*/img"))


def flags(path):
    assert path.read_text().count("\n") == 1  # one line
    return np.array([{"0": False, "1": True}[flag] for flag in path.read_text().strip().split(",")])


def truth(video):
    lines = (video / "groundtruth.txt").read_text().splitlines()
    assert all(re.fullmatch(r"\d+,\d+,\d+,\d+", line) for line in lines)
    boxes = np.array([list(map(int, line.split(","))) for line in lines])
    return boxes, flags(video / "full_occlusion.txt"), flags(video / "out_of_view.txt")


def test_the_same_arguments_write_the_same_files(tmp_path):
    first, again = (content(write_tracking(tmp_path / name, **TINY)) for name in ("first", "again"))
    assert first == again
    other = content(write_tracking(tmp_path / "other", **TINY, seed=1))
    same = {name for name in first if first[name] == other[name] and name.endswith((".jpg", "truth.txt"))}
    assert not same, same


def test_the_layout_is_that_of_lasot(root):
    names = [video.name for video in videos(root)]
    assert names == [f"{shape}-{i}" for shape, n in zip(SHAPES, (4, 4, 2, 2), strict=True) for i in range(1, n + 1)]
    for video in videos(root):
        assert video.parent.name == video.name.rpartition("-")[0]
        assert sorted(path.name for path in video.iterdir()) == [
            "full_occlusion.txt", "groundtruth.txt", "img", "nlp.txt", "out_of_view.txt",
        ]  # fmt: skip
        assert sorted(path.name for path in (video / "img").iterdir()) == [f"{i:08d}.jpg" for i in range(1, FRAMES + 1)]
        assert [len(part) for part in truth(video)] == [FRAMES] * 3
        assert len(flags(root / "att" / f"{video.name}.txt")) == 14
        picture = Image.open(video / "img" / "00000001.jpg")
        assert (picture.format, picture.mode, picture.size) == ("JPEG", "RGB", SIZE[::-1])
    tests = (root / "testing_set.txt").read_text().splitlines()
    assert tests == ["ellipse-1", "hexagon-1", "rectangle-1", "star-1", "ellipse-2", "hexagon-2"]


def test_the_test_set_does_not_depend_on_the_training_set(tmp_path):
    few, more = (content(write_tracking(tmp_path / str(n), **TINY | {"train": n})) for n in (1, 6))
    assert {name for name in few if name.startswith("ellipse/ellipse-1/") and few[name] != more[name]} == set()
    assert few["testing_set.txt"] == more["testing_set.txt"] == b"ellipse-1\n"


def test_boxes_lie_in_the_frame_and_are_nothing_where_a_flag_says_so(root):
    for video in videos(root):
        boxes, hidden, out = truth(video)
        absent = hidden | out
        assert not (hidden & out).any()
        assert not boxes[absent].any()
        assert (boxes[~absent][:, 2:] >= 1).all()
        assert (boxes[:, :2] >= 0).all()
        assert (boxes[:, :2] + boxes[:, 2:] <= SIZE[::-1]).all()
        assert not absent[0]


def test_one_of_six_is_hidden_and_one_leaves(root):
    seen = {video.name: tuple(int(f.sum()) for f in truth(video)[1:]) for video in videos(root)}
    for name in ("hexagon-1", "hexagon-3"):  # the second of each split
        assert 1 <= seen[name][0] <= FRAMES // 4
        assert seen.pop(name)[1] == 0
    for name in ("ellipse-2", "ellipse-4"):  # the fifth
        assert 1 <= seen[name][1] <= FRAMES // 3
        assert seen.pop(name)[0] == 0
    assert set(seen.values()) == {(0, 0)}


def test_the_box_is_the_extent_of_what_the_target_changes(clips):
    for clip in clips:
        for frame in range(0, FRAMES, 5):
            shot, without = clip.shot(frame), clip.shot(frame, target=False)
            assert without.box == shot.box
            changed = np.abs(shot.picture.astype(int) - without.picture).max(2) > 0
            if not shot.box[2]:
                assert changed.mean() < 0.02  # less than a tenth of it, seen at an edge
                continue
            rows, columns = np.nonzero(changed.any(1))[0], np.nonzero(changed.any(0))[0]
            x, y, w, h = shot.box
            beyond = np.array([x - columns[0], y - rows[0], columns[-1] + 1 - x - w, rows[-1] + 1 - y - h])
            assert beyond.min() >= 0, (clip.target.words, frame)
            assert beyond.max() <= 2, (
                clip.target.words,
                frame,
            )  # soft edges, at the points of stars two pixels of them


def test_the_box_holds_exactly_the_pixels_that_the_target_covers_by_half(clips):
    compared = 0
    for clip in clips:
        for frame in range(0, FRAMES, 4):
            box = clip.shot(frame).box
            if clip.pillar is None and box[2]:
                top, left, opaque, _ = draw_thing(clip.target, clip.poses[frame])
                rows, columns = np.nonzero(opaque >= 0.5)
                there = np.stack([rows + top, columns + left])
                rows, columns = there[:, ((there >= 0) & (there < np.array([SIZE]).T)).all(0)]
                x, y = columns.min(), rows.min()
                assert box == (x, y, columns.max() + 1 - x, rows.max() + 1 - y)
                compared += 1
    assert compared > 80


def test_the_first_frame_shows_all_of_the_target(clips):
    assert all(clip.shot(0).seen == 1.0 for clip in clips)


def test_the_files_hold_what_is_drawn(root, clips):
    for name, clip in (("ellipse-1", clips[0]), ("hexagon-3", clips[7])):
        video = root / name.split("-")[0] / name
        drawn = clip.shot(22)
        picture = np.asarray(Image.open(video / "img" / "00000023.jpg"), float)
        assert np.abs(picture - drawn.picture).mean() < 6
        assert truth(video)[0][22].tolist() == list(drawn.box)
        words = f"{clip.target.words} over a photograph of {PHOTOGRAPHS[clip.photograph]}\n"
        assert (video / "nlp.txt").read_text() == words


def mean_success(video):
    """Area under the success curve of a tracker that keeps its first box."""
    boxes, hidden, out = truth(video)
    low = np.maximum(boxes[:, :2], boxes[0, :2])
    high = np.minimum(boxes[:, :2] + boxes[:, 2:], boxes[0, :2] + boxes[0, 2:])
    inter = (high - low).clip(0).prod(1)
    overlap = inter / (boxes[:, 2:].prod(1) + boxes[0, 2:].prod() - inter)
    present = ~(hidden | out)
    return (overlap[present, None] > np.arange(0, 1.05, 0.05)).sum(0).mean() / len(boxes)


def test_who_keeps_the_first_box_loses_the_target(root):
    scores = [mean_success(video) for video in videos(root)]
    assert max(scores) < 0.33
    assert 0.02 < np.mean(scores) < 0.22


def test_things_move_slowly_and_grow_by_no_more_than_said(clips):
    for clip in clips:
        for poses in [clip.poses, *(poses for _, poses in clip.others)]:
            steps = np.hypot(*np.diff([(pose.x, pose.y) for pose in poses], axis=0).T)
            assert steps.max() <= SPEED
            assert steps.mean() > SPEED / 3
            sizes = np.sqrt([pose.half_width * pose.half_height for pose in poses])
            assert (sizes / sizes[0]).min() > 0.6
            assert (sizes / sizes[0]).max() <= 1.6 + 1e-9
        low, high = clip.windows[:, :2], clip.windows[:, 2:]
        assert (low >= 0).all()
        assert (high <= photograph_part(clip.photograph, clip.split).size).all()
        scale = SIZE[1] / (high - low)[:, 0]
        assert (np.abs(np.diff(low + high, axis=0)).max(1) / 2 * scale[1:]).max() < 1.5  # the camera pans slowly


def test_training_shows_neither_the_patterns_nor_the_places_of_testing():
    assert set(PATTERNS["train"]) & set(PATTERNS["test"]) == {"photograph"}
    for name in PHOTOGRAPHS:
        held_out, others = (np.asarray(photograph_part(name, split)) for split in ("test", "train"))
        assert held_out.shape[1] == round(HELD_OUT * 640)
        assert held_out.shape[1] + others.shape[1] == 640
    for split in PATTERNS:
        every = [tracking_clip(split, number, 2, (48, 64), 2.0, 2) for number in range(16)]
        looks = [look for clip in every for look in (clip.target, *(other for other, _ in clip.others))]
        assert {look.pattern for look in looks} == set(PATTERNS[split])
        assert {(clip.target.shape, clip.target.pattern) for clip in every} == {
            (shape, pattern) for shape in SHAPES for pattern in PATTERNS[split]
        }
        for clip in every:
            assert clip.split == split == clip.target.split
            assert all(other.pattern != clip.target.pattern for other, _ in clip.others)
            assert clip.target.photograph != clip.photograph


def test_numbers_of_videos_and_seeds_give_other_videos():
    first = tracking_clip("train", 0, 2, (48, 64))
    for other in (tracking_clip("train", 4, 2, (48, 64)), tracking_clip("train", 0, 2, (48, 64), seed=1)):
        assert other.target != first.target
        assert other.poses != first.poses


def test_attributes_say_what_happens(clips):
    clip = replace(clips[0], light=np.ones(FRAMES), pillar=None, poses=(clips[0].poses[0],) * 3)

    def flags_of(*boxes, **changes):
        shots = [Shot(np.zeros((1, 1, 3), np.uint8), box, not any(box), False, 1.0) for box in boxes]
        return [i for i, flag in enumerate(attributes(replace(clip, **changes), shots)) if flag]

    still = (5, 5, 40, 40)
    turned = (replace(clip.poses[0], angle=clip.poses[0].angle + 0.36),)
    fast = (replace(clip.poses[0], x=clip.poses[0].x + 41),)
    assert flags_of(still, still, still) == []
    assert flags_of(still, still, still, light=np.array([1, 0.8, 1])) == [0]
    assert flags_of(still, still, still, poses=clip.poses[:2] + turned) == [5]
    assert flags_of(still, still, (5, 5, 62, 62)) == [8]
    assert flags_of(still, (0, 0, 0, 0), still) == [9]
    assert flags_of(still, still, still, poses=clip.poses[:2] + fast) == [10]
    assert flags_of((5, 5, 31, 31), (5, 5, 31, 31), (5, 5, 31, 31)) == [12]
    assert flags_of(still, still, (5, 5, 60, 27)) == [13]


def test_events_show_in_the_attribute_files(root):
    att = {path.stem: np.nonzero(flags(path))[0].tolist() for path in (root / "att").iterdir()}
    assert {name for name, found in att.items() if 9 in found} == {"hexagon-1", "hexagon-3"}
    assert {name for name, found in att.items() if 11 in found} == {"ellipse-2", "ellipse-4"}
    assert {name for name, found in att.items() if 1 in found} == {"hexagon-1", "hexagon-3"}  # partly hidden


def test_a_folder_with_something_else_is_left_alone(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("do not touch")
    with pytest.raises(
        ValueError,
        match=r"root='.*mine': cannot write a set there, it has something else in it; name a folder that is empty",
    ):
        write_tracking(tmp_path / "mine", **TINY)
    assert content(tmp_path) == {"mine/thesis.txt": b"do not touch"}  # and no draft beside it


def test_the_very_same_set_is_left_as_it_is(root, monkeypatch):
    monkeypatch.setattr(tracking, "_write", None)
    assert write_tracking(root, **SMALL) == root
    with pytest.raises(ValueError, match="cannot write a set there"):
        write_tracking(root, **SMALL | {"train": 1})  # another set is something else


def test_of_two_writers_at_the_same_time_one_wins(tmp_path, monkeypatch):
    in_step(monkeypatch, tracking)
    few = TINY | {"train": 1, "frames": 1}
    twice_at_once(write_tracking, tmp_path / "lasot", **few)
    assert len([name for name in content(tmp_path) if name.endswith(".jpg")]) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["lasot"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"train": 0}, "train must be at least 1, got 0"),
        ({"test": 0}, "test must be at least 1, got 0"),
        ({"frames": 0}, "frames must be at least 1, got 0"),
        ({"others": -1}, "others must be at least 0, got -1"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"size": (47, 64)}, "height of size must be at least 48, got 47"),
        ({"size": (48, 40)}, "width of size must be at least 48, got 40"),
        ({"speed": 0}, "speed must be above 0 and below a quarter of the shorter side, 12.0, got 0"),
        ({"speed": 12}, "speed must be above 0 and below a quarter of the shorter side, 12.0, got 12"),
    ],
)
def test_what_cannot_be_written_is_said_before_anything_is(tmp_path, wrong, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        write_tracking(tmp_path / "lasot", **TINY | wrong)
    assert not list(tmp_path.iterdir())
