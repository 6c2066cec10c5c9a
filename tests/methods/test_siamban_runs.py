"""Whole sequences through a tracker: several at once, frames that cannot be read, and VOT's resets."""

import threading
import time
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from lit_methods.functional.pictures import BadImageError
from lit_methods.functional.vot import vot_overlaps
from lit_methods.siamban import frame_queue
from lit_methods.siamban.frame_queue import FrameQueue
from lit_methods.siamban.runs import start_box, track_sequences, track_with_resets
from lit_methods.siamban.tracker import SiamBANTracker

BOXES = torch.tensor([[30.0, 20, 20, 16], [40, 30, 12, 30], [25, 10, 18, 18]], dtype=torch.float64)


class Reader:
    """A network without parameters whose answer depends on what it sees, and on the template."""

    template_size, search_size, stride, size = 127, 191, 8, 17

    def template(self, z):
        return [z.mean((2, 3))[:, :, None, None]]

    def track(self, template, x):
        seen = torch.nn.functional.adaptive_avg_pool2d(x, 17) - template[0]
        score = seen.sum(1, keepdim=True) / 20
        sides = 20 + seen.abs().mean(1, keepdim=True) * torch.tensor([0.1, 0.2, 0.15, 0.1])[:, None, None]
        return torch.cat([-score, score], 1), sides


@pytest.fixture
def tracker():
    return SiamBANTracker(Reader())


def film(count, seed=0, width=96, height=72):
    draw = torch.Generator().manual_seed(seed)
    return list(torch.randint(256, (count, 3, height, width), generator=draw).to(torch.uint8))


def written(folder, frames):
    """Their paths."""
    folder.mkdir()
    for index, frame in enumerate(frames):
        Image.fromarray(frame.flip(0).permute(1, 2, 0).numpy()).save(folder / f"{index:04}.png")
    return sorted(map(str, folder.iterdir()))


def by_hand(tracker, frames, box):
    """Boxes and scores of one sequence."""
    first = start_box(box)
    tracker.init(frames[0], first)
    rows = [tracker.track(frame) for frame in frames[1:]]
    return torch.stack([first, *(row[0] for row in rows)]), torch.tensor([1.0, *(float(row[1]) for row in rows)])


def test_sequences_of_any_length_and_size_are_tracked_as_each_alone(tracker, tmp_path):
    films = [film(5, 0), film(1, 1, 120, 90), film(8, 2)]
    paths = [written(tmp_path / "a", films[0]), films[1], written(tmp_path / "c", films[2])]
    tracks = track_sequences(tracker, paths, BOXES)
    for track, frames, box in zip(tracks, films, BOXES, strict=True):
        boxes, scores = by_hand(SiamBANTracker(Reader()), frames, box)
        assert_close(track.boxes_xywh, boxes, rtol=0, atol=1e-6)
        assert_close(track.scores, scores.double(), rtol=0, atol=1e-6)
        assert track.image_wh == (frames[0].shape[2], frames[0].shape[1])
        assert track.state is None
    assert tracks[0].boxes_xywh[1:].unique(dim=0).shape == (4, 4)
    assert tracks[1].boxes_xywh.tolist() == [[40.5, 30.5, 12, 30]]  # one frame alone: what evaluations record of it


def test_how_far_frames_are_read_ahead_changes_nothing(tracker):
    films = [film(4, 0), film(6, 1)]
    results = [track_sequences(tracker, films, BOXES[:2], ahead=ahead) for ahead in (1, 2, 9)]
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            assert torch.equal(one.boxes_xywh, two.boxes_xywh)


def test_few_frames_exist_at_a_time(tracker, tmp_path, monkeypatch):
    paths = [written(tmp_path / name, film(12, seed)) for seed, name in enumerate("ab")]
    read, used, most = [], [], []

    def counting(path, original=frame_queue.read_frame):
        read.append(path)
        return original(path)

    class Counting(Reader):
        def track(self, template, x):
            time.sleep(0.02)  # so that the threads could run ahead
            used.append(len(x))
            most.append(len(read) - sum(used))
            return super().track(template, x)

    monkeypatch.setattr(frame_queue, "read_frame", counting)
    track_sequences(SiamBANTracker(Counting()), paths, BOXES[:2], ahead=3)
    assert sorted(read) == sorted(paths[0] + paths[1])
    assert 2 < max(most) <= 2 * (3 + 1)


