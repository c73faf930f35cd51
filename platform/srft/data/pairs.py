"""Template/search pairs: drawn by (seed, epoch, index), so every worker layout sees the same samples in the same order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from srft.data.crops import box_in_crop, crop
from srft.data.sequence import Sequence
from srft.model.architecture import Architecture
from srft.model.tracker import normalize


class Pair(NamedTuple):
    """One training sample: uint8 crops and the target's place in the search region."""

    template: np.ndarray
    """``[h, w, C]`` uint8."""
    search: np.ndarray
    """``[H, W, C]`` uint8."""
    box: np.ndarray
    """``[4]`` float32 cxcywh, fractions of the search region."""


class Batch(NamedTuple):
    """Samples as the network takes them."""

    template: Tensor
    """``[B, C, h, w]`` float32, normalized."""
    search: Tensor
    """``[B, C, H, W]`` float32, normalized."""
    boxes: Tensor
    """``[B, 4]`` cxcywh, fractions of the search region."""


def collate(pairs: list[Pair]) -> Batch:
    """Stack and normalize pairs.

    Args:
        pairs: at least one.

    Returns:
        The batch, on the CPU.
    """
    template, search, boxes = (torch.from_numpy(np.stack(part)) for part in zip(*pairs, strict=True))
    return Batch(normalize(template), normalize(search), boxes)


@dataclass(frozen=True, kw_only=True)
class PairSampler:
    """Causal sampling: a visible template frame, then a later visible search frame of the same sequence.

    Raises:
        ValueError: there are no sequences, or one has no two visible frames near enough to each other.
    """

    sequences: tuple[Sequence, ...]
    arch: Architecture
    seed: int
    max_gap: int
    """Largest distance between template and search frame, frames."""
    center_jitter: float
    scale_jitter: float
    gray: float = 0.05
    """Probability of grey RGB, the same for both crops."""
    brightness: float = 0.2
    """Each crop's brightness is scaled by 1 plus or minus at most this."""

    def __post_init__(self) -> None:
        if not self.sequences:
            raise ValueError("no sequences to draw pairs from; expected at least one")
        for sequence in self.sequences:
            if (gap := sequence.shortest_gap) > self.max_gap:
                raise ValueError(
                    f"sequence {sequence.name} has {np.count_nonzero(~sequence.absent)} visible frames, the nearest {gap:g} apart; "
                    f"training needs two at most max_gap = {self.max_gap} apart: raise data.max_gap or leave the sequence out"
                )

    def pair(self, epoch: int, index: int) -> Pair:
        """Draw one sample; the same arguments give the same bytes.

        Args:
            epoch: which pass.
            index: which sample of it.

        Returns:
            The pair, augmented.
        """
        rng = np.random.default_rng([self.seed, epoch, index])
        while True:
            sequence = self.sequences[int(rng.integers(len(self.sequences)))]
            visible = np.flatnonzero(~sequence.absent)
            first = int(visible[rng.integers(len(visible) - 1)])
            later = visible[(visible > first) & (visible <= first + self.max_gap)]
            if len(later):
                break
        second = int(later[rng.integers(len(later))])
        flip, gray = rng.random() < 0.5, rng.random() < self.gray
        template, _, _ = self._cut(sequence, first, self.arch.template_factor, self.arch.template_px, None)
        search, factor, around = self._cut(sequence, second, self.arch.search_factor, self.arch.search_px, rng)
        box = box_in_crop(sequence.boxes[second], around, factor, self.arch.search_px)
        if flip:
            template, search = template[:, ::-1].copy(), search[:, ::-1].copy()
            box = np.array([1 - box[0], *box[1:]], np.float32)
        if gray:
            template, search = _gray(template), _gray(search)
        scale = 1 + self.brightness * rng.uniform(-1, 1, 2)
        return Pair(cv2.convertScaleAbs(template, alpha=scale[0]), cv2.convertScaleAbs(search, alpha=scale[1]), box)

    def _cut(
        self, sequence: Sequence, i: int, factor: float, px: int, rng: np.random.Generator | None
    ) -> tuple[np.ndarray, float, np.ndarray]:
        box = sequence.boxes[i]
        if rng is not None:
            size = box[2:] * np.exp(rng.normal(0, 1, 2) * self.scale_jitter)
            reach = np.sqrt(size.prod()) * self.center_jitter
            center = box[:2] + box[2:] / 2 + (rng.random(2) - 0.5) * reach
            box = np.concatenate([center - size / 2, size])
        patch, resize = crop(sequence.frames[i], box, factor, px)
        return patch, resize, box

    def batch(self, epoch: int, step: int, batch_size: int, rank: int = 0, world_size: int = 1) -> Batch:
        """One worker's share of a global batch: samples rank, rank + world_size, ...

        Args:
            epoch: which pass.
            step: optimizer step in the epoch.
            batch_size: samples of all workers together.
            rank: this worker.
            world_size: workers.

        Returns:
            The share, normalized.
        """
        return collate([self.pair(epoch, step * batch_size + i) for i in range(rank, batch_size, world_size)])

    def epoch(self, epoch: int, steps: int, batch_size: int, rank: int = 0, world_size: int = 1) -> Iterator[Batch]:
        """All batches of one epoch for one worker, see :meth:`batch`.

        Args:
            epoch: which pass.
            steps: optimizer steps.
            batch_size: samples of all workers together.
            rank: this worker.
            world_size: workers.

        Yields:
            One share a step.
        """
        for step in range(steps):
            yield self.batch(epoch, step, batch_size, rank, world_size)


def _gray(patch: np.ndarray) -> np.ndarray:
    # Auxiliary channels are kept.
    grey = cv2.cvtColor(np.ascontiguousarray(patch[..., :3]), cv2.COLOR_RGB2GRAY)
    return np.concatenate([np.repeat(grey[..., None], 3, 2), patch[..., 3:]], 2)
