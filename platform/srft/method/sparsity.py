"""Transfer sensitivity as numbers small enough to send: histograms of gradient magnitudes, ranks and sparsity figures from them.

A *magnitude* is the root of the running mean of squared gradients of one element. Everything here is numpy: a process that only
merges needs nothing else. ``srft.method.sketch`` is the tensor side.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, reduce
from typing import NamedTuple, Protocol

import numpy as np

from srft.method.histogram import Histogram, RankTable, bin_values, rank_table
from srft.method.packed import Packed

__all__ = [
    "Energies",
    "Histogram",
    "LocalExchange",
    "MergedStatistics",
    "RankTable",
    "Sketch",
    "SparsityFigures",
    "StatisticsExchange",
    "merge",
    "noise_scale",
    "rank_table",
    "sparsity_figures",
    "worker_overlap",
]


@dataclass(frozen=True, kw_only=True)
class SparsityFigures:
    """How unevenly a group's gradient is spread; every figure is 0 for a gradient that is zero everywhere."""

    hoyer: float
    """(sqrt(n) - l1 / l2) / (sqrt(n) - 1) of the magnitudes: 0 for equal ones, 1 for a single non-zero one."""
    gini: float
    """Gini coefficient of the magnitudes: 0 for equal ones, 1 - 1/n for a single non-zero one."""
    top_share: float
    """Share of the energy (sum of squares) in the largest 1 % of the elements."""
    participation: float
    """(sum of squares)^2 / (n * sum of fourth powers): 1 for equal magnitudes, 1/n for a single non-zero one."""


def sparsity_figures(histogram: Histogram) -> SparsityFigures:
    """Sparsity figures with every magnitude replaced by its bin's middle (relative error at most 1/32).

    Args:
        histogram: magnitudes of one group.

    Returns:
        The figures.
    """
    n = histogram.total
    values, counts = bin_values(histogram.first, len(histogram.counts)), histogram.counts.astype(np.float64)
    if n == 0 or values[-1] == 0:
        return SparsityFigures(hoyer=0.0, gini=0.0, top_share=0.0, participation=0.0)
    values = values / values[-1]
    l1, energy = counts @ values, counts * values**2
    root = np.sqrt(n)
    hoyer = (root - l1 / np.sqrt(energy.sum())) / (root - 1) if n > 1 else 0.0
    below = np.cumsum(counts) - counts
    # Sum of (2 i - n - 1) x_i over the sorted elements; i averages to below + (count + 1) / 2 inside a bin.
    gini = ((2 * below + counts - n) * counts * values).sum() / (n * l1)
    top = 0.01 * n
    above = n - below - counts
    taken = np.clip(top - above, 0, counts)
    return SparsityFigures(
        hoyer=float(np.clip(hoyer, 0, 1)),
        gini=float(np.clip(gini, 0, 1)),
        top_share=float((taken * values**2).sum() / energy.sum()),
        participation=float(energy.sum() ** 2 / (n * (energy * values**2).sum())),
    )


class Energies(NamedTuple):
    """Squared norms of one parameter's gradient in one step, added up over workers."""

    local: float
    """Of each worker's own gradient."""
    mean: float
    """Of the gradient averaged over workers: each worker's share of the elements, or of the whole by one of them."""


