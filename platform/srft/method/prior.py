"""Prior sensitivity of a model as data: eigenpairs by group, their truncation, bounds, key map and file."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from srft.config import FisherType
from srft.method.group_prior import ErrorBound, GroupPrior
from srft.method.groups import Group
from srft.method.kronecker_prior import KroneckerGroup
from srft.method.storage import open_prior, write_aside

__all__ = ["FORMAT", "ErrorBound", "Estimator", "GroupPrior", "KroneckerGroup", "PriorSensitivity", "load_prior", "weights_hash"]

FORMAT = "srft-prior-2"
"""Of the files; it changes whenever an older file could not be read, or would be read as something else."""

Estimator = Literal["exact", "streaming", "kronecker"]
"""``exact``: the leading eigenpairs; ``streaming``: of a sketch, with what it left out inside the bound; ``kronecker``: Kronecker products
for weight matrices, a sketch for the rest."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PriorSensitivity:
    """Prior sensitivity of a model, or of what was made from it by copying weights."""

    groups: Mapping[str, GroupPrior | KroneckerGroup]
    """By group name."""
    rank: int
    """Eigenpairs asked for per group, or, of Kronecker products, per matrix [K]."""
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

    def without_diagonal(self) -> PriorSensitivity:
        """The eigenpairs alone.

        Returns:
            A prior that shares storage with this one.
        """
        return replace(self, groups={name: replace(group, diagonal=None) for name, group in self.groups.items()})

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
        by_parameter: dict[str, list[GroupPrior | KroneckerGroup]] = {}
        for prior in self.groups.values():
            by_parameter.setdefault(prior.group.parameter, []).append(prior)
        carried: dict[str, GroupPrior | KroneckerGroup] = {}
        for target, source in key_map.items():
            for prior in by_parameter.get(source, []):
                group = prior.group.renamed(target)
                carried[group.name] = replace(prior, group=group)
        if key_map and not carried:
            raise ValueError(
                f"key map: none of its {len(key_map)} sources has a prior, e.g. {next(iter(key_map.values()))!r}; "
                f"the prior knows {', '.join(list(by_parameter)[:3])}, ..."
            )
        return replace(self, groups=carried)

    def error_bound(self) -> ErrorBound:
        """Distance of the kept part F~ from the block diagonal of F.

        The difference is block-diagonal. Where a block's leading eigenpairs are kept, it has the eigenvalues left out: its spectral norm is
        lambda_{K+1} and its squared Frobenius norm sum_{k>K} lambda_k^2 <= lambda_{K+1} tau <= tau^2, with tau the residual trace. What F
        has outside its diagonal blocks comes on top, by the triangle inequality.

        Returns:
            Both bounds.
        """
        bounds = [prior.error_bound() for prior in self.groups.values()]
        return ErrorBound(
            spectral=max((bound.spectral for bound in bounds), default=0.0),
            frobenius=math.sqrt(sum(bound.frobenius**2 for bound in bounds)),
        )

    def save(self, path: str | Path, *, storage: torch.dtype | None = None) -> None:
        """Write a safetensors file, aside first and then renamed.

        Args:
            path: the file.
            storage: type of the eigenvectors in it, such as ``torch.bfloat16`` or ``torch.int8`` (each row with its own scale), with which
                diagonals take 8 bits; None keeps theirs. What fewer bits cost is in ``vector_errors`` and in the bounds of what is loaded.

        Raises:
            ValueError: groups share storage, so this is a carried prior: save the one that it came from.
        """
        tensors: dict[str, Tensor] = {}
        entries: list[dict[str, Any]] = []
        owners: dict[int, str] = {}
        for name, prior in self.groups.items():
            for part in prior.parts:
                if part.numel() and (other := owners.setdefault(part.data_ptr(), name)) != name:
                    raise ValueError(
                        f"{path}: {name} and {other} share their vectors; save the prior of the base model and carry it after loading"
                    )
            own, numbers = prior.as_file(storage)
            tensors |= {f"{name}/{key}": tensor for key, tensor in own.items()}
            entries.append({"group": asdict(prior.group), "kronecker": isinstance(prior, KroneckerGroup), "numbers": numbers})
        header = {f: getattr(self, f) for f in ("rank", "samples", "fisher_type", "base_hash", "data", "scale", "estimator")}
        write_aside(path, tensors, {"format": FORMAT, "prior": json.dumps(header), "groups": json.dumps(entries)})


def load_prior(path: str | Path, *, base_hash: str, device: str | torch.device = "cpu") -> PriorSensitivity:
    """Read a prior that belongs to a given model.

    Args:
        path: a file written by :meth:`PriorSensitivity.save`.
        base_hash: :func:`weights_hash` of the model that it is to be used with.
        device: where to put eigenvectors and diagonals.

    Returns:
        The prior. A file that is missing, is no prior, is cut short, or belongs to another model is a ValueError.
    """
    groups: dict[str, GroupPrior | KroneckerGroup] = {}
    with open_prior(path, FORMAT, base_hash, device) as (file, header, entries):
        for entry in entries:
            group, kind = Group(**entry["group"]), KroneckerGroup if entry["kronecker"] else GroupPrior
            groups[group.name] = kind.from_file(file, group, entry["numbers"])
        return PriorSensitivity(groups=groups, **header)


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
