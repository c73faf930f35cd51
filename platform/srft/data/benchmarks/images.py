"""Frames on disk, decoded when they are asked for: folders of images, videos, and event recordings of which images are made.

Opening a sequence touches no image. The first frame lists the folders and checks their counts; names are kept as one byte array.
"""

from __future__ import annotations

import copy
import functools
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import numpy as np

from srft.data.benchmarks.layouts import VIDEO_SUFFIXES, DataError, EventFile, Frames, Images, Kind, Video
from srft.data.benchmarks.made import EventImages, Made, VideoFile
from srft.data.images import StoredFrame, StoredImage, decode, merge
from srft.data.video import IMAGES, natural_key

__all__ = ["EventImages", "ImageFiles", "ImageSource", "NativeFrames", "VideoFile", "lost", "misfit", "open_source"]

_RENDERINGS: dict[Kind, str] = {"rgb": "image", "event": "image", "depth": "depth:jet", "thermal": "thermal"}


class ImageSource(Protocol):
    """The frames of one modality."""

    def __len__(self) -> int:
        """Number of frames."""
        ...

    def __getitem__(self, index: int, /) -> np.ndarray:
        """Frame ``[H, W, 3]`` uint8 RGB."""
        ...

    def stored(self, index: int, /) -> StoredImage:
        """The frame as an encoded image; what is no single image on the disk is encoded without loss."""
        ...

    def where(self, index: int, /) -> str:
        """Place of a frame, for messages."""
        ...


class ImageFiles:
    """A folder of images in natural order, one a frame.

    Raises:
        DataError: the folder has no images.
    """

    per_frame = 1

    def __init__(self, folder: Path, kind: Kind) -> None:
        names = [name for name in os.listdir(folder) if name.lower().endswith(IMAGES) and not name.startswith(".")]
        if not names or len(names) % self.per_frame:
            raise DataError(f"{folder}: {len(names)} images; expected {self.per_frame} a frame. Fetch the folder again")
        self.folder, self.kind = folder, kind
        self._names = np.array([os.fsencode(name) for name in sorted(names, key=lambda name: (natural_key(name), name))])

    def __len__(self) -> int:
        return len(self._names) // self.per_frame

    def gap(self, count: int) -> int | None:
        """Where an image is missing, by the last number in the names.

        Args:
            count: of the first images, that are looked at.

        Returns:
            Number of the image before; None where none is missing, or names are not numbered one by one.
        """
        found = [re.findall("[0-9]+", os.fsdecode(name).rpartition(".")[0]) for name in self._names[:count]]
        steps = np.diff([int(digits[-1]) for digits in found]) if all(found) else np.empty(0)
        return int(np.argmax(steps > 1)) if len(steps) and np.median(steps) == 1 and steps.max() > 1 else None

    def path(self, number: int) -> Path:
        """A file.

        Args:
            number: of the image.

        Returns:
            Its path.
        """
        return self.folder / os.fsdecode(self._names[number])

    def where(self, index: int) -> str:
        """File of a frame.

        Args:
            index: of the frame.

        Returns:
            Its path.
        """
        return str(self.path(index * self.per_frame))

    def image(self, number: int) -> StoredImage:
        """Read a file.

        Args:
            number: of the image.

        Returns:
            Its content.

        Raises:
            DataError: it cannot be read.
        """
        path = self.path(number)
        try:
            return StoredImage(path.read_bytes(), _RENDERINGS[self.kind], str(path))
        except OSError as error:
            raise DataError(f"{path}: {error.strerror}; expected an image") from error

    def stored(self, index: int) -> StoredImage:
        """Read the file of a frame.

        Args:
            index: of the frame.

        Returns:
            Its content.
        """
        return self.image(index)

    def __getitem__(self, index: int) -> np.ndarray:
        return decode(self.image(index)).pixels


