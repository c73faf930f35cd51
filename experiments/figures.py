"""The method's pictures: its schedules and, from two finished runs on the same data, what it measures. The same runs, the same pictures.

    uv run experiments/figures.py                                              # docs/pictures/schedules.png

    uv run srft train --out outputs/full --set paradigm=full data.pool=64 optim.lr=6e-4
    uv run srft train --out outputs/srft --set paradigm=srft data.pool=64 optim.lr=6e-4
    uv run experiments/figures.py --full outputs/full --srft outputs/srft      # minutes; experiments/results/figure_*.png

* ``figure_prior.png``: how sensitive the pre-trained tracker is to each operation of each block.
* ``figure_transfer.png``: what the new modality pulls at, the same way, and how concentrated that is over the steps.
* ``figure_surface.png``: loss on target and on source pairs over the plane through the pre-trained weights and both tuned ones.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import torch
import tyro

from paradigms_measures import looks, rendered
from srft.cli import one_sentence
from srft.config import Schedule, TrainConfig
from srft.data.pairs import RawBatch, normalized
from srft.data.synthetic import Split
from srft.evaluation.plots import save_figure
from srft.method.groups import groups_of
from srft.method.histogram import Histogram
from srft.method.schedule import AdaptiveWeight, prior_weight
from srft.method.sparsity import MergedStatistics, Sketch
from srft.model.losses import tracking_loss
from srft.model.pretrained import load_tracker
from srft.model.tracker import MultiModalTracker
from srft.settings import recorded
from srft.training import checkpoint
from srft.training.prior import source_prior
from srft.training.state import read_tensors

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OPERATIONS = {
    "attn.qkv.weight:q": "query",
    "attn.qkv.weight:k": "key",
    "attn.qkv.weight:v": "value",
    "attn.proj.weight": "attention out",
    "mlp.fc1.weight": "MLP in",
    "mlp.fc2.weight": "MLP out",
    "norm1.weight": "norm 1",
    "norm2.weight": "norm 2",
}
KAPPAS = (0.5, 1.0, 2.0, 4.0)
_PLACE = re.compile(r"backbone\.(blocks_rgb|blocks_aux|blocks|fusion)\.(\d+)\.(.*)")


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Draw the method's pictures."""

    out: Path = Path("docs/pictures")
    """Folder for the picture of the schedules."""
    full: Path | None = None
    """Run directory of full fine-tuning."""
    srft: Path | None = None
    """Run directory of SRFT from the same weights on the same data."""
    cache: Path | None = None
    """Folder of rendered sequences and priors; the SRFT run's own when left out."""
    pairs: int = 64
    """Target and source pairs that the loss surface is the mean over."""
    points: int = 9
    """Points of the loss surface along each axis."""
    results: Path = Path("experiments/results")
    """Folder for the pictures of the runs."""


def schedules(path: Path) -> None:
    """Draw the prior's share over a run, for every schedule and several kappa.

    Args:
        path: PNG to write.
    """
    from matplotlib.figure import Figure

    shapes = get_args(Schedule)
    figure = Figure(figsize=(3.0 * len(shapes), 3.2), layout="constrained")
    t = np.linspace(0, 1, 401)
    for axes, schedule in zip(figure.subplots(1, len(shapes), sharey=True), shapes, strict=True):
        for kappa in (1.0,) if schedule in ("constant", "linear") else KAPPAS:
            label = None if schedule in ("constant", "linear") else f"κ = {kappa:g}"
            if schedule == "adaptive":
                steps, weights = settling(kappa)
                axes.step(steps, weights, where="post", label=label)
            else:
                axes.plot(t, prior_weight(schedule, kappa, t), label=label)
        axes.set(title=schedule, xlabel="progress t", xlim=(0, 1), ylim=(-0.02, 1.04))
        axes.grid(alpha=0.3)
        if schedule not in ("constant", "linear"):
            axes.legend(fontsize=8)
    figure.axes[0].set_ylabel("share of the prior w(t)")
    save_figure(figure, path)


def settling(kappa: float, refreshes: int = 24) -> tuple[list[float], list[float]]:
    """What the adaptive schedule does while a run settles: magnitudes whose spread grows ever more slowly.

    Args:
        kappa: of the schedule.
        refreshes: of the statistics, over the run.

    Returns:
        Progress at each refresh, and the weight after it.
    """
    rng, state, weights = np.random.default_rng(0), AdaptiveWeight(), []
    draws = rng.standard_normal(20_000)
    for i in range(refreshes):
        magnitudes = np.exp((2.0 - np.exp(-i / 5)) * draws).astype(np.float32)
        counts = np.bincount(magnitudes.view(np.uint32) >> 19)
        state = state.after(MergedStatistics.of(i, Sketch({"operation": Histogram.of_counts(counts)})), kappa)
        weights.append(state.weight)
    return [i / (refreshes - 1) for i in range(refreshes)], weights


