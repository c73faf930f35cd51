"""Prior sensitivity as data: eigenpairs by group, their truncation, bounds, key map and file.

Eigenvectors may be kept in fewer bits. What that costs is kept with them: e_k, the Euclidean norm of the error of eigenvector k. Whatever
is added to V moves ``V^T Lambda V`` by at most ``2 sqrt(lambda_1 s) + s`` with ``s = sum_k lambda_k e_k^2``, in both norms of the bound.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from srft.config import FisherType
from srft.method.groups import Group
from srft.method.storage import open_prior, restored, stored, write_aside
from srft.method.tangent import coordinates

__all__ = ["ErrorBound", "Estimator", "GroupPrior", "PriorSensitivity", "load_prior", "weights_hash"]

FORMAT = "srft-prior-1"
Prior = TypeVar("Prior")

Estimator = Literal["exact", "streaming"]
"""``exact``: the leading eigenpairs; ``streaming``: of a sketch, with what it left out inside the bound."""


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
class GroupPrior:
    """Prior sensitivity of one group. K may be less than asked for: the block's rank is at most min(N, n)."""

    group: Group
    eigenvalues: Tensor
    """``[K]`` float64, descending, positive."""
    eigenvectors: Tensor
    """``[K, n]``, orthonormal rows: keeping fewer is a view."""
    trace: float
    """Exact trace of the block."""
    next_eigenvalue: float
    """The largest eigenvalue left out, or an upper bound of it."""
    left_out: float = 0.0
    """The part of ``next_eigenvalue`` that no truncation changes: bound of what an estimator that is not exact did not see."""
    vector_errors: Tensor | None = None
    """``[K]`` float64 e, what fewer bits cost each eigenvector; None if they are as accurate as computed."""

    @property
    def residual(self) -> float:
        """Trace that the kept eigenpairs leave out, at least 0."""
        return max(self.trace - float(self.eigenvalues.sum()), 0.0)

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
            ``[K]``.
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
        total = torch.zeros(self.eigenvectors.shape[1], dtype=dtype, device=self.eigenvectors.device)
        for coefficient, vector in zip(coefficients.tolist(), self.eigenvectors, strict=True):
            total.add_(vector, alpha=coefficient)
        return total

    def error_bound(self) -> ErrorBound:
        """Distance of the kept part from the block, by what is left out and by fewer bits.

        Returns:
            Both bounds.
        """
        spectral = min(self.next_eigenvalue, self.residual)
        rounding = rounding_bound(self.eigenvalues, self.vector_errors)
        return ErrorBound(spectral=spectral + rounding, frobenius=math.sqrt(spectral * self.residual) + rounding)

    def measure(self) -> Tensor:
        """Sensitivity of each element: the diagonal of the kept part, ``s_i = sum_k lambda_k v_ki^2``.

        Returns:
            ``[n]`` in the type of the eigenvectors, float32 at least.
        """
        dtype = torch.promote_types(self.eigenvectors.dtype, torch.float32)
        s = torch.zeros(self.eigenvectors.shape[1], dtype=dtype, device=self.eigenvectors.device)
        for eigenvalue, vector in zip(self.eigenvalues.tolist(), self.eigenvectors, strict=True):
            vector = vector.to(dtype)
            s.addcmul_(vector, vector, value=eigenvalue)
        return s


