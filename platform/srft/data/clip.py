"""A video to track in: RGB frames and, frame by frame beside them, images of another sensor."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from srft.data import davis_cars
from srft.data.events import open_events, read_aedat4, read_events, represent
from srft.data.events.aedat4 import frame_clock
from srft.data.events.recording import Recording
from srft.data.events.windows import interval_edges, window_slices
from srft.data.frames import Frame
from srft.data.sequence import FrameSource
from srft.data.video import Pixels, VideoFrames, open_frames

__all__ = ["Clip", "EventImages", "open_clip", "shipped_clip"]

_SHIPPED = "davis_cars:"
_FPS = 30.0


class EventImages:
    """The events since the frame before, as an image for each frame."""

    def __init__(self, recording: Recording, frame_times: np.ndarray, *, representation: str = "polarity") -> None:
        """Cut a recording into windows.

        Args:
            recording: its events and the size of its sensor.
            frame_times: ``[T]`` microseconds on the recording's clock.
            representation: ``polarity``, ``red_blue`` or ``three_windows``, see :mod:`srft.data.events.representations`.
        """
        self._events, self._edges = recording.events, interval_edges(frame_times)
        self._windows = window_slices(recording.events["t"], self._edges)
        self._height, self._width = recording.frames.shape[1:]
        self._representation = representation

    def __len__(self) -> int:
        return len(self._windows)

    def __getitem__(self, index: int, /) -> np.ndarray:
        """Draw a window.

        Args:
            index: of the frame.

        Returns:
            ``[H, W, 3]`` uint8.
        """
        start, stop = self._edges[index].tolist()
        window = self._events[self._windows[index]]
        return represent(self._representation, window, self._height, self._width, start=start, stop=stop)


@dataclass(frozen=True, kw_only=True)
class Clip:
    """Frames of one camera or of two that look the same way.

    Raises:
        ValueError: the two have different numbers of frames.
    """

    name: str
    frames: FrameSource
    """``[H, W, 3]``, or ``[H, W, 6]`` with the auxiliary images."""
    aux: FrameSource | None = None
    """Auxiliary images ``[H, W, 3]``, paired with the frames by position."""
    fps: float = _FPS
    box: np.ndarray | None = None
    """``[4]`` ltwh: the target in frame 0, where it is known."""

    def __post_init__(self) -> None:
        if self.aux is not None and len(self.aux) != len(self.frames):
            raise ValueError(
                f"{self.name}: {len(self.frames)} frames come with {len(self.aux)} auxiliary images; they are paired by position, "
                "expected as many. Remove the frames or images that have no partner"
            )

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def has_aux(self) -> bool:
        """Whether there are auxiliary images."""
        return self.aux is not None or self.frames[0].shape[2] == 6

    def frame(self, index: int) -> Frame:
        """One frame with its auxiliary image.

        Args:
            index: from 0.

        Returns:
            See :data:`srft.data.frames.Frame`.
        """
        return self.frames[index] if self.aux is None else (self.frames[index], self.aux[index])


def shipped_clip(name: str) -> Clip:
    """One of the cars that ship with the package.

    Args:
        name: ``davis_cars:`` and a name or number of a sequence.

    Returns:
        Frames, events as images, and the box of the target.

    Raises:
        ValueError: there is no such sequence.
    """
    which, sequences = name.removeprefix(_SHIPPED), davis_cars.load()
    names = [sequence.name.rpartition("/")[2] for sequence in sequences]
    numbers = [str(i) for i in range(len(names))]
    if which not in names + numbers:
        raise ValueError(f"no sequence {name!r} ships with the package; expected {_SHIPPED} and one of {', '.join(names + numbers)}")
    sequence = sequences[(names + numbers).index(which) % len(names)]
    return Clip(name=sequence.name, frames=sequence.frames, fps=25.0, box=sequence.boxes[0])


def open_clip(
    video: str,
    *,
    aux: str | Path | None = None,
    aux_pixels: Pixels = "picture",
    events: Path | None = None,
    times: Path | None = None,
    fps: float | None = None,
    representation: str = "polarity",
) -> Clip:
    """Open what is to be tracked.

    Args:
        video: a video file, a folder of images, an AEDAT 4 recording with frames, or a shipped sequence such as ``davis_cars:0``.
        aux: video file or folder of the other sensor, aligned and as many frames.
        aux_pixels: what the images of ``aux`` show.
        events: recording of an event camera that sees what the frames see, pixel for pixel.
        times: text file with the time of each frame on the clock of the events, microseconds, one a line. Without it the first frame's
            interval starts with the first event and frames follow at ``fps``.
        fps: frames per second; the video file's own, else 30.
        representation: of the events.

    Returns:
        The clip.

    Raises:
        ValueError: something is missing, does not fit together, or contradicts.
    """
    if aux and events:
        raise ValueError(f"both auxiliary images {aux} and events {events} are given; expected one auxiliary modality")
    if times and not events:
        raise ValueError(f"{times}: times of frames are given without events; expected --events, too")
    if video.startswith(_SHIPPED):
        if aux or events:
            raise ValueError(f"{video} brings its events with it; leave {aux or events} out")
        return shipped_clip(video)
    path = Path(video)
    if path.suffix.lower() == ".aedat4":
        if aux or events:
            raise ValueError(f"{path} is a recording that brings its events with it; leave {aux or events} out")
        recording = read_aedat4(path)
        own = 1e6 / float(np.median(np.diff(recording.frame_times))) if len(recording.frames) > 1 else _FPS
        images = EventImages(recording, frame_clock(path).cuts(representation), representation=representation)
        return Clip(name=path.stem, frames=_Grey(recording.frames), aux=images, fps=fps or own)
    frames = open_frames(path)
    rate = fps or (frames.fps if isinstance(frames, VideoFrames) else _FPS)
    if events:
        # A video has a rate of its own, whatever the one is that is asked for; pictures are given theirs.
        taken = frames.fps if isinstance(frames, VideoFrames) else rate
        beside = _beside(frames, events, _frame_times(times, len(frames)), taken, representation)
        return Clip(name=path.stem, frames=frames, aux=beside, fps=rate)
    return Clip(name=path.stem, frames=frames, aux=open_frames(aux, pixels=aux_pixels) if aux else None, fps=rate)


class _Grey:
    def __init__(self, frames: np.ndarray) -> None:
        self._frames = frames

    def __len__(self) -> int:
        return len(self._frames)

    def __getitem__(self, index: int, /) -> np.ndarray:
        return np.repeat(self._frames[index][..., None], 3, 2)


def _beside(frames: FrameSource, events: Path, times: np.ndarray | None, fps: float, representation: str) -> EventImages:
    size, known = frames[0].shape[:2], open_events(events).width is not None
    recording = read_events(events, size=None if known else (size[1], size[0]))
    if not len(recording.events):
        raise ValueError(f"{events}: there is no event in it")
    if times is None:
        first = int(recording.events["t"][0])
        times = first + np.rint(np.arange(1, len(frames) + 1) * 1e6 / fps).astype(np.int64)
    if size != (sensor := recording.frames.shape[1:]):
        raise ValueError(
            f"{events}: its sensor has {sensor[1]}x{sensor[0]} pixels, the frames {size[1]}x{size[0]}; expected the same pixels. "
            "Align them, and write the events as images for --aux"
        )
    return EventImages(recording, times, representation=representation)


def _frame_times(path: Path | None, count: int) -> np.ndarray | None:
    if path is None:
        return None
    lines = path.read_text().split()
    try:
        times = np.array([int(line) for line in lines], np.int64)
    except ValueError as error:
        raise ValueError(f"{path}: {error}; expected one whole number of microseconds a line") from None
    if len(times) != count:
        raise ValueError(f"{path}: {len(times)} times for {count} frames; expected one a frame")
    return times
