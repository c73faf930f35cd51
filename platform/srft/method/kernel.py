"""AdamW's step with the tangent-space term and the damping: one pass over buckets of elements.

A bucket is a piece of one large operation, worked on where it lies, or many small operations gathered into one stretch of memory, since
a call costs as much as the arithmetic on some ten thousand elements. Ranks of a gathered bucket come from the tables of its operations
laid end to end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from srft.config import Damped, SRFTConfig, TransferSource
from srft.method.exact import exact_products
from srft.method.operation import Operation
from srft.method.sketch import CHUNK, Scratch, TensorRanks, reach
from srft.method.tangent import stacks_of

__all__ = ["AdamStep", "Bucket", "Damping", "Tangent", "average_two_steps", "buckets_of"]

SMALL = CHUNK // 4
"""Elements of an operation that is gathered with others on a CPU; on a GPU half of a bucket."""
TOGETHER = False
"""Work on the eigenvectors of operations of one size together on a CPU, too, where it saves less than the memory costs."""


@dataclass(frozen=True, kw_only=True)
class AdamStep:
    """Numbers of AdamW's step."""

    lr: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    step: float
    """Steps of the parameters, this one included."""

    @staticmethod
    def of(group: Mapping[str, Any], step: float) -> AdamStep:
        """From a parameter group.

        Args:
            group: of an optimizer.
            step: steps of the parameters, this one included.

        Returns:
            The numbers.
        """
        beta1, beta2 = group["betas"]
        return AdamStep(lr=float(group["lr"]), beta1=beta1, beta2=beta2, eps=group["eps"], weight_decay=group["weight_decay"], step=step)


@dataclass(frozen=True, kw_only=True)
class Damping:
    """The factor ``gain (1 - strength (low + (high - low) m))`` of an element's step.

    With w the share of the prior, m is ``w rank_prior + (1 - w) x`` where x is ``rank_transfer`` if both are damped, ``1 -
    rank_transfer`` if opposed, and 1/2 for the prior alone. Ranks have a mean of 1/2, and so has m; where the rate is kept, gain is one
    over the factor at that mean.
    """

    strength: float
    low: float
    high: float
    weight: float
    """w, share of the prior."""
    transfer: TransferSource
    damped: Damped = "both"
    kept: bool = False
    """Keep the mean rate."""

    @staticmethod
    def of(settings: SRFTConfig, weight: float) -> Damping:
        """From a run's settings.

        Args:
            settings: of the method.
            weight: w.

        Returns:
            The damping of one step.
        """
        low, high = settings.damping_range
        return Damping(
            strength=settings.damping_strength,
            low=low,
            high=high,
            weight=weight,
            transfer=settings.transfer,
            damped=settings.damped,
            kept=settings.damped_rate == "kept",
        )

    @property
    def gain(self) -> float:
        """What keeps the mean rate; 1 where it is not kept."""
        return 1 / (1 - self.strength * (self.low + self.high) / 2) if self.kept else 1.0

    def shares(self, prior: float) -> tuple[float, float, float]:
        """What m is made of.

        Args:
            prior: share of the prior, 0 for elements without one.

        Returns:
            Coefficients of ``rank_prior`` and ``rank_transfer``, and a constant.
        """
        rest = 1 - prior
        match self.damped:
            case "both":
                return prior, rest, 0.0
            case "opposed":
                return prior, -rest, rest
            case "prior":
                return prior, 0.0, rest / 2

    @property
    def span(self) -> float:
        """How much ranks change the factor."""
        return self.strength * (self.high - self.low)

    @property
    def most(self) -> float:
        """The factor of the least sensitive element."""
        return 1 - self.strength * self.low


@dataclass(frozen=True, kw_only=True)
class Tangent:
    """What the tangent-space term does in the pass."""

    prepared: Mapping[Operation, Tensor]
    """Combinations of eigenvectors that are added to the gradient, from ``Directions.prepare``."""
    penalty: float
    """lambda_p w of the remainder's term, 0 for none."""
    projection: float
    """w of the remainder's projection, 0 for none."""
    accumulate: bool
    """Take V theta of the new values."""


