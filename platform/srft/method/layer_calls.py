"""What goes into linear layers and convolutions and what flows back: weight gradients as sums of outer products, without forming them.

The gradient of a weight ``[out, in]`` is ``G = sum_t g_t a_t^T`` over tokens or positions t, with input a and output gradient g; a
convolution's input is its unfolded one, ``in`` = channels x kernel. Hooks keep the input and the *edge* at which autograd finds the
output's gradient; backward passes that ask for these edges instead of weights take about a third less time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn.functional import unfold

from srft.method.fisher import Item, checked_loss, flat_gradients
from srft.method.nystrom import random_directions

__all__ = ["Call", "SampleFlows", "flows_of_samples", "recorded", "weight_layers"]

AGREEMENT = 1e-3
"""Relative difference of a weight's gradient from that of its layer's calls above which something else uses the weight."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Call:
    """One call of a layer."""

    layer: nn.Module
    inputs: Tensor
    edge: GradientEdge
    """Where autograd finds the gradient of the output."""

    def rows(self, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and output gradients of every token or position.

        Args:
            gradient: of the output.

        Returns:
            ``[T, in]`` and ``[T, out]`` in the weight's type, float32 at least.
        """
        inputs, layer = self.inputs, self.layer
        if isinstance(layer, nn.Conv2d):
            padding = (0, 0) if layer.padding == "valid" else layer.padding
            assert not isinstance(padding, str)
            inputs = unfold(inputs, layer.kernel_size, layer.dilation, padding, layer.stride).transpose(-1, -2)  # pyrefly: ignore
            gradient = gradient.flatten(-2).transpose(-1, -2)
        dtype = torch.promote_types(layer.get_parameter("weight").dtype, torch.float32)
        return inputs.reshape(-1, inputs.shape[-1]).to(dtype), gradient.reshape(-1, gradient.shape[-1]).to(dtype)


def weight_layers(model: nn.Module) -> dict[str, list[nn.Module]]:
    """Modules whose weight gradient is a sum of outer products.

    Args:
        model: the model.

    Returns:
        Linear layers and ungrouped convolutions by the name of their weight; several where a weight is shared.
    """
    names = {id(p): name for name, p in model.named_parameters()}
    layers: dict[str, list[nn.Module]] = {}
    for module in model.modules():
        plain = isinstance(module, nn.Conv2d) and module.groups == 1 and module.padding_mode == "zeros" and module.padding != "same"
        if (isinstance(module, nn.Linear) or plain) and (name := names.get(id(module.weight))) is not None:
            layers.setdefault(name, []).append(module)
    return layers


@contextmanager
def recorded(layers: Mapping[str, Sequence[nn.Module]]) -> Iterator[dict[str, list[Call]]]:
    """Record the calls of layers inside; hooks are removed at the end, whatever happens.

    Args:
        layers: by key.

    Yields:
        Calls by key, in their order. To be cleared between samples.
    """
    calls: dict[str, list[Call]] = {key: [] for key in layers}

    def hook(key: str) -> Callable[..., None]:
        def forward(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
            if output.requires_grad:
                # A linear layer's output may be a view, which later operations in place take out of the graph: its base stays in.
                base = output._base if output._is_view() and output._base is not None else output
                inputs = (args[0] if args else kwargs["input"]).detach()
                calls[key].append(Call(layer=module, inputs=inputs, edge=get_gradient_edge(base)))

        return forward

    with ExitStack() as stack:
        for key, modules in layers.items():
            for module in modules:
                # Before other hooks, which may replace the output.
                stack.callback(module.register_forward_hook(hook(key), with_kwargs=True, prepend=True).remove)
        yield calls


class SampleFlows:
    """What one sample's backward pass gave."""

    def __init__(self, gradients: dict[str, Tensor], flows: dict[str, list[tuple[Call, Tensor]]]) -> None:
        """Keep it.

        Args:
            gradients: ``[n]`` of parameters that were asked for, by name.
            flows: calls of layers with the gradients of their outputs, by weight.
        """
        self.gradients = gradients
        self._flows = flows

    def rows(self, name: str) -> tuple[Tensor, Tensor] | None:
        """Inputs and output gradients of all calls of a weight's layers.

        Args:
            name: of the weight.

        Returns:
            ``[T, in]`` and ``[T, out]``; None if the loss does not depend on them.
        """
        pairs = [call.rows(gradient) for call, gradient in self._flows[name]]
        if len(pairs) == 1:
            return pairs[0]
        return (torch.cat([a for a, _ in pairs]), torch.cat([g for _, g in pairs])) if pairs else None

    def take(self, name: str) -> tuple[Tensor, Tensor] | None:
        """Like :meth:`rows`, once: what is kept of the weight's layers is freed.

        Args:
            name: of the weight.

        Returns:
            ``[T, in]`` and ``[T, out]``, or None.
        """
        rows = self.rows(name)
        self._flows[name].clear()
        return rows


def flows_of_samples(
    model: nn.Module,
    sample_loss: Callable[[nn.Module, Item], Tensor],
    samples: Iterable[Item],
    calls: Mapping[str, list[Call]],
    names: Sequence[str],
    *,
    check: bool,
) -> Iterator[SampleFlows]:
    """Output gradients of layers, and gradients of other parameters, for every sample on its own.

    To be consumed inside :func:`srft.method.fisher.undisturbed` and :func:`recorded`.

    Args:
        model: the model.
        sample_loss: scalar loss of the model on one sample.
        samples: what it takes.
        calls: of :func:`recorded`, by weight.
        names: parameters whose gradients are wanted.
        check: whether to compare the first sample's weight gradients with autograd's.

    Yields:
        What each sample gave. A loss or gradient that is not finite, and a weight that something else than its layers uses, are
        ValueErrors.
    """
    parameters = dict(model.named_parameters())
    for index, item in enumerate(samples):
        loss = checked_loss(model, sample_loss, item, index)
        made = [(name, call) for name, listed in calls.items() for call in listed]
        for listed in calls.values():
            listed.clear()
        targets: list[Any] = [*(call.edge for _, call in made), *(parameters[name] for name in names)]
        weights = {name: parameters[name] for name in calls} if check and index == 0 else {}
        with _projections(weights) as projections:
            wanted = [*targets, *weights.values()]
            found = torch.autograd.grad(loss, wanted, allow_unused=True) if wanted else ()
        flows: dict[str, list[tuple[Call, Tensor]]] = {name: [] for name in calls}
        for (name, call), gradient in zip(made, found, strict=False):
            if gradient is not None:
                flows[name].append((call, gradient))
        gradients = flat_gradients(dict(zip(names, found[len(made) : len(targets)], strict=True)), parameters, index)
        del loss, made, targets, wanted, found
        sample = SampleFlows(gradients, flows)
        for name in weights:
            precision = max((torch.finfo(gradient.dtype).eps for _, gradient in flows[name]), default=0.0)
            _compare(name, sample.rows(name), projections.get(name), precision)
        yield sample
        gradients.clear()
        flows.clear()


def _few_directions(inputs: int, like: Tensor) -> Tensor:
    return random_directions(inputs, min(inputs, 8), seed=0).to(like.device, torch.promote_types(like.dtype, torch.float32))


@contextmanager
def _projections(weights: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    # [out, 8] products of weight gradients with a few random directions, from a backward pass that need not keep the gradients: what it
    # hands on is a zero without memory.
    projections: dict[str, Tensor] = {}

    def hook(name: str) -> Callable[[Tensor], Tensor]:
        def project(gradient: Tensor) -> Tensor:
            matrix = gradient.flatten(1)
            projections[name] = matrix.to(torch.promote_types(matrix.dtype, torch.float32)) @ _few_directions(matrix.shape[1], matrix)
            return gradient.new_zeros(()).expand_as(gradient)

        return project

    with ExitStack() as stack:
        for name, weight in weights.items():
            stack.callback(weight.register_hook(hook(name)).remove)
        yield projections


def _compare(name: str, rows: tuple[Tensor, Tensor] | None, projection: Tensor | None, precision: float) -> None:
    # Refuses a weight whose gradient, in a few directions, is not that of its layers' calls. Gradients of tokens may cancel, so that
    # rounding is relative to what there was before.
    formed, slack = torch.zeros(()), 0.0
    if rows is not None:
        a, g = rows
        seen = a @ _few_directions(a.shape[1], a)
        formed, slack = g.T @ seen, 8 * precision * float(seen.norm() * g.norm())
    whole = torch.zeros_like(formed) if projection is None else projection
    size, difference = float(whole.norm()), float((formed.to(whole.device) - whole).norm())
    if difference > max(AGREEMENT, 4 * precision) * size + slack:
        raise ValueError(
            f"{name}: the gradient of its layer's calls differs from its own by {difference:.2g}, which has norm {size:.2g}; something "
            "else than the layer uses it. Leave its group out, or use estimate_prior_streaming"
        )
