from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest

from leaderboard import describe, leaderboard, row, trial_row
from srft.config import ConfigError, SRFTConfig, to_flat
from srft.evaluation.test_sets import test_sets
from srft.search.draw import Observation, propose
from srft.search.record import TrialResult, claim, read_study, record_end, trial_directory
from srft.search.space import srft_space
from srft.settings import from_flat
from srft.training.step import run as train
from sweep import Sweep, make_study, report, test_metrics
from tests.conftest import RayCluster

ROOT = Path(__file__).resolve().parent.parent
metrics_of, sets_of = test_metrics, test_sets
del test_metrics, test_sets  # the script's functions are not tests


def sweep(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "experiments/rgbe_sweep.py", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": "platform", **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_default_study_has_baselines_the_default_and_six_drawn_trials() -> None:
    study = make_study(Sweep())
    trials = study.trials()
    assert [t.config.paradigm for t in trials] == ["full"] * 2 + ["srft"] * 7
    assert [t.fixed for t in trials] == [True] * 3 + [False] * 6
    assert dataclasses.replace(trials[2].config, name=study.base.name) == study.base
    assert study.base.srft == SRFTConfig(refresh=5)
    assert len({t.config.srft.kappa for t in trials[2:]}) == 7
    quick = make_study(Sweep(quick=True))
    assert len(quick.trials()) == 3
    assert quick.base.optim.total_steps < study.base.optim.total_steps / 4


def test_every_modality_has_the_same_study() -> None:
    studies = {modality: make_study(Sweep(), modality) for modality in ("rgbe", "rgbd", "rgbt")}
    settings = {modality: to_flat(study.base) for modality, study in studies.items()}
    for modality, study in studies.items():
        assert study.name == f"{modality}-sweep"
        changed = {key for key, value in settings[modality].items() if value != settings["rgbe"][key]}
        assert changed == (set() if modality == "rgbe" else {"name", "data.modality"})
        assert [t.point for t in study.trials()] == [t.point for t in studies["rgbe"].trials()]
    assert len({study.digest() for study in studies.values()}) == 3


def test_only_events_are_tested_on_a_real_recording(tmp_path: Path) -> None:
    names = {}
    for modality in ("rgbe", "rgbd"):
        base = make_study(Sweep(quick=True), modality).base
        data = dataclasses.replace(base.data, test_sequences=1, source_sequences=1, length=8)
        sets = sets_of(data, tmp_path)
        names[modality] = [s.name for s in sets]
        assert sets[0].sequences[0].frames[0].shape == (120, 160, 6)
        assert sets[-1].rgb_only
    assert names["rgbe"] == ["synthetic test", "DAVIS cars", "source RGB only"]
    assert names["rgbd"] == ["synthetic test", "source RGB only"]


@pytest.mark.parametrize("script", ["rgbd_sweep.py", "rgbt_sweep.py"])
def test_the_other_modalities_have_the_same_command(script: str) -> None:
    done = subprocess.run(
        [sys.executable, f"experiments/{script}", "--help"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": "platform"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert all(option in done.stdout for option in ("--quick", "--num-samples", "--resume", "--tracking-uri"))


def test_the_seed_changes_the_draws_and_the_runs() -> None:
    first, second = make_study(Sweep(seed=1)), make_study(Sweep(seed=2))
    assert first.trials()[3].point != second.trials()[3].point
    assert first.base.seed == 1


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"optim.lrr": 1}, ["optim.lrr", "unknown key", "optim.lr"]),
        ({"optim.batch_size": 0}, ["optim.batch_size", "0", "at least 1"]),
    ],
)
def test_a_wrong_setting_is_one_sentence_and_leaves_nothing(tmp_path: Path, settings: dict[str, Any], words: list[str]) -> None:
    config = tmp_path / "mine.json"
    config.write_text(json.dumps(settings))
    done = sweep("--config", str(config), "--out", str(tmp_path / "out"))
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {config}: ")
    assert done.stderr.count("\n") == 1
    assert all(word in done.stderr for word in words)
    assert not (tmp_path / "out").exists()


