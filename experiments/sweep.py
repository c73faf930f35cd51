"""One sweep on the procedural world, for any auxiliary modality: what rgbe_sweep.py, rgbd_sweep.py and rgbt_sweep.py have in common."""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from leaderboard import Board, leaderboard, row, say, trial_row
from srft.cli import one_sentence
from srft.config import ConfigError, DataConfig, Modality, OptimConfig, SRFTConfig, TrainConfig, to_flat
from srft.files import write_json, write_text
from srft.search.record import TrialResult, best, claim, read_study
from srft.search.space import Space, parse_space, srft_space, wide_space
from srft.search.study import CHANGEABLE, Search, Study
from srft.settings import from_flat, load
from srft.training.cluster import check_resources

if TYPE_CHECKING:
    from srft.data.synthetic import Split
    from srft.evaluation.runner import Evaluation
    from srft.run_logging import StudyLog

FFT_RATES = (3e-4, 1e-3)
SRFT_RATE = 6e-4
"""Of SRFT's default settings, as the proof study has them."""
Scheduler = Literal["asha", "hyperband", "none"]
Objective = Literal["target", "pareto"]


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """One sweep."""

    num_samples: int | None = None
    """SRFT trials drawn from the search space, 6 when left out; the full fine-tuning baselines and SRFT's default settings come on top. At
    most so many with --search grid."""
    search: Search = "random"
    """How trials are drawn: independently, evenly (sobol), every combination (grid), from what earlier trials showed (tpe), or
    independently and then, after every epoch, the worst go on from the best with settings near theirs (pbt)."""
    scheduler: Scheduler = "asha"
    """Which trials go on: the better half after 1, 2, 4, ... epochs (asha; by both measures with --objective pareto), the same in three
    groups that are first compared after 1, 2 and 4 epochs (hyperband), or all (none, always so with --search pbt)."""
    objective: Objective = "target"
    """What the best trial is best at: the target domain, or the compromise between that and what was kept of the source domain (pareto)."""
    space: Literal["srft", "wide"] = "srft"
    """K, kappa, schedule, strengths of the term and of giving back, and the rate; or also the damping, the term's form, the paradigm, ...
    With --search pbt those of them that can change while a trial trains."""
    vary: tuple[str, ...] = ()
    """Settings to vary instead: key=a,b,c or key=low..high or key=low..high:log."""
    levels: int = 3
    """Values of a continuous setting in a grid."""
    learn_from: tuple[str, ...] = ()
    """With --search tpe: output directories, or MLflow run ids, of earlier studies to learn from."""
    own_seeds: bool = False
    """Train each trial with a seed of its own, instead of all with the same."""
    max_hours: float = 0.0
    """Budget of all sessions, in hours; trials end with their epoch, and --resume under a larger budget goes on. 0: none."""
    max_gpu_hours: float = 0.0
    """The same in GPU-hours of all trials."""
    max_concurrent: int = 0
    """Trials at once; 0: as many as the cluster has processors for."""
    cpus_per_worker: int = 1
    """Cores of each training process."""
    gpus_per_worker: float = 1.0
    """GPUs of each training process, in a cluster that has some; trials of one worker may share one (0.25: four of them)."""
    max_failures: int = 1
    """How often a failed trial is started again; it goes on from its last checkpoint."""
    max_failed: int = 5
    """So many trials failing one after the other end the study; 0: none do."""
    workers: int | None = None
    """Training processes per trial; 1 trains inside the trial's own process, more are a Ray Train run. When left out those of --config, or
    1."""
    epochs: int | None = None
    """Validations per trial; an epoch is 30 optimizer steps. When left out those of --config, or 4."""
    seed: int | None = None
    """Of the draws, the batch order and the augmentation. When left out 0, but for what --config says of the latter two."""
    out: Path | None = None
    """Output directory; outputs/<script> when left out (inside a Ray job: ~/srft/<script>, since a job's folder is deleted)."""
    resume: bool = False
    """Go on with the study in --out."""
    quick: bool = False
    """1 baseline, the default and 1 drawn trial (4 with --search pbt) of 2 short epochs on fewer sequences, where nothing else is given."""
    config: Path | None = None
    """JSON file of dotted keys ({"optim.batch_size": 32}) that replace the sweep's base settings, but not options that are given."""
    tracking_uri: str | None = None
    """Any MLflow tracking URI; the default is MLFLOW_TRACKING_URI, else a database in --out."""


