"""Prior sensitivity in one pass and bounded memory: a low-rank sketch per group instead of every sample's gradient.

The sketch S is ``[r, n]`` with ``S^T S <= sum_n g_n g_n^T``. New gradients are put below it; when the buffer is full, a rotation of its
rows brings the leading directions to the top and the others are dropped (incremental singular value decomposition from the Gram matrix,
in float64). Every compression i drops a positive semi-definite matrix whose largest eigenvalue delta_i is known, and the trace is counted
apart, so that with D the sum of what was dropped ``|D|_2 <= min(sum_i delta_i, residual)``: the bound holds whatever the data are,
and is tight if the spectrum decays within the sketch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from srft.config import FisherType
from srft.method.fisher import Item, mean_top, sample_gradients, trainable_groups, undisturbed
from srft.method.groups import Group
from srft.method.prior import GroupPrior, PriorSensitivity, weights_hash
from srft.method.sketch import chunks
from srft.method.spectrum import column_ranges, decompose, spectrum

__all__ = ["GroupSketch", "estimate_prior_streaming"]


class GroupSketch:
    """Rows of one group, at most ``size`` after a compression, and what compressions dropped."""

    def __init__(self, group: Group, size: int, block: int, *, diagonal: bool = False) -> None:
        """An empty sketch.

        Args:
            group: whose gradients.
            size: rows after a compression.
            block: gradients between two compressions.
            diagonal: whether to sum squares of gradients, too.
        """
        self.group = group
        self.size = size
        self.capacity = size + block
        self.diagonal = diagonal
        self.rows: Tensor | None = None
        self.squares: Tensor | None = None
        self.filled = 0
        self.energies: list[float] = []
        self.dropped = 0.0

    def add(self, gradient: Tensor) -> None:
        """Put one sample's gradient below the sketch, compressing it first if it is full.

        Args:
            gradient: ``[n]``.
        """
        if self.rows is None:
            dtype = torch.promote_types(gradient.dtype, torch.float32)
            self.rows = torch.empty(self.capacity, len(gradient), dtype=dtype, device=gradient.device)
        if self.filled == self.capacity:
            self._compress(self.rows)
        row = self.rows[self.filled]
        row.copy_(gradient)
        self.energies.append(math.fsum(float(row[a:b].double().square().sum()) for a, b in chunks(len(row), row.device)))
        self.filled += 1
        if self.diagonal:
            self.squares = torch.zeros(len(gradient), device=gradient.device) if self.squares is None else self.squares
            self.squares.addcmul_(row.float(), row.float())

    def prior(self, rank: int, dtype: torch.dtype) -> GroupPrior:
        """The leading eigenpairs of what was added; the sketch is empty afterwards.

        Args:
            rank: eigenpairs to keep, at most [K].
            dtype: of the eigenvectors.

        Returns:
            The prior of the group.

        Raises:
            ValueError: nothing was added.
        """
        if self.rows is None:
            raise ValueError(f"{self.group.name}: no gradient was added to the sketch; expected at least one")
        count, rows, self.rows = len(self.energies), self.rows[: self.filled], None
        trace, left_out = math.fsum(self.energies) / count, self.dropped / count
        squares, self.squares = self.squares, None
        diagonal = None if squares is None else squares.div_(count)
        return decompose(self.group, rows, count, rank, dtype=dtype, trace=trace, left_out=left_out, diagonal=diagonal)

    def _compress(self, rows: Tensor) -> None:
        values, vectors, sure = spectrum(rows)
        kept = min(self.size, sure)
        mix = vectors[:, :kept].T.to(rows.device)
        for a, b in column_ranges(rows):
            rows[:kept, a:b] = (mix @ rows[:, a:b].double()).to(rows.dtype)
        self.dropped += float(values[kept]) if kept < len(values) else 0.0
        self.filled = kept


def estimate_prior_streaming(
    model: nn.Module,
    sample_loss: Callable[[nn.Module, Item], Tensor],
    samples: Iterable[Item],
    *,
    rank: int,
    fisher_type: FisherType,
    groups: Sequence[Group] | None = None,
    data: str = "",
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    oversampling: int | None = None,
    block: int | None = None,
    diagonal: bool = False,
) -> PriorSensitivity:
    """Leading eigenpairs from one pass over any number of samples, in memory for ``rank + oversampling + block`` gradients.

    Exact if there are at most that many samples; otherwise what was dropped is in ``next_eigenvalue`` and so in the bounds, and the trace
    is exact still. Workers estimate on shares of the samples and :func:`srft.method.fisher.merge_priors` merges what they return; the order
    and the sizes of shares matter within the bounds only, and the less the larger the workers' ranks are against the rank merged to.
    The model is left as :func:`srft.method.fisher.estimate_prior` leaves it.

    Args:
        model: the pre-trained model.
        sample_loss: scalar loss of the model on one sample, as for ``estimate_prior``.
        samples: what ``sample_loss`` takes, one after the other.
        rank: eigenpairs to keep per group, at most [K].
        fisher_type: which of the two ``sample_loss`` implements; recorded.
        groups: operations to estimate; every trainable parameter's when None.
        data: what the samples are; recorded.
        seed: of the random numbers that ``sample_loss`` may draw.
        dtype: of the eigenvectors kept.
        oversampling: rows that the sketch keeps beyond K, which are what makes its last eigenpairs accurate; K, at least 8, when None.
        block: gradients between two compressions; half as many as the sketch has rows when None, which is memory well spent: fewer make
            compressions, each of which reads the sketch twice, the larger part of the time.
        diagonal: whether to keep the exact diagonal of every block, one more number per parameter.

    Returns:
        The prior. What is a ValueError for ``estimate_prior`` is one here.

    Raises:
        ValueError: rank or oversampling is negative, block is less than 1, or the sketch has no row.
    """
    oversampling = max(rank, 8) if oversampling is None else oversampling
    size = rank + oversampling
    block = max(size // 2, 1) if block is None else block
    if rank < 0 or oversampling < 0 or block < 1 or size < 1:
        raise ValueError(
            f"rank {rank}, oversampling {oversampling}, block {block}; expected none negative, rank + oversampling and block at least 1"
        )
    sketches = [GroupSketch(group, size, block, diagonal=diagonal) for group in trainable_groups(model, groups)]
    with undisturbed(model, seed):
        for gradients in sample_gradients(model, sample_loss, samples, [sketch.group for sketch in sketches]):
            for sketch in sketches:
                sketch.add(gradients[sketch.group.parameter][sketch.group.start : sketch.group.stop])
    count = len(sketches[0].energies) if sketches else 0
    estimated = {sketch.group.name: sketch.prior(rank, dtype) for sketch in sketches}
    return PriorSensitivity(
        groups=estimated,
        rank=rank,
        samples=count,
        fisher_type=fisher_type,
        base_hash=weights_hash(model.state_dict()),
        data=data,
        scale=mean_top(estimated.values()),
        estimator="streaming",
    )
