"""Frames as they are stored: encoded images, decoded when, as far and as finely as they are needed."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import cv2
import numpy as np

from srft.data.depth import depth_image
from srft.data.sequence import FrameSource
from srft.data.thermal import thermal_image

__all__ = [
    "RENDERINGS",
    "Data",
    "Decoded",
    "ImageError",
    "ImageFrames",
    "StoredFrame",
    "StoredFrames",
    "StoredImage",
    "decode",
    "decode_frame",
    "jpeg_layout",
]


class ImageError(ValueError):
    """An image that cannot be decoded; the message names the file and what is wrong."""


def _colour(pixels: np.ndarray) -> np.ndarray:
    if pixels.dtype != np.uint8:
        raise ValueError(f"{pixels.dtype} pixels; expected 8 bits. Say whether they are depth or thermal counts (srft track: --aux-pixels)")
    return cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB) if pixels.ndim == 2 else pixels


RENDERINGS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "image": _colour,
    "depth:jet": depth_image,
    "depth:jet:bgr": functools.partial(depth_image, order="bgr"),
    "depth:normalized": functools.partial(depth_image, encoding="normalized"),
    "depth:raw": functools.partial(depth_image, encoding="raw"),
    "thermal": thermal_image,
}
"""How stored pixels (RGB order, or one channel of 8 or 16 bits) become ``[H, W, 3]`` uint8, by the name that is kept with them."""

Data = bytes | memoryview | np.ndarray
"""Bytes of an encoded image."""


class StoredImage(NamedTuple):
    """One encoded image."""

    data: Data
    """JPEG, PNG, BMP or what else OpenCV reads."""
    rendering: str
    """A key of :data:`RENDERINGS`."""
    name: str
    """Where it comes from, for messages."""


class StoredFrame(NamedTuple):
    """One frame: an image per modality, of the whole frame or of a part of it."""

    images: tuple[StoredImage, ...]
    """RGB, then the auxiliary modality if there is one; of equal size."""
    size: tuple[int, int] | None = None
    """Height and width of the frame, pixels; None where the images are the whole frame."""
    corner: tuple[int, int] = (0, 0)
    """Left and top of the images in the frame, pixels."""


@runtime_checkable
class StoredFrames(FrameSource, Protocol):
    """A frame source whose frames are encoded images, so that a crop can be decoded without the rest of its frame."""

    def stored(self, index: int, /) -> StoredFrame:
        """Frame ``index`` as it is stored; ``decode_frame`` of it equals ``self[index]``."""
        ...


class Decoded(NamedTuple):
    """Pixels of an image, or of its upper part."""

    pixels: np.ndarray
    """``[H', W', 3]`` uint8."""
    height: int
    """Of the whole image before reduction, pixels."""
    width: int
    """Of the whole image before reduction, pixels."""


class JpegLayout(NamedTuple):
    """What a JPEG's header says."""

    height: int
    width: int
    height_at: int
    """Byte at which the two bytes of the height stand."""
    unit_rows: int
    """Pixel rows of a coding unit if the rows come one after the other in one scan, else 0."""
    pixels_at: int
    """Byte at which compressed pixels begin."""


def jpeg_layout(data: Data, name: str) -> JpegLayout:
    """Read a JPEG's header.

    Args:
        data: the file.
        name: for messages.

    Returns:
        Size, and what is needed to decode upper rows alone.

    Raises:
        ImageError: there is no complete header.
    """
    head = bytes(data[:65536])
    at, frame = 2, None
    while at + 4 <= len(head):
        if head[at] != 0xFF:
            break
        marker, length = head[at + 1], int.from_bytes(head[at + 2 : at + 4], "big")
        if marker == 0xFF:
            at += 1
            continue
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) and at + 10 <= len(head):
            components = head[at + 9]
            tallest = max((head[i] & 15 for i in range(at + 11, min(at + 10 + 3 * components, len(head)), 3)), default=1)
            frame = marker, at + 5, components, tallest
        if marker == 0xDA and frame is not None and at + 5 <= len(head):
            kind, height_at, components, tallest = frame
            rows = 8 * tallest if kind in (0xC0, 0xC1) and head[at + 4] == components else 0
            height, width = (int.from_bytes(head[i : i + 2], "big") for i in (height_at, height_at + 2))
            return JpegLayout(height, width, height_at, rows, at + 2 + length)
        at += 2 + length
        if at + 4 > len(head) and len(head) < len(data):
            head = bytes(data)
    raise ImageError(f"{name}: no complete JPEG header in {len(data)} bytes; the file is damaged, copy it again from its source")


