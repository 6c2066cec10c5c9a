"""Matching 34,125 anchors with 500 faces in each of 4 pictures, beside a loop over pictures and faces.

python -m pytest tests/benchmarks/test_asfd_matching_benchmarks.py -m benchmark -s
"""

import subprocess
import sys

import pytest
import torch

from lit_methods.asfd.functional import make_anchors, match_batch
from tests.benchmarks.side_by_side import side_by_side

pytestmark = pytest.mark.benchmark
IMAGES, FACES = 4, 500


def crowds(images=IMAGES, count=FACES, device="cpu"):
    """Faces of 6 to 150 pixels, logarithmically, in pictures of 640 x 640, and the anchors."""
    drawn = torch.rand(images, count, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    half = 6 * 25 ** drawn[..., :1] * torch.tensor([0.4, 0.55], dtype=torch.float64)
    centre = 640 * drawn[..., 1:]
    boxes = torch.cat([centre - half, centre + half], -1).float().to(device)
    return list(boxes), make_anchors(640, 640, device=device)


def plain_match(boxes, anchors, threshold=0.4):
    """As DSFD's code goes about it: a full matrix for each picture, and a loop over its faces."""
    labels, owners = [], []
    for faces in boxes:
        shape = len(faces), len(anchors), 2
        high = torch.min(faces[:, None, 2:].expand(shape), anchors[None, :, 2:].expand(shape))
        low = torch.max(faces[:, None, :2].expand(shape), anchors[None, :, :2].expand(shape))
        inter = torch.clamp(high - low, min=0).prod(2)
        areas = [(corner[:, 2] - corner[:, 0]) * (corner[:, 3] - corner[:, 1]) for corner in (faces, anchors)]
        iou = inter / (areas[0][:, None].expand_as(inter) + areas[1][None].expand_as(inter) - inter)
        best_anchor = iou.max(1)[1]
        best_overlap, owner = iou.max(0)
        best_overlap.index_fill_(0, best_anchor, 2)
        for face in range(len(best_anchor)):
            owner[best_anchor[face]] = face
        labels.append((best_overlap >= threshold).long())
        owners.append(torch.where(best_overlap >= threshold, owner, -1))
    return torch.stack(labels), torch.stack(owners)


def same(reference, ours):
    """But for anchors that two boxes overlap equally, where rounding decides."""
    different = (reference[1] != ours[1]).sum()
    print(f"  {int(ours[0].sum())} positives, {int(different)} anchors of {ours[1].numel()} differ")
    assert different <= ours[1].numel() // 10_000


@pytest.mark.parametrize("count", [20, FACES])
def test_matching_beside_a_loop(count):
    torch.set_num_threads(1)
    data = crowds(count=count)
    title = f"match_batch, {IMAGES} pictures x {count} faces x {len(data[1])} anchors, one core"
    same(*side_by_side(title, lambda: plain_match(*data), lambda: match_batch(*data), repeats=3))


PEAK = """
import sys, time, torch
torch.set_num_threads(1)
from lit_methods.asfd.functional import match_batch
from tests.benchmarks.test_asfd_matching_benchmarks import crowds, plain_match
def peak():
    # of this process alone: ru_maxrss begins with that of the one that started it
    return int(next(line for line in open("/proc/self/status") if "VmHWM" in line).split()[1]) / 1024
match = {"ours": match_batch, "reference": plain_match}[sys.argv[1]]
match(*crowds(1, 1))
data = crowds()
before, start = peak(), time.process_time()
match(*data)
print(f"{time.process_time() - start:.2f} s of one core, peak {peak():.0f} MiB, of them for this {peak() - before:.0f}")
"""


def test_peak_memory_of_matching():
    """The largest resident size of a process of its own, less what it was before the call."""
    peaks = {}
    for kind in ("reference", "ours"):
        done = subprocess.run([sys.executable, "-c", PEAK, kind], capture_output=True, text=True, check=True)
        print(f"\n{kind}, {IMAGES} pictures x {FACES} faces: {done.stdout.strip()}", end="")
        peaks[kind] = float(done.stdout.split()[-1])
    assert peaks["ours"] < peaks["reference"] / 10


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_matching_on_a_gpu():
    data = crowds(16, device="cuda")
    peaks = []

    def run(match):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        found = match(*data)
        torch.cuda.synchronize()
        peaks.append((torch.cuda.max_memory_allocated() - before) / 2**20)
        return found

    title = f"match_batch, 16 pictures x {FACES} faces on {torch.cuda.get_device_name()}"
    same(*side_by_side(title, lambda: run(plain_match), lambda: run(match_batch)))
    print(f"  peak {peaks[-2]:.0f} MiB for the reference, {peaks[-1]:.0f} for ours")
