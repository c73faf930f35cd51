"""One operation of a parameter during training: its prior as a step uses it, on the elements that this process holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from srft.config import SRFTConfig
from srft.method.exact import exact_products
from srft.method.group_prior import GroupPrior
from srft.method.groups import Group
from srft.method.histogram import rank_table
from srft.method.kronecker_prior import KroneckerGroup
from srft.method.prior import PriorSensitivity
from srft.method.shards import Shard
from srft.method.sketch import Scratch, TensorRanks, chunks, histogram_of, tensor_ranks
from srft.method.storage import from_log8, to_log8
from srft.method.tangent import Directions, Kronecker, LowRank

__all__ = ["Binding", "Operation", "Remainder", "directions_of", "prior_ranks", "unranked"]


@dataclass(eq=False, kw_only=True)
class Remainder:
    """What the eigenpairs leave out of the diagonal, in 8 bits, and where it pulls to."""

    codes: Tensor
    """``[n]`` uint8, which level each element has."""
    levels: Tensor
    """``[256]`` dimensionless r, in the units of the eigenvalues L."""
    shrinkage: Tensor
    """``[256]`` r / (r + mu / lambda_p)."""
    origin: Tensor
    """``[n]`` theta_0."""


@dataclass(eq=False, kw_only=True)
class Operation:
    """What the optimizer knows of one group, of the elements that this process holds."""

    group: Group
    where: slice
    """Its elements in the flattened local parameter."""
    directions: Directions | None
    """V; None without a prior, and if the prior keeps no eigenpair."""
    curvature: Tensor
    """``[K]`` L, dimensionless eigenvalues."""
    shrinkage: Tensor
    """``[K]`` D, for projections."""
    columns: slice
    """Where the operation's K numbers are in its parameter's anchor."""
    ranks: TensorRanks
    """Ranks of the transfer sensitivity; 0.5 throughout before the first statistics."""
    prior_ranks: Tensor | None
    """``[n]`` uint8, 255 times the rank of the prior sensitivity, shared by copies; None without a prior, and while nothing is damped."""
    remainder: Remainder | None
    total: Tensor | None = None
    """The elements' share of V theta after the last step."""
    version: int = -1
    """Of the parameter's values then: a later one was changed by somebody else."""

    @property
    def has_prior(self) -> bool:
        """Whether the step uses a prior sensitivity of the group."""
        return self.directions is not None or self.remainder is not None or self.prior_ranks is not None

    def ranges(self) -> list[tuple[int, int]]:
        """Pieces to work through.

        Returns:
            Pairs of first element and one past the last, counted from the operation's first here.
        """
        if self.directions is not None:
            return self.directions.ranges()
        return chunks(self.where.stop - self.where.start, self.curvature.device)

    def project(self, values: Tensor, scratch: Scratch) -> Tensor:
        """The elements' share of ``V y``.

        Args:
            values: the flattened local parameter, or anything of its shape.
            scratch: for pieces.

        Returns:
            A total, to be added up over shards and given to ``directions.coordinates``.
        """
        assert self.directions is not None
        total, mine = self.directions.empty(), values[self.where]
        for a, b in self.ranges():
            self.directions.accumulate(self.directions.piece(a, b, scratch), mine[a:b], total)
        return total

    def add(self, values: Tensor, coefficients: Tensor, scratch: Scratch) -> None:
        """Add a combination of the eigenvectors: ``y += V^T x``.

        Args:
            values: the flattened local parameter, or anything of its shape; changed in place.
            coefficients: ``[K]``.
            scratch: for pieces.
        """
        assert self.directions is not None
        prepared, mine = self.directions.prepare(coefficients), values[self.where]
        for a, b in self.ranges():
            self.directions.add(self.directions.piece(a, b, scratch), prepared, mine[a:b])

    def add_remainder(self, gradient: Tensor, values: Tensor, a: int, b: int, strength: float) -> None:
        """Gradient of the remainder's quadratic: ``g += strength r (theta - theta_0)``.

        Args:
            gradient: ``[b - a]``, changed in place.
            values: ``[b - a]`` theta.
            a: first element.
            b: one past the last.
            strength: lambda_p w.
        """
        assert self.remainder is not None
        r = _level(self.remainder.levels * strength, self.remainder.codes[a:b])
        gradient.addcmul_(r, values - self.remainder.origin[a:b])

    def shrink_by_remainder(self, gradient: Tensor, a: int, b: int, weight: float) -> None:
        """Projection by the remainder: ``g -= weight r / (r + mu / lambda_p) g``.

        Args:
            gradient: ``[b - a]``, changed in place.
            a: first element.
            b: one past the last.
            weight: w.
        """
        assert self.remainder is not None
        gradient.addcmul_(gradient, _level(self.remainder.shrinkage * weight, self.remainder.codes[a:b]), value=-1)

    def pull_by_remainder(self, values: Tensor, strength: float) -> None:
        """Proximal step of the remainder's quadratic: ``theta -= s / (1 + s) (theta - theta_0)`` with ``s = strength r``.

        Args:
            values: the flattened local parameter, changed in place.
            strength: lr lambda_p w.
        """
        assert self.remainder is not None
        s, mine = self.remainder.levels * strength, values[self.where]
        for a, b in self.ranges():
            mine[a:b].lerp_(self.remainder.origin[a:b], _level(s / (1 + s), self.remainder.codes[a:b]).to(mine.dtype))


def unranked(device: torch.device) -> TensorRanks:
    """Ranks of the transfer sensitivity before the first statistics.

    Args:
        device: of the operation.

    Returns:
        0.5 throughout.
    """
    return TensorRanks(0, torch.full((1,), 0.5, device=device))


