"""The tracker online: show it the target once, then follow it frame by frame, alone or many sequences in one forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from srft.data.crops import crop
from srft.data.sequence import Sequence
from srft.model.head import decode
from srft.model.tracker import MultiModalTracker, normalize

_MARGIN = 10  # a box keeps at least this many pixels inside the frame, as published


class Tracked(NamedTuple):
    """Where the target is and how sure the tracker is."""

    box: np.ndarray
    """``[4]`` float64 ltwh in frame pixels."""
    score: float
    """Highest windowed score, 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class Trajectory:
    """A tracker's answers over one sequence."""

    name: str
    boxes: np.ndarray
    """``[T, 4]`` float64 ltwh pixels; the first is the given groundtruth."""
    scores: np.ndarray
    """``[T]`` float64; the first is 1."""


def hann_window(cells: int) -> Tensor:
    """Outer product of two Hann windows without their zero ends.

    Args:
        cells: side S of the score map.

    Returns:
        ``[S, S]`` float32 in (0, 1].
    """
    k = torch.arange(1, cells + 1, dtype=torch.float32)
    window = 0.5 * (1 - torch.cos(2 * torch.pi * k / (cells + 1)))
    return window[:, None] * window[None, :]


class OnlineTracker:
    """Follows one target: :meth:`initialize` with the first frame and box, then :meth:`track` each next frame.

    Example:
        >>> tracker = OnlineTracker(load_tracker("tiny_rgb"))      # doctest: +SKIP
        >>> tracker.initialize(frames[0], box)                     # doctest: +SKIP
        >>> box, score = tracker.track(frames[1])                  # doctest: +SKIP
    """

    def __init__(self, network: MultiModalTracker) -> None:
        self._batch = _LockStep(network)

    def initialize(self, frame: np.ndarray, box: np.ndarray) -> None:
        """Show the target.

        Args:
            frame: ``[H, W, C]`` uint8, C = 3 (RGB) or 6 (RGB, then auxiliary image).
            box: ``[4]`` ltwh in pixels.
        """
        self._batch.initialize([frame], np.asarray(box, np.float64)[None])

    def track(self, frame: np.ndarray) -> Tracked:
        """Find the target in the next frame.

        Args:
            frame: ``[H, W, C]`` uint8, as many channels as the first one.

        Returns:
            Box and score. Calling this before :meth:`initialize` is a ValueError.
        """
        boxes, scores = self._batch.track([frame])
        return Tracked(boxes[0], float(scores[0]))


class _LockStep:
    """B targets in B videos, one forward pass a frame."""

    def __init__(self, network: MultiModalTracker) -> None:
        self._network = network.eval()
        self._arch = network.arch
        device = next(network.parameters()).device
        self._window = hann_window(self._arch.search_cells).to(device)
        self._device = device
        self._boxes = np.zeros((0, 4))
        self._templates: Tensor | None = None

    def initialize(self, frames: list[np.ndarray], boxes: np.ndarray) -> None:
        crops = [crop(f, b, self._arch.template_factor, self._arch.template_px)[0] for f, b in zip(frames, boxes, strict=True)]
        self._templates = normalize(torch.from_numpy(np.stack(crops)).to(self._device))
        self._boxes = boxes.astype(np.float64)

    def keep(self, rows: list[int]) -> None:
        """Drop all targets but these."""
        if self._templates is not None:
            self._templates, self._boxes = self._templates[rows], self._boxes[rows]

    @torch.inference_mode()
    def track(self, frames: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        if self._templates is None:
            raise ValueError("track() was called before initialize(frame, box)")
        arch = self._arch
        cut = [crop(f, b, arch.search_factor, arch.search_px) for f, b in zip(frames, self._boxes, strict=True)]
        out = self._network(self._templates, normalize(torch.from_numpy(np.stack([patch for patch, _ in cut])).to(self._device)))
        windowed = out.score_map * self._window
        fractions = decode(windowed, out.size_map, out.offset_map).double().cpu().numpy()
        scores = windowed.flatten(1).amax(1).double().cpu().numpy()
        scale = arch.search_px / np.array([factor for _, factor in cut])[:, None]
        size = fractions[:, 2:] * scale
        center = self._boxes[:, :2] + self._boxes[:, 2:] / 2 + (fractions[:, :2] - 0.5) * scale
        limits = np.array([f.shape[1::-1] for f in frames], np.float64)
        low = np.clip(center - size / 2, 0, limits - _MARGIN)
        high = np.clip(center + size / 2, _MARGIN, limits)
        self._boxes = np.concatenate([low, np.maximum(high - low, _MARGIN)], 1)
        return self._boxes.copy(), scores


def track_sequences(
    network: MultiModalTracker,
    sequences: Iterable[Sequence],
    *,
    rgb_only: bool = False,
    batch: int = 16,
    on_frames: Callable[[int], object] | None = None,
) -> list[Trajectory]:
    """Track every sequence from its first groundtruth box to its end, many in lock-step.

    Args:
        network: in eval mode afterwards.
        sequences: what to track; lengths may differ.
        rgb_only: leave the auxiliary channels out.
        batch: sequences at once.
        on_frames: called with the number of frames tracked since the last call.

    Returns:
        One trajectory per sequence, in order.
    """
    out: list[Trajectory] = []
    queue = list(sequences)
    view = (lambda frame: np.ascontiguousarray(frame[..., :3])) if rgb_only else (lambda frame: np.asarray(frame))
    for start in range(0, len(queue), batch):
        group = queue[start : start + batch]
        state = _LockStep(network)
        state.initialize([view(s.frames[0]) for s in group], np.stack([s.boxes[0] for s in group]))
        boxes = [np.repeat(s.boxes[:1], len(s), 0).astype(np.float64) for s in group]
        scores = [np.ones(len(s)) for s in group]
        active = list(range(len(group)))
        for t in range(1, max(len(s) for s in group)):
            stay = [row for row, k in enumerate(active) if len(group[k]) > t]
            if len(stay) < len(active):
                state.keep(stay)
                active = [active[row] for row in stay]
            found, confidence = state.track([view(group[k].frames[t]) for k in active])
            for row, k in enumerate(active):
                boxes[k][t], scores[k][t] = found[row], confidence[row]
            if on_frames:
                on_frames(len(active))
        out += [Trajectory(name=s.name, boxes=b, scores=c) for s, b, c in zip(group, boxes, scores, strict=True)]
    return out
