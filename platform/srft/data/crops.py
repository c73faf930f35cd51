"""Square crops around a box, in the arithmetic the published trackers use (so that their numbers can be reproduced)."""

from __future__ import annotations

import math

import cv2
import numpy as np


def region_side(box: np.ndarray, factor: float) -> int:
    """Side of the square around a box.

    Args:
        box: ``[4]`` ltwh in pixels, of positive size.
        factor: side in target sizes.

    Returns:
        ``ceil(sqrt(w h) factor)`` pixels.
    """
    return math.ceil(math.sqrt(float(box[2]) * float(box[3])) * factor)


def crop(frame: np.ndarray, box: np.ndarray, factor: float, output_px: int) -> tuple[np.ndarray, float]:
    """Cut the square around a box and resize it. What lies outside the square costs nothing, whatever the size of the frame.

    Side ``ceil(sqrt(w h) factor)``, corner rounded half to even, zeros outside the frame. As published, the frame's last column
    (row) is left out whenever the square reaches it.

    Args:
        frame: ``[H, W, C]`` uint8.
        box: ``[4]`` ltwh in pixels.
        factor: side of the square in target sizes.
        output_px: side of the result in pixels.

    Returns:
        The crop ``[output_px, output_px, C]`` uint8 and the resize factor (output pixels per frame pixel).

    Raises:
        ValueError: the box is not finite or has no area.
    """
    left, top, width, height = (float(v) for v in box)
    if not math.isfinite(left + top + width * height) or width <= 0 or height <= 0:
        raise ValueError(f"cannot crop around box {[left, top, width, height]} (ltwh pixels); expected finite values and a positive size")
    side = region_side(box, factor)
    x1, y1 = round(left + 0.5 * width - side * 0.5), round(top + 0.5 * height - side * 0.5)
    rows, columns = frame.shape[:2]
    pad_left, pad_right = max(0, -x1), max(x1 + side - columns + 1, 0)
    pad_top, pad_bottom = max(0, -y1), max(y1 + side - rows + 1, 0)
    if pad_left == pad_right == pad_top == pad_bottom == 0:
        return cv2.resize(frame[y1 : y1 + side, x1 : x1 + side], (output_px, output_px)), output_px / side
    square = np.zeros((side, side, frame.shape[2]), np.uint8)
    if pad_left + pad_right < side and pad_top + pad_bottom < side:
        inside = frame[y1 + pad_top : y1 + side - pad_bottom, x1 + pad_left : x1 + side - pad_right]
        square[pad_top : side - pad_bottom, pad_left : side - pad_right] = inside
    return cv2.resize(square, (output_px, output_px)), output_px / side


def box_in_crop(box: np.ndarray, around: np.ndarray, resize_factor: float, output_px: int) -> np.ndarray:
    """A box in the coordinates of a crop.

    Args:
        box: ``[4]`` ltwh in frame pixels.
        around: ``[4]`` ltwh, the box the crop was cut around.
        resize_factor: as :func:`crop` returned it.
        output_px: side of the crop in pixels.

    Returns:
        ``[4]`` float32 cxcywh as fractions of the crop; the crop's own box is centred at (output_px - 1) / 2.
    """
    box, around = np.asarray(box, np.float64), np.asarray(around, np.float64)
    shift = (box[:2] + box[2:] / 2) - (around[:2] + around[2:] / 2)
    center = (output_px - 1) / 2 + shift * resize_factor
    return np.concatenate([center, box[2:] * resize_factor]).astype(np.float32) / output_px
