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
from typing import Any, TypeVar

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
def undisturbed(model: nn.Module, seed: int) -> Iterator[None]:
    """Evaluation mode and seeded random numbers with gradients enabled; modes and random state are put back afterwards.

    Args:
        model: whose modes to keep.
        seed: of torch's random numbers inside.

    Yields:
        Nothing.
    """
    modes = [(module, module.training) for module in model.modules()]
    cuda = [p.device for p in model.parameters() if p.device.type == "cuda"]
    with torch.random.fork_rng(devices=sorted({d.index for d in cuda})), torch.enable_grad():
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

    Memory is N times the parameters: beyond that use ``srft.method.streaming``, or estimate on parts of the samples and
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
        The prior. No samples, a group whose parameter does not exist or is frozen, and a loss or gradient that is not finite are
        ValueErrors.
    """
    groups = trainable_groups(model, groups)
    rows: dict[str, list[Tensor]] = {group.name: [] for group in groups}
    count = 0
    with undisturbed(model, seed):
        for gradients in sample_gradients(model, sample_loss, samples, groups):
            count += 1
            for group in groups:
                rows[group.name].append(gradients[group.parameter][group.start : group.stop])
    estimated = {group.name: decompose(group, torch.stack(rows.pop(group.name)), count, rank, dtype=dtype) for group in groups}
    return PriorSensitivity(
        groups=estimated,
        rank=rank,
        samples=count,
        fisher_type=fisher_type,
        base_hash=weights_hash(model.state_dict()),
        data=data,
        scale=mean_top(estimated.values()),
    )


def trainable_groups(model: nn.Module, groups: Sequence[Group] | None) -> tuple[Group, ...]:
    """The groups to estimate.

    Args:
        model: the model.
        groups: as chosen; every trainable parameter's when None.

    Returns:
        The groups.

    Raises:
        ValueError: a group's parameter does not exist or is frozen.
    """
    parameters = dict(model.named_parameters())
    if groups is None:
        return groups_of({name: p for name, p in parameters.items() if p.requires_grad})
    for name in (group.parameter for group in groups):
        if name not in parameters or not parameters[name].requires_grad:
            state = "is frozen (requires_grad is False)" if name in parameters else "is no parameter of the model"
            raise ValueError(f"group {name}: {state}; estimate the prior of trainable parameters, before freezing any")
    return tuple(groups)


def sample_gradients(
    model: nn.Module, sample_loss: Callable[[nn.Module, Item], Tensor], samples: Iterable[Item], groups: Sequence[Group]
) -> Iterator[dict[str, Tensor]]:
    """Gradient of every sample on its own; to be consumed inside :func:`undisturbed`.

    Args:
        model: the model.
        sample_loss: scalar loss of the model on one sample.
        samples: what it takes.
        groups: whose parameters' gradients are wanted.

    Yields:
        Flat gradients by parameter name.

    Raises:
        ValueError: there are no samples, or a loss or gradient is not finite.
    """
    parameters = dict(model.named_parameters())
    names = list(dict.fromkeys(group.parameter for group in groups))
    targets = [parameters[name] for name in names]
    index = -1
    for index, sample in enumerate(samples):
        loss = sample_loss(model, sample)
        if loss.numel() != 1 or not math.isfinite(loss.item()):
            raise ValueError(f"loss of sample {index} is {loss.detach().cpu().tolist()}; expected one finite number")
        gradients = {}
        for name, target, gradient in zip(names, targets, torch.autograd.grad(loss, targets, allow_unused=True), strict=True):
            gradients[name] = torch.zeros_like(target).view(-1) if gradient is None else gradient.reshape(-1)
            if not gradients[name].sum().isfinite():
                raise ValueError(f"gradient of {name} at sample {index} is NaN or infinite; check the loss on that sample")
        yield gradients
    if index < 0:
        raise ValueError("no samples to estimate the prior from; expected at least one")


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
        merged[name] = decompose(
            reference.group,
            rows,
            count,
            rank,
            dtype=reference.eigenvectors.dtype,
            trace=math.fsum(p.trace * n for p, n in parts) / count,
            left_out=math.fsum(p.error_bound().spectral * n for p, n in parts) / count,
        )
    data = " + ".join(dict.fromkeys(p.data for p in priors))
    whole = all(p.estimator == "exact" and p.rank >= p.samples for p in priors)
    return replace(
        first,
        groups=merged,
        rank=rank,
        samples=count,
        data=data,
        scale=mean_top(merged.values()),
        estimator="exact" if whole else "streaming",
    )


def mean_top(groups: Iterable[Any]) -> float:
    """Mean over groups of the largest eigenvalue.

    Args:
        groups: with descending eigenvalues.

    Returns:
        The scale of a prior; 0 without groups.
    """
    tops = [float(g.eigenvalues[0]) if len(g.eigenvalues) else 0.0 for g in groups]
    return math.fsum(tops) / len(tops) if tops else 0.0


def spectrum(rows: Tensor) -> tuple[Tensor, Tensor, int]:
    """Eigenvalues and eigenvectors of the Gram matrix of rows, in float64.

    Args:
        rows: ``[N, n]``.

    Returns:
        ``[N]`` eigenvalues, descending, ``[N, N]`` eigenvectors as columns, both on the CPU, and how many are above rounding.
    """
    gram = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=rows.device)
    for a, b in chunks(rows.shape[1], rows.device):
        piece = rows[:, a:b].double()
        gram.addmm_(piece, piece.T)
    values, vectors = torch.linalg.eigh(gram.cpu())
    values = values.flip(0).clamp(min=0)
    sure = int((values > EIGENVALUE_FLOOR * values[0]).sum()) if len(values) else 0
    return values, vectors.flip(1), min(sure, rows.shape[1])


def decompose(
    group: Group, rows: Tensor, count: int, rank: int, *, dtype: torch.dtype, trace: float | None = None, left_out: float = 0.0
) -> GroupPrior:
    """Leading eigenpairs of ``rows^T rows / count``.

    Args:
        group: whose they are.
        rows: ``[N, n]``.
        count: samples behind the rows.
        rank: eigenpairs to keep, at most [K].
        dtype: of the eigenvectors; what its rounding costs is kept with them.
        trace: of the block; the rows' when None.
        left_out: bound of the spectral norm of what the rows do not hold.

    Returns:
        The prior of the group.
    """
    values, vectors, sure = spectrum(rows)
    kept = min(rank, sure)
    following = float(values[kept]) if kept < len(values) else 0.0
    mix = (vectors[:, :kept] / values[:kept].sqrt()).T.to(rows.device)
    eigenvectors = torch.empty(kept, rows.shape[1], dtype=dtype, device=rows.device)
    squares = torch.zeros(kept, dtype=torch.float64, device=rows.device)
    for a, b in chunks(rows.shape[1], rows.device):
        piece = mix @ rows[:, a:b].double()
        eigenvectors[:, a:b] = piece
        squares += (eigenvectors[:, a:b] - piece).square().sum(1)
    return GroupPrior(
        group=group,
        eigenvalues=values[:kept] / count,
        eigenvectors=eigenvectors,
        trace=float(values.sum()) / count if trace is None else trace,
        next_eigenvalue=following / count + left_out,
        left_out=left_out,
        vector_errors=squares.sqrt().cpu(),
    )
