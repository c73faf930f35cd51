"""The tangent-space term: three ways in which the prior's eigenpairs act on a step.

Every function works in place on the elements of one group; V is ``[K, n]`` with orthonormal rows, ``offset`` the coordinates
``c = V (theta - theta_0)`` of the displacement, ``[K]``.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from srft.method.sketch import chunks

__all__ = ["coordinates", "penalize", "project", "pull_back"]


def coordinates(vectors: Tensor, values: Tensor) -> Tensor:
    """Coordinates of values in the span of the eigenvectors.

    Args:
        vectors: ``[K, n]``.
        values: ``[n]``.

    Returns:
        ``[K]`` in the wider of both types.
    """
    if vectors.dtype == values.dtype:
        return torch.mv(vectors, values)
    dtype = torch.promote_types(vectors.dtype, values.dtype)
    total = torch.zeros(len(vectors), dtype=dtype, device=values.device)
    for a, b, widened in _widened(vectors, dtype):
        total.addmv_(widened, values[a:b].to(dtype))
    return total


def _widened(vectors: Tensor, dtype: torch.dtype) -> Iterator[tuple[int, int, Tensor]]:
    # Pieces of the vectors in a wider type, in one buffer: fresh memory at every step costs more than the conversion.
    ranges = chunks(vectors.shape[1], vectors.device)
    buffer = torch.empty(len(vectors) * (ranges[0][1] if ranges else 0), dtype=dtype, device=vectors.device)
    for a, b in ranges:
        yield a, b, buffer[: len(vectors) * (b - a)].view(len(vectors), b - a).copy_(vectors[:, a:b])


def _add_combination(target: Tensor, vectors: Tensor, coefficients: Tensor) -> None:
    """``target += V^T coefficients`` in place."""
    if vectors.dtype == target.dtype:
        target.addmv_(vectors.T, coefficients.to(target.dtype))
        return
    for a, b, widened in _widened(vectors, coefficients.dtype):
        if target.dtype == coefficients.dtype:
            target[a:b].addmv_(widened.T, coefficients)
        else:
            target[a:b] += torch.mv(widened.T, coefficients).to(target.dtype)


def penalize(gradient: Tensor, vectors: Tensor, offset: Tensor, curvature: Tensor, strength: float) -> None:
    """Gradient of the quadratic penalty: ``g += strength V^T L c``.

    Args:
        gradient: ``[n]``, changed in place.
        vectors: ``[K, n]``.
        offset: ``[K]`` c.
        curvature: ``[K]`` dimensionless eigenvalues L.
        strength: lambda_p w.
    """
    _add_combination(gradient, vectors, offset * curvature * strength)


def project(gradient: Tensor, vectors: Tensor, shrinkage: Tensor, weight: float) -> None:
    """Take the part out that moves along the eigenvectors: ``g -= weight V^T D V g``.

    Args:
        gradient: ``[n]``, changed in place.
        vectors: ``[K, n]``.
        shrinkage: ``[K]`` D, 0 to 1.
        weight: w, 0 to 1.
    """
    _add_combination(gradient, vectors, coordinates(vectors, gradient) * shrinkage * -weight)


def pull_back(values: Tensor, vectors: Tensor, offset: Tensor, curvature: Tensor, strength: float) -> None:
    """Proximal step of the quadratic: ``theta -= V^T (s / (1 + s)) c`` with ``s = strength L``.

    Args:
        values: ``[n]`` theta, changed in place.
        vectors: ``[K, n]``.
        offset: ``[K]`` c at these values.
        curvature: ``[K]`` dimensionless eigenvalues L.
        strength: lr lambda_p w.
    """
    s = curvature * strength
    _add_combination(values, vectors, -offset * (s / (1 + s)))
