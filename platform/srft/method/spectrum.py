"""Leading eigenpairs of ``rows^T rows`` from the small Gram matrix ``rows rows^T``, in float64 whatever the rows are kept in."""

from __future__ import annotations

import torch
from torch import Tensor

from srft.method.group_prior import GroupPrior
from srft.method.groups import Group

__all__ = ["column_ranges", "decompose", "mean_squares", "spectrum"]

EIGENVALUE_FLOOR = 1e-10
"""Eigenvalues below this share of the largest are rounding, and so are their vectors."""

PIECE = 1 << 18
"""Elements converted to float64 at once on a CPU: 2 MiB."""


def column_ranges(rows: Tensor) -> list[tuple[int, int]]:
    """Columns to work through at once: pieces of a cache's size on a CPU, everything elsewhere.

    Args:
        rows: ``[N, n]``.

    Returns:
        Pairs of start and stop.
    """
    count, numel = rows.shape
    size = max(1024, PIECE // max(count, 1)) if rows.device.type == "cpu" else max(numel, 1)
    return [(start, min(start + size, numel)) for start in range(0, numel, size)]


def spectrum(rows: Tensor) -> tuple[Tensor, Tensor, int]:
    """Eigenvalues and eigenvectors of the Gram matrix of rows, in float64.

    Args:
        rows: ``[N, n]``.

    Returns:
        ``[N]`` eigenvalues, descending, ``[N, N]`` eigenvectors as columns, both on the CPU, and how many are above rounding.
    """
    gram = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=rows.device)
    for a, b in column_ranges(rows):
        piece = rows[:, a:b].double()
        gram.addmm_(piece, piece.T)
    values, vectors = torch.linalg.eigh(gram.cpu())
    values = values.flip(0).clamp(min=0)
    sure = int((values > EIGENVALUE_FLOOR * values[0]).sum()) if len(values) else 0
    return values, vectors.flip(1), min(sure, rows.shape[1])


def mean_squares(rows: Tensor) -> Tensor:
    """Diagonal of ``rows^T rows / N``.

    Args:
        rows: ``[N, n]``.

    Returns:
        ``[n]`` float32.
    """
    diagonal = torch.empty(rows.shape[1], device=rows.device)
    for a, b in column_ranges(rows):
        diagonal[a:b] = rows[:, a:b].square().mean(0)
    return diagonal


def decompose(
    group: Group,
    rows: Tensor,
    count: int,
    rank: int,
    *,
    dtype: torch.dtype,
    trace: float | None = None,
    left_out: float = 0.0,
    diagonal: Tensor | None = None,
) -> GroupPrior:
    """Leading eigenpairs of ``rows^T rows / count``.

    Args:
        group: whose they are.
        rows: ``[N, n]``.
        count: samples behind the rows.
        rank: eigenpairs to keep, at most [K].
        dtype: of the eigenvectors; what its rounding costs is kept with them.
        trace: of the block; the rows' when None.
        left_out: bound of the spectral norm of what the rows do not hold.
        diagonal: ``[n]`` of the block, if it is to be kept.

    Returns:
        The prior of the group.
    """
    values, vectors, sure = spectrum(rows)
    kept = min(rank, sure)
    following = float(values[kept]) if kept < len(values) else 0.0
    mix = (vectors[:, :kept] / values[:kept].sqrt()).T.to(rows.device)
    eigenvectors = torch.empty(kept, rows.shape[1], dtype=dtype, device=rows.device)
    squares = torch.zeros(kept, dtype=torch.float64, device=rows.device)
    for a, b in column_ranges(rows):
        piece = mix @ rows[:, a:b].double()
        eigenvectors[:, a:b] = piece
        squares += (eigenvectors[:, a:b] - piece).square().sum(1)
    return GroupPrior(
        group=group,
        eigenvalues=values[:kept] / count,
        eigenvectors=eigenvectors,
        trace=float(values.sum()) / count if trace is None else trace,
        next_eigenvalue=following / count + left_out,
        left_out=left_out,
        vector_errors=squares.sqrt().cpu(),
        diagonal=diagonal,
    )
