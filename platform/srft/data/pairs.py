"""Template/search pairs: drawn by (seed, epoch, index), so every worker layout sees the same samples in the same order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from srft.config import Augmentation, DataConfig, Decoding, PairRule
from srft.data.crops import box_in_crop, crop_reduced, crop_stored, cut, window
from srft.data.images import StoredFrames
from srft.data.sampling import draw_frames, draw_sequence, unusable
from srft.data.sequence import Sequence
from srft.model.architecture import Architecture
from srft.model.normalization import normalize


class SampleError(ValueError):
    """A sample that cannot be made; the message names epoch, sample, sequence, frames and what is wrong, such as a damaged file."""


class Pair(NamedTuple):
    """One training sample: uint8 crops and the target's place in the search region."""

    template: np.ndarray
    """``[h, w, C]`` uint8."""
    search: np.ndarray
    """``[H, W, C]`` uint8."""
    box: np.ndarray
    """``[4]`` float32 cxcywh, fractions of the search region."""


class RawBatch(NamedTuple):
    """Samples as they are sent to a device: a quarter of the bytes of a :class:`Batch`."""

    template: Tensor
    """``[B, h, w, C]`` uint8."""
    search: Tensor
    """``[B, H, W, C]`` uint8."""
    boxes: Tensor
    """``[B, 4]`` float32 cxcywh, fractions of the search region."""


class Batch(NamedTuple):
    """Samples as the network takes them."""

    template: Tensor
    """``[B, C, h, w]`` float32, normalized."""
    search: Tensor
    """``[B, C, H, W]`` float32, normalized."""
    boxes: Tensor
    """``[B, 4]`` cxcywh, fractions of the search region."""


def stack(pairs: list[Pair]) -> RawBatch:
    """Stack pairs as they are.

    Args:
        pairs: at least one.

    Returns:
        The batch, on the CPU.
    """
    template, search, boxes = (torch.from_numpy(np.stack(part)) for part in zip(*pairs, strict=True))
    return RawBatch(template, search, boxes)


def normalized(raw: RawBatch) -> Batch:
    """Normalize where the samples are.

    Args:
        raw: on any device.

    Returns:
        The batch, on the same device.
    """
    return Batch(normalize(raw.template), normalize(raw.search), raw.boxes)


def collate(pairs: list[Pair]) -> Batch:
    """Stack and normalize pairs.

    Args:
        pairs: at least one.

    Returns:
        The batch, on the CPU.
    """
    return normalized(stack(pairs))


