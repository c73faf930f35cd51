"""Runs on a remote MLflow server, which asks for a password, passes artifacts on, and goes away for a while."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from srft.config import ConfigError
from srft.run_logging import open_study
from srft.settings import from_flat
from tests.conftest import free_ports
from tests.mlflow_server import Server

PASSWORD = "not-for-any-log-8271"
pytestmark = pytest.mark.long


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """With passwords, and artifacts that go through it."""
    settings = tmp_path / "auth.ini"
    settings.write_text(
        f"[mlflow]\ndefault_permission = NO_PERMISSIONS\ndatabase_uri = sqlite:///{tmp_path}/auth.db\nadmin_username = admin\n"
        f"admin_password = {PASSWORD}\nauthorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    places = ["--backend-store-uri", f"sqlite:///{tmp_path}/server.db", "--artifacts-destination", str(tmp_path / "artifacts")]
    command = [sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth", *places]
    found = Server(
        command, free_ports(1)[0], {"MLFLOW_AUTH_CONFIG_PATH": str(settings), "MLFLOW_FLASK_SERVER_SECRET_KEY": "key of this test"}
    )
    found.start()
    try:
        yield found
    finally:
        found.stop()


def test_server_with_passwords_that_goes_away_and_comes_back(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "wrong")
    with pytest.raises(ConfigError, match=r"127\.0\.0\.1") as refused, open_study(tmp_path / "no", "x", {}, digest="d", uri=server.uri):
        pass
    assert "wrong" not in str(refused.value)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    out = tmp_path / "study"
    trials = {i: from_flat({"name": f"toy-{i:03d}"}) for i in range(2)}
    picture = tmp_path / "plot.png"
    picture.write_bytes(b"png")
    with open_study(out, "remote", trials, digest="d", uri=server.uri) as log:
        for index in trials:
            log.start_trial(index)
        log.log_epoch(0, 0, {"val/success_auc": 0.1})
        assert log.flush()
        server.stop()
        slowest, epoch, stopped = 0.0, 1, time.monotonic()
        while time.monotonic() < stopped + 20:  # Training goes on at its own pace.
            started = time.monotonic()
            for index in trials:
                log.log_epoch(index, epoch, {"val/success_auc": 0.01 * epoch})
            slowest = max(slowest, time.monotonic() - started)
            epoch += 1
            time.sleep(0.5)
        assert slowest < 0.2
        assert (out / "unsent.jsonl").exists()
        server.start()
        log.log_artifact(picture, index=0)
        for index in trials:
            log.end_trial(index, "FINISHED")
        assert log.flush(60)
        assert not (out / "unsent.jsonl").exists()
        runs = log.client.search_runs([log.experiment_id], filter_string=f"tags.`mlflow.parentRunId` = '{log.run_id}'")
        assert {run.info.status for run in runs} == {"FINISHED"}
        for run in runs:
            steps = [m.step for m in log.client.get_metric_history(run.info.run_id, "val/success_auc")]
            assert steps == list(range(0 if run.info.run_name == "toy-000" else 1, epoch))
            assert PASSWORD not in json.dumps(run.to_dictionary())
        (first,) = [run for run in runs if run.info.run_name == "toy-000"]
        assert first.info.artifact_uri.startswith("mlflow-artifacts:")
        assert [file.path for file in log.client.list_artifacts(first.info.run_id)] == ["plot.png"]
    assert list((tmp_path / "artifacts").rglob("plot.png")) != []
    assert PASSWORD not in caplog.text
    assert not [file for file in out.rglob("*") if file.is_file() and PASSWORD.encode() in file.read_bytes()]
