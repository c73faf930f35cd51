"""What an event camera recorded: events as one structured array, recordings whole or in pieces, and what makes them valid."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

__all__ = ["EVENT_DTYPE", "EventStream", "Recording"]

EVENT_DTYPE = np.dtype([("t", "<i8"), ("x", "<u2"), ("y", "<u2"), ("p", "?")])
"""One event: time in microseconds, column, row, and polarity (True where the pixel became brighter)."""


@dataclass(frozen=True, kw_only=True)
class Recording:
    """What a frame-and-event camera recorded, in memory. An event camera without frames has none of them: ``T`` is 0."""

    frames: np.ndarray
    """``[T, H, W]`` uint8, grey. H and W are the size of the sensor."""
    frame_times: np.ndarray
    """``[T]`` int64 microseconds, increasing: the middle of the exposures."""
    events: np.ndarray
    """``[N]`` of :data:`EVENT_DTYPE`, sorted by time; on the clock of the frames."""
    exposures: np.ndarray | None = None
    """``[T, 2]`` int64 microseconds, start and end of each frame's exposure, where the file knows them."""


@dataclass(frozen=True, kw_only=True)
class EventStream:
    """A recording on disk that is read in pieces, for files larger than memory."""

    path: Path
    format: str
    """What the file is, such as ``EVT 3.0``."""
    height: int | None
    """Rows of the sensor; None where the file does not say."""
    width: int | None
    """Columns of the sensor; None where the file does not say."""
    pieces: Callable[[], Iterator[tuple[np.ndarray, np.ndarray | None]]]
    """Starts reading: pairs of events as they are in the file and their byte offsets (None: the file has no such thing)."""

    def chunks(self, *, any_order: bool = False) -> Iterator[np.ndarray]:
        """Read the file once from its start, checking it.

        Args:
            any_order: let times decrease, for a caller who sorts.

        Yields:
            ``[N]`` of :data:`EVENT_DTYPE`, sorted by time within and between chunks unless ``any_order``; never empty.

        Raises:
            ValueError: the file is damaged or cut off, times decrease, or an event is outside the sensor; the message names file,
                event and offset.
        """
        last, count = np.iinfo(np.int64).min, 0
        for events, offsets in self.pieces():
            if not len(events):
                continue
            times = np.ascontiguousarray(events["t"])

            def at(i: int, before: int = count, offsets: np.ndarray | None = offsets) -> str:
                return f"{self.path}: event {before + i}" + ("" if offsets is None else f" at byte {int(offsets[i])}")

            late = np.diff(times) < 0
            if not any_order and (times[0] < last or late.any()):
                i = 0 if times[0] < last else int(np.argmax(late)) + 1
                raise ValueError(
                    f"{at(i)}: its time is {times[i]}, before {times[i - 1] if i else last} of the event before; expected times that do "
                    "not decrease. Fetch the file again, or sort it: read_events(..., sort=True), srft events --sort"
                )
            for name, limit in (("x", self.width), ("y", self.height)):
                if limit is not None and events[name].max() >= limit:
                    i = int(np.argmax(events[name] >= limit))
                    raise ValueError(
                        f"{at(i)}: {name} is {events[name][i]}; expected less than {limit}, the sensor is {self.width}x{self.height}"
                    )
            last, count = int(times[-1]), count + len(events)
            yield events

    def whole(self, *, sort: bool = False) -> np.ndarray:
        """All events, in memory.

        Args:
            sort: put them in order of time instead of refusing a file where they are not.

        Returns:
            ``[N]`` of :data:`EVENT_DTYPE`, sorted by time. What :meth:`chunks` refuses is a ValueError.
        """
        parts = list(self.chunks(any_order=sort))
        events = np.concatenate(parts) if parts else np.empty(0, EVENT_DTYPE)
        return events[np.argsort(events["t"], kind="stable")] if sort else events
