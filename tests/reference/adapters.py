"""LoRA, bottleneck and prompt token by token, with plain matrices."""

import math

import torch


def lora(x, weight, bias, a, b, alpha):
    """One token: the low-rank matrix is formed."""
    return (weight + alpha / len(a) * (b @ a)) @ x + bias


def bottleneck(y, down, d, up, u):
    """One token: y + U gelu(D y + d) + u with the exact GELU."""
    h = [0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in (down @ y + d).tolist()]
    return y + up @ torch.tensor(h, dtype=y.dtype) + u


def layer_norm(x, eps=1e-6):
    return (x - x.mean()) / torch.sqrt(((x - x.mean()) ** 2).mean() + eps)


def prompt(rgb, aux, down_rgb, down_aux, up, temperature, template_tokens):
    """[N, C] of one sample: each region's softmax over its own positions; norms with weight 1 and bias 0, no biases."""
    main = torch.stack([down_rgb @ layer_norm(t) for t in rgb])
    other = torch.stack([down_aux @ layer_norm(t) for t in aux])
    out = []
    for i in range(len(rgb)):
        region = main[:template_tokens] if i < template_tokens else main[template_tokens:]
        mask = torch.exp(temperature * main[i]) / torch.exp(temperature * region).sum(0)
        out.append(up @ (mask * main[i] + other[i]))
    return torch.stack(out)
