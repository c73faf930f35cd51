from __future__ import annotations

import dataclasses
import json
import math
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from srft.config import ConfigError
from srft.run_logging import open_study, store_uri
from srft.search.record import TrialResult, best, claim, read_study, record_end, trial_directory
from srft.search.space import Choice, LogUniform, Space
from srft.search.study import Study
from srft.search.tuning import Progress, run_study
from srft.search.tuning import _tune_result as tune_result
from srft.settings import from_flat
from srft.training.distributed import train
from tests.toy_training import score, toy_entry

BASE = from_flat({"optim.epochs": 4, "optim.steps_per_epoch": 2, "optim.batch_size": 4})
SPACE = Space({"srft.kappa": LogUniform(0.5, 2.0)})
STUDY = Study(name="toy", base=BASE, space=SPACE, num_samples=5, fixed=({"paradigm": "full", "srft.kappa": 4.0},), max_concurrent=2)


def test_trials_are_the_same_list_every_time() -> None:
    first, second = STUDY.trials(), STUDY.trials()
    assert first == second
    assert len({trial.config.digest() for trial in first}) == 6
    assert [trial.fixed for trial in first] == [True, False, False, False, False, False]
    assert first[0].config.paradigm == "full"
    assert [trial.name for trial in first][:2] == ["toy-000", "toy-001"]
    more = Study(name="toy", base=BASE, space=SPACE, num_samples=7, fixed=STUDY.fixed)
    assert more.trials()[:6] == first
    assert Study(name="toy", base=BASE, space=SPACE, num_samples=5, seed=1).trials()[0].point != first[1].point
    narrow = Study(name="toy", base=BASE, space=Space({"srft.rank": Choice((4, 8))}), num_samples=4)
    assert {trial.config.srft.rank for trial in narrow.trials()[:2]} == {4, 8}  # no repetition while there are other points


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"num_samples": -1}, "num_samples is -1"),
        ({"num_samples": 0, "fixed": ()}, "no trials"),
        ({"reduction": 1}, "reduction is 1"),
        ({"name": "a/b"}, "without '/'"),
        ({"space": Space({"srft.kapa": Choice((1,))})}, "unknown key srft.kapa"),
    ],
)
def test_bad_study_is_refused(changes: dict[str, Any], part: str) -> None:
    with pytest.raises(ConfigError, match="study|search space") as caught:  # noqa: RUF043
        Study(**{"name": "toy", "base": BASE, "space": SPACE, "num_samples": 2, **changes})
    assert part in str(caught.value)


def test_directory_holds_one_study(tmp_path: Path) -> None:
    claim(STUDY, tmp_path / "a", resume=False)
    with pytest.raises(ConfigError, match="--resume"):
        claim(STUDY, tmp_path / "a", resume=False)
    claim(STUDY, tmp_path / "a", resume=True)
    other = Study(name="toy", base=BASE, space=SPACE, num_samples=5, seed=9)
    with pytest.raises(ConfigError, match=f"{STUDY.digest()}.*{other.digest()}"):
        claim(other, tmp_path / "a", resume=True)
    (tmp_path / "b" / "trials").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"no study\.json"):
        claim(STUDY, tmp_path / "b", resume=False)
    wider = dataclasses.replace(STUDY, base=from_flat({"workers": 2}, BASE))
    claim(wider, tmp_path / "a", resume=True)  # As what goes on is to go on.
    trials = [result.trial for result in read_study(tmp_path / "a").results]
    assert [trial.config.workers for trial in trials] == [2] * 6
    assert [trial_directory(tmp_path, a) for a in trials] == [trial_directory(tmp_path, b) for b in STUDY.trials()]
    described = json.loads((tmp_path / "a" / "study.json").read_text())
    assert described["trials"][0]["point"] == {"paradigm": "full", "srft.kappa": 4.0}


def test_both_measures_must_be_reported() -> None:
    study = dataclasses.replace(STUDY, second="source/sucess_auc")
    record = {"epoch": 0, "metrics": {"val/success_auc": 0.5, "source/success_auc": 0.5}}
    with pytest.raises(ConfigError, match=r"'source/sucess_auc'; training reports source/success_auc"):
        tune_result(study, record, replayed=False)
    assert tune_result(STUDY, record, replayed=False)["score"] == 0.5


def test_results_come_from_the_directories(tmp_path: Path) -> None:
    claim(STUDY, tmp_path, resume=False)
    trials = STUDY.trials()
    with pytest.raises(ValueError, match="resume the study"):
        best(read_study(tmp_path).results)
    train(trials[2].config, toy_entry, directory=trial_directory(tmp_path, trials[2]))
    record_end(trial_directory(tmp_path, trials[2]), "finished", seconds=1.5)
    record_end(trial_directory(tmp_path, trials[3]), "failed", seconds=0.5, error="out of memory")
    found = read_study(tmp_path).results
    assert [result.state for result in found] == ["pending", "pending", "finished", "failed", "pending", "pending"]
    assert found[2].score == score(trials[2].config, 3)
    assert found[2].metrics["val/success_auc"] == found[2].score
    assert math.isnan(found[3].score)
    assert found[3].error == "out of memory"
    assert best(found) == found[2]


