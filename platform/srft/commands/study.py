"""``srft study``."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path

import tyro


@dataclass(frozen=True, kw_only=True)
class Study:
    """Compare the trials of a study: leaderboard, Pareto front, which settings mattered, learning curves; also while it runs.

    srft study outputs/rgbe_sweep

    srft study outputs/rgbe_sweep --plots plots --json study.json

    srft study outputs/rgbe_sweep --log
    """

    study: tyro.conf.Positional[Path]
    """Directory of the study."""
    top: int = 20
    """Trials to list."""
    plots: Path | None = None
    """Folder for plots: pareto, curves, parallel, slices, importance."""
    log: bool = False
    """Draw the plots and store them with the study's MLflow run."""
    json: Path | None = None
    """Write everything here."""
    port: int = 5000
    """Of the MLflow UI whose compare page is printed."""


def run(command: Study) -> None:
    """Print, draw and write.

    Args:
        command: the options.
    """
    import numpy as np

    from srft.files import write_json
    from srft.search.compare import FEWEST, STABILITY, importance, plasticity_and_stability, varied
    from srft.search.front import pareto_front
    from srft.search.record import read_study

    record = read_study(command.study)
    name, metric, found = record.name, record.metric, record.results
    stability = record.second or STABILITY
    points = {r.trial.index: plasticity_and_stability(r, metric, stability) for r in found}
    front = dict(zip(points, pareto_front(np.array(list(points.values()))), strict=True))
    ranked = sorted(found, key=lambda r: math.inf if math.isnan(r.score) else -r.score)
    keys = varied(found)
    importances = importance(found, metric)

    ended = sum(r.state in ("finished", "stopped", "failed") for r in found)
    print(f"study {name}: {ended} of {record.size} trials ended; * is on the Pareto front of {metric} and {stability}\n")
    percent = lambda value: "    -" if math.isnan(value) else f"{100 * value:5.1f}"
    print(f"{'trial':>5}   learned  kept  epochs  state     curve{'':10} settings")
    for r in ranked[: command.top]:
        learned, kept = points[r.trial.index]
        curve = _curve([e["metrics"].get(metric, math.nan) for e in r.history])
        shown = ", ".join(
            f"{key}={_short(r.trial.point[key])}" for key in (keys if not r.trial.fixed else r.trial.point) if key in r.trial.point
        )
        star = "*" if front[r.trial.index] else " "
        print(f"{r.trial.index:>5} {star} {percent(learned):>7} {percent(kept):>6}  {len(r.history):>6}  {r.state:<9} {curve:<14}  {shown}")
        if r.error:
            print(f"{'':8}{r.error}")
    if importances:
        print(f"\nimportance for {metric} among the drawn trials (rank correlation; a random forest's, shuffled)")
        for one in importances:
            sign = "" if math.isnan(one.correlation) else f"  {one.correlation:+.2f}"
            print(f"  {one.key:<24} {100 * one.share:5.1f} %{sign}")
    else:
        print(f"\nimportances need {FEWEST} drawn trials that differ and finished an epoch")
    best = [r.trial.index for r in ranked[: min(command.top, 10)] if not math.isnan(r.score)]
    if best and (command.study / "mlflow.json").exists():
        from srft.config import ConfigError
        from srft.run_logging import compare_address

        try:
            page = compare_address(command.study, best, port=command.port)
        except ConfigError as error:  # What is in the directory is shown all the same.
            page = str(error)
        print(f"\ncompare      {page}")
    if command.plots or command.log:
        from srft.search.charts import draw

        folder = command.plots or command.study / "pictures"
        pictures = draw(found, metric, importances, folder, stability=stability)
        for file in pictures:
            print(f"plot         {file}")
        if command.log and pictures:
            from srft.run_logging import log_pictures

            log_pictures(command.study, pictures)
    if command.json:
        trials = [
            {
                "trial": r.trial.index,
                "fixed": r.trial.fixed,
                "state": r.state,
                "learned": _known(points[r.trial.index][0]),
                "kept": _known(points[r.trial.index][1]),
                "pareto": bool(front[r.trial.index]),
                "settings": r.trial.point,
                "seconds": _known(r.seconds),
                "history": [{**e, "metrics": {name: _known(value) for name, value in e["metrics"].items()}} for e in r.history],
                "error": r.error,
            }
            for r in ranked
        ]
        shares = [{k: _known(v) for k, v in asdict(one).items()} for one in importances]
        about = {"study": name, "size": record.size, "metric": metric, "second": stability}
        write_json(command.json, {**about, "trials": trials, "importance": shares})


def _known(value: object) -> object:
    # JSON has no not-a-number.
    return None if isinstance(value, float) and math.isnan(value) else value


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _curve(values: list[float]) -> str:
    known = [v for v in values if not math.isnan(v)]
    low, high = min(known, default=0.0), max(known, default=1.0)
    bars = "▁▂▃▄▅▆▇█"
    return "".join(" " if math.isnan(v) else bars[round(7 * (v - low) / (high - low))] if high > low else bars[3] for v in values[-14:])
