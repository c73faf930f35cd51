"""The proof study: where sensitivity-regularized tuning wins over other ways of tuning, by how much, and at what cost.

Every cell is one run: a method's setting, on one modality, with so many target pairs, under one seed, which draws objects, backgrounds,
motion, the pairs and the batch order. All cells of a session go through Ray Tune, each is an MLflow run, and finished cells are
never repeated, so that a study can be run in parts:

    uv run experiments/paradigms.py --quick                                    # does it work: minutes
    uv run experiments/paradigms.py --sizes 64 192 --seeds 3 --hours 6         # the part that says most, for six hours
    uv run experiments/paradigms.py --modality rgbt --methods fft penalty      # another part, beside what is there
    uv run experiments/paradigms_report.py outputs/paradigms                   # tables and curves of what is there
"""

from __future__ import annotations

import dataclasses
import functools
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import tyro

from leaderboard import Board, say
from paradigms_cells import Cell, cells_of, identity
from paradigms_measures import chunked, pair_success, tests
from srft.config import DataConfig, Modality, OptimConfig, Precision, Preset, SRFTConfig, TrackerConfig, TrainConfig, to_flat
from srft.data.pairs import PairSampler
from srft.files import environment, git_commit, write_json
from srft.model.pretrained import load_tracker
from srft.search.record import claim
from srft.search.space import Space
from srft.search.study import Study
from srft.training import checkpoint
from srft.training.epoch import EpochReport
from srft.training.step import fine_tune, prepare, tuned_tracker
from srft.training.worker import Worker

LENGTH = 16
"""Frames per sequence."""
EPOCHS = 4
"""Validations of every run."""
AnySession = TypeVar("AnySession", bound="Session")


@dataclass(frozen=True, kw_only=True)
class Session:
    """Which cells a session of the study runs, wherever it does."""

    modality: tuple[Modality, ...] = ("rgbe",)
    """Target modalities."""
    sizes: tuple[int, ...] = (64, 192, 768, 3072)
    """Target pairs to tune with."""
    seeds: int = 5
    """Draws of objects, backgrounds, motion, pairs and batch order."""
    methods: tuple[str, ...] = ()
    """Families of methods, in the order in which they are run; all when empty."""
    settings: int = 0
    """The first so many settings of each family; 0: all."""
    steps: int = 160
    """Optimizer steps of every run."""
    batch: int = 8
    """Pairs per step."""
    test_sequences: int = 64
    """Target and source sequences that every run is tested on, none of them among those for validation."""
    test_pairs: int = 2_048
    """Target pairs of them, as many for each sequence; half as many of the source."""
    fisher_samples: int = 256
    """Source pairs that priors are estimated from."""
    preset: Preset = "tiny"
    """Size of the tracker."""
    pretrained: str = "tiny_rgb"
    """Weights of the RGB tracker: shipped, or a file of experiments/pretrain_rgb.py."""
    precision: Precision = "fp32"
    """Of the training steps."""
    rate_scale: float = 1.0
    """Learning rates of all methods, times this: they are those of the preset tiny."""
    out: Path = Path("outputs/paradigms")
    """Output directory, extended by every session."""
    quick: bool = False
    """Two methods, one size, one seed, few steps and tests; in outputs/paradigms_quick unless --out is given."""


@dataclass(frozen=True, kw_only=True)
class Paradigms(Session):
    """One session of the study."""

    hours: float = 0.0
    """No cell starts after so long, and those that run end with their epoch, to be run anew by the next session; 0: no limit."""
    concurrent: int = 2
    """Cells at once."""
    tracking_uri: str | None = None
    """Any MLflow tracking URI; the default is MLFLOW_TRACKING_URI, else a database in --out."""


