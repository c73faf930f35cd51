"""Prior sensitivity of weight matrices as Kronecker products: many eigenpairs without storing K vectors of n numbers.

A layer's weight is a matrix ``[out, in]``; a convolution's is that of its unfolded input, ``in`` = channels x kernel. Eigenvector k is
``v = kron(u_i, w_j)``, as a matrix ``u_i w_j^T``, with orthonormal u of the layer's outputs and w of its inputs; only those that occur are
stored. Here is what they are used for; ``srft.method.kronecker`` chooses them.
Eigenvalues are ``v^T F v`` of the block itself, the correction of George et al. 2018 (arXiv 1806.03884), so that
``F~ = sum_k (v_k^T F v_k) v_k v_k^T`` is the best matrix with these eigenvectors and its residual trace is exact.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from srft.method.groups import Group
from srft.method.prior import ErrorBound, GroupPrior, PriorSensitivity, of_blocks, read_group_priors, renamed, rounding_bound
from srft.method.storage import open_prior, restored, stored, write_aside

__all__ = ["Factors", "KroneckerGroup", "KroneckerPrior", "load_kronecker_prior", "pair_errors"]

FORMAT = "srft-kronecker-prior-1"

Factors = Literal["gradient", "expand", "reduce"]
"""Which approximation chooses the directions: see ``srft.method.kronecker``."""


@dataclass(frozen=True, kw_only=True, eq=False)
class KroneckerGroup:
    """Prior sensitivity of one weight matrix, or of some of its rows."""

    group: Group
    eigenvalues: Tensor
    """``[K]`` float64, descending: ``v_k^T F v_k``."""
    out_vectors: Tensor
    """``[p, out]``, orthonormal rows u."""
    in_vectors: Tensor
    """``[q, in]``, orthonormal rows w."""
    pairs: Tensor
    """``[2, K]`` int64 on the CPU: which u and which w make eigenvector k."""
    trace: float
    """Exact trace of the block."""
    spectral: float
    """Bound of the largest singular value of block minus kept part, before rounding of the vectors."""
    frobenius: float
    """Bound of the root of its sum of squares, before rounding of the vectors."""
    vector_errors: Tensor
    """``[K]`` float64, Euclidean norm of what fewer bits changed each eigenvector by."""

    @property
    def residual(self) -> float:
        """Trace that the kept eigenpairs leave out, at least 0."""
        return max(self.trace - float(self.eigenvalues.sum()), 0.0)

    @property
    def stored_numbers(self) -> int:
        """Numbers in the vectors stored."""
        return self.out_vectors.numel() + self.in_vectors.numel()

    def truncated(self, rank: int) -> KroneckerGroup:
        """Keep the leading eigenpairs.

        Args:
            rank: how many, at most.

        Returns:
            A prior that shares the vectors' storage.
        """
        if rank >= len(self.eigenvalues):
            return self
        cut = self.eigenvalues[rank:]
        return replace(
            self,
            eigenvalues=self.eigenvalues[:rank],
            pairs=self.pairs[:, :rank],
            spectral=self.spectral + float(cut[0]),
            frobenius=math.hypot(self.frobenius, float(cut.norm())),
            vector_errors=self.vector_errors[:rank],
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

    def measure(self) -> Tensor:
        """Sensitivity of each element: the diagonal of the kept part.

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