@dataclass(frozen=True, eq=False)
class Sketch:
    """Histograms of all groups: what one worker knows about its share of the elements."""

    groups: Mapping[str, Histogram]
    """By group name."""
    energies: Mapping[str, Energies] = field(default_factory=dict)
    """By parameter name, where workers saw their own gradients; see :func:`noise_scale`."""
    workers: int = 0
    """Workers whose energies are in it."""

    def __add__(self, other: Sketch) -> Sketch:
        return Sketch.unpacked(self.packed() + other.packed())

    def packed(self) -> Packed:
        """The same in flat arrays.

        Returns:
            What travels.
        """
        names, parameters = tuple(sorted(self.groups)), tuple(sorted(self.energies))
        histograms = [self.groups[name] for name in names]
        return Packed(
            names=names,
            first=np.array([h.first for h in histograms], np.int64),
            lengths=np.array([len(h.counts) for h in histograms], np.int64),
            counts=np.concatenate([np.zeros(0, np.int64), *(h.counts for h in histograms)]),
            parameters=parameters,
            energies=np.array([self.energies[name] for name in parameters], np.float64).reshape(-1, 2),
            workers=self.workers,
        )

    @staticmethod
    def unpacked(packed: Packed) -> Sketch:
        """From flat arrays.

        Args:
            packed: what travelled.

        Returns:
            The sketch.
        """
        parts = np.split(packed.counts, np.cumsum(packed.lengths)[:-1]) if packed.names else []
        groups = {n: Histogram(int(f), c) for n, f, c in zip(packed.names, packed.first, parts, strict=True)}
        energies = {n: Energies(float(own), float(mean)) for n, (own, mean) in zip(packed.parameters, packed.energies, strict=True)}
        return Sketch(groups, energies, packed.workers)

    def to_bytes(self) -> bytes:
        """Compact form: a few hundred bytes per group.

        Returns:
            Bytes that depend on names and values only.
        """
        return self.packed().to_bytes()

    @staticmethod
    def from_bytes(data: bytes) -> Sketch:
        """Read the compact form; bytes that are no sketch or cut short are a ValueError.

        Args:
            data: what :meth:`to_bytes` returned.

        Returns:
            The sketch.
        """
        return Sketch.unpacked(Packed.from_bytes(data))


def merge(sketches: Sequence[Sketch]) -> Sketch:
    """Add up the sketches of all workers.

    Args:
        sketches: in any order.

    Returns:
        The sketch of all elements together.
    """
    return Sketch.unpacked(reduce(Packed.__add__, (sketch.packed() for sketch in sketches), Sketch({}).packed()))


@dataclass(frozen=True, eq=False)
class MergedStatistics:
    """What all workers together know of one window; the same on every machine for the same counts."""

    step: int
    """Optimizer step at which the window ended."""
    sketch: Sketch
    """Merged over all workers."""

    @staticmethod
    def of(step: int, sketch: Sketch) -> MergedStatistics:
        """Statistics of a merged sketch.

        Args:
            step: optimizer step at which the window ended.
            sketch: merged over all workers.

        Returns:
            The statistics.
        """
        return MergedStatistics(step, sketch)

    @cached_property
    def tables(self) -> Mapping[str, RankTable]:
        """Rank tables by group name."""
        return {name: rank_table(histogram) for name, histogram in self.sketch.groups.items()}

    @cached_property
    def figures(self) -> Mapping[str, SparsityFigures]:
        """Sparsity figures by group name."""
        return {name: sparsity_figures(histogram) for name, histogram in self.sketch.groups.items()}

    @property
    def overlap(self) -> float:
        """:func:`worker_overlap` of all parameters together; not a number with fewer than two workers that saw their own gradients."""
        e, workers = self.sketch.energies.values(), self.sketch.workers
        return worker_overlap(sum(x.local for x in e), sum(x.mean for x in e), workers) if workers > 1 else float("nan")

    def noise(self, batch: int) -> float:
        """:func:`noise_scale` of all parameters together.

        Args:
            batch: samples per worker.

        Returns:
            In samples; not a number with fewer than two workers that saw their own gradients.
        """
        e, workers = self.sketch.energies.values(), self.sketch.workers
        return noise_scale(sum(x.local for x in e), sum(x.mean for x in e), workers, batch) if workers > 1 else float("nan")

    def to_bytes(self) -> bytes:
        """Compact form for a broadcast or a checkpoint.

        Returns:
            The step and the sketch; tables and figures follow from them.
        """
        return struct.pack("<q", self.step) + self.sketch.to_bytes()

    @staticmethod
    def from_bytes(data: bytes) -> MergedStatistics:
        """Read the compact form.

        Args:
            data: what :meth:`to_bytes` returned.

        Returns:
            The statistics.

        Raises:
            ValueError: the bytes are no statistics, or are cut short.
        """
        if len(data) < 8:
            raise ValueError(f"statistics of {len(data)} bytes; expected at least 20: cut short on the way")
        return MergedStatistics.of(struct.unpack("<q", data[:8])[0], Sketch.from_bytes(data[8:]))


