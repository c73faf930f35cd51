"""What the proof study measures of a tracker: success on drawn pairs and over whole sequences, of the target and of the source."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from srft.config import DataConfig
from srft.data import davis_cars
from srft.data.pairs import Pair, PairSampler, RawBatch, normalized, stack
from srft.data.sequence import Sequence
from srft.data.synthetic import Split, sequences
from srft.evaluation.metrics import iou, success_curve
from srft.evaluation.runner import TestSet, evaluate
from srft.model.architecture import Architecture
from srft.model.tracker import MultiModalTracker

__all__ = ["Part", "chunked", "looks", "pair_success", "parts", "rendered", "tests"]

CHUNK = 64
"""Pairs that go through the network at once."""


@functools.lru_cache(maxsize=8)
def rendered(data: DataConfig, split: Split, count: int, first: int, cache: Path) -> tuple[Sequence, ...]:
    """Some sequences of a split in which the target can be measured.

    Args:
        data: world, length and modality.
        split: which objects and backgrounds.
        count: how many.
        first: index of the first.
        cache: folder of rendered sequences.

    Returns:
        The sequences; those of which no pair can be drawn are left out.
    """
    found = sequences(split, count, seed=data.world_seed, length=data.length, modality=data.modality, cache=cache, first=first)
    return tuple(s for s in found if s.shortest_gap <= data.max_gap)


def looks(found: Iterable[Sequence], arch: Architecture, data: DataConfig, each: int) -> list[RawBatch]:
    """Pairs to test on: looks from a template into a shifted search region.

    Args:
        found: sequences to draw from.
        arch: sizes of the crops.
        data: how pairs are drawn.
        each: pairs of each sequence.

    Returns:
        Chunks, sequence by sequence.
    """
    samplers = [PairSampler.of((s,), arch, dataclasses.replace(data, pool=0), seed=i) for i, s in enumerate(found)]
    return chunked(sampler.pair(0, n) for sampler in samplers for n in range(each))


@functools.lru_cache(maxsize=4)
def _looks(data: DataConfig, arch: Architecture, part: Part, cache: Path) -> list[RawBatch]:
    return looks(part.sequences(data, cache), arch, data, part.each)


def chunked(pairs: Iterable[Pair]) -> list[RawBatch]:
    """Pairs as they go through the network.

    Args:
        pairs: any number.

    Returns:
        Stacks of at most CHUNK.
    """
    taken = iter(pairs)
    return [stack(chunk) for chunk in iter(lambda: list(itertools.islice(taken, CHUNK)), [])]


@torch.inference_mode()
def overlaps(network: MultiModalTracker, chunks: list[RawBatch], *, rgb_only: bool = False) -> np.ndarray:
    """Of the box that one look at each pair gives, without what tracking adds to it.

    Args:
        network: in eval mode.
        chunks: of pairs.
        rgb_only: leave the auxiliary channels out.

    Returns:
        ``[N]`` intersection over union with the groundtruth.
    """
    device = next(network.parameters()).device
    found = []
    for raw in chunks:
        batch = normalized(RawBatch(*(part.to(device) for part in raw)))
        channels = 3 if rgb_only else batch.search.shape[1]
        boxes = network(batch.template[:, :channels], batch.search[:, :channels]).boxes
        corner = [torch.cat([b[:, :2] - b[:, 2:] / 2, b[:, 2:]], 1).double().cpu().numpy() for b in (boxes, batch.boxes)]
        found.append(iou(*corner))
    return np.concatenate(found)


def pair_success(network: MultiModalTracker, chunks: list[RawBatch], each: int, *, rgb_only: bool = False) -> np.ndarray:
    """Success on drawn pairs.

    Args:
        network: in eval mode.
        chunks: of pairs, so many of each sequence.
        each: how many.
        rgb_only: leave the auxiliary channels out.

    Returns:
        ``[S]`` success AUC of each sequence.
    """
    found = overlaps(network, chunks, rgb_only=rgb_only).reshape(-1, each)
    return np.array([success_curve(part).mean() for part in found])


@dataclass(frozen=True, kw_only=True)
class Part:
    """Sequences that trackers are tested on, and pairs of them."""

    split: Split
    count: int
    first: int
    each: int
    """Pairs of each sequence."""

    def sequences(self, data: DataConfig, cache: Path) -> tuple[Sequence, ...]:
        """Those in which the target can be measured.

        Args:
            data: world, length and modality.
            cache: folder of rendered sequences.

        Returns:
            The sequences.
        """
        return rendered(data, self.split, self.count, self.first, cache)


def parts(data: DataConfig, pairs: int) -> dict[str, Part]:
    """What trackers are tested on; sequences that choose are other ones than those that judge.

    Args:
        data: the run's data settings.
        pairs: target pairs of the test.

    Returns:
        By name.
    """
    count, held_out = data.test_sequences, data.source_sequences
    each, few = max(1, -(-pairs // count)), min(32, count)
    return {
        "test": Part(split="target-test", count=count, first=0, each=each),
        "source": Part(split="source-test", count=count, first=held_out, each=-(-each // 2)),
        "val": Part(split="target-val", count=few, first=0, each=-(-each // 2)),
        "val_source": Part(split="source-test", count=few, first=held_out + count, each=-(-each // 2)),
    }


def tests(network: MultiModalTracker, data: DataConfig, pairs: int, cache: Path) -> dict[str, Any]:
    """Everything that a tuned tracker is measured by; with events also on the cars that a real camera recorded.

    Args:
        network: the tracker.
        data: the run's data settings.
        pairs: target pairs of the test.
        cache: folder of rendered sequences.

    Returns:
        Means by name, fractions of 1, and ``per_sequence`` lists of the same.
    """
    network.eval()
    # What does not change the tests is as usual, so that cells share their pairs.
    world = DataConfig(modality=data.modality, world_seed=data.world_seed, length=data.length)
    figures: dict[str, Any] = {}
    lists: dict[str, list[float]] = {}
    sets: list[TestSet] = []
    for name, part in parts(data, pairs).items():
        rgb_only = part.split.startswith("source")
        lists[f"{name}/pair_auc"] = pair_success(network, _looks(world, network.arch, part, cache), part.each, rgb_only=rgb_only).tolist()
        if name in ("test", "source"):
            sets.append(TestSet(name=name, sequences=part.sequences(world, cache), rgb_only=rgb_only))
    if data.modality == "rgbe":
        sets.append(TestSet(name="cars", sequences=tuple(davis_cars.load())))
    for name, measures in evaluate(network, sets).measures.items():
        lists[f"{name}/online_auc"] = measures.per_sequence.tolist()
        figures[f"{name}/online_precision"] = measures.precision_20
    return figures | {name: float(np.mean(values)) for name, values in lists.items()} | {"per_sequence": lists}
