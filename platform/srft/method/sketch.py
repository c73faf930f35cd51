"""Tensor side of ``srft.method.sparsity``: counting magnitudes and looking up ranks, without a sort."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from srft.method.histogram import BINS, MANTISSA_BITS, TABLE_BITS, Histogram, RankTable
from srft.method.shards import local

__all__ = ["Scratch", "TensorRanks", "chunks", "histogram_of", "tensor_ranks"]

CHUNK = 1 << 17
"""Elements per pass on a CPU: temporaries stay in its cache, and a pass outweighs the calls that it takes."""


class Scratch:
    """Memory for what lives as long as one piece: fresh memory at every piece costs more than what is done with it."""

    def __init__(self) -> None:
        """Hold nothing yet."""
        self._buffers: dict[tuple[str, torch.dtype, torch.device], Tensor] = {}

    def take(self, name: str, numel: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """A buffer, with whatever it held last.

        Args:
            name: buffers of different names do not overlap.
            numel: its length.
            dtype: its type.
            device: where it is.

        Returns:
            ``[numel]``.
        """
        key = (name, dtype, device)
        if key not in self._buffers or len(self._buffers[key]) < numel:
            self._buffers[key] = torch.empty(numel, dtype=dtype, device=device)
        return self._buffers[key][:numel]


def chunks(numel: int, device: torch.device, size: int = CHUNK) -> list[tuple[int, int]]:
    """Ranges to work through: cache-sized on a CPU, 64 times as much on a GPU, where only memory limits them.

    Args:
        numel: number of elements.
        device: where they are.
        size: of a range on a CPU.

    Returns:
        Pairs of start and stop.
    """
    size = size if device.type == "cpu" else 64 * size
    return [(start, min(start + size, numel)) for start in range(0, numel, size)]


def histogram_of(magnitudes: Tensor, name: str = "tensor") -> Histogram:
    """Count magnitudes by their leading bits.

    Args:
        magnitudes: any shape and floating type, not negative. Of a DTensor what this process holds: the histograms of all shards add
            up to that of the whole.
        name: for the error message.

    Returns:
        The histogram.

    Raises:
        ValueError: a value is negative, NaN or infinite.
    """
    bits = local(magnitudes.detach()).to(torch.float32).reshape(-1).view(torch.int32) >> (23 - MANTISSA_BITS)
    if len(bits) == 0:
        return Histogram.of_counts(np.zeros(0, np.int64))
    low, high = (int(extreme) for extreme in bits.aminmax())
    # A float's sign is its highest bit; NaN and infinity lie above every finite float.
    if low < 0 or high >= BINS:
        bad, negative = int((bits >= BINS).sum()), int((bits < 0).sum())
        raise ValueError(
            f"{name}: {bad} of {len(bits)} values are NaN or infinite and {negative} negative; expected finite magnitudes: "
            "lower the learning rate or clip gradients"
        )
    return Histogram.of_counts(torch.bincount(bits.sub_(low)).cpu().numpy(), low)


class TensorRanks:
    """A rank table on a device."""

    def __init__(self, first: int, ranks: Tensor) -> None:
        """Keep the table.

        Args:
            first: shifted bits that ``ranks[0]`` belongs to.
            ranks: ``[T]``, what is looked up.
        """
        self.first = first
        self.ranks = ranks

    def lookup(self, magnitudes: Tensor, scratch: Scratch | None = None) -> Tensor:
        """Entry of each magnitude.

        Args:
            magnitudes: any shape, float32 (other types are converted), not negative.
            scratch: where the result may be put; it is then valid until the next lookup.

        Returns:
            Entries in the same shape: permuting the magnitudes permutes them.
        """
        scratch = scratch or Scratch()
        index = self.index(magnitudes, scratch).sub_(self.first).clamp_(0, len(self.ranks) - 1)
        found = scratch.take("found", len(index), self.ranks.dtype, index.device)
        return torch.index_select(self.ranks, 0, index, out=found).view(magnitudes.shape)

    @staticmethod
    def index(magnitudes: Tensor, scratch: Scratch) -> Tensor:
        """The leading bits that tables are entered by.

        Args:
            magnitudes: any shape, float32 (other types are converted), not negative.
            scratch: where the result is put; it is valid until the next call.

        Returns:
            ``[numel]`` int32.
        """
        bits = magnitudes.to(torch.float32).reshape(-1).view(torch.int32)
        index = scratch.take("index", len(bits), torch.int32, bits.device)
        return torch.bitwise_right_shift(bits, 23 - MANTISSA_BITS - TABLE_BITS, out=index)

    def affine(self, scale: float, shift: float) -> TensorRanks:
        """The table with every entry scaled and shifted: the lookup then does it for free.

        Args:
            scale: multiplies each entry.
            shift: added afterwards.

        Returns:
            A new table.
        """
        return TensorRanks(self.first, self.ranks * scale + shift)


def tensor_ranks(table: RankTable, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> TensorRanks:
    """Put a rank table on a device.

    Args:
        table: from ``srft.method.sparsity.rank_table``.
        device: where magnitudes will be.
        dtype: of the ranks returned.

    Returns:
        The table as tensors.
    """
    return TensorRanks(table.first, torch.from_numpy(table.ranks).to(device=device, dtype=dtype))
