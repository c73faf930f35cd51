"""The published transfer rule, as it executes and as it was meant.

As it executes, the ramp is indexed by the argsort: element i gets the factor of *position* ``argsort[i]``, which has nothing to do with
its own rank. Kept to show that; nothing else uses it.
"""

import torch


def two_step_sensitivity(last_gradient, gradient):
    """Mean of this and the last squared gradient, scaled to a largest value of 1."""
    s = (last_gradient**2 * 1e8 + gradient**2 * 1e8) / 2
    return s / s.max()


def released_momentum(s, low=0.25, high=0.65):
    ramp = torch.linspace(low, high, s.numel())
    return ramp[torch.sort(s.flatten()).indices].view_as(s)


def repaired_momentum(s, low=0.25, high=0.65):
    ramp = torch.linspace(low, high, s.numel())
    m = torch.empty(s.numel())
    m[torch.sort(s.flatten()).indices] = ramp
    return m.view_as(s)


def apply(old, adam, momentum):
    """What is left of the optimizer's increment."""
    return momentum * old + (1 - momentum) * adam
