"""Dense Fisher matrices in float64, one sample and one backward pass at a time."""

import copy

import torch


def dense_fisher(model, sample_loss, samples):
    """``[P, P]`` (1/N) sum of g g^T over samples and ``{name: (start, stop)}`` of the parameters in it."""
    model = copy.deepcopy(model).double().eval()
    total, count = 0.0, 0
    for sample in samples:
        model.zero_grad()
        sample_loss(model, sample).backward()
        g = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in model.parameters()])
        total = total + torch.outer(g, g)
        count += 1
    places, start = {}, 0
    for name, p in model.named_parameters():
        places[name] = (start, start + p.numel())
        start += p.numel()
    return total / count, places