@dataclass(frozen=True, eq=False)
class Segment:
    """A range of an operation's elements."""

    op: Operation
    parameter: Tensor
    a: int
    b: int

    def of(self, flat: Tensor) -> Tensor:
        """Its elements.

        Args:
            flat: the flattened local parameter, or anything of its shape.

        Returns:
            ``[b - a]`` view.
        """
        return flat[self.op.where.start + self.a : self.op.where.start + self.b]


class Bucket:
    """Elements that take their step together; all of their operations have a prior, or none has."""

    def __init__(self, segments: list[Segment]) -> None:
        """Lay segments end to end.

        Args:
            segments: of one type and device; several must be whole operations.
        """
        if stacked := TOGETHER or segments[0].parameter.device.type != "cpu":
            segments = sorted(segments, key=lambda s: s.b)
        self.segments = segments
        self.sizes = [s.b - s.a for s in segments]
        self.numel = sum(self.sizes)
        self.has_prior = segments[0].op.has_prior
        whole = [s.op.directions if s.b - s.a == s.op.where.stop - s.op.where.start else None for s in segments]
        self._stacks = stacks_of(whole, segments[0].parameter.dtype) if stacked else {}
        self._stacked = {i + j for i, stack in self._stacks.items() for j in range(stack.shape[0])}
        self._tables: tuple[list[TensorRanks], _JoinedRanks] | None = None
        ranks = [s.op.prior_ranks[s.a : s.b] for s in segments if s.op.prior_ranks is not None]
        self.prior_ranks = None if not ranks else ranks[0] if len(ranks) == 1 else torch.cat(ranks)

    def ranks(self, scale: float, shift: float) -> TensorRanks | _JoinedRanks:
        """Ranks of the transfer sensitivity, scaled and shifted.

        Args:
            scale: multiplies each rank.
            shift: added afterwards.

        Returns:
            Something with a ``lookup``.
        """
        if len(self.segments) == 1:
            return self.segments[0].op.ranks.affine(scale, shift)
        tables = [s.op.ranks for s in self.segments]
        if self._tables is None or any(a is not b for a, b in zip(tables, self._tables[0], strict=True)):
            self._tables = tables, _JoinedRanks.of(tables, self.sizes)
        return self._tables[1].affine(scale, shift)

    @exact_products()
    def update(
        self,
        values: Mapping[Tensor, Tensor],
        gradients: Mapping[Tensor, Tensor],
        states: Mapping[Tensor, Mapping[str, Tensor]],
        adam: AdamStep,
        damping: Damping,
        tangent: Tangent,
        scratch: Scratch,
    ) -> None:
        """Take the step, reading everything once.

        Args:
            values: theta by parameter, flattened and local, changed in place.
            gradients: of them; those of large operations are changed in place where there is a tangent-space term.
            states: ``exp_avg``, ``exp_avg_sq`` and what else there is, changed in place.
            adam: AdamW's numbers.
            damping: the element-wise factor.
            tangent: the tangent-space term.
            scratch: for temporaries.
        """

        def gathered(name: str, flats: Callable[[Tensor], Tensor]) -> tuple[list[Tensor], Tensor]:
            views = [s.of(flats(s.parameter)) for s in self.segments]
            if len(views) == 1:
                return views, views[0]
            return views, torch.cat(views, out=scratch.take(name, self.numel, views[0].dtype, views[0].device))

        names = list(states[self.segments[0].parameter])
        _, g = gathered("gradient", gradients.__getitem__)
        parts = {name: gathered(name, lambda p, name=name: states[p][name]) for name in names}
        views, theta = gathered("values", values.__getitem__)
        state = {name: whole for name, (_, whole) in parts.items()}
        offsets = [0]
        for size in self.sizes:
            offsets.append(offsets[-1] + size)
        pieces = self._regularize(g, theta, offsets, tangent, scratch)
        _adam(theta, g, state, adam, damping, self, scratch)
        if len(self.segments) > 1:
            for scattered, whole in [(views, theta), *parts.values()]:
                torch._foreach_copy_(scattered, list(whole.split(self.sizes)))
        if tangent.accumulate:
            self._accumulate(theta, values, offsets, pieces)

    def _regularize(self, g: Tensor, theta: Tensor, offsets: list[int], tangent: Tangent, scratch: Scratch) -> list[Tensor | None]:
        # Adds the tangent-space term to the gradient; returns what was fetched of the eigenvectors, of a stack at its first segment.
        pieces: list[Tensor | None] = [None] * len(self.segments)
        for i, stack in self._stacks.items():
            prepared = [tangent.prepared[s.op] for s in self.segments[i : i + stack.shape[0]] if s.op in tangent.prepared]
            if prepared or tangent.accumulate:
                pieces[i] = whole = stack.fetch(scratch, str(i))
                if prepared:
                    stack.add(whole, prepared, g[offsets[i] : offsets[i + stack.shape[0]]])
        for i, s in enumerate(self.segments):
            mine = slice(offsets[i], offsets[i + 1])
            prepared = tangent.prepared.get(s.op)
            if i not in self._stacked and s.op.directions is not None and (prepared is not None or tangent.accumulate):
                pieces[i] = piece = s.op.directions.piece(s.a, s.b, scratch, slot=i)
                if prepared is not None:
                    s.op.directions.add(piece, prepared, g[mine])
            if s.op.remainder is not None and tangent.penalty:
                s.op.add_remainder(g[mine], theta[mine], s.a, s.b, tangent.penalty)
            if s.op.remainder is not None and tangent.projection:
                s.op.shrink_by_remainder(g[mine], s.a, s.b, tangent.projection)
        return pieces

    def _accumulate(self, theta: Tensor, values: Mapping[Tensor, Tensor], offsets: list[int], pieces: list[Tensor | None]) -> None:
        # V theta of the new values, from what was fetched. Where they lie, since a copy elsewhere in memory may be summed in another order,
        # and a resumed run takes them from there.
        for i, stack in self._stacks.items():
            whole = pieces[i]
            assert whole is not None
            totals = stack.project(whole, theta[offsets[i] : offsets[i + stack.shape[0]]])
            for s, total in zip(self.segments[i:], totals, strict=False):
                s.op.total = total
        alone = [(i, s) for i, s in enumerate(self.segments) if i not in self._stacked and s.op.directions is not None]
        if earlier := [s.op.total for _, s in alone if s.a == 0 and s.op.total is not None]:
            torch._foreach_zero_(earlier)
        for i, s in alone:
            directions, piece = s.op.directions, pieces[i]
            assert directions is not None
            assert piece is not None
            s.op.total = directions.empty() if s.op.total is None else s.op.total
            directions.accumulate(piece, s.of(values[s.parameter]), s.op.total)


