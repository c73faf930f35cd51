"""Square crops around a box, in the arithmetic the published trackers use (so that their numbers can be reproduced)."""

from __future__ import annotations

import math
from typing import NamedTuple

import cv2
import numpy as np

from srft.data.images import Decoded, StoredFrame, decode, merge, same_size


class Window(NamedTuple):
    """The square of a frame that a crop shows; it may reach beyond the frame."""

    left: int
    top: int
    side: int


def region_side(box: np.ndarray, factor: float) -> int:
    """Side of the square around a box.

    Args:
        box: ``[4]`` ltwh in pixels, of positive size.
        factor: side in target sizes.

    Returns:
        ``ceil(sqrt(w h) factor)`` pixels.
    """
    return math.ceil(math.sqrt(float(box[2]) * float(box[3])) * factor)


def window(box: np.ndarray, factor: float) -> Window:
    """The square around a box: side :func:`region_side`, corner rounded half to even.

    Args:
        box: ``[4]`` ltwh in pixels.
        factor: side of the square in target sizes.

    Returns:
        Left, top and side in pixels.

    Raises:
        ValueError: the box is not finite or has no area.
    """
    left, top, width, height = (float(v) for v in box)
    if not math.isfinite(left + top + width * height) or width <= 0 or height <= 0:
        raise ValueError(f"cannot crop around box {[left, top, width, height]} (ltwh pixels); expected finite values and a positive size")
    side = region_side(box, factor)
    return Window(round(left + 0.5 * width - side * 0.5), round(top + 0.5 * height - side * 0.5), side)


def _seen(start: int, side: int, size: int) -> tuple[int, int]:
    # First and one past the last pixel that a square shows along one axis.
    return max(0, start), start + side if start + side < size else size - 1


def cut(frame: np.ndarray, square: Window) -> np.ndarray:
    """Cut a square out of a frame. What lies outside the square costs nothing, whatever the size of the frame.

    Zeros outside the frame. As published, the frame's last column (row) is left out whenever the square reaches it.

    Args:
        frame: ``[H, W, C]`` uint8.
        square: where.

    Returns:
        ``[side, side, C]`` uint8, a view where the frame shows the whole square.
    """
    left, top, side = square
    (y1, y2), (x1, x2) = _seen(top, side, frame.shape[0]), _seen(left, side, frame.shape[1])
    if y2 - y1 == x2 - x1 == side:
        return frame[y1:y2, x1:x2]
    out = np.zeros((side, side, frame.shape[2]), np.uint8)
    if y1 < y2 and x1 < x2:
        out[y1 - top : y2 - top, x1 - left : x2 - left] = frame[y1:y2, x1:x2]
    return out


def cut_stored(stored: StoredFrame, square: Window) -> np.ndarray:
    """Copy a square out of a frame that is stored as images, decoding no more of them than it takes.

    Args:
        stored: the frame.
        square: where.

    Returns:
        ``[side, side, C]`` uint8, the same bytes as :func:`cut` of the decoded frame. A damaged image is an ``ImageError``.
    """
    left, top, side = square
    ox, oy = stored.corner
    parts = [decode(image, rows=top + side - oy) for image in stored.images]
    same_size(stored, parts)
    height, width = stored.size or (parts[0].height, parts[0].width)
    (y1, y2), (x1, x2) = _seen(top, side, height), _seen(left, side, width)
    y1, y2, x1, x2 = max(y1, oy), min(y2, oy + parts[0].height), max(x1, ox), min(x2, ox + parts[0].width)
    out = np.zeros((side, side, 3 * len(parts)), np.uint8)
    if y1 < y2 and x1 < x2:
        merge([part.pixels[y1 - oy : y2 - oy, x1 - ox : x2 - ox] for part in parts], out[y1 - top : y2 - top, x1 - left : x2 - left])
    return out


def crop(frame: np.ndarray, box: np.ndarray, factor: float, output_px: int) -> tuple[np.ndarray, float]:
    """Cut the square around a box (:func:`window`, :func:`cut`) and resize it.

    Args:
        frame: ``[H, W, C]`` uint8.
        box: ``[4]`` ltwh in pixels; one that is not finite or has no area is a ValueError.
        factor: side of the square in target sizes.
        output_px: side of the result in pixels.

    Returns:
        The crop ``[output_px, output_px, C]`` uint8 and the resize factor (output pixels per frame pixel).
    """
    square = window(box, factor)
    return cv2.resize(cut(frame, square), (output_px, output_px)), output_px / square.side


def crop_stored(stored: StoredFrame, square: Window, output_px: int) -> np.ndarray:
    """:func:`crop` of a frame that is stored as images.

    Args:
        stored: the frame.
        square: where.
        output_px: side of the result in pixels.

    Returns:
        ``[output_px, output_px, C]`` uint8, the same bytes as from the decoded frame. A damaged image is an ``ImageError``.
    """
    return cv2.resize(cut_stored(stored, square), (output_px, output_px))


def crop_reduced(stored: StoredFrame, square: Window, output_px: int) -> np.ndarray | None:
    """A crop from images decoded at the smallest of 1/2, 1/4 and 1/8 of their size that is not smaller than the crop.

    Pixels differ from those of :func:`crop`, which drops pixels where this takes their mean: the crop is a little smoother, and its
    place exact.

    Args:
        stored: the frame.
        square: where.
        output_px: side of the result in pixels.

    Returns:
        ``[output_px, output_px, C]`` uint8; None where the crop shrinks the frame less than twofold, so that :func:`crop_stored` is
        the way. A damaged image is an ``ImageError``.
    """
    left, top, side = square
    reduce = next((r for r in (8, 4, 2) if side >= r * output_px), 1)
    if reduce == 1:
        return None
    ox, oy = stored.corner
    parts = [decode(image, rows=top + side - oy, reduce=reduce) for image in stored.images]
    same_size(stored, parts)
    out = np.empty((output_px, output_px, 3 * len(parts)), np.uint8)
    merge([_warp(part, left - ox, top - oy, side, output_px) for part in parts], out)
    return out


def _warp(part: Decoded, left: int, top: int, side: int, output_px: int) -> np.ndarray:
    fraction = part.width / part.pixels.shape[1]
    fraction = 1.0 if fraction < 1.5 else 2.0 ** round(math.log2(fraction))
    # Centre of output pixel o, in frame pixels, is (o + 1/2) side / output + left.
    step = side / output_px / fraction
    shift = [(0.5 * side / output_px + start) / fraction - 0.5 for start in (left, top)]
    across = np.array([[step, 0, shift[0]], [0, step, shift[1]]], np.float64)
    return cv2.warpAffine(part.pixels, across, (output_px, output_px), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)


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
