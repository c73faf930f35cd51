"""Frames that are made when they are asked for: of videos, and of event recordings."""

from __future__ import annotations

import functools
import os
import threading
from collections import OrderedDict
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from srft.data.benchmarks.layouts import DataError
from srft.data.events import represent
from srft.data.events.aedat4 import FrameClock, frame_clock, open_aedat4
from srft.data.events.windows import interval_edges, window_slices
from srft.data.images import StoredImage
from srft.data.video import VideoFrames

__all__ = ["EventImages", "Made", "VideoFile"]


class Made:
    """Frames that are not images on the disk: encoded when an encoded image is asked for."""

    def __getitem__(self, index: int) -> np.ndarray:
        raise NotImplementedError

    def where(self, index: int) -> str:
        """Place of a frame, for messages.

        Args:
            index: of the frame.

        Returns:
            A file, and where in it.
        """
        raise NotImplementedError

    def stored(self, index: int) -> StoredImage:
        """The frame as a PNG.

        Args:
            index: of the frame.

        Returns:
            The image.
        """
        image = cv2.cvtColor(self[index], cv2.COLOR_RGB2BGR)
        return StoredImage(cv2.imencode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1], "image", self.where(index))


class _OfFile(Made):
    # Frames of one file, from its frame number first on.
    def __init__(self, path: Path, count: int, first: int = 0) -> None:
        self.path, self.first, self._count = path, first, count

    def __len__(self) -> int:
        return self._count

    def where(self, index: int) -> str:
        """Place of a frame.

        Args:
            index: of the frame.

        Returns:
            File and frame.
        """
        return f"{self.path}, frame {self.first + index}"


class VideoFile(_OfFile):
    """A video; going through it in order decodes each frame once, anything else seeks."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, len(_video(path, _stamp(path), os.getpid())))

    def __getitem__(self, index: int) -> np.ndarray:
        return _video(self.path, _stamp(self.path), os.getpid())[index]


@functools.lru_cache(maxsize=8)
def _video(path: Path, stamp: tuple[int, int], process: int) -> VideoFrames:
    # By process: a place in a file must not be shared with forked workers.
    return VideoFrames(path)


def _stamp(path: Path) -> tuple[int, int]:
    # Changes with the file, which another may take the place of while a process lives.
    about = path.stat()
    return about.st_mtime_ns, about.st_size


class EventImages(_OfFile):
    """Event images of a recording with frames. Recordings stay in memory while there is room for them: pack what is used often.

    Raises:
        DataError: the recording ends before the first image of the sequence, or does not say how long frames were exposed.
    """

    def __init__(self, path: Path, representation: str, first: int) -> None:
        exposures = _RECORDINGS.of(path).clock.exposures
        super().__init__(path, len(exposures) - first, first)
        self.representation = representation
        if self._count < 1:
            raise DataError(f"{path}: {len(exposures)} frames, and the sequence starts at frame {first}; expected more frames")
        if representation == "red_blue" and not np.diff(exposures).any():
            raise DataError(f"{path}: does not say how long its frames were exposed; expected an AEDAT 4 file that does")

    def __getitem__(self, index: int) -> np.ndarray:
        recording = _RECORDINGS.of(self.path)
        clock = recording.clock
        edges = clock.exposures if self.representation == "red_blue" else interval_edges(clock.cuts(self.representation))
        edge = edges[self.first + index]
        events = recording.events[window_slices(recording.events["t"], edge[None])[0]]
        return represent(self.representation, events, *recording.size, start=int(edge[0]), stop=int(edge[1]))


class _Events(NamedTuple):
    events: np.ndarray
    clock: FrameClock
    size: tuple[int, int]


class _Recordings:
    # The newest ones that were asked for, as many as there is room for; each is read once, however many threads ask.
    def __init__(self, room: int) -> None:
        self.room = room
        self._kept: OrderedDict[tuple[Path, tuple[int, int]], _Events] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, path: Path) -> _Events:
        key = path, _stamp(path)
        with self._lock:
            if key not in self._kept:
                self._kept[key] = _read(path)
            self._kept.move_to_end(key)
            while len(self._kept) > 1 and sum(found.events.nbytes for found in self._kept.values()) > self.room:
                self._kept.popitem(last=False)
            return self._kept[key]


def _read(path: Path) -> _Events:
    # Without the pixels of its frames, which may be coloured and take the most memory: only their times matter.
    stream = open_aedat4(path)
    return _Events(stream.whole(sort=True), frame_clock(path), (stream.height or 0, stream.width or 0))


_RECORDINGS = _Recordings(2**30)