@dataclass(frozen=True, kw_only=True, eq=False)
class PriorSensitivity:
    """Prior sensitivity of a model, or of what was made from it by copying weights."""

    groups: Mapping[str, GroupPrior]
    """By group name."""
    rank: int
    """Eigenpairs asked for per group [K]."""
    samples: int
    """Samples behind the estimate [N]."""
    fisher_type: FisherType
    base_hash: str
    """:func:`weights_hash` of the model that it was estimated on."""
    data: str
    """What the samples were, in words or as a digest."""
    scale: float
    """Mean over the estimated model's groups of the largest eigenvalue: divides eigenvalues into dimensionless numbers."""
    estimator: Estimator = "exact"

    def truncated(self, rank: int) -> PriorSensitivity:
        """Keep fewer eigenpairs per group.

        Args:
            rank: eigenpairs per group, 0 for none.

        Returns:
            A prior that shares storage with this one.

        Raises:
            ValueError: more are asked for than were estimated.
        """
        if not 0 <= rank <= self.rank:
            raise ValueError(f"rank is {rank}, but the prior holds {self.rank} eigenpairs per operation; estimate it again with more")
        return replace(self, groups={name: group.truncated(rank) for name, group in self.groups.items()}, rank=rank)

    def carried(self, key_map: Mapping[str, str]) -> PriorSensitivity:
        """The prior of a model whose weights were copied from this one's.

        Args:
            key_map: source parameter of each target parameter, the map that carries the weights. Sources without a prior, such
                as buffers, are passed over: what is copied from them has none.

        Returns:
            A prior keyed by the target's names; copies share one storage.

        Raises:
            ValueError: no source of the map has a prior.
        """
        carried = {}
        for prior, target in renamed({p.group: p for p in self.groups.values()}, key_map):
            carried[target.name] = replace(prior, group=target)
        if key_map and not carried:
            raise ValueError(
                f"key map: none of its {len(key_map)} sources has a prior, e.g. {next(iter(key_map.values()))!r}; "
                f"the prior knows {', '.join(list(dict.fromkeys(p.group.parameter for p in self.groups.values()))[:3])}, ..."
            )
        return replace(self, groups=carried)

    def error_bound(self) -> ErrorBound:
        """Distance of the kept part F~ from the block diagonal of F.

        The difference is block-diagonal with the eigenvalues left out, so its spectral norm is the largest lambda_{K+1} and its squared
        Frobenius norm is sum_j sum_{k>K} lambda_jk^2 <= sum_j lambda_{j,K+1} tau_j <= sum_j tau_j^2, with tau_j the residual trace. What F
        has outside its diagonal blocks comes on top, by the triangle inequality.

        Returns:
            Both bounds.
        """
        return of_blocks([prior.error_bound() for prior in self.groups.values()])

    def save(self, path: str | Path, *, storage: torch.dtype | None = None) -> None:
        """Write a safetensors file, aside first and then renamed.

        Args:
            path: the file.
            storage: type of the eigenvectors in it, such as ``torch.bfloat16`` or ``torch.int8`` (each row with its own scale); None keeps
                theirs. What fewer bits cost is in ``vector_errors`` and in the bounds of what is loaded.

        """
        tensors, entries = self.as_file(path, storage)
        metadata = {"format": FORMAT, "estimator": self.estimator, "prior": json.dumps(self.header()), "groups": json.dumps(entries)}
        write_aside(path, tensors, metadata)

    def header(self) -> dict[str, Any]:
        """What a file says of the whole prior.

        Returns:
            Values by field.
        """
        return {f: getattr(self, f) for f in ("rank", "samples", "fisher_type", "base_hash", "data", "scale")}

    def as_file(self, path: str | Path, storage: torch.dtype | None) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
        """What a file holds of the groups.

        Args:
            path: the file, for the error message.
            storage: type of the eigenvectors in it; None keeps theirs.

        Returns:
            Tensors by name and an entry per group.

        Raises:
            ValueError: groups share eigenvectors, so this is a carried prior: save the one that it came from.
        """
        tensors: dict[str, Tensor] = {}
        entries: list[dict[str, Any]] = []
        owners: dict[int, str] = {}
        for name, prior in self.groups.items():
            if prior.eigenvectors.numel() and (other := owners.setdefault(prior.eigenvectors.data_ptr(), name)) != name:
                raise ValueError(
                    f"{path}: {name} and {other} share their eigenvectors; save the prior of the base model and carry it after loading"
                )
            tensors[f"{name}/eigenvalues"] = prior.eigenvalues.contiguous()
            vectors, errors = stored(f"{name}/eigenvectors", prior.eigenvectors, storage)
            tensors.update(vectors)
            known = [e for e in (prior.vector_errors, errors) if e is not None]
            if known:
                tensors[f"{name}/vector_errors"] = torch.stack(known).sum(0)
            numbers = {"trace": prior.trace, "next_eigenvalue": prior.next_eigenvalue, "left_out": prior.left_out}
            entries.append({**asdict(prior.group), **numbers})
        return tensors, entries


def load_prior(path: str | Path, *, base_hash: str, device: str | torch.device = "cpu") -> PriorSensitivity:
    """Read a prior that belongs to a given model.

    Args:
        path: a file written by :meth:`PriorSensitivity.save`.
        base_hash: :func:`weights_hash` of the model that it is to be used with.
        device: where to put the tensors.

    Returns:
        The prior. A file that is missing, is no prior, is cut short, or belongs to another model is a ValueError.
    """
    with open_prior(path, FORMAT, base_hash, device) as (file, header, entries):
        # Files from before there was a choice of estimators do not name the one that there was.
        estimator = file.metadata().get("estimator", "exact")
        return PriorSensitivity(groups=read_group_priors(file, entries), estimator=estimator, **header)


def read_group_priors(file: Any, entries: Sequence[Mapping[str, Any]]) -> dict[str, GroupPrior]:
    """Groups from a file.

    Args:
        file: an open safetensors file.
        entries: as :meth:`PriorSensitivity.as_file` made them.

    Returns:
        Priors by group name.
    """
    names, groups = set(file.keys()), {}
    for entry in entries:
        group = Group(entry["parameter"], entry["start"], entry["stop"], entry["part"])
        errors = f"{group.name}/vector_errors"
        groups[group.name] = GroupPrior(
            group=group,
            eigenvalues=file.get_tensor(f"{group.name}/eigenvalues"),
            eigenvectors=restored(file, f"{group.name}/eigenvectors"),
            trace=entry["trace"],
            next_eigenvalue=entry["next_eigenvalue"],
            left_out=entry.get("left_out", 0.0),  # Absent in files from before, which come from the exact estimator.
            vector_errors=file.get_tensor(errors).cpu() if errors in names else None,
        )
    return groups


def of_blocks(bounds: Sequence[ErrorBound]) -> ErrorBound:
    """The bound of a block-diagonal matrix.

    Args:
        bounds: of its blocks.

    Returns:
        Both bounds.
    """
    return ErrorBound(
        spectral=max((bound.spectral for bound in bounds), default=0.0),
        frobenius=math.sqrt(sum(bound.frobenius**2 for bound in bounds)),
    )


def renamed(priors: Mapping[Group, Prior], key_map: Mapping[str, str]) -> Iterator[tuple[Prior, Group]]:
    """Pair priors with the groups that their weights are copied to.

    Args:
        priors: anything by source group.
        key_map: source parameter of each target parameter.

    Yields:
        What belongs to the source, and the target's group.
    """
    by_parameter: dict[str, list[tuple[Group, Prior]]] = {}
    for group, prior in priors.items():
        by_parameter.setdefault(group.parameter, []).append((group, prior))
    for target, source in key_map.items():
        for group, prior in by_parameter.get(source, []):
            yield prior, group.renamed(target)


def weights_hash(state: Mapping[str, Any]) -> str:
    """Fingerprint of a model's weights.

    Args:
        state: a state dict; entries that are no tensors are passed over.

    Returns:
        16 hex digits that depend on every name, shape, type and bit, not on the order.
    """
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name]
        if isinstance(tensor, Tensor):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype};".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
