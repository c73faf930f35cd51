"""Priors in few bits and in files: eigenvectors with known errors, diagonals by their logarithm, files refused for another model."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from srft.files import aside
from srft.method.sketch import chunks

__all__ = [
    "from_log8",
    "open_prior",
    "optional",
    "restored",
    "restored_diagonal",
    "row_errors",
    "stored",
    "stored_diagonal",
    "to_int8",
    "to_log8",
    "write_aside",
]

STEPS = 8
"""Codes per factor of two in :func:`to_log8`."""


def row_errors(vectors: Tensor, rounded: Tensor) -> Tensor:
    """Euclidean norm of the difference of each row.

    Args:
        vectors: ``[K, n]``.
        rounded: ``[K, n]``, the same in fewer bits.

    Returns:
        ``[K]`` float64 on the CPU.
    """
    norms = [torch.linalg.vector_norm(v.double() - r.double()) for v, r in zip(vectors, rounded, strict=True)]
    return torch.stack(norms).cpu() if norms else torch.zeros(0, dtype=torch.float64)


def to_int8(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Rows in 8 bits, each with a scale of its own, so that an element is off by at most half a scale.

    Args:
        vectors: ``[K, n]``.

    Returns:
        ``[K, n]`` int8 and ``[K, 1]`` float32 scales; their product is the rows.
    """
    largest = vectors.abs().amax(1, keepdim=True) if vectors.numel() else vectors.new_ones(len(vectors), 1)
    scale = (largest.float() / 127).clamp(min=torch.finfo(torch.float32).tiny)
    quantized = torch.empty(vectors.shape, dtype=torch.int8, device=vectors.device)
    for row, vector, unit in zip(quantized, vectors, scale, strict=True):
        row.copy_((vector.float() / unit).round())
    return quantized, scale


def to_log8(values: Tensor) -> tuple[Tensor, Tensor]:
    """Magnitudes in 8 bits by their logarithm: code 0 is zero, code c from 1 to 255 is ``top * 2^(-(255 - c) / 8)``.

    Values within 2^31.75 of the largest are off by a factor of at most 2^(1/16), 4.4 %; what is nearer to nothing than to code 1 becomes 0.

    Args:
        values: any shape, not negative.

    Returns:
        uint8 codes in the same shape and the largest value, float32 ``[]``, for :func:`from_log8`.

    Raises:
        ValueError: a value is negative, NaN or infinite.
    """
    codes = torch.zeros(values.shape, dtype=torch.uint8, device=values.device)
    if not values.numel():
        return codes, torch.zeros((), device=values.device)
    low, top = (extreme.float() for extreme in values.detach().aminmax())
    if not (float(low) >= 0 and math.isfinite(float(top))):  # NaN compares as false.
        raise ValueError(f"values from {float(low)} to {float(top)}; expected finite ones and none negative")
    if float(top) > 0:
        flat, into = values.detach().reshape(-1), codes.view(-1)
        for a, b in chunks(len(flat), values.device):
            octaves = flat[a:b].float().log2().sub_(top.log2())
            into[a:b] = octaves.mul_(STEPS).round_().add_(255).clamp_(0, 255)
    return codes, top


def from_log8(codes: Tensor, top: Tensor) -> Tensor:
    """Magnitudes from their codes.

    Args:
        codes: uint8, any shape.
        top: ``[]`` the largest value, of :func:`to_log8`.

    Returns:
        float32 in the same shape.
    """
    table = torch.arange(-255, 1, device=codes.device).div(STEPS).exp2().mul_(top.to(codes.device))
    table[0] = 0
    values = torch.empty(codes.shape, device=codes.device)
    flat, into = codes.reshape(-1), values.view(-1)
    for a, b in chunks(len(flat), codes.device):
        torch.index_select(table, 0, flat[a:b].int(), out=into[a:b])
    return values


