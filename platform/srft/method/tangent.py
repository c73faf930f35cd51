"""The span of a prior's eigenvectors, as a step goes through it: piece by piece, each piece read from memory once.

V is ``[K, n]`` with orthonormal rows. A piece of V, its columns of the elements a to b, is fetched (and widened to the type that is
computed in) once, then used for as much as is wanted: ``add`` puts ``V^T x`` on these elements, ``accumulate`` adds their share of
``V y`` to a total. The elements may be a shard of the whole; then the totals of all shards add up.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from srft.method.sketch import CHUNK, Scratch, chunks

__all__ = ["Directions", "Kronecker", "LowRank", "Stacked", "coordinates", "stacks_of"]


class Directions(Protocol):
    """The eigenvectors of one group, or a shard of them."""

    def ranges(self) -> list[tuple[int, int]]:
        """Pieces to work through.

        Returns:
            Pairs of first element and one past the last, counted from the shard's first.
        """
        ...

    def empty(self) -> Tensor:
        """A total with nothing accumulated.

        Returns:
            Zeros.
        """
        ...

    def prepare(self, coefficients: Tensor) -> Tensor:
        """What ``add`` needs of the coefficients, computed once for all pieces.

        Args:
            coefficients: ``[K]``.

        Returns:
            Anything.
        """
        ...

    def piece(self, a: int, b: int, scratch: Scratch, slot: int = 0) -> Tensor:
        """Fetch a piece.

        Args:
            a: first element.
            b: one past the last.
            scratch: where it may be put.
            slot: which of several pieces that are needed at the same time.

        Returns:
            Valid until the next piece is fetched into the same slot.
        """
        ...

    def add(self, piece: Tensor, prepared: Tensor, target: Tensor) -> None:
        """Add a combination of the eigenvectors: ``target += V^T x``.

        Args:
            piece: of the elements.
            prepared: from ``prepare``.
            target: ``[b - a]``, changed in place.
        """
        ...

    def accumulate(self, piece: Tensor, values: Tensor, total: Tensor) -> None:
        """Add the elements' share of ``V y``.

        Args:
            piece: of the elements.
            values: ``[b - a]`` y.
            total: changed in place.
        """
        ...

    def coordinates(self, total: Tensor) -> Tensor:
        """``V y`` once all shares are in.

        Args:
            total: summed over pieces and shards.

        Returns:
            ``[K]``.
        """
        ...


class LowRank:
    """Eigenvectors as they are: ``[K, n]``, in any floating type."""

    def __init__(self, vectors: Tensor, dtype: torch.dtype) -> None:
        """Keep the vectors, not a copy.

        Args:
            vectors: ``[K, n]``, of the shard's elements.
            dtype: to compute in.
        """
        self.vectors = vectors
        self.dtype = dtype

    def ranges(self) -> list[tuple[int, int]]:
        """See :class:`Directions`; the more vectors, the shorter, so that a widened piece stays in a cache.

        Returns:
            Pieces.
        """
        return chunks(self.vectors.shape[1], self.vectors.device, max(CHUNK // 16, min(CHUNK, 8 * CHUNK // max(len(self.vectors), 1))))

    def empty(self) -> Tensor:
        """See :class:`Directions`.

        Returns:
            ``[K]``.
        """
        return torch.zeros(len(self.vectors), dtype=self.dtype, device=self.vectors.device)

    def prepare(self, coefficients: Tensor) -> Tensor:
        """See :class:`Directions`.

        Args:
            coefficients: ``[K]``.

        Returns:
            The same, ``[K]``.
        """
        return coefficients.to(self.dtype)

    def piece(self, a: int, b: int, scratch: Scratch, slot: int = 0) -> Tensor:
        """See :class:`Directions`.

        Args:
            a: first element.
            b: one past the last.
            scratch: where vectors of another type are widened.
            slot: see :class:`Directions`.

        Returns:
            ``[K, b - a]``.
        """
        piece = self.vectors[:, a:b]
        if piece.dtype == self.dtype:
            return piece
        return scratch.take(f"piece {slot}", piece.numel(), self.dtype, piece.device).view(piece.shape).copy_(piece)

    def add(self, piece: Tensor, prepared: Tensor, target: Tensor) -> None:
        """See :class:`Directions`.

        Args:
            piece: ``[K, b - a]``.
            prepared: ``[K]``.
            target: ``[b - a]``, changed in place.
        """
        if target.dtype == self.dtype:
            target.addmv_(piece.T, prepared)
        else:
            target.add_(torch.mv(piece.T, prepared))

    def accumulate(self, piece: Tensor, values: Tensor, total: Tensor) -> None:
        """See :class:`Directions`.

        Args:
            piece: ``[K, b - a]``.
            values: ``[b - a]``.
            total: ``[K]``, changed in place.
        """
        total.addmv_(piece, values.to(self.dtype))

    def coordinates(self, total: Tensor) -> Tensor:
        """See :class:`Directions`.

        Args:
            total: ``[K]``.

        Returns:
            The same.
        """
        return total


class Stacked:
    """Eigenvectors of operations of one size, worked on together: on a GPU a call costs more than what it does for one of them."""

    def __init__(self, members: Sequence[LowRank]) -> None:
        """Keep the vectors, not a copy.

        Args:
            members: of the same K, n, and types.
        """
        self.members = members
        self.shape = (len(members), *members[0].vectors.shape)
        self.dtype = members[0].dtype

    def fetch(self, scratch: Scratch, slot: str) -> Tensor:
        """All eigenvectors, widened.

        Args:
            scratch: where they are put.
            slot: what is fetched into different slots does not overlap.

        Returns:
            ``[S, K, n]``, valid until :meth:`project` or the next fetch into the slot.
        """
        count, rank, numel = self.shape
        whole = scratch.take(f"stack {slot}", count * rank * numel, self.dtype, self.members[0].vectors.device).view(self.shape)
        torch._foreach_copy_(list(whole.unbind()), [member.vectors for member in self.members])
        return whole

    def add(self, whole: Tensor, prepared: Sequence[Tensor], target: Tensor) -> None:
        """Add each operation's combination of its eigenvectors.

        Args:
            whole: from :meth:`fetch`.
            prepared: ``[K]`` of each.
            target: ``[S * n]``, changed in place.
        """
        target.view(self.shape[0], 1, -1).baddbmm_(torch.stack(list(prepared)).unsqueeze(1), whole)

    def project(self, whole: Tensor, values: Tensor) -> Tensor:
        """Each operation's ``V y``.

        Args:
            whole: from :meth:`fetch`; holds the products afterwards.
            values: ``[S * n]`` y.

        Returns:
            ``[S, K]``.
        """
        # Not bmm: cuBLAS gives few, long rows to a few blocks, a tenth of the memory's speed on an H200.
        return whole.mul_(values.view(self.shape[0], 1, -1)).sum(2)


def stacks_of(directions: Sequence[Directions | None], dtype: torch.dtype) -> dict[int, Stacked]:
    """Neighbours whose eigenvectors are alike in number, length and types.

    Args:
        directions: of operations laid end to end; None for those that have none or are not whole.
        dtype: of the values; eigenvectors that are computed with in another are left out.

    Returns:
        Stacks of at least two, by the number of the first member.
    """

    def kind(found: Directions | None) -> tuple[torch.Size, torch.dtype] | None:
        return (found.vectors.shape, found.vectors.dtype) if isinstance(found, LowRank) and found.dtype == dtype else None

    stacks, first = {}, 0
    for what, group in itertools.groupby(directions, key=kind):
        members = list(group)
        if what is not None and len(members) > 1:
            stacks[first] = Stacked([member for member in members if isinstance(member, LowRank)])
        first += len(members)
    return stacks


class Kronecker:
    """Eigenvectors that are products ``u w^T`` of a few vectors of a matrix's rows and of its columns."""

    def __init__(self, out_vectors: Tensor, in_vectors: Tensor, pairs: Tensor, dtype: torch.dtype) -> None:
        """Keep the vectors, not a copy.

        Args:
            out_vectors: ``[p, rows]`` u, of the shard's rows.
            in_vectors: ``[q, in]`` w.
            pairs: ``[2, K]`` int64, which u and which w make eigenvector k.
            dtype: to compute in.
        """
        self.out_vectors, self.in_vectors = out_vectors, in_vectors
        self.pairs = pairs.to(out_vectors.device)
        self.dtype = dtype

    def ranges(self) -> list[tuple[int, int]]:
        """See :class:`Directions`; whole rows.

        Returns:
            Pieces.
        """
        inputs, rows = self.in_vectors.shape[1], self.out_vectors.shape[1]
        return [(a * inputs, b * inputs) for a, b in chunks(rows, self.out_vectors.device, max(1, 2 * CHUNK // max(inputs, 1)))]

    def empty(self) -> Tensor:
        """See :class:`Directions`.

        Returns:
            ``[p, q]``.
        """
        return torch.zeros(len(self.out_vectors), len(self.in_vectors), dtype=self.dtype, device=self.out_vectors.device)

    def prepare(self, coefficients: Tensor) -> Tensor:
        """See :class:`Directions`.

        Args:
            coefficients: ``[K]``.

        Returns:
            ``[p, in]``: coefficients in their places, times w.
        """
        table = self.empty()
        table[self.pairs[0], self.pairs[1]] = coefficients.to(table)
        return table @ self.in_vectors.to(self.dtype)

    def piece(self, a: int, b: int, scratch: Scratch, slot: int = 0) -> Tensor:
        """See :class:`Directions`.

        Args:
            a: first element, of a row.
            b: one past the last, of a row.
            scratch: not needed.
            slot: not needed.

        Returns:
            ``[p, rows]``.
        """
        inputs = self.in_vectors.shape[1]
        return self.out_vectors[:, a // inputs : b // inputs].to(self.dtype)

    def add(self, piece: Tensor, prepared: Tensor, target: Tensor) -> None:
        """See :class:`Directions`.

        Args:
            piece: ``[p, rows]``.
            prepared: ``[p, in]``.
            target: ``[rows * in]``, changed in place.
        """
        matrix = target.view(piece.shape[1], -1)
        if target.dtype == self.dtype:
            matrix.addmm_(piece.T, prepared)
        else:
            matrix.add_(piece.T @ prepared)

    def accumulate(self, piece: Tensor, values: Tensor, total: Tensor) -> None:
        """See :class:`Directions`.

        Args:
            piece: ``[p, rows]``.
            values: ``[rows * in]``.
            total: ``[p, q]``, changed in place.
        """
        total.addmm_(piece, values.view(piece.shape[1], -1).to(self.dtype) @ self.in_vectors.to(self.dtype).T)

    def coordinates(self, total: Tensor) -> Tensor:
        """See :class:`Directions`.

        Args:
            total: ``[p, q]``.

        Returns:
            ``[K]``, picked at the pairs.
        """
        return total[self.pairs[0], self.pairs[1]]


def coordinates(vectors: Tensor, values: Tensor) -> Tensor:
    """Coordinates of values in the span of eigenvectors.

    Args:
        vectors: ``[K, n]``.
        values: ``[n]``.

    Returns:
        ``[K]`` in the wider of both types.
    """
    directions = LowRank(vectors, torch.promote_types(vectors.dtype, values.dtype))
    total, scratch = directions.empty(), Scratch()
    for a, b in directions.ranges():
        directions.accumulate(directions.piece(a, b, scratch), values[a:b], total)
    return total
