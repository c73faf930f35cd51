"""Prior sensitivity of linear and convolutional layers as Kronecker products of an input and an output factor.

A layer's weight is a matrix ``[out, in]`` whose gradient of sample n is ``G_n = sum_t g_t a_t^T`` (see ``srft.method.layer_calls``). The
eigenvectors u of the output factor ``B = E[G G^T]`` and w of the input factor ``A = E[G^T G]`` whose eigenvalues have the K largest
products make the directions ``u w^T``: one power iteration towards the Kronecker product nearest to the block (Morwani et al. 2024, arXiv
2406.17748).

Neither factor nor, as a rule, G is formed. The first pass over the samples sums the factors' products with a few random vectors (see
``srft.method.nystrom``), through tokens or through G, whichever takes fewer operations. The second measures ``M = V F V^T`` ``[K, K]``. Its
diagonal are the eigenvalues; what it has beside the diagonal, and the residual trace tau, bound the error: with C the part of F outside the
span, tr C = tau, the coupling between both is at most ``sqrt(|M| tau)`` since F is positive semi-definite.

On the pre-trained ``tiny_rgb`` (64 pairs) 32 eigenpairs a matrix captured 0.52 of the trace and 256 captured 0.75, as the factors' own
eigenvectors do (0.524 and 0.751; random vectors 0.5234 to 0.5236 and 0.7526 to 0.7532 over three seeds). Factors that take tokens as
independent of each other captured 0.35 with 32 and 0.65 with 256, those that take all tokens as the same 0.30 with 32 (both Eschenhagen et
al. 2023, arXiv 2311.00636; the latter see nothing where gradients of tokens cancel, as those of keys do).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from srft.config import FisherType
from srft.method.fisher import BAD_GRADIENT, NO_SAMPLES, Item, mean_top, merge_priors, trainable_groups, undisturbed
from srft.method.groups import Group
from srft.method.kronecker_prior import KroneckerGroup, pair_errors
from srft.method.layer_calls import SampleFlows, flows_of_samples, recorded, weight_layers
from srft.method.nystrom import leading_eigenpairs, random_directions
from srft.method.prior import GroupPrior, PriorSensitivity, weights_hash
from srft.method.storage import row_errors
from srft.method.streaming import GroupSketch
from srft.method.workers import Gather, Workers, alone

__all__ = ["KroneckerGroup", "estimate_prior_kronecker"]


class _Factors:
    """First pass: products of a group's factors with random vectors, and the trace."""

    def __init__(self, group: Group, directions: tuple[Tensor, Tensor]) -> None:
        # directions: [out, r] and [in, r], shared between groups of one size.
        self.group = group
        self.directions = directions
        self.shape = len(directions[0]), len(directions[1])
        self.rows = slice(group.start // self.shape[1], group.stop // self.shape[1])
        self.products = (torch.zeros_like(directions[0]), torch.zeros_like(directions[1]))
        self.energies: list[float] = []

    def through_tokens(self, tokens: int) -> bool:
        # Whether that takes fewer operations than forming G.
        (m, r), (n, q) = self.directions[0].shape, self.directions[1].shape
        factored = tokens * tokens * (m + n) + tokens * (2 * (m * r + n * q) + tokens * (r + q))
        return factored < m * n * (tokens + 2 * (r + q))

    def add(self, a: Tensor, g: Tensor, gram: Tensor | None) -> None:
        # Adds a sample's [T, in] and [T, out], given a a^T if any group of the weight goes through tokens.
        (omega_out, omega_in), (y_out, y_in) = self.directions, self.products
        if gram is not None and self.through_tokens(len(a)):
            gram_out = g @ g.T
            y_in.addmm_(a.T, gram_out @ (a @ omega_in))
            y_out.addmm_(g.T, gram @ (g @ omega_out))
            self.energies.append(float((gram * gram_out).sum(dtype=torch.float64)))
            return
        gradient = g.T @ a
        y_in.addmm_(gradient.T, gradient @ omega_in)
        y_out.addmm_(gradient, gradient.T @ omega_out)
        self.energies.append(float(gradient.square_().sum(dtype=torch.float64)))


class _Directions:
    """Second pass: the directions of a group, what they see, and the diagonal."""

    def __init__(self, factors: _Factors, workers: Workers, count: int, rank: int, *, diagonal: bool) -> None:
        self.group, self.rows, self.count = factors.group, factors.rows, count
        self.trace = math.fsum(workers.gather(math.fsum(factors.energies))) / count
        products = [workers.total(y) for y in factors.products]
        device = products[0].device
        u, w, self.pairs = workers.first(lambda: _choose(products, factors.directions, rank))
        self.u, self.w = u.to(device), w.to(device)
        self.index = tuple(self.pairs.to(device))
        self.seen = torch.zeros(len(self.index[0]), len(self.index[0]), dtype=torch.float64, device=device)
        self.squares = torch.zeros(self.group.numel, device=device) if diagonal else None

    def add(self, a: Tensor, g: Tensor) -> None:
        # Adds a sample's [T, in] and [T, out] to M and to the diagonal.
        c = ((g @ self.u.T).T @ (a @ self.w.T))[self.index].double()
        self.seen.addr_(c, c)
        if self.squares is not None:
            gradient = (g.T @ a).view(-1)
            self.squares.addcmul_(gradient, gradient)

    def prior(self, workers: Workers, dtype: torch.dtype) -> KroneckerGroup:
        # The group's prior, with vectors of a type.
        seen = workers.total(self.seen).cpu() / self.count
        squares, self.squares = self.squares, None
        diagonal = None if squares is None else workers.total(squares).div_(self.count)
        return workers.first(lambda: self._prior(seen, diagonal, dtype).to("cpu")).to(self.u.device)

    def _prior(self, seen: Tensor, diagonal: Tensor | None, dtype: torch.dtype) -> KroneckerGroup:
        order = seen.diagonal().argsort(descending=True, stable=True)
        values = seen.diagonal()[order].clamp(min=0)
        tau = max(self.trace - float(values.sum()), 0.0)
        beside = seen - seen.diagonal().diag()
        top, off = (float(torch.linalg.eigvalsh(x).abs().max()) if len(values) else 0.0 for x in (seen, beside))
        # Largest eigenvalue of [[off, sqrt(top tau)], [sqrt(top tau), tau]]; both matrices being semi-definite, never above either's norm.
        spectral = (off + tau) / 2 + math.sqrt((off - tau) ** 2 / 4 + top * tau)
        u, w, pairs = self.u.to(dtype), self.w.to(dtype), self.pairs[:, order]
        return KroneckerGroup(
            group=self.group,
            eigenvalues=values,
            out_vectors=u,
            in_vectors=w,
            pairs=pairs,
            trace=self.trace,
            spectral=min(spectral, top + tau),
            frobenius=math.sqrt(float(beside.square().sum()) + 2 * top * tau + tau**2),
            vector_errors=pair_errors(pairs, row_errors(self.u, u), row_errors(self.w, w)),
            diagonal=diagonal,
        )


def _choose(products: Sequence[Tensor], directions: tuple[Tensor, Tensor], rank: int) -> tuple[Tensor, Tensor, Tensor]:
    # Vectors [p, out] and [q, in], and the pairs [2, K] of largest products, fewer than rank if there would be more numbers than weights.
    (mu, u), (lam, w) = (leading_eigenpairs(y, omega, rank) for y, omega in zip(products, directions, strict=True))
    order = torch.outer(mu, lam).flatten().argsort(descending=True, stable=True)[:rank].cpu()
    pairs = torch.stack([order // max(len(lam), 1), order % max(len(lam), 1)])
    sides = torch.tensor([[u.shape[1]], [w.shape[1]]])
    pairs = pairs[:, ((pairs.cummax(1).values + 1) * sides).sum(0) <= u.shape[1] * w.shape[1]]
    p, q = (pairs.amax(1) + 1).tolist() if pairs.numel() else (0, 0)
    # Products fall in both indices, so those chosen use leading vectors only.
    dtype = products[0].dtype
    return u[:p].to("cpu", dtype), w[:q].to("cpu", dtype), pairs


def estimate_prior_kronecker(
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
    rest_rank: int = 8,
    oversampling: int = 64,
    gather: Gather = alone,
) -> PriorSensitivity:
    """Many eigenpairs of every weight matrix in less memory than the weights, from two passes over the samples.

    Weights of ``nn.Linear`` and ungrouped ``nn.Conv2d`` are matrices, the rows of a fused qkv three. Everything else, and matrices with a
    side of at most ``rest_rank``, goes to a streaming sketch. The model is left as :func:`srft.method.fisher.estimate_prior` leaves it,
    without a hook. Several workers each pass their share of the samples; all return the prior of all samples.

    Args:
        model: the pre-trained model.
        sample_loss: scalar loss of the model on one sample, as for ``estimate_prior``. The two passes draw the same random numbers.
        samples: what ``sample_loss`` takes; gone through twice, so anything that gives the same samples each time.
        rank: eigenpairs to keep per matrix, at most [K]; fewer where their parts would be more numbers than the weights. Of what is no
            matrix at most ``rest_rank`` of them are kept.
        fisher_type: which of the two ``sample_loss`` implements; recorded.
        groups: operations to estimate; every trainable parameter's when None.
        data: what the samples are; recorded.
        seed: of the random vectors, and of the random numbers that ``sample_loss`` may draw, to which each worker adds its own rank.
        dtype: of the vectors kept.
        diagonal: whether to keep the exact diagonal of every block, one more number per parameter.
        rest_rank: eigenpairs of what is no matrix, and the side up to which a matrix counts as none.
        oversampling: random vectors per factor beyond K / 8; the more, the nearer the directions are to the factors' eigenvectors.
        gather: gives every worker's value to all; collective, so all workers call this function with the same arguments but the samples.

    Returns:
        The prior. What is a ValueError for ``estimate_prior`` is one here.

    Raises:
        ValueError: a size is negative, samples can be gone through only once, or a layer's weight is used by something else than the layer.
    """
    if min(rank, rest_rank, oversampling) < 0:
        raise ValueError(f"rank {rank}, rest_rank {rest_rank}, oversampling {oversampling}; expected none negative")
    if isinstance(samples, Iterator):
        raise ValueError("samples can be gone through only once, but two passes are needed; pass a list")
    workers, chosen, layers = Workers(gather), trainable_groups(model, groups), weight_layers(model)
    factors, others = _split(model, layers, chosen, rest_rank, seed, max(rank // 8 + oversampling, 1))
    sketches = [GroupSketch(group, 2 * max(rest_rank, 1), max(rest_rank, 1), diagonal=diagonal) for group in others]
    names, base_hash = list(dict.fromkeys(group.parameter for group in others)), weights_hash(model.state_dict())
    if len(hashes := set(workers.gather(base_hash))) > 1:
        raise ValueError(f"workers hold weights {', '.join(sorted(hashes))}; expected the same, so load the same checkpoint on all of them")
    with recorded({name: layers[name] for name in factors}) as calls:
        with undisturbed(model, seed + workers.rank):
            flows = flows_of_samples(model, sample_loss, samples, calls, names, check=True)
            own = workers.together(lambda: _first_pass(flows, factors, sketches))
        count = sum(workers.gather(own))
        if count == 0:
            raise ValueError(NO_SAMPLES)
        whole = PriorSensitivity(
            groups={},
            rank=rank,
            samples=count,
            fisher_type=fisher_type,
            base_hash=base_hash,
            data=data,
            scale=0.0,
            estimator="kronecker",
        )
        rest = _rest(replace(whole, samples=own), sketches, workers, min(rank, rest_rank), dtype)
        directions = {name: [_Directions(f, workers, count, rank, diagonal=diagonal) for f in factors.pop(name)] for name in list(factors)}
        with undisturbed(model, seed + workers.rank):
            flows = flows_of_samples(model, sample_loss, samples, calls, [], check=False)
            workers.together(lambda: _second_pass(flows, directions, own))
    matrices = {d.group.name: d.prior(workers, dtype) for members in directions.values() for d in members}
    estimated = {**matrices, **{g.name: rest[g.name].to(model.get_parameter(g.parameter).device) for g in others}}
    estimated = {group.name: estimated[group.name] for group in chosen}
    return replace(whole, groups=estimated, scale=mean_top(estimated.values()))


def _split(
    model: nn.Module,
    layers: Mapping[str, Sequence[nn.Module]],
    groups: Sequence[Group],
    smallest: int,
    seed: int,
    width: int,
) -> tuple[dict[str, list[_Factors]], list[Group]]:
    # Groups that are matrices, by weight, and all others.
    factors: dict[str, list[_Factors]] = {}
    others: list[Group] = []
    known: dict[tuple[int, torch.dtype, torch.device], Tensor] = {}

    def directions(n: int, like: Tensor) -> Tensor:
        dtype = torch.promote_types(like.dtype, torch.float32)
        key = n, dtype, like.device
        if key not in known:
            known[key] = random_directions(n, min(n, width), seed).to(like.device, dtype)
        return known[key]

    for group in groups:
        weight = model.get_parameter(group.parameter)
        inputs = weight[0].numel() if group.parameter in layers else 0
        if inputs and group.start % inputs == group.stop % inputs == 0 and min(inputs, group.numel // inputs) > smallest:
            sides = directions(group.numel // inputs, weight), directions(inputs, weight)
            factors.setdefault(group.parameter, []).append(_Factors(group, sides))
        else:
            others.append(group)
    return factors, others


def _first_pass(flows: Iterator[SampleFlows], factors: Mapping[str, Sequence[_Factors]], sketches: Sequence[GroupSketch]) -> int:
    # Sums over this worker's samples; returns how many there are.
    count = 0
    for index, flow in enumerate(flows):
        count += 1
        for sketch in sketches:
            sketch.add(flow.gradients[sketch.group.parameter][sketch.group.start : sketch.group.stop])
        for name, members in factors.items():
            rows = flow.take(name)
            if rows is None:
                continue
            a, g = rows
            gram = a @ a.T if any(f.through_tokens(len(a)) for f in members) else None
            for f in members:
                f.add(a, g[:, f.rows], gram)
                if not math.isfinite(f.energies[-1]):
                    raise ValueError(BAD_GRADIENT.format(name=name, index=index))
    return count


def _second_pass(flows: Iterator[SampleFlows], directions: Mapping[str, Sequence[_Directions]], expected: int) -> None:
    # Sums what the directions see over this worker's samples.
    count = 0 if directions else expected
    for flow in flows if directions else ():
        count += 1
        for name, members in directions.items():
            if (rows := flow.take(name)) is not None:
                for d in members:
                    d.add(rows[0], rows[1][:, d.rows])
    if count != expected:
        raise ValueError(
            f"samples: {expected} in the first pass and {count} in the second; pass what gives the same each time, such as a list"
        )


def _rest(
    whole: PriorSensitivity, sketches: Sequence[GroupSketch], workers: Workers, rank: int, dtype: torch.dtype
) -> dict[str, GroupPrior | KroneckerGroup]:
    # Priors of the groups that are no matrix, over the samples of all workers.
    if workers.count == 1:
        return {sketch.group.name: sketch.prior(rank, dtype) for sketch in sketches}
    part, rows = None, max((sketch.capacity for sketch in sketches), default=0)
    if whole.samples:
        held = {sketch.group.name: sketch.prior(rows, torch.float32).to("cpu") for sketch in sketches}
        part = replace(whole, groups=held, rank=rows)
    parts = [p for p in workers.gather(part) if p is not None]
    merged = workers.first(lambda: merge_priors(parts, rank=rank, dtype=dtype))
    return dict(merged.groups)
