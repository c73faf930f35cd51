"""Dense Fisher matrices in float64, one sample and one backward pass at a time."""

import copy

import torch
from torch import nn


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


def captured_trace(block, vectors, rank):
    """Share of the trace inside the span of ``[k, n]`` rows, relative to the best span of that dimension."""
    basis = torch.linalg.qr(vectors.double().T).Q
    best = torch.linalg.eigvalsh(block).flip(0)[:rank].sum()
    return float((basis.T @ block @ basis).trace() / best)


def principal_sine(block, vectors):
    """Sine of the largest angle between the span of ``[k, n]`` rows and the k leading eigenvectors of a dense block."""
    basis = torch.linalg.qr(vectors.double().T).Q
    leading = torch.linalg.eigh(block).eigenvectors[:, -basis.shape[1] :]
    return float(torch.linalg.matrix_norm(leading - basis @ (basis.T @ leading), 2))


class TokenNet(nn.Module):
    """A small vision transformer: strided convolution, positions, attention with a fused qkv, perceptron, norm and a linear head."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Conv2d(2, 8, 2, stride=2)
        self.positions = nn.Parameter(torch.randn(4, 8) * 0.1)
        self.qkv = nn.Linear(8, 24)
        self.fc1 = nn.Linear(8, 12)
        self.drop = nn.Dropout(0.5)
        self.fc2 = nn.Linear(12, 8, bias=False)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 3)

    def forward(self, images):
        x = self.embed(images).flatten(2).transpose(1, 2) + self.positions
        q, k, v = self.qkv(x).chunk(3, -1)
        x = x + torch.softmax(q @ k.transpose(1, 2) / 8**0.5, -1) @ v
        x = x + self.fc2(self.drop(torch.tanh(self.fc1(x))))
        return self.head(self.norm(x).mean(1))


def token_loss(model, sample):
    image, target = sample
    dtype = model.head.weight.dtype
    return (model(image[None].to(dtype)) - target.to(dtype)).square().sum()


def token_samples(n, seed=1):
    """Images that vary along few directions, as natural ones do, and targets."""
    g = torch.Generator().manual_seed(seed)
    directions = torch.randn(3, 2, 4, 4, generator=g)
    weights = torch.randn(n, 3, generator=g) * torch.tensor([2.0, 1.0, 0.5])
    images = torch.einsum("nd,dchw->nchw", weights, directions) + 0.2 * torch.randn(n, 2, 4, 4, generator=g)
    return list(zip(images, torch.randn(n, 3, generator=g), strict=True))


def dense_factors(model, group, sample_loss, samples):
    """Input and output factor of one group of rows in float64, from the weight's gradient sample by sample."""
    model = copy.deepcopy(model).double().eval()
    weight = model.get_parameter(group.parameter)
    a_sum = b_sum = 0.0
    for sample in samples:
        model.zero_grad()
        sample_loss(model, sample).backward()
        g = weight.grad.reshape(-1)[group.start : group.stop].view(-1, weight[0].numel())
        a_sum, b_sum = a_sum + g.T @ g, b_sum + g @ g.T
    return a_sum / len(samples), b_sum / len(samples)