def by_place(values: Mapping[str, float]) -> tuple[list[str], np.ndarray]:
    """Figures of operations as a table.

    Args:
        values: by group name; those of no block are left out.

    Returns:
        Names of the blocks, and ``[operations, blocks]`` with not-a-number where there is none.
    """
    found: dict[tuple[str, int], dict[str, float]] = {}
    for name, value in values.items():
        match = _PLACE.fullmatch(name)
        if match and match[3] in OPERATIONS:
            found.setdefault((match[1].removeprefix("blocks").strip("_"), int(match[2])), {})[match[3]] = value
    table = np.array([[column.get(operation, np.nan) for column in found.values()] for operation in OPERATIONS])
    return [f"{stream} {number}".strip() for stream, number in found], table


def _map(axes: Axes, values: Mapping[str, float], title: str) -> None:
    blocks, table = by_place(values)
    image = axes.imshow(np.log10(table), aspect="auto", cmap="viridis")
    axes.set(title=title, xlabel="block", xticks=range(len(blocks)), yticks=range(len(OPERATIONS)))
    axes.set_xticklabels(blocks, rotation=60, ha="right", fontsize=8)
    axes.set_yticklabels(list(OPERATIONS.values()))
    axes.figure.colorbar(image, ax=axes, label="log10 of the mean")


def prior_sensitivity(config: TrainConfig, cache: Path) -> dict[str, float]:
    """How sensitive the pre-trained RGB tracker is to each operation: mean of the kept part's diagonal over its elements.

    Args:
        config: of a regularized run.
        cache: folder of sequences and priors.

    Returns:
        By group name.
    """
    prior = source_prior(config, cache).truncated(config.srft.rank)
    return {name: float(group.kept_measure().mean()) for name, group in prior.groups.items()}


def transfer_sensitivity(run: Path) -> dict[str, float]:
    """What the new modality pulled at: mean root of the second moment of each operation's gradients at the run's newest checkpoint.

    Args:
        run: its directory.

    Returns:
        By group name.
    """
    saved, config = _newest(run)
    network = load_tracker(config.tracker.pretrained, streams=2)
    parameters = {name: p for name, p in network.named_parameters() if not name.startswith("box_head.") and "pos_embed" not in name}
    tensors = {f"exp_avg_sq.{name}": torch.zeros_like(p) for name, p in parameters.items()}
    read_tensors(saved.tensors, tensors)
    found = {}
    for group in groups_of(parameters):
        squares = tensors[f"exp_avg_sq.{group.parameter}"].reshape(-1)[group.start : group.stop]
        found[group.name] = float(squares.sqrt().mean())
    return found


def sparsity_curves(run: Path) -> tuple[list[int], dict[str, list[float]]]:
    """How concentrated gradients were on few elements (Hoyer's measure, 0 to 1), each kind of operation as a mean over blocks.

    Args:
        run: its directory.

    Returns:
        Optimizer steps of the epochs, and curves by operation.
    """
    history = [record for record in checkpoint.history(run) if any(name.startswith("sparsity/hoyer/") for name in record["metrics"])]
    curves: dict[str, list[float]] = {}
    for operation in OPERATIONS:
        series = [
            [v for name, v in r["metrics"].items() if name.startswith("sparsity/hoyer/") and name.endswith(operation)] for r in history
        ]
        if series and all(series):
            curves[operation] = [float(np.mean(values)) for values in series]
    return [record["step"] for record in history], curves


def draw_sparsity(axes: Axes, run: Path) -> None:
    """Draw the curves of :func:`sparsity_curves`, or say that there are none.

    Args:
        axes: to draw in.
        run: its directory.
    """
    steps, curves = sparsity_curves(run)
    for operation, values in curves.items():
        axes.plot(steps, values, marker="o", ms=3, label=OPERATIONS[operation])
    axes.set(title="sparsity of the gradients", xlabel="step", ylabel="Hoyer's measure")
    axes.grid(alpha=0.3)
    if curves:
        axes.legend(fontsize=7, ncols=2)
    else:
        why = "regularized runs measure them every srft.refresh steps"
        print(f"{run}: no statistics of gradients, so the picture has no sparsity; {why}")


def _newest(run: Path) -> tuple[checkpoint.Checkpoint, TrainConfig]:
    newest = checkpoint.latest(run)
    if newest is None:
        raise ValueError(f"{run}: no checkpoint; train a run there first (uv run srft train --out {run} ...)")
    saved = checkpoint.load(newest)
    return saved, recorded(saved.meta.config, source=str(newest))


