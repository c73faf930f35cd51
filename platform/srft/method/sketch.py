"""Tensor side of ``srft.method.sparsity``: counting magnitudes and looking up ranks, without a sort."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor

from srft.method.histogram import BINS, MANTISSA_BITS, TABLE_BITS, Histogram, RankTable
from srft.method.shards import local

__all__ = ["Scratch", "TensorRanks", "chunks", "histogram_of", "histograms_of", "rank_tables", "reach", "tensor_ranks"]

CHUNK = 1 << 17
"""Elements per pass on a CPU: temporaries stay in its cache, and a pass outweighs the calls that it takes."""
GPU = 64
"""How many times as much a pass takes on a GPU, where calls cost more and only memory limits it."""


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


def reach(device: torch.device, size: int) -> int:
    """Elements that one pass takes.

    Args:
        device: where they are.
        size: of a pass on a CPU.

    Returns:
        As many there, GPU times as many on a GPU.
    """
    return size if device.type == "cpu" else GPU * size


def chunks(numel: int, device: torch.device, size: int = CHUNK) -> list[tuple[int, int]]:
    """Ranges to work through: cache-sized on a CPU, GPU times as much on a GPU.

    Args:
        numel: number of elements.
        device: where they are.
        size: of a range on a CPU.

    Returns:
        Pairs of start and stop.
    """
    size = reach(device, size)
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
    values = local(magnitudes.detach()).to(torch.float32).reshape(-1)
    bits = values.view(torch.int32) >> (23 - MANTISSA_BITS)
    if len(bits) == 0:
        return Histogram.of_counts(np.zeros(0, np.int64))
    low, high = (int(extreme) for extreme in bits.aminmax())
    # The sign, also of a NaN, is the highest bit; NaN and infinity lie above every finite float.
    if low < 0 or high >= BINS:
        finite = values.isfinite()
        bad, negative = len(bits) - int(finite.sum()), int((finite & (bits < 0)).sum())
        raise ValueError(
            f"{name}: {bad} of {len(bits)} values are NaN or infinite and {negative} negative; expected finite magnitudes: "
            "lower the learning rate or clip gradients"
        )
    return Histogram.of_counts(torch.bincount(bits.sub_(low)).cpu().numpy(), low)


def histograms_of(magnitudes: Iterable[tuple[str, Tensor]], what: str) -> dict[str, Histogram]:
    """Count many tensors, small ones together: each count is a call or, on a GPU, a wait.

    Args:
        magnitudes: by name; see :func:`histogram_of`. Asked for one by one.
        what: they are, for the error message, which :func:`histogram_of` gives.

    Returns:
        The same histograms, by name.
    """
    found: dict[str, Histogram] = {}
    waiting: dict[str, Tensor] = {}

    def count() -> None:
        found.update(_counted_together(waiting, what))
        waiting.clear()

    for name, values in magnitudes:
        values = local(values.detach()).reshape(-1)
        most = reach(values.device, CHUNK)
        if len(values) > most // 4:
            found[name] = histogram_of(values, f"{what} of {name}")
            continue
        if waiting and (sum(map(len, waiting.values())) + len(values) > most or next(iter(waiting.values())).device != values.device):
            count()
        waiting[name] = values
    count()
    return found


def _counted_together(magnitudes: Mapping[str, Tensor], what: str) -> dict[str, Histogram]:
    # A row of counts for each, with a bin more at either end for what is no magnitude.
    if not magnitudes:
        return {}
    sizes, width = [len(values) for values in magnitudes.values()], BINS + 2
    joined = torch.cat([values.to(torch.float32) for values in magnitudes.values()])
    bits = (joined.view(torch.int32) >> (23 - MANTISSA_BITS)).clamp_(-1, BINS)
    rows = torch.arange(1, 1 + width * len(sizes), width, dtype=torch.int32, device=joined.device)
    bits += rows.repeat_interleave(torch.tensor(sizes, device=joined.device), output_size=len(joined))
    counts = torch.bincount(bits, minlength=width * len(sizes)).view(len(sizes), width).cpu().numpy()
    if counts[:, [0, -1]].any():
        return {name: histogram_of(values, f"{what} of {name}") for name, values in magnitudes.items()}
    return {name: Histogram.of_counts(row[1:-1]) for name, row in zip(magnitudes, counts, strict=True)}


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


def rank_tables(tables: Mapping[str, RankTable], device: torch.device) -> dict[str, TensorRanks]:
    """Put many rank tables on a device, in one transfer.

    Args:
        tables: by name.
        device: where magnitudes will be.

    Returns:
        The tables as tensors, by name.
    """
    joined = torch.from_numpy(np.concatenate([table.ranks for table in tables.values()])).to(device=device, dtype=torch.float32)
    parts = joined.split([len(table.ranks) for table in tables.values()])
    return {name: TensorRanks(table.first, part) for (name, table), part in zip(tables.items(), parts, strict=True)}


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