def _adam(p: Tensor, g: Tensor, state: Mapping[str, Tensor], adam: AdamStep, damping: Damping, bucket: Bucket, scratch: Scratch) -> None:
    root, correction = (1 - adam.beta2**adam.step) ** 0.5, 1 - adam.beta1**adam.step
    rate = adam.lr * damping.gain / correction
    first, second = state["exp_avg"], state["exp_avg_sq"]
    first.lerp_(g, 1 - adam.beta1)
    second.mul_(adam.beta2).addcmul_(g, g, value=1 - adam.beta2)
    magnitude = torch.sqrt(second, out=scratch.take("magnitude", len(p), p.dtype, p.device)).mul_(1 / root)
    factor: Tensor | None = None
    two_step = average_two_steps(state["last_square"], state["two_step"], g) if damping.transfer == "two_step" else None
    if damping.span > 0:
        ranked = magnitude if two_step is None else two_step.sqrt()
        known, pulled, constant = damping.shares(damping.weight if bucket.has_prior else 0.0)
        # The table holds lr (1 - lambda_d m) without the prior's part of m, so that damping costs one lookup.
        factor = bucket.ranks(-rate * damping.span * pulled, rate * (damping.most - damping.span * constant)).lookup(ranked, scratch)
        if bucket.prior_ranks is not None and known > 0:
            factor.add_(bucket.prior_ranks, alpha=-rate * damping.span * known / 255)
    if "max_exp_avg_sq" in state:
        largest = torch.maximum(state["max_exp_avg_sq"], second, out=state["max_exp_avg_sq"])
        magnitude = torch.sqrt(largest, out=magnitude).mul_(1 / root)
    direction = torch.div(first, magnitude.add_(adam.eps), out=magnitude)
    if adam.weight_decay:
        direction.add_(p, alpha=adam.weight_decay * correction)
    if factor is not None:
        p.addcmul_(direction, factor.to(p.dtype), value=-1)
    else:
        p.add_(direction, alpha=-rate * damping.most)