def test_a_frame_that_cannot_be_read_ends_the_run_and_its_threads(tracker, tmp_path):
    paths = written(tmp_path / "video", film(30))
    (tmp_path / "video" / "0002.png").write_bytes(b"no picture")
    before = threading.active_count()
    with pytest.raises(BadImageError, match=r"video.0002\.png"):
        track_sequences(tracker, [paths], BOXES[:1])
    assert threading.active_count() == before


def test_a_frame_that_cannot_be_read_keeps_the_box_before_it_if_asked_to(tracker, tmp_path):
    frames, other = film(7, 0), film(5, 1)
    paths = written(tmp_path / "video", frames)
    for index in (1, 4, 5):
        (tmp_path / "video" / f"000{index}.png").write_bytes(b"no picture")
    with pytest.warns(UserWarning, match=r"3 of 7 frames .*0001\.png") as caught:
        held, whole = track_sequences(tracker, [paths, other], BOXES[:2], on_bad_frame="hold")
    assert len(caught) == 1
    kept = [frame for index, frame in enumerate(frames) if index not in (1, 4, 5)]
    boxes, scores = by_hand(SiamBANTracker(Reader()), kept, BOXES[0])
    assert_close(held.boxes_xywh, boxes[[0, 0, 1, 2, 2, 2, 3]], rtol=0, atol=1e-6)
    expected = scores[[0, 0, 1, 2, 2, 2, 3]].double()
    expected[[1, 4, 5]] = 0
    assert_close(held.scores, expected, rtol=0, atol=1e-6)
    assert_close(whole.boxes_xywh, by_hand(SiamBANTracker(Reader()), other, BOXES[1])[0], rtol=0, atol=1e-6)


def test_a_first_frame_that_cannot_be_read_always_ends_the_run(tracker, tmp_path):
    paths = written(tmp_path / "video", film(3))
    (tmp_path / "video" / "0000.png").unlink()
    for policy in ("raise", "hold"):
        with pytest.raises(BadImageError, match=r"0000\.png"):
            track_sequences(tracker, [paths], BOXES[:1], on_bad_frame=policy)


def test_frames_of_changing_size_are_named(tracker, tmp_path):
    paths = written(tmp_path / "video", [*film(2), *film(1, width=90)])
    for policy in ("raise", "hold"):
        with pytest.raises(ValueError, match=r"0002\.png' is 90 x 72 pixels, the first frame .* 96 x 72"):
            track_sequences(tracker, [paths], BOXES[:1], on_bad_frame=policy)
    with pytest.raises(ValueError, match=r"0002\.png' is 90 x 72"):
        track_with_resets(tracker, paths, corners(BOXES[:1].expand(3, 4)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"frames": [film(2), []], "boxes": BOXES[:2]}, "sequence 1 has no frames"),
        ({"frames": [film(2)], "boxes": BOXES[:2]}, "four numbers for each of 1 frames"),
        ({"frames": [film(2)], "boxes": BOXES[:1] * torch.nan}, "must be finite"),
        ({"frames": [film(2)], "boxes": BOXES[:1], "on_bad_frame": "skip"}, "on_bad_frame='skip'"),
        ({"frames": [film(2)], "boxes": BOXES[:1], "ahead": 0}, "ahead=0"),
    ],
)
def test_what_cannot_be_tracked_is_refused(tracker, arguments, message):
    with pytest.raises(ValueError, match=message):
        track_sequences(tracker, **arguments)


def test_a_queue_goes_where_it_is_sent(tmp_path):
    frames = film(9)
    with FrameQueue([frames], ahead=3) as queue:
        assert torch.equal(queue.next(0), frames[0])
        queue.seek(0, 6)
        for index in (6, 7, 8):
            assert torch.equal(queue.next(0), frames[index])
        queue.seek(0, 20)  # beyond the end: nobody asks


# -- resets -----------------------------------------------------------------------------------------------------------


def corners(boxes):
    x, y, w, h = boxes.unbind(1)
    return torch.stack([x, y, x + w, y, x + w, y + h, x, y + h], 1)


