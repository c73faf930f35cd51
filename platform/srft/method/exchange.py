"""Statistics exchanged through the process group itself: training on several workers without Ray (torchrun)."""

from __future__ import annotations

import torch
from torch.distributed import ProcessGroup

from srft.method.sparsity import LocalExchange, Sketch, merge

__all__ = ["AllReduceExchange"]


class AllReduceExchange(LocalExchange):
    """A ``StatisticsExchange`` whose sketches are added up over the workers as they are submitted; submitting is collective.

    A few hundred bytes per operation, every ``refresh`` steps. What is pending is the same on every worker, so any worker's
    ``state_dict`` resumes all.
    """

    def __init__(self, refresh: int, group: ProcessGroup | None = None) -> None:
        """Start with nothing submitted.

        Args:
            refresh: steps between a submission and its use; below 1 is a ValueError.
            group: of the workers; every process when None.
        """
        super().__init__(refresh)
        self.group = group

    def submit(self, step: int, sketch: Sketch) -> None:
        """Add up the sketches of all workers and keep the sum until it is due.

        Args:
            step: optimizer step at which the window ended, the same on every worker.
            sketch: of this worker's share of the elements.
        """
        parts = [b""] * torch.distributed.get_world_size(self.group)
        torch.distributed.all_gather_object(parts, sketch.to_bytes(), group=self.group)
        super().submit(step, merge([Sketch.from_bytes(part) for part in parts]))
