"""Masks of COCO's polygons and codes beside pycocotools, where it is installed, and beside a walk in plain Python.

python -m pytest tests/benchmarks/test_mask_benchmarks.py -m benchmark -s
"""

import numpy as np
import pytest

from lit_methods.functional.coco_masks import compressed_rle, polygons_to_mask, rle_to_mask, segmentation_to_mask
from tests.benchmarks.side_by_side import side_by_side
from tests.functional.test_coco_masks import walked_mask

pytestmark = pytest.mark.benchmark
HEIGHT, WIDTH = 480, 640  # of most pictures of COCO


def outlines(count):
    """Segmentations of one to three star-shaped polygons with 10 to 60 corners in hundredths of a pixel."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(count):
        parts = []
        for _ in range(int(rng.choice([1, 1, 1, 2, 3]))):
            corners = int(rng.integers(10, 61))
            angle = np.sort(rng.random(corners)) * 2 * np.pi
            radius = rng.uniform(15, 150) * rng.uniform(0.6, 1, corners)
            x = rng.uniform(0, WIDTH) + radius * np.cos(angle)
            y = rng.uniform(0, HEIGHT) + radius * np.sin(angle)
            points = np.stack([x.clip(0, WIDTH), y.clip(0, HEIGHT)], axis=1)
            parts.append(points.round(2).ravel().tolist())
        found.append(parts)
    return found


def test_polygons_beside_a_walk_in_plain_python():
    segmentations = outlines(10)
    walked, ours = side_by_side(
        f"{len(segmentations)} masks of {HEIGHT} x {WIDTH} from polygons, plain Python",
        lambda: [sum(walked_mask(part, HEIGHT, WIDTH) for part in parts) for parts in segmentations],
        lambda: [polygons_to_mask(parts, HEIGHT, WIDTH) for parts in segmentations],
        repeats=3,
    )
    assert all(np.array_equal(a, b) for a, b in zip(walked, ours, strict=True))


def test_polygons_beside_pycocotools():
    peer = pytest.importorskip("pycocotools.mask")
    segmentations = outlines(300)
    theirs, ours = side_by_side(
        f"{len(segmentations)} masks of {HEIGHT} x {WIDTH} from polygons, pycocotools",
        lambda: [peer.decode(peer.frPyObjects(parts, HEIGHT, WIDTH)).sum(2) for parts in segmentations],
        lambda: [polygons_to_mask(parts, HEIGHT, WIDTH) for parts in segmentations],
    )
    assert all(np.array_equal(a, b) for a, b in zip(theirs, ours, strict=True))


def test_codes_beside_pycocotools():
    peer = pytest.importorskip("pycocotools.mask")
    masks = [segmentation_to_mask(parts, HEIGHT, WIDTH) for parts in outlines(300)]
    codes = [{"size": [HEIGHT, WIDTH], "counts": compressed_rle(mask)} for mask in masks]
    theirs, ours = side_by_side(
        f"{len(codes)} masks of {HEIGHT} x {WIDTH} from compressed codes, pycocotools",
        lambda: [peer.decode(code) for code in codes],
        lambda: [rle_to_mask(code["counts"], HEIGHT, WIDTH) for code in codes],
    )
    assert all(np.array_equal(a, b) for a, b in zip(theirs, ours, strict=True))
    fortran = [np.asfortranarray(mask) for mask in masks]
    theirs, ours = side_by_side(
        f"{len(codes)} compressed codes of masks of {HEIGHT} x {WIDTH}, pycocotools",
        lambda: [peer.encode(mask)["counts"].decode() for mask in fortran],
        lambda: [compressed_rle(mask) for mask in masks],
    )
    assert theirs == ours