class Straying:
    """A tracker that strays from the box it was started with, by more pixels the longer it runs."""

    on_cuda = False

    def __init__(self, steps):
        self.steps, self.started = steps, []

    def init(self, image, box):
        self.started.append((int(image[0, 0, 0]), box))
        self.box, self.age = box, 0

    def track(self, image):
        self.age += 1
        box = self.box.clone()
        box[0] += self.steps[len(self.started) - 1] * self.age
        return box, torch.tensor(0.5)


def numbered(count):
    return [torch.full((3, 100, 150), index, dtype=torch.uint8) for index in range(count)]


def official(count, steps, box, polygon):
    """The loop of the official toolkit for a target that stands still, with an overlap in exact boxes."""
    rows, starts, begin = [], [], 0
    for index in range(count):
        if index == begin:
            starts.append(index)
            rows.append(1)
        elif index > begin:
            x = box[0] + steps[len(starts) - 1] * (index - begin)
            if x > polygon[2]:  # beyond the target's right edge
                rows.append(2)
                begin = index + 5
            else:
                rows.append(9)
        else:
            rows.append(0)
    return rows, starts


@pytest.mark.parametrize("count", [1, 2, 12, 13, 14, 40])
def test_runs_with_resets_are_those_of_the_official_loop(count):
    polygon = torch.tensor([50.0, 40, 69, 40, 69, 59, 50, 59], dtype=torch.float64)
    steps = [3.1, 7.4, 40.0, 0.2, 5.0, 5.0, 5.0]
    stray = Straying(steps)
    track = track_with_resets(stray, numbered(count), polygon.expand(count, 8), ahead=2)
    box = start_box(polygon)
    assert_close(box, torch.tensor([50, 40, 20, 20], dtype=torch.float64), rtol=0, atol=1e-12)
    codes, starts = official(count, steps, box.tolist(), polygon.tolist())
    assert track.state.tolist() == codes
    assert [frame for frame, _ in stray.started] == starts
    assert track.image_wh == (150, 100)
    shown = (track.state == 9) | (track.state == 1)
    assert (track.boxes_xywh[shown][:, 2:] == 20).all()
    assert (track.boxes_xywh[track.state == 0] == 0).all()
    overlaps = vot_overlaps(track.boxes_xywh, track.state, polygon.expand(count, 8), (150, 100))
    assert (overlaps[track.state == 9] > 0).all()


def test_a_frame_whose_target_nobody_knows_is_no_failure():
    polygons = torch.tensor([[50.0, 40, 69, 40, 69, 59, 50, 59]]).repeat(4, 1)
    polygons[2] = torch.nan
    track = track_with_resets(Straying([0.0]), numbered(4), polygons)
    assert track.state.tolist() == [1, 9, 9, 9]


def test_a_place_that_nothing_can_be_started_from_is_named(tracker):
    polygons = corners(BOXES[:1].expand(2, 4).clone())
    with pytest.raises(ValueError, match="polygons has 2 rows for 3 frames"):
        track_with_resets(tracker, film(3), polygons)
    with pytest.raises(ValueError, match=r"cannot start in frame 0: .* lies outside"):
        track_with_resets(tracker, film(2), polygons + 500)


def test_a_tracker_on_the_target_is_never_started_again(tracker):
    count = 5
    boxes = torch.tensor([[10.0, 10, 70, 50]], dtype=torch.float64).expand(count, 4)
    track = track_with_resets(tracker, film(count), corners(boxes))
    assert track.state.tolist() == [1, 9, 9, 9, 9]
    expected, scores = by_hand(SiamBANTracker(Reader()), film(count), corners(boxes)[0])
    assert_close(track.boxes_xywh, expected, rtol=0, atol=1e-6)
    assert_close(track.scores, scores.double(), rtol=0, atol=1e-6)


def test_start_boxes_are_those_of_the_official_evaluation(vectors):
    known = {name: torch.from_numpy(v) for name, v in np.load(vectors / "siamban" / "region_to_box.npz").items()}
    for regions, boxes in (("polys", "poly_out"), ("rects", "rect_out")):
        x, y, w, h = start_box(known[regions]).T
        ours = torch.stack([x + (w - 1) / 2, y + (h - 1) / 2, w, h], 1)  # the middle that a tracker makes of it
        assert_close(ours, known[boxes], rtol=1e-9, atol=1e-9)


def test_nothing_is_warned_of_when_all_frames_can_be_read(tracker):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        track_sequences(tracker, [film(3)], BOXES[:1], on_bad_frame="hold")
