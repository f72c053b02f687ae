"""The DOTA devkit's evaluation of one class, written anew from its rule: numpy, polygons of shapely, one box at a time.

A detection is (image, score, polygon), a ground truth (image, polygon, difficult). Nothing of the package is used.
"""

import math

import numpy as np
import pytest

shapely = pytest.importorskip("shapely", reason="the devkit's rule is checked with shapely's polygons")


def as_polygon(box):
    """(cx, cy, w, h, angle clockwise, y down) -> polygon."""
    cx, cy, w, h, angle = (float(value) for value in box)
    cos, sin = math.cos(angle), math.sin(angle)
    ends = [(-w / 2, -h / 2), (w / 2, -h / 2), (w / 2, h / 2), (-w / 2, h / 2)]
    return shapely.Polygon([(cx + x * cos - y * sin, cy + x * sin + y * cos) for x, y in ends])


def polygon_iou(a, b):
    shared = a.intersection(b).area
    return shared / (a.area + b.area - shared)


def average_precision(recall, precision, eleven_points):
    if eleven_points:
        total = 0.0
        for level in np.arange(0.0, 1.1, 0.1):
            reached = precision[recall >= level]
            total += (reached.max() if len(reached) else 0.0) / 11
        return total
    recall = np.concatenate([[0.0], recall, [1.0]])
    precision = np.concatenate([[0.0], precision, [0.0]])
    for i in range(len(precision) - 1, 0, -1):
        precision[i - 1] = max(precision[i - 1], precision[i])
    steps = np.flatnonzero(recall[1:] != recall[:-1])
    return float(np.sum((recall[steps + 1] - recall[steps]) * precision[steps + 1]))


def evaluate_class(detections, truths, threshold, *, eleven_points):
    """AP of one class; NaN without a ground truth that counts."""
    positives = sum(not difficult for _, _, difficult in truths)
    if not positives:
        return math.nan
    taken = set()
    hits, misses = [], []
    for image, _, polygon in sorted(detections, key=lambda one: -one[1]):
        best, best_index = -math.inf, None
        for index, (other, truth, _) in enumerate(truths):
            if other == image:
                iou = polygon_iou(polygon, truth)
                if iou > best:
                    best, best_index = iou, index
        hit = miss = 0.0
        if best > threshold:
            if not truths[best_index][2]:
                if best_index not in taken:
                    taken.add(best_index)
                    hit = 1.0
                else:
                    miss = 1.0
        else:
            miss = 1.0
        hits.append(hit)
        misses.append(miss)
    hits, misses = np.cumsum(hits), np.cumsum(misses)
    return average_precision(
        hits / float(positives), hits / np.maximum(hits + misses, np.finfo(np.float64).eps), eleven_points
    )
