"""How a study is shown: while it runs, and what came out of it."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Any

from srft.config import TrainConfig, to_flat
from srft.search.compare import plasticity_and_stability
from srft.search.record import TrialResult

if TYPE_CHECKING:
    from srft.evaluation.runner import Evaluation
    from srft.search.tuning import Progress


class Board:
    """Shows the study as it goes: on a terminal one bar per running trial and one for the study, elsewhere one line per epoch."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.terminal = sys.stderr.isatty()
        self.bars: dict[int, Any] = {}
        self.overall: Any = None

    def __enter__(self) -> Board:
        if self.terminal:
            from tqdm import tqdm

            self.overall = tqdm(total=self.total, position=0, bar_format="{n}/{total} |{bar:12}| trials {desc}")
        return self

    def __exit__(self, *exception: object) -> None:
        for bar in [*self.bars.values(), self.overall]:
            if bar is not None:
                bar.close()

    def show(self, progress: Progress) -> None:
        """Take note of an epoch or the end of a trial.

        Args:
            progress: what happened.
        """
        trial, metrics = progress.trial, progress.metrics
        epochs = trial.config.optim.epochs
        names = (("val", "val/success_auc"), ("source", "source/success_auc"), ("loss", "train/loss"))
        figures = "  ".join(f"{short} {metrics[name]:.3f}" for short, name in names if name in metrics)
        eta = "" if math.isnan(progress.eta) else f"eta {clock(progress.eta)}"
        ended = progress.state not in ("running", "pending")
        if not self.terminal:
            state = progress.state if ended else f"epoch {progress.epoch}/{epochs}"
            line = f"{clock(progress.elapsed)}  {trial.name}  {describe(trial.config):<44}  {state:<9}  {figures}  {eta}"
            print(line.rstrip(), flush=True)
            return
        from tqdm import tqdm

        bar = self.bars.get(trial.index)
        if bar is None:
            bar = self.bars[trial.index] = tqdm(total=epochs, bar_format="{n}/{total} |{bar:12}| {desc}")
        bar.n = progress.epoch
        bar.set_description_str(f"{trial.name} {describe(trial.config):<58} {figures}  {progress.state if ended else ''}".rstrip())
        self.overall.n = progress.ended
        self.overall.set_description_str(f"{clock(progress.elapsed)}  {eta}".rstrip())


def row(name: str, evaluation: Evaluation, result: TrialResult | None) -> dict[str, Any]:
    """One line of the leaderboard.

    Args:
        name: of the tracker.
        evaluation: its tests.
        result: the trial it comes from.

    Returns:
        Flat, JSON-able.
    """
    line: dict[str, Any] = {"tracker": name, "settings": describe(result.trial.config) if result else ""}
    if result:
        line |= {"trial": result.trial.name, "val_success_auc": result.score}
    line["tests"] = {
        test: {"success_auc": measures.success_auc, "precision_20": measures.precision_20} for test, measures in evaluation.measures.items()
    }
    return line


def trial_row(result: TrialResult) -> dict[str, Any]:
    """One trial, JSON-able.

    Args:
        result: of the trial.

    Returns:
        Its settings, state and best validation score.
    """
    return {
        "trial": result.trial.name,
        "state": result.state,
        "val_success_auc": None if math.isnan(result.score) else result.score,
        "epochs": len(result.history),
        "seconds": None if math.isnan(result.seconds) else result.seconds,
        "config": to_flat(result.trial.config),
        "error": result.error,
    }


def leaderboard(rows: list[dict[str, Any]], found: list[TrialResult]) -> str:
    """Both tables as Markdown.

    Args:
        rows: tested trackers, see :func:`row`.
        found: all trials.

    Returns:
        Text that reads well on a terminal too.
    """
    show = lambda value: f"{100 * value:.1f}" if isinstance(value, float) and not math.isnan(value) else "-"
    lines = ["Trials, best first (success AUC on validation sequences; source: RGB-only success AUC on source sequences)", ""]
    ranked = sorted(found, key=lambda r: 1.0 if math.isnan(r.score) else -r.score)
    body = [
        [
            r.trial.name,
            describe(r.trial.config),
            *map(show, plasticity_and_stability(r, "val/success_auc")),
            f"{len(r.history)} ({r.state})",
        ]
        for r in ranked
    ]
    lines += table(["trial", "settings", "val", "source", "epochs"], body)
    lines += ["", "Tested once: success AUC / precision at 20 pixels, percent", ""]
    tests = list(rows[0]["tests"]) if rows else []
    pair = lambda figures: f"{show(figures['success_auc'])} / {show(figures['precision_20'])}"
    body = [[r["tracker"], show(r.get("val_success_auc")), *(pair(r["tests"][t]) for t in tests)] for r in rows]
    lines += table(["tracker", "val", *tests], body)
    return "\n".join(lines) + "\n"


def table(head: list[str], body: list[list[str]]) -> list[str]:
    """A Markdown table with aligned columns.

    Args:
        head: column titles.
        body: rows of cells.

    Returns:
        Lines.
    """
    widths = [max(len(line[i]) for line in [head, *body]) for i in range(len(head))]
    join = lambda cells: "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"
    return [join(head), "|" + "|".join("-" * (width + 2) for width in widths) + "|", *map(join, body)]


def describe(config: TrainConfig) -> str:
    """A run's distinguishing settings in a few words.

    Args:
        config: the run.

    Returns:
        Such as ``SRFT K=16 power k=0.5 p=100 b=3 lr=3.0e-04``: strengths of the term (p), of giving back (b) and of damping (d), if any.
    """
    if not config.paradigm.startswith("srft"):
        held = "" if config.baseline.kind == "none" else f" {config.baseline.kind}={config.baseline.strength:.3g}"
        return f"{'FFT' if config.paradigm == 'full' else config.paradigm}{held} lr={config.optim.lr:.1e}"
    s = config.srft
    damping = f" d={s.damping_strength:.2g}" if s.damping_strength else ""
    settings = f"K={s.rank} {s.schedule} k={s.kappa:.2g} p={s.prior_strength:.3g} b={s.give_back:.2g}{damping}"
    return f"{config.paradigm.upper()} {settings} lr={config.optim.lr:.1e}"


def clock(seconds: float) -> str:
    """Minutes and seconds.

    Args:
        seconds: a duration.

    Returns:
        Such as ``3:07``.
    """
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def say(text: str) -> None:
    """Print a line at once.

    Args:
        text: the line.
    """
    print(text, flush=True)
