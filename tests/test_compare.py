"""Trials beside each other: fronts, importances, and the command on a study's directory."""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from srft.cli import main
from srft.config import ConfigError, TrainConfig
from srft.search.compare import importance, numbers, plasticity_and_stability, varied
from srft.search.front import pareto_front
from srft.search.record import TrialResult, best, claim, read_study, record_end, trial_directory
from srft.search.space import srft_space
from srft.search.study import Study, Trial
from srft.training import checkpoint
from srft.training.checkpoint import Progress

VALUES = st.sampled_from([0.0, 0.25, 0.5, 1.0, math.nan])


@given(st.lists(st.tuples(VALUES, VALUES), max_size=8))
def test_the_front_is_what_nothing_beats(points):
    front = pareto_front(np.array(points, float).reshape(-1, 2))
    for i, p in enumerate(points):
        beaten = any(q != p and q[0] >= p[0] and q[1] >= p[1] for q in points)
        assert front[i] == (not any(map(math.isnan, p)) and not beaten)


def result(index, point, *scores, kept=0.5, fixed=False):
    history = tuple(
        {"epoch": i, "step": i, "metrics": {"val/success_auc": s, "source/success_auc": kept + i / 10}} for i, s in enumerate(scores)
    )
    trial = Trial(index=index, name=f"s-{index:03d}", point=point, config=TrainConfig(), fixed=fixed)
    return TrialResult(trial=trial, state="finished", directory=Path(), score=max(scores, default=math.nan), history=history)


def test_stability_is_that_of_the_best_epoch():
    assert plasticity_and_stability(result(0, {}, 0.2, 0.6, 0.4), "val/success_auc") == (0.6, 0.6)
    assert all(map(math.isnan, plasticity_and_stability(result(0, {}), "val/success_auc")))


def test_the_setting_that_matters_is_found():
    rng = np.random.default_rng(0)
    found = [result(99, {"optim.lr": 1.0}, 0.9, fixed=True)]
    for i in range(24):
        point = {
            "srft.rank": int(2 ** rng.integers(1, 6)),
            "optim.lr": float(rng.random()),
            "srft.schedule": str(rng.choice(["cosine", "power"])),
        }
        found.append(result(i, point | {"srft.kappa": 1.0}, point["srft.rank"] / 64 + 0.01 * rng.random()))
    assert varied(found) == ["optim.lr", "srft.rank", "srft.schedule"]
    first, *others = importance(found, "val/success_auc")
    assert first.key == "srft.rank"
    assert first.share > 0.8
    assert first.correlation > 0.9
    assert first.share + sum(one.share for one in others) == pytest.approx(1)
    assert math.isnan(next(one for one in others if one.key == "srft.schedule").correlation)
    assert importance(found[:6], "val/success_auc") == []
    assert importance([result(i, {"srft.rank": i}, 0.5) for i in range(9)], "val/success_auc") == []


def test_ranges_that_share_their_middle_are_told_apart():
    assert numbers([(0.0, 1.0), (0.25, 0.75), (0.0, 1.0)])[1] == ["(0.0, 1.0)", "(0.25, 0.75)"]
    np.testing.assert_array_equal(numbers([(0.0, 0.5), (0.5, 1.0)])[0], [0.25, 0.75])
    np.testing.assert_array_equal(numbers([4, 16, 4])[0], [4, 16, 4])
    assert numbers(["b", "a"])[0].tolist() == [1, 0]


def test_one_drawn_trial_has_all_its_settings():
    one = result(1, {"srft.rank": 4, "optim.lr": 0.1, "seed": 3}, 0.5)
    assert varied([result(0, {"paradigm": "full"}, 0.5, fixed=True), one]) == ["optim.lr", "srft.rank"]
    assert varied([result(0, {"paradigm": "full"}, 0.5, fixed=True)]) == []
    assert varied([one, result(2, {"srft.rank": 8, "optim.lr": 0.1, "seed": 4}, 0.5)]) == ["srft.rank"]


def test_of_two_measures_the_best_compromise_is_chosen():
    found = [result(0, {}, 0.2, 0.6, kept=0.3), result(1, {}, 0.5, kept=0.9), result(2, {}, 0.55, kept=0.1), result(3, {})]
    assert best(found).trial.index == 0
    assert best(found, "val/success_auc", "source/success_auc").trial.index == 1
    front = pareto_front(np.array([plasticity_and_stability(r, "val/success_auc") for r in found]))
    assert front.tolist() == [True, True, False, False]


@pytest.fixture
def study(tmp_path):
    study = Study(name="s", base=TrainConfig(), space=srft_space(), num_samples=9, fixed=({"paradigm": "full"},))
    claim(study, tmp_path, resume=False)
    for trial in study.trials()[:-1]:
        home = trial_directory(tmp_path, trial)
        for epoch in range(2):
            metrics = {"val/success_auc": trial.config.optim.lr * 100 + epoch / 100, "source/success_auc": 0.7 - trial.index / 100}
            progress = Progress(epoch=epoch, step=epoch, metrics=metrics)
            checkpoint.begin(home, progress)
            checkpoint.commit(home, progress, config=trial.config, weights={}, state={})
        record_end(home, "finished", seconds=1.0)
    return tmp_path


