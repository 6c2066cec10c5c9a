"""SiamBANTracker: the official steps, many sequences at once, what it keeps and what it refuses."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from lit_methods.functional.tracking_crops import context_size, crop_patches
from lit_methods.siamban.model import SiamBANNet
from lit_methods.siamban.tracker import TRACKER_CONSTANTS, SiamBANTracker

WAITS = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal.", "unique", "masked_select")  # of the host


class Scripted:
    """A network of the paper's sizes, without parameters or attributes, that says what it was told to."""

    def __init__(self, cls, loc):
        self.answers = iter(zip(torch.as_tensor(cls), torch.as_tensor(loc), strict=True))
        self.templates, self.searches = [], []

    def template(self, z):
        self.templates.append(z)
        return [z.new_zeros(len(z), 1)]

    def track(self, template, x):
        self.searches.append(x)
        cls, loc = next(self.answers)
        return cls.expand(len(x), -1, -1, -1), loc.expand(len(x), -1, -1, -1)


@pytest.fixture(scope="module")
def net():
    """Small, with batch statistics of what it sees, and boxes of some 40 pixels; in eval mode."""
    torch.manual_seed(0)
    net = SiamBANNet(18, width=4, channels=8, levels=[2, 3], search_size=191).train()
    for level in (2, 3):
        nn.init.constant_(net.head.get_submodule(f"box{level}").loc.head[3].bias, 3.0)
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = 1.0
    with torch.no_grad():
        net(torch.rand(8, 3, 127, 127) * 255, torch.rand(8, 3, 191, 191) * 255)
    return net.eval()


def frames(count=3, width=96, height=72, seed=0):
    """Noise with a spot that wanders."""
    draw = torch.Generator().manual_seed(seed)
    noise = torch.randint(120, (count, 3, height, width), generator=draw).to(torch.uint8)
    for index, frame in enumerate(noise):
        frame[:, 20 + index : 36 + index, 30 + 2 * index : 50 + 2 * index] += 100
    return list(noise)


def flat(value=30.0, count=1, size=25):
    """The same answer at each point."""
    return torch.zeros(count, 1, 2, size, size), torch.full((count, 1, 4, size, size), value)


BOX = [30.0, 20, 20, 16]


def test_two_runs_take_the_official_steps(vectors, monkeypatch):
    sides = []

    def crop_and_tell(images, centers, side, *rest):
        sides.append(side.item())
        return crop_patches(images, centers, side, *rest)

    monkeypatch.setattr("lit_methods.siamban.tracker.crop_patches", crop_and_tell)
    known = dict(np.load(vectors / "siamban" / "track_step.npz"))
    image = torch.from_numpy(known["image"]).permute(2, 0, 1)
    for run in (0, 1):
        net = Scripted(known[f"cls{run}"][:, None], known[f"loc{run}"][:, None])
        tracker = SiamBANTracker(net, *known[f"hp{run}"].tolist())
        tracker.init(image, known[f"init_box{run}"])
        assert_close(tracker.state.centre[0], torch.from_numpy(known[f"init_center{run}"]))
        assert_close(tracker.state.size[0], torch.from_numpy(known[f"init_size{run}"]))
        (template,) = net.templates
        assert template.shape == (1, 3, 127, 127)
        assert_close(template[0].mean((1, 2)).double(), torch.from_numpy(known[f"z_mean{run}"]), rtol=0, atol=0.5)
        assert_close(template[0].std((1, 2)).double(), torch.from_numpy(known[f"z_std{run}"]), rtol=0, atol=0.5)
        for row, (side, mean) in zip(torch.from_numpy(known[f"out{run}"]), known[f"crop{run}"], strict=True):
            box, score = tracker.track(image)
            assert net.searches[-1].shape == (1, 3, 255, 255)
            assert sides[-1] == side
            assert net.searches[-1].mean().item() == pytest.approx(mean, abs=0.5)
            state = tracker.state
            ours = torch.cat([score[None], state.centre[0], state.size[0], box])
            assert_close(ours, row[[1, 4, 5, 6, 7, 8, 9, 10, 11]], rtol=1e-4, atol=1e-4)


def test_the_best_point_is_the_official_one(vectors):
    known = {name: torch.from_numpy(v) for name, v in np.load(vectors / "siamban" / "track_step.npz").items()}
    tracker = SiamBANTracker(Scripted([], []), *known["hp0"].tolist())
    before = known["init_size0"][None]
    _, wh, score, rate = tracker.choose(known["cls0"][:1], known["loc0"][:1], before * 127 / context_size(before))
    best = int(known["pscore_first0"].argmax())
    assert best == int(known["out0"][0, 0])
    assert_close(wh[0], known["pred_box_first0"][2:, best], rtol=1e-4, atol=1e-5)
    assert_close(score[0], known["score_first0"][best], rtol=1e-4, atol=1e-5)
    assert_close(rate[0], known["penalty_first0"][best] * known["score_first0"][best], rtol=1e-4, atol=1e-5)


