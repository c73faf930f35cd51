"""Does a search find a better front of target success and retention than settings chosen by hand, for as much training?

Trials of a sweep with two measures are tested like the cells of the proof study (paradigms.py) and set beside its cells of the same
sequences and seed. Both choose their front on validation; what it covers is measured on test:

    uv run experiments/rgbe_sweep.py --config experiments/search_front_base.json --search tpe --objective pareto --num-samples 8 \
        --out outputs/pareto
    uv run experiments/search_front.py outputs/pareto outputs/paradigms      # experiments/results/search_front.json and .png
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import tyro

from leaderboard import describe, say
from paradigms import Paradigms, base_of
from paradigms_record import CELLS, Row, cell_files, read_rows
from srft.cli import one_sentence
from srft.config import DataConfig, TrainConfig, to_flat
from srft.files import environment, git_commit, write_json
from srft.search.front import hypervolume, pareto_front
from srft.search.record import read_study

if TYPE_CHECKING:
    from srft.search.record import TrialResult

CHOSEN_BY, TESTED_BY = ("val/pair_auc", "val_source/pair_auc"), ("test/pair_auc", "source/pair_auc")


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Compare a sweep with the proof study."""

    sweep: Annotated[Path, tyro.conf.Positional]
    """Output directory of a sweep with --objective pareto."""
    study: Annotated[Path, tyro.conf.Positional]
    """Output directory of experiments/paradigms.py, with cells of the sweep's target pairs and seed."""
    by_hand: tuple[str, ...] = ("fft", "penalty", "penalty, given back")
    """Families whose settings are what was chosen by hand."""
    pairs: int = 2_048
    """Target pairs of the test, as the study's."""
    results: Path = Path("experiments/results")
    """Folder for the figures."""


@dataclass(frozen=True, kw_only=True)
class Tracker:
    """A tuned tracker as both sides know it."""

    name: str
    epochs: int
    """Trained."""
    chosen_by: tuple[float, float]
    """Target and source success on validation pairs."""
    tested_by: tuple[float, float]
    """The same on test pairs."""

    @staticmethod
    def of(name: str, epochs: int, measures: dict[str, Any]) -> Tracker:
        """From all measures.

        Args:
            name: of the tracker.
            epochs: trained.
            measures: of paradigms_measures.tests.

        Returns:
            The tracker.
        """
        pair = lambda names: (float(measures[names[0]]), float(measures[names[1]]))
        return Tracker(name=name, epochs=epochs, chosen_by=pair(CHOSEN_BY), tested_by=pair(TESTED_BY))


def searched(found: list[TrialResult], data: DataConfig, cache: Path, pairs: int, folder: Path) -> list[Tracker]:
    """Test the trials of a sweep, each at its best epoch, once.

    Args:
        found: trials.
        data: the study's, which says what is tested on, whatever the sweep itself tests its winner on.
        cache: folder of sequences.
        pairs: target pairs of the test.
        folder: of what is finished.

    Returns:
        The trackers; a trial without a checkpoint is left out.
    """
    from paradigms_measures import tests
    from srft.training import checkpoint
    from srft.training.step import tuned_tracker

    trackers = []
    for result in found:
        best = checkpoint.best(result.directory)
        if best is None:
            continue
        what = [(best / checkpoint.MANIFEST).read_text(), pairs, to_flat(TrainConfig(data=data))]
        path = folder / f"{result.trial.name}-{hashlib.sha256(repr(what).encode()).hexdigest()[:12]}.json"
        if not path.exists():
            write_json(path, tests(tuned_tracker(best), data, pairs, cache))
        trackers.append(Tracker.of(describe(result.trial.config), len(result.history), json.loads(path.read_text())))
        say(f"{result.trial.name}: {trackers[-1].tested_by[0]:.3f} target, {trackers[-1].tested_by[1]:.3f} source")
    return trackers


def by_hand(rows: list[Row], families: tuple[str, ...], modality: str, size: int, seed: int) -> list[Tracker]:
    """The study's cells of the same sequences and seed.

    Args:
        rows: all cells.
        families: that count.
        modality: of the sweep.
        size: target pairs of the sweep.
        seed: of the study that drew the sweep's sequences.

    Returns:
        The trackers.

    Raises:
        ValueError: the study has none.
    """
    mine = [r for r in rows if (r.modality, r.size, r.seed) == (modality, size, seed) and r.method in families]
    if not mine:
        raise ValueError(f"the study has no cell of {modality} with {size} pairs and seed {seed} of {', '.join(families)}")
    return [Tracker.of(f"{r.method} ({r.setting})", len(r.history), r.measures) for r in mine]


