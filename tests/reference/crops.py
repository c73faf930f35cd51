"""The published crop written pixel by pixel: pad, cut, resize."""

import math

import cv2
import numpy as np


def crop(frame, box, factor, output_px):
    """Square crop around an ltwh box; the frame's last row and column count as outside when the square reaches them."""
    x, y, w, h = box
    side = math.ceil(math.sqrt(w * h) * factor)
    x1, y1 = round(x + 0.5 * w - side * 0.5), round(y + 0.5 * h - side * 0.5)
    rows, columns = frame.shape[:2]
    drop_x, drop_y = x1 + side >= columns, y1 + side >= rows
    square = np.zeros((side, side, frame.shape[2]), np.uint8)
    for i in range(side):
        for j in range(side):
            yy, xx = y1 + i, x1 + j
            if 0 <= yy < rows - drop_y and 0 <= xx < columns - drop_x:
                square[i, j] = frame[yy, xx]
    return cv2.resize(square, (output_px, output_px)), output_px / side
