"""One-pass evaluation and VOT's overlap and expected overlap in plain loops, as their toolkits go about it."""

import math

import numpy as np


def ope_loop(preds, target, present=None, toolkit=True):
    """The three curves of one video, frame after frame and threshold after threshold."""
    success, precision, norm_precision = np.zeros(21), np.zeros(51), np.zeros(51)
    for i, ((x, y, w, h), (u, v, m, n)) in enumerate(zip(preds.tolist(), target.tolist(), strict=True)):
        if present is not None and not present[i]:
            continue
        iou = -1.0
        if m > 0 and n > 0:
            wide, high = np.minimum(x + w, u + m) - np.maximum(x, u), np.minimum(y + h, v + n) - np.maximum(y, v)
            inter = np.maximum(0, wide) * np.maximum(0, high)  # NumPy's keep NaN
            iou = np.clip(inter / (w * h + m * n - inter), 0, 1)
        success += [iou > t for t in np.arange(0, 1.05, 0.05)]
        for curve, sizes, thresholds in (
            (precision, (1.0, 1.0), np.arange(51)),
            (norm_precision, (m + 1e-16, n + 1e-16), np.arange(51) / 100),
        ):
            cx, cy = (x + (w - 1) / 2) / sizes[0], (y + (h - 1) / 2) / sizes[1]
            tx, ty = (u + (m - 1) / 2) / sizes[0], (v + (n - 1) / 2) / sizes[1]
            if tx > 0 and ty > 0:
                curve += [math.sqrt((tx - cx) ** 2 + (ty - cy) ** 2) <= t for t in thresholds]
            elif toolkit:
                curve += 1
    return success / len(preds), precision / len(preds), norm_precision / len(preds)


def overlap_loop(a, b, bounds=None):
    """Two polygons drawn pixel by pixel, of which each is counted."""
    a, b = (np.asarray(polygon, dtype=np.float32).reshape(4, 2) for polygon in (a, b))
    right, bottom = bounds or (np.inf, np.inf)
    extents = []
    for polygon in (a, b):
        (left, top), (r, d) = np.floor(polygon.min(0)), np.ceil(polygon.max(0))
        least = 0 if bounds else -np.inf
        extents.append((max(left, least), max(top, least), min(r, right), min(d, bottom)))
    (l1, t1, r1, d1), (l2, t2, r2, d2) = extents
    if min(r1, r2) <= max(l1, l2) or min(d1, d2) <= max(t1, t2) or r1 <= l1 or r2 <= l2 or d1 <= t1 or d2 <= t2:
        return 0.0
    origin = np.float32([min(l1, l2), min(t1, t2)])
    width, height = int(max(r1, r2) - origin[0]) + 1, int(max(d1, d2) - origin[1]) + 1
    one, two = (draw(polygon - origin, width, height) for polygon in (a, b))
    either = (one | two).sum()
    return float((one & two).sum() / either) if either else 0.0


def draw(polygon, width, height):
    """A mask (height, width)."""
    corners = [[int(math.copysign(math.floor(abs(float(v)) + 0.5), v)) for v in corner] for corner in polygon]
    mask = np.zeros((height, width), dtype=bool)
    for row in range(height):
        nodes = []
        for (xi, yi), (xj, yj) in zip(corners, corners[-1:] + corners[:-1], strict=True):
            if yi != yj and min(yi, yj) <= row <= max(yi, yj):
                nodes.append(int(xi + (row - yi) / (yj - yi) * (xj - xi)))
        nodes.sort()
        i = 0
        while i < len(nodes) - 1:
            if nodes[i] == nodes[i + 1]:
                i += 1
                continue
            if nodes[i] < width and nodes[i + 1] >= 0:
                mask[row, max(nodes[i], 0) : nodes[i + 1] + 1] = True
            i += 2
    return mask


def expected_overlaps(overlaps, states):
    """The curve over a table of fragments, as wide as the longest sequence."""
    longest = max(map(len, overlaps))
    rows = []
    for overlap, state in zip(overlaps, states, strict=True):
        points = [0] + [f + 5 for f in np.flatnonzero(state == 2) if f + 5 <= len(overlap)]
        for k, start in enumerate(points):
            row = np.full(longest, np.nan)
            stop = len(overlap)
            if k + 1 < len(points):
                row[:] = 0
                stop = points[k + 1] + 1
            part = np.nan_to_num(overlap[start:stop], nan=0.0)
            row[: len(part)] = part
            rows.append(row)
    table = np.stack(rows)
    curve = np.ones(longest)
    for i in range(1, longest):
        known = ~np.isnan(table[:, i])
        curve[i] = np.mean([row[1 : i + 1].mean() for row in table[known]])
    return curve
