"""Histograms of magnitudes by their leading bits, and ranks from them. Numpy alone.

A bin is a float32's exponent and the four leading bits of its mantissa: 16 bins per octave, found without a logarithm and without a
sort. Counts are integers, so histograms of shards add up to the histogram of the whole, exactly and in any order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["BINS", "MANTISSA_BITS", "TABLE_BITS", "Histogram", "RankTable", "bin_values", "rank_table"]

MANTISSA_BITS = 4
"""Leading mantissa bits in a bin's number: a bin is at most 1/16 wide, relative to its lower edge."""
BINS = 255 << MANTISSA_BITS
"""Number of bins of finite float32 values; a bin's number is the float's bits shifted right."""
TABLE_BITS = 2
"""Further mantissa bits that a rank table tells apart, by linear interpolation inside a bin."""


@dataclass(frozen=True, eq=False)
class Histogram:
    """Counts of one group's magnitudes over the occupied range of bins.

    Bin 0 holds zeros and what underflows (below 2^-130); bin b > 0 holds the floats whose bits, shifted right, are b.
    """

    first: int
    """Number of the first bin with a count."""
    counts: np.ndarray
    """``[B]`` int64, the first and the last positive; empty for no elements."""

    @staticmethod
    def of_counts(counts: np.ndarray, first: int = 0) -> Histogram:
        """Trim counts to the occupied range.

        Args:
            counts: ``[B]`` integers.
            first: bin number of ``counts[0]``.

        Returns:
            The histogram.

        Raises:
            ValueError: a count is negative or lies beyond the finite floats.
        """
        (occupied,) = np.nonzero(counts)
        if len(occupied) == 0:
            return Histogram(0, np.zeros(0, np.int64))
        low, high = int(occupied[0]), int(occupied[-1]) + 1
        if first < 0 or first + high > BINS or counts.min() < 0:
            raise ValueError(f"histogram with bins {first + low} to {first + high - 1} or a negative count; expected bins 0 to {BINS - 1}")
        return Histogram(first + low, np.ascontiguousarray(counts[low:high], np.int64))

    @property
    def total(self) -> int:
        """Number of elements counted."""
        return int(self.counts.sum())

    def __add__(self, other: Histogram) -> Histogram:
        if not len(self.counts) or not len(other.counts):
            return self if len(self.counts) else other
        first = min(self.first, other.first)
        counts = np.zeros(max(self.first + len(self.counts), other.first + len(other.counts)) - first, np.int64)
        for part in (self, other):
            counts[part.first - first : part.first - first + len(part.counts)] += part.counts
        return Histogram(first, counts)


def bin_values(first: int, number: int) -> np.ndarray:
    """Magnitude that stands for each bin: the middle of the bin, 0 for bin 0.

    Args:
        first: number of the first bin.
        number: how many bins.

    Returns:
        ``[number]`` float64, within 1/32 of every value in the bin, relative to the bin's lower edge.
    """
    edges = (np.arange(first, first + number + 1, dtype=np.uint32) << (23 - MANTISSA_BITS)).view(np.float32).astype(np.float64)
    if first + number == BINS:
        edges[-1] = 2.0**128
    values = 0.5 * (edges[:-1] + edges[1:])
    return np.where(np.arange(first, first + number) == 0, 0.0, values)


@dataclass(frozen=True, eq=False)
class RankTable:
    """The empirical distribution of a group as a lookup: rank of a magnitude from its leading bits.

    A float32 magnitude with bits ``b`` has the rank ``ranks[clip((b >> 17) - first, 0, len(ranks) - 1)]``.
    """

    first: int
    """Shifted bits that ``ranks[0]`` belongs to."""
    ranks: np.ndarray
    """``[T]`` float32, 0 to 1, never falling."""


def rank_table(histogram: Histogram) -> RankTable:
    """Ranks from a histogram: share of elements below, with linear interpolation inside a bin.

    A rank errs by less than the mass of the bin that the magnitude falls into. Zeros share the middle of their bin. Magnitudes
    outside the range get 0 and 1. Where no order is known (no element, or all in one bin) every rank is 0.5.

    Args:
        histogram: magnitudes of one group.

    Returns:
        The lookup table.
    """
    counts = histogram.counts
    if len(counts) <= 1:
        return RankTable(0, np.full(1, 0.5, np.float32))
    per_bin = 1 << TABLE_BITS
    inside = (np.arange(per_bin) + 0.5) / per_bin
    below = np.cumsum(counts) - counts
    ranks = below[:, None] + counts[:, None] * inside
    if histogram.first == 0:
        ranks[0] = 0.5 * counts[0]
    ranks = np.concatenate([[0.0], ranks.ravel() / histogram.total, [1.0]])
    return RankTable(histogram.first * per_bin - 1, ranks.astype(np.float32))