def test_a_directory_of_another_study_is_refused_and_left_alone(tmp_path: Path) -> None:
    claim(make_study(Sweep(quick=True, seed=5)), tmp_path / "out", resume=False)
    before = (tmp_path / "out" / "study.json").read_bytes()
    done = sweep("--quick", "--resume", "--out", str(tmp_path / "out"))
    assert done.returncode == 1
    assert str(tmp_path / "out") in done.stderr
    assert "choose another directory (--out)" in done.stderr
    again = sweep("--quick", "--seed", "5", "--out", str(tmp_path / "out"))
    assert "--resume" in again.stderr
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["study.json"]
    assert (tmp_path / "out" / "study.json").read_bytes() == before


def test_workers_that_no_cpu_is_free_for_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    config = tmp_path / "large.json"
    config.write_text(json.dumps({"optim.batch_size": 4096, "srft.fisher_samples": 4096}))
    done = sweep("--workers", "4096", "--config", str(config), "--out", str(tmp_path / "out"), RAY_ADDRESS="")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "4096 worker(s)" in done.stderr
    assert "use at most" in done.stderr
    assert not (tmp_path / "out").exists()


def test_options_decide_the_study() -> None:
    study = make_study(
        Sweep(search="tpe", scheduler="hyperband", objective="pareto", space="wide", own_seeds=True, max_hours=2.0, gpus_per_worker=0.5)
    )
    assert (study.search, study.second, study.brackets, study.early_stopping) == ("tpe", "source/success_auc", 3, True)
    assert (study.own_seeds, study.max_hours, study.gpus_per_worker) == (True, 2.0, 0.5)
    assert "paradigm" in study.space.dimensions
    grid = make_study(Sweep(search="grid", scheduler="none", vary=("srft.rank=4,16", "srft.kappa=0.5,1,2"), quick=True))
    assert (grid.size, grid.early_stopping) == (8, False)
    with pytest.raises(ConfigError, match=r"grid has 972 points.*give 972"):
        make_study(Sweep(search="grid"))
    population = make_study(Sweep(search="pbt", quick=True))
    assert population.num_samples == 4
    assert population.space.dimensions.keys() == srft_space().dimensions.keys() - {"srft.rank", "srft.give_back"}


@pytest.mark.parametrize("space", ["srft", "wide"])
def test_a_search_learns_from_the_default(space: Any) -> None:
    study = make_study(Sweep(search="tpe", space=space))
    point = study.trials()[-1].point
    assert point.keys() == study.space.dimensions.keys()
    shown = [(2e-4, 0.1), (9e-4, 0.9)] * 9
    seen = [Observation.of({**point, "optim.lr": rate}, "finished", [score]) for rate, score in shown]
    proposed = [propose(study.space, seen, seed=seed)["optim.lr"] for seed in range(12)]
    assert sum(rate > 5e-4 for rate in proposed) >= 9  # Draws: about 3 of 12.


