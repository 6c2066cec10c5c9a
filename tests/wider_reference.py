"""WIDER FACE's evaluation as its ports have it: a loop over images, detections and thresholds, in NumPy."""

import numpy as np


def naive_ap(preds, gts, keeps, thresholds=1000, iou_threshold=0.5):
    """Average precision and (thresholds, 2) counts; the detections of an image are sorted, NaN is ignored."""
    scores = np.concatenate([pred[:, 4] for pred in preds])
    low, high = scores.min(), scores.max()
    total, faces = np.zeros((thresholds, 2)), 0
    for pred, gt, keep in zip(preds, gts, keeps, strict=True):
        faces += keep.sum()
        if not len(pred) or not len(gt):
            continue
        pred = pred[np.argsort(-pred[:, 4], kind="stable")]
        scaled = (pred[:, 4] - low) / (high - low)
        proposals, recalled = match_loop(pred, gt, keep, iou_threshold)
        total += counts_loop(scaled, proposals, recalled, thresholds)
    return area_loop(total, faces), total.astype(np.int64)


def match_loop(pred, gt, keep, iou_threshold=0.5):
    """For each detection 1, or -1 where it is ignored; how many faces are found after each."""
    boxes, faces = pred[:, :4].copy(), gt.copy()
    boxes[:, 2:] += boxes[:, :2]
    faces[:, 2:] += faces[:, :2]
    state, proposals, recalled = np.zeros(len(gt)), np.ones(len(pred)), np.zeros(len(pred))
    for n, box in enumerate(boxes):
        overlap = iou_loop(box, faces)
        best = overlap.argmax()
        if overlap[best] >= iou_threshold:
            if not keep[best]:
                state[best], proposals[n] = -1, -1
            elif state[best] == 0:
                state[best] = 1
        recalled[n] = (state == 1).sum()
    return proposals, recalled


def iou_loop(box, faces):
    """Overlaps of a box with all faces, sides with + 1."""
    width = np.minimum(box[2], faces[:, 2]) - np.maximum(box[0], faces[:, 0]) + 1
    height = np.minimum(box[3], faces[:, 3]) - np.maximum(box[1], faces[:, 1]) + 1
    inter = width * height
    areas = (faces[:, 2] - faces[:, 0] + 1) * (faces[:, 3] - faces[:, 1] + 1)
    overlap = inter / ((box[2] - box[0] + 1) * (box[3] - box[1] + 1) + areas - inter)
    return np.where((width > 0) & (height > 0), overlap, 0)


def counts_loop(scaled, proposals, recalled, thresholds):
    """What one image adds at each threshold."""
    found = np.zeros((thresholds, 2))
    for t in range(thresholds):
        reached = np.where(scaled >= 1 - (t + 1) / thresholds)[0]
        if len(reached):
            last = reached[-1]
            found[t] = (proposals[: last + 1] == 1).sum(), recalled[last]
    return found


def area_loop(total, faces):
    """Area under the envelope."""
    with np.errstate(invalid="ignore"):
        precision, recall = total[:, 1] / total[:, 0], total[:, 1] / faces
    precision, recall = np.concatenate([[0], precision, [0]]), np.concatenate([[0], recall, [1]])
    for i in range(len(precision) - 1, 0, -1):
        precision[i - 1] = np.fmax(precision[i - 1], precision[i])
    steps = np.where(recall[1:] != recall[:-1])[0]
    return ((recall[steps + 1] - recall[steps]) * precision[steps + 1]).sum()
