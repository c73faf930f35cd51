"""The published online arithmetic for one target, in plain Python: window, best cell, box back in the frame, clipping."""

import math


def hann(cells):
    """Window values k = 1..n of 0.5 (1 - cos(2 pi k / (n + 1))), as an outer product."""
    line = [0.5 * (1 - math.cos(2 * math.pi * k / (cells + 1))) for k in range(1, cells + 1)]
    return [[a * b for b in line] for a in line]


def locate(score, size, offset, previous, resize_factor, search_px, frame_size, margin=10):
    """Next box and confidence.

    Args:
        score: ``[S][S]`` rows of scores.
        size: ``[2][S][S]`` width and height, fractions of the search region.
        offset: ``[2][S][S]`` x and y, cells.
        previous: ltwh box that the search region was cut around, frame pixels.
        resize_factor: search pixels per frame pixel.
        search_px: side of the search region in its own pixels.
        frame_size: width and height of the frame.
        margin: pixels of a box that stay inside the frame.
    """
    cells = len(score)
    window = hann(cells)
    best, row, column = -1.0, 0, 0
    for i in range(cells):
        for j in range(cells):
            if score[i][j] * window[i][j] > best:
                best, row, column = score[i][j] * window[i][j], i, j
    cx = (column + offset[0][row][column]) / cells * search_px / resize_factor
    cy = (row + offset[1][row][column]) / cells * search_px / resize_factor
    w = size[0][row][column] * search_px / resize_factor
    h = size[1][row][column] * search_px / resize_factor
    half = 0.5 * search_px / resize_factor
    cx += previous[0] + 0.5 * previous[2] - half
    cy += previous[1] + 0.5 * previous[3] - half
    x1, x2 = cx - 0.5 * w, cx + 0.5 * w
    y1, y2 = cy - 0.5 * h, cy + 0.5 * h
    x1, x2 = min(max(0, x1), frame_size[0] - margin), min(max(margin, x2), frame_size[0])
    y1, y2 = min(max(0, y1), frame_size[1] - margin), min(max(margin, y2), frame_size[1])
    return [x1, y1, max(margin, x2 - x1), max(margin, y2 - y1)], best
