"""From a logged trial to a tested, logged and registered tracker."""

import json
from pathlib import Path

import numpy as np
import pytest

from srft.commands.retrain import Retrain, run, settings
from srft.config import BEFORE, ConfigError, DataConfig, OptimConfig, TrainConfig, to_flat
from srft.run_logging import config_of, find_origin, logged_trials, open_study
from srft.settings import from_flat
from srft.training import checkpoint

BEST = TrainConfig(
    name="rgbe-003",
    paradigm="full",
    data=DataConfig(train_sequences=2, val_sequences=1, test_sequences=1, source_sequences=1, length=8, max_gap=6),
    optim=OptimConfig(batch_size=4, epochs=1, steps_per_epoch=2, lr=2e-4),
)
OTHER = from_flat({"optim.lr": 0.01, "name": "rgbe-004"}, BEST)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweep") / "sweep"
    with open_study(folder, "rgbe-sweep", {0: BEST, 1: OTHER}, digest="d", params={"num_samples": 2}) as log:
        for index, scores in enumerate(((0.3, 0.9), (0.4, 0.5))):
            log.start_trial(index)
            for epoch, score in enumerate(scores):
                log.log_epoch(index, epoch, {"val/success_auc": score})
            log.end_trial(index, "FINISHED")
    return folder