def test_the_window_is_the_official_one_and_alone_keeps_to_the_middle(vectors):
    known = np.load(vectors / "siamban" / "points.npz")
    tracker = SiamBANTracker(Scripted(torch.randn(1, 1, 2, 25, 25), torch.rand(1, 1, 4, 25, 25) * 40), 0.1, 1.0, 0.0)
    assert_close(tracker._window, torch.from_numpy(known["hanning_window"]).double(), rtol=0, atol=1e-12)
    assert_close(tracker._points.flatten(1).T.numpy(), known["tracker_points"].astype(np.float32))
    tracker.init(frames()[0], BOX)
    before = tracker.state
    tracker.track(frames()[1])
    assert (tracker.state.centre - before.centre).abs().max() < 40 * 0.4  # of the point 0, 0, whose box is lopsided
    assert torch.equal(tracker.state.size, before.size)  # lr = 0


def test_a_batch_has_the_boxes_of_each_sequence_alone(net):
    films = [frames(4, 96, 72, 0), frames(4, 96, 72, 1), frames(4, 140, 80, 2)]
    boxes = torch.tensor([BOX, [40, 10, 12, 30], [100, 50, 35, 25]])
    together = SiamBANTracker(net)
    together.init([film[0] for film in films], boxes)
    alone = [SiamBANTracker(net) for _ in films]
    for tracker, film, box in zip(alone, films, boxes, strict=True):
        tracker.init(film[0], box)
    moved = torch.zeros(3)
    for images in list(zip(*films, strict=True))[1:]:
        found, scores = together.track(list(images))
        assert found.shape == (3, 4)
        assert scores.shape == (3,)
        for row, tracker in enumerate(alone):
            box, score = tracker.track(images[row])
            assert_close(found[row], box, rtol=0, atol=1e-2)
            assert_close(scores[row], score, rtol=0, atol=1e-4)
        moved += (found[:, :2] - boxes[:, :2]).abs().sum(1)
    assert (moved > 1).all()


def test_frames_in_one_tensor_are_a_batch_as_well(net):
    images = torch.stack(frames(2))
    one, other = SiamBANTracker(net), SiamBANTracker(net)
    one.init(images, [BOX, BOX])
    other.init(list(images), [BOX, BOX])
    assert torch.equal(one.track(images)[0], other.track(list(images))[0])


def test_tensors_floats_and_arrays_are_the_same_frame(net):
    results = []
    for turn in (lambda x: x, lambda x: x.float(), lambda x: x.permute(1, 2, 0).contiguous().numpy()):
        tracker = SiamBANTracker(net)
        first, second = map(turn, frames(2))
        tracker.init(first, tuple(BOX))
        box, score = tracker.track(second)
        assert box.shape == (4,)
        assert score.shape == ()
        assert box.dtype == torch.float64
        results.append(torch.cat([box, score[None]]))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_an_array_is_not_turned_around_by_negative_strides(net):
    turned = frames(2)[0].permute(1, 2, 0).numpy()[:, ::-1]
    tracker = SiamBANTracker(net)
    tracker.init(turned, BOX)
    assert_close(tracker.state.fill[0], torch.from_numpy(turned.mean((0, 1))), rtol=1e-12, atol=0)


def test_the_fill_is_that_of_the_first_frame_and_the_template_is_made_once(net):
    counted = Scripted(*flat(count=2))
    tracker = SiamBANTracker(counted)
    tracker.init(torch.full((3, 60, 80), 17.9), [0, 0, 40, 40])
    for _ in range(2):
        tracker.track(torch.full((3, 60, 80), 99.0))
    assert len(counted.templates) == 1
    assert counted.templates[0][0, :, 0, 0].tolist() == [17, 17, 17]
    assert counted.searches[1][0, :, 0, 0].tolist() == [17, 17, 17]
    assert (counted.searches[1] == 99).any()


def test_a_state_that_was_kept_goes_on_as_if_nothing_had_happened(net, tmp_path):
    film = frames(4)
    tracker = SiamBANTracker(net)
    tracker.init(film[0], BOX)
    tracker.track(film[1])
    kept = tracker.state
    torch.save(vars(kept), tmp_path / "state.pt")
    last = [tracker.track(frame)[0] for frame in film[2:]][-1]
    assert kept is not tracker.state
    assert not torch.equal(kept.centre, tracker.state.centre)
    tracker.state = kept
    assert torch.equal([tracker.track(frame)[0] for frame in film[2:]][-1], last)
    other = SiamBANTracker(net)
    other.state = type(kept)(**torch.load(tmp_path / "state.pt"))
    assert torch.equal([other.track(frame)[0] for frame in film[2:]][-1], last)


