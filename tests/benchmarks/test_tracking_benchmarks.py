"""One-pass evaluation of all of LaSOT's test videos, and VOT's overlaps, beside plain loops over frames.

python -m pytest tests/benchmarks/test_tracking_benchmarks.py -m benchmark -s
"""

import time

import numpy as np
import pytest
import torch

from lit_methods.metrics import OPENormPrecision, OPEPrecision, OPESuccess, VOTReset
from lit_methods.metrics.tracking import ope_curves, vot_overlap
from tests.benchmarks.side_by_side import side_by_side
from tests.tracking_reference import ope_loop, overlap_loop

pytestmark = pytest.mark.benchmark
VIDEOS, FRAMES = 280, 2500


def video(frames=FRAMES, seed=0):
    """Boxes that drift off the target, which is absent now and then."""
    draw = torch.Generator().manual_seed(seed)
    target = torch.rand(frames, 4, generator=draw, dtype=torch.float64) * 300 + 20
    preds = target + 20 * torch.randn(frames, 4, generator=draw, dtype=torch.float64)
    return preds, target, torch.rand(frames, generator=draw) < 0.9


def regions(frames, seed=0):
    """Rotated boxes of 30 to 150 pixels, and the same a little off."""
    draw = np.random.default_rng(seed)
    centre, size, turn = (
        draw.uniform(100, 400, (frames, 1, 2)),
        draw.uniform(15, 75, (frames, 1, 2)),
        draw.uniform(0, 6, frames),
    )
    corners = size * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
    rotate = np.stack([np.cos(turn), -np.sin(turn), np.sin(turn), np.cos(turn)], 1).reshape(-1, 2, 2)
    a = (centre + corners @ rotate).reshape(frames, 8)
    b = a + 8 * np.tile(draw.standard_normal((frames, 2)), 4)
    return a, b


def test_curves_of_a_video():
    preds, target, present = video()
    arrays = preds.numpy(), target.numpy(), present.numpy()
    reference, ours = side_by_side(
        f"three OPE curves of {FRAMES:,} frames, loop over frames",
        lambda: ope_loop(*arrays),
        lambda: ope_curves(preds, target, present),
        repeats=3,
    )
    for theirs, mine in zip(reference, ours, strict=True):
        np.testing.assert_array_equal(mine.numpy(), theirs)


def test_all_videos():
    videos = [video(seed=seed) for seed in range(VIDEOS)]
    for title, metrics in (
        ("three metrics", (OPESuccess(), OPEPrecision(), OPENormPrecision())),
        ("success alone", (OPESuccess(),)),
    ):
        start = time.perf_counter()
        for boxes in videos:
            for metric in metrics:
                metric.update(*boxes)
        values = [float(metric.compute()) for metric in metrics]
        print(f"\n{title}, {VIDEOS} videos of {FRAMES:,} frames: {time.perf_counter() - start:.2f} s")
        assert all(0 < value < 1 for value in values)


def test_overlaps_of_regions():
    a, b = regions(200)
    given = torch.from_numpy(a), torch.from_numpy(b)
    reference, ours = side_by_side(
        "VOT overlap of 200 regions, loop over frames and rows",
        lambda: [overlap_loop(*pair, (500, 500)) for pair in zip(a, b, strict=True)],
        lambda: vot_overlap(*given, (500, 500)),
        repeats=3,
    )
    np.testing.assert_array_equal(ours, reference)


def test_sixty_sequences_with_resets():
    a, _ = regions(350)
    polygons = torch.from_numpy(a)
    corners = polygons.view(-1, 4, 2)
    boxes = torch.cat([corners.amin(1), corners.amax(1) - corners.amin(1)], 1)
    state = torch.tensor(([1] + [9] * 168 + [2] + [0] * 4 + [1] + [9] * 175)[:350])
    metric = VOTReset()
    start = time.perf_counter()
    for _ in range(60):
        metric.update(boxes, state, polygons, (500, 500))
    values = metric.compute()
    print(f"\nVOTReset, 60 sequences of 350 frames: {time.perf_counter() - start:.2f} s")
    assert values["lost"] == 60
