"""Frames on disk, decoded when they are asked for: folders of images, videos, and event recordings of which images are made.

Opening a sequence touches no image. The first frame lists the folders and checks their counts; names are kept as one byte array.
"""

from __future__ import annotations

import functools
import os
import re
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np

from srft.data.benchmarks.layouts import IMAGE_SUFFIXES, VIDEO_SUFFIXES, DataError, EventFile, Frames, Images, Kind, Video
from srft.data.depth import depth_image
from srft.data.events import Recording, read_events, represent
from srft.data.events.windows import interval_edges, window_slices
from srft.data.thermal import thermal_image

__all__ = ["ImageFiles", "ImageSource", "NativeFrames", "decode_image", "natural_order", "open_source", "read_image"]


class ImageSource(Protocol):
    """The frames of one modality."""

    def __len__(self) -> int:
        """Number of frames."""
        ...

    def __getitem__(self, index: int, /) -> np.ndarray:
        """Frame ``[H, W, 3]`` uint8 RGB."""
        ...

    def where(self, index: int) -> str:
        """File of a frame, for messages."""
        ...


def natural_order(name: str) -> tuple[list[int], str]:
    """Sorts file names by the numbers in them, whatever stands around: v9.jpg before v10.jpg, 00001i.jpg before 00002i.jpg.

    Args:
        name: of a file.

    Returns:
        A key to sort by.
    """
    return [int(number) for number in re.findall(r"[0-9]+", name.rpartition(".")[0])], name


def decode_image(data: bytes, kind: Kind, where: str) -> np.ndarray:
    """Decode an image of a modality and show it as RGB.

    Args:
        data: content of the file.
        kind: depth is shown as a JET colour map (:func:`srft.data.depth.depth_image`), thermal as grey or as it is
            (:func:`srft.data.thermal.thermal_image`), RGB and event images as they are.
        where: the file's name, for messages.

    Returns:
        ``[H, W, 3]`` uint8.

    Raises:
        DataError: the file is cut off, is no image, or is none of this kind.
    """
    if not data:
        raise DataError(f"{where}: empty; expected an image. Fetch the file again")
    if _cut_off(data):
        raise DataError(f"{where}: cut off after {len(data)} bytes; expected a whole image. Fetch the file again")
    raw = kind in ("depth", "thermal")
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED if raw else cv2.IMREAD_COLOR_RGB)
    if image is None:
        raise DataError(f"{where}: not a readable image (it starts with {data[:8]!r}). Fetch the file again")
    if not raw:
        return image
    try:
        if kind == "depth":
            return depth_image(image)
        return thermal_image(np.ascontiguousarray(image[..., 2::-1]) if image.ndim == 3 else image)
    except ValueError as error:
        raise DataError(f"{where}: {error}") from error


def _cut_off(data: bytes) -> bool:
    # Decoders fill what a truncated JPEG or PNG lacks with grey, without an error. Inside its data a JPEG has no end marker.
    if data.startswith(b"\xff\xd8"):
        return data.rfind(b"\xff\xd9") <= data.rfind(b"\xff\xda")
    if data.startswith(b"\x89PNG"):
        return data.rfind(b"IEND") < 0
    return data.startswith(b"BM") and int.from_bytes(data[2:6], "little") > len(data)