def stored(name: str, vectors: Tensor, storage: torch.dtype | None) -> tuple[dict[str, Tensor], Tensor | None]:
    """Vectors as a file keeps them.

    Args:
        name: of the tensor in the file.
        vectors: ``[K, n]``.
        storage: ``torch.int8`` or a floating type; None keeps their type.

    Returns:
        Tensors for the file and the error of each row, None if there is none.

    Raises:
        ValueError: the type is another integer type.
    """
    if storage is None or storage == vectors.dtype:
        return {name: vectors.contiguous()}, None
    if storage == torch.int8:
        quantized, scale = to_int8(vectors)
        return {name: quantized, f"{name}.scale": scale}, row_errors(vectors, quantized * scale)
    if not storage.is_floating_point:
        raise ValueError(f"storage is {storage}; expected torch.int8 or a floating type such as torch.bfloat16")
    rounded = vectors.to(storage)
    return {name: rounded.contiguous()}, row_errors(vectors, rounded)


def restored(file: Any, name: str) -> Tensor:
    """Vectors from a file.

    Args:
        file: an open safetensors file.
        name: as given to :func:`stored`.

    Returns:
        ``[K, n]`` in the type that they were kept in, float32 if that is int8.
    """
    vectors = file.get_tensor(name)
    return vectors * file.get_tensor(f"{name}.scale") if vectors.dtype == torch.int8 else vectors


def stored_diagonal(name: str, diagonal: Tensor | None, storage: torch.dtype | None) -> dict[str, Tensor]:
    """A diagonal as a file keeps it: in 8 bits if vectors are kept in fewer than 32.

    Args:
        name: of the tensor in the file.
        diagonal: ``[n]``, None for none.
        storage: type of the vectors in the file; None keeps theirs, and float32 here.

    Returns:
        Tensors for the file.
    """
    if diagonal is None:
        return {}
    if storage is None or storage.itemsize >= 4:
        return {name: diagonal.contiguous()}
    codes, top = to_log8(diagonal)
    return {name: codes, f"{name}.top": top}


def restored_diagonal(file: Any, name: str) -> Tensor | None:
    """A diagonal from a file.

    Args:
        file: an open safetensors file.
        name: as given to :func:`stored_diagonal`.

    Returns:
        ``[n]`` float32, None if there is none.
    """
    values = optional(file, name)
    return from_log8(values, file.get_tensor(f"{name}.top")) if values is not None and values.dtype == torch.uint8 else values


def optional(file: Any, name: str) -> Tensor | None:
    """A tensor that a file may lack.

    Args:
        file: an open safetensors file.
        name: of the tensor.

    Returns:
        The tensor, None if it is not there.
    """
    return file.get_tensor(name) if name in set(file.keys()) else None


def write_aside(path: str | Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file, aside first and then renamed.

    Args:
        path: the file; its folder is made.
        tensors: contiguous, by name.
        metadata: by key.
    """
    with aside(path) as temporary:
        save_file(tensors, temporary, metadata)


@contextmanager
def open_prior(
    path: str | Path, file_format: str, base_hash: str, device: str | torch.device
) -> Iterator[tuple[Any, dict[str, Any], list[dict[str, Any]]]]:
    """Open a prior's file after checking that it is one and belongs to the model.

    Args:
        path: the file.
        file_format: the format expected.
        base_hash: :func:`weights_hash` of the model.
        device: where to put the tensors.

    Yields:
        The open safetensors file, its header and its entries by group.

    Raises:
        ValueError: the file is missing, has another format, is cut short, or belongs to another model.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file; estimate the prior and save it there")
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != file_format:
                raise ValueError(f"{path}: format is {metadata.get('format')!r}; expected {file_format!r}, a prior sensitivity")
            header, entries = json.loads(metadata["prior"]), json.loads(metadata["groups"])
            if header["base_hash"] != base_hash:
                raise ValueError(
                    f"{path}: estimated on weights {header['base_hash']}, but the model has weights {base_hash}; "
                    "load the checkpoint that it was estimated on, or estimate it again"
                )
            yield file, header, entries
    except SafetensorError as error:
        raise ValueError(f"{path}: not a complete safetensors file ({error}); estimate the prior again") from None