def decode(image: StoredImage, *, rows: int | None = None, reduce: int = 1) -> Decoded:
    """Decode an image to the three channels that its rendering makes of it; orientation tags are ignored.

    Args:
        image: what to decode.
        rows: only the uppermost rows are needed: a JPEG is decoded down to them and, if possible, not further, which gives the same
            bytes in less time. Damage below is not noticed then, unless the file is truncated.
        reduce: 1, 2, 4 or 8: a JPEG is decoded to that fraction of its size, each pixel about the mean of those it stands for. Other
            formats, and renderings that need the values of all pixels, are not reduced.

    Returns:
        At least the rows asked for, if the image has them, and its whole size.

    Raises:
        ImageError: the image is damaged, truncated or of a kind that its rendering does not take.
    """
    data, name = image.data, image.name
    render = RENDERINGS.get(image.rendering)
    if render is None:
        raise ImageError(f"{name}: rendering is {image.rendering!r}; expected one of {', '.join(RENDERINGS)}")
    if bytes(data[:2]) == b"\xff\xd8" and image.rendering in ("image", "thermal"):
        # OpenCV takes damaged ones, so it is not asked: a thermal JPEG has 8 bits, which are shown as they are.
        return _decode_jpeg(data, name, rows, reduce if image.rendering == "image" else 1)
    buffer = np.frombuffer(data, np.uint8)
    whole = _complete(data)
    pixels = None
    if whole and len(buffer):
        flags = (
            cv2.IMREAD_COLOR_RGB | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION
            if image.rendering == "image"
            else cv2.IMREAD_UNCHANGED
        )
        try:
            pixels = cv2.imdecode(buffer, flags)
        except cv2.error as error:
            raise ImageError(f"{name}: cannot be decoded ({error.err}); copy the file again from its source") from None
    if pixels is None:
        problem = "truncated" if not whole else "empty" if not len(buffer) else "not an image that can be decoded"
        raise ImageError(f"{name}: {problem} ({len(buffer)} bytes); copy the file again from its source")
    if image.rendering != "image" and pixels.ndim == 3:
        pixels = cv2.cvtColor(pixels[..., :3], cv2.COLOR_BGR2RGB)
    try:
        shown = render(pixels)
    except ValueError as error:
        raise ImageError(f"{name}: {error} (rendering {image.rendering!r})") from error
    return Decoded(shown, *pixels.shape[:2])