def make_study(sweep: Sweep, modality: Modality = "rgbe") -> Study:
    """The study of a sweep.

    Args:
        sweep: the settings.
        modality: of the target domain.

    Returns:
        Baselines and SRFT's default settings as fixed points, in this order, then drawn SRFT trials.

    Raises:
        ConfigError: the settings are of another modality, or out of range.
    """
    quick = sweep.quick
    base = TrainConfig(
        name=modality,
        data=DataConfig(
            modality=modality,
            train_sequences=6 if quick else 24,
            val_sequences=4 if quick else 10,
            test_sequences=6 if quick else 24,
            source_sequences=4 if quick else 10,
            length=16 if quick else 32,
        ),
        srft=SRFTConfig(fisher_samples=32 if quick else 256, refresh=5),
        optim=OptimConfig(lr=SRFT_RATE, epochs=2 if quick else 4, steps_per_epoch=10 if quick else 30, batch_size=16),
    )
    if sweep.config is not None:
        base = load(sweep.config, base)
        if (found := base.data.modality) != modality:
            other = "" if found == "rgb" else f", or use experiments/{found}_sweep.py"
            raise ConfigError(f"{sweep.config}: data.modality is {found!r}; expected {modality!r}{other}")
    given = {"optim.epochs": sweep.epochs, "seed": sweep.seed, "workers": sweep.workers}
    base = from_flat({key: value for key, value in given.items() if value is not None}, base, source="--epochs, --seed, --workers")
    num_samples = sweep.num_samples
    if num_samples is None:
        num_samples = 6 if not quick or sweep.search == "grid" else 4 if sweep.search == "pbt" else 1
    space = parse_space(sweep.vary) if sweep.vary else srft_space() if sweep.space == "srft" else wide_space()
    if sweep.search == "pbt" and not sweep.vary:
        space = Space({key: dimension for key, dimension in space.dimensions.items() if key in CHANGEABLE})
    baselines = [{"paradigm": "full", "baseline.kind": "none", "optim.lr": rate} for rate in (FFT_RATES[:1] if quick else FFT_RATES)]
    settings = to_flat(base)
    return Study(
        name=f"{modality}-sweep",
        base=base,
        space=space,
        num_samples=num_samples,
        search=sweep.search,
        levels=sweep.levels,
        second="source/success_auc" if sweep.objective == "pareto" else "",
        early_stopping=sweep.scheduler != "none",
        brackets=3 if sweep.scheduler == "hyperband" else 1,
        own_seeds=sweep.own_seeds,
        max_concurrent=sweep.max_concurrent,
        cpus_per_worker=sweep.cpus_per_worker,
        gpus_per_worker=sweep.gpus_per_worker,
        max_failures=sweep.max_failures,
        max_failed=sweep.max_failed,
        max_hours=sweep.max_hours,
        max_gpu_hours=sweep.max_gpu_hours,
        fixed=(*baselines, {key: settings[key] for key in space.dimensions if key in settings}),
        seed=sweep.seed or 0,
    )


