"""Move of magnitudes between two refreshes, element by element."""

import math

import numpy as np


def bin_of(value):
    """Bin number of one magnitude from its logarithm: 16 per octave, linear inside."""
    value = float(np.float32(value))
    if value == 0:
        return 0
    mantissa, exponent = math.frexp(value)
    return (exponent - 1 + 127) * 16 + math.floor((2 * mantissa - 1) * 16)


def quantile(sorted_bins, q, quantiles):
    """The first bin that (2 q + 1) / (2 quantiles) of the elements do not lie above."""
    need = (2 * q + 1) * len(sorted_bins)
    return next(b for i, b in enumerate(sorted_bins, 1) if 2 * quantiles * i >= need)


def moved(before, after, quantiles):
    """Mean absolute move of the groups' quantiles, weighted by elements, without the (lower) median move; in octaves, at most 1 each."""
    moves = []
    for name in before:
        old, new = sorted(map(bin_of, before[name])), sorted(map(bin_of, after[name]))
        for q in range(quantiles):
            moves += [quantile(new, q, quantiles) - quantile(old, q, quantiles)] * len(new)
    median = sorted(moves)[(len(moves) + 1) // 2 - 1]
    return sum(min(abs(m - median), 16) for m in moves) / (16 * len(moves))
