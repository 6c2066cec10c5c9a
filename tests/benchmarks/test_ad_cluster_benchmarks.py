"""Jaccard distance and re-ranking beside the widely used loop, their memory, and how both grow.

python -m pytest tests/benchmarks/test_ad_cluster_benchmarks.py -m benchmark -s
"""

import subprocess
import sys

import pytest
import torch
from torch.testing import assert_close

from lit_methods.ad_cluster.clusters import dbscan_pseudo_labels, select_eps
from lit_methods.ad_cluster.jaccard import k_reciprocal_jaccard, k_reciprocal_rerank
from tests.benchmarks.side_by_side import side_by_side
from tests.jaccard_reference import people, plain_jaccard, plain_rerank

pytestmark = pytest.mark.benchmark

KINDS = pytest.mark.parametrize("kind", ["people", "noise"])  # noise has hubs that are near to all: the costly case


def features(kind, count, size=256):
    return people(count, size, clustered=kind == "people")


@KINDS
def test_jaccard_of_three_thousand(kind):
    """The goal is 10 times, within 1e-5 of the loop in float64."""
    feats = features(kind, 3000)
    _, ours = side_by_side(
        f"Jaccard, N = 3000 x 256, {kind}, loop in float32",
        lambda: plain_jaccard(feats)[0],
        lambda: k_reciprocal_jaccard(torch.from_numpy(feats)),
        repeats=3,
    )
    assert_close(ours.double(), torch.from_numpy(plain_jaccard(feats.astype("f8"))[0]), rtol=0, atol=1e-5)


@KINDS
def test_reranking_of_four_thousand(kind):
    """The goal is 10 times."""
    feats = features(kind, 4000)
    query, gallery = feats[::5], feats[torch.arange(4000).numpy() % 5 > 0]
    _, ours = side_by_side(
        f"re-ranking, 800 + 3200 x 256, {kind}, loop in float32",
        lambda: plain_rerank(query, gallery),
        lambda: k_reciprocal_rerank(torch.from_numpy(query), torch.from_numpy(gallery)),
        repeats=1,
    )
    reference = plain_rerank(query.astype("f8"), gallery.astype("f8"))
    assert_close(ours.double(), torch.from_numpy(reference), rtol=0, atol=1e-5)


PEAK = """
import sys, time, torch
torch.set_num_threads(1)
from lit_methods.ad_cluster.clusters import dbscan_pseudo_labels, select_eps
from lit_methods.ad_cluster.jaccard import k_reciprocal_jaccard, k_reciprocal_rerank
from tests.jaccard_reference import people
def peak():
    return int(next(line for line in open("/proc/self/status") if "VmHWM" in line).split()[1]) / 1024
what, kind, count, size = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
feats = torch.from_numpy(people(count, size, clustered=kind == "people"))
k_reciprocal_rerank(feats[:40], feats[40:80])
before, start = peak(), time.perf_counter()
if what == "rerank":
    k_reciprocal_rerank(feats[: count // 5], feats[count // 5 :])
else:
    found = k_reciprocal_jaccard(feats, sparse=what == "sparse")
print(f"{time.perf_counter() - start:.1f} s, peak {peak():.0f} MiB, {peak() - before:.0f} of them for this", end="")
if what != "rerank":
    start = time.perf_counter()
    eps = select_eps(found)
    labels = dbscan_pseudo_labels(found, eps)
    print(f"; radius {eps:.4f}, {int(labels.max()) + 1} clusters, {time.perf_counter() - start:.1f} s", end="")
    print(f", {len(found.value)} pairs" if what == "sparse" else "", end="")
print(f"; in all {peak():.0f} MiB")
"""


def in_its_own_process(what, kind, count, size=256):
    words = [what, kind, str(count), str(size)]
    done = subprocess.run([sys.executable, "-c", PEAK, *words], capture_output=True, text=True, check=True)
    print(f"\n{what}, N = {count} x {size}, {kind}: {done.stdout.strip()}")
    return float(done.stdout.split()[-2])


@KINDS
@pytest.mark.parametrize("what", ["dense", "sparse"])
def test_time_and_memory_of_market1501(what, kind):
    """Goals on one core: a minute, and 4 GB."""
    assert in_its_own_process(what, kind, 12_936) < 4e9 / 2**20


@KINDS
def test_time_and_memory_by_size(kind):
    """What ten times as many points cost: distances a hundred times, pairs of people ten."""
    for what in ("sparse", "dense", "rerank"):
        for count in (1_294, 4_000, 12_936):
            in_its_own_process(what, kind, count)


def test_time_and_memory_of_forty_thousand():
    in_its_own_process("sparse", "people", 40_000)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@KINDS
@pytest.mark.parametrize("size", [256, 2048])
def test_full_size_on_a_gpu(kind, size):
    """The goal is seconds. Queries and gallery of Market-1501 are re-ranked; the CPU gives the same within 1e-5."""
    feats = torch.from_numpy(features(kind, 12_936, size))
    on_gpu = feats.cuda()

    def ours():
        torch.cuda.reset_peak_memory_stats()
        found = k_reciprocal_jaccard(on_gpu, sparse=True)
        labels = dbscan_pseudo_labels(found, select_eps(found))
        torch.cuda.synchronize()
        return found, labels

    (slow, _), (found, _) = side_by_side(
        f"sparse Jaccard, radius and labels, N = 12936 x {size}, {kind}: CPU beside GPU",
        lambda: ((cpu := k_reciprocal_jaccard(feats, sparse=True)), dbscan_pseudo_labels(cpu, select_eps(cpu))),
        ours,
        repeats=1,
    )
    print(f"  peak on the GPU {torch.cuda.max_memory_allocated() / 2**20:.0f} MiB")
    assert_close(found.to_dense().cpu(), slow.to_dense(), rtol=0, atol=1e-5)
    query, gallery = (torch.from_numpy(features(kind, n, size)).cuda() for n in (3_368, 15_913))
    timed = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    k_reciprocal_rerank(query[:99], gallery[:99])
    torch.cuda.reset_peak_memory_stats()
    timed[0].record()
    k_reciprocal_rerank(query, gallery)
    timed[1].record()
    torch.cuda.synchronize()
    print(
        f"  re-ranking 3368 x 15913: {timed[0].elapsed_time(timed[1]):.0f} ms, "
        f"peak {torch.cuda.max_memory_allocated() / 2**20:.0f} MiB"
    )
