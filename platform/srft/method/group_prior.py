"""Prior sensitivity of one group: what all kinds of eigenvectors share, and the kind that keeps them as they are.

Eigenvectors may be kept in fewer bits. What that costs is kept with them: e_k, the Euclidean norm of the error of eigenvector k. Whatever
is added to V moves ``V^T Lambda V`` by at most ``2 sqrt(lambda_1 s) + s`` with ``s = sum_k lambda_k e_k^2``, in both norms of the bound.

Beside the eigenpairs there may be the exact diagonal of the block, so that ``V^T Lambda V + diag(r)``, r the part of the diagonal that the
eigenpairs leave out, knows something of every direction. It is kept whole: whatever number of eigenpairs is kept, r follows from it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from srft.method.groups import Group
from srft.method.storage import optional, restored, restored_diagonal, stored, stored_diagonal
from srft.method.tangent import coordinates

__all__ = ["BlockPrior", "ErrorBound", "GroupPrior", "rounding_bound"]


@dataclass(frozen=True, kw_only=True)
class ErrorBound:
    """How far the kept part is from the block-diagonal Fisher matrix, or from one block of it, at most."""

    spectral: float
    """Bound of the largest singular value of the difference."""
    frobenius: float
    """Bound of the root of the sum of squares of the difference."""


def rounding_bound(eigenvalues: Tensor, vector_errors: Tensor | None) -> float:
    """How far eigenvectors in few bits move the kept part.

    Args:
        eigenvalues: ``[K]``.
        vector_errors: ``[K]`` e, or None for none.

    Returns:
        A bound of the spectral and of the Frobenius norm of the difference.
    """
    if vector_errors is None or len(eigenvalues) == 0:
        return 0.0
    s = float((eigenvalues.cpu() * vector_errors.cpu().square()).sum())
    return 2 * math.sqrt(float(eigenvalues.max()) * s) + s


@dataclass(frozen=True, kw_only=True, eq=False)
class BlockPrior(ABC):
    """What both kinds share: n elements, K eigenpairs, and a diagonal that does not depend on K."""

    group: Group
    eigenvalues: Tensor
    """``[K]`` float64, descending."""
    trace: float
    """Exact trace of the block."""
    vector_errors: Tensor | None = None
    """``[K]`` float64 e, what fewer bits cost each eigenvector; None if they are as accurate as computed."""
    diagonal: Tensor | None = None
    """``[n]`` float32, exact diagonal of the block; None if it was not estimated."""
    share: float = 1.0
    """Of the tangent-space term's strength that acts on this operation; not part of the estimate, and not stored."""

    @property
    def largest_left_out(self) -> float:
        """The largest eigenvalue that was estimated and not kept; 0 if all were, or if that is not known."""
        return 0.0

    @property
    def residual(self) -> float:
        """Trace that the kept eigenpairs leave out, at least 0."""
        return max(self.trace - float(self.eigenvalues.sum()), 0.0)

    @abstractmethod
    def kept_measure(self) -> Tensor:
        """Diagonal of the kept part, ``s_i = sum_k lambda_k v_ki^2``.

        Returns:
            ``[n]`` in the type of the eigenvectors, float32 at least.
        """

    def measure(self) -> Tensor:
        """Sensitivity of each element: the exact diagonal of the block if it is known, otherwise that of the kept part.

        Returns:
            ``[n]``, float32 at least.
        """
        return self.kept_measure() if self.diagonal is None else self.diagonal

    def residual_diagonal(self) -> Tensor:
        """What the eigenpairs leave out of the block's diagonal.

        Returns:
            ``[n]``, float32 at least, not negative.

        Raises:
            ValueError: the diagonal was not estimated.
        """
        if self.diagonal is None:
            raise ValueError(f"{self.group.name}: the prior holds no diagonal; estimate it with diagonal=True")
        return (self.diagonal - self.kept_measure()).clamp_(min=0)