def drive(out: Path, store: str, resume: bool) -> None:
    """The driver process that the test below kills."""
    claim(STUDY, out, resume=resume)
    trials = {trial.index: trial.config for trial in STUDY.trials()}
    with open_study(out, "driven", trials, digest=STUDY.digest(), uri=store) as trial_log:
        run_study(STUDY, partial(toy_entry, pause=1.5), directory=out, trial_log=trial_log, on_progress=show)


def show(progress: Progress) -> None:
    print(progress.trial.index, progress.state, progress.epoch, flush=True)


def drive_until(out: Path, store: str, resume: bool, stop: Any, number: signal.Signals) -> tuple[list[str], int]:
    code = f"from pathlib import Path; from tests.test_study import drive; drive(Path({str(out)!r}), {store!r}, {resume})"
    with (out.parent / "driver.log").open("ab") as errors:
        process = subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=errors, text=True, cwd=Path(__file__).parent.parent
        )
    lines: list[str] = []
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if line.split()[0].isdigit():
                lines.append(line.strip())
            if stop(lines):
                process.send_signal(number)
                break
        return lines, process.wait(60)
    finally:
        process.kill()


@pytest.mark.ray
@pytest.mark.long
def test_nothing_is_lost_or_repeated_when_the_driver_dies(tmp_path: Path, ray_cluster: Any) -> None:
    from ray.util.state import list_actors

    out, store = tmp_path / "out", store_uri(tmp_path)

    def trial_actors() -> list[Any]:
        return [actor for actor in list_actors(filters=[("state", "!=", "DEAD")]) if "ImplicitFunc" in actor.class_name]

    first, _ = drive_until(out, store, False, lambda seen: any(" finished " in line for line in seen), signal.SIGKILL)
    after_kill = read_study(out).results
    ended = {r.trial.index: r for r in after_kill if r.state in ("finished", "stopped")}
    assert len(ended) >= 1, (first, (tmp_path / "driver.log").read_text()[-3000:])
    stamps = {i: (r.directory / "result.json").stat().st_mtime_ns for i, r in ended.items()}

    second, status = drive_until(out, store, True, lambda seen: len(seen) >= 2, signal.SIGINT)
    assert status != 0
    assert "KeyboardInterrupt" in (tmp_path / "driver.log").read_text()
    deadline = time.monotonic() + 20
    while trial_actors() and time.monotonic() < deadline:
        time.sleep(0.5)
    assert trial_actors() == []
    assert not {int(line.split()[0]) for line in second} & ended.keys()

    interrupted = {r.trial.index: r for r in read_study(out).results}
    trials = {trial.index: trial.config for trial in STUDY.trials()}
    seen: list[Progress] = []
    with open_study(out, "driven", trials, digest=STUDY.digest(), uri=store) as trial_log:
        states = {run.data.tags["srft.trial_id"]: run.info.status for run in runs(trial_log)}
        assert "KILLED" in states.values()
        assert "RUNNING" not in states.values()
        entry = partial(toy_entry, raise_at=("-005", 0))
        found = run_study(STUDY, entry, directory=out, trial_log=trial_log, on_progress=seen.append)
    assert [r.trial.index for r in found] == list(range(6))
    assert {r.state for r in found} <= {"finished", "stopped"}
    assert found[0].state == "finished"  # the fixed point is never stopped
    for index, stamp in stamps.items():  # what had ended was left alone
        assert (found[index].directory / "result.json").stat().st_mtime_ns == stamp
    for result in found:  # every epoch once, with its own score, and none of those before the interruption trained again
        assert [entry["epoch"] for entry in result.history] == list(range(len(result.history)))
        assert [entry["metrics"]["val/success_auc"] for entry in result.history] == [
            score(result.trial.config, e) for e in range(len(result.history))
        ]
        before = interrupted[result.trial.index].history
        assert result.history[: len(before)] == before
    assert any(r.state == "stopped" for r in found)
    assert best(found).state == "finished"
    check_runs(trial_log, found)
    assert seen[-1].ended == seen[-1].total == 6
    assert (found[5].directory / "raised").exists() or interrupted[5].history  # its planned failure was survived
    assert len({r.metrics["pid"] for r in found if r.trial.index not in ended}) <= 5


def runs(trial_log: Any) -> list[Any]:
    return trial_log.client.search_runs([trial_log.experiment_id], filter_string=f"tags.`mlflow.parentRunId` = '{trial_log.run_id}'")


def check_runs(trial_log: Any, found: list[TrialResult]) -> None:
    children = {int(run.data.tags["srft.trial_id"]): run for run in runs(trial_log)}
    assert sorted(children) == list(range(6))
    for result in found:
        run = children[result.trial.index]
        assert run.info.status == "FINISHED"
        assert run.data.tags["srft.end"] == result.state
        logged = sorted(entry.step for entry in trial_log.client.get_metric_history(run.info.run_id, "val/success_auc"))
        assert logged == list(range(len(result.history)))
