"""Prior sensitivity of weight matrices as Kronecker products: many eigenpairs without storing K vectors of n numbers.

A layer's weight is a matrix ``[out, in]``; a convolution's is that of its unfolded input, ``in`` = channels x kernel. Eigenvector k is
``v = kron(u_i, w_j)``, as a matrix ``u_i w_j^T``, with orthonormal u of the layer's outputs and w of its inputs; only those that occur are
stored. Here is what they are used for; ``srft.method.kronecker`` chooses them.
Eigenvalues are ``v^T F v`` of the block itself, the correction of George et al. 2018 (arXiv 1806.03884), so that
``F~ = sum_k (v_k^T F v_k) v_k v_k^T`` is the best matrix with these eigenvectors and its residual trace is exact.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from srft.method.group_prior import BlockPrior, ErrorBound, rounding_bound
from srft.method.groups import Group
from srft.method.storage import optional, restored, restored_diagonal, stored, stored_diagonal

__all__ = ["KroneckerGroup", "pair_errors"]


@dataclass(frozen=True, kw_only=True, eq=False)
class KroneckerGroup(BlockPrior):
    """Prior sensitivity of one weight matrix, or of some of its rows; eigenvalues are ``v_k^T F v_k``."""

    out_vectors: Tensor
    """``[p, out]``, orthonormal rows u."""
    in_vectors: Tensor
    """``[q, in]``, orthonormal rows w."""
    pairs: Tensor
    """``[2, K]`` int64 on the CPU: which u and which w make eigenvector k."""
    spectral: float
    """Bound of the largest singular value of block minus kept part, before rounding of the vectors."""
    frobenius: float
    """Bound of the root of its sum of squares, before rounding of the vectors."""

    @property
    def stored_numbers(self) -> int:
        """Numbers in the vectors stored."""
        return self.out_vectors.numel() + self.in_vectors.numel()

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """The tensors that the memory goes to: vectors, and the diagonal if there is one."""
        return (self.out_vectors, self.in_vectors, *(() if self.diagonal is None else (self.diagonal,)))

    def truncated(self, rank: int) -> KroneckerGroup:
        """Keep the leading eigenpairs.

        Args:
            rank: how many, at most.

        Returns:
            A prior that shares the vectors' storage.
        """
        if rank >= len(self.eigenvalues):
            return self
        cut, pairs = self.eigenvalues[rank:], self.pairs[:, :rank]
        p, q = (pairs.amax(1) + 1).tolist() if rank else (0, 0)
        return replace(
            self,
            eigenvalues=self.eigenvalues[:rank],
            out_vectors=self.out_vectors[:p],
            in_vectors=self.in_vectors[:q],
            pairs=pairs,
            spectral=self.spectral + float(cut[0]),
            frobenius=math.hypot(self.frobenius, float(cut.norm())),
            vector_errors=None if self.vector_errors is None else self.vector_errors[:rank],
        )

    def _placed(self, values: Tensor, dtype: torch.dtype) -> Tensor:
        table = torch.zeros(len(self.out_vectors), len(self.in_vectors), dtype=dtype, device=self.out_vectors.device)
        table[self.pairs[0], self.pairs[1]] = values.to(table)
        return table

    def project(self, delta: Tensor) -> Tensor:
        """Coordinates of a displacement in the span of the eigenvectors.

        Args:
            delta: ``[n]`` or ``[out, in]``.

        Returns:
            ``[K]`` in the wider of both types.
        """
        dtype = torch.promote_types(delta.dtype, self.out_vectors.dtype)
        u, w = self.out_vectors.to(dtype), self.in_vectors.to(dtype)
        return torch.linalg.multi_dot([u, delta.reshape(u.shape[1], w.shape[1]).to(dtype), w.T])[self.pairs[0], self.pairs[1]]

    def expand(self, coefficients: Tensor) -> Tensor:
        """The displacement with given coordinates.

        Args:
            coefficients: ``[K]``.

        Returns:
            ``[n]``, the flattened ``[out, in]``, in the wider of both types.
        """
        dtype = torch.promote_types(coefficients.dtype, self.out_vectors.dtype)
        table = self._placed(coefficients, dtype)
        return torch.linalg.multi_dot([self.out_vectors.to(dtype).T, table, self.in_vectors.to(dtype)]).reshape(-1)

    def kept_measure(self) -> Tensor:
        """Diagonal of the kept part, ``s_i = sum_k lambda_k v_ki^2``.

        Returns:
            ``[n]`` in the type of the vectors, float32 at least.
        """
        dtype = torch.promote_types(self.out_vectors.dtype, torch.float32)
        u, w = self.out_vectors.to(dtype).square(), self.in_vectors.to(dtype).square()
        return torch.linalg.multi_dot([u.T, self._placed(self.eigenvalues, dtype), w]).reshape(-1)

    def error_bound(self) -> ErrorBound:
        """Distance of the kept part from the block, by what is left out and by fewer bits.

        Returns:
            Both bounds.
        """
        rounding = rounding_bound(self.eigenvalues, self.vector_errors)
        return ErrorBound(spectral=self.spectral + rounding, frobenius=self.frobenius + rounding)

    def to(self, device: str | torch.device, dtype: torch.dtype | None = None) -> KroneckerGroup:
        """The same elsewhere.

        Args:
            device: where to put vectors and diagonal.
            dtype: of the vectors, at least as wide as theirs; None keeps theirs.

        Returns:
            A prior that shares storage where nothing changes.
        """
        u, w = self.out_vectors.to(device, dtype), self.in_vectors.to(device, dtype)
        return replace(self, out_vectors=u, in_vectors=w, diagonal=None if self.diagonal is None else self.diagonal.to(device))

    def as_file(self, storage: torch.dtype | None) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What a file keeps of this group.

        Args:
            storage: type of the vectors in it; None keeps theirs.

        Returns:
            Tensors by name and numbers by field.
        """
        out, out_errors = stored("out_vectors", self.out_vectors, storage)
        into, in_errors = stored("in_vectors", self.in_vectors, storage)
        tensors = {**out, **into, **stored_diagonal("diagonal", self.diagonal, storage)}
        tensors |= {"eigenvalues": self.eigenvalues.contiguous(), "pairs": self.pairs.contiguous()}
        known = [] if self.vector_errors is None else [self.vector_errors]
        if out_errors is not None or in_errors is not None:
            known.append(pair_errors(self.pairs, out_errors, in_errors))
        if known:
            tensors["vector_errors"] = torch.stack(known).sum(0)
        return tensors, {"trace": self.trace, "spectral": self.spectral, "frobenius": self.frobenius}

    @classmethod
    def from_file(cls, file: Any, group: Group, numbers: Mapping[str, float]) -> KroneckerGroup:
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
            out_vectors=restored(file, f"{group.name}/out_vectors"),
            in_vectors=restored(file, f"{group.name}/in_vectors"),
            pairs=file.get_tensor(f"{group.name}/pairs").cpu(),
            vector_errors=None if errors is None else errors.cpu(),
            diagonal=restored_diagonal(file, f"{group.name}/diagonal"),
            **numbers,
        )


def pair_errors(pairs: Tensor, out_errors: Tensor | None, in_errors: Tensor | None) -> Tensor:
    """Errors of Kronecker products from those of their parts: ``|u' w'^T - u w^T| <= e_u + e_w + e_u e_w`` for unit vectors.

    Args:
        pairs: ``[2, K]``.
        out_errors: ``[p]`` e_u, None for none.
        in_errors: ``[q]`` e_w, None for none.

    Returns:
        ``[K]`` float64.
    """
    zero = torch.zeros(pairs.shape[1], dtype=torch.float64)
    u = zero if out_errors is None else out_errors[pairs[0]]
    w = zero if in_errors is None else in_errors[pairs[1]]
    return u + w + u * w
