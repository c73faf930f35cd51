"""Prior sensitivity of linear and convolutional layers as Kronecker products of an input and an output factor.

A layer's weight is a matrix ``[out, in]`` (a convolution's is that of its unfolded input, ``in`` = channels x kernel). Its gradient of
sample n is ``G_n = sum_t g_t a_t^T`` over tokens or positions t, with input a and output gradient g. The eigenvectors u of an output factor
B ``[out, out]`` and w of an input factor A ``[in, in]`` whose eigenvalues have the K largest products make the directions ``u w^T``. Three
kinds of factors, none of which takes the samples' mean before the product:

* ``gradient``: A = E[G^T G], B = E[G G^T], one power iteration towards the Kronecker product nearest to the block (Morwani et al. 2024,
  arXiv 2406.17748).
* ``expand``: A = E[sum_t a a^T], B = E[sum_t g g^T], tokens taken as independent of each other.
* ``reduce``: A = E[m m^T] with the mean m of a over tokens, B = E[s s^T] with the sum s of g, every token taken as the same (both
  Eschenhagen et al. 2023, arXiv 2311.00636).

On the pre-trained ``tiny_rgb`` (64 pairs, at most 256 eigenpairs a matrix) they captured 0.75 (``gradient``) and 0.65 (``expand``) of the
trace, with 32 eigenpairs 0.51, 0.35 and 0.30 (``reduce``, which sees nothing where gradients of tokens cancel, as those of keys do).

A second pass over the samples measures ``M = V F V^T`` ``[K, K]``. Its diagonal are the eigenvalues; what it has beside the diagonal, and
the residual trace tau, bound the error: with C the part of F outside the span, tr C = tau, the coupling between both is at most
``sqrt(|M| tau)`` since F is positive semi-definite.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import unfold

from srft.config import FisherType
from srft.method.fisher import Item, mean_top, sample_gradients, trainable_groups, undisturbed
from srft.method.groups import Group
from srft.method.kronecker_prior import Factors, KroneckerGroup, KroneckerPrior, load_kronecker_prior, pair_errors
from srft.method.prior import PriorSensitivity, weights_hash
from srft.method.sketch import chunks
from srft.method.storage import row_errors
from srft.method.streaming import GroupSketch

__all__ = ["Factors", "KroneckerGroup", "KroneckerPrior", "estimate_prior_kronecker", "load_kronecker_prior"]

FLOOR = 1e-10
"""Eigenvalues of a factor below this share of its largest are rounding."""


def _layers(model: nn.Module) -> dict[str, nn.Module]:
    # Modules whose weight gradient is a sum of outer products, by the weight's name.
    layers = {}
    for name, module in model.named_modules():
        plain = isinstance(module, nn.Conv2d) and module.groups == 1 and module.padding_mode == "zeros" and module.padding != "same"
        if isinstance(module, nn.Linear) or plain:
            layers[f"{name}.weight" if name else "weight"] = module
    return layers


@contextmanager
def captured(layers: dict[str, nn.Module]) -> Iterator[dict[str, list[tuple[Tensor, Tensor]]]]:
    """Record inputs and output gradients of layers at every backward pass inside; hooks are removed at the end, whatever happens.

    Args:
        layers: linear layers and convolutions by key.

    Yields:
        By key, a pair for each call of the layer: inputs ``[T, in]`` (unfolded for a convolution) and output gradients ``[T, out]``, T
        counting tokens or positions. To be cleared between samples.
    """
    records: dict[str, list[tuple[Tensor, Tensor]]] = {key: [] for key in layers}

    def hook(key: str) -> Callable[..., None]:
        def forward(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
            inputs = (args[0] if args else kwargs["input"]).detach()
            if output.requires_grad:
                output.register_hook(lambda gradient: records[key].append(_as_rows(module, inputs, gradient.detach())))

        return forward

    with ExitStack() as stack:
        for key, layer in layers.items():
            stack.callback(layer.register_forward_hook(hook(key), with_kwargs=True).remove)
        yield records


def _as_rows(module: nn.Module, inputs: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    if isinstance(module, nn.Conv2d):
        padding = (0, 0) if module.padding == "valid" else module.padding
        assert not isinstance(padding, str)
        inputs = unfold(inputs, module.kernel_size, module.dilation, padding, module.stride).transpose(-1, -2)  # pyrefly: ignore
        gradient = gradient.flatten(-2).transpose(-1, -2)
    return inputs.reshape(-1, inputs.shape[-1]), gradient.reshape(-1, gradient.shape[-1])


class _Matrix:
    """Factors of one group while they are summed, then its eigenvectors and what they see."""

    def __init__(self, group: Group, inputs: int) -> None:
        self.group = group
        self.shape = group.numel // inputs, inputs
        self.rows = slice(group.start // inputs, group.stop // inputs)
        self.a = self.b = self.u = self.w = self.pairs = self.seen = torch.zeros(())
        self.energies: list[float] = []

    def add(self, a: Tensor, g: Tensor) -> None:
        # Adds a^T a of [T, in] and g^T g of [T, out] to the factors.
        if self.a.ndim == 0:
            dtype = torch.promote_types(a.dtype, torch.float32)
            self.a, self.b = (torch.zeros(n, n, dtype=dtype, device=a.device) for n in reversed(self.shape))
        a, g = a.to(self.a.dtype), g.to(self.a.dtype)
        self.a.addmm_(a.T, a)
        self.b.addmm_(g.T, g)

    def choose(self, rank: int) -> None:
        # Eigenvectors of the largest products, fewer than rank if their parts would be more numbers than the weights.
        (lam, w), (mu, u) = _leading(self.a, rank), _leading(self.b, rank)
        products = torch.outer(mu, lam)
        order = products.flatten().argsort(descending=True, stable=True)[:rank].cpu()
        pairs = torch.stack([order // max(len(lam), 1), order % max(len(lam), 1)])
        used = (pairs.cummax(1).values + 1) * torch.tensor(self.shape)[:, None]
        pairs = pairs[:, used.sum(0) <= self.group.numel]
        p, q = (pairs.amax(1) + 1).tolist() if pairs.numel() else (0, 0)
        dtype = self.a.dtype
        # Products fall in both indices, so those chosen use leading vectors only.
        self.u, self.w, self.pairs = u[:p].to(dtype), w[:q].to(dtype), pairs
        self.a = self.b = torch.zeros(())
        self.seen = torch.zeros(pairs.shape[1], pairs.shape[1], dtype=torch.float64, device=self.u.device)

    def see(self, gradient: Tensor) -> None:
        # Adds one sample's [n] to M and to the trace.
        self.energies.append(math.fsum(float(gradient[i:j].double().square().sum()) for i, j in chunks(len(gradient), gradient.device)))
        c = torch.linalg.multi_dot([self.u, gradient.view(self.shape).to(self.u.dtype), self.w.T])[self.pairs[0], self.pairs[1]].double()
        self.seen.addr_(c, c)

    def prior(self, dtype: torch.dtype) -> KroneckerGroup:
        # The group's prior with vectors of a type.
        count = len(self.energies)
        seen = self.seen.cpu() / count
        order = seen.diagonal().argsort(descending=True, stable=True)
        values = seen.diagonal()[order].clamp(min=0)
        trace = math.fsum(self.energies) / count
        tau = max(trace - float(values.sum()), 0.0)
        top = float(torch.linalg.matrix_norm(seen, 2)) if len(values) else 0.0
        beside = seen - seen.diagonal().diag()
        off = float(torch.linalg.matrix_norm(beside, 2)) if len(values) else 0.0
        # Largest eigenvalue of [[off, sqrt(top tau)], [sqrt(top tau), tau]]; both matrices being semi-definite, never above either's norm.
        spectral = (off + tau) / 2 + math.sqrt((off - tau) ** 2 / 4 + top * tau)
        u, w, pairs = self.u.to(dtype), self.w.to(dtype), self.pairs[:, order]
        return KroneckerGroup(
            group=self.group,
            eigenvalues=values,
            out_vectors=u,
            in_vectors=w,
            pairs=pairs,
            trace=trace,
            spectral=min(spectral, top + tau),
            frobenius=math.sqrt(float(beside.square().sum()) + 2 * top * tau + tau**2),
            vector_errors=pair_errors(pairs, row_errors(self.u, u), row_errors(self.w, w)),
        )


def _leading(factor: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    # Eigenvalues [r], descending, and eigenvectors [r, n] above rounding, in float64.
    values, vectors = torch.linalg.eigh(factor.double())
    values = values.flip(0)[:rank]
    sure = int((values > FLOOR * values[0]).sum()) if len(values) else 0
    return values[:sure], vectors.flip(1)[:, :sure].T


def estimate_prior_kronecker(
    model: nn.Module,
    sample_loss: Callable[[nn.Module, Item], Tensor],
    samples: Sequence[Item],
    *,
    rank: int,
    fisher_type: FisherType,
    groups: Sequence[Group] | None = None,
    data: str = "",
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    factors: Factors = "gradient",
    rest_rank: int = 8,
) -> KroneckerPrior:
    """Many eigenpairs of every weight matrix in less memory than the weights, from two passes over the samples.

    Weights of ``nn.Linear`` and ungrouped ``nn.Conv2d`` are matrices, the rows of a fused qkv three. Everything else, and matrices with a
    side of at most ``rest_rank``, goes to a streaming sketch of ``rest_rank`` eigenpairs. Peak memory is that of the factors, in^2 + out^2
    numbers per matrix. The model is left as :func:`srft.method.fisher.estimate_prior` leaves it, without a hook.

    Args:
        model: the pre-trained model.
        sample_loss: scalar loss of the model on one sample, as for ``estimate_prior``. The two passes draw the same random numbers.
        samples: what ``sample_loss`` takes; gone through twice, so anything that gives the same samples each time.
        rank: eigenpairs to keep per matrix, at most [K]; fewer where their parts would be more numbers than the weights.
        fisher_type: which of the two ``sample_loss`` implements; recorded.
        groups: operations to estimate; every trainable parameter's when None.
        data: what the samples are; recorded.
        seed: of the random numbers that ``sample_loss`` may draw.
        dtype: of the vectors kept.
        factors: which approximation chooses the directions.
        rest_rank: eigenpairs of what is no matrix, and the side up to which a matrix counts as none.

    Returns:
        The prior. What is a ValueError for ``estimate_prior`` is one here.

    Raises:
        ValueError: rank or rest_rank is negative, factors is unknown, samples can be gone through only once, or a layer's weight is used by
            something else than the layer.
    """
    if rank < 0 or rest_rank < 0 or factors not in ("gradient", "expand", "reduce"):
        raise ValueError(f"rank {rank}, rest_rank {rest_rank}, factors {factors!r}; expected none negative and gradient, expand or reduce")
    if isinstance(samples, Iterator):
        raise ValueError("samples can be gone through only once, but two passes are needed; pass a list")
    layers, groups = _layers(model), trainable_groups(model, groups)
    matrices, sketches = [], []
    for group in groups:
        inputs = layers[group.parameter].weight[0].numel() if group.parameter in layers else 0  # pyrefly: ignore
        if inputs and group.start % inputs == group.stop % inputs == 0 and min(inputs, group.numel // inputs) > rest_rank:
            matrices.append(_Matrix(group, inputs))
        else:
            sketches.append(GroupSketch(group, 2 * max(rest_rank, 1), 2 * max(rest_rank, 1)))
    count, hooked = 0, {m.group.parameter: layers[m.group.parameter] for m in matrices} if factors != "gradient" else {}
    with undisturbed(model, seed), captured(hooked) as records:
        for gradients in sample_gradients(model, sample_loss, samples, groups):
            count += 1
            for sketch in sketches:
                sketch.add(gradients[sketch.group.parameter][sketch.group.start : sketch.group.stop])
            for matrix in matrices:
                gradient = matrix.group.of(gradients[matrix.group.parameter]).view(matrix.shape)
                if factors == "gradient":
                    matrix.add(gradient, gradient.T)
                    continue
                pairs = records[matrix.group.parameter]
                if not pairs and bool(gradient.any()):
                    raise ValueError(f"{matrix.group.parameter} has a gradient but its layer was not called; use factors='gradient'")
                if pairs:
                    a, g = (torch.cat(rows) for rows in zip(*pairs, strict=True))
                    g = g[:, matrix.rows]
                    matrix.add(*((a, g) if factors == "expand" else (a.mean(0, keepdim=True), g.sum(0, keepdim=True))))
            for record in records.values():
                record.clear()
    for matrix in matrices:
        if matrix.a.ndim == 0:
            matrix.add(*(torch.zeros(0, n, device=next(model.parameters()).device) for n in reversed(matrix.shape)))
        matrix.choose(rank)
    with undisturbed(model, seed):
        for gradients in sample_gradients(model, sample_loss, samples, [matrix.group for matrix in matrices]) if matrices else ():
            for matrix in matrices:
                matrix.see(matrix.group.of(gradients[matrix.group.parameter]))
    estimated = {matrix.group.name: matrix.prior(dtype) for matrix in matrices}
    rest = {sketch.group.name: sketch.prior(rest_rank, dtype) for sketch in sketches}
    return KroneckerPrior(
        matrices=estimated,
        rest=PriorSensitivity(
            groups=rest,
            rank=rest_rank,
            samples=count,
            fisher_type=fisher_type,
            base_hash=weights_hash(model.state_dict()),
            data=data,
            scale=mean_top(rest.values()),
            estimator="streaming",
        ),
        rank=rank,
        scale=mean_top([*estimated.values(), *rest.values()]),
        factors=factors,
    )
