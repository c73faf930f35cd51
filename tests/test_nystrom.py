import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from srft.method.nystrom import leading_eigenpairs, random_directions


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 12), st.integers(0, 12), st.integers(0, 14), st.integers(0, 5))
def test_eigenpairs_from_few_products(n, r, rank, seed):
    g = torch.Generator().manual_seed(seed)
    vectors = torch.linalg.qr(torch.randn(n, n, generator=g, dtype=torch.float64)).Q
    matrix = (vectors * 0.3 ** torch.arange(n)) @ vectors.T
    omega = random_directions(n, min(r, n), seed)
    values, rows = leading_eigenpairs(matrix.float() @ omega, omega, rank)
    assert len(values) == len(rows) <= min(r, rank, n)
    assert (values.diff() <= 0).all()
    torch.testing.assert_close(rows @ rows.T, torch.eye(len(rows), dtype=torch.float64))
    # A Nystroem approximation never exceeds the matrix.
    excess = torch.linalg.eigvalsh((rows.T * values) @ rows - matrix).max()
    assert excess <= 1e-5
    if r >= n:
        torch.testing.assert_close(values, 0.3 ** torch.arange(len(values), dtype=torch.float64), rtol=1e-2, atol=1e-6)


def test_leading_eigenpairs_are_accurate_where_the_spectrum_decays():
    g = torch.Generator().manual_seed(0)
    vectors = torch.linalg.qr(torch.randn(80, 80, generator=g, dtype=torch.float64)).Q
    spectrum = 0.8 ** torch.arange(80, dtype=torch.float64)
    omega = random_directions(80, 32, 1)
    values, rows = leading_eigenpairs(((vectors * spectrum) @ vectors.T).float() @ omega, omega, 8)
    torch.testing.assert_close(values, spectrum[:8], rtol=0.02, atol=0)
    assert ((rows @ vectors[:, :8]).diagonal().abs() >= 0.999).all()


def test_random_directions_are_the_same_everywhere_and_leave_torch_alone():
    state = torch.get_rng_state()
    a = random_directions(50, 7, 1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(5)
    assert torch.equal(random_directions(50, 7, 1), a)
    assert not torch.equal(random_directions(50, 7, 2), a)
    torch.testing.assert_close(a.T @ a, torch.eye(7))


def test_a_matrix_of_zeros_has_no_eigenpair():
    omega = random_directions(6, 3, 0)
    assert [x.shape for x in leading_eigenpairs(torch.zeros(6, 3), omega, 3)] == [(0,), (0, 6)]
