"""A small network, gradients for it, and priors of every kind made up for it."""

import numpy as np
import torch
from torch import nn

from srft.config import SRFTConfig
from srft.method.groups import groups_of
from srft.method.kronecker_prior import KroneckerGroup
from srft.method.prior import GroupPrior, PriorSensitivity
from srft.method.sparsity import MergedStatistics

ADAM = {"lr": 1e-2, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.05}


class Net(nn.Module):
    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.qkv = nn.Linear(8, 24, dtype=dtype)
        self.out = nn.Linear(8, 5, dtype=dtype)


def net(dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    return Net(dtype)


def settings(**kw):
    return SRFTConfig(**{"rank": 3, "prior_strength": 0.0, "damping_strength": 0.0, **kw})


def make_prior(model, rank=3, names=None, dtype=None, seed=5, diagonal=False):
    """Random orthonormal directions for some groups, and a diagonal larger than theirs if asked for."""
    g = torch.Generator().manual_seed(seed)
    groups = {}
    for group in groups_of(dict(model.named_parameters())):
        if names is None or group.name in names:
            k = min(rank, group.numel - 1)
            q = torch.linalg.qr(torch.randn(group.numel, k, generator=g, dtype=torch.float64))[0].T.contiguous()
            values = torch.rand(k, generator=g, dtype=torch.float64).sort(descending=True).values + 0.1
            trace = float(values.sum()) + 0.7
            vectors = q.to(dtype or next(model.parameters()).dtype)
            kept = (values[:, None] * vectors.double().square()).sum(0)
            whole = (kept + torch.rand(group.numel, generator=g, dtype=torch.float64) ** 4).float() if diagonal else None
            groups[group.name] = GroupPrior(
                group=group, eigenvalues=values, eigenvectors=vectors, trace=trace, next_eigenvalue=0.1, diagonal=whole
            )
    return PriorSensitivity(groups=groups, rank=rank, samples=9, fisher_type="empirical", base_hash="0", data="", scale=0.8)


def make_kronecker(model, seed=5, diagonal=False):
    """Random products of orthonormal rows for the matrices, random directions for the rest."""
    g = torch.Generator().manual_seed(seed)
    prior, shapes = make_prior(model, diagonal=diagonal), {name: p.shape for name, p in model.named_parameters()}
    groups = dict(prior.groups)
    for name, low_rank in prior.groups.items():
        shape, group, dtype = shapes[low_rank.group.parameter], low_rank.group, low_rank.eigenvectors.dtype
        inputs, rows = shape[-1], group.numel // shape[-1]
        if len(shape) == 2 and rows > 2:
            u, w = (
                torch.linalg.qr(torch.randn(n, k, generator=g, dtype=torch.float64))[0].T.to(dtype) for n, k in ((rows, 2), (inputs, 3))
            )
            pairs = torch.tensor([[0, 1, 0], [0, 0, 2]])
            groups[name] = KroneckerGroup(
                group=group,
                eigenvalues=low_rank.eigenvalues,
                out_vectors=u.contiguous(),
                in_vectors=w.contiguous(),
                pairs=pairs,
                trace=low_rank.trace + 0.3,
                spectral=0.1,
                frobenius=0.1,
                vector_errors=torch.zeros(3, dtype=torch.float64),
                diagonal=low_rank.diagonal,
            )
    return PriorSensitivity(**{**vars(prior), "groups": groups})


def as_rows(prior):
    """[K, n] float64 eigenvectors of either kind."""
    return torch.stack([prior.expand(e).double() for e in torch.eye(len(prior.eigenvalues))])


def gradients(model, step, scale=1.0):
    g = torch.Generator().manual_seed(100 + step)
    for p in model.parameters():
        p.grad = (scale * torch.randn(p.shape, generator=g, dtype=torch.float64) ** 3).to(p.dtype)


def weights(model):
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def run(model, optimizer, steps, first=0, refresh=0, scale=1.0):
    for step in range(first, first + steps):
        gradients(model, step, scale)
        optimizer.step()
        if refresh and (step + 1) % refresh == 0:
            optimizer.set_statistics(MergedStatistics.of(step + 1, optimizer.sketches()))
    return weights(model)


def table_lookup(table):
    """A rank table applied in numpy, from its definition."""

    def lookup(magnitude):
        bits = np.asarray(magnitude, np.float32).view(np.uint32).astype(np.int64)
        return table.ranks[np.clip((bits >> 17) - table.first, 0, len(table.ranks) - 1)].astype(np.float64)

    return lookup


LAYOUTS = {
    "gathered": {},
    "several buckets": {"kernel.CHUNK": 64},
    "pieces": {"kernel.SMALL": 0, "tangent.CHUNK": 16},
    "stacked": {"kernel.TOGETHER": True},
}
"""What makes a small network's operations share a bucket, fill several, be worked through in pieces, or side by side as on a GPU."""


def lay_out(monkeypatch, layout):
    for name, value in LAYOUTS[layout].items():
        monkeypatch.setattr(f"srft.method.{name}", value)
