"""Draw one window of the DAVIS cars recording in every representation, for docs/events.md.

Example:
    python experiments/draw_representations.py --out docs/pictures/event_representations.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np

from srft.data.davis_cars import load_recording
from srft.data.events import REPRESENTATIONS, represent
from srft.data.events.windows import interval_edges, window_slices
from srft.files import write_bytes

FRAME = 40
ROWS, COLUMNS, ZOOM = slice(150, 230), slice(170, 326), 3


def drawn(name: str, array: np.ndarray) -> np.ndarray:
    """A picture of a representation.

    Args:
        name: of the representation.
        array: its value.

    Returns:
        ``[H, W, 3]`` uint8 RGB: images as they are; two planes as blue and red; of a voxel grid the first, middle and last bin as channels.
    """
    if array.dtype == np.uint8:
        return array
    if name == "voxel_grid":
        chosen = array[[0, len(array) // 2, -1]]
        return np.clip(127.5 + 127.5 * chosen / max(1.0, np.abs(chosen).max() / 2), 0, 255).astype(np.uint8).transpose(1, 2, 0)
    planes = 255 * array / max(1e-9, array.max())
    return np.stack([planes[1], np.zeros_like(planes[0]), planes[0]], axis=2).astype(np.uint8)


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="PNG file")
    out = parser.parse_args().out
    recording = load_recording()
    height, width = recording.frames.shape[1:]
    start, stop = interval_edges(recording.frame_times)[FRAME].tolist()
    events = recording.events[window_slices(recording.events["t"], np.array([[start, stop]]))[0]]
    tiles = []
    for name in REPRESENTATIONS:
        image = drawn(name, represent(name, events, height, width, start=start, stop=stop))
        image = cv2.resize(image[ROWS, COLUMNS], None, fx=ZOOM, fy=ZOOM, interpolation=cv2.INTER_NEAREST)
        tile = cv2.copyMakeBorder(image, 24, 0, 4, 4, cv2.BORDER_CONSTANT, value=(255, 255, 255))
        cv2.putText(tile, name, (6, 17), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
        tiles.append(tile)
    rows = [np.concatenate(tiles[i : i + 3], axis=1) for i in (0, 3)]
    write_bytes(out, cv2.imencode(".png", np.concatenate(rows)[..., ::-1])[1].tobytes())


if __name__ == "__main__":
    main()