def covered(trackers: list[Tracker], corner: tuple[float, float]) -> tuple[list[int], float]:
    """The front that validation chooses, and what it covers on test.

    Args:
        trackers: of one side.
        corner: target and source success from which on area counts.

    Returns:
        Indices of the front, and the area in squared points.
    """
    front = np.flatnonzero(pareto_front(np.array([t.chosen_by for t in trackers]))).tolist()
    return front, 1e4 * hypervolume(np.array([trackers[i].tested_by for i in front]), corner)


def main(given: Comparison) -> None:
    """Test, compare, draw, write.

    Args:
        given: the settings.

    Raises:
        ValueError: the sweep did not train on sequences of the study.
    """
    record = read_study(given.sweep)
    data = record.results[0].trial.config.data
    if data.train_world < 1000 or not data.pool:
        raise ValueError(
            f"{given.sweep}: trained with data.train_world={data.train_world}, data.pool={data.pool}; expected a world and "
            "a pool of the study: --config experiments/search_front_base.json"
        )
    judged = base_of(Paradigms(), data.modality).data
    if (data.world_seed, data.length) != (judged.world_seed, judged.length):
        raise ValueError(
            f"{given.sweep}: sequences of world {data.world_seed} with {data.length} frames; expected the study's, {judged.world_seed} and "
            f"{judged.length}: --config experiments/search_front_base.json"
        )
    rows = read_rows(cell_files(given.study, given.results / CELLS))
    sides = {
        "by hand": by_hand(rows, given.by_hand, data.modality, data.pool, data.train_world - 1000),
        "searched": searched(list(record.results), judged, given.sweep / "cache", given.pairs, given.sweep / "tested"),
    }
    everyone = np.array([t.tested_by for side in sides.values() for t in side])
    corner = (float(everyone[:, 0].min()), float(everyone[:, 1].min()))
    summary: dict[str, Any] = {}
    fronts: dict[str, list[int]] = {}
    for name, side in sides.items():
        front, area = covered(side, corner)
        epochs, fronts[name] = sum(t.epochs for t in side), front
        trackers = [
            {"name": t.name, "epochs": t.epochs, "val": t.chosen_by, "test": t.tested_by, "front": i in front} for i, t in enumerate(side)
        ]
        summary[name] = {"trackers": trackers, "epochs": epochs, "area on test, squared points": area}
        say(f"{name}: {epochs} epochs; {len(front)} of {len(side)} trackers on the front cover {area:.1f} squared points on test")
    written = {"corner": corner, **summary, "commit": git_commit(), "environment": environment()}
    write_json(given.results / "search_front.json", written)
    draw(sides, fronts, given.results / "search_front.png")


def draw(sides: dict[str, list[Tracker]], fronts: dict[str, list[int]], path: Path) -> None:
    """Both sides on test, with the fronts that validation chose.

    Args:
        sides: by name.
        fronts: of each.
        path: PNG to write.
    """
    from matplotlib.figure import Figure

    from srft.evaluation.plots import save_figure

    figure = Figure(figsize=(6.5, 5.0), layout="constrained")
    axes = figure.subplots()
    for i, (name, side) in enumerate(sides.items()):
        points = 100 * np.array([t.tested_by for t in side])
        front = sorted(fronts[name], key=lambda j: points[j, 1])
        axes.scatter(points[:, 1], points[:, 0], color=f"C{i}", alpha=0.4, marker="os"[i])
        axes.plot(points[front, 1], points[front, 0], color=f"C{i}", marker="os"[i], label=f"{name}: front by validation")
    axes.set(xlabel="kept of the source: RGB-only success on pairs, %", ylabel="target success on pairs, %")
    axes.grid(alpha=0.3)
    axes.legend()
    save_figure(figure, path)


if __name__ == "__main__":
    with one_sentence():
        main(tyro.cli(Comparison, description=__doc__))