def _level(levels: Tensor, codes: Tensor) -> Tensor:
    return levels.index_select(0, codes.to(torch.int32))


def directions_of(prior: GroupPrior | KroneckerGroup, first: int, stop: int, dtype: torch.dtype) -> Directions:
    """The eigenvectors of a prior, on a range of its group's elements.

    Args:
        prior: of a group.
        first: first element.
        stop: one past the last.
        dtype: to compute in.

    Returns:
        Shares storage with the prior.
    """
    if isinstance(prior, KroneckerGroup):
        inputs = prior.in_vectors.shape[1]
        return Kronecker(prior.out_vectors[:, first // inputs : stop // inputs], prior.in_vectors, prior.pairs, dtype)
    return LowRank(prior.eigenvectors[:, first:stop], dtype)


def prior_ranks(prior: GroupPrior | KroneckerGroup) -> Tensor:
    """Rank of each element's prior sensitivity inside its group, in 8 bits.

    Args:
        prior: of a group.

    Returns:
        ``[n]`` uint8, 255 times the rank.
    """
    measure = prior.measure()
    table = tensor_ranks(rank_table(histogram_of(measure, prior.group.name)), measure.device)
    return table.lookup(measure).mul_(255).round_().to(torch.uint8)


@dataclass(eq=False, kw_only=True)
class Binding:
    """Makes the operations of an optimizer; what copies of a parameter have in common is made once."""

    settings: SRFTConfig
    prior: PriorSensitivity | None
    _shared: dict[tuple[str, tuple[int, ...]], Any] = field(default_factory=dict, repr=False)

    def prior_of(self, group: Group) -> GroupPrior | KroneckerGroup | None:
        """The prior of a group.

        Args:
            group: of a parameter.

        Returns:
            None also if it keeps neither an eigenpair nor a diagonal.

        Raises:
            ValueError: it is of other elements.
        """
        prior = self.prior.groups.get(group.name) if self.prior is not None else None
        if prior is None or not (len(prior.eigenvalues) or prior.diagonal is not None):
            return None
        if (prior.group.start, prior.group.stop) != (group.start, group.stop):
            raise ValueError(
                f"prior of {group.name} is of elements {prior.group.start} to {prior.group.stop}, the parameter's are {group.start} to "
                f"{group.stop}; the key map sends a parameter to one of another shape"
            )
        return prior

    @exact_products()
    def operation(self, group: Group, shard: Shard, origin: Tensor, used: int) -> Operation:
        """The operation of a group.

        Args:
            group: of a parameter.
            shard: which elements of the parameter are held here.
            origin: ``[numel of the shard]`` theta_0.
            used: numbers that the operations before it have in the parameter's anchor.

        Returns:
            The operation.

        Raises:
            ValueError: the prior does not fit, or was estimated without any eigenvalue.
        """
        begin = min(max(group.start, shard.start), group.stop)
        end = max(min(group.stop, shard.start + shard.numel), begin)
        first, last = begin - group.start, end - group.start
        dtype = torch.promote_types(origin.dtype, torch.float32)
        none = torch.zeros(0, dtype=dtype, device=origin.device)
        op = Operation(
            group=group,
            where=slice(begin - shard.start, end - shard.start) if end > begin else slice(0, 0),
            directions=None,
            curvature=none,
            shrinkage=none,
            columns=slice(used, used),
            ranks=unranked(origin.device),
            prior_ranks=None,
            remainder=None,
        )
        prior = self.prior_of(group)
        if prior is None or self.prior is None:
            return op
        k, settings = len(prior.eigenvalues), self.settings
        strength = prior.share * settings.prior_strength
        scale = self.prior.scale if settings.scale == "global" or not k else float(prior.eigenvalues[0])
        if not scale:
            if prior.diagonal is not None and bool((prior.diagonal > 0).any()):
                raise ValueError(
                    f"prior of {group.name}: its scale is 0, since no eigenvalue is known; estimate it with a rank of 1 or more"
                )
            scale = 1.0  # Nothing is sensitive.
        left_out = prior.residual / max(group.numel - k, 1)
        ridge = left_out / strength if strength > 0 else float("inf")
        if k and prior.share > 0:
            op.directions = directions_of(prior, first, last, dtype)
            op.curvature = (prior.eigenvalues * prior.share / scale).to(origin.device, dtype)
            op.shrinkage = (prior.eigenvalues / (prior.eigenvalues + ridge)).to(origin.device, dtype)
            op.columns = slice(used, used + k)
        if settings.damping_strength > 0 and settings.damping_range[1] > settings.damping_range[0]:
            op.prior_ranks = self._once("ranks", prior, lambda: prior_ranks(prior))[first:last]
        if prior.diagonal is not None and strength > 0:
            codes, largest = self._once("remainder", prior, lambda: to_log8(prior.residual_diagonal()))
            r = from_log8(torch.arange(256, dtype=torch.uint8, device=origin.device), largest).to(dtype)
            theta_0 = origin[op.where]
            kept = self._once(f"origin {first}", prior, theta_0.clone)  # Copies start from the same values.
            op.remainder = Remainder(
                codes=codes[first:last],
                levels=r * prior.share / scale,
                shrinkage=(r / (r + ridge)).nan_to_num(),
                origin=kept if torch.equal(kept, theta_0) else theta_0.clone(),
            )
        return op

    def _once(self, what: str, prior: GroupPrior | KroneckerGroup, make: Callable[[], Any]) -> Any:
        key = what, tuple(part.data_ptr() for part in prior.parts)  # Copies share their tensors.
        if key not in self._shared:
            self._shared[key] = make()
        return self._shared[key]
