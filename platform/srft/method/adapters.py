"""Parts that are added to a pre-trained network for parameter-efficient tuning: LoRA, bottleneck adapters, prompts.

Every part leaves the network's function as it was until it is trained, and the names of the pre-trained parameters for good: new
parameters have names of their own, so that the weights' and the prior's key maps still fit. Parts are put in by attribute names of
transformer blocks: ``attn.qkv``, ``attn.proj`` and ``mlp.fc2``.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = [
    "AdaptedLinear",
    "LoRALinear",
    "PromptBlock",
    "add_adapters",
    "add_lora",
    "add_prompts",
    "fold_lora",
    "merge_lora",
    "unmerge_lora",
]


class LoRALinear(nn.Linear):
    """A linear layer with a low-rank addition: ``y = W x + b + (alpha / r) B A x``, loralib's layout, names and start.

    Unlike loralib's, it is not merged by ``eval()``: merging is asked for, is undone without a rounding error, and shows in no state dict.
    """

    lora_A: nn.Parameter
    """``[r, in]``, uniform in +-1/sqrt(in) at the start."""
    lora_B: nn.Parameter
    """``[out, r]``, zero at the start."""
    base: Tensor | None
    """W while it is merged, else None."""

    def __init__(self, linear: nn.Linear, rank: int, alpha: float, generator: torch.Generator) -> None:
        """Take over a layer's parameters (the same objects) and add A and B.

        Args:
            linear: the pre-trained layer.
            rank: r.
            alpha: the addition is multiplied by ``alpha / r``.
            generator: draws A, on the CPU.

        Raises:
            ValueError: the rank is below 1.
        """
        if rank < 1:
            raise ValueError(f"LoRA rank is {rank}; expected at least 1")
        super().__init__(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
        _take_over(self, linear)
        self.rank, self.scaling = rank, alpha / rank
        like = linear.weight
        self.lora_A = nn.Parameter(_uniform(rank, linear.in_features, generator).to(like.device, like.dtype))
        self.lora_B = nn.Parameter(torch.zeros(linear.out_features, rank, device=like.device, dtype=like.dtype))
        self.register_buffer("base", None, persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        """The layer's output.

        Args:
            input: ``[..., in]``.

        Returns:
            ``[..., out]``.

        Raises:
            ValueError: a merged layer is used for training, which A and B would have no part in.
        """
        if self.base is not None:
            if self.training and torch.is_grad_enabled():
                raise ValueError("a merged LoRA layer runs in training mode with gradients; call unmerge_lora before training")
            return super().forward(input)
        return super().forward(input) + functional.linear(functional.linear(input, self.lora_A), self.lora_B) * self.scaling

    def merged_weight(self) -> Tensor:
        """W + (alpha / r) B A.

        Returns:
            ``[out, in]``.
        """
        weight = self.weight if self.base is None else self.base
        return (weight + self.scaling * (self.lora_B @ self.lora_A)).detach()

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.base is not None:
            destination[f"{prefix}weight"] = self.base

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:  # pyrefly: ignore
        if self.base is not None:
            raise ValueError(f"{prefix}weight is merged; call unmerge_lora before loading weights")
        super()._load_from_state_dict(state_dict, prefix, *args)


class AdaptedLinear(nn.Linear):
    """A linear layer with a bottleneck behind it: ``y + U gelu(D y + d) + u`` of ``y = W x + b``; U and u are zero at the start."""

    def __init__(self, linear: nn.Linear, width: int, generator: torch.Generator) -> None:
        """Take over a layer's parameters (the same objects) and add the bottleneck.

        Args:
            linear: the pre-trained layer.
            width: channels of the bottleneck.
            generator: draws D, on the CPU.

        Raises:
            ValueError: the width is below 1.
        """
        if width < 1:
            raise ValueError(f"adapter width is {width}; expected at least 1")
        super().__init__(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
        _take_over(self, linear)
        dim, like = linear.out_features, linear.weight
        self.adapter = nn.Sequential(_linear(dim, width, like, generator), nn.GELU(), _linear(width, dim, like, None)).train(
            linear.training
        )

    def forward(self, input: Tensor) -> Tensor:
        """The layer's output.

        Args:
            input: ``[..., in]``.

        Returns:
            ``[..., out]``.
        """
        out = super().forward(input)
        return out + self.adapter(out)


class PromptBlock(nn.Module):
    """A prompt for the RGB stream from the tokens of both streams (ViPT's block, arXiv 2303.10826).

    Both tokens are normalized and projected to a few channels. The RGB ones pass a *fovea* (multiplied by their own softmax over the
    positions, at a learned temperature), separately for template and search region; the sum is projected back.
    """

    def __init__(self, dim: int, width: int, template_tokens: int, tokens: int, like: Tensor, generator: torch.Generator) -> None:
        """Draw the parameters; the projection back is zero at the start.

        Args:
            dim: channels of a token [C].
            width: channels that the prompt is made in.
            template_tokens: N_z, the leading tokens of a stream.
            tokens: N = N_z + N_x, tokens of one stream.
            like: gives type and device of the parameters.
            generator: draws the projections, on the CPU.
        """
        super().__init__()
        self.template_tokens, self.tokens = template_tokens, tokens
        self.norm_rgb, self.norm_aux = (nn.LayerNorm(dim, eps=1e-6, device=like.device, dtype=like.dtype) for _ in range(2))
        self.down_rgb, self.down_aux = (_linear(dim, width, like, generator) for _ in range(2))
        self.up = _linear(width, dim, like, None)
        self.temperature = nn.Parameter(torch.full((1,), 10.0, device=like.device, dtype=like.dtype))

    def forward(self, rgb: Tensor, aux: Tensor) -> Tensor:
        """The prompt to add to the RGB tokens.

        Args:
            rgb: ``[B, N, C]``.
            aux: ``[B, N, C]``.

        Returns:
            ``[B, N, C]``.
        """
        main = self.down_rgb(self.norm_rgb(rgb))
        parts = main.split([self.template_tokens, self.tokens - self.template_tokens], 1)
        fovea = torch.cat([torch.softmax(part * self.temperature, 1) * part for part in parts], 1)
        return self.up(fovea + self.down_aux(self.norm_aux(aux)))


def add_lora(network: nn.Module, *, qkv_rank: int = 8, proj_rank: int = 16, alpha: float = 1.0, seed: int = 0) -> None:
    """Add LoRA to the attention of every transformer block: published ranks, MLP untouched.

    Args:
        network: changed in place.
        qkv_rank: r of ``attn.qkv``.
        proj_rank: r of ``attn.proj``.
        alpha: additions are multiplied by ``alpha / r``.
        seed: of A.
    """
    generator = torch.Generator().manual_seed(seed)
    for block in _blocks(network):
        block.attn.qkv = LoRALinear(block.attn.qkv, qkv_rank, alpha, generator)
        block.attn.proj = LoRALinear(block.attn.proj, proj_rank, alpha, generator)


def merge_lora(network: nn.Module) -> None:
    """Put every LoRA addition into its weight, so that it costs no time; W is kept aside.

    Args:
        network: changed in place.
    """
    for layer in _lora_layers(network):
        if layer.base is None:
            merged = layer.merged_weight()
            layer.base, layer.weight.data = layer.weight.data, merged


def unmerge_lora(network: nn.Module) -> None:
    """Undo :func:`merge_lora`, bit for bit.

    Args:
        network: changed in place.
    """
    for layer in _lora_layers(network):
        if layer.base is not None:
            layer.weight.data, layer.base = layer.base, None


def fold_lora(network: nn.Module) -> None:
    """Turn LoRA layers into plain ones with merged weights, for good: the network has its original names and speed.

    Args:
        network: changed in place.
    """
    for parent in list(network.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, LoRALinear):
                plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
                layer.weight.data = layer.merged_weight()
                _take_over(plain, layer)
                setattr(parent, name, plain)


def add_adapters(network: nn.Module, *, reduction: int = 12, seed: int = 0) -> None:
    """Add a bottleneck behind the attention and one behind the MLP of every transformer block, before the residual sum.

    Args:
        network: changed in place.
        reduction: a token's channels over the bottleneck's (64 of 768).
        seed: of the projections into the bottlenecks.
    """
    generator = torch.Generator().manual_seed(seed)
    for block in _blocks(network):
        block.attn.proj = AdaptedLinear(block.attn.proj, max(1, block.attn.proj.out_features // reduction), generator)
        block.mlp.fc2 = AdaptedLinear(block.mlp.fc2, max(1, block.mlp.fc2.out_features // reduction), generator)


def add_prompts(network: nn.Module, *, width: int = 8, seed: int = 0) -> None:
    """Add a prompt block in front of every fusion block of a two-stream tracker.

    What differs from ViPT, whose frozen tracker has one stream: the prompt is made from the tokens of the frozen auxiliary stream, not
    from the prompt before; prompt blocks stand where the tokens of both streams meet, in front of the fusion blocks, not of all
    blocks; tokens of both streams have a normalization each in every prompt block; the projection back starts at zero, so that the
    start is the pre-trained tracker. Without auxiliary tokens (RGB only) there is no prompt, and the tracker is the pre-trained one.

    Args:
        network: with ``backbone.fusion``, ``backbone.pos_embed_z`` and ``backbone.pos_embed_x``; changed in place.
        width: channels that a prompt is made in.
        seed: of the projections.

    Raises:
        ValueError: the network has no fusion blocks.
    """
    backbone: Any = getattr(network, "backbone", None)
    if not hasattr(backbone, "fusion"):
        raise ValueError("prompts: the network has no backbone.fusion; expected a tracker of two streams, RGB and an auxiliary modality")
    generator = torch.Generator().manual_seed(seed)
    template_tokens, like = backbone.pos_embed_z.shape[1], backbone.pos_embed_z
    tokens = template_tokens + backbone.pos_embed_x.shape[1]
    for block in backbone.fusion:
        if hasattr(block, "prompt"):
            raise ValueError("prompts: the network has prompts already; expected one call")
        block.prompt = PromptBlock(like.shape[2], width, template_tokens, tokens, like, generator).train(block.training)
        block.register_forward_pre_hook(_prompted)


def _prompted(block: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    # A hook, since a wrapped block would change the names of its parameters.
    tokens, rest = args[0], args[1:]
    n = block.prompt.tokens
    if tokens.shape[1] == n:
        return args
    rgb, aux = tokens.split([n, n], 1)
    return (torch.cat([rgb + block.prompt(rgb, aux), aux], 1), *rest)


def _blocks(network: nn.Module) -> list[Any]:
    def plain(module: Any, *names: str) -> bool:
        return all(type(getattr(module, name, None)) is nn.Linear for name in names)

    candidates: list[Any] = [m for m in network.modules() if hasattr(m, "attn") and hasattr(m, "mlp")]
    found = [b for b in candidates if plain(b.attn, "qkv", "proj") and plain(b.mlp, "fc2")]
    if not found or len(found) != len(candidates):
        raise ValueError(
            f"{len(found)} of {len(candidates)} transformer blocks have plain linear attn.qkv, attn.proj and mlp.fc2; expected all, and "
            "at least one: name the layers so, and add parts only once"
        )
    return found


def _lora_layers(network: nn.Module) -> list[LoRALinear]:
    return [module for module in network.modules() if isinstance(module, LoRALinear)]


def _take_over(target: nn.Linear, source: nn.Linear) -> None:
    target.weight, target.bias = source.weight, source.bias
    target.train(source.training)


def _linear(inputs: int, outputs: int, like: Tensor, generator: torch.Generator | None) -> nn.Linear:
    # Weights uniform in +-1/sqrt(in), torch's own start, or zero without a generator; biases zero. Draws from the generator alone.
    layer = nn.Linear(inputs, outputs, device="meta")
    drawn = _uniform(outputs, inputs, generator) if generator is not None else torch.zeros(outputs, inputs)
    layer.weight = nn.Parameter(drawn.to(like.device, like.dtype))
    layer.bias = nn.Parameter(torch.zeros(outputs).to(like.device, like.dtype))
    return layer


def _uniform(outputs: int, inputs: int, generator: torch.Generator) -> Tensor:
    return (torch.rand(outputs, inputs, generator=generator) * 2 - 1) / math.sqrt(inputs)
