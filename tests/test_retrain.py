"""From a finished sweep's directory to a tested, logged and registered tracker."""

import json
from pathlib import Path

import pytest

from retrain import Retrain, main, settings
from srft.config import ConfigError, DataConfig, OptimConfig, TrainConfig, to_flat
from srft.settings import from_flat
from srft.training import checkpoint

BEST = TrainConfig(
    name="rgbe-003",
    paradigm="full",
    data=DataConfig(train_sequences=2, val_sequences=1, test_sequences=1, source_sequences=1, length=8, max_gap=6),
    optim=OptimConfig(batch_size=4, epochs=1, steps_per_epoch=2),
)


@pytest.fixture
def study(tmp_path: Path) -> Path:
    folder = tmp_path / "sweep"
    folder.mkdir()
    other = from_flat({"optim.lr": 0.01}, BEST)
    tests = {name: {"success_auc": 0.25, "precision_20": 0.5} for name in ("synthetic test", "DAVIS cars", "source RGB only")}
    board = {"trackers": [{"tracker": "FFT", "tests": tests}], "trials": [{"config": to_flat(BEST)}, {"config": to_flat(other)}]}
    (folder / "leaderboard.json").write_text(json.dumps(board))
    (folder / "best.json").write_text(json.dumps(to_flat(BEST)))
    return folder


def test_settings_are_the_trials_with_what_is_replaced(study: Path) -> None:
    config = settings(Retrain(study=study, epochs=7, workers=2, strategy="fsdp2", set=("optim.batch_size=8",)))
    assert (config.optim.epochs, config.workers, config.strategy, config.optim.batch_size) == (7, 2, "fsdp2", 8)
    assert config.data == BEST.data
    assert settings(Retrain(study=study, trial=1)).optim.lr == 0.01
    with pytest.raises(ConfigError, match="trials 0 to 1"):
        settings(Retrain(study=study, trial=2))
    with pytest.raises(ConfigError, match="no finished sweep"):
        settings(Retrain(study=study / "none"))


def test_the_winner_is_trained_tested_logged_and_registered(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from mlflow import MlflowClient

    command = Retrain(study=study, epochs=2)
    main(command)
    out = study.with_name("sweep-retrained")
    printed = capsys.readouterr().out
    assert "epoch 2/2" in printed
    assert "| FFT       | 25.0 / 50.0" in printed
    assert "| retrained | " in printed
    result = json.loads((out / "result.json").read_text())
    assert result["tests"].keys() == {"synthetic test", "DAVIS cars", "source RGB only"}
    assert Path(result["checkpoint"]) == checkpoint.best(out)
    client = MlflowClient(f"sqlite:///{study / 'mlflow.db'}")
    version = client.get_model_version_by_alias("srft-rgbe", "champion")
    assert version.run_id is not None
    run = client.get_run(version.run_id)
    assert (run.info.status, run.data.params["optim.epochs"]) == ("FINISHED", "2")
    assert [m.step for m in client.get_metric_history(version.run_id, "val/success_auc")] == [0, 1]
    assert run.data.metrics["test/DAVIS_cars/success_auc"] == pytest.approx(result["tests"]["DAVIS cars"]["success_auc"])
    with pytest.raises(ConfigError, match="--resume"):
        main(command)
