"""Prior sensitivity as data: eigenpairs by group, their truncation, bounds, key map and file."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from srft.config import FisherType
from srft.method.groups import Group

__all__ = ["ErrorBound", "GroupPrior", "PriorSensitivity", "load_prior", "weights_hash"]

FORMAT = "srft-prior-1"


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
            next_eigenvalue=float(self.eigenvalues[rank]),
        )

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


@dataclass(frozen=True, kw_only=True)
class ErrorBound:
    """How far the kept part is from the block-diagonal Fisher matrix, at most."""

    spectral: float
    """Bound of the largest singular value of the difference."""
    frobenius: float
    """Bound of the root of the sum of squares of the difference."""


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
        by_parameter: dict[str, list[GroupPrior]] = {}
        for prior in self.groups.values():
            by_parameter.setdefault(prior.group.parameter, []).append(prior)
        carried = {}
        for target, source in key_map.items():
            for prior in by_parameter.get(source, []):
                copy = replace(prior, group=prior.group.renamed(target))
                carried[copy.group.name] = copy
        if key_map and not carried:
            raise ValueError(
                f"key map: none of its {len(key_map)} sources has a prior, e.g. {next(iter(key_map.values()))!r}; "
                f"the prior knows {', '.join(list(by_parameter)[:3])}, ..."
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
        left_out = [(min(p.next_eigenvalue, p.residual), p.residual) for p in self.groups.values()]
        return ErrorBound(
            spectral=max((following for following, _ in left_out), default=0.0),
            frobenius=math.sqrt(sum(following * residual for following, residual in left_out)),
        )

    def save(self, path: str | Path) -> None:
        """Write a safetensors file, aside first and then renamed.

        Args:
            path: the file.

        Raises:
            ValueError: groups share eigenvectors, so this is a carried prior: save the one that it came from.
        """
        path = Path(path)
        tensors: dict[str, Tensor] = {}
        entries: list[dict[str, Any]] = []
        owners: dict[int, str] = {}
        for name, prior in self.groups.items():
            if prior.eigenvectors.numel() and (other := owners.setdefault(prior.eigenvectors.data_ptr(), name)) != name:
                raise ValueError(
                    f"{path}: {name} and {other} share their eigenvectors; save the prior of the base model and carry it after loading"
                )
            tensors[f"{name}/eigenvalues"] = prior.eigenvalues.contiguous()
            tensors[f"{name}/eigenvectors"] = prior.eigenvectors.contiguous()
            g = prior.group
            entries.append(
                {
                    "parameter": g.parameter,
                    "start": g.start,
                    "stop": g.stop,
                    "part": g.part,
                    "trace": prior.trace,
                    "next_eigenvalue": prior.next_eigenvalue,
                }
            )
        header = {f: getattr(self, f) for f in ("rank", "samples", "fisher_type", "base_hash", "data", "scale")}
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            save_file(tensors, aside, {"format": FORMAT, "prior": json.dumps(header), "groups": json.dumps(entries)})
            os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)


def load_prior(path: str | Path, *, base_hash: str, device: str | torch.device = "cpu") -> PriorSensitivity:
    """Read a prior that belongs to a given model.

    Args:
        path: a file written by :meth:`PriorSensitivity.save`.
        base_hash: :func:`weights_hash` of the model that it is to be used with.
        device: where to put the tensors.

    Returns:
        The prior.

    Raises:
        ValueError: the file is missing, is no prior, is cut short, or belongs to another model.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file; estimate the prior and save it there")
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise ValueError(f"{path}: format is {metadata.get('format')!r}; expected {FORMAT!r}, a prior sensitivity")
            header, entries = json.loads(metadata["prior"]), json.loads(metadata["groups"])
            if header["base_hash"] != base_hash:
                raise ValueError(
                    f"{path}: estimated on weights {header['base_hash']}, but the model has weights {base_hash}; "
                    "load the checkpoint that it was estimated on, or estimate it again"
                )
            groups = {}
            for entry in entries:
                group = Group(entry["parameter"], entry["start"], entry["stop"], entry["part"])
                groups[group.name] = GroupPrior(
                    group=group,
                    eigenvalues=file.get_tensor(f"{group.name}/eigenvalues"),
                    eigenvectors=file.get_tensor(f"{group.name}/eigenvectors"),
                    trace=entry["trace"],
                    next_eigenvalue=entry["next_eigenvalue"],
                )
    except SafetensorError as error:
        raise ValueError(f"{path}: not a complete safetensors file ({error}); estimate the prior again") from None
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