def test_the_command_reads_a_directory_alone(study, monkeypatch, capsys):
    record = read_study(study)
    found = record.results
    assert (record.name, record.metric, record.size) == ("s", "val/success_auc", 10)
    assert [r.state for r in found] == ["finished"] * 9 + ["pending"]
    arguments = ["srft", "study", str(study), "--plots", str(study / "plots"), "--json", str(study / "s.json")]
    monkeypatch.setattr("sys.argv", arguments)
    main()
    printed = capsys.readouterr().out
    assert "9 of 10 trials ended" in printed
    assert "optim.lr" in printed
    assert "▁█" in printed
    assert sorted(p.name for p in (study / "plots").iterdir()) == [
        "curves.png",
        "importance.png",
        "parallel.png",
        "pareto.png",
        "slices.png",
    ]
    board = json.loads((study / "s.json").read_text())
    assert board["trials"][0]["pareto"]
    assert board["trials"][-1]["learned"] is None
    assert board["size"] == 10
    assert len(board["trials"][0]["history"]) == len(found[board["trials"][0]["trial"]].history) > 0
    assert board["trials"][-1]["history"] == []
    assert board["importance"][0]["key"] == "optim.lr"
    with pytest.raises(ConfigError, match="no study"):
        read_study(study / "plots")


@pytest.mark.parametrize("error", [FloatingPointError("loss is nan"), OSError("disk full"), ConfigError("key")])
def test_what_a_user_can_put_right_is_one_sentence(study, monkeypatch, error):
    def fail(command):
        raise error

    monkeypatch.setattr("srft.commands.study.run", fail)
    monkeypatch.setattr("sys.argv", ["srft", "study", str(study)])
    with pytest.raises(SystemExit, match=f"error: {error}"):
        main()


def test_a_study_without_an_epoch_has_no_page_to_compare(tmp_path, monkeypatch, capsys):
    claim(Study(name="s", base=TrainConfig(), space=srft_space(), num_samples=2), tmp_path, resume=False)
    (tmp_path / "mlflow.json").write_text(json.dumps({"store": "sqlite:///gone.db", "experiment_id": "1", "run_id": "0"}))
    monkeypatch.setattr("sys.argv", ["srft", "study", str(tmp_path)])
    main()
    assert "compare " not in capsys.readouterr().out


@pytest.mark.parametrize(("store", "why"), [("sqlite:///{}/mlflow.db", "no such database"), ("http://127.0.0.1:9", "127.0.0.1:9")])
def test_a_study_whose_store_is_away_is_shown_without_its_page(study, monkeypatch, capsys, store, why):
    store = store.format(study)
    (study / "mlflow.json").write_text(json.dumps({"store": store, "experiment_id": "1", "run_id": "0"}))
    monkeypatch.setattr("sys.argv", ["srft", "study", str(study), "--json", str(study / "s.json")])
    main()
    printed = capsys.readouterr().out.splitlines()
    assert "9 of 10 trials ended" in printed[0]
    assert printed[-1].startswith(f"compare      MLflow store {store} is away: ")
    assert why in printed[-1]
    assert len(json.loads((study / "s.json").read_text())["trials"]) == 10
    assert not list(study.glob("mlflow.db*"))  # Looking makes no database.


def test_three_hundred_trials_are_compared_in_seconds(study, tmp_path):
    """Processor time, since others may be at work; tests/benchmarks/search_cost.py measures the clock, with MLflow runs."""
    large = Study(name="l", base=TrainConfig(), space=srft_space(), num_samples=300)
    out = tmp_path / "large"
    claim(large, out, resume=False)
    (template,) = (tmp_path / "trials").glob("001-*")
    for trial in large.trials():
        home = trial_directory(out, trial)
        shutil.copytree(template, home)
        meta = home / "epoch_0001" / checkpoint.META
        about = json.loads(meta.read_text())
        for entry in about["history"]:
            entry["metrics"] |= {"val/success_auc": trial.config.srft.kappa / 4, "source/success_auc": 1 / (1 + trial.index % 7)}
        meta.write_text(json.dumps(about))
    runs = {str(i): f"{i:032x}" for i in range(300)}
    (out / "mlflow.json").write_text(json.dumps({"store": "sqlite:///gone.db", "experiment_id": "1", "run_id": "0", "runs": runs}))
    code = "import sys, resource; sys.argv = ['srft', 'study', sys.argv[1]]; from srft.cli import main; main(); "
    code += "print(sum(resource.getrusage(resource.RUSAGE_SELF)[:2]), 'torch' in sys.modules, 'mlflow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, str(out)], capture_output=True, text=True, timeout=120, check=True)
    assert "300 of 300 trials ended" in done.stdout
    assert "srft.kappa" in done.stdout.split("importance for")[1].split("\n")[1]
    assert f"compare-runs?runs=%5B%22{runs['0'][:-4]}" in done.stdout
    seconds, torch, mlflow = done.stdout.split("\n")[-2].split()
    assert (torch, mlflow) == ("False", "False")
    assert float(seconds) < 5