@dataclass(frozen=True, eq=False)
class _JoinedRanks:
    """Tables laid end to end, and for every element where its own lies: all int32 ``[n]``."""

    ranks: Tensor
    shift: Tensor
    low: Tensor
    high: Tensor

    @staticmethod
    def of(tables: list[TensorRanks], sizes: list[int]) -> _JoinedRanks:
        device, begin = tables[0].ranks.device, 0
        rows = []
        for table in tables:
            end = begin + len(table.ranks)
            rows.append((begin - table.first, begin, end - 1))
            begin = end
        counts = torch.tensor(sizes, device=device)
        each = torch.tensor(rows, dtype=torch.int32, device=device).repeat_interleave(counts, 0, output_size=sum(sizes))
        return _JoinedRanks(torch.cat([table.ranks for table in tables]), *(column.contiguous() for column in each.unbind(1)))

    def affine(self, scale: float, shift: float) -> _JoinedRanks:
        return _JoinedRanks(self.ranks * scale + shift, self.shift, self.low, self.high)

    def lookup(self, magnitudes: Tensor, scratch: Scratch) -> Tensor:
        index = TensorRanks.index(magnitudes, scratch).add_(self.shift).clamp_(self.low, self.high)
        found = scratch.take("found", len(magnitudes), self.ranks.dtype, magnitudes.device)
        return torch.index_select(self.ranks, 0, index, out=found)


def buckets_of(operations: Iterable[tuple[Tensor, Operation]]) -> list[Bucket]:
    """Buckets of operations that take the same numbers.

    Args:
        operations: pairs of parameter and one of its operations.

    Returns:
        Pieces of large operations, and small ones together; those without an element are left out.
    """
    buckets: list[Bucket] = []
    waiting: dict[Any, list[Segment]] = {}
    for parameter, op in operations:
        numel = op.where.stop - op.where.start
        most = reach(parameter.device, CHUNK)
        small = SMALL if parameter.device.type == "cpu" else most // 2
        if numel > small:
            buckets += [Bucket([Segment(op, parameter, a, b)]) for a, b in op.ranges()]
        elif numel:
            key = op.has_prior, parameter.dtype, parameter.device
            together = waiting.setdefault(key, [])
            if together and sum(s.b for s in together) + numel > most:
                buckets.append(Bucket(together))
                together = waiting[key] = []
            together.append(Segment(op, parameter, 0, numel))
    return buckets + [Bucket(together) for together in waiting.values()]


def average_two_steps(last_square: Tensor, two_step: Tensor, gradient: Tensor) -> Tensor:
    """Mean of this and the last step's squared gradient; the one before the first is zero.

    Args:
        last_square: the last step's, becomes this one's.
        two_step: becomes the mean.
        gradient: this step's.

    Returns:
        ``two_step``.
    """
    square = gradient * gradient
    torch.lerp(last_square, square, 0.5, out=two_step)
    last_square.copy_(square)
    return two_step
