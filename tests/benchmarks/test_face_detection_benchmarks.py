"""WIDER FACE's evaluation beside the plain loop over images and 1,000 thresholds, and of the whole validation set.

python -m pytest tests/benchmarks/test_face_detection_benchmarks.py -m benchmark -s
"""

import time

import numpy as np
import pytest
import torch

from lit_methods.functional.wider_files import read_prediction_folder, write_predictions
from lit_methods.metrics import WIDERFaceAP
from lit_methods.metrics.face_detection import wider_face_ap
from tests.benchmarks.side_by_side import side_by_side
from tests.wider_reference import naive_ap

pytestmark = pytest.mark.benchmark
IMAGES, BOXES = 500, 100
VALIDATION = 3226  # images, with 143,889 detections of a RetinaFace in all, and 39,708 faces
LEVELS = ("easy", "medium", "hard")


def image(detections, faces, draw):
    """Detections around faces and anywhere, faces, and which of them count."""
    gt = draw.uniform(10, 900, (faces, 4)) * [1, 1, 0.1, 0.1]
    near = gt[draw.integers(0, faces, detections)] + draw.normal(0, 3, (detections, 4)) if faces else None
    boxes = draw.uniform(10, 900, (detections, 4)) if near is None else near
    return np.column_stack([boxes, draw.uniform(0, 1, detections)]), gt, draw.uniform(size=faces) < 0.6


def images(count, detections, faces):
    """Lists of the three, with so many faces on average."""
    draw = np.random.default_rng(0)
    return [
        list(part) for part in zip(*(image(detections, draw.poisson(faces), draw) for _ in range(count)), strict=True)
    ]


def tensors(parts):
    return [[torch.from_numpy(each) for each in part] for part in parts]


def test_average_precision_beside_the_plain_loop():
    arrays = images(IMAGES, BOXES, 12)
    given = tensors(arrays)
    reference, ours = side_by_side(
        f"AP of {IMAGES} images x {BOXES} boxes, loop over images and 1,000 thresholds",
        lambda: naive_ap(*arrays),
        lambda: wider_face_ap(*given),
        repeats=3,
    )
    assert 0.05 < reference[0] < 0.95
    np.testing.assert_allclose(float(ours.ap), reference[0], rtol=0, atol=1e-9)
    np.testing.assert_array_equal(ours.counts, reference[1])


def validation():
    """Detections and faces of a set of the validation set's size, as the metric takes them."""
    preds, gts, keeps = tensors(images(VALIDATION, 45, 12))
    preds, gts = ([torch.cat([p[:, :2], p[:, :2] + p[:, 2:4], p[:, 4:]], 1) for p in part] for part in (preds, gts))
    targets = [{"boxes": gt} | {f"keep_{level}": keep for level in LEVELS} for gt, keep in zip(gts, keeps, strict=True)]
    return [{"boxes": pred[:, :4], "scores": pred[:, 4]} for pred in preds], targets


def test_the_whole_validation_set():
    preds, targets = validation()
    start, cpu = time.perf_counter(), time.process_time()
    metric = WIDERFaceAP(LEVELS)
    for i in range(0, VALIDATION, 8):
        metric.update(preds[i : i + 8], targets[i : i + 8])
    found = metric.compute()
    print(
        f"\nfour levels of {VALIDATION:,} images, {sum(len(p['scores']) for p in preds):,} detections: "
        f"{time.perf_counter() - start:.2f} s, {time.process_time() - cpu:.2f} s of the CPU"
    )
    assert 0 < found["all"] < 1


def test_files_of_the_whole_validation_set(tmp_path):
    preds, _ = validation()
    names = [f"{i % 61}--Event/image_{i}" for i in range(VALIDATION)]
    start = time.perf_counter()
    for name, pred in zip(names, preds, strict=True):
        write_predictions(tmp_path / f"{name}.txt", name, pred["boxes"], pred["scores"])
    between = time.perf_counter()
    read = read_prediction_folder(tmp_path, names)
    print(f"\n{VALIDATION:,} files: written in {between - start:.2f} s, read in {time.perf_counter() - between:.2f} s")
    assert sum(map(len, read.values())) == sum(len(pred["scores"]) for pred in preds)