@torch.inference_mode()
def surface(
    network: MultiModalTracker, ends: list[dict[str, Any]], chunks: list[RawBatch], points: np.ndarray, *, rgb_only: bool
) -> np.ndarray:
    """Loss over the plane ``theta_0 + a (theta_1 - theta_0) + b (theta_2 - theta_0)``.

    Args:
        network: with the weights theta_0, which it has again afterwards.
        ends: theta_1 and theta_2 by name.
        chunks: pairs that the loss is the mean over.
        points: values of a, and of b.
        rgb_only: leave the auxiliary channels out.

    Returns:
        ``[b, a]`` mean loss.
    """
    network.eval()
    names = [name for name, p in network.named_parameters() if not torch.equal(p, ends[0][name]) or not torch.equal(p, ends[1][name])]
    parameters = dict(network.named_parameters())
    start = {name: parameters[name].clone() for name in names}
    batches = [normalized(raw) for raw in chunks]
    losses = np.zeros((len(points), len(points)))
    for j, b in enumerate(points):
        for i, a in enumerate(points):
            for name in names:
                there = start[name] + a * (ends[0][name] - start[name]) + b * (ends[1][name] - start[name])
                parameters[name].copy_(there)
            for batch in batches:
                channels = 3 if rgb_only else batch.search.shape[1]
                output = network(batch.template[:, :channels], batch.search[:, :channels])
                losses[j, i] += float(tracking_loss(output, batch.boxes)["loss"]) * len(batch.boxes)
    for name in names:
        parameters[name].copy_(start[name])
    return losses / sum(len(batch.boxes) for batch in batches)


def _draw_surfaces(given: Figures, runs: tuple[Path, Path], config: TrainConfig, cache: Path) -> None:
    from matplotlib.figure import Figure

    ends = [_newest(run)[0].weights for run in runs]
    network, data = load_tracker(config.tracker.pretrained, streams=2), config.data
    points, few = np.linspace(-0.5, 1.5, given.points), max(1, given.pairs // 4)
    figure = Figure(figsize=(10.0, 4.4), layout="constrained")
    splits: tuple[Split, ...] = ("target-test", "source-test")
    for axes, split in zip(figure.subplots(1, 2), splits, strict=True):
        chunks = looks(rendered(data, split, few, 0, cache), network.arch, data, 4)
        rgb_only = split == "source-test"
        losses = surface(network, ends, chunks, points, rgb_only=rgb_only)
        drawn = axes.contourf(points, points, losses, 24, cmap="viridis_r")
        figure.colorbar(drawn, ax=axes, label="loss")
        for (a, b), label in (((0, 0), "pre-trained"), ((1, 0), "full"), ((0, 1), "SRFT")):
            axes.plot(a, b, "w*", ms=11, mec="k")
            axes.annotate(label, (a, b), xytext=(5, 5), textcoords="offset points", color="w")
        what = "source, RGB only" if rgb_only else "target"
        axes.set(title=f"{what}: loss on drawn pairs", xlabel="towards full fine-tuning", ylabel="towards SRFT")
    save_figure(figure, given.results / "figure_surface.png")


def of_runs(given: Figures, full: Path, srft: Path) -> None:
    """Draw what two runs measured.

    Args:
        given: the settings.
        full: run directory of full fine-tuning.
        srft: that of SRFT.
    """
    from matplotlib.figure import Figure

    torch.set_num_threads(1)  # The same sums everywhere.
    saved, config = _newest(srft)
    cache = given.cache or srft / "cache"
    given.results.mkdir(parents=True, exist_ok=True)
    figure = Figure(figsize=(6.0, 3.6), layout="constrained")
    _map(figure.subplots(), prior_sensitivity(config, cache), f"prior sensitivity, K = {config.srft.rank}")
    save_figure(figure, given.results / "figure_prior.png")
    figure = Figure(figsize=(13.0, 4.0), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.5, 1))
    _map(left, transfer_sensitivity(srft), f"transfer sensitivity after {saved.meta.step} steps")
    draw_sparsity(right, srft)
    save_figure(figure, given.results / "figure_transfer.png")
    _draw_surfaces(given, (full, srft), config, cache)


def main(given: Figures) -> None:
    """Draw the schedules, and the pictures of two runs if they are given.

    Args:
        given: the settings.

    Raises:
        ValueError: one run is given without the other.
    """
    given.out.mkdir(parents=True, exist_ok=True)
    schedules(given.out / "schedules.png")
    print(given.out / "schedules.png")
    if given.full and given.srft:
        of_runs(given, given.full, given.srft)
        print(given.results / "figure_*.png")
    elif given.full or given.srft:
        raise ValueError(f"--full is {given.full} and --srft is {given.srft}; give both runs, or neither for the schedules alone")


if __name__ == "__main__":
    with one_sentence():
        main(tyro.cli(Figures, description=__doc__))
