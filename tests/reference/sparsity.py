"""Ranks and sparsity figures by sorting and by their definitions."""

import numpy as np


def true_rank(values):
    """Share of elements below, plus half the share of equal ones: O(n^2), from the definition."""
    values = np.asarray(values, np.float64)
    return np.array([((values < v).sum() + 0.5 * (values == v).sum()) / len(values) for v in values])


def spearman(a, b):
    return float(np.corrcoef(true_rank(a), true_rank(b))[0, 1])


def hoyer(x):
    n = len(x)
    return (np.sqrt(n) - np.abs(x).sum() / np.sqrt((x**2).sum())) / (np.sqrt(n) - 1)


def gini(x):
    """Mean absolute difference of all pairs over twice the mean."""
    return np.abs(x[:, None] - x[None, :]).mean() / (2 * x.mean())


def top_share(x, share=0.01):
    energy = np.sort(x**2)[::-1]
    return energy[: round(share * len(x))].sum() / energy.sum()


def participation(x):
    return (x**2).sum() ** 2 / (len(x) * (x**4).sum())
