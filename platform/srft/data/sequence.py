"""A tracking sequence: frames, one box per frame, absent flags."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np


class FrameSource(Protocol):
    """Anything that yields frame i by index: an array in memory, a memory map, a reader that decodes on demand."""

    def __len__(self) -> int:
        """Number of frames."""
        ...

    def __getitem__(self, index: int, /) -> np.ndarray:
        """Frame ``[H, W, C]`` uint8, C = 3 (RGB) or 6 (RGB, then the auxiliary modality as an image)."""
        ...


def _kind(value: object) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, np.ndarray) else f"a {type(value).__name__}"


@dataclass(frozen=True, kw_only=True)
class Sequence:
    """One annotated video of one target.

    Raises:
        ValueError: boxes or absent flags are not as below, or differ from the frames in number.
    """

    name: str
    frames: FrameSource
    boxes: np.ndarray
    """``[T, 4]`` float64, left, top, width, height in pixels; rows of absent frames are the last known box."""
    absent: np.ndarray
    """``[T]`` bool, True where the target is out of view or fully covered."""
    attributes: tuple[str, ...] = field(default=())
    """Challenges of the sequence, such as ``low light``."""
    offset: int = 0
    """Leading frames of the benchmark's annotation that are left out here because the target is not in view yet. Result files for the
    benchmark's kit start with as many rows more."""

    def __post_init__(self) -> None:
        if not len(self.frames) == len(self.boxes) == len(self.absent):
            raise ValueError(
                f"sequence {self.name}: {len(self.frames)} frames, {len(self.boxes)} boxes and {len(self.absent)} absent flags; "
                "expected one box and one flag per frame"
            )
        if not isinstance(self.boxes, np.ndarray) or self.boxes.shape != (len(self), 4):
            raise ValueError(f"sequence {self.name}: boxes are {_kind(self.boxes)}; expected an array [{len(self)}, 4], np.array(boxes)")
        if not isinstance(self.absent, np.ndarray) or self.absent.dtype != bool or self.absent.ndim != 1:  # ~ would invert bits
            expected = f"bool [{len(self)}], np.array(absent).astype(bool)"
            raise ValueError(f"sequence {self.name}: absent is {_kind(self.absent)}; expected {expected}")

    def __len__(self) -> int:
        return len(self.boxes)

    @property
    def shortest_gap(self) -> float:
        """Frames between the two visible frames that are nearest to each other; infinite if fewer than two are visible."""
        return float(np.diff(np.flatnonzero(~self.absent).astype(np.float64)).min(initial=np.inf))


@dataclass(frozen=True, kw_only=True)
class Domain:
    """The sequences of one fine-tuning run. Test sequences are not among them."""

    train: tuple[Sequence, ...]
    """Target domain, to learn from."""
    val: tuple[Sequence, ...]
    """Target domain, other objects and backgrounds: chooses checkpoints and trials."""
    source: tuple[Sequence, ...]
    """RGB source domain, held out from pre-training: shows what is forgotten."""