def test_chosen_sequences_go_on_alone(net):
    films = [frames(3, 96, 72, 0), frames(3, 140, 80, 1), frames(3, 96, 72, 2)]
    boxes = [BOX, [40, 10, 12, 30], [10, 30, 35, 25]]
    tracker = SiamBANTracker(net)
    tracker.init([film[0] for film in films], boxes)
    whole, rest = tracker.state, tracker.state.select([2, 1])
    assert rest.shapes == [(72, 96), (80, 140)]
    expected = tracker.track([film[1] for film in films])[0]
    tracker.state = rest
    assert_close(tracker.track([films[2][1], films[1][1]])[0], expected[[2, 1]], rtol=0, atol=1e-2)
    assert len(whole.centre) == 3


def test_places_and_sizes_stay_within_their_bounds():
    for value, least in ((500.0, None), (0.01, 10.0)):
        cls, loc = flat(value, count=12)
        cls[:, :, 1] = 9.0
        tracker = SiamBANTracker(Scripted(cls, loc), penalty_k=0, window_influence=0, lr=1)
        tracker.init(torch.zeros(3, 60, 80), [60, 40, 15, 15])
        for _ in range(12):
            box, _ = tracker.track(torch.zeros(3, 60, 80))
        centre = tracker.state.centre[0]
        assert (centre >= 0).all()
        assert (centre <= torch.tensor([80, 60])).all()
        assert box[2:].tolist() == ([80, 60] if least is None else [least, least])
        assert centre.tolist() == [0, 0]  # all points alike: the first one, at the upper left, is taken


def test_no_frame_makes_the_host_wait(net):
    """On a GPU each of these would; on a CPU they can at least be counted."""

    class Waits(TorchDispatchMode):
        names: list[str] = []

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if any(word in str(func) for word in WAITS):
                self.names.append(str(func))
            return func(*args, **(kwargs or {}))

    first, second = ([frames(2, seed=seed)[index] for seed in (0, 1)] for index in (0, 1))
    tracker = SiamBANTracker(net)
    tracker.init(first, [BOX, BOX])
    with Waits():
        tracker.track(second)
        assert not Waits.names
        second[0].float().sum().item()
    assert Waits.names == ["aten._local_scalar_dense.default"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_no_frame_makes_the_host_wait_for_a_gpu(net):
    images = [[frame.cuda() for frame in frames(4, seed=seed)] for seed in (0, 1)]
    tracker = SiamBANTracker(SiamBANNet(18, width=4, channels=8, levels=[2]).cuda().eval())
    tracker.init([film[0] for film in images], [BOX, BOX])
    tracker.track([film[1] for film in images])
    torch.cuda.set_sync_debug_mode("error")
    try:
        for index in (2, 3):
            tracker.track([film[index] for film in images])
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_network_in_training_is_asked_in_eval_mode_and_left_as_it_was(net):
    first, second = frames(2)
    tracker = SiamBANTracker(net)
    tracker.init(first, BOX)
    expected, _ = tracker.track(second)
    statistics = {name: value.clone() for name, value in net.named_buffers()}
    try:
        net.train()
        net.neck.eval()
        tracker.init(first, BOX)
        box, score = tracker.track(second)
        assert net.training
        assert net.backbone.training
        assert not net.neck.training
    finally:
        net.eval()
    assert torch.equal(box, expected)
    assert not score.requires_grad
    assert all(torch.equal(value, statistics[name]) for name, value in net.named_buffers())


def test_half_precision_of_the_network_is_not_that_of_the_boxes():
    cls, loc = flat()
    tracker = SiamBANTracker(Scripted(cls.bfloat16(), loc.bfloat16()), window_influence=1)
    tracker.init(torch.zeros(3, 60, 80), BOX)
    box, score = tracker.track(torch.zeros(3, 60, 80))
    assert box.dtype == score.dtype == torch.float64
    assert_close(box[:2] + box[2:] / 2, torch.tensor([39.5, 27.5], dtype=torch.float64), rtol=0, atol=1e-9)


def test_numbers_that_overflow_leave_the_box_and_say_so():
    cls, loc = flat(torch.nan)
    tracker = SiamBANTracker(Scripted(cls, loc))
    tracker.init(torch.zeros(3, 60, 80), BOX)
    before = tracker.state
    _, score = tracker.track(torch.zeros(3, 60, 80))
    assert score.isnan()
    assert torch.equal(tracker.state.centre, before.centre)
    assert torch.equal(tracker.state.size, before.size)


def test_a_target_of_less_than_a_pixel_is_shown_as_one():
    net = Scripted(*flat())
    tracker = SiamBANTracker(net)
    image = torch.arange(100.0).view(1, 10, 10).expand(3, 10, 10)
    tracker.init(image, [4, 5, 0.1, 0.1])
    assert net.templates[0].unique().tolist() == [43.0]  # of column 3 in row 4
    tracker.track(image)


def test_the_published_constants_are_there():
    assert TRACKER_CONSTANTS["vot2018"]["lr"] == 0.44418184746462425
    assert TRACKER_CONSTANTS["vot2019"]["penalty_k"] == 0.0012159181005195463
    tracker = SiamBANTracker(Scripted([], []))
    constants = (tracker.penalty_k, tracker.window_influence, tracker.lr)
    assert constants == (0.020530504470126613, 0.3850733326567302, 0.4730770315643308)


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ([90, 5, 20, 20], "lies outside of the frame of 80 x 60"),
        ([-30, 5, 20, 20], "lies outside"),
        ([5, 60, 20, 20], "lies outside"),
        ([5, 5, 0, 20], "has no area"),
        ([5, 5, 20, -2], "has no area"),
        ([5, float("nan"), 20, 20], "must be finite"),
        ([5, 5, float("inf"), 20], "must be finite"),
        ([5, 5, 20], "four numbers for each of 1 frames"),
        ([[5, 5, 20, 20]], "four numbers for each of 1 frames"),
    ],
)
def test_a_first_box_that_nothing_can_be_tracked_from_is_refused(box, message):
    with pytest.raises(ValueError, match=message):
        SiamBANTracker(Scripted([], [])).init(torch.zeros(3, 60, 80), box)


