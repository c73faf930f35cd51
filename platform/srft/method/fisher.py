"""Prior sensitivity: the leading eigenpairs of the Fisher blocks of a pre-trained model.

The block of group j over N samples is ``F_j = (1/N) sum_n g_nj g_nj^T`` with the gradient of every sample on its own, never the
square of a batch mean. ``empirical`` takes g_n from the loss at the annotated target; ``mc`` from a target drawn from the model's own
prediction. Which of the two is the caller's loss function: here it is recorded. ``F_j ~ V_j Lambda_j V_j^T`` keeps the K largest
eigenvalues; the exact trace is kept beside them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor, nn

from srft.config import FisherType
from srft.method.groups import Group, groups_of
from srft.method.prior import ErrorBound, GroupPrior, PriorSensitivity, load_prior, weights_hash
from srft.method.sketch import chunks

__all__ = ["ErrorBound", "GroupPrior", "PriorSensitivity", "estimate_prior", "load_prior", "merge_priors", "weights_hash"]

Item = TypeVar("Item")

EIGENVALUE_FLOOR = 1e-10
"""Eigenvalues below this share of the largest are rounding, and so are their vectors."""


@contextmanager
def _undisturbed(model: nn.Module, seed: int) -> Iterator[None]:
    # Evaluation mode and seeded random numbers, put back afterwards.
    modes = [(module, module.training) for module in model.modules()]
    cuda = [p.device for p in model.parameters() if p.device.type == "cuda"]
    with torch.random.fork_rng(devices=sorted({d.index for d in cuda})):
        torch.manual_seed(seed)
        model.eval()
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training


def estimate_prior(
    model: nn.Module,
    sample_loss: Callable[[nn.Module, Item], Tensor],
    samples: Iterable[Item],
    *,
    rank: int,
    fisher_type: FisherType,
    groups: Sequence[Group] | None = None,
    data: str = "",
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> PriorSensitivity:
    """Exact leading eigenpairs from the N x N Gram matrix of per-sample gradients.

    Memory is N times the parameters: for models or sample counts beyond that, estimate on parts of the samples and
    :func:`merge_priors`. The model runs in evaluation mode; its modes, ``.grad``, ``requires_grad`` and the state of torch's
    random numbers are afterwards what they were before.

    Args:
        model: the pre-trained model.
        sample_loss: scalar loss of the model on one sample: at its annotation for ``empirical``, at a target drawn (with torch's
            random numbers) from the model's own prediction for ``mc``.
        samples: what ``sample_loss`` takes, one after the other.
        rank: eigenpairs to keep per group, at most [K].
        fisher_type: which of the two ``sample_loss`` implements; recorded.
        groups: operations to estimate; every trainable parameter's when None.
        data: what the samples are; recorded.
        seed: of the random numbers that ``sample_loss`` may draw.
        dtype: of the eigenvectors kept.

    Returns:
        The prior.

    Raises:
        ValueError: there are no samples, a group's parameter does not exist or is frozen, or a loss or gradient is not finite.
    """
    parameters = dict(model.named_parameters())
    if groups is None:
        groups = groups_of({name: p for name, p in parameters.items() if p.requires_grad})
    names = list(dict.fromkeys(group.parameter for group in groups))
    for name in names:
        if name not in parameters or not parameters[name].requires_grad:
            state = "is frozen (requires_grad is False)" if name in parameters else "is no parameter of the model"
            raise ValueError(f"group {name}: {state}; estimate the prior of trainable parameters, before freezing any")
    targets = [parameters[name] for name in names]
    gradients: dict[str, list[Tensor]] = {name: [] for name in names}
    count = 0
    with _undisturbed(model, seed), torch.enable_grad():
        for count, sample in enumerate(samples, 1):
            loss = sample_loss(model, sample)
            if loss.numel() != 1 or not math.isfinite(loss.item()):
                raise ValueError(f"loss of sample {count - 1} is {loss.detach().cpu().tolist()}; expected one finite number")
            for name, target, gradient in zip(names, targets, torch.autograd.grad(loss, targets, allow_unused=True), strict=True):
                gradients[name].append(torch.zeros_like(target).view(-1) if gradient is None else gradient.reshape(-1))
    if count == 0:
        raise ValueError("no samples to estimate the prior from; expected at least one")
    estimated = {}
    for name in names:
        per_sample = torch.stack(gradients.pop(name))
        finite = per_sample.sum(dim=1).isfinite()
        if not finite.all():
            bad = int((~finite).nonzero()[0])
            raise ValueError(f"gradient of {name} at sample {bad} is NaN or infinite; check the loss on that sample")
        for group in groups:
            if group.parameter == name:
                rows = per_sample[:, group.start : group.stop]
                estimated[group.name] = _decompose(group, rows, count, rank, dtype=dtype)
    return PriorSensitivity(
        groups={group.name: estimated[group.name] for group in groups},
        rank=rank,
        samples=count,
        fisher_type=fisher_type,
        base_hash=weights_hash(model.state_dict()),
        data=data,
        scale=_mean_top(estimated.values()),
    )


def merge_priors(priors: Sequence[PriorSensitivity], *, rank: int | None = None) -> PriorSensitivity:
    """The prior of all samples from priors of parts of them, such as the shares of several workers.

    Exact, whatever the order and the sizes of the parts, if every part kept all of its eigenpairs (rank at least its samples). Otherwise
    the trace is still exact, and what the parts left out is in the bounds.

    Args:
        priors: of the same model, groups and Fisher type.
        rank: eigenpairs to keep per group, the largest of the parts' when None.

    Returns:
        The merged prior.

    Raises:
        ValueError: there are none, or they differ in model, groups or Fisher type.
    """
    if not priors:
        raise ValueError("no priors to merge; expected at least one")
    first = priors[0]
    for other in priors[1:]:
        for what in ("base_hash", "fisher_type"):
            if getattr(other, what) != getattr(first, what):
                raise ValueError(f"priors to merge differ in {what}: {getattr(first, what)!r} and {getattr(other, what)!r}")
        if {n: p.group for n, p in other.groups.items()} != {n: p.group for n, p in first.groups.items()}:
            raise ValueError("priors to merge are of different groups; estimate all of them with the same groups")
    rank = max(p.rank for p in priors) if rank is None else rank
    count = sum(p.samples for p in priors)
    merged = {}
    for name, reference in first.groups.items():
        parts = [(prior.groups[name], prior.samples) for prior in priors]
        rows = torch.cat([(p.eigenvalues * n).sqrt()[:, None] * p.eigenvectors for p, n in parts])
        merged[name] = _decompose(
            reference.group,
            rows,
            count,
            rank,
            dtype=reference.eigenvectors.dtype,
            trace=math.fsum(p.trace * n for p, n in parts) / count,
            left_out=math.fsum(min(p.next_eigenvalue, p.residual) * n for p, n in parts) / count,
        )
    data = " + ".join(dict.fromkeys(p.data for p in priors))
    return replace(first, groups=merged, rank=rank, samples=count, data=data, scale=_mean_top(merged.values()))


def _mean_top(groups: Iterable[GroupPrior]) -> float:
    tops = [float(g.eigenvalues[0]) if len(g.eigenvalues) else 0.0 for g in groups]
    return math.fsum(tops) / len(tops) if tops else 0.0


def _decompose(
    group: Group, rows: Tensor, count: int, rank: int, *, dtype: torch.dtype, trace: float | None = None, left_out: float = 0.0
) -> GroupPrior:
    # Eigenpairs of rows^T rows / count from the Gram matrix of the rows, in float64.
    pieces = [rows[:, a:b] for a, b in chunks(rows.shape[1], rows.device)]
    gram = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=rows.device)
    for piece in pieces:
        piece = piece.double()
        gram.addmm_(piece, piece.T)
    values, vectors = torch.linalg.eigh(gram.cpu() / count)
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    sure = int((values > EIGENVALUE_FLOOR * values[0]).sum()) if len(values) else 0
    kept = min(rank, sure, rows.shape[1])
    following = float(values[kept]) if kept < len(values) else 0.0
    mix = (vectors[:, :kept] / (values[:kept] * count).sqrt()).T.to(rows.device)
    eigenvectors = torch.empty(kept, rows.shape[1], dtype=dtype, device=rows.device)
    for (a, b), piece in zip(chunks(rows.shape[1], rows.device), pieces, strict=True):
        eigenvectors[:, a:b] = mix @ piece.double()
    return GroupPrior(
        group=group,
        eigenvalues=values[:kept].clone(),
        eigenvectors=eigenvectors,
        trace=float(gram.trace()) / count if trace is None else trace,
        next_eigenvalue=following + left_out,
    )
