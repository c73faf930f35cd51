from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from srft.config import ConfigError
from srft.search.record import claim
from srft.search.space import Space
from srft.search.study import Study
from srft.search.tuning import Progress, run_study
from srft.settings import from_flat
from srft.training import cluster, distributed, home
from tests.toy_training import toy_entry

CONFIG = from_flat(
    {"name": "toy", "optim.epochs": 3, "optim.steps_per_epoch": 20, "optim.batch_size": 8, "optim.lr": 0.01, "srft.refresh": 5}
)


def test_one_worker_trains_here_and_resumes(tmp_path: Path) -> None:
    seen: list[int] = []

    def stop_after_two(report: Any) -> None:
        seen.append(report.epoch)
        if len(seen) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distributed.train(CONFIG, toy_entry, directory=tmp_path / "a", on_epoch=stop_after_two)
    with pytest.raises(ConfigError, match="--resume"):
        distributed.train(CONFIG, toy_entry, directory=tmp_path / "a")
    resumed = distributed.train(CONFIG, toy_entry, directory=tmp_path / "a", on_epoch=lambda report: seen.append(report.epoch), resume=True)
    assert seen == [0, 1, 2]
    straight = distributed.train(CONFIG, toy_entry, directory=tmp_path / "b")
    assert resumed.metrics["weight"] == straight.metrics["weight"]  # bitwise
    with pytest.raises(ConfigError, match="choose another directory"):
        distributed.train(from_flat({"optim.lr": 0.02}, CONFIG), toy_entry, directory=tmp_path / "a", resume=True)


def test_training_ends_early_to_go_on_later(tmp_path: Path) -> None:
    seen: list[int] = []
    for until, last in ((2, 1), (3, 2), (0, 2)):
        report = distributed.train(
            CONFIG, toy_entry, directory=tmp_path / "a", on_epoch=lambda report: seen.append(report.epoch), until=until, resume=True
        )
        assert report.epoch == last
    assert seen == [0, 1, 2]
    assert report.metrics["weight"] == distributed.train(CONFIG, toy_entry, directory=tmp_path / "b").metrics["weight"]


def test_resources_are_checked_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "_available", lambda kind: 4.0 if kind == "CPU" else 0.0)
    monkeypatch.setenv("RAY_ADDRESS", "192.0.2.1:6379")
    monkeypatch.setattr(cluster, "_connected", lambda: False)
    cluster.check_resources(from_flat({"workers": 8}, CONFIG), 1)  # nobody knows before there is a connection
    monkeypatch.delenv("RAY_ADDRESS")
    two = from_flat({"workers": 2}, CONFIG)
    cluster.check_resources(two, 2)
    assert cluster.capacity(2) == 2
    with pytest.raises(ConfigError, match=r"4 CPUs.*need 6.*at most 2 at once"):
        cluster.check_resources(two, 3)
    with pytest.raises(ConfigError, match=r"4 CPUs.*need 8.*at most 4 workers"):
        distributed.train(from_flat({"workers": 8}, CONFIG), toy_entry, directory=tmp_path / "a")
    assert not (tmp_path / "a").exists()


@pytest.mark.ray
@pytest.mark.slow
def test_two_workers_survive_the_death_of_one(tmp_path: Path, ray_cluster: Any) -> None:
    """A trial of two workers: a Ray Train run inside a Tune trial, one worker killed between a step and the checkpoint."""
    from ray.util.state import list_actors, list_placement_groups

    study = Study(name="two", base=from_flat({"workers": 2}, CONFIG), space=Space({}), num_samples=0, fixed=({},), max_failures=0)
    claim(study, tmp_path, resume=False)
    seen: list[Progress] = []
    entry = partial(toy_entry, kill_at=(1, 1))
    (result,) = run_study(study, entry, directory=tmp_path, on_progress=seen.append)
    assert result.error == ""
    assert (result.state, len(result.history)) == ("finished", 3)
    assert (result.directory / "killed").exists()
    assert [(progress.state, progress.epoch) for progress in seen] == [("running", 1), ("running", 2), ("running", 3), ("finished", 3)]
    alone = distributed.train(CONFIG, toy_entry, directory=tmp_path / "alone")
    assert result.metrics["weight"] == pytest.approx(alone.metrics["weight"], rel=1e-5)  # same global batches
    assert result.metrics["refreshed"] == 3  # the last epoch alone was trained after the restart: submitted 4 times, due 3 times
    assert home.config_of(result.directory).workers == 2
    assert not (result.directory / "ray").exists()

    def left() -> list[Any]:
        ours_no_longer = ("_AutoscalingCoordinatorActor",)  # Ray Train's, one per cluster, detached, without resources
        actors = [a for a in list_actors(filters=[("state", "!=", "DEAD")]) if a.class_name not in ours_no_longer]
        groups = [g for g in list_placement_groups() if g.state != "REMOVED"]
        return actors + groups

    deadline = time.monotonic() + 30
    while left() and time.monotonic() < deadline:
        time.sleep(0.5)
    assert left() == []
