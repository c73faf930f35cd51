"""Histograms of all groups in a few flat arrays: what travels between processes, and what a process that only merges works on."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass

import numpy as np

__all__ = ["Packed"]

_MAGIC = b"SRFTSK03"
_SIZES = (1, 2, 4, 8)


@dataclass(frozen=True, eq=False, kw_only=True)
class Packed:
    """Histograms of G groups one after the other, and energies of E parameters."""

    names: tuple[str, ...]
    """Of the groups, sorted."""
    first: np.ndarray
    """``[G]`` int64, number of each histogram's first bin."""
    lengths: np.ndarray
    """``[G]`` int64, its number of bins."""
    counts: np.ndarray
    """``[sum of lengths]`` int64."""
    parameters: tuple[str, ...] = ()
    """Of the energies, sorted."""
    energies: np.ndarray
    """``[E, 2]`` float64: of the workers' own gradients, and of their mean."""
    workers: int = 0
    """Workers whose energies are in it."""

    def to_bytes(self) -> bytes:
        """Compact form: a few hundred bytes per group, each histogram in the narrowest integers that hold its counts.

        Returns:
            Bytes that depend on names and values only.
        """
        starts = np.cumsum(self.lengths) - self.lengths
        largest = np.zeros(len(self.names), np.int64)
        full = self.lengths > 0
        if full.any():
            largest[full] = np.maximum.reduceat(self.counts, starts[full])
        sizes = np.array(_SIZES, np.uint8)[np.searchsorted([2**8, 2**16, 2**32], largest, side="right")]
        wide = np.repeat(sizes, self.lengths)
        payload = [self.counts[wide == size].astype(f"<u{size}").tobytes() for size in _SIZES]
        header = json.dumps([self.names, self.parameters, self.workers], separators=(",", ":")).encode()
        arrays = [self.first.astype("<i4"), self.lengths.astype("<i4"), sizes, self.energies.astype("<f8")]
        return b"".join([_MAGIC, struct.pack("<I", len(header)), header, *(a.tobytes() for a in arrays), *payload])

    @staticmethod
    def from_bytes(data: bytes) -> Packed:
        """Read the compact form.

        Args:
            data: what :meth:`to_bytes` returned.

        Returns:
            The histograms.

        Raises:
            ValueError: the bytes are no sketch, or are cut short.
        """
        if data[:8] != _MAGIC or len(data) < 12:
            raise ValueError(f"statistics begin with {data[:8]!r}; expected {_MAGIC!r}: sent by another version of the program")
        short = f"statistics of {len(data)} bytes do not have the length that their header gives: cut short on the way"
        at = 12 + struct.unpack("<I", data[8:12])[0]
        try:
            names, parameters, workers = json.loads(data[12:at])
        except (UnicodeDecodeError, json.JSONDecodeError):
            raise ValueError(short) from None
        groups = len(names)
        if len(data) < at + 9 * groups + 16 * len(parameters):
            raise ValueError(short)
        first, lengths = np.frombuffer(data, "<i4", 2 * groups, at).astype(np.int64).reshape(2, groups)
        sizes = np.frombuffer(data, np.uint8, groups, at + 8 * groups)
        energies = np.frombuffer(data, "<f8", 2 * len(parameters), at + 9 * groups).astype(np.float64).reshape(-1, 2)
        at += 9 * groups + 16 * len(parameters)
        if len(data) != at + int((sizes * lengths).sum()):
            raise ValueError(short)
        wide, counts = np.repeat(sizes, lengths), np.empty(int(lengths.sum()), np.int64)
        for size in _SIZES:
            number = int(lengths[sizes == size].sum())
            counts[wide == size] = np.frombuffer(data, f"<u{size}", number, at)
            at += size * number
        return Packed(
            names=tuple(names),
            first=first,
            lengths=lengths,
            counts=counts,
            parameters=tuple(parameters),
            energies=energies,
            workers=workers,
        )

    def __add__(self, other: Packed) -> Packed:
        names = self.names if self.names == other.names else tuple(sorted({*self.names, *other.names}))
        parameters = self.parameters if self.parameters == other.parameters else tuple(sorted({*self.parameters, *other.parameters}))
        parts = [part._spread(names, parameters) for part in (self, other)]
        none = np.iinfo(np.int64).max
        first = np.min([np.where(part.lengths > 0, part.first, none) for part in parts], axis=0)
        ends = np.max([part.first + part.lengths for part in parts], axis=0)
        lengths = np.where(first == none, 0, ends - np.where(first == none, 0, first))
        first = np.where(first == none, 0, first)
        starts, counts = np.cumsum(lengths) - lengths, np.zeros(int(lengths.sum()), np.int64)
        for part in parts:
            shift = starts + part.first - first - (np.cumsum(part.lengths) - part.lengths)
            counts[np.repeat(shift, part.lengths) + np.arange(len(part.counts))] += part.counts
        return Packed(
            names=names,
            first=first,
            lengths=lengths,
            counts=counts,
            parameters=parameters,
            energies=parts[0].energies + parts[1].energies,
            workers=self.workers + other.workers,
        )

    def _spread(self, names: tuple[str, ...], parameters: tuple[str, ...]) -> Packed:
        # The same with empty histograms and zero energies for the names that it lacks.
        if names == self.names and parameters == self.parameters:
            return self
        place = np.searchsorted(names, self.names) if self.names else np.zeros(0, np.int64)
        first, lengths = np.zeros(len(names), np.int64), np.zeros(len(names), np.int64)
        first[place], lengths[place] = self.first, self.lengths
        energies = np.zeros((len(parameters), 2))
        energies[np.searchsorted(parameters, self.parameters) if self.parameters else np.zeros(0, np.int64)] = self.energies
        return Packed(
            names=names,
            first=first,
            lengths=lengths,
            counts=self.counts,
            parameters=parameters,
            energies=energies,
            workers=self.workers,
        )
