"""The published networks in plain operations, by their published key names: OSTrack's single stream, SRTrack's two streams, the head.

Written from their description. Attention is the softmax of a whole matrix, dropped tokens are put back sample by sample. ``w`` is a
state dict, or parameters by the same names.
"""

import math

import torch
from torch.nn.functional import batch_norm, conv2d, gelu, layer_norm, linear


def norm(w, name, x):
    return layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], 1e-6)


def attention(w, name, x, heads):
    """Output ``[B, N, C]`` and probabilities ``[B, heads, N, N]``."""
    b, n, c = x.shape
    qkv = linear(x, w[f"{name}.qkv.weight"], w[f"{name}.qkv.bias"]).reshape(b, n, 3, heads, c // heads).permute(2, 0, 3, 1, 4)
    q, k, v = qkv[0], qkv[1], qkv[2]
    probabilities = ((q @ k.transpose(-2, -1)) * (c // heads) ** -0.5).softmax(-1)
    out = (probabilities @ v).transpose(1, 2).reshape(b, n, c)
    return linear(out, w[f"{name}.proj.weight"], w[f"{name}.proj.bias"]), probabilities


def mlp(w, name, x):
    hidden = gelu(linear(x, w[f"{name}.fc1.weight"], w[f"{name}.fc1.bias"]))
    return linear(hidden, w[f"{name}.fc2.weight"], w[f"{name}.fc2.bias"])


def block(w, name, x, heads):
    x = x + attention(w, f"{name}.attn", norm(w, f"{name}.norm1", x), heads)[0]
    return x + mlp(w, f"{name}.mlp", norm(w, f"{name}.norm2", x))


def eliminating_block(w, name, x, heads, places, template, keep):
    """A block that keeps ``ceil(keep * n)`` search tokens; ``places`` are where the present ones stood at first."""
    out, probabilities = attention(w, f"{name}.attn", norm(w, f"{name}.norm1", x), heads)
    x = x + out
    side = math.isqrt(template)
    middle = {8: 3, 12: 5}.get(side, (side - 1) // 2)
    chosen = probabilities[:, :, middle * side + middle, template:].mean(1)
    order = chosen.sort(dim=1, descending=True).indices[:, : math.ceil(keep * chosen.shape[1])]
    x = torch.stack([torch.cat([sample[:template], sample[template:][kept]]) for sample, kept in zip(x, order, strict=True)])
    places = torch.stack([before[kept] for before, kept in zip(places, order, strict=True)])
    return x + mlp(w, f"{name}.mlp", norm(w, f"{name}.norm2", x)), places


def embed(w, name, image):
    weight = w[f"{name}.proj.weight"]
    return conv2d(image, weight, w[f"{name}.proj.bias"], stride=weight.shape[2]).flatten(2).transpose(1, 2)


def tokens(w, name, template, search):
    z, x = embed(w, name, template) + w["backbone.pos_embed_z"], embed(w, name, search) + w["backbone.pos_embed_x"]
    if "backbone.temporal_pos_embed_z" in w:
        z, x = z + w["backbone.temporal_pos_embed_z"], x + w["backbone.temporal_pos_embed_x"]
    return torch.cat([z, x], 1)


def depth(w, name):
    return 1 + max(int(key.split(".")[2]) for key in w if key.startswith(f"{name}."))


def single_stream(w, template, search, *, heads, eliminate_in=(), keep=0.7, twice=()):
    """Search tokens ``[B, N_x, C]``. Blocks in ``twice`` are applied a second time."""
    x, z = tokens(w, "backbone.patch_embed", template, search), w["backbone.pos_embed_z"].shape[1]
    places = torch.arange(x.shape[1] - z).expand(len(x), -1)
    for i in range(depth(w, "backbone.blocks")):
        if i in eliminate_in:
            x, places = eliminating_block(w, f"backbone.blocks.{i}", x, heads, places, z, keep)
        else:
            x = block(w, f"backbone.blocks.{i}", x, heads)
        if i in twice:
            x = block(w, f"backbone.blocks.{i}", x, heads)
    x = norm(w, "backbone.norm", x)[:, z:]
    if not eliminate_in:
        return x
    empty = torch.zeros(w["backbone.pos_embed_x"].shape[1:])
    return torch.stack([empty.index_put((where,), values) for values, where in zip(x, places, strict=True)])


def two_streams(w, template, search, *, heads, fusion_after=(2, 5, 8, 11)):
    """Search tokens ``[B, N_x, C]`` of RGB (first three channels) and auxiliary images."""
    rgb = tokens(w, "backbone.patch_embed_rgb", template[:, :3], search[:, :3])
    aux = tokens(w, "backbone.patch_embed_event", template[:, 3:], search[:, 3:])
    for i in range(depth(w, "backbone.blocks_rgb")):
        rgb = block(w, f"backbone.blocks_rgb.{i}", rgb, heads)
        aux = block(w, f"backbone.blocks_event.{i}", aux, heads)
        if i in fusion_after:
            both = block(w, f"backbone.blocks_cross.{fusion_after.index(i)}", torch.cat([rgb, aux], 1), heads)
            rgb, aux = both[:, : rgb.shape[1]], both[:, rgb.shape[1] :]
    fused = (norm(w, "backbone.norm_rgb", rgb) + norm(w, "backbone.norm_event", aux)) / 2
    return fused[:, w["backbone.pos_embed_z"].shape[1] :]


def head(w, search_tokens, *, training=False):
    """Score, size and offset maps of search tokens."""
    side = math.isqrt(search_tokens.shape[1])
    image = search_tokens.transpose(1, 2).reshape(len(search_tokens), -1, side, side)
    maps = {}
    for branch in ("ctr", "size", "offset"):
        x = image
        for i in range(1, 5):
            name = f"box_head.conv{i}_{branch}"
            x = conv2d(x, w[f"{name}.0.weight"], w[f"{name}.0.bias"], padding=1)
            mean, variance = w[f"{name}.1.running_mean"], w[f"{name}.1.running_var"]
            x = batch_norm(x, mean, variance, w[f"{name}.1.weight"], w[f"{name}.1.bias"], training).relu()
        maps[branch] = conv2d(x, w[f"box_head.conv5_{branch}.weight"], w[f"box_head.conv5_{branch}.bias"])
    bounded = lambda x: x.sigmoid().clamp(1e-4, 1 - 1e-4)
    return bounded(maps["ctr"]), bounded(maps["size"]), maps["offset"]


def srtrack_names(weights):
    """A two-stream state dict of ours by the published names."""
    changes = {"patch_embed_aux": "patch_embed_event", "blocks_aux": "blocks_event", "norm_aux": "norm_event", ".fusion.": ".blocks_cross."}
    renamed = {}
    for name, value in weights.items():
        for ours, theirs in changes.items():
            name = name.replace(ours, theirs)
        renamed[name] = value
    return renamed