def test_settings_come_back_from_text_and_grow_with_the_workers() -> None:
    strange = from_flat(
        {"data.benchmark": "lasher", "data.root": "/d", "srft.damping_range": [0.5, 0.75], "srft.diagonal": True, "paradigm": "srft-lora"},
        BEST,
    )
    for config in (TrainConfig(), BEST, strange):
        assert config_of({key: str(value) for key, value in to_flat(config).items()} | {"num_samples": "3"}, source="run x") == config
    older = {key: str(value) for key, value in to_flat(TrainConfig()).items() if key not in BEFORE}
    found = config_of(older, source="run x").srft  # as that run was trained, not as one is by default now
    assert (found.give_back, found.give_back_sequences, found.aux_share) == (0.0, 0, 1.0)
    with pytest.raises(ConfigError, match="run x"):
        config_of({"num_samples": "3"}, source="run x")
    config = settings(Retrain(epochs=7, workers=2, strategy="fsdp2", set=("optim.grad_clip=2",)), BEST)
    assert (config.optim.epochs, config.workers, config.strategy, config.optim.grad_clip) == (7, 2, "fsdp2", 2.0)
    assert (config.optim.batch_size, config.optim.lr_batch, config.optim.lr) == (8, 4, 2e-4)  # the rate is doubled when it trains
    assert config.data == BEST.data
    parts = from_flat({"optim.accumulate": 2}, BEST)
    assert settings(Retrain(workers=3, batch_size=9, set=("optim.accumulate=1",)), parts).optim.batch_size == 9
    again = settings(Retrain(workers=4, batch_size=16), config)
    assert (again.optim.batch_size, again.optim.lr_batch, again.optim.epochs, again.name) == (16, 4, 21, config.name)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (Retrain(epochs=0), "optim.epochs is 0; expected at least 1"),
        (Retrain(epochs=-2), "optim.epochs is -2; expected at least 1"),
        (Retrain(batch_size=0), "optim.batch_size is 0; expected at least 1"),
        (Retrain(workers=0), "workers is 0; expected at least 1"),
    ],
)
def test_no_epochs_are_not_three_times_as_many(command: Retrain, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^--epochs, --batch-size, --workers, .*: {message}"):
        settings(command, BEST)


def test_what_is_asked_for_must_be_there(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_origin(study=str(study), trial=1).config == OTHER
    with pytest.raises(ConfigError, match=r"logged trials \[0, 1\]"):
        find_origin(study=str(study), trial=2)
    with pytest.raises(ConfigError, match="one of --study, --run and --model"):
        find_origin(study=str(study), run="x")
    with pytest.raises(ConfigError, match="no logged study"):
        find_origin(study=str(tmp_path))
    for benchmark, why in (("vizevent=/", "no benchmark 'vizevent'"), ("visevent=/nowhere", "no folder /nowhere"), ("own=", "name=folder")):
        with pytest.raises(ValueError, match=why):  # Before it trains.
            run(Retrain(study=str(study), benchmark=(benchmark,), out=tmp_path))
    with pytest.raises(ConfigError, match="no such database"):
        logged_trials(str(tmp_path / "moved"), out=tmp_path)
    store = f"sqlite:///{study / 'mlflow.db'}"
    with pytest.raises(ConfigError, match="not-a-run"):
        find_origin(run="not-a-run", uri=store)
    for model, word in (("srft-rgbe", "expected models:/"), ("models:/none@champion", "none")):
        with pytest.raises(ConfigError, match=word):
            find_origin(model=model, uri=store)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(ConfigError, match=r"no such database; .*--tracking-uri sqlite:////…/mlflow\.db of the study's directory"):
        find_origin(model="models:/srft-rgbe@champion", out=tmp_path)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ConfigError, match="is a study's"):
        find_origin(run=json.loads((study / "mlflow.json").read_text())["run_id"], uri=store)


def test_the_winner_is_trained_tested_logged_and_registered(
    study: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow
    from mlflow import MlflowClient

    command = Retrain(study=str(study), epochs=2)
    run(command)
    out = study.with_name("sweep-retrained")
    printed = capsys.readouterr().out
    assert "epoch 2/2" in printed
    result = json.loads((out / "result.json").read_text())
    assert result["tests"].keys() == {"synthetic test", "DAVIS cars", "source RGB only"}
    folder = Path(result["checkpoint"])
    assert folder == checkpoint.best(out)
    store = f"sqlite:///{study / 'mlflow.db'}"
    client = MlflowClient(store, registry_uri=store)
    version = client.get_model_version_by_alias("srft-rgbe", "champion")
    assert version.run_id is not None
    logged = client.get_run(version.run_id)
    assert (logged.info.status, logged.data.params["optim.epochs"]) == ("FINISHED", "2")
    origin = find_origin(study=str(study))
    assert (origin.config, logged.data.tags["srft.origin"]) == (BEST, origin.run_id)
    assert [m.step for m in client.get_metric_history(version.run_id, "val/success_auc")] == [0, 1]
    assert logged.data.metrics["test/DAVIS_cars/success_auc"] == pytest.approx(result["tests"]["DAVIS cars"]["success_auc"])
    assert find_origin(model="models:/srft-rgbe@champion", uri=store).run_id == version.run_id
    assert find_origin(run=version.run_id, uri=store).config.optim.epochs == 2
    link = (out / "mlflow.json").read_bytes()
    for refused, why in ((command, "--resume"), (Retrain(study=str(study), trial=1, epochs=2), "of configuration")):
        with pytest.raises(ConfigError, match=why):
            run(refused)
    (study / "study.json").touch()
    with pytest.raises(ConfigError, match="holds a study"):
        run(Retrain(study=str(study), out=study))
    assert (out / "mlflow.json").read_bytes() == link  # What was refused leaves the finished run alone.
    assert {r.info.status for r in client.search_runs([logged.info.experiment_id])} == {"FINISHED"}

    from srft.evaluation.online import OnlineTracker
    from srft.training.step import tuned_tracker

    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    model = mlflow.pyfunc.load_model("models:/srft-rgbe@champion")
    frames = np.random.default_rng(0).integers(0, 256, (3, 90, 120, 6), dtype=np.uint8)
    box = np.array([30.0, 20.0, 24.0, 30.0])
    tracker = OnlineTracker(tuned_tracker(folder))
    tracker.initialize(frames[0], box)
    expected = np.stack([box, *(tracker.track(frame).box for frame in frames[1:])])
    np.testing.assert_array_equal(model.predict({"frames": frames, "box": box}), expected)
