"""Proposition 1 measured: how far the kept part of the prior is from the Fisher matrix's blocks, the bound, and the trace that is kept.

uv run experiments/proposition.py --cache outputs/paradigms/cache      # a minute; experiments/results/proposition.json and .png
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro

from srft.config import PriorEstimator, SRFTConfig, TrainConfig
from srft.data.domain import source_training
from srft.files import environment, git_commit, write_json
from srft.method.fisher import sample_gradients
from srft.model.losses import tracking_loss
from srft.model.pretrained import load_tracker
from srft.training.prior import SOURCE_SEQUENCES, SourcePairs, source_prior
from srft.training.worker import Worker

ESTIMATORS: tuple[PriorEstimator, ...] = ("exact", "streaming", "kronecker")


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Measure the bound on the tiny tracker."""

    samples: int = 64
    """Source pairs [N]."""
    ranks: tuple[int, ...] = (1, 4, 16, 32)
    """Eigenpairs per operation [K]."""
    cache: Path = Path("outputs/proposition")
    """Folder of rendered sequences and priors."""
    results: Path = Path("experiments/results")
    """Folder for both files."""


def distances(gradients: torch.Tensor, vectors: torch.Tensor, values: torch.Tensor) -> tuple[float, float]:
    """Norms of ``G^T G / N - V^T Lambda V`` without forming it: its nonzero eigenvalues are those of a matrix of N + K rows.

    Args:
        gradients: ``[N, n]`` per-sample gradients G of one operation, float64.
        vectors: ``[K, n]`` V, as they are kept, which need not be orthonormal.
        values: ``[K]`` eigenvalues.

    Returns:
        Frobenius and spectral norm.
    """
    rows = torch.cat([gradients / len(gradients) ** 0.5, vectors])
    signs = torch.cat([torch.ones(len(gradients), dtype=rows.dtype), -values])
    eigenvalues = torch.linalg.eigvals((rows @ rows.T) * signs).real
    return float(eigenvalues.square().sum().sqrt()), float(eigenvalues.abs().max())


def measure(m: Measurement) -> list[dict[str, Any]]:
    """Every estimator at every rank.

    Args:
        m: the settings.

    Returns:
        Rows with the kept share of the trace, and actual and bounding norms over all operations.
    """
    network = load_tracker(TrainConfig().tracker.pretrained, streams=1)
    rows: list[dict[str, Any]] = []
    blocks: dict[str, torch.Tensor] = {}
    for estimator in ESTIMATORS:
        config = TrainConfig(srft=SRFTConfig(estimator=estimator, fisher_samples=m.samples, rank=max(m.ranks)))
        prior = source_prior(config, m.cache, rank=max(m.ranks))
        if not blocks:
            groups = [p.group for p in prior.groups.values()]
            pairs = SourcePairs(network, source_training(config.data, SOURCE_SEQUENCES, m.cache), config, Worker())
            loss = lambda net, sample: tracking_loss(net(sample.template, sample.search), sample.boxes)["loss"]
            kept: dict[str, list[torch.Tensor]] = {g.name: [] for g in groups}
            network.eval()
            for found in sample_gradients(network, loss, pairs, groups):
                for g in groups:
                    kept[g.name].append(found[g.parameter][g.start : g.stop].clone())
            blocks = {name: torch.stack(parts).double() for name, parts in kept.items()}
        for rank in m.ranks:
            cut = prior.truncated(rank)
            bound, actual, spectral = cut.error_bound(), 0.0, 0.0
            for name, p in cut.groups.items():
                vectors = torch.stack([p.expand(one) for one in torch.eye(len(p.eigenvalues))]) if len(p.eigenvalues) else None
                if vectors is None:
                    vectors = torch.zeros(0, blocks[name].shape[1])
                frobenius, top = distances(blocks[name], vectors.double(), p.eigenvalues.double())
                actual, spectral = actual + frobenius**2, max(spectral, top)
            trace = sum(p.trace for p in cut.groups.values())
            share = sum(float(p.eigenvalues.sum()) for p in cut.groups.values()) / trace
            norm = sum(distances(b, b[:0], b.new_zeros(0))[0] ** 2 for b in blocks.values()) ** 0.5
            line = {"estimator": estimator, "K": rank, "trace_kept": share}
            line |= {"frobenius": actual**0.5 / norm, "frobenius_bound": bound.frobenius / norm}
            rows.append(line | {"spectral": spectral / norm, "spectral_bound": bound.spectral / norm})
    return rows


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Kept trace, and actual error beside its bound, against K.

    Args:
        rows: from :func:`measure`.
        path: PNG to write.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.0, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for i, estimator in enumerate(ESTIMATORS):
        mine = [r for r in rows if r["estimator"] == estimator]
        ranks = [r["K"] for r in mine]
        left.plot(ranks, [r["trace_kept"] for r in mine], "o-", color=f"C{i}", label=estimator)
        right.plot(ranks, [r["frobenius"] for r in mine], "o-", color=f"C{i}", label=f"{estimator}, actual")
        right.plot(ranks, [r["frobenius_bound"] for r in mine], "--", color=f"C{i}", label="bound")
    left.set(xscale="log", xlabel="K", ylabel="share of the trace", ylim=(0, 1.02))
    right.set(xscale="log", yscale="log", xlabel="K", ylabel="Frobenius error / norm of the blocks")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    figure.savefig(path, dpi=110, metadata={"Software": None})


def main(m: Measurement) -> None:
    """Measure, write, draw, print.

    Args:
        m: the settings.
    """
    torch.set_num_threads(1)
    rows = measure(m)
    m.results.mkdir(parents=True, exist_ok=True)
    about = {"samples": m.samples, "commit": git_commit(), "environment": environment()}
    write_json(m.results / "proposition.json", {"rows": rows, **about})
    draw(rows, m.results / "proposition.png")
    for r in rows:
        print("  ".join(f"{key} {value:.4g}" if isinstance(value, float) else str(value) for key, value in r.items()))


if __name__ == "__main__":
    main(tyro.cli(Measurement, description=__doc__))
