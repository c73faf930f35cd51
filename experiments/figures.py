"""Pictures of the documentation, drawn from the code that they show.

uv run experiments/figures.py              # all of them, into docs/pictures
uv run experiments/figures.py --out /tmp   # elsewhere
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import tyro

from srft.config import Schedule
from srft.method.histogram import Histogram
from srft.method.schedule import AdaptiveWeight, prior_weight
from srft.method.sparsity import MergedStatistics, Sketch

KAPPAS = (0.5, 1.0, 2.0, 4.0)


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Draw the pictures of the documentation."""

    out: Path = Path("docs/pictures")
    """Folder to write to."""


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
    figure.savefig(path, dpi=110)


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


def main() -> None:
    """Draw all pictures."""
    arguments = tyro.cli(Figures, description=__doc__)
    arguments.out.mkdir(parents=True, exist_ok=True)
    schedules(arguments.out / "schedules.png")
    print(f"{arguments.out / 'schedules.png'}")


if __name__ == "__main__":
    main()