def _decode_jpeg(data: Data, name: str, rows: int | None, reduce: int) -> Decoded:
    layout = jpeg_layout(data, name)
    height, width = layout.height, layout.width
    least = {"min_height": -(-height // reduce), "min_width": -(-width // reduce)} if reduce > 1 else {}
    if rows is not None and layout.unit_rows:
        # Down to the unit that holds the last row and one further, which interpolation of colours looks into.
        down_to = (-(-max(1, rows) // layout.unit_rows) + 1) * layout.unit_rows
        if down_to < height:
            content = bytearray(data)
            if content.rfind(b"\xff\xd9", layout.pixels_at) < 0:
                raise ImageError(f"{name}: truncated JPEG of {len(data)} bytes, no end marker; copy the file again from its source")
            content[layout.height_at : layout.height_at + 2] = down_to.to_bytes(2, "big")
            if reduce > 1:
                least["min_height"] = -(-down_to // reduce)
            return Decoded(_turbo(content, name, strict=False, **least), height, width)
    try:
        return Decoded(_turbo(data, name, strict=True, **least), height, width)
    except ImageError as error:
        if "extraneous bytes" not in str(error):  # Some cameras leave bytes between pixels and markers; no pixel suffers.
            raise
    return Decoded(_turbo(data, name, strict=False, **least), height, width)


def _turbo(data: Data | bytearray, name: str, *, strict: bool, **least: int) -> np.ndarray:
    import simplejpeg  # here: machines that train on arrays in memory may lack it

    try:
        return simplejpeg.decode_jpeg(data, "RGB", strict=strict, **least)
    except ValueError as error:
        raise ImageError(f"{name}: cannot be decoded ({error}); copy the file again from its source") from None


def _complete(data: Data) -> bool:
    # OpenCV returns what it could read of a truncated PNG.
    if bytes(data[:4]) == b"\x89PNG":
        return b"IEND" in bytes(data[-64:])
    if bytes(data[:2]) == b"BM":
        return len(data) >= int.from_bytes(bytes(data[2:6]), "little")
    return True


def decode_frame(stored: StoredFrame) -> np.ndarray:
    """Decode a whole frame.

    Args:
        stored: its images.

    Returns:
        ``[H, W, 3 M]`` uint8 for M images; zeros where the images do not reach. Damage and images of different size are an ImageError.
    """
    parts = [decode(image) for image in stored.images]
    same_size(stored, parts)
    height, width = parts[0].height, parts[0].width
    if stored.size is None and len(parts) == 1:
        return parts[0].pixels
    left, top = stored.corner
    frame = np.zeros((*(stored.size or (height, width)), 3 * len(parts)), np.uint8)
    merge([part.pixels for part in parts], frame[top : top + height, left : left + width])
    return frame


def same_size(stored: StoredFrame, parts: list[Decoded]) -> None:
    """Check that the images of a frame belong together.

    Args:
        stored: the frame.
        parts: its images, decoded.

    Raises:
        ImageError: they differ in size.
    """
    for image, part in zip(stored.images[1:], parts[1:], strict=True):
        if (part.height, part.width) != (parts[0].height, parts[0].width):
            raise ImageError(
                f"{image.name} is {part.width} x {part.height} pixels, {stored.images[0].name} {parts[0].width} x {parts[0].height}; "
                "expected aligned images of equal size"
            )


def merge(parts: list[np.ndarray], out: np.ndarray) -> None:
    """Put images of three channels behind each other.

    Args:
        parts: M images ``[H, W, 3]`` uint8.
        out: ``[H, W, 3 M]`` uint8, written to. numpy would copy three bytes at a time.
    """
    if out.size:
        cv2.mixChannels(parts, [out], [i for channel in range(3 * len(parts)) for i in (channel, channel)])


@dataclass(frozen=True, kw_only=True)
class ImageFrames:
    """Frames in image files, one folder per modality, paired by position; nothing is read before it is asked for.

    Raises:
        ValueError: folders, renderings and lists of names differ in number.
    """

    folders: tuple[Path, ...]
    """RGB, then the auxiliary modality if there is one."""
    names: tuple[tuple[str, ...], ...] = field(repr=False)
    """File names in each folder, in order."""
    renderings: tuple[str, ...] = ("image", "image")
    """A key of :data:`RENDERINGS` per folder."""

    def __post_init__(self) -> None:
        if not len(self.folders) == len(self.names) == len(self.renderings[: len(self.folders)]) or len(set(map(len, self.names))) != 1:
            raise ValueError(
                f"{[str(folder) for folder in self.folders]} hold {[len(names) for names in self.names]} frames; "
                "expected as many in each, and a rendering for each"
            )

    def __len__(self) -> int:
        return len(self.names[0])

    def stored(self, index: int) -> StoredFrame:
        """Read the files of a frame.

        Args:
            index: which frame.

        Returns:
            Their content; a missing file is a FileNotFoundError.
        """
        paths = [folder / names[index] for folder, names in zip(self.folders, self.names, strict=True)]
        return StoredFrame(
            tuple(StoredImage(path.read_bytes(), render, str(path)) for path, render in zip(paths, self.renderings, strict=False))
        )

    def __getitem__(self, index: int) -> np.ndarray:
        return decode_frame(self.stored(index))
