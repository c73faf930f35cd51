"""Slow, plain forms of the tracking losses: loops over boxes and cells."""

import math


def giou(a, b):
    """Generalized IoU of two xyxy boxes."""
    area = lambda box: max(box[2] - box[0], 0) * max(box[3] - box[1], 0)
    inner = area([max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])])
    hull = area([min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3])])
    union = area(a) + area(b) - inner
    return inner / union - (hull - union) / hull


def radius(width, height, overlap=0.7):
    """CornerNet's radius with its published (not the mathematically right) denominators."""
    b1, c1 = width + height, width * height * (1 - overlap) / (1 + overlap)
    r1 = (b1 + math.sqrt(b1**2 - 4 * c1)) / 2
    b2, c2 = 2 * (width + height), (1 - overlap) * width * height
    r2 = (b2 + math.sqrt(b2**2 - 16 * c2)) / 2
    a3, b3, c3 = 4 * overlap, -2 * overlap * (width + height), (overlap - 1) * width * height
    r3 = (b3 + math.sqrt(b3**2 - 4 * a3 * c3)) / 2
    return max(0, int(min(r1, r2, r3)))


def heat_map(box, cells):
    """One box (cxcywh, fractions) as a Gaussian on a cells x cells map."""
    x, y = round(box[0] * cells), round(box[1] * cells)
    r = radius(box[2] * cells, box[3] * cells)
    sigma = (2 * r + 1) / 6
    rows = [[0.0] * cells for _ in range(cells)]
    for i in range(cells):
        for j in range(cells):
            if abs(i - y) <= r and abs(j - x) <= r:
                rows[i][j] = math.exp(-((i - y) ** 2 + (j - x) ** 2) / (2 * sigma**2))
    return rows


def focal(score, target):
    """CornerNet's focal loss of lists of maps."""
    total, positives = 0.0, 0
    for p_map, t_map in zip(score, target, strict=True):
        for p_row, t_row in zip(p_map, t_map, strict=True):
            for p, t in zip(p_row, t_row, strict=True):
                if t == 1:
                    positives += 1
                    total -= math.log(p) * (1 - p) ** 2
                else:
                    total -= math.log(1 - p) * p**2 * (1 - t) ** 4
    return total / max(positives, 1)
