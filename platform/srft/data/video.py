"""Frames from video files and image folders, and video files from frames."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, get_args

import cv2
import numpy as np

from srft.data.images import StoredImage, decode
from srft.data.sequence import FrameSource
from srft.files import aside

__all__ = ["IMAGES", "ImageFolder", "Pixels", "VideoFrames", "natural_key", "open_frames", "video_writer"]

Pixels = Literal["picture", "depth", "thermal"]
"""What the pixels of a file are: colours or grey, 16-bit millimetres, or thermal counts."""

IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
"""Suffixes of image files."""

_RENDERINGS = {"picture": "image", "depth": "depth:jet", "thermal": "thermal"}
_CODECS = {".mp4": "mp4v", ".avi": "MJPG"}


def natural_key(name: str) -> list[str | int]:
    """Sorts names as people do: ``frame2`` before ``frame10``.

    Args:
        name: of a file.

    Returns:
        Letters and numbers in turn.
    """
    return [int(part) if i % 2 else part.lower() for i, part in enumerate(re.split("([0-9]+)", name))]


class ImageFolder:
    """The images of a folder in natural order of their names, read when asked for; other files are not looked at."""

    def __init__(self, folder: str | Path, *, pixels: Pixels = "picture") -> None:
        """List a folder.

        Args:
            folder: where the images are.
            pixels: what they show.

        Raises:
            ValueError: there is no such folder, or no image in it.
        """
        self.folder, self.pixels = Path(folder), pixels
        if not self.folder.is_dir():
            raise ValueError(f"{self.folder}: no such folder; expected one of images")
        found = [path for path in self.folder.iterdir() if path.suffix.lower() in IMAGES and not path.name.startswith(".")]
        self.files = sorted(found, key=lambda path: (natural_key(path.name), path.name))
        if not self.files:
            raise ValueError(f"{self.folder}: no image in it; expected files named {', '.join(IMAGES)}")

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int, /) -> np.ndarray:
        """Read an image.

        Args:
            index: from 0.

        Returns:
            ``[H, W, 3]`` uint8 RGB. A damaged file, or pixels that are not what was said, are an ImageError.
        """
        path = self.files[index]
        return decode(StoredImage(path.read_bytes(), _RENDERINGS[self.pixels], str(path))).pixels


class VideoFrames:
    """The frames of a video file, decoded when asked for: cheap one after the other, by seeking otherwise."""

    def __init__(self, path: str | Path) -> None:
        """Open a file.

        Args:
            path: a video that OpenCV's FFmpeg can read.

        Raises:
            ValueError: there is no such file, or it is no video.
        """
        self.path = Path(path)
        if not self.path.is_file():
            raise ValueError(f"{self.path}: no such file or folder; expected a video file or a folder of images")
        self._capture = cv2.VideoCapture(str(self.path), cv2.CAP_FFMPEG)
        self._count = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)) if self._capture.isOpened() else 0
        if self._count < 1:
            raise ValueError(f"{self.path}: no frames can be read from it; expected a video file")
        self.fps = float(self._capture.get(cv2.CAP_PROP_FPS)) or 30.0
        """Frames per second."""
        self._next, self._lock = 0, threading.Lock()  # a decoder is at one place

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int, /) -> np.ndarray:
        """Decode a frame.

        Args:
            index: from 0; negative ones count from the end.

        Returns:
            ``[H, W, 3]`` uint8 RGB.

        Raises:
            IndexError: there is no such frame.
            ValueError: the file ends before it or is damaged there.
        """
        if not -self._count <= index < self._count:
            raise IndexError(f"{self.path}: frame {index} of {self._count}")
        index %= self._count
        with self._lock:
            if index != self._next:
                self._capture.set(cv2.CAP_PROP_POS_FRAMES, index)
            read, image = self._capture.read()
            self._next = index + 1 if read else -1
        if not read:
            raise ValueError(
                f"{self.path}: frame {index} of {self._count} cannot be decoded; the file is damaged or cut off. Use the frames before it"
            )
        return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def open_frames(path: str | Path, *, pixels: Pixels = "picture") -> FrameSource:
    """Open a folder of images or a video file.

    Args:
        path: which.
        pixels: what the images show; a video file holds 8-bit pictures.

    Returns:
        Its frames, ``[H, W, 3]`` uint8.

    Raises:
        ValueError: it is neither, ``pixels`` is unknown, or says that a video file holds 16-bit values.
    """
    if pixels not in get_args(Pixels):
        raise ValueError(f"pixels is {pixels!r}; expected one of {', '.join(get_args(Pixels))}")
    if Path(path).is_dir():
        return ImageFolder(path, pixels=pixels)
    if pixels == "depth":
        raise ValueError(f"{path}: a video file holds 8-bit pictures, not depth in millimetres; expected a folder of 16-bit PNG images")
    return VideoFrames(path)


@contextmanager
def video_writer(path: str | Path, *, fps: float, width: int, height: int) -> Iterator[Writer]:
    """Write a video file: it is there, whole, when the block ends without an error.

    Args:
        path: ``.mp4`` (MPEG-4) or ``.avi`` (Motion JPEG); its folder is made.
        fps: frames per second.
        width: of the frames in pixels.
        height: of the frames in pixels.

    Yields:
        What takes the frames.

    Raises:
        ValueError: the suffix is another, the frame rate is not positive, no frame was written, or OpenCV cannot encode.
    """
    codec = _CODECS.get(Path(path).suffix.lower())
    if codec is None:
        raise ValueError(f"{path}: cannot write such a video; expected a name ending in {' or '.join(_CODECS)}")
    if not fps > 0:
        raise ValueError(f"{path}: {fps} frames per second; expected more than 0")
    with aside(path) as temporary:
        encoder = cv2.VideoWriter(str(temporary), cv2.VideoWriter.fourcc(*codec), fps, (width, height))
        if not encoder.isOpened():
            raise ValueError(f"{path}: OpenCV cannot encode {codec} video of {width}x{height} pixels; its build lacks FFmpeg")
        writer = Writer(encoder, width, height)
        try:
            yield writer
        finally:
            encoder.release()
        if not writer.count:
            raise ValueError(f"{path}: no frame was written")


class Writer:
    """Takes the frames of a video file; made by :func:`video_writer`."""

    def __init__(self, encoder: cv2.VideoWriter, width: int, height: int) -> None:
        self._encoder, self._shape, self.count = encoder, (height, width, 3), 0

    def write(self, frame: np.ndarray) -> None:
        """Append a frame.

        Args:
            frame: ``[height, width, 3]`` uint8 RGB.

        Raises:
            ValueError: it has another shape or type, which OpenCV would drop without a word.
        """
        if frame.shape != self._shape or frame.dtype != np.uint8:
            raise ValueError(f"frame {self.count} is {frame.dtype} {list(frame.shape)}; expected uint8 {list(self._shape)}")
        self._encoder.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
        self.count += 1
