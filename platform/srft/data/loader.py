"""Batches for a device: made ahead by worker processes as bytes, moved, then normalized where the network is."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import cv2
import torch
from torch.utils.data import DataLoader, Sampler

from srft.data.pairs import Batch, PairDataset, PairSampler, RawBatch, SampleError, normalized, share, stack
from srft.data.processes import clean_processes

__all__ = ["PairLoader"]


class _Keys(Sampler[list[tuple[int, int]]]):
    # Of every batch from a step of an epoch to the end of the run. It does not know the loader: in a cycle, the garbage collector would
    # close the queues before the processes are told to end, and then wait five seconds for each.

    def __init__(self, epochs: int, steps: int, shares: Callable[[int], range], epoch: int, step: int) -> None:
        self.epochs, self.steps, self.shares, self.start = epochs, steps, shares, (epoch, step)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, step = self.start
        while epoch < self.epochs:
            yield [(epoch, index) for index in self.shares(step)]
            step += 1
            if step == self.steps:
                epoch, step = epoch + 1, 0


class PairLoader:
    """One worker's share of every batch of a run.

    Batches are the same bytes for any number of processes. Asked for in order, they are made ahead, across epochs too; asked for from
    any other step, as after a resume, making starts there, and nothing is replayed.
    """

    def __init__(
        self,
        sampler: PairSampler,
        *,
        epochs: int,
        steps: int,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 0,
        device: torch.device | str = "cpu",
        ahead: int = 2,
    ) -> None:
        """Prepare; processes start with the first batch.

        Args:
            sampler: draws the samples.
            epochs: of the run.
            steps: per epoch.
            batch_size: samples of all workers of the training together.
            rank: this worker of the training.
            world_size: workers of the training.
            workers: processes that make batches; 0 makes them in this process when they are asked for.
            device: where batches go.
            ahead: batches that each process makes ahead.

        Raises:
            ValueError: the number of processes is negative.
        """
        if workers < 0:
            raise ValueError(f"workers is {workers}; expected at least 0")
        self.sampler, self.epochs, self.steps, self.batch_size = sampler, epochs, steps, batch_size
        self.rank, self.world_size, self.workers, self.ahead = rank, world_size, workers, ahead
        self.device = torch.device(device)
        self._next: tuple[int, int] | None = None
        self._made: Iterator[RawBatch] | None = None

    def batch(self, epoch: int, step: int) -> Batch:
        """The batch of a step.

        Args:
            epoch: below ``epochs``.
            step: below ``steps``.

        Returns:
            It, on the device.

        Raises:
            IndexError: the run has no such step.
            SampleError: a sample of it cannot be made.
        """
        if not (0 <= epoch < self.epochs and 0 <= step < self.steps):
            raise IndexError(f"epoch {epoch}, step {step} of a run of {self.epochs} epochs of {self.steps} steps")
        if self._made is None or self._next != (epoch, step):
            self.close()
            self._made = self._started(epoch, step)
        self._next = (epoch, step + 1) if step + 1 < self.steps else (epoch + 1, 0)
        try:
            return self._moved(next(self._made))
        except SampleError as error:
            self.close()
            raise SampleError(str(error).strip().rsplit("SampleError: ", 1)[-1]) from None  # without the worker's traceback

    def epoch(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """The batches of one epoch.

        Args:
            epoch: which.
            first: step to start at.

        Yields:
            One batch a step.
        """
        for step in range(first, self.steps):
            yield self.batch(epoch, step)

    def close(self) -> None:
        """End the processes; a later batch starts new ones."""
        self._made = self._next = None

    def _started(self, epoch: int, step: int) -> Iterator[RawBatch]:
        # The batches from a step to the end of the run.
        shares = functools.partial(share, batch_size=self.batch_size, rank=self.rank, world_size=self.world_size)
        keys = _Keys(self.epochs, self.steps, shares, epoch, step)
        if not self.workers:
            sampler = self.sampler
            return (stack([sampler.pair(*key) for key in some]) for some in keys)
        return iter(
            DataLoader(
                PairDataset(self.sampler),
                batch_sampler=keys,
                collate_fn=stack,
                num_workers=self.workers,
                generator=torch.Generator(),  # The global one is the network's: how data are loaded must not change what it draws.
                prefetch_factor=self.ahead,
                pin_memory=self.device.type == "cuda",
                worker_init_fn=_one_thread,
                multiprocessing_context=clean_processes("srft.data.pairs"),
            )
        )

    def _moved(self, raw: RawBatch) -> Batch:
        if self.device.type == "cpu":
            return normalized(raw)
        return normalized(RawBatch(*(part.to(self.device, non_blocking=True) for part in raw)))


def _one_thread(_: int) -> None:
    cv2.setNumThreads(1)
