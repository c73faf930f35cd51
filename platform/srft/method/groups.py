"""Operations: the units that sensitivities, eigenpairs and ranks belong to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

__all__ = ["Group", "groups_of"]


@dataclass(frozen=True)
class Group:
    """One operation: a named parameter, or a range of its leading rows.

    Leading rows are contiguous, so the elements of a group are one slice of the flattened parameter.
    """

    parameter: str
    """Name of the parameter in the model."""
    start: int
    """First element in the flattened parameter."""
    stop: int
    """One past the last element in the flattened parameter."""
    part: str = ""
    """Which rows of a fused parameter: ``q``, ``k`` or ``v``; empty for a whole parameter."""

    @property
    def name(self) -> str:
        """Key of the group: the parameter's name, followed by ``:part`` for rows of a fused one."""
        return f"{self.parameter}:{self.part}" if self.part else self.parameter

    @property
    def numel(self) -> int:
        """Number of elements."""
        return self.stop - self.start

    def renamed(self, parameter: str) -> Group:
        """The same elements of another parameter.

        Args:
            parameter: the other parameter's name.

        Returns:
            The group with that name.
        """
        return replace(self, parameter=parameter)

    def of(self, tensor: Tensor) -> Tensor:
        """The group's elements.

        Args:
            tensor: the parameter, or anything of its shape, contiguous.

        Returns:
            ``[numel]`` view that shares the tensor's storage.
        """
        return tensor.detach().view(-1)[self.start : self.stop]


def groups_of(named_parameters: Mapping[str, Tensor]) -> tuple[Group, ...]:
    """Split parameters into operations.

    The weight and the bias of a module whose name contains ``qkv`` count as three (rows of q, of k, of v) if their rows divide by
    three; every other parameter is one.

    Args:
        named_parameters: tensors by name.

    Returns:
        The groups in the order of the parameters.
    """
    groups: list[Group] = []
    for name, tensor in named_parameters.items():
        module, _, leaf = name.rpartition(".")
        fused = leaf in ("weight", "bias") and "qkv" in module.rpartition(".")[2]
        if fused and tensor.ndim > 0 and tensor.shape[0] % 3 == 0:
            third = tensor.numel() // 3
            groups += [Group(name, i * third, (i + 1) * third, part) for i, part in enumerate("qkv")]
        else:
            groups.append(Group(name, 0, tensor.numel()))
    return tuple(groups)
