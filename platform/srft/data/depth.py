"""Depth frames as images that a network pre-trained on RGB can take.

A depth frame is 16-bit millimetres, 0 where the sensor measured nothing (a hole). The published RGB-D trackers show it as a JET
colour map. They differ in the order of its channels: training reads colour maps from files and turns them to RGB, the published VOT
wrapper leaves OpenCV's BGR. Here the order is an argument, RGB unless said otherwise, the same in training and tracking.
"""

from __future__ import annotations

from typing import Literal, get_args

import cv2
import numpy as np

__all__ = ["MAX_DEPTH_MM", "ChannelOrder", "DepthEncoding", "depth_image"]

DepthEncoding = Literal["jet", "normalized", "raw"]
ChannelOrder = Literal["rgb", "bgr"]
MAX_DEPTH_MM = 10_000
"""What lies farther is shown as this far."""


def depth_image(depth_mm: np.ndarray, *, encoding: DepthEncoding = "jet", order: ChannelOrder = "rgb") -> np.ndarray:
    """Show a depth frame as an image.

    * ``jet``: depths above ``min(3 median, 10000)`` become that, the frame's own minimum and maximum become 0 and 255 (rounded to the
      nearest), and these levels get OpenCV's JET colours, blue near and red far: the input of ViPT and its descendants.
    * ``normalized``: the same levels, three equal channels.
    * ``raw``: ``255 depth / 10000``, three equal channels: the same depth has the same level in every frame.

    Holes are nearest of all in every encoding, as in the published code: they count in median and minimum and get level 0 (``jet``:
    dark blue). Only where more than half of the frame is holes, so that the median is 0 and the published rule would erase the frame,
    the median is that of the measured pixels. A frame of one depth is level 0 everywhere (``raw`` excepted).

    Args:
        depth_mm: ``[H, W]`` uint16 millimetres; it is not changed.
        encoding: see above.
        order: of the channels of ``jet``; ``bgr`` for weights that were trained or tested in the published VOT wrapper's order.

    Returns:
        ``[H, W, 3]`` uint8.

    Raises:
        ValueError: the frame is not 16-bit and two-dimensional, is empty, or encoding or order is unknown.
    """
    if encoding not in get_args(DepthEncoding) or order not in get_args(ChannelOrder):
        raise ValueError(
            f"depth encoding {encoding!r}, order {order!r}; expected one of {get_args(DepthEncoding)} and one of {get_args(ChannelOrder)}"
        )
    if depth_mm.dtype != np.uint16 or depth_mm.ndim != 2:
        hint = ""
        if depth_mm.dtype == np.uint8:
            hint = "; 8-bit is a picture of depth rather than depth: read the PNG with cv2.IMREAD_UNCHANGED"
        elif np.issubdtype(depth_mm.dtype, np.floating):
            hint = "; turn metres into millimetres: np.rint(1000 * metres).astype(np.uint16)"
        raise ValueError(f"depth is {depth_mm.dtype} {list(depth_mm.shape)}; expected uint16 [H, W] in millimetres{hint}")
    if not depth_mm.size:
        raise ValueError(f"depth is empty, {list(depth_mm.shape)}; expected at least one pixel")
    if encoding == "raw":
        levels = cv2.convertScaleAbs(np.minimum(depth_mm, np.uint16(MAX_DEPTH_MM)), alpha=255 / MAX_DEPTH_MM)
        return np.repeat(levels[..., None], 3, 2)
    median = float(np.median(depth_mm))
    if median == 0 and (measured := depth_mm[depth_mm > 0]).size:
        median = float(np.median(measured))
    clipped = np.minimum(depth_mm, np.uint16(min(3 * median, MAX_DEPTH_MM)))
    # 16-bit in and out, so that it rounds as the published code does.
    levels = cv2.normalize(clipped, np.empty_like(clipped), 0, 255, cv2.NORM_MINMAX).astype(np.uint8)
    if encoding == "normalized":
        return np.repeat(levels[..., None], 3, 2)
    colors = cv2.applyColorMap(levels, cv2.COLORMAP_JET)
    return colors if order == "bgr" else np.ascontiguousarray(colors[..., ::-1])