class StatisticsExchange(Protocol):
    """Where sketches go and merged statistics come from."""

    def submit(self, step: int, sketch: Sketch) -> None:
        """Hand over this worker's sketch and go on at once.

        Args:
            step: optimizer step at which the window ended.
            sketch: of this worker's share of the elements.
        """
        ...

    def due(self, step: int) -> MergedStatistics | None:
        """What must be applied at a step.

        Args:
            step: optimizer step about to be taken.

        Returns:
            The same statistics on every worker, or None: keep the previous ones.
        """
        ...


class LocalExchange:
    """The exchange of a single process: what was submitted at step s is due at step s + refresh, as with many workers."""

    def __init__(self, refresh: int) -> None:
        """Start with nothing submitted.

        Args:
            refresh: steps between a submission and its use.

        Raises:
            ValueError: refresh is below 1.
        """
        if refresh < 1:
            raise ValueError(f"refresh is {refresh}; expected at least 1 step")
        self.refresh = refresh
        self._pending: dict[int, Sketch] = {}

    def submit(self, step: int, sketch: Sketch) -> None:
        """Keep a sketch until it is due.

        Args:
            step: optimizer step at which the window ended.
            sketch: of all elements.
        """
        self._pending[step] = sketch

    def due(self, step: int) -> MergedStatistics | None:
        """The sketch submitted ``refresh`` steps earlier, once.

        Args:
            step: optimizer step about to be taken.

        Returns:
            Its statistics, or None if nothing was submitted then.
        """
        sketch = self._pending.pop(step - self.refresh, None)
        return None if sketch is None else MergedStatistics.of(step - self.refresh, sketch)

    def state_dict(self) -> dict[int, bytes]:
        """What is submitted and not yet due, for a checkpoint.

        Returns:
            Compact sketches by step.
        """
        return {step: sketch.to_bytes() for step, sketch in self._pending.items()}

    def load_state_dict(self, state: Mapping[int, bytes]) -> None:
        """Restore what was submitted and not yet due.

        Args:
            state: what :meth:`state_dict` returned.
        """
        self._pending = {int(step): Sketch.from_bytes(data) for step, data in state.items()}


def worker_overlap(local: float, mean: float, workers: int) -> float:
    """How much the workers' gradients point the same way: mean inner product of two workers over their mean energy.

    Args:
        local: squared norms of the workers' own gradients, added up.
        mean: squared norm of the mean of these gradients.
        workers: how many.

    Returns:
        1 for equal gradients, about 0 for unrelated ones, negative for opposed ones; 0 if all are zero.

    Raises:
        ValueError: there are fewer than two workers.
    """
    if workers < 2:
        raise ValueError(f"overlap of {workers} worker; expected at least 2")
    return (workers**2 * mean - local) / ((workers - 1) * local) if local > 0 else 0.0


def noise_scale(local: float, mean: float, workers: int, batch: int) -> float:
    """Gradient noise scale: variance of one sample's gradient over the squared norm of the true gradient, both unbiased.

    Args:
        local: squared norms of the workers' own gradients, added up.
        mean: squared norm of the mean of these gradients.
        workers: how many.
        batch: samples per worker.

    Returns:
        In samples; infinite if no gradient shows above the noise.

    Raises:
        ValueError: there are fewer than two workers.
    """
    if workers < 2:
        raise ValueError(f"noise scale of {workers} worker; expected at least 2")
    own = local / workers
    signal = (workers * mean - own) / (workers - 1)
    noise = (own - mean) * batch * workers / (workers - 1)
    return noise / signal if signal > 0 else float("inf")
