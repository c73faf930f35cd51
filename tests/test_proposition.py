from __future__ import annotations

import pytest
import torch

from proposition import distances


def test_distances_are_those_of_the_dense_matrices() -> None:
    g = torch.Generator().manual_seed(0)
    gradients = torch.randn(6, 20, generator=g, dtype=torch.float64)
    vectors = torch.linalg.qr(torch.randn(20, 3, generator=g, dtype=torch.float64))[0].T * 1.01
    values = torch.tensor([3.0, 2.0, 0.5], dtype=torch.float64)
    dense = gradients.T @ gradients / 6 - vectors.T @ torch.diag(values) @ vectors
    frobenius, spectral = distances(gradients, vectors, values)
    assert frobenius == pytest.approx(float(torch.linalg.matrix_norm(dense)), rel=1e-9)
    assert spectral == pytest.approx(float(torch.linalg.matrix_norm(dense, 2)), rel=1e-9)