def main(sweep: Sweep, modality: Modality) -> None:
    """Prepare, search, test, report.

    Args:
        sweep: the settings.
        modality: of the target domain.
    """
    study = make_study(sweep, modality)
    script = f"{modality}_sweep"
    in_job = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    out = (sweep.out or (Path.home() / "srft" / script if in_job else Path("outputs") / script)).resolve()
    check_resources(study.base, max(1, study.max_concurrent), cpus_per_worker=study.cpus_per_worker, gpus_per_worker=study.gpus_per_worker)
    if sweep.learn_from:
        from srft.search.earlier import read_earlier

        study = dataclasses.replace(study, known=read_earlier(study, sweep.learn_from, out=out, uri=sweep.tracking_uri))
        say(f"learning from {len(study.known)} earlier trials")
    claim(study, out, resume=sweep.resume)
    trials = [result.trial for result in read_study(out).results]
    say(f"study {study.name} ({study.digest()}): {study.size} trials of {study.base.optim.epochs} epochs in {out}")

    from srft.run_logging import open_study

    params = {**to_flat(study.base), "num_samples": study.num_samples}
    with open_study(
        out, study.name, {t.index: t.config for t in trials}, digest=study.digest(), uri=sweep.tracking_uri, params=params
    ) as study_log:
        prepare(study.base, out / "cache")

        from srft.search.tuning import run_study
        from srft.training.step import run

        with Board(study.size) as board:
            found = run_study(
                study, functools.partial(run, cache=out / "cache"), directory=out, trial_log=study_log, on_progress=board.show
            )
        report(study, found, out, study_log, sweep.tracking_uri)


def prepare(base: TrainConfig, cache: Path) -> None:
    """Render the sequences and estimate the prior, unless the cache has them.

    Args:
        base: the study's base configuration.
        cache: folder of both.
    """
    from tqdm import tqdm

    from srft.data.synthetic import sequences

    data = base.data
    wanted: dict[Split, int] = {
        "target-train": data.train_sequences,
        "target-val": data.val_sequences,
        "target-test": data.test_sequences,
        "source-test": data.source_sequences,
    }
    say(f"rendering {sum(wanted.values())} synthetic sequences")
    with tqdm(total=sum(wanted.values()), desc="render", disable=None, leave=False) as bar:
        for split, count in wanted.items():
            sequences(split, count, seed=data.world_seed, length=data.length, modality=data.modality, cache=cache, on_sequence=bar.update)
    say(f"estimating the prior sensitivity from {base.srft.fisher_samples} source pairs")
    from srft.training.prior import source_prior

    source_prior(base, cache)


