"""The tangent-space term over all parameters: displacements in the prior's subspaces, what is added to gradients or pulled back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from srft.method.exact import exact_products
from srft.method.operation import Operation
from srft.method.shards import Shard, local, sum_over_shards
from srft.method.sketch import Scratch

__all__ = ["TangentTerm"]


class TangentTerm:
    """Operations of every parameter and their coordinates. With sharded parameters all methods are collective."""

    def __init__(self) -> None:
        """Know no parameter yet."""
        self.operations: dict[Tensor, list[Operation]] = {}
        self.shards: dict[Tensor, Shard] = {}
        self.scratch = Scratch()
        self._anchors: dict[Tensor, Tensor] = {}

    @exact_products()
    def adopt(self, p: Tensor, operations: list[Operation], shard: Shard, origin: Tensor) -> Tensor | None:
        """Take a parameter on.

        Args:
            p: the parameter.
            operations: its groups.
            shard: which of its elements are held here.
            origin: ``[numel of the shard]`` theta_0.

        Returns:
            V theta_0 of its operations one after the other, to be kept in the optimizer's state and overwritten in place when that is
            loaded; None without eigenpairs.
        """
        self.operations[p], self.shards[p] = operations, shard
        known = [(op, op.directions) for op in operations if op.directions is not None]
        if not known:
            return None
        totals = sum_over_shards([shard] * len(known), [op.project(origin, self.scratch) for op, _ in known])
        self._anchors[p] = torch.cat([v.coordinates(total) for (_, v), total in zip(known, totals, strict=True)])
        return self._anchors[p]

    @exact_products()
    def penalty(self, gradients: Mapping[Tensor, Tensor], strength: float) -> dict[Operation, Tensor]:
        """Coefficients of what the penalty adds to the gradient, strength L c.

        Args:
            gradients: whose parameters take a step.
            strength: lambda_p w.

        Returns:
            ``[K]`` of each operation with a prior.
        """
        return self._scaled(self.displacements(gradients), {op: op.curvature for op in self._known(gradients)}, strength)

    @exact_products()
    def projection(self, gradients: Mapping[Tensor, Tensor], weight: float) -> dict[Operation, Tensor]:
        """Coefficients of what the projection adds to the gradient, - w D V g.

        Args:
            gradients: flattened, of the elements held here.
            weight: w.

        Returns:
            ``[K]`` of each operation with a prior.
        """
        return self._scaled(self._offsets(gradients, kept=False), {op: op.shrinkage for op in self._known(gradients)}, -weight)

    @exact_products()
    def prepared(self, combinations: Mapping[Operation, Tensor]) -> dict[Operation, Tensor]:
        """Combinations as ``Directions.add`` takes them.

        Args:
            combinations: ``[K]`` by operation.

        Returns:
            From ``Directions.prepare``.
        """
        return {op: op.directions.prepare(x) for op, x in combinations.items() if op.directions is not None}

    @exact_products()
    def displacements(self, parameters: Iterable[Tensor]) -> dict[Operation, Tensor]:
        """Where parameters have moved to in the prior's subspaces.

        Args:
            parameters: which.

        Returns:
            ``[K]`` c of each operation with a prior.
        """
        parameters = list(parameters)
        offsets = self._offsets({p: local(p).view(-1) for p in parameters}, kept=True)
        anchors = [self._anchors[p][op.columns] for p in parameters for op in self.operations[p] if op in offsets]
        return dict(zip(offsets, torch._foreach_sub(list(offsets.values()), anchors), strict=True)) if offsets else {}

    @exact_products()
    def pull_back(self, strengths: Mapping[Tensor, float]) -> None:
        """The proximal step, after the optimizer's own.

        Args:
            strengths: lr lambda_p w of each parameter that took a step.
        """
        displacements = self.displacements(strengths)
        for p, s in strengths.items():
            values = local(p).view(-1)
            for op in self.operations[p]:
                if op in displacements:
                    pull = s * op.curvature
                    op.add(values, -displacements[op] * (pull / (1 + pull)), self.scratch)
                if op.remainder is not None:
                    op.pull_by_remainder(values, s)
                op.total = None

    def _known(self, parameters: Iterable[Tensor]) -> list[Operation]:
        return [op for p in parameters for op in self.operations[p] if op.directions is not None]

    def _scaled(self, coordinates: dict[Operation, Tensor], scales: Mapping[Operation, Tensor], factor: float) -> dict[Operation, Tensor]:
        if not coordinates:
            return {}
        factors = torch._foreach_mul([scales[op] for op in coordinates], factor)
        return dict(zip(coordinates, torch._foreach_mul(list(coordinates.values()), factors), strict=True))

    def _offsets(self, what: Mapping[Tensor, Tensor], *, kept: bool) -> dict[Operation, Tensor]:
        # V y of every operation with a prior, over all shards; what a step kept of V theta is taken where it still holds.
        ops, shards, totals = [], [], []
        for p, y in what.items():
            for op in self.operations[p]:
                if op.directions is not None:
                    holds = kept and op.total is not None and op.version == local(p)._version
                    ops.append((op, op.directions))
                    shards.append(self.shards[p])
                    totals.append(op.total if holds and op.total is not None else op.project(y, self.scratch))
        return {op: v.coordinates(total) for (op, v), total in zip(ops, sum_over_shards(shards, totals), strict=True)}