@dataclass(frozen=True, kw_only=True, eq=False)
class KroneckerPrior:
    """Prior sensitivity of a model: Kronecker products for weight matrices, eigenvectors as they are for the rest."""

    matrices: Mapping[str, KroneckerGroup]
    """By group name."""
    rest: PriorSensitivity
    """Biases, norms, positions and matrices with a small side; also what the prior was estimated on."""
    rank: int
    """Eigenpairs asked for per matrix [K]."""
    scale: float
    """Mean over all groups of the estimated model of the largest eigenvalue."""
    factors: Factors

    @property
    def groups(self) -> dict[str, KroneckerGroup | GroupPrior]:
        """Every group by name."""
        return {**self.matrices, **self.rest.groups}

    def truncated(self, rank: int) -> KroneckerPrior:
        """Keep fewer eigenpairs per group.

        Args:
            rank: eigenpairs per group, 0 for none.

        Returns:
            A prior that shares storage with this one.

        Raises:
            ValueError: more are asked for than were estimated.
        """
        if not 0 <= rank <= self.rank:
            raise ValueError(f"rank is {rank}, but the prior holds {self.rank} eigenpairs per matrix; estimate it again with more")
        matrices = {name: matrix.truncated(rank) for name, matrix in self.matrices.items()}
        return replace(self, matrices=matrices, rest=self.rest.truncated(min(rank, self.rest.rank)), rank=rank)

    def carried(self, key_map: Mapping[str, str]) -> KroneckerPrior:
        """The prior of a model whose weights were copied from this one's; copies share one storage.

        Args:
            key_map: source parameter of each target parameter; sources without a prior are passed over.

        Returns:
            A prior keyed by the target's names.

        Raises:
            ValueError: no source of the map has a prior.
        """
        matrices = {t.name: replace(m, group=t) for m, t in renamed({m.group: m for m in self.matrices.values()}, key_map)}
        rest = {t.name: replace(p, group=t) for p, t in renamed({p.group: p for p in self.rest.groups.values()}, key_map)}
        if key_map and not matrices and not rest:
            raise ValueError(f"key map: none of its {len(key_map)} sources has a prior, e.g. {next(iter(key_map.values()))!r}")
        return replace(self, matrices=matrices, rest=replace(self.rest, groups=rest))

    def error_bound(self) -> ErrorBound:
        """Distance of the kept part from the block diagonal of F.

        Returns:
            Both bounds.
        """
        return of_blocks([prior.error_bound() for prior in self.groups.values()])

    def save(self, path: str | Path, *, storage: torch.dtype | None = None) -> None:
        """Write a safetensors file, aside first and then renamed.

        Args:
            path: the file.
            storage: type of the vectors in it, such as ``torch.bfloat16`` or ``torch.int8``; None keeps theirs. What fewer bits cost is in
                ``vector_errors`` and in the bounds of what is loaded.

        Raises:
            ValueError: groups share vectors, so this is a carried prior: save the one that it came from.
        """
        tensors, entries, owners = {}, [], {}
        for name, m in self.matrices.items():
            if (other := owners.setdefault(m.out_vectors.data_ptr(), name)) != name and m.out_vectors.numel():
                raise ValueError(
                    f"{path}: {name} and {other} share their vectors; save the prior of the base model and carry it after loading"
                )
            out, out_errors = stored(f"{name}/out_vectors", m.out_vectors, storage)
            into, in_errors = stored(f"{name}/in_vectors", m.in_vectors, storage)
            errors = m.vector_errors + pair_errors(m.pairs, out_errors, in_errors)
            tensors |= out | into | {f"{name}/{k}": v.contiguous() for k, v in (("eigenvalues", m.eigenvalues), ("pairs", m.pairs))}
            tensors[f"{name}/vector_errors"] = errors
            entries.append({**asdict(m.group), "trace": m.trace, "spectral": m.spectral, "frobenius": m.frobenius})
        rest_tensors, rest_entries = self.rest.as_file(path, storage)
        header = {"rank": self.rank, "scale": self.scale, "factors": self.factors, "base_hash": self.rest.base_hash}
        metadata = {"format": FORMAT, "prior": json.dumps(header), "groups": json.dumps(entries)}
        metadata |= {"rest": json.dumps({**self.rest.header(), "estimator": self.rest.estimator}), "rest_groups": json.dumps(rest_entries)}
        write_aside(path, tensors | rest_tensors, metadata)


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


def load_kronecker_prior(path: str | Path, *, base_hash: str, device: str | torch.device = "cpu") -> KroneckerPrior:
    """Read a prior that belongs to a given model.

    Args:
        path: a file written by :meth:`KroneckerPrior.save`.
        base_hash: :func:`srft.method.prior.weights_hash` of the model that it is to be used with.
        device: where to put the vectors.

    Returns:
        The prior. A file that is missing, is no such prior, is cut short, or belongs to another model is a ValueError.
    """
    matrices = {}
    with open_prior(path, FORMAT, base_hash, device) as (file, header, entries):
        for entry in entries:
            group = Group(entry["parameter"], entry["start"], entry["stop"], entry["part"])
            matrices[group.name] = KroneckerGroup(
                group=group,
                eigenvalues=file.get_tensor(f"{group.name}/eigenvalues").cpu(),
                out_vectors=restored(file, f"{group.name}/out_vectors"),
                in_vectors=restored(file, f"{group.name}/in_vectors"),
                pairs=file.get_tensor(f"{group.name}/pairs").cpu(),
                trace=entry["trace"],
                spectral=entry["spectral"],
                frobenius=entry["frobenius"],
                vector_errors=file.get_tensor(f"{group.name}/vector_errors").cpu(),
            )
        metadata = file.metadata()
        rest = PriorSensitivity(groups=read_group_priors(file, json.loads(metadata["rest_groups"])), **json.loads(metadata["rest"]))
    header.pop("base_hash")
    return KroneckerPrior(matrices=matrices, rest=rest, **header)
