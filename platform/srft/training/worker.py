"""One training process among others: who it is, how the network is held by all of them, and what it saw alone."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from srft.config import Precision, TrainConfig
from srft.method.exchange import AllReduceExchange
from srft.method.shards import local, shard_of, shard_values
from srft.method.sparsity import Energies, StatisticsExchange

__all__ = [
    "LocalEnergies", "Notice", "Worker", "accumulating", "broadcast_over", "full_weights", "gather_over", "replicate", "set_weights",
    "shard", "worker_of_group",
]  # fmt: skip


HALF: Mapping[Precision, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""Types of the precisions that are not float32."""
Notice = Literal["", "save", "end"]
"""Nothing; save now, since a node is about to go; save and end."""


@dataclass(frozen=True, kw_only=True)
class Worker:
    """Who trains, and how it reaches the others; the defaults are a single process."""

    rank: int = 0
    world_size: int = 1
    wrap: Callable[[nn.Module], nn.Module] = lambda network: network
    """Makes gradients the mean over workers: :func:`replicate` or :func:`shard`."""
    whole: bool = True
    """Whether every worker holds all parameters; False for shards."""
    gather: Callable[[Any], list[Any]] = lambda value: [value]
    """Every worker's value, by rank (collective)."""
    statistics: StatisticsExchange | None = None
    """Merges transfer statistics over workers; None keeps them in this process."""
    told: Callable[[], Notice] = lambda: ""
    """What to do now, the same on every worker (collective; asked between epochs and every ``srft.refresh`` steps, each if alone)."""
    group: Any = None
    """Process group of the CPUs, which shards are saved over; None for workers that hold everything."""
    device: torch.device = field(default_factory=lambda: torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    """Where this worker's network is; a GPU if there is one."""


def gather_over(group: Any, value: Any) -> list[Any]:
    """Every process's value.

    Args:
        group: process group of the CPUs.
        value: anything that can be pickled.

    Returns:
        By rank, on every process.
    """
    box: list[Any] = [None] * torch.distributed.get_world_size(group)
    torch.distributed.all_gather_object(box, value, group=group)
    return box


def broadcast_over(group: Any, value: Any) -> Any:
    """Rank 0's value.

    Args:
        group: process group of the CPUs.
        value: anything that can be pickled; others than rank 0's are passed over.

    Returns:
        The same on every process.
    """
    box = [value]
    torch.distributed.broadcast_object_list(box, src=0, group=group)
    return box[0]


def worker_of_group(
    config: TrainConfig,
    *,
    device: torch.device | None = None,
    group: Any = None,
    statistics: StatisticsExchange | None = None,
    told: Callable[[], Notice] = lambda: "",
) -> Worker:
    """This process among those of ``torch.distributed``, however they were started (torchrun, Ray Train).

    Args:
        config: the run; its strategy decides who holds what.
        device: of the network; the CPU when None.
        group: process group of the CPUs; one is made when None, which is collective.
        statistics: merges transfer statistics; when None, through the group itself.
        told: see :class:`Worker`.

    Returns:
        The worker.
    """
    device = device or torch.device("cpu")
    group: Any = group or torch.distributed.new_group(backend="gloo")
    world_size = torch.distributed.get_world_size()

    def wrap(network: nn.Module) -> nn.Module:
        if config.strategy == "ddp":
            return replicate(network, device)
        return shard(network, init_device_mesh(device.type, (world_size,)), config.optim.precision)

    return Worker(
        rank=torch.distributed.get_rank(),
        world_size=world_size,
        wrap=wrap,
        whole=config.strategy == "ddp",
        gather=lambda value: gather_over(group, value),
        statistics=statistics or AllReduceExchange(config.srft.refresh, group),
        told=told,
        # Of its own: a thread writes checkpoints while training exchanges, and collectives of one group must not cross.
        group=None if config.strategy == "ddp" else torch.distributed.new_group(backend="gloo"),
        device=device,
    )


def replicate(network: nn.Module, device: torch.device) -> nn.Module:
    """Every worker holds the network; gradients are averaged (DDP).

    Args:
        network: on its device.
        device: of the network.

    Returns:
        The network to call. :meth:`LocalEnergies.attach` reads each worker's own gradients from it.
    """
    return DistributedDataParallel(network, device_ids=[device] if device.type == "cuda" else None)


def shard(network: nn.Module, mesh: Any, precision: Precision) -> nn.Module:
    """Every worker holds a part of each parameter (FSDP2), gathered block by block when it is needed.

    Args:
        network: changed in place: its parameters become DTensors.
        mesh: the workers, one dimension.
        precision: what is gathered for forward and backward; gradients are added up in float32.

    Returns:
        The same network.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    policy = MixedPrecisionPolicy(param_dtype=HALF.get(precision), reduce_dtype=torch.float32)
    for name, child in network.named_modules():
        if name.rpartition(".")[2].isdigit() and any(part.startswith(("blocks", "fusion")) for part in name.split(".")[:-1]):
            fully_shard(child, mesh=mesh, mp_policy=policy)
    fully_shard(network, mesh=mesh, mp_policy=policy)
    return network


@contextlib.contextmanager
def accumulating(model: nn.Module) -> Iterator[None]:
    """Inside, backward adds to this worker's own gradients and nothing is exchanged.

    Args:
        model: what :func:`replicate` or :func:`shard` returned, or a network alone.

    Yields:
        Nothing.
    """
    if isinstance(model, DistributedDataParallel):
        with model.no_sync():
            yield
    elif hasattr(model, "set_requires_gradient_sync"):
        model.set_requires_gradient_sync(False)  # pyrefly: ignore
        yield
        model.set_requires_gradient_sync(True)  # pyrefly: ignore
    else:
        yield


def full_weights(network: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, whole; collective over workers that hold shards.

    Args:
        network: the network itself, not its DDP wrapper.

    Returns:
        By name; the network's own tensors where they are whole.
    """
    state = network.state_dict()
    return {name: value.full_tensor() if hasattr(value, "full_tensor") else value for name, value in state.items()}


@torch.no_grad()
def set_weights(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load whole weights into a network that may be sharded.

    Args:
        network: all of whose parameters and buffers are given.
        weights: by name; a missing name is a KeyError.
    """
    for name, value in network.state_dict().items():
        target = local(value)
        target.view(-1).copy_(shard_values(name, weights[name], value, shard_of(name, value)))


class LocalEnergies:
    """A DDP communication hook that notes the squared norm of this worker's own gradients before they are averaged."""

    def __init__(self, network: nn.Module) -> None:
        """Know the names of parameters.

        Args:
            network: the one that DDP wraps.
        """
        self.due = False
        """Whether the next exchange of gradients is to be noted."""
        self._names = {id(p): name for name, p in network.named_parameters()}
        self._parameters = dict(network.named_parameters())
        self._local: dict[str, Tensor] = {}

    def attach(self, model: nn.Module) -> bool:
        """Register with a network.

        Args:
            model: what training calls.

        Returns:
            Whether it exchanges gradients through DDP, so that there is something to note.
        """
        if not isinstance(model, DistributedDataParallel):
            return False
        model.register_comm_hook(self, _average_and_note)
        return True

    def note(self, bucket: torch.distributed.GradBucket) -> None:
        """Note a bucket of gradients that is about to be averaged, if one is due.

        Args:
            bucket: of this worker's own gradients.
        """
        if self.due:
            for p, gradient in zip(bucket.parameters(), bucket.gradients(), strict=True):
                self._local[self._names[id(p)]] = torch.linalg.vector_norm(gradient.float()).square()

    def taken(self, rank: int, world_size: int) -> dict[str, Energies]:
        """What was noted in the last backward, before gradients are clipped.

        Args:
            rank: of this worker, whose share of the averaged gradient's norm is taken.
            world_size: number of workers.

        Returns:
            By parameter name; empty if nothing was due.
        """
        if not self._local:
            return {}
        mean = []
        for name in self._local:
            gradient = self._parameters[name].grad
            flat = torch.zeros(1, device=self._local[name].device) if gradient is None else gradient.view(-1)
            n = len(flat)
            mean.append(torch.linalg.vector_norm(flat[n * rank // world_size : n * (rank + 1) // world_size].float()).square())
        both = torch.stack([torch.stack(list(self._local.values())), torch.stack(mean)]).double().tolist()
        result = {name: Energies(*pair) for name, pair in zip(self._local, zip(*both, strict=True), strict=True)}
        self._local, self.due = {}, False
        return result


def _average_and_note(energies, bucket):  # DDP wants annotations that are classes, or none.
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

    energies.note(bucket)
    return allreduce_hook(None, bucket)  # pyrefly: ignore
