"""Which elements of a parameter this process holds: all of them, or the rows that FSDP2 (``fully_shard``) left here."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Shard", "local", "shard_of", "shard_values", "sum_over_shards"]


@dataclass(frozen=True, kw_only=True)
class Shard:
    """A contiguous range of a flattened parameter."""

    start: int
    """First element."""
    numel: int
    """Number of elements; 0 where a parameter has fewer rows than there are workers."""
    meshes: tuple[tuple[Any, int], ...] = ()
    """Device mesh and its dimension, for each over which the rows are split."""
    copy: tuple[int, int] = (0, 1)
    """Which of how many copies of these elements this is, over the mesh dimensions that replicate them."""
    distributed: bool = False
    """Whether the parameter is a DTensor, so that it knows its copies."""


def local(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor.

    Args:
        tensor: a DTensor, or any other.

    Returns:
        The local shard, sharing storage; another tensor itself.
    """
    return tensor.to_local() if _is_distributed(tensor) else tensor  # pyrefly: ignore


def shard_of(name: str, parameter: Tensor) -> Shard:
    """Which elements this process holds.

    Args:
        name: of the parameter, for the error message.
        parameter: a DTensor, or any other tensor.

    Returns:
        The range.

    Raises:
        ValueError: a DTensor is split along another dimension than its first, so that its elements are no range.
    """
    if not _is_distributed(parameter):
        return Shard(start=0, numel=parameter.numel())
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    mesh, placements = parameter.device_mesh, parameter.placements  # pyrefly: ignore
    if not all(type(p).__name__ == "Replicate" or (type(p).__name__ == "Shard" and p.dim == 0) for p in placements):
        raise ValueError(f"{name} is placed as {placements}; expected shards of dimension 0 (as fully_shard makes them) or replicas")
    shape, offset = compute_local_shape_and_global_offset(parameter.shape, mesh, placements)
    held = torch.Size(shape).numel()
    row = parameter.numel() // parameter.shape[0] if parameter.ndim and parameter.shape[0] else 1
    index, count = 0, 1
    for dim, placement in enumerate(placements):
        if placement.is_replicate():
            index, count = index * mesh.size(dim) + mesh.get_local_rank(dim), count * mesh.size(dim)
    split = tuple((mesh, dim) for dim, p in enumerate(placements) if not p.is_replicate() and mesh.size(dim) > 1)
    return Shard(start=offset[0] * row if held and offset else 0, numel=held, meshes=split, copy=(index, count), distributed=True)


def shard_values(name: str, values: Tensor, parameter: Tensor, shard: Shard) -> Tensor:
    """The values that belong to the elements held here.

    Args:
        name: of the parameter, for the error message.
        values: of the whole parameter, or a DTensor placed as it is.
        parameter: whose type and device they get.
        shard: which elements are held here.

    Returns:
        ``[numel of the shard]``.

    Raises:
        ValueError: they have another shape than the parameter.
    """
    if values.shape != parameter.shape:
        raise ValueError(f"pretrained: {name} has shape {tuple(values.shape)}, the parameter {tuple(parameter.shape)}")
    flat = local(values).reshape(-1).to(local(parameter).device, parameter.dtype)
    return flat if _is_distributed(values) else flat[shard.start : shard.start + shard.numel]


def sum_over_shards(shards: list[Shard], partials: list[Tensor]) -> list[Tensor]:
    """Add up what the shards of each parameter contribute; collective over the workers that share a mesh.

    One reduction per mesh dimension, whatever the number of parameters: every worker must pass the same list.

    Args:
        shards: one for each partial.
        partials: tensors of one type, any shapes.

    Returns:
        The sums, in the same order; what is not split is returned as it is.
    """
    sums = list(partials)
    split: dict[tuple[tuple[int, int], ...], list[int]] = {}
    for i, shard in enumerate(shards):
        if shard.meshes:
            split.setdefault(tuple((id(mesh), dim) for mesh, dim in shard.meshes), []).append(i)
    for members in split.values():
        flat = torch.cat([sums[i].reshape(-1) for i in members])
        for mesh, dim in shards[members[0]].meshes:
            torch.distributed.all_reduce(flat, group=mesh.get_group(dim))
        for i, part in zip(members, flat.split([sums[i].numel() for i in members]), strict=True):
            sums[i] = part.view(sums[i].shape)
    return sums


def _is_distributed(tensor: Tensor) -> bool:
    # Importing DTensor takes half a second; where nothing has, there is none.
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)
