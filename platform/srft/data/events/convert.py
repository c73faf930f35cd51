"""From a recording to one image per frame: what is in it, when its frames are, and images written one by one."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from srft.data.events.recording import EventStream
from srft.data.events.representations import represent
from srft.files import aside, write_bytes, write_json

__all__ = ["MANIFEST", "Summary", "read_frame_times", "summarize", "write_windows"]

MANIFEST = "events.json"
_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What one pass over a recording finds."""

    format: str
    width: int
    height: int
    events: int
    brighter: int
    """Events of positive polarity."""
    first: int
    """Time of the first event, microseconds; 0 without events."""
    last: int
    """Time of the last event."""

    @property
    def seconds(self) -> float:
        """From the first event to the last."""
        return (self.last - self.first) * 1e-6


def summarize(stream: EventStream, chunks: Iterable[np.ndarray]) -> Summary:
    """Count the events of a recording.

    Args:
        stream: the recording.
        chunks: its events, sorted.

    Returns:
        The summary. A sensor whose size the file does not say reaches to the last row and column with an event.
    """
    events = brighter = width = height = last = 0
    first: int | None = None
    for chunk in chunks:
        events, brighter = events + len(chunk), brighter + int(np.count_nonzero(chunk["p"]))
        first, last = int(chunk["t"][0]) if first is None else first, int(chunk["t"][-1])
        if stream.width is None:
            width, height = max(width, int(chunk["x"].max()) + 1), max(height, int(chunk["y"].max()) + 1)
    if stream.width is not None and stream.height is not None:
        width, height = stream.width, stream.height
    return Summary(format=stream.format, width=width, height=height, events=events, brighter=brighter, first=first or 0, last=last)


def read_frame_times(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Frame times from a text file: one a line, or start and end of an exposure, separated by a comma or spaces.

    Whole numbers are microseconds; if any is written as a fraction, all are seconds. Empty lines, lines that start with ``#`` and a first
    line of words are skipped.

    Args:
        path: the file.

    Returns:
        Times ``[T]`` int64 microseconds (of exposures, their middle) and exposures ``[T, 2]`` or None.

    Raises:
        ValueError: a line holds something else or another number of values, times decrease, or there are none.
    """
    rows: list[list[int]] = []
    lines = ((number, line.strip()) for number, line in enumerate(path.read_text().splitlines(), 1))
    held = [(number, line, re.split(r"[,;\s]+", line.rstrip(",;"))) for number, line in lines if line.rstrip(",;") and line[0] != "#"]
    held = list(itertools.dropwhile(lambda row: re.fullmatch(r"[A-Za-z_]\w*", row[2][0]), held))
    seconds = any(re.search(r"[.eE]", word) for _, _, words in held for word in words)
    for number, line, words in held:
        try:
            values = [round(float(word) * 1e6) if seconds else int(word) for word in words]
        except (ValueError, OverflowError) as error:
            raise ValueError(f"{path}: line {number} is {line!r}; expected a time, or start and end of an exposure") from error
        if len(values) not in (1, 2) or len(values) != len(rows[0] if rows else values):
            raise ValueError(f"{path}: line {number} has {len(values)} values; expected {len(rows[0]) if rows else '1 or 2'}")
        if values != sorted(values) or (rows and any(now < before for now, before in zip(values, rows[-1], strict=True))):
            raise ValueError(f"{path}: line {number} is {values} after {rows[-1] if rows else 'nothing'}; expected times in order")
        rows.append(values)
    if not rows:
        raise ValueError(f"{path}: holds no frame times; expected one a line, in microseconds")
    table = np.array(rows, np.int64)
    return (table[:, 0], None) if table.shape[1] == 1 else (table[:, 0] + (table[:, 1] - table[:, 0]) // 2, table)


def write_windows(
    windows: Iterable[np.ndarray],
    edges: np.ndarray | None,
    out: Path,
    *,
    representation: str,
    settings: dict[str, Any],
    height: int,
    width: int,
    total: int,
    source: dict[str, Any],
) -> Iterator[tuple[int, bool]]:
    """Write each window's representation, images as PNG and planes as ``.npy``, beside a manifest; files that are there stay.

    Args:
        windows: events of each frame.
        edges: ``[T, 2]`` start and stop of each window; None: from its first to its last event.
        out: folder.
        representation: one of :data:`srft.data.events.REPRESENTATIONS`.
        settings: of the representation.
        height: rows of the sensor.
        width: columns of the sensor.
        total: T, number of windows.
        source: what the windows came from, for the manifest.

    Yields:
        For each frame its number of events and whether its file was written now. A folder of another recording or other settings is a
        ValueError.
    """
    manifest = {
        "representation": representation,
        "settings": settings,
        "height": height,
        "width": width,
        "frames": total,
        "windows": None if edges is None else np.asarray(edges).tolist(),
        **source,
    }
    _claim(out, manifest)
    digits = max(4, len(str(total - 1)))
    for i, events in enumerate(windows):
        stem = out / f"frame{i:0{digits}d}"
        present = any(stem.with_suffix(suffix).is_file() for suffix in (".png", ".npy"))
        if not present:
            start, stop = (None, None) if edges is None else edges[i].tolist()
            _write(represent(representation, events, height, width, start=start, stop=stop, **settings), stem)
        yield len(events), not present


def _claim(out: Path, manifest: dict[str, Any]) -> None:
    import json

    path = out / MANIFEST
    if path.is_file():
        try:
            found = json.loads(path.read_text())
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}: is no JSON ({error}); remove the folder") from error
        other = [key for key in manifest if found.get(key) != manifest[key]]
        if other:
            shown = ", ".join(f"{key} {str(found.get(key))[:60]} instead of {str(manifest[key])[:60]}" for key in other[:_SHOWN])
            raise ValueError(f"{path}: these images were made otherwise ({shown}); choose another folder or remove this one")
    elif out.is_dir() and any(out.glob("frame*")):
        raise ValueError(f"{out}: holds frames but no {MANIFEST}; choose another folder")
    else:
        write_json(path, manifest)


def _write(array: np.ndarray, stem: Path) -> None:
    if array.dtype == np.uint8:
        import cv2

        write_bytes(stem.with_suffix(".png"), cv2.imencode(".png", np.ascontiguousarray(array[..., ::-1]))[1].tobytes())
    else:
        with aside(stem.with_suffix(".npy")) as temporary:
            np.save(temporary, array)