def report(study: Study, found: list[TrialResult], out: Path, study_log: StudyLog, uri: str | None) -> None:
    """Test the winner beside the best baseline, if one finished an epoch, and the untuned tracker; print, write and log what came out.

    Args:
        study: the study.
        found: its trials' results.
        out: output directory.
        study_log: its MLflow runs.
        uri: the tracking URI that was asked for.

    Raises:
        ConfigError: a chosen trial has lost its checkpoints.
    """
    from tqdm import tqdm

    from srft.evaluation.plots import picture_strip, success_plot
    from srft.evaluation.runner import evaluate
    from srft.evaluation.test_sets import test_sets
    from srft.model.pretrained import load_tracker
    from srft.run_logging import ui_command
    from srft.search.charts import draw
    from srft.search.compare import STABILITY, importance
    from srft.training import checkpoint
    from srft.training.step import tuned_tracker

    baselines = len(study.fixed) - 1
    chosen: dict[str, TrialResult] = {}
    missing = ""
    try:
        chosen["FFT"] = best([r for r in found if r.trial.index < baselines])
    except ValueError as error:  # A winner is one without a baseline, too.
        missing = f"\nThe baseline is missing, full fine-tuning: {error}\n"
    chosen["SRFT"] = best([r for r in found if r.trial.index >= baselines], study.metric, study.second)
    networks = {
        "RGB tracker": load_tracker(study.base.tracker.pretrained),
        "two streams, untuned": load_tracker(study.base.tracker.pretrained, streams=2),
    }
    folders: dict[str, Path] = {}
    for name, result in chosen.items():
        folder = checkpoint.best(result.directory)
        if folder is None:
            raise ConfigError(f"{result.directory}: no valid checkpoint of {result.trial.name} is left; delete the directory and --resume")
        folders[name], networks[name] = folder, tuned_tracker(folder)

    sets = test_sets(study.base.data, out / "cache")
    say(f"testing {len(networks)} trackers on {', '.join(s.name for s in sets)}")
    evaluations: dict[str, Evaluation] = {}
    with tqdm(total=len(networks) * sum(s.frames for s in sets), desc="test", unit="frame", disable=None, leave=False) as bar:
        for name, network in networks.items():
            evaluations[name] = evaluate(network, sets, on_frames=bar.update)

    rows = [row(name, evaluations[name], chosen.get(name)) for name in networks]
    board = {"study": study.name, "digest": study.digest(), "trackers": rows, "trials": [trial_row(result) for result in found]}
    write_json(out / "leaderboard.json", board)
    write_json(out / "best.json", to_flat(chosen["SRFT"].trial.config))
    text = leaderboard(rows, found) + missing
    write_text(out / "leaderboard.md", text)

    pictures = out / "pictures"
    pictures.mkdir(exist_ok=True)
    for test in sets:
        slug = test.name.replace(" ", "_")
        success_plot({name: e.measures[test.name] for name, e in evaluations.items()}, pictures / f"success_{slug}.png", title=test.name)
        shown = {name: evaluations[name] for name in ("two streams, untuned", *chosen)}
        picked = int(evaluations["SRFT"].measures[test.name].per_sequence.argsort()[len(test.sequences) // 2])
        tracked = {name: e.trajectories[test.name][picked].boxes for name, e in shown.items()}
        picture_strip(test.sequences[picked], tracked, pictures / f"strip_{slug}.png")
    draw(found, study.metric, importance(found, study.metric), pictures, stability=study.second or STABILITY)
    taken = {result.trial.index for result in chosen.values()}
    for index in (r.trial.index for r in found if r.history and r.trial.index not in taken):
        study_log.set_tags({"srft.chosen": ""}, index=index)  # It may have been, before the study went on.
    for name, result in chosen.items():
        index = result.trial.index
        study_log.log_metrics(test_metrics(rows, name), index=index)
        study_log.set_tags({"srft.chosen": name}, index=index)
        study_log.log_checkpoint(folders[name], index=index)
        study_log.log_artifact(pictures, index=index, folder="pictures")
    study_log.log_artifact(pictures, folder="pictures")
    study_log.log_artifact(out / "leaderboard.md")
    study_log.log_artifact(out / "leaderboard.json")
    study_log.log_metrics(test_metrics(rows, "SRFT"))
    winner = chosen["SRFT"]
    version = study_log.register(winner.trial.index, f"srft-{study.base.data.modality}", score=winner.score)

    print(f"\n{text}")
    print(f"pictures     {pictures}")
    if version is not None:
        print(f"registered   {winner.trial.name} as srft-{study.base.data.modality} version {version}")
    print(f"retrain      uv run srft retrain --study {shlex.quote(str(out))}")
    print(f"compare      uv run srft study {shlex.quote(str(out))}")
    print(f"runs         {ui_command(out, uri)}", flush=True)


def test_metrics(rows: list[dict[str, Any]], tracker: str) -> dict[str, float]:
    """A leaderboard row as MLflow metrics.

    Args:
        rows: of the leaderboard.
        tracker: whose row.

    Returns:
        ``test/<set>/<measure>`` to value.
    """
    from srft.evaluation.test_sets import logged_names

    (line,) = (r for r in rows if r["tracker"] == tracker)
    return logged_names(line["tests"])


def command(modality: Modality, description: str | None) -> None:
    """Run a sweep from the command line; what a user can put right is one sentence and exit status 1.

    Args:
        modality: of the target domain.
        description: of the script, for its help.
    """
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    with one_sentence("the same command with --resume goes on"):
        main(tyro.cli(Sweep, description=description), modality)
