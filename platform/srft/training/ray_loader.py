"""Batches that other nodes make: a Ray Data stream of the same samples, for trainers whose own cores are too few."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from srft.config import ConfigError
from srft.data.loader import PairLoader
from srft.data.pairs import RawBatch, share, stack

__all__ = ["RayPairLoader"]


class RayPairLoader(PairLoader):
    """A :class:`~srft.data.loader.PairLoader` whose batches are made by Ray Data tasks, in order, on any node with a CPU free.

    A stream is made for each epoch, or for what is left of it. A batch that a node did not finish is made again elsewhere.
    """

    def _stream(self, epoch: int, step: int) -> Iterator[RawBatch]:
        import ray
        import ray.data

        if not ray.is_initialized():
            raise ConfigError("data.loader is ray, but this training is in no Ray cluster; set data.loader=local, or workers of 2 or more")
        if ray.available_resources().get("CPU", 0) < 1:
            raise ConfigError("data.loader is ray, but the cluster has no CPU free to make batches; add nodes, or set data.loader=local")
        sampler = ray.put(self.sampler)
        batch_size, rank, world_size = self.batch_size, self.rank, self.world_size

        def make(row: dict[str, Any]) -> dict[str, Any]:
            here = ray.get(sampler)
            batch = stack([here.pair(epoch, index) for index in share(step + int(row["id"]), batch_size, rank, world_size)])
            return {name: part.numpy() for name, part in batch._asdict().items()}

        count = self.steps - step
        batches = ray.data.range(count, override_num_blocks=count).map(make, num_cpus=1)
        batches.context.execution_options.preserve_order = True
        batches.context.enable_progress_bars = False
        for row in batches.iter_rows():
            yield RawBatch(*(torch.from_numpy(row[name].copy()) for name in RawBatch._fields))

    def _started(self, epoch: int, step: int) -> Iterator[RawBatch]:
        while epoch < self.epochs:
            yield from self._stream(epoch, step)
            epoch, step = epoch + 1, 0