class ImageTriples(Made, ImageFiles):
    """A folder of grey images, three for the channels of one frame."""

    per_frame = 3

    def __getitem__(self, index: int) -> np.ndarray:
        return np.stack([decode(self.image(3 * index + channel)).pixels[..., 0] for channel in range(3)], 2)

    where = ImageFiles.where


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
        DataError: there are none. A video or recording that cannot be read is a ValueError too.
    """
    expected = []
    for frames in alternatives:
        if isinstance(frames, Images):
            place = folder / frames.folder.format(name=name)
            if place.is_dir():
                return (ImageTriples if frames.triples else ImageFiles)(place, frames.kind)
            expected.append(f"{place.name}/")
        elif isinstance(frames, Video):
            for suffix in (*VIDEO_SUFFIXES, *map(str.upper, VIDEO_SUFFIXES)):
                if (place := folder / f"{frames.stem}{suffix}").is_file():
                    return VideoFile(place)
            expected.append(f"{frames.stem}.mp4")
        elif isinstance(frames, EventFile):
            place = folder / frames.file.format(name=name)
            if place.is_file():
                if first is None:
                    raise DataError(f"{place}: where the sequence starts in it is not known; expected pair.txt beside the sequences")
                return EventImages(place, frames.representation, first)
            expected.append(place.name)
    raise DataError(f"{folder}: no frames; expected {' or '.join(expected)}. Fetch the sequence again, or leave the modality out")


def misfit(source: ImageSource, rows: int, *, more_frames: bool) -> str | None:
    """Why images cannot be those of the annotated frames.

    Args:
        source: the images.
        rows: annotated frames.
        more_frames: images after the last annotated one are no error.

    Returns:
        A message; None where nothing speaks against it.
    """
    found = len(source)
    if found < rows or (found > rows and not more_frames and not isinstance(source, EventImages)):
        return f"{source.where(0)} and after: {found} frames, but {rows} rows of annotation; expected as many. Fetch the sequence again"
    return None


def lost(sources: Iterable[ImageSource], rows: int) -> str | None:
    """An image that one modality lacks, so that its later ones belong to other frames. What all lack the annotation lacks, too.

    Args:
        sources: of a sequence.
        rows: annotated frames.

    Returns:
        A message; None without one.
    """
    gaps = {source: source.gap(rows) for source in sources if isinstance(source, ImageFiles)}
    if len(set(gaps.values())) < 2:
        return None
    source, before = min(((s, g) for s, g in gaps.items() if g is not None), key=lambda one: one[1])
    return f"{source.where(before)}: the image after it is missing; expected one of each frame. Fetch the sequence again"


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

    def whole(self) -> NativeFrames:
        """The same with the frames that are left out.

        Returns:
            All annotated frames.
        """
        every = copy.copy(self)
        every.skip = 0
        return every

    @functools.cached_property
    def sources(self) -> tuple[ImageSource, ...]:
        """RGB and, if there is one, the auxiliary modality.

        Raises:
            DataError: one lacks an image that the other has, or their number is not that of the annotated frames.
        """
        found = tuple(self._open(alternatives) for alternatives in self._alternatives if alternatives)
        if message := lost(found, self.rows):
            raise DataError(message)
        return found

    def _open(self, alternatives: tuple[Frames, ...]) -> ImageSource:
        source = open_source(self.folder, self.name, alternatives, self._first)
        if message := misfit(source, self.rows, more_frames=self._more_frames):
            raise DataError(message)
        return source

    def stored(self, index: int) -> StoredFrame:
        """The images of a frame as they are stored, see ``srft.data.images``.

        Args:
            index: which frame.

        Returns:
            Its images, encoded.
        """
        place = self._place(index)
        return StoredFrame(tuple(source.stored(place) for source in self.sources))

    def _place(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise IndexError(f"frame {index} of sequence {self.name}; it has {len(self)}")
        return index + self.skip

    def __getitem__(self, index: int) -> np.ndarray:
        place = self._place(index)
        images = [source[place] for source in self.sources]
        if len({image.shape for image in images}) > 1:
            sizes = " and ".join(f"{s.where(place)} is {i.shape[1]}x{i.shape[0]}" for s, i in zip(self.sources, images, strict=True))
            raise DataError(f"{sizes} pixels; expected the same. Align and resize one of them")
        frame = np.empty((*images[0].shape[:2], 3 * len(images)), np.uint8)
        merge(images, frame)
        return frame
