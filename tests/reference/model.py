"""Slow, plain forms of what the network does around its layers."""

import torch


def decode(score, size, offset):
    """Boxes cxcywh (fractions) at the first highest score of each map, one sample and one cell at a time."""
    boxes = []
    for s, wh, xy in zip(score.tolist(), size.tolist(), offset.tolist(), strict=True):
        cells = len(s[0])
        i, j = max(((i, j) for i in range(cells) for j in range(cells)), key=lambda at: s[0][at[0]][at[1]])
        boxes.append([(j + xy[0][i][j]) / cells, (i + xy[1][i][j]) / cells, wh[0][i][j], wh[1][i][j]])
    return torch.tensor(boxes, dtype=torch.float64)


def fused_twice(single, template, search):
    """Search tokens of a single-stream backbone whose fused blocks are applied a second time."""
    backbone = single.backbone
    tokens = torch.cat([backbone.patch_embed(template) + backbone.pos_embed_z, backbone.patch_embed(search) + backbone.pos_embed_x], 1)
    for i, block in enumerate(backbone.blocks):
        tokens = block(tokens)
        if i in single.arch.fusion_after:
            tokens = block(tokens)
    return backbone.norm(tokens)[:, backbone.pos_embed_z.shape[1] :]


def two_streams(double, template, search):
    """Search tokens of a two-stream backbone, the fusion blocks seeing [z_rgb, x_rgb, z_aux, x_aux]."""
    b, streams = double.backbone, {}
    for name, channels in (("rgb", slice(0, 3)), ("aux", slice(3, 6))):
        embed = b.get_submodule(f"patch_embed_{name}")
        streams[name] = torch.cat([embed(template[:, channels]) + b.pos_embed_z, embed(search[:, channels]) + b.pos_embed_x], 1)
    count = streams["rgb"].shape[1]
    for i in range(double.arch.depth):
        for name in streams:
            streams[name] = b.get_submodule(f"blocks_{name}.{i}")(streams[name])
        if i in double.arch.fusion_after:
            both = b.get_submodule(f"fusion.{double.arch.fusion_after.index(i)}")(torch.cat([streams["rgb"], streams["aux"]], 1))
            streams = {"rgb": both[:, :count], "aux": both[:, count:]}
    return (0.5 * b.norm_rgb(streams["rgb"]) + 0.5 * b.norm_aux(streams["aux"]))[:, b.pos_embed_z.shape[1] :]
