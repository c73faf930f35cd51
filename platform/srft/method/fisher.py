"""Prior sensitivity: the leading eigenpairs of the Fisher blocks of a pre-trained model.

The block of group j over N samples is ``F_j = (1/N) sum_n g_nj g_nj^T`` with the gradient of every sample on its own, never the
square of a batch mean. ``empirical`` takes g_n from the loss at the annotated target; ``mc`` from a target drawn from the model's own
prediction. Which of the two is the caller's loss function: here it is recorded. ``F_j ~ V_j Lambda_j V_j^T`` keeps the K largest
eigenvalues; the exact trace is kept beside them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor, nn

from srft.config import FisherType
from srft.method.group_prior import BlockPrior
from srft.method.groups import Group, groups_of
from srft.method.prior import ErrorBound, GroupPrior, KroneckerGroup, PriorSensitivity, load_prior, weights_hash
from srft.method.spectrum import decompose, mean_squares

__all__ = ["ErrorBound", "GroupPrior", "PriorSensitivity", "estimate_prior", "load_prior", "merge_priors", "weights_hash"]

Item = TypeVar("Item")

NO_SAMPLES = "no samples to estimate the prior from; expected at least one"
BAD_GRADIENT = "gradient of {name} at sample {index} is NaN or infinite; check the loss on that sample"


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
    diagonal: bool = False,
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
        diagonal: whether to keep the exact diagonal of every block, one more number per parameter.

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
    estimated = {}
    for group in groups:
        stack = torch.stack(rows.pop(group.name))
        squares = mean_squares(stack) if diagonal else None
        estimated[group.name] = decompose(group, stack, count, rank, dtype=dtype, diagonal=squares)
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
        Flat gradients by parameter name, gone from the dictionary when the next sample's are asked for.

    Raises:
        ValueError: there are no samples.
    """
    parameters = dict(model.named_parameters())
    names = list(dict.fromkeys(group.parameter for group in groups))
    targets = [parameters[name] for name in names]
    index = -1
    for index, sample in enumerate(samples):
        found = torch.autograd.grad(checked_loss(model, sample_loss, sample, index), targets, allow_unused=True)
        gradients = flat_gradients(dict(zip(names, found, strict=True)), parameters, index)
        del found
        yield gradients
        gradients.clear()
    if index < 0:
        raise ValueError(NO_SAMPLES)


def checked_loss(model: nn.Module, sample_loss: Callable[[nn.Module, Item], Tensor], sample: Item, index: int) -> Tensor:
    """Loss of one sample.

    Args:
        model: the model.
        sample_loss: scalar loss of the model on one sample.
        sample: what it takes.
        index: of the sample, for the error message.

    Returns:
        A scalar with its graph.

    Raises:
        ValueError: it is no scalar or not finite.
    """
    loss = sample_loss(model, sample)
    if loss.numel() != 1 or not math.isfinite(loss.item()):
        raise ValueError(f"loss of sample {index} is {loss.detach().cpu().tolist()}; expected one finite number")
    return loss


def flat_gradients(found: Mapping[str, Tensor | None], parameters: Mapping[str, Tensor], index: int) -> dict[str, Tensor]:
    """Gradients as vectors, zero where there is none.

    Args:
        found: by parameter name, None for a parameter that the loss does not depend on.
        parameters: by name.
        index: of the sample, for the error message.

    Returns:
        ``[n]`` by parameter name.

    Raises:
        ValueError: one is not finite.
    """
    gradients = {}
    for name, gradient in found.items():
        gradients[name] = torch.zeros_like(parameters[name]).view(-1) if gradient is None else gradient.reshape(-1)
        if not gradients[name].sum().isfinite():
            raise ValueError(BAD_GRADIENT.format(name=name, index=index))
    return gradients


def merge_priors(priors: Sequence[PriorSensitivity], *, rank: int | None = None, dtype: torch.dtype | None = None) -> PriorSensitivity:
    """The prior of all samples from priors of parts of them, such as the shares of several workers.

    Exact, whatever the order and the sizes of the parts, if every part kept all of its eigenpairs (rank at least its samples). Otherwise
    the trace is still exact, and what the parts left out is in the bounds. So is the diagonal, if the parts have one.

    Args:
        priors: of the same model, groups and Fisher type.
        rank: eigenpairs to keep per group, the largest of the parts' when None.
        dtype: of the eigenvectors kept, the first part's when None.

    Returns:
        The merged prior.

    Raises:
        ValueError: there are none, they differ in model, groups or Fisher type, some have a diagonal and others none, or they hold
            Kronecker products, whose directions differ between parts.
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
    merged = {name: _merged([(prior.groups[name], prior.samples) for prior in priors], rank, dtype) for name in first.groups}
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


def _merged(parts: Sequence[tuple[GroupPrior | KroneckerGroup, int]], rank: int, dtype: torch.dtype | None) -> GroupPrior:
    # One group from its priors and how many samples are behind each.
    count, rows, diagonals = sum(n for _, n in parts), [], []
    for p, n in parts:
        if isinstance(p, KroneckerGroup):
            raise ValueError(
                f"{p.group.name}: Kronecker products of different samples have different directions and do not merge; "
                "let the workers estimate together, with estimate_prior_kronecker(..., gather=...)"
            )
        rows.append((p.eigenvalues * n).sqrt()[:, None] * p.eigenvectors)
        diagonals += [] if p.diagonal is None else [p.diagonal * (n / count)]
    first = parts[0][0]
    if len(diagonals) not in (0, len(parts)):
        raise ValueError(
            f"{first.group.name}: {len(diagonals)} of {len(parts)} priors to merge have a diagonal; estimate all with diagonal=True"
        )
    return decompose(
        first.group,
        torch.cat(rows),
        count,
        rank,
        dtype=first.parts[0].dtype if dtype is None else dtype,
        trace=math.fsum(p.trace * n for p, n in parts) / count,
        left_out=math.fsum(p.error_bound().spectral * n for p, n in parts) / count,
        diagonal=torch.stack(diagonals).sum(0) if diagonals else None,
    )


def mean_top(groups: Iterable[BlockPrior]) -> float:
    """Mean over groups of the largest eigenvalue, kept or not.

    Args:
        groups: with descending eigenvalues.

    Returns:
        The scale of a prior; 0 without groups.
    """
    tops = [float(g.eigenvalues[0]) if len(g.eigenvalues) else g.largest_left_out for g in groups]
    return math.fsum(tops) / len(tops) if tops else 0.0
