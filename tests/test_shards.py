"""Parameters that are split over processes by FSDP2: the same steps as of one process that holds them whole."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from srft.method.exchange import AllReduceExchange
from srft.method.histogram import Histogram
from srft.method.optimizer import SRFTAdamW
from srft.method.shards import Shard, shard_of, sum_over_shards
from srft.method.sketch import histogram_of
from srft.method.sparsity import MergedStatistics, Sketch, merge
from tests.processes import in_processes
from tests.small_net import ADAM, gradients, make_kronecker, make_prior, settings


class Net(nn.Module):
    """Rows that split in the middle of a group (24 / 2), unevenly (7 / 2), and not at all (1 row for 2 processes)."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(8, 24)
        self.out = nn.Linear(8, 7)
        self.last = nn.Linear(7, 1)

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.last(torch.tanh(self.out(q * k + v)))


def net():
    torch.manual_seed(0)
    return Net()


CASES = {
    "penalty": {"mode": "penalty", "prior_strength": 0.5},
    "proximal": {"mode": "proximal", "prior_strength": 0.5},
    "projection": {"mode": "projection", "prior_strength": 0.5},
    "two_step": {"transfer": "two_step"},
    "plain": {"damping_strength": 0.0, "prior_strength": 0.0},
}


def drive(model, optimizer, steps, first=0):
    """Steps on given gradients, with a refresh of the statistics in the middle; sharded parameters get their shard."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    sketch = Sketch({})
    for step in range(first, first + steps):
        whole = net()
        gradients(whole, step)
        for p, q in zip(model.parameters(), whole.parameters(), strict=True):
            p.grad = distribute_tensor(q.grad, p.device_mesh, p.placements) if isinstance(p, DTensor) else q.grad
        optimizer.step()
        if step == 2:
            sketch = optimizer.sketches()
            if any(isinstance(p, DTensor) for p in model.parameters()):
                gathered = [b""] * torch.distributed.get_world_size()
                torch.distributed.all_gather_object(gathered, sketch.to_bytes())
                sketch = merge([Sketch.from_bytes(part) for part in gathered])
            optimizer.set_statistics(MergedStatistics.of(3, sketch))
    return sketch


def build(model, case, *, kronecker, pretrained=None):
    config = settings(**{"damping_strength": 0.8, **CASES[case]})
    base = net()
    prior = make_kronecker(base) if kronecker else make_prior(base, diagonal=True)
    return SRFTAdamW(model.named_parameters(), total_steps=20, srft=config, prior=prior, pretrained=pretrained, **ADAM)


def expected(case, kronecker):
    model = net()
    pretrained = {name: p.detach() + 0.1 for name, p in model.named_parameters()}
    optimizer = build(model, case, kronecker=kronecker, pretrained=pretrained)
    sketch = drive(model, optimizer, 6)
    return model, sketch, pretrained


def sharded(rank, folder):
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    meshes = {"shards": init_device_mesh("cpu", (2,)), "copies": init_device_mesh("cpu", (2, 1), mesh_dim_names=("copy", "shard"))}
    for case in CASES:
        for kronecker in (False, True):
            for layout, mesh in meshes.items():
                where = f"{case}, kronecker {kronecker}, {layout}"
                single, sketch, pretrained = expected(case, kronecker)
                model = net()
                fully_shard(model, mesh=mesh)
                optimizer = build(model, case, kronecker=kronecker, pretrained=pretrained)
                assert optimizer._term.operations[model.last.weight][0].where.stop == (0 if rank and layout == "shards" else 7), where
                found = drive(model, optimizer, 6)
                if case in ("two_step", "plain"):  # No sum over shards takes part: equal to the bit.
                    assert found.to_bytes() == sketch.to_bytes(), where
                for name, p in model.named_parameters():
                    whole = p.full_tensor()
                    torch.testing.assert_close(whole, single.get_parameter(name), rtol=0, atol=2e-5, msg=lambda m, w=where: f"{w}: {m}")
                    for kind in ("exp_avg", "exp_avg_sq"):
                        assert optimizer.state[p][kind].placements == p.placements, where
    # With gradients of their own, the workers' batch halves train as the whole batch.
    x = torch.randn(8, 8, generator=torch.Generator().manual_seed(3))
    models = net(), net()
    fully_shard(models[1], mesh=meshes["shards"])
    optimizers = [build(m, "penalty", kronecker=False) for m in models]
    for _ in range(4):
        for model, optimizer, batch in zip(models, optimizers, (x, x.chunk(2)[rank]), strict=True):
            optimizer.zero_grad()
            model(batch).square().mean().backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
    for p, q in zip(*(m.parameters() for m in models), strict=True):
        torch.testing.assert_close(q.full_tensor(), p, rtol=1e-4, atol=1e-5)
    second, parts = optimizers[1].state[models[1].qkv.weight]["exp_avg_sq"], [Histogram.of_counts(np.zeros(0))] * 2
    torch.distributed.all_gather_object(parts, histogram_of(second))
    assert np.array_equal((parts[0] + parts[1]).counts, histogram_of(second.full_tensor()).counts)
    saved = get_optimizer_state_dict(models[1], optimizers[1])
    assert saved["state"]["qkv.weight"]["anchor"].shape == (9,)
    (Path(folder) / f"done{rank}").touch()


def test_sharded_steps_are_those_of_whole_parameters(tmp_path):
    in_processes(2, sharded, str(tmp_path))
    assert sorted(f.name for f in tmp_path.iterdir()) == ["done0", "done1"]


def exchanging(rank, folder):
    exchange = AllReduceExchange(refresh=2)
    model = net()
    optimizer = SRFTAdamW(model.named_parameters(), total_steps=20, srft=settings(damping_strength=0.8), **ADAM)
    for step in range(6):
        if (due := exchange.due(step)) is not None:
            optimizer.set_statistics(due)
        gradients(model, step)
        optimizer.step()
        if (step + 1) % 2 == 0:
            exchange.submit(step + 1, optimizer.sketches(rank, 2))
    state = exchange.state_dict()
    np.savez(Path(folder) / f"rank{rank}.npz", *(p.detach().numpy() for p in model.parameters()), pending=np.frombuffer(state[6], np.uint8))


def test_an_all_reduce_is_an_exchange(tmp_path):
    in_processes(2, exchanging, str(tmp_path))
    from srft.method.sparsity import LocalExchange

    model = net()
    optimizer = SRFTAdamW(model.named_parameters(), total_steps=20, srft=settings(damping_strength=0.8), **ADAM)
    exchange = LocalExchange(refresh=2)
    for step in range(6):
        if (due := exchange.due(step)) is not None:
            optimizer.set_statistics(due)
        gradients(model, step)
        optimizer.step()
        if (step + 1) % 2 == 0:
            exchange.submit(step + 1, optimizer.sketches())
    single = [p.detach().numpy() for p in model.parameters()]
    for rank in range(2):
        with np.load(tmp_path / f"rank{rank}.npz") as file:
            assert file["pending"].tobytes() == exchange.state_dict()[6]
            for i, values in enumerate(single):
                np.testing.assert_array_equal(file[f"arr_{i}"], values)


def test_a_whole_parameter_is_its_own_shard():
    assert shard_of("x", torch.zeros(3, 4)) == Shard(start=0, numel=12)
    parts = [torch.ones(2), torch.zeros(1, 3)]
    assert sum_over_shards([Shard(start=0, numel=2)] * 2, parts) == parts


def column_wise(rank):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard as Split
    from torch.distributed.tensor import distribute_tensor

    model = copy.deepcopy(net().out)
    model.weight = nn.Parameter(distribute_tensor(model.weight.detach(), init_device_mesh("cpu", (2,)), [Split(1)]))
    with pytest.raises(ValueError, match=r"weight is placed as .*; expected shards of dimension 0"):
        SRFTAdamW(model.named_parameters(), total_steps=2)


def test_shards_of_columns_are_refused():
    in_processes(2, column_wise)
