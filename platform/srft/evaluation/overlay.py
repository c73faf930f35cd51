"""A tracked frame as a picture: what the tracker saw of each sensor, and its box and score on it."""

from __future__ import annotations

import cv2
import numpy as np

from srft.data.frames import Frame, split_frame

_BOX, _TEXT = (80, 255, 80), (255, 255, 255)


def overlay(frame: Frame, box: np.ndarray, caption: str = "", *, aux: bool = False) -> np.ndarray:
    """Draw a box on a frame.

    Args:
        frame: see :data:`srft.data.frames.Frame`; it is not changed.
        box: ``[4]`` ltwh in pixels.
        caption: written in the upper left corner.
        aux: draw the auxiliary image, too, to the right of the RGB frame; a missing one is black.

    Returns:
        ``[H, W, 3]`` or ``[H, 2 W, 3]`` uint8 RGB.
    """
    parts = split_frame(frame, caption or "frame")
    panels = np.zeros((parts.height, parts.width * (1 + aux), 3), np.uint8)
    for channel, image in parts.images:
        for panel in range(channel // 3, min(channel // 3 + image.shape[2] // 3, 1 + aux)):
            start = 3 * panel - channel
            panels[:, panel * parts.width : (panel + 1) * parts.width] = image[..., start : start + 3]
    thick = max(1, round(min(parts.height, parts.width) / 200))
    left, top, right, bottom = (round(v) for v in (box[0], box[1], box[0] + box[2], box[1] + box[3]))
    for shift in range(0, panels.shape[1], parts.width):
        cv2.rectangle(panels, (left + shift, top), (right + shift, bottom), _BOX, thick)
    if caption:
        size = max(0.4, parts.height / 700)
        at = (4, round(4 + 22 * size))
        cv2.putText(panels, caption, at, cv2.FONT_HERSHEY_SIMPLEX, size, (0, 0, 0), 3 * thick, cv2.LINE_AA)
        cv2.putText(panels, caption, at, cv2.FONT_HERSHEY_SIMPLEX, size, _TEXT, thick, cv2.LINE_AA)
    return panels
