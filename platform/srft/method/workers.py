"""Sums over workers from one collective that gives every worker's value to all, so that any launcher can supply it."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from functools import reduce
from typing import Any, TypeVar

import torch
from torch import Tensor

__all__ = ["Gather", "Workers", "alone"]

T = TypeVar("T")

Gather = Callable[[Any], list[Any]]
"""Every worker's value by rank, on every worker; all workers call it equally often, as around ``torch.distributed.all_gather_object``."""


def alone(value: Any) -> list[Any]:
    """The collective of a single worker.

    Args:
        value: anything.

    Returns:
        A list of it.
    """
    return [value]


class Workers:
    """One worker's place among all; every method is to be called by all of them, in the same order."""

    def __init__(self, gather: Gather) -> None:
        """Find out how many there are and which of them this is.

        Args:
            gather: the collective.
        """
        token = uuid.uuid4().hex
        tokens = gather(token)
        self.gather = gather
        self.rank = tokens.index(token)
        self.count = len(tokens)

    def total(self, tensor: Tensor) -> Tensor:
        """Sum over workers in the order of their ranks, so that it is the same on all of them, bit by bit.

        Args:
            tensor: this worker's.

        Returns:
            The sum, on the device of ``tensor``.
        """
        return tensor if self.count == 1 else reduce(torch.add, self.gather(tensor.cpu())).to(tensor.device)

    def first(self, make: Callable[[], T]) -> T:
        """What the first worker makes, which for the others may differ by rounding.

        Args:
            make: makes it; called by the first worker only.

        Returns:
            The same on every worker.
        """
        made = self.together(lambda: make() if self.rank == 0 else None)
        return self.gather(made)[0]

    def together(self, work: Callable[[], T]) -> T:
        """Do something that may fail on one worker alone; then it fails on all, instead of leaving the others waiting.

        Args:
            work: what this worker does, without a collective inside.

        Returns:
            What it returns.

        Raises:
            ValueError: it failed on another worker.
        """
        try:
            result = work()
        except Exception as error:
            self.gather(f"{type(error).__name__}: {error}")
            raise
        for rank, message in enumerate(self.gather(None)):
            if message is not None:
                raise ValueError(f"worker {rank} failed with {message}")
        return result
