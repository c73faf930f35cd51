"""What sensitivity regularization is compared with: L2-SP and elastic weight consolidation (EWC), for any torch optimizer.

Both hold parameters near their pre-trained values by ``strength / 2 sum_i h_i (theta_i - theta_0i)^2``: L2-SP (Li et al. 2018) with h = 1,
EWC (Kirkpatrick et al. 2017) with h the diagonal of the Fisher matrix. Each comes *inside the gradient*, where an adaptive optimizer
rescales it, and *decoupled* as AdamW's weight decay is: after the step, by the closed-form proximal step
``theta -= s h / (1 + s h) (theta - theta_0)`` with ``s = lr strength``, stable for every strength.

Unlike SRFT's term, both keep a copy of the pre-trained weights, EWC the diagonal besides.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from srft.method.groups import groups_of
from srft.method.prior import PriorSensitivity

__all__ = ["QuadraticAnchor", "attach", "diagonals", "ewc", "l2_sp"]


@dataclass(frozen=True, kw_only=True, eq=False)
class QuadraticAnchor:
    """``strength / 2 sum_i h_i (theta_i - theta_0i)^2``."""

    strength: float
    origin: Mapping[Tensor, Tensor]
    """theta_0 by parameter; parameters that are not in it are free."""
    importance: Mapping[Tensor, Tensor]
    """h by parameter; empty for h = 1."""

    @torch.no_grad()
    def penalty(self) -> float:
        """The term's value.

        Returns:
            At the parameters' present values.
        """
        parts = [((p - origin).square() * self.importance.get(p, 1.0)).sum().item() for p, origin in self.origin.items()]
        return 0.5 * self.strength * math.fsum(parts)

    @torch.no_grad()
    def add_to_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Add the term's gradient ``strength h (theta - theta_0)``, after unscaling and clipping.

        Args:
            parameters: whose ``.grad`` is changed in place; those without a gradient or an origin are passed over.
        """
        for p in parameters:
            if p.grad is not None and p in self.origin:
                offset = p - self.origin[p]
                p.grad.add_(offset.mul_(self.importance[p]) if self.importance else offset, alpha=self.strength)

    @torch.no_grad()
    def pull_back(self, parameters: Iterable[Tensor], lr: float) -> None:
        """Take the proximal step of the term, after the optimizer's step and before gradients are cleared.

        Args:
            parameters: changed in place; those without a gradient or an origin are passed over, as by weight decay.
            lr: the step's learning rate.
        """
        for p in parameters:
            if p.grad is not None and p in self.origin:
                s = lr * self.strength * (self.importance[p] if self.importance else torch.ones((), dtype=p.dtype, device=p.device))
                p.lerp_(self.origin[p], s / (1 + s))


def l2_sp(
    named_parameters: Iterable[tuple[str, nn.Parameter]], *, strength: float, pretrained: Mapping[str, Tensor] | None = None
) -> QuadraticAnchor:
    """L2-SP: every element is held equally.

    Args:
        named_parameters: what trains.
        strength: of the term.
        pretrained: theta_0 by name; parameters that it lacks (new heads, adapters) are free. The present values of all when None.

    Returns:
        The term.

    Raises:
        ValueError: the strength is negative or not finite, or values have another shape than their parameter.
    """
    if not 0 <= strength < math.inf:
        raise ValueError(f"strength is {strength}; expected a number of at least 0")
    origin: dict[Tensor, Tensor] = {}
    for name, p in named_parameters:
        if pretrained is None or name in pretrained:
            values = p if pretrained is None else pretrained[name]
            if values.shape != p.shape:
                raise ValueError(f"pretrained: {name} has shape {tuple(values.shape)}, the parameter {tuple(p.shape)}")
            origin[p] = values.detach().to(p.device, p.dtype, copy=True)
    return QuadraticAnchor(strength=strength, origin=origin, importance={})


def ewc(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    fisher: Mapping[str, Tensor],
    *,
    strength: float,
    pretrained: Mapping[str, Tensor] | None = None,
) -> QuadraticAnchor:
    """EWC: elements are held by the diagonal of the Fisher matrix, divided by its mean over all of them.

    With the mean divided out the strength does not depend on the units of the loss, and is L2-SP's if all elements matter equally.

    Args:
        named_parameters: what trains.
        fisher: diagonal by name, of the parameters' shapes, see :func:`diagonals`.
        strength: of the term.
        pretrained: theta_0 by name; parameters that it lacks are free. The present values of all when None.

    Returns:
        The term.

    Raises:
        ValueError: the strength is negative or not finite, a parameter with pre-trained values has no diagonal or one of another shape
            or with negative or non-finite entries, or the diagonal is zero everywhere.
    """
    pairs = list(named_parameters)
    plain = l2_sp(pairs, strength=strength, pretrained=pretrained)
    importance: dict[Tensor, Tensor] = {}
    for name, p in pairs:
        if p not in plain.origin:
            continue
        if name not in fisher or fisher[name].shape != p.shape:
            found = tuple(fisher[name].shape) if name in fisher else "missing"
            raise ValueError(
                f"fisher: {name} is {found}; expected the diagonal of every parameter with pre-trained values: {tuple(p.shape)}"
            )
        h = fisher[name].detach().to(p.device, p.dtype, copy=True)
        if not bool((h.isfinite() & (h >= 0)).all()):
            raise ValueError(f"fisher: {name} has negative or non-finite entries; expected means of squares")
        importance[p] = h
    mean = math.fsum(h.sum(dtype=torch.float64).item() for h in importance.values()) / max(1, sum(h.numel() for h in importance.values()))
    if importance and mean == 0:
        raise ValueError("fisher: the diagonal is zero everywhere; estimate it from samples with a gradient")
    for h in importance.values():
        h.div_(mean)
    return QuadraticAnchor(strength=strength, origin=plain.origin, importance=importance)


def diagonals(prior: PriorSensitivity, named_parameters: Iterable[tuple[str, nn.Parameter]]) -> dict[str, Tensor]:
    """The diagonal of the Fisher matrix as :func:`ewc` takes it.

    Args:
        prior: estimated with ``diagonal=True`` and carried to these names.
        named_parameters: what trains.

    Returns:
        By name and in the shapes of the parameters that the prior knows.

    Raises:
        ValueError: the prior holds no diagonal of a parameter that it knows.
    """
    found = {}
    for name, p in named_parameters:
        priors = [prior.groups[group.name] for group in groups_of({name: p}) if group.name in prior.groups]
        parts = [block.diagonal for block in priors if block.diagonal is not None]
        if len(parts) < len(priors):
            raise ValueError(f"prior: {name} has no diagonal; estimate the prior with diagonal=True")
        if parts:
            found[name] = torch.cat(parts).view(p.shape)
    return found


def attach(anchor: QuadraticAnchor, optimizer: Optimizer, *, decoupled: bool) -> RemovableHandle:
    """Make every step of an optimizer regularized.

    Args:
        anchor: of the optimizer's parameters.
        optimizer: any torch optimizer with a learning rate in its parameter groups; take steps without a closure.
        decoupled: after the step, at the learning rate of each parameter group; otherwise inside the gradient.

    Returns:
        A handle; its ``remove`` ends the regularization.
    """

    def inside(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        for group in optimizer.param_groups:
            anchor.add_to_gradients(group["params"])

    def after(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        for group in optimizer.param_groups:
            anchor.pull_back(group["params"], float(group["lr"]))

    return optimizer.register_step_post_hook(after) if decoupled else optimizer.register_step_pre_hook(inside)
