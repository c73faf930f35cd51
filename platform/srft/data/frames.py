"""What a tracker may be shown: an RGB frame, an auxiliary image, or both, and clear words about everything else."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numpy as np

__all__ = ["Frame", "Parts", "read_ahead", "split_frame"]

T = TypeVar("T")

Frame = np.ndarray | tuple[np.ndarray | None, np.ndarray | None]
"""``[H, W, 3]`` RGB, ``[H, W, 6]`` RGB then auxiliary image, or a pair (RGB, auxiliary) of ``[H, W, 3]``, either of which may be None."""


class Parts(NamedTuple):
    """The images of a frame that are there."""

    images: tuple[tuple[int, np.ndarray], ...]
    """First channel in the six of a whole frame, and ``[H, W, 3]`` or ``[H, W, 6]`` uint8: never a copy."""
    height: int
    width: int

    @property
    def has_rgb(self) -> bool:
        """Whether the RGB frame is there."""
        return self.images[0][0] == 0


def split_frame(frame: Frame, where: str) -> Parts:
    """Check a frame and say what is in it.

    Args:
        frame: see :data:`Frame`; uint8.
        where: whose frame it is, for errors.

    Returns:
        Its images.

    Raises:
        ValueError: it is none of these, is empty, has no part, or its parts differ in size.
    """
    if not isinstance(frame, tuple):
        _check(frame, where, "frame", (3, 6))
        return Parts(((0, frame),), *frame.shape[:2])
    if len(frame) != 2 or all(part is None for part in frame):
        raise ValueError(
            f"{where}: frame is {frame if len(frame) == 2 else f'{len(frame)} parts'}; expected an RGB frame, an auxiliary "
            "image, or both, as a pair (RGB, auxiliary); leave a frame without either out"
        )
    images = []
    for channel, name, part in ((0, "RGB frame", frame[0]), (3, "auxiliary image", frame[1])):
        if part is not None:
            _check(part, where, name, (3,))
            images.append((channel, part))
    if len(images) == 2 and images[0][1].shape != images[1][1].shape:
        raise ValueError(
            f"{where}: the RGB frame has {_size(images[0][1])} pixels, the auxiliary image {_size(images[1][1])}; "
            "expected aligned images of one size"
        )
    return Parts(tuple(images), *images[0][1].shape[:2])


def read_ahead(read: Callable[[int], T], indices: Iterable[int]) -> Iterator[T]:
    """Read in a thread, one ahead, so that the next frame is decoded while the tracker looks at this one.

    Args:
        read: gives a frame.
        indices: which ones, in order.

    Yields:
        ``read(i)``; what it raises is raised when its turn comes.
    """
    with ThreadPoolExecutor(1) as thread:
        following = None
        for index in indices:
            ready, following = following, thread.submit(read, index)
            if ready is not None:
                yield ready.result()
        if following is not None:
            yield following.result()


def _size(image: np.ndarray) -> str:
    return f"{image.shape[1]}x{image.shape[0]}"


def _check(image: np.ndarray, where: str, name: str, channels: tuple[int, ...]) -> None:
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] in channels and image.size:
        return
    expected = f"expected uint8 [H, W, {' or '.join(map(str, channels))}]"
    if not isinstance(image, np.ndarray):
        raise ValueError(f"{where}: {name} is a {type(image).__name__}; {expected} as a numpy array")
    hint = ""
    if np.issubdtype(image.dtype, np.floating):
        hint = "; turn values from 0 to 1 into bytes: np.rint(255 * frame).astype(np.uint8)"
    elif image.dtype == np.uint16:
        hint = "; show depth by srft.data.depth.depth_image and radiometric thermal frames by srft.data.thermal.thermal_image"
    elif not image.size:
        hint = "; it is empty: was the file read?"
    elif image.ndim == 2 or image.shape[-1] == 1:
        hint = "; repeat the one channel: np.repeat(frame.reshape(*frame.shape[:2], 1), 3, 2)"
    elif image.shape[-1] == 4:
        hint = "; leave the alpha channel out: frame[..., :3]"
    raise ValueError(f"{where}: {name} is {image.dtype} {list(image.shape)}; {expected}{hint}")