@dataclass(frozen=True, kw_only=True)
class PairSampler:
    """Causal sampling: a visible template frame, then a later visible search frame of the same sequence.

    Augmentation in the published order, up to rounding: grey, mirrored (both crops alike), search crop shifted and scaled, brightness of
    each crop, and, if asked for, each crop mirrored for itself.

    Raises:
        ValueError: there are no sequences, no pair can be drawn from one, or weights are not one positive number for each.
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
    augmentation: Augmentation = "joint"
    """``published``: each crop is mirrored once more for itself or not, and where both were mirrored alike, the box is that of a crop
    of the mirrored frame, a pixel from the mirrored box, because a crop's own box is centred at (px - 1) / 2."""
    rule: PairRule = "near"
    """See ``srft.data.sampling.draw_frames``."""
    weights: tuple[float, ...] = ()
    """Share of the samples per sequence, see ``srft.data.sampling.mixture``; all alike when empty."""
    decode: Decoding = "exact"
    """How stored images become crops: the bytes of the whole frame's crop, or from reduced images where a crop shrinks them."""
    pool: int = 0
    """Samples are of so many pairs of frames and differ in augmentation only; 0: of all pairs. The seed draws each of them once and
    independently of the others: some may be the same."""

    def __post_init__(self) -> None:
        if not self.sequences:
            raise ValueError("no sequences to draw pairs from; expected at least one")
        for sequence in self.sequences:
            if reason := unusable(sequence, self.rule, self.max_gap):
                raise ValueError(reason)
        if self.weights and (len(self.weights) != len(self.sequences) or not min(self.weights) > 0):
            raise ValueError(f"{len(self.weights)} weights for {len(self.sequences)} sequences; expected one positive weight for each")

    @classmethod
    def of(
        cls, sequences: tuple[Sequence, ...], arch: Architecture, data: DataConfig, *, seed: int, weights: tuple[float, ...] = ()
    ) -> PairSampler:
        """The sampler that a run's settings describe.

        Args:
            sequences: to draw from.
            arch: sizes of the crops.
            data: the settings.
            seed: of the draws.
            weights: of the sequences.

        Returns:
            The sampler.
        """
        return cls(
            sequences=sequences,
            arch=arch,
            seed=seed,
            max_gap=data.max_gap,
            center_jitter=data.center_jitter,
            scale_jitter=data.scale_jitter,
            augmentation=data.augmentation,
            rule=data.pairs,
            weights=weights,
            decode=data.decode,
            pool=data.pool,
        )

    def pair(self, epoch: int, index: int) -> Pair:
        """Draw one sample; the same arguments give the same bytes.

        Args:
            epoch: which pass.
            index: which sample of it.

        Returns:
            The pair, augmented.

        Raises:
            SampleError: a frame cannot be read or its box is impossible.
        """
        rng = np.random.default_rng([self.seed, epoch, index])
        slot = np.random.default_rng([self.seed, int(rng.integers(self.pool))]) if self.pool else rng
        sequence, frames = self._drawn(slot)
        try:
            return self._augmented(rng, sequence, *frames)
        except (ValueError, OSError) as error:
            raise SampleError(f"epoch {epoch}, sample {index}, sequence {sequence.name}, frames {frames}: {error}") from error

    def _drawn(self, rng: np.random.Generator) -> tuple[Sequence, tuple[int, int]]:
        while True:
            sequence = self.sequences[draw_sequence(rng, len(self.sequences), self.weights)]
            frames = draw_frames(rng, sequence.absent, self.rule, self.max_gap)
            if frames is not None:
                return sequence, frames

    def _augmented(self, rng: np.random.Generator, sequence: Sequence, first: int, second: int) -> Pair:
        flip, gray = rng.random() < 0.5, rng.random() < self.gray
        template, _, _ = self._cut(sequence, first, self.arch.template_factor, self.arch.template_px, None)
        search, factor, around = self._cut(sequence, second, self.arch.search_factor, self.arch.search_px, rng)
        box = box_in_crop(sequence.boxes[second], around, factor, self.arch.search_px)
        if gray:
            template, search = _gray(template), _gray(search)
        scale = 1 + self.brightness * rng.uniform(-1, 1, 2)
        flips = np.full(2, flip)
        if flip:
            box = np.array([1 - box[0], *box[1:]], np.float32)
        if self.augmentation == "published":
            box[0] -= flip / self.arch.search_px
            again = rng.random(2) < 0.5
            flips ^= again
            box[0] = 1 - box[0] if again[1] else box[0]
        template, search = (
            cv2.convertScaleAbs(cv2.flip(patch, 1) if mirrored else patch, alpha=alpha)
            for patch, mirrored, alpha in ((template, flips[0], scale[0]), (search, flips[1], scale[1]))
        )
        return Pair(template, search, box)

    def _cut(
        self, sequence: Sequence, i: int, factor: float, px: int, rng: np.random.Generator | None
    ) -> tuple[np.ndarray, float, np.ndarray]:
        box = sequence.boxes[i]
        if rng is not None:
            size = box[2:] * np.exp(rng.normal(0, 1, 2) * self.scale_jitter)
            reach = np.sqrt(size.prod()) * self.center_jitter
            center = box[:2] + box[2:] / 2 + (rng.random(2) - 0.5) * reach
            box = np.concatenate([center - size / 2, size])
        square = window(box, factor)
        frames = sequence.frames
        if isinstance(frames, StoredFrames):
            stored = frames.stored(i)
            patch = crop_reduced(stored, square, px) if self.decode == "reduced" else None
            patch = crop_stored(stored, square, px) if patch is None else patch
        else:
            patch = cv2.resize(cut(frames[i], square), (px, px))
        return patch, px / square.side, box

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
        return collate([self.pair(epoch, index) for index in share(step, batch_size, rank, world_size)])


def share(step: int, batch_size: int, rank: int = 0, world_size: int = 1) -> range:
    """The samples of one step that are one worker's.

    Args:
        step: optimizer step in the epoch.
        batch_size: samples of all workers together.
        rank: this worker.
        world_size: workers.

    Returns:
        Their indices in the epoch.
    """
    return range(step * batch_size + rank, (step + 1) * batch_size, world_size)


class PairDataset(Dataset[Pair]):
    """The samples as a map-style data set; a key is (epoch, index), so that one data loader serves all epochs."""

    def __init__(self, sampler: PairSampler) -> None:
        self.sampler = sampler

    def __getitem__(self, index: tuple[int, int]) -> Pair:
        return self.sampler.pair(*index)


def _gray(patch: np.ndarray) -> np.ndarray:
    # Auxiliary channels are kept.
    grey = cv2.cvtColor(np.ascontiguousarray(patch[..., :3]), cv2.COLOR_RGB2GRAY)
    out = patch.copy()
    cv2.mixChannels([grey], [out], [0, 0, 0, 1, 0, 2])
    return out
