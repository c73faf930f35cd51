"""What a new study learns from MLflow runs of earlier ones: the same question only, and the values that were trained with."""

import dataclasses
import math

import pytest

from srft.config import BEFORE, ConfigError, to_flat
from srft.run_logging import LoggedTrial, open_study
from srft.search.draw import propose
from srft.search.earlier import observe, read_earlier
from srft.search.space import Choice, Integer, LogUniform, Space
from srft.search.study import Study
from srft.settings import from_flat

BASE = from_flat({"optim.epochs": 2, "data.max_gap": 2, "srft.damping_range": (0.25, 0.65)})
SPACE = Space(
    {
        "srft.kappa": LogUniform(0.5, 2.0),
        "srft.damping_range": Choice(((0.25, 0.65), (0.0, 0.5))),
        "srft.schedule": Choice(("power", "cosine")),
        "data.max_gap": Integer(1, 4),
    }
)
STUDY = Study(name="new", base=BASE, space=SPACE, num_samples=4, search="tpe", second="source/success_auc")


def logged(index, values, end="finished", curve=(0.1, 0.3), kept=(0.9, 0.8)):
    params = {key: str(value) for key, value in to_flat(from_flat(values, BASE)).items()}
    return LoggedTrial(index=index, params=params, end=end, history={"val/success_auc": curve, "source/success_auc": kept})


def test_only_trials_of_the_same_question_are_learned_from():
    trials = [
        logged(0, {"srft.kappa": 0.731, "srft.damping_range": (0.0, 0.5), "seed": 7, "data.max_gap": 3, "name": "old-000"}),
        logged(1, {"srft.kappa": 1.0, "srft.schedule": "cosine"}, end="stopped", curve=(0.2,)),
        logged(2, {"paradigm": "full"}),
        logged(3, {"srft.kappa": 3.0}),
        logged(4, {"srft.schedule": "exponential", "optim.epochs": 5}),
        logged(5, {}, curve=()),
        logged(6, {}, curve=(math.nan, 0.4, 0.2), kept=(0.9,)),
    ]
    found, differing = observe(STUDY, trials)
    assert [one.state for one in found] == ["finished", "stopped", "finished"]
    assert found[0].point == {"srft.kappa": 0.731, "srft.damping_range": (0.0, 0.5), "srft.schedule": "power", "data.max_gap": 3}
    assert isinstance(found[0].point["data.max_gap"], int)
    assert found[0].values == (0.3, 0.8)
    assert (found[1].values, found[1].curve) == ((), (0.2,))
    assert found[2].values[0] == 0.4
    assert math.isnan(found[2].values[1])
    assert differing == {"paradigm": 1, "srft.kappa": 1, "srft.schedule": 1, "optim.epochs": 1}
    older = {key: text for key, text in trials[0].params.items() if key not in BEFORE}
    found_older, differing = observe(STUDY, [dataclasses.replace(trials[0], params=older)])  # it did not give back, as a run does now
    assert (found_older, differing) == ([], dict.fromkeys(BEFORE, 1))
    point = propose(SPACE, found, seed=0, objectives=2)
    assert from_flat(point, BASE)


def test_studies_are_read_from_their_store(tmp_path):
    old = dataclasses.replace(STUDY, name="old", search="random")
    configs = {trial.index: trial.config for trial in old.trials()}
    with open_study(tmp_path / "old", "old", configs, digest=old.digest()) as log:
        for index in configs:
            log.start_trial(index)
            for epoch in range(2):
                log.log_epoch(index, epoch, {"val/success_auc": index + epoch / 10, "source/success_auc": 0.5})
            log.end_trial(index, "FINISHED", {"srft.end": "finished"})
        run_id = log.run_id
    store = f"sqlite:///{(tmp_path / 'old' / 'mlflow.db').resolve()}"
    found = read_earlier(STUDY, [str(tmp_path / "old")], out=tmp_path / "new")
    assert [one.values[0] for one in found] == [0.1, 1.1, 2.1, 3.1]
    assert [one.point for one in found] == [trial.point for trial in old.trials()]
    assert read_earlier(STUDY, [run_id], out=tmp_path / "new", uri=store) == found
    other = dataclasses.replace(STUDY, base=from_flat({"optim.epochs": 3}, BASE))
    with pytest.raises(ConfigError, match=r"none of its 4 trials.*optim\.epochs \(4\)"):
        read_earlier(other, [run_id], out=tmp_path / "new", uri=store)
    with pytest.raises(ConfigError, match="no logged study"):
        read_earlier(STUDY, [str(tmp_path)], out=tmp_path / "new")
    with pytest.raises(ConfigError, match="unknown"):
        read_earlier(STUDY, ["unknown"], out=tmp_path / "new", uri=store)
