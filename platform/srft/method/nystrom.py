"""Leading eigenpairs of a large positive semi-definite matrix A from its product with a few random vectors.

``Y = A Omega`` is a sum over whatever A is a sum of, takes r columns instead of A's n, and ``A ~ Y (Omega^T Y)^+ Y^T`` (Nystroem). A shift
by what rounding does to Y keeps the inverse tame, as in Tropp, Yurtsever, Udell and Cevher 2017, Algorithm 3 (arXiv 1706.05736).
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["leading_eigenpairs", "random_directions"]


def random_directions(n: int, r: int, seed: int) -> Tensor:
    """Orthonormal random directions, all of them if r is n; torch's random state is left alone.

    Args:
        n: dimension.
        r: how many, at most n.
        seed: the same directions for the same seed.

    Returns:
        ``[n, r]`` float32 on the CPU, orthonormal columns up to rounding.
    """
    if r >= n:
        return torch.eye(n)
    gaussian = torch.randn(n, r, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return torch.linalg.qr(gaussian).Q.float()


def leading_eigenpairs(products: Tensor, directions: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Eigenpairs of a positive semi-definite matrix, exact if the directions span everything.

    Args:
        products: ``[n, r]`` Y, accumulated in its type.
        directions: ``[n, r]`` Omega.
        rank: how many, at most.

    Returns:
        ``[k]`` eigenvalues, descending, those above rounding, and ``[k, n]`` eigenvectors, float64.
    """
    y, omega = products.double(), directions.double()
    shift = torch.finfo(products.dtype).eps * y.norm()
    y = y + shift * omega
    core = omega.T @ y
    values, vectors = torch.linalg.eigh((core + core.T) / 2)
    # Rounding can leave an eigenvalue of the core below the shift, where it would be without rounding.
    root = y @ (vectors / values.clamp(min=shift.clamp(min=torch.finfo(torch.float64).tiny)).sqrt())
    left, singular, _ = torch.linalg.svd(root, full_matrices=False)
    eigenvalues = singular.square() - shift
    kept = min(rank, int((eigenvalues > shift).sum()))
    return eigenvalues[:kept], left[:, :kept].T