def test_of_several_boxes_the_bad_one_is_named():
    with pytest.raises(ValueError, match="the first box of sequence 1 x, y, w, h = 90, 5, 20, 20 lies outside"):
        SiamBANTracker(Scripted([], [])).init([torch.zeros(3, 60, 80)] * 2, [BOX, [90, 5, 20, 20]])
    with pytest.raises(ValueError, match="four numbers for each of 2 frames"):
        SiamBANTracker(Scripted([], [])).init([torch.zeros(3, 60, 80)] * 2, [BOX])


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.zeros(60, 80), "must be (3, H, W)"),
        (torch.zeros(60, 80, 3), "must be (3, H, W), BGR, got (60, 80, 3)"),
        (torch.zeros(3, 0, 80), "must be (3, H, W)"),
        (torch.zeros(3, 60, 80, dtype=torch.bool), "numbers from 0 to 255"),
        (np.zeros((60, 80, 3), np.float32), "must be (H, W, 3) uint8, got float32"),
        (np.zeros((3, 60, 80), np.uint8), "must be (H, W, 3) uint8"),
        ("frame.jpg", "got str"),
        ([], "no frames"),
    ],
)
def test_what_is_no_frame_is_refused(image, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        SiamBANTracker(Scripted([], [])).init(image, BOX)


def test_frames_that_do_not_belong_to_the_state_are_refused():
    tracker = SiamBANTracker(Scripted(*flat(count=3)))
    with pytest.raises(ValueError, match=r"track\(\) before init\(\)"):
        tracker.track(torch.zeros(3, 60, 80))
    tracker.init(torch.zeros(3, 60, 80), BOX)
    with pytest.raises(ValueError, match="is 90 x 60 pixels, the first one was 80 x 60"):
        tracker.track(torch.zeros(3, 60, 90))
    with pytest.raises(ValueError, match="2 frames for 1 sequences"):
        tracker.track([torch.zeros(3, 60, 80)] * 2)
    tracker.init([torch.zeros(3, 60, 80)] * 2, [BOX, BOX])
    with pytest.raises(ValueError, match="a frame of sequence 1 is 80 x 61 pixels"):
        tracker.track([torch.zeros(3, 60, 80), torch.zeros(3, 61, 80)])
    with pytest.raises(ValueError, match="1 frames for 2 sequences"):
        tracker.track(torch.zeros(3, 60, 80))


@pytest.mark.parametrize(
    "constants", [{"penalty_k": -0.1}, {"window_influence": 1.5}, {"lr": -1.0}, {"lr": float("nan")}]
)
def test_constants_out_of_range_are_refused(constants):
    (name,) = constants
    with pytest.raises(ValueError, match=f"{name}="):
        SiamBANTracker(Scripted([], []), **constants)


def test_a_state_can_be_moved_by_hand(net):
    first, second = frames(2)
    tracker = SiamBANTracker(net)
    tracker.init(first, BOX)
    tracker.state = replace(tracker.state, centre=tracker.state.centre + 3)
    there, _ = tracker.track(second)
    other = SiamBANTracker(net)
    other.init(first, BOX)
    assert not torch.equal(other.track(second)[0], there)
