"""HRank beside the official way: one pass per layer, one ``matrix_rank`` per map. Prints ratios; checks equal ranks.

python -m pytest tests/benchmarks/test_hrank_benchmarks.py -m benchmark -s
"""

import subprocess
import sys

import numpy as np
import pytest
import torch

from lit_methods.backbones import build_backbone, prune_model, prune_points
from lit_methods.functional import feature_map_rank, measure_latency
from lit_methods.hrank.functional import batch_ranks
from tests.benchmarks.side_by_side import side_by_side
from tests.hrank_vectors import FILES, RATES, fill, random_plan

pytestmark = pytest.mark.benchmark


def loop_rank(maps):
    """The official way, with today's name of the function."""
    return torch.stack([torch.stack([torch.linalg.matrix_rank(one) for one in image]) for image in maps])


def official_pass(model, images, points):
    """One forward pass per point."""
    ranks = {}
    for point in points:

        def hook(_, __, maps, point=point):
            ranks[point.conv] = loop_rank(maps[:, slice(*point.channels)])

        handle = model.get_submodule(point.module).register_forward_hook(hook)
        with torch.no_grad():
            model(images)
        handle.remove()
    return ranks


def hooked_maps(model, images, points):
    maps, handles = {}, []
    for point in points:
        module = model.get_submodule(point.module)
        handles.append(
            module.register_forward_hook(
                lambda _, __, y, point=point: maps.update({point.conv: y[:, slice(*point.channels)].clone()})
            )
        )
    with torch.no_grad():
        model.eval()(images)
    for handle in handles:
        handle.remove()
    return maps


def cifar_images(shared, count):
    """Real test images where they are, normalised as in training; else noise."""
    import pickle

    folder = shared / "data" / "cifar10_small"
    files = sorted(folder.rglob("test_batch")) or sorted((shared / "data" / "cifar10").rglob("test_batch"))
    if not files:
        pytest.skip("no CIFAR-10 in ../shared")
    with open(files[0], "rb") as file:
        pixels = np.asarray(pickle.load(file, encoding="bytes")[b"data"][:count], dtype=np.float32)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)))
    return (torch.from_numpy(pixels).view(-1, 3, 32, 32) / 255 - mean) / std


def assert_same(reference, ours):
    assert reference.keys() == ours.keys()
    for conv in reference:
        assert torch.equal(reference[conv], ours[conv]), conv


def test_ranks_of_all_vgg_layers():
    model, points = fill(build_backbone("vgg16_bn_cifar")), prune_points("vgg16_bn_cifar")
    maps = hooked_maps(model, torch.randn(4, 3, 32, 32), points)
    total = sum(m.shape[0] * m.shape[1] for m in maps.values())
    reference, ours = side_by_side(
        f"VGG-16 ranks, {total} maps of 12 layers, forward excluded",
        lambda: {conv: loop_rank(m) for conv, m in maps.items()},
        lambda: {conv: feature_map_rank(m) for conv, m in maps.items()},
    )
    assert_same(reference, ours)
    batched, ours = side_by_side(
        "  the same beside one batched matrix_rank per layer",
        lambda: {conv: torch.linalg.matrix_rank(m) for conv, m in maps.items()},
        lambda: {conv: feature_map_rank(m) for conv, m in maps.items()},
    )
    assert_same(batched, ours)


@pytest.mark.parametrize("size", [2, 4, 8, 16, 32, 56])
def test_ranks_by_map_size(size):
    maps = torch.randn(4, 64, size, size).relu()
    reference, ours = side_by_side(
        f"256 maps {size}x{size}", lambda: loop_rank(maps), lambda: feature_map_rank(maps), repeats=3
    )
    assert torch.equal(reference, ours)


def compare_passes(title, model, images, points):
    reference, ours = side_by_side(
        title,
        lambda: official_pass(model, images, points),
        lambda: next(batch_ranks(model, [images], points)),
        repeats=3,
    )
    assert_same(reference, ours)


def test_whole_vgg_pass():
    model, points = fill(build_backbone("vgg16_bn_cifar")).eval(), prune_points("vgg16_bn_cifar")
    images = torch.randn(4, 3, 32, 32)
    compare_passes("VGG-16 ranks of 4 images, forward passes included (12 passes beside 1)", model, images, points)


def test_whole_pass_of_a_trained_network(shared):
    weights = shared / "data" / "weights" / "cifar10_resnet56.npz"
    if not weights.is_file():
        pytest.skip(f"no {weights.name} in ../shared")
    from lit_methods.backbones.weights import load_weights, read_weights

    model, points = build_backbone("resnet56").eval(), prune_points("resnet56")
    load_weights(model, read_weights(str(weights))[0])
    images = cifar_images(shared, 4)
    compare_passes(
        "trained ResNet-56 on 4 CIFAR images, forward passes included (55 passes beside 1)", model, images, points
    )
    maps = hooked_maps(model, images, points)
    reference, ours = side_by_side(
        "  its ranks, forward excluded",
        lambda: {conv: loop_rank(m) for conv, m in maps.items()},
        lambda: {conv: feature_map_rank(m) for conv, m in maps.items()},
        repeats=3,
    )
    assert_same(reference, ours)


def test_latency_of_pruned_networks():
    for arch in FILES:
        model = build_backbone(arch).eval()
        thin = prune_model(model, random_plan(arch, RATES[arch]))
        size, batch = ((3, 224, 224), 1) if arch == "resnet50" else ((3, 32, 32), 8)
        times = measure_latency({"full": model, "pruned": thin}, size, batch_size=batch, repeats=5)
        print(f"\n{arch}: {times['full']:.1f} ms full, {times['pruned']:.1f} ms pruned, "
              f"ratio {times['full'] / times['pruned']:.2f} (batch {batch}, 5 rounds)")  # fmt: skip


MEMORY = """
import resource, torch
torch.set_num_threads(1)
from lit_methods.backbones import build_backbone, prune_points
from lit_methods.hrank.functional import rank_scores
model, images = build_backbone("resnet50", 1000).eval(), torch.randn(8, 3, 224, 224)
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
with torch.no_grad():
    model(images)
forward, points = peak(), prune_points("resnet50")
rank_scores(model, [images], points, max_bytes={max_bytes})
ranked, maps = peak(), []
for name in dict.fromkeys(point.module for point in points):
    model.get_submodule(name).register_forward_hook(lambda _, __, y: maps.append(y.clone()))
with torch.no_grad():
    model(images)
print(f"forward alone {{forward:.0f}} MiB, with ranks {{ranked:.0f}}, had all maps been collected first {{peak():.0f}}")
"""


def test_peak_memory_of_resnet50():
    for mebibytes in (16, 64, 256):
        code = MEMORY.format(max_bytes=mebibytes * 2**20)
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        print(f"\nResNet-50, 8 images at 224, peak memory, max_bytes {mebibytes} MiB: {result.stdout.strip()}")