def test_a_base_of_ones_own_is_the_first_srft_trial(tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text(json.dumps({"optim.lr": 1e-4, "srft.rank": 5, "paradigm": "srft-lora"}))
    study = make_study(Sweep(config=tmp_path / "mine.json", vary=("srft.kappa=0.5,2",)))
    given = study.trials()[2].config
    assert (given.optim.lr, given.srft.rank, given.srft.kappa, given.paradigm) == (1e-4, 5, 1.0, "srft-lora")


def test_options_that_are_given_win_over_the_file_and_the_file_over_the_others(tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text(json.dumps({"optim.epochs": 7, "seed": 5, "workers": 2}))
    chosen = lambda **options: (lambda base: (base.optim.epochs, base.seed, base.workers))(make_study(Sweep(**options)).base)
    assert chosen() == (4, 0, 1)
    assert chosen(config=tmp_path / "mine.json") == (7, 5, 2)
    assert chosen(config=tmp_path / "mine.json", epochs=3, seed=0, workers=1) == (3, 0, 1)
    assert chosen(quick=True) == (2, 0, 1)
    assert chosen(quick=True, config=tmp_path / "mine.json", epochs=1) == (1, 5, 2)
    with pytest.raises(ConfigError, match=r"--epochs.*optim\.epochs is 0"):
        make_study(Sweep(epochs=0))
    assert make_study(Sweep(quick=True, num_samples=3)).num_samples == 3


@pytest.mark.parametrize("settings", [{"data.modality": "rgbt"}, {"data.benchmark": "lasher", "data.root": "/data"}])
def test_a_file_of_another_modality_is_refused(tmp_path: Path, settings: dict[str, Any]) -> None:
    (tmp_path / "mine.json").write_text(json.dumps(settings))
    with pytest.raises(ConfigError, match=r"mine\.json: data\.modality is 'rgbt'; expected 'rgbe', or use experiments/rgbt_sweep\.py"):
        make_study(Sweep(config=tmp_path / "mine.json"), "rgbe")
    assert make_study(Sweep(config=tmp_path / "mine.json"), "rgbt").base.data.modality == "rgbt"
    (tmp_path / "rgb.json").write_text(json.dumps({"data.modality": "rgb"}))
    with pytest.raises(ConfigError, match=r"rgb\.json: data\.modality is 'rgb'; expected 'rgbe'"):
        make_study(Sweep(config=tmp_path / "rgb.json"), "rgbe")


def test_full_fine_tuning_is_that_whatever_the_base_is(tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text(json.dumps({"paradigm": "full", "baseline.kind": "l2_sp"}))
    study = make_study(Sweep(config=tmp_path / "mine.json", vary=("baseline.strength=1..300:log",)))
    configs = [t.config for t in study.trials()]
    assert [c.baseline.kind for c in configs[:3]] == ["none", "none", "l2_sp"]
    assert [describe(c) for c in configs[:3:2]] == ["FFT lr=3.0e-04", "FFT l2_sp=1 lr=6.0e-04"]


def test_leaderboard_sorts_trials_and_shows_every_test_set(tmp_path: Path) -> None:
    import numpy as np

    from srft.evaluation.metrics import measure
    from srft.evaluation.runner import Evaluation

    trials = make_study(Sweep(quick=True)).trials()
    epoch = lambda n, value, kept: {"epoch": n, "step": 1, "metrics": {"val/success_auc": value, "source/success_auc": kept}}
    history = lambda value: (epoch(0, value, 0.5), epoch(1, value - 0.1, 0.2))
    found = [
        TrialResult(trial=trials[0], state="finished", directory=tmp_path, score=0.4, history=history(0.4)),
        TrialResult(trial=trials[1], state="stopped", directory=tmp_path, score=0.6, history=history(0.6)),
        TrialResult(trial=trials[2], state="failed", directory=tmp_path, score=float("nan"), history=(), error="out of memory"),
    ]
    boxes = np.tile([10.0, 10, 20, 20], (4, 1))
    measures = measure([(boxes, boxes, np.zeros(4, bool))])
    rows = [row("SRFT", Evaluation(measures={"cars": measures, "roads": measures}, trajectories={}), found[1])]
    text = leaderboard(rows, found)
    lines = text.splitlines()
    assert [line.split()[1] for line in lines if line.startswith("| rgbe")] == [t.name for t in (trials[1], trials[0], trials[2])]
    assert "cars" in text
    assert " 60.0 | 50.0 " in text  # both of the epoch that is tested
    assert "95.2 / 100.0" in text  # 20 of 21 thresholds: no overlap exceeds 1
    assert metrics_of(rows, "SRFT")["test/roads/precision_20"] == 1.0
    assert json.loads(json.dumps(trial_row(found[2])))["error"] == "out of memory"
    assert describe(trials[0].config).startswith("FFT lr=3.0e-04")


@pytest.mark.slow
def test_without_a_finished_baseline_the_report_is_of_the_rest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = {"data.train_sequences": 2, "data.val_sequences": 1, "data.test_sequences": 1, "data.source_sequences": 1, "data.length": 8}
    small |= {"data.max_gap": 4, "optim.steps_per_epoch": 2, "optim.batch_size": 4, "srft.fisher_samples": 8}
    (tmp_path / "small.json").write_text(json.dumps(small))
    out = tmp_path / "out"
    study = make_study(Sweep(quick=True, epochs=1, config=tmp_path / "small.json"), "rgbd")
    claim(study, out, resume=False)
    baseline, default, _ = study.trials()
    record_end(trial_directory(out, baseline), "failed", seconds=1.0, error="out of memory")
    train(default.config, cache=out / "cache", directory=trial_directory(out, default))
    record_end(trial_directory(out, default), "finished", seconds=1.0)
    log = MagicMock()
    log.register.return_value = None
    report(study, read_study(out).results, out, log, None)
    board = json.loads((out / "leaderboard.json").read_text())
    assert [r["tracker"] for r in board["trackers"]] == ["RGB tracker", "two streams, untuned", "SRFT"]
    missing = "The baseline is missing, full fine-tuning: none of the 1 trials finished an epoch; errors: out of memory"
    assert missing in capsys.readouterr().out
    assert missing in (out / "leaderboard.md").read_text()
    assert {p.name for p in (out / "pictures").glob("strip_*")} == {"strip_synthetic_test.png", "strip_source_RGB_only.png"}
    assert [call.args for call in log.set_tags.call_args_list] == [({"srft.chosen": "SRFT"},)]


@pytest.mark.ray
@pytest.mark.slow
def test_a_submitted_job_runs_the_sweep_end_to_end(tmp_path: Path, ray_head: RayCluster) -> None:
    """The README's command: a real job on a real cluster, from the files that git knows, with a token."""
    from mlflow import MlflowClient

    out = tmp_path / "out"
    environment = {"PYTHONPATH": "platform", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
    command = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--working-dir", "."]
    command += ["--runtime-env-json", json.dumps({"env_vars": environment}), "--"]
    command += [sys.executable, "experiments/rgbe_sweep.py", "--quick", "--num-samples", "1", "--epochs", "1", "--out", str(out)]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **ray_head.environment}, capture_output=True, text=True, timeout=400, check=False
    )
    transcript = done.stdout + done.stderr
    assert done.returncode == 0, transcript[-4000:]
    assert "succeeded" in transcript

    board = json.loads((out / "leaderboard.json").read_text())
    assert [r["tracker"] for r in board["trackers"]] == ["RGB tracker", "two streams, untuned", "FFT", "SRFT"]
    assert [t["state"] for t in board["trials"]] == ["finished"] * 3
    assert all(0 <= figures["success_auc"] <= 1 for r in board["trackers"] for figures in r["tests"].values())
    assert from_flat(json.loads((out / "best.json").read_text())).paradigm == "srft"

    client = MlflowClient(tracking_uri=f"sqlite:///{out / 'mlflow.db'}")
    (experiment,) = client.search_experiments(filter_string="name = 'rgbe-sweep'")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    children = [run for run in runs.values() if "mlflow.parentRunId" in run.data.tags]
    assert len(children) == 3
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    winner = next(run for run in children if run.data.tags.get("srft.chosen") == "SRFT")
    assert {"srft.rank", "srft.kappa", "srft.schedule", "srft.prior_strength", "optim.lr"} <= set(winner.data.params)
    assert {"val/success_auc", "source/success_auc", "test/DAVIS_cars/success_auc"} <= set(winner.data.metrics)
    assert "pictures" in {file.path for file in client.list_artifacts(winner.info.run_id)}
    assert len(winner.outputs.model_outputs) == 1
    assert client.get_model_version_by_alias("srft-rgbe", "champion").run_id == winner.info.run_id
    drawn = {picture.name for picture in (out / "pictures").glob("*.png")}
    assert {"pareto.png", "curves.png"} < drawn
    assert sum(name.startswith(("success_", "strip_")) for name in drawn) == 6
