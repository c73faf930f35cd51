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
