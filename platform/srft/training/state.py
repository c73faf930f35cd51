"""Tensors of a run's state in a folder that any number of workers can read: PyTorch's distributed checkpoint format."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from srft.training.checkpoint import CheckpointError

__all__ = ["read_tensors", "staged", "write_tensors", "written_names"]


def write_tensors(folder: Path, tensors: Mapping[str, Tensor], group: Any = None) -> None:
    """Write tensors; collective over the group.

    Args:
        folder: made if missing.
        tensors: by name; of DTensors each worker writes its shard.
        group: process group of the CPUs over which shards are held; None if this worker holds everything.
    """
    import torch.distributed.checkpoint as dcp

    folder.mkdir(parents=True, exist_ok=True)
    _quiet()
    writer = dcp.FileSystemWriter(folder, single_file_per_rank=True, sync_files=True)
    dcp.save(dict(tensors), storage_writer=writer, process_group=group, no_dist=group is None)


def read_tensors(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Fill tensors in place from a folder, whatever number of workers wrote it.

    Args:
        folder: written by :func:`write_tensors`.
        tensors: by name; of DTensors this worker's shard is read.

    Raises:
        CheckpointError: names or shapes are not those that were written.
    """
    import torch.distributed.checkpoint as dcp

    reader = dcp.FileSystemReader(folder)
    written: Mapping[str, Any] = reader.read_metadata().state_dict_metadata
    for name, tensor in tensors.items():
        shape = tuple(written[name].size) if name in written else None
        if shape != tuple(tensor.shape):
            raise CheckpointError(
                f"{folder}: {name} has shape {shape if shape is not None else 'nothing'}, this run's has {tuple(tensor.shape)}; "
                "resume with the settings that it was written with (paradigm, srft.rank, optim.ema)"
            )
    _quiet()
    dcp.load(dict(tensors), storage_reader=reader, no_dist=True)


def written_names(folder: Path) -> list[str]:
    """What a folder holds.

    Args:
        folder: written by :func:`write_tensors`.

    Returns:
        Names of its tensors.
    """
    import torch.distributed.checkpoint as dcp

    return sorted(dcp.FileSystemReader(folder).read_metadata().state_dict_metadata)


@torch.no_grad()
def staged(tensors: Mapping[str, Tensor], kept: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies in memory of the CPU, so that training may go on while they are written.

    Args:
        tensors: by name.
        kept: copies of the last time, used again, since fresh memory costs more than the copy; filled here.

    Returns:
        The copies, DTensors of DTensors.
    """
    for name, tensor in tensors.items():
        fits = name in kept and kept[name].shape == tensor.shape and hasattr(kept[name], "full_tensor") == hasattr(tensor, "full_tensor")
        if not fits:
            kept[name] = tensor.detach().to("cpu", copy=True)
        else:
            kept[name].copy_(tensor.detach())
    return {name: kept[name] for name in tensors}


def _quiet() -> None:
    # That one process writes or reads alone is as it should be.
    warnings.filterwarnings("ignore", message="torch.distributed is disabled", module="torch.distributed.checkpoint")