def read_image(path: Path, kind: Kind) -> np.ndarray:
    """Read an image file, see :func:`decode_image`.

    Args:
        path: the file.
        kind: its modality.

    Returns:
        ``[H, W, 3]`` uint8 RGB.

    Raises:
        DataError: the file cannot be read. So is one that is not a whole image of this kind.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; expected an image") from error
    return decode_image(data, kind, str(path))


class ImageFiles:
    """A folder of images in natural order.

    Raises:
        DataError: the folder has no images, or their number is no multiple of the images per frame.
    """

    def __init__(self, folder: Path, kind: Kind, per_frame: int = 1) -> None:
        names = [name for name in os.listdir(folder) if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")]
        if not names or len(names) % per_frame:
            raise DataError(f"{folder}: {len(names)} images; expected {per_frame} a frame. Fetch the folder again")
        self.folder, self.kind, self.per_frame = folder, kind, per_frame
        self._names = np.array([os.fsencode(name) for name in sorted(names, key=natural_order)])

    def __len__(self) -> int:
        return len(self._names) // self.per_frame

    def path(self, index: int, part: int = 0) -> Path:
        """A file.

        Args:
            index: of the frame.
            part: which of the images of the frame.

        Returns:
            Its path.
        """
        return self.folder / os.fsdecode(self._names[index * self.per_frame + part])

    def where(self, index: int) -> str:
        """File of a frame.

        Args:
            index: of the frame.

        Returns:
            Its path.
        """
        return str(self.path(index))

    def __getitem__(self, index: int) -> np.ndarray:
        images = [read_image(self.path(index, part), self.kind) for part in range(self.per_frame)]
        return images[0] if self.per_frame == 1 else np.stack([image[..., 0] for image in images], 2)


class VideoFile:
    """A video; going through it in order decodes each frame once, anything else seeks.

    Raises:
        DataError: the file is no readable video.
    """

    def __init__(self, path: Path, kind: Kind) -> None:
        self.path, self.kind = path, kind
        capture = _capture(path, os.getpid())
        self._count = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        if self._count < 1:
            raise DataError(f"{path}: no readable video; expected a file that FFmpeg decodes. Make a folder of images of it")

    def __len__(self) -> int:
        return self._count

    def where(self, index: int) -> str:
        """Place of a frame.

        Args:
            index: of the frame.

        Returns:
            File and frame.
        """
        return f"{self.path}, frame {index}"

    def __getitem__(self, index: int) -> np.ndarray:
        capture = _capture(self.path, os.getpid())
        if int(capture.get(cv2.CAP_PROP_POS_FRAMES)) != index:
            capture.set(cv2.CAP_PROP_POS_FRAMES, index)
        found, image = capture.read()
        if not found:
            raise DataError(f"{self.where(index)}: cannot be decoded; the file says it has {self._count} frames. Encode it again")
        return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


@functools.lru_cache(maxsize=8)
def _capture(path: Path, process: int) -> cv2.VideoCapture:
    # By process: a file position must not be shared with forked workers.
    return cv2.VideoCapture(str(path))


class EventImages:
    """Event images of a recording with frames. One recording is in memory at a time: go through sequences one by one, or pack them.

    Raises:
        DataError: the recording starts after the first image of the sequence, or does not say when frames were exposed.
    """

    def __init__(self, path: Path, representation: str, first: int) -> None:
        self.path, self.representation, self.first = path, representation, first
        recording = _recording(path)
        if recording.exposures is None:
            raise DataError(f"{path}: does not say when its frames were exposed; expected an AEDAT 4 file with frames")
        self._count = len(recording.frame_times) - first
        if self._count < 1:
            raise DataError(f"{path}: {len(recording.frame_times)} frames, and the sequence starts at frame {first}; expected more frames")

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

    def __getitem__(self, index: int) -> np.ndarray:
        recording = _recording(self.path)
        exposures = recording.exposures
        edges = exposures if self.representation == "red_blue" and exposures is not None else interval_edges(recording.frame_times)
        start, stop = (int(time) for time in edges[self.first + index])
        events = recording.events[window_slices(recording.events["t"], edges[self.first + index][None])[0]]
        return represent(self.representation, events, *recording.frames.shape[1:], start=start, stop=stop)


@functools.lru_cache(maxsize=1)
def _recording(path: Path) -> Recording:
    try:
        return read_events(path, sort=True)
    except ValueError as error:
        raise DataError(str(error)) from error


def open_source(folder: Path, name: str, alternatives: tuple[Frames, ...], first: int | None) -> ImageSource:
    """Open what there is of a modality in a sequence's folder.

    Args:
        folder: of the sequence.
        name: of the sequence.
        alternatives: where the frames may be; the first that is there is opened.
        first: number of the sequence's first image in its recording; None if it should be known and is not.

    Returns:
        Its frames.

    Raises:
        DataError: there are none.
    """
    expected = []
    for frames in alternatives:
        if isinstance(frames, Images):
            place = folder / frames.folder.format(name=name)
            if place.is_dir():
                return ImageFiles(place, frames.kind, frames.per_frame)
            expected.append(f"{place.name}/")
        elif isinstance(frames, Video):
            for suffix in VIDEO_SUFFIXES:
                if (place := folder / f"{frames.stem}{suffix}").is_file():
                    return VideoFile(place, frames.kind)
            expected.append(f"{frames.stem}.mp4")
        elif isinstance(frames, EventFile):
            place = folder / frames.file.format(name=name)
            if place.is_file():
                if first is None:
                    raise DataError(f"{place}: where the sequence starts in it is not known; expected pair.txt beside the sequences")
                return EventImages(place, frames.representation, first)
            expected.append(place.name)
    raise DataError(f"{folder}: no frames; expected {' or '.join(expected)}. Fetch the sequence again, or leave the modality out")


class NativeFrames:
    """The frames of one sequence ``[H, W, 6]`` uint8: RGB, then the auxiliary image; ``[H, W, 3]`` without auxiliary modality.

    Modalities are paired by position. A number of files that does not fit the annotation is an error at the first frame.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        *,
        rgb: tuple[Frames, ...],
        aux: tuple[Frames, ...],
        rows: int,
        skip: int = 0,
        first: int | None = 0,
        more_frames: bool = False,
    ) -> None:
        """Frames that are read later.

        Args:
            folder: of the sequence.
            name: of the sequence.
            rgb: where the RGB frames may be.
            aux: where the auxiliary frames may be; none leaves the modality out.
            rows: annotated frames.
            skip: leading frames that are left out.
            first: see :func:`open_source`.
            more_frames: frames after the last annotated one are no error.
        """
        self.folder, self.name, self.rows, self.skip = folder, name, rows, skip
        self._alternatives, self._first, self._more_frames = (rgb, aux), first, more_frames

    def __len__(self) -> int:
        return self.rows - self.skip

    @functools.cached_property
    def sources(self) -> tuple[ImageSource, ...]:
        """RGB and, if there is one, the auxiliary modality."""
        return tuple(self._open(alternatives) for alternatives in self._alternatives if alternatives)

    def _open(self, alternatives: tuple[Frames, ...]) -> ImageSource:
        source = open_source(self.folder, self.name, alternatives, self._first)
        more = self._more_frames or isinstance(source, EventImages)
        if len(source) < self.rows or (len(source) > self.rows and not more):
            raise DataError(
                f"{source.where(0)} and after: {len(source)} frames, but {self.rows} rows of annotation; expected as many. "
                "Fetch the sequence again"
            )
        return source

    def __getitem__(self, index: int) -> np.ndarray:
        if not 0 <= index < len(self):
            raise IndexError(f"frame {index} of sequence {self.name}; it has {len(self)}")
        images = [source[index + self.skip] for source in self.sources]
        if len(images) == 1:
            return images[0]
        if images[0].shape != images[1].shape:
            sizes = " and ".join(f"{image.shape[1]}x{image.shape[0]}" for image in images)
            raise DataError(
                f"{self.sources[0].where(index + self.skip)} and {self.sources[1].where(index + self.skip)}: {sizes} pixels; "
                "expected the same. Align and resize one of them"
            )
        return np.concatenate(images, 2)
