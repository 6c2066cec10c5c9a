"""Ranking at the size of Market-1501 beside a loop over queries; what it costs with ten times as many images.

python -m pytest tests/benchmarks/test_ranking_benchmarks.py -m benchmark -s
"""

import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from lit_methods.functional.ranking import evaluate_ranking, rank_queries
from tests.benchmarks.side_by_side import side_by_side

pytestmark = pytest.mark.benchmark
QUERIES, GALLERY = 3368, 15913  # Market-1501 without junk


def market(queries=QUERIES, gallery=GALLERY, device="cpu"):
    """750 ids and 2,798 distractors of 6 cameras; matches a little nearer than others."""
    draw = torch.Generator().manual_seed(0)
    q_pid, g_pid = torch.randint(1, 751, (queries,), generator=draw), torch.randint(1, 751, (gallery,), generator=draw)
    g_pid[: gallery * 2798 // GALLERY] = 0
    q_cam, g_cam = (torch.randint(6, (n,), generator=draw) for n in (queries, gallery))
    dist = torch.rand(queries, gallery, generator=draw) + 0.5 - 0.3 * (q_pid[:, None] == g_pid)
    return [part.to(device) for part in (dist, q_pid, q_cam, g_pid, g_cam)]


def loop(dist, q_pid, q_cam, g_pid, g_cam, lists):
    """One query after the other in NumPy; with ``lists``, the precisions in plain Python, as is widely done."""
    aps, cmcs = [], []
    for row, pid, cam in zip(dist, q_pid, q_cam, strict=True):
        order = np.argsort(row, kind="stable")
        pids, cams = g_pid[order], g_cam[order]
        kept = (pids != -1) & ~((pids == pid) & (cams == cam))
        hits = (pids[kept] == pid).astype(np.int64)
        if not hits.any():
            continue
        found = hits.cumsum()
        precision = (
            np.asarray([x / (i + 1.0) for i, x in enumerate(found)]) if lists else found / np.arange(1, len(hits) + 1)
        )
        aps.append((precision * hits).sum() / hits.sum())
        cmcs.append(found[:50].clip(max=1))
    return np.mean(aps), np.mean(cmcs, axis=0)


@pytest.mark.parametrize("lists", [False, True], ids=["in NumPy", "in lists"])
def test_a_tenth_of_the_queries(lists):
    """The goal is 10 times."""
    dist, q_pid, q_cam, g_pid, g_cam = market()
    tenth = [part[::10].contiguous() for part in (dist, q_pid, q_cam)]
    arrays = [part.numpy() for part in (*tenth, g_pid, g_cam)]
    title = f"{len(tenth[0])} queries in {GALLERY} images, precisions {'in lists' if lists else 'in NumPy'}"
    (map_loop, cmc_loop), ours = side_by_side(
        title,
        lambda: loop(*arrays, lists=lists),
        lambda: evaluate_ranking(*tenth, g_pid, g_cam),
        repeats=3 if lists else 5,
    )
    np.testing.assert_allclose(ours.mAP, map_loop, rtol=1e-12)
    np.testing.assert_allclose(ours.cmc, cmc_loop, rtol=1e-12)


def test_all_queries_and_equal_distances():
    inputs = market()
    for name, dist in (("all apart", inputs[0]), ("of 100 values", (inputs[0] * 100).round())):
        start = time.perf_counter()
        evaluate_ranking(dist, *inputs[1:])
        print(f"\n{QUERIES} queries in {GALLERY} images, distances {name}: {time.perf_counter() - start:.2f} s")


@pytest.mark.parametrize("gallery", [GALLERY // 10, GALLERY, GALLERY * 10])
def test_time_with_ten_times_the_gallery(gallery):
    inputs = market(queries=256, gallery=gallery)
    evaluate_ranking(*inputs)
    start = time.perf_counter()
    for _ in range(3):
        evaluate_ranking(*inputs)
    print(f"\n256 queries in {gallery} images: {(time.perf_counter() - start) / 3 / 256 * 1e6:.0f} us per query")


MEMORY = """
import re, time, torch
from pathlib import Path
torch.set_num_threads(1)
from lit_methods.metrics import ReIDRanking
def peak():
    # of this process alone: ru_maxrss begins with that of the one that started it
    return int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
draw = torch.Generator().manual_seed(0)
metric = ReIDRanking()
for count, is_query in (({queries}, True), ({gallery}, False)):
    for first in range(0, count, 256):
        index = torch.arange(first, min(first + 256, count))
        pid, camid = (torch.randint(n, (len(index),), generator=draw) for n in (750, 6))
        metric.update(torch.randn(len(index), 2048, generator=draw), pid, camid, index, is_query)
before, start = peak(), time.perf_counter()
metric.compute()
print(f"compute {{time.perf_counter() - start:.1f}} s, peak {{before:.0f}} MiB before, {{peak():.0f}} MiB after")
"""


@pytest.mark.parametrize(
    ("queries", "gallery"), [(QUERIES // 10, GALLERY // 10), (QUERIES // 10, GALLERY), (QUERIES, GALLERY)]
)
def test_the_metric_with_features_of_2048(queries, gallery):
    """A process of its own per size, for its peak of memory; one thread."""
    code = MEMORY.format(queries=queries, gallery=gallery)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    print(f"\nReIDRanking, {queries} queries in {gallery} images: {result.stdout.strip()}")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_all_queries_on_a_gpu():
    on_cpu, on_gpu = market(), market(device="cuda")

    def ours():
        result = evaluate_ranking(*on_gpu, chunk=1024)
        torch.cuda.synchronize()
        return result

    reference, found = side_by_side(
        f"{QUERIES} queries in {GALLERY} images: CPU against GPU", lambda: evaluate_ranking(*on_cpu), ours
    )
    torch.testing.assert_close([part.cpu() for part in found], list(reference), rtol=0, atol=1e-12)
    ranks = [rank_queries(lambda rows, d=d: d[0][rows], *d[1:]) for d in (on_cpu, on_gpu)]
    assert torch.equal(ranks[0].last_hit, ranks[1].last_hit.cpu())
