"""Adaptive studies under Ray Tune: processes that are used again, trials that go on from others, a budget, a resumed session."""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from srft.run_logging import find_origin, logged_trials, open_study, store_uri
from srft.search.record import read_study
from srft.search.space import LogUniform, Space
from srft.search.study import Study
from srft.search.tuning import Progress, StudyFailed, run_study
from srft.search.watch import Watch
from srft.settings import from_flat
from tests.toy_training import score, toy_entry

BASE = from_flat({"optim.epochs": 3, "optim.steps_per_epoch": 1, "optim.batch_size": 2})
SPACE = Space({"srft.kappa": LogUniform(0.5, 2.0)})
POPULATION = Study(name="population", base=BASE, space=SPACE, num_samples=4, search="pbt", max_concurrent=2)
LIMITS: dict[str, Any] = {"second": "source/success_auc", "max_failures": 0, "max_failed": 2, "max_concurrent": 1}
PROPOSED = Study(name="proposed", base=BASE, space=SPACE, num_samples=6, search="tpe", **LIMITS)


@pytest.mark.ray
@pytest.mark.long
def test_adaptive_studies(tmp_path: Path, ray_cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Progress] = []
    store = store_uri(tmp_path)

    def study_of(study: Study, **entry: Any) -> list[Any]:
        out = tmp_path / study.name
        with open_study(out, study.name, {}, digest=study.digest(), uri=store) as log:
            return run_study(study, partial(toy_entry, **entry), directory=out, trial_log=log, on_progress=seen.append)

    # A budget ends the population's first session after some epochs; the second goes on.
    with monkeypatch.context() as patch:
        patch.setattr(Watch, "hours", property(lambda watch: float(watch.epochs(0) + watch.epochs(1) >= 2)))
        first = study_of(dataclasses.replace(POPULATION, max_hours=0.5))
    assert "finished" not in {r.state for r in first}
    assert 0 < sum(len(r.history) for r in first) < 12
    found = study_of(POPULATION)
    assert [r.state for r in found] == ["finished"] * 4
    assert [len(r.history) for r in found] == [3] * 4
    moved = [r for r in found if r.trial.origins]
    assert moved
    assert read_study(tmp_path / "population").generation == 2
    for r in moved:
        _, since = r.trial.origins[-1]
        assert [e["metrics"]["val/success_auc"] for e in r.history][since:] == [score(r.trial.config, e) for e in range(since, 3)]
    assert seen[-1].ended == seen[-1].total == 4
    assert len({e["metrics"]["pid"] for r in found for e in r.history}) <= 4  # two processes at a time, used again

    with pytest.raises(StudyFailed) as caught:  # from the fourth trial on
        study_of(PROPOSED, raise_at=(("-003", "-004"), 0))
    assert "last 2 trials failed, one after the other: " in str(caught.value)
    assert "planned failure in epoch 0" in str(caught.value)
    two = read_study(tmp_path / "proposed").results
    assert [r.state for r in two[3:]] == ["failed"] * 2
    assert all(r.history for r in two[:3])
    assert len({r.trial.point["srft.kappa"] for r in two}) == 5

    # What an entry does after its last epoch fails: it is tried again, though nothing is left to train, and not taken for done.
    (after,) = study_of(Study(name="after", base=BASE, space=SPACE, num_samples=1), fail_after=True)
    assert (after.state, len(after.history)) == ("failed", 3)
    assert "planned failure after the last epoch" in after.error
    (after,) = study_of(Study(name="after", base=BASE, space=SPACE, num_samples=1))
    assert after.state == "finished"

    from mlflow import MlflowClient

    client = MlflowClient(store)
    (experiment,) = client.search_experiments(filter_string="name = 'population'")
    runs = {r.data.tags["srft.trial_id"]: r for r in client.search_runs([experiment.experiment_id]) if "srft.trial_id" in r.data.tags}
    assert len(runs) == 4
    for r in moved:
        run = runs[str(r.trial.index)]
        assert run.info.status == "FINISHED"
        assert f"trial {r.trial.origins[-1][0]} after epoch" in run.data.tags[f"srft.origin.{len(r.trial.origins)}"]
        kappas = [m.value for m in sorted(client.get_metric_history(run.info.run_id, "settings/srft.kappa"), key=lambda m: m.step)]
        assert len(kappas) == 3
        assert math.isclose(kappas[-1], r.trial.point["srft.kappa"])
        again = find_origin(study=str(tmp_path / "population"), trial=r.trial.index).config  # what it has now, not what it began with
        assert again.digest() == r.trial.config.digest() != POPULATION.trials()[r.trial.index].config.digest()
    logged = {t.index: t for t in logged_trials(str(tmp_path / "population"), out=tmp_path, metrics=["val/success_auc"])}
    for r in found:
        own = [e["metrics"]["val/success_auc"] for e in r.own]
        values = [v for v in logged[r.trial.index].history["val/success_auc"] if not math.isnan(v)]
        assert values == pytest.approx(own)
        assert logged[r.trial.index].params["srft.kappa"] == str(r.trial.config.srft.kappa)