@dataclass(frozen=True, kw_only=True, eq=False)
class GroupPrior(BlockPrior):
    """Eigenvectors as they are. K may be less than asked for: the block's rank is at most min(N, n)."""

    eigenvectors: Tensor
    """``[K, n]``, orthonormal rows: keeping fewer is a view."""
    next_eigenvalue: float
    """The largest eigenvalue left out, or an upper bound of it."""
    left_out: float = 0.0
    """The part of ``next_eigenvalue`` that no truncation changes: bound of what an estimator that is not exact did not see."""

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """Eigenvectors, and the diagonal if there is one."""
        return (self.eigenvectors,) if self.diagonal is None else (self.eigenvectors, self.diagonal)

    def truncated(self, rank: int) -> GroupPrior:
        """Keep the leading eigenpairs.

        Args:
            rank: how many, at most.

        Returns:
            A prior that shares the eigenvectors' storage.
        """
        if rank >= len(self.eigenvalues):
            return self
        return replace(
            self,
            eigenvalues=self.eigenvalues[:rank],
            eigenvectors=self.eigenvectors[:rank],
            next_eigenvalue=float(self.eigenvalues[rank]) + self.left_out,
            vector_errors=None if self.vector_errors is None else self.vector_errors[:rank],
        )

    def project(self, delta: Tensor) -> Tensor:
        """Coordinates of a displacement in the span of the eigenvectors.

        Args:
            delta: ``[n]``.

        Returns:
            ``[K]`` in the wider of both types.
        """
        return coordinates(self.eigenvectors, delta)

    def expand(self, coefficients: Tensor) -> Tensor:
        """The displacement with given coordinates.

        Args:
            coefficients: ``[K]``.

        Returns:
            ``[n]`` in the wider of both types.
        """
        dtype = torch.promote_types(self.eigenvectors.dtype, coefficients.dtype)
        total = torch.zeros(self.group.numel, dtype=dtype, device=self.eigenvectors.device)
        for coefficient, vector in zip(coefficients.tolist(), self.eigenvectors, strict=True):
            total.add_(vector, alpha=coefficient)
        return total

    def kept_measure(self) -> Tensor:
        """Diagonal of the kept part, ``s_i = sum_k lambda_k v_ki^2``.

        Returns:
            ``[n]`` in the type of the eigenvectors, float32 at least.
        """
        dtype = torch.promote_types(self.eigenvectors.dtype, torch.float32)
        s = torch.zeros(self.group.numel, dtype=dtype, device=self.eigenvectors.device)
        for eigenvalue, vector in zip(self.eigenvalues.tolist(), self.eigenvectors, strict=True):
            vector = vector.to(dtype)
            s.addcmul_(vector, vector, value=eigenvalue)
        return s

    def error_bound(self) -> ErrorBound:
        """Distance of the kept part from the block, by what is left out and by fewer bits.

        Returns:
            Both bounds.
        """
        spectral = min(self.next_eigenvalue, self.residual)
        rounding = rounding_bound(self.eigenvalues, self.vector_errors)
        return ErrorBound(spectral=spectral + rounding, frobenius=math.sqrt(spectral * self.residual) + rounding)

    @property
    def largest_left_out(self) -> float:
        """The largest eigenvalue that was estimated and not kept; 0 if all were."""
        return self.next_eigenvalue - self.left_out

    def to(self, device: str | torch.device, dtype: torch.dtype | None = None) -> GroupPrior:
        """The same elsewhere.

        Args:
            device: where to put eigenvectors and diagonal.
            dtype: of the eigenvectors, at least as wide as theirs; None keeps theirs.

        Returns:
            A prior that shares storage where nothing changes.
        """
        diagonal = None if self.diagonal is None else self.diagonal.to(device)
        return replace(self, eigenvectors=self.eigenvectors.to(device, dtype), diagonal=diagonal)

    def as_file(self, storage: torch.dtype | None) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What a file keeps of this group.

        Args:
            storage: type of the eigenvectors in it; None keeps theirs.

        Returns:
            Tensors by name and numbers by field.
        """
        tensors, errors = stored("eigenvectors", self.eigenvectors, storage)
        tensors |= {"eigenvalues": self.eigenvalues.contiguous(), **stored_diagonal("diagonal", self.diagonal, storage)}
        known = [e for e in (self.vector_errors, errors) if e is not None]
        if known:
            tensors["vector_errors"] = torch.stack(known).sum(0)
        return tensors, {"trace": self.trace, "next_eigenvalue": self.next_eigenvalue, "left_out": self.left_out}

    @classmethod
    def from_file(cls, file: Any, group: Group, numbers: Mapping[str, float]) -> GroupPrior:
        """Read what :meth:`as_file` made.

        Args:
            file: an open safetensors file, names of tensors preceded by the group's and a slash.
            group: whose prior to read.
            numbers: by field.

        Returns:
            The prior of the group.
        """
        errors = optional(file, f"{group.name}/vector_errors")
        return cls(
            group=group,
            eigenvalues=file.get_tensor(f"{group.name}/eigenvalues").cpu(),
            eigenvectors=restored(file, f"{group.name}/eigenvectors"),
            vector_errors=None if errors is None else errors.cpu(),
            diagonal=restored_diagonal(file, f"{group.name}/diagonal"),
            **numbers,
        )
