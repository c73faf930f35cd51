"""Giving back after tuning [ours]: weights return towards their pre-trained values, each by its prior sensitivity.

Of all weights theta near both the tuned ones theta_T and the pre-trained ones theta_0,

    minimize  sum_i (theta_i - theta_Ti)^2 + rho a_i h_i (theta_i - theta_0i)^2,

h the diagonal of the Fisher matrix over its mean and a the share of the operation's stream, has the closed form
``theta_0 + kept (theta_T - theta_0)`` with ``kept_i = 1 / (1 + rho a_i h_i)``. With h = 1 it is the interpolation of weights of Wortsman et
al. 2022 (WiSE-FT). Training knows nothing of it: one run gives the trackers of all strengths rho.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from srft.method.prior import PriorSensitivity

__all__ = ["GivingBack", "strength_with"]


def strength_with(strength: float, sequences: int, *, up_to: int) -> float:
    """Strength of giving back with some amount of target data: the prior weighs as much as ever, the data by their number.

    Args:
        strength: rho with little data.
        sequences: target sequences that are trained on.
        up_to: so many of them that the strength is as given; 0: however many there are.

    Returns:
        The strength, lower in proportion for more sequences.
    """
    return strength * min(1.0, up_to / sequences) if up_to and sequences else strength


@dataclass(frozen=True, kw_only=True, eq=False)
class GivingBack:
    """How far each weight returns."""

    pretrained: Mapping[str, Tensor]
    """theta_0 of every parameter that has a prior."""
    kept: Mapping[str, Tensor]
    """Share of its displacement that each of their elements keeps, 0 to 1, of the parameter's shape."""

    @staticmethod
    @torch.no_grad()
    def of(prior: PriorSensitivity, weights: Mapping[str, Tensor], strength: float, *, alike: bool = False) -> GivingBack:
        """From the prior of a network.

        Args:
            prior: by the network's parameters; its diagonal where it has one, else that of the kept eigenpairs.
            weights: of the network before tuning, by parameter; copied.
            strength: rho; 0 gives nothing back.
            alike: h = 1 for all elements that have a prior, whatever it says.

        Returns:
            What to apply to tuned weights; elements without a prior keep all of their displacement.

        Raises:
            ValueError: the strength is negative or not finite, or the prior says nothing.
        """
        if not 0 <= strength < math.inf:
            raise ValueError(f"strength is {strength}; expected a number of at least 0")
        groups = prior.groups.values()
        measures = {g.group: torch.ones(g.group.numel) if alike else g.measure().float() for g in groups}
        mean = sum(float(m.sum(dtype=torch.float64)) for m in measures.values()) / max(1, sum(g.numel for g in measures))
        if not mean > 0:
            raise ValueError(
                f"the prior's mean sensitivity is {mean}; expected a positive number: estimate it with a diagonal or eigenpairs"
            )
        pretrained = {name: weights[name].detach().clone() for name in dict.fromkeys(group.parameter for group in measures)}
        kept = {name: torch.ones_like(values, dtype=torch.float32) for name, values in pretrained.items()}
        for group in groups:
            where = kept[group.group.parameter].view(-1)[group.group.start : group.group.stop]
            where.copy_(1 / (1 + strength * group.share / mean * measures[group.group].to(where.device)))
        return GivingBack(pretrained=pretrained, kept=kept)

    @torch.no_grad()
    def __call__(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights after giving back.

        Args:
            weights: tuned, by name, whole; those without a prior are handed through.

        Returns:
            New tensors of those with one.
        """
        found = dict(weights)
        for name, origin in self.pretrained.items():
            tuned = weights[name]
            start, kept = origin.to(tuned.device), self.kept[name].to(tuned.device, tuned.dtype)
            found[name] = start + kept * (tuned - start)
        return found