def base_of(session: Session, modality: Modality) -> TrainConfig:
    """What all cells of a modality have in common.

    Args:
        session: the settings.
        modality: of the target.

    Returns:
        A configuration.

    Raises:
        ValueError: the steps do not make whole epochs.
    """
    if session.steps < 1 or session.steps % EPOCHS:
        raise ValueError(f"--steps is {session.steps}; expected a positive multiple of {EPOCHS}, the validations of a run")
    return TrainConfig(
        name="paradigms",
        tracker=TrackerConfig(preset=session.preset, pretrained=session.pretrained),
        data=DataConfig(modality=modality, val_sequences=8, test_sequences=session.test_sequences, source_sequences=8, length=LENGTH),
        srft=SRFTConfig(fisher_samples=session.fisher_samples, give_back=0.0, give_back_sequences=0, aux_share=1.0),
        optim=OptimConfig(epochs=EPOCHS, steps_per_epoch=session.steps // EPOCHS, batch_size=session.batch, precision=session.precision),
    )


def run_cell(
    config: TrainConfig,
    *,
    cache: Path,
    out: Path,
    pairs: int,
    directory: Path,
    worker: Worker,
    on_epoch: Callable[[EpochReport], None],
    resume: bool,
) -> EpochReport:
    """Train one cell, test it, write it down.

    Args:
        config: the cell.
        cache: folder of sequences and priors.
        out: folder of finished cells.
        pairs: target pairs of the test.
        directory: of its checkpoints.
        worker: this process.
        on_epoch: called after each epoch.
        resume: go on from a checkpoint.

    Returns:
        The last epoch's report.

    Raises:
        ValueError: the run ended without a checkpoint.
    """
    torch.set_num_threads(1)
    started = time.monotonic()
    domain, prior = prepare(config, cache, worker)
    last = fine_tune(config, domain, prior, directory=directory, worker=worker, on_epoch=on_epoch, resume=resume)
    trained = time.monotonic()
    newest = checkpoint.latest(directory)
    if newest is None:
        raise ValueError(f"{directory}: the run of {config.name} left no checkpoint")
    network = tuned_tracker(newest).to(worker.device)
    figures = tests(network, config.data, pairs, cache)
    sampler = PairSampler.of(domain.train, network.arch, config.data, seed=config.seed)
    seen = min(512, pairs)
    figures["train/pair_auc"] = float(pair_success(network, chunked(sampler.pair(0, n) for n in range(seen)), seen)[0])
    write_json(
        out / f"{identity(config)}.json",
        {
            "cell": config.name.split(".", 5)[1:],
            "config": to_flat(config),
            "measures": figures,
            "history": [{"step": r["step"], **_curve(r["metrics"])} for r in checkpoint.history(directory)],
            "train_seconds": trained - started,
            "seconds": time.monotonic() - started,
            "commit": git_commit(),
            "device": torch.cuda.get_device_name(worker.device) if worker.device.type == "cuda" else "CPU",
            "environment": environment(),
        },
    )
    return last


def _curve(metrics: dict[str, float]) -> dict[str, float]:
    kept = ("train/loss", "train/iou", "val/success_auc", "source/success_auc", "srft/prior_weight", "sparsity/hoyer")
    return {name: metrics[name] for name in kept if name in metrics}


def untuned(session: Session, modality: Modality, out: Path, cache: Path) -> None:
    """Test the two streams before tuning, and the RGB tracker that they were made of, once.

    Args:
        session: the settings.
        modality: of the target.
        out: folder of finished cells.
        cache: folder of sequences.
    """
    base = base_of(session, modality)
    for name, streams in (("zero-shot", 2), ("rgb", 1)):
        path = out / f"{name}-{modality}.json"
        if path.exists():
            continue
        network = load_tracker(base.tracker.pretrained, streams=streams).to(Worker().device)
        if streams == 1:  # Shown what it can see.
            base = dataclasses.replace(base, data=dataclasses.replace(base.data, modality="rgb"))
        figures = tests(network, base.data, session.test_pairs, cache)
        write_json(path, {"cell": [modality, "0", "0", name, ""], "config": to_flat(base), "measures": figures, "history": []})


def unfinished(session: AnySession) -> tuple[AnySession, list[Cell]]:
    """What is left to do, which is said.

    Args:
        session: the settings.

    Returns:
        The settings, of a quick session made small, with an absolute output directory, in which a folder of cells is; and its cells
        that are not finished.
    """
    if session.quick:
        changed = {
            "sizes": (64,),
            "seeds": 1,
            "methods": ("fft", "penalty"),
            "settings": 1,
            "steps": 8,
            "test_sequences": 4,
            "test_pairs": 16,
        }
        session = dataclasses.replace(session, **changed, fisher_samples=16)
        session = dataclasses.replace(session, out=Path("outputs/paradigms_quick") if session.out == Session.out else session.out)
    session = dataclasses.replace(session, out=session.out.resolve())
    finished = session.out / "cells"
    finished.mkdir(parents=True, exist_ok=True)
    base = functools.partial(base_of, session)
    cells = cells_of(
        session.modality, session.sizes, session.seeds, session.methods, base, settings=session.settings, rates=session.rate_scale
    )
    missing = [cell for cell in cells if not (finished / f"{identity(cell.config)}.json").exists()]
    say(f"{len(cells)} cells, {len(cells) - len(missing)} of them finished, in {session.out}")
    return session, missing


def batches(found: list[Cell], size: int) -> Iterator[list[Cell]]:
    """Cells in the order in which they are run, a few to a Ray Tune study, so that a session can end between two.

    Args:
        found: the cells.
        size: of a batch.

    Yields:
        Cells.
    """
    for start in range(0, len(found), size):
        yield found[start : start + size]


def main(session: Paradigms) -> None:
    """Run the cells that are missing.

    Args:
        session: the settings.
    """
    session, missing = unfinished(session)
    cells, cache = session.out / "cells", session.out / "cache"
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    started = time.monotonic()
    for modality in session.modality:
        untuned(session, modality, cells, cache)

    from srft.run_logging import open_study
    from srft.search.tuning import run_study

    entry = functools.partial(run_cell, cache=cache, out=cells, pairs=session.test_pairs)
    made: set[str] = set()
    for part in batches(missing, 24):
        if session.hours and time.monotonic() - started > 3600 * session.hours:
            say(f"{session.hours:g} hours are over; the same command goes on")
            break
        for cell in part:  # One process makes what several read.
            _prepare(cell.config, cache, made)
        base = part[0].config
        points = tuple({key: value for key, value in to_flat(cell.config).items() if key != "name"} for cell in part)
        study = Study(
            name="paradigms",
            base=dataclasses.replace(base, name="paradigms"),
            space=Space({}),
            num_samples=0,
            fixed=points,
            early_stopping=False,
            max_concurrent=min(session.concurrent, len(part)),
            max_hours=max(1e-3, session.hours - (time.monotonic() - started) / 3600) if session.hours else 0.0,
        )
        home = session.out / "sessions" / f"{time.time_ns():x}"
        claim(study, home, resume=False)
        named = {i: cell.config for i, cell in enumerate(part)}
        with (
            open_study(home, study.name, named, digest=study.digest(), uri=session.tracking_uri, params=to_flat(study.base)) as log,
            Board(study.size) as board,
        ):
            run_study(study, functools.partial(_named, named=named, entry=entry), directory=home, trial_log=log, on_progress=board.show)
            for i, cell in enumerate(part):
                log.set_tags({"method": cell.method, "setting": cell.setting, "pairs": str(cell.size)}, index=i)


def _named(config: TrainConfig, *, named: dict[int, TrainConfig], entry: Callable[..., EpochReport], **arguments: Any) -> EpochReport:
    # Trials are numbered; cells have names that say what they are.
    return entry(named[int(config.name.rsplit("-", 1)[1])], **arguments)


def _prepare(config: TrainConfig, cache: Path, made: set[str]) -> None:
    data, kind = config.data, f"{config.srft.estimator} {config.srft.fisher} {config.srft.diagonal} {config.tracker.freeze_head}"
    what = f"{data.modality} {data.train_world} {data.train_sequences} {config.baseline.kind == 'ewc'} {config.paradigm} {kind}"
    if what not in made:
        made.add(what)
        prepare(config, cache)


if __name__ == "__main__":
    main(tyro.cli(Paradigms, description=__doc__))
