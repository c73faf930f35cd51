"""The real test set that ships with the package: three cars in one DAVIS346 recording, frames and events.

Source, licence and how the boxes were made are in ``srft/assets/davis_cars/README.md``.
"""

from __future__ import annotations

import zipfile
from importlib import resources
from importlib.resources.abc import Traversable

import numpy as np

from srft.data.events import EVENT_DTYPE, Recording, frame_windows, polarity_image
from srft.data.sequence import Sequence

__all__ = ["SEQUENCES", "load", "load_recording"]

SEQUENCES = {
    "light_hatchback": ("scale change", "background clutter"),
    "white_sedan": ("small target", "look-alike"),
    "dark_car": ("low light", "scale change", "partial occlusion"),
}
"""The sequences and their challenges."""

_REMEDY = "install srft again, or write it with experiments/annotate_davis_cars.py"


def _asset(name: str, folder: Traversable | None) -> Traversable:
    file = (folder or resources.files("srft") / "assets" / "davis_cars") / name
    if not file.is_file():
        raise ValueError(f"{file}: missing; {_REMEDY}")
    return file


def load_recording(folder: Traversable | None = None) -> Recording:
    """The whole recording.

    Args:
        folder: where ``recording.npz`` is; the package's own when None.

    Returns:
        59 frames ``[59, 260, 346]`` and 78,830 events; time 0 is the first frame.

    Raises:
        ValueError: the file is missing or damaged.
    """
    file = _asset("recording.npz", folder)
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            events = np.empty(len(arrays["t"]), EVENT_DTYPE)
            for name in ("t", "x", "y", "p"):
                events[name] = arrays[name]
            return Recording(frames=arrays["street"] + arrays["change"], frame_times=arrays["frame_times"], events=events)
    except (zipfile.BadZipFile, KeyError, ValueError, EOFError, OSError) as error:
        raise ValueError(f"{file}: damaged ({error}); {_REMEDY}") from error


def load(folder: Traversable | None = None) -> list[Sequence]:
    """The three annotated sequences.

    Args:
        folder: where recording and annotations are; the package's own when None.

    Returns:
        Sequences named ``davis_cars/...`` in the order of :data:`SEQUENCES`. Their frames are views ``[T, 260, 346, 6]`` uint8 of one
        array: grey as RGB, then the polarity image of the events since the frame before.

    Raises:
        ValueError: a file is missing, damaged or does not fit the recording; the message names it.
    """
    recording = load_recording(folder)
    count, height, width = recording.frames.shape
    stack = np.empty((count, height, width, 6), np.uint8)
    stack[..., :3] = recording.frames[..., None]
    for frame, window in enumerate(frame_windows(recording.events["t"], recording.frame_times)):
        stack[frame, ..., 3:] = polarity_image(recording.events[window], height, width)

    sequences = []
    for name, attributes in SEQUENCES.items():
        file = _asset(f"{name}.csv", folder)
        lines = file.read_text().splitlines()
        if not lines or lines[0] != "frame,left,top,width,height,absent":
            raise ValueError(f"{file}: first line is {lines[:1]}; expected frame,left,top,width,height,absent; {_REMEDY}")
        try:
            table = np.array([line.split(",") for line in lines[1:]], dtype=np.float64).reshape(-1, 6)
        except ValueError as error:
            raise ValueError(f"{file}: a row is not six numbers ({error}); {_REMEDY}") from error
        frames = table[:, 0].astype(int)
        if not len(frames) or frames[0] < 0 or frames[-1] >= count or np.any(np.diff(frames) != 1):
            raise ValueError(
                f"{file}: frames {frames[:3].tolist()} to {frames[-1:].tolist()}; expected consecutive ones in 0 to {count - 1}"
            )
        view = stack[frames[0] : frames[-1] + 1]
        sequences.append(
            Sequence(name=f"davis_cars/{name}", frames=view, boxes=table[:, 1:5].copy(), absent=table[:, 5] != 0, attributes=attributes)
        )
    return sequences
