from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from srft.config import ConfigError, TrainConfig
from srft.run_logging import StudyLog, log_pictures, open_study, store_uri, ui_command, writing
from srft.settings import from_flat

TRIALS = {i: from_flat({"name": f"toy-{i:03d}", "srft.kappa": 1.0 + i}) for i in range(3)}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> str:
    """One database for the module, since making its tables takes seconds: two processes (four with --long) open it at once."""
    out = tmp_path_factory.mktemp("store")
    code = f"""
import sys
from pathlib import Path
from srft.config import TrainConfig
from srft.run_logging import open_study
out, me = Path({str(out)!r}), sys.argv[1]
with open_study(out / me, "together", {{0: TrainConfig()}}, digest=me, uri=f"sqlite:///{{out}}/mlflow.db") as log:
    log.start_trial(0)
    log.log_epoch(0, 0, {{"val/success_auc": 0.5}})
    log.end_trial(0, "FINISHED")
"""
    count = 4 if pytestconfig.getoption("--long") else 2
    started = [subprocess.Popen([sys.executable, "-c", code, str(i)], stderr=subprocess.PIPE, text=True) for i in range(count)]
    for process in started:
        assert (process.communicate(timeout=120)[1].count("Traceback"), process.returncode) == (0, 0)
    return store_uri(out)


def children(log: StudyLog) -> dict[str, Any]:
    runs = log.client.search_runs([log.experiment_id], filter_string=f"tags.`mlflow.parentRunId` = '{log.run_id}'")
    return {run.info.run_name: run for run in runs}


def steps(log: StudyLog, run: Any, metric: str) -> list[int]:
    return sorted(entry.step for entry in log.client.get_metric_history(run.info.run_id, metric))


def test_trials_are_children_with_flat_params(tmp_path: Path, store: str) -> None:
    with open_study(tmp_path, "children", TRIALS, digest="d", uri=store, params={"num_samples": 3}) as log:
        for index in TRIALS:
            log.start_trial(index)
            for epoch in range(2):
                log.log_epoch(index, epoch, {"val/success_auc": 0.1 * epoch + index, "nan": float("nan")})
            log.log_metrics({"test/success_auc": 0.5}, index=index)
        log.end_trial(0, "FINISHED", {"srft.end": "finished"})
        log.end_trial(1, "FAILED", {"srft.error": "planned"})
    runs = children(log)  # trial 2 did not end
    assert {name: run.info.status for name, run in runs.items()} == {"toy-000": "FINISHED", "toy-001": "FAILED", "toy-002": "KILLED"}
    run = runs["toy-001"]
    assert run.data.params["srft.kappa"] == "2.0"
    assert run.data.params["optim.lr"] == str(TrainConfig().optim.lr)
    assert run.data.metrics["val/success_auc"] == pytest.approx(1.1)
    assert run.data.metrics["test/success_auc"] == 0.5
    assert steps(log, run, "val/success_auc") == [0, 1]
    tags = run.data.tags
    assert (tags["srft.trial_id"], tags["srft.digest"], tags["srft.error"], tags["srft.attempts"]) == (
        "1",
        TRIALS[1].digest(),
        "planned",
        "1",
    )
    parent = log.client.get_run(log.run_id)
    assert (parent.info.status, parent.data.params["num_samples"]) == ("FINISHED", "3")
    assert Path(parent.info.artifact_uri.removeprefix("file://")).is_relative_to(tmp_path)


def test_sigterm_outside_the_trials_ends_the_runs(tmp_path: Path, store: str) -> None:
    """While sequences are rendered, or winners tested."""
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    logs = []

    def study() -> None:
        with open_study(tmp_path, "told", TRIALS, digest="d", uri=store) as log:
            logs.append(log)
            log.start_trial(0)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(30)

    with pytest.raises(KeyboardInterrupt):
        study()
    (log,) = logs
    assert [run.info.status for run in children(log).values()] == ["KILLED"]
    assert log.client.get_run(log.run_id).info.status == "KILLED"
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == handlers


def interrupted(out: Path, name: str, store: str, error: type[BaseException]) -> None:
    with open_study(out, name, TRIALS, digest="d", uri=store) as log:
        log.start_trial(0)
        log.log_epoch(0, 0, {"val/success_auc": 0.1})
        log.log_epoch(0, 1, {"val/success_auc": 0.2})
        LOGS[name] = log
        raise error


LOGS: dict[str, StudyLog] = {}


def test_resume_takes_the_same_runs_and_repeats_nothing(tmp_path: Path, store: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        interrupted(tmp_path, "resume", store, KeyboardInterrupt)
    log = LOGS["resume"]
    before = children(log)
    assert before["toy-000"].info.status == "KILLED"
    assert log.client.get_run(log.run_id).info.status == "KILLED"
    with open_study(tmp_path, "resume", TRIALS, digest="d", uri=store) as log:
        log.start_trial(0)
        for epoch in range(3):
            log.log_epoch(0, epoch, {"val/success_auc": 0.1 * (epoch + 1)})
        assert log.flush()
        assert children(log)["toy-000"].info.status == "RUNNING"
        log.end_trial(0, "FINISHED")
    after = children(log)
    assert list(after) == ["toy-000"]
    assert after["toy-000"].info.run_id == before["toy-000"].info.run_id
    assert after["toy-000"].info.status == "FINISHED"
    assert after["toy-000"].data.tags["srft.attempts"] == "2"
    assert steps(log, after["toy-000"], "val/success_auc") == [0, 1, 2]


def test_exception_marks_failed(tmp_path: Path, store: str) -> None:
    with pytest.raises(RuntimeError):
        interrupted(tmp_path, "failed", store, RuntimeError)
    log = LOGS["failed"]
    assert log.client.get_run(log.run_id).info.status == "FAILED"
    assert children(log)["toy-000"].info.status == "FAILED"


def saved(folder: Path, score: float) -> Path:
    """A checkpoint as the log looks at it."""
    folder.mkdir(parents=True)
    (folder / "weights.safetensors").write_bytes(f"weights {score}".encode())
    facts = {"epoch": 1, "step": 9, "metrics": {"val/success_auc": score}, "history": [], "config": {}, "digest": "", "environment": {}}
    (folder / "meta.json").write_text(json.dumps(facts))
    return folder


def test_checkpoints_are_logged_models_and_the_best_is_champion(tmp_path: Path, store: str) -> None:
    (tmp_path / "plot.png").write_bytes(b"png")
    scores = [0.5, 0.7, 0.6]
    with open_study(tmp_path, "artifacts", TRIALS, digest="d", uri=store) as log:
        log.log_artifact(tmp_path / "plot.png")
        for index, score in enumerate(scores):
            log.start_trial(index)
            for _ in range(2):  # As a resumed study does.
                log.log_checkpoint(saved_once(tmp_path / f"trial{index}" / "epoch_0001", score), index=index)
            log.end_trial(index, "FINISHED")
        versions = [log.register(index, "srft-rgbe", score=score) for index, score in enumerate(scores)]
        assert log.register(1, "srft-rgbe", score=0.7) == versions[1]  # once only
        champion = log.client.get_model_version_by_alias("srft-rgbe", "champion")
        assert str(champion.version) == versions[1]  # the better one, not the last
        run = children(log)["toy-001"]
        assert champion.run_id == run.info.run_id
    assert [file.path for file in log.client.list_artifacts(log.run_id)] == ["plot.png"]
    models = log.client.search_logged_models([log.experiment_id])
    assert (len(models), {str(model.status) for model in models}) == (3, {"READY"})
    (model,) = [model for model in models if model.source_run_id == run.info.run_id]
    assert [(m.key, m.value, m.step) for m in model.metrics or []] == [("model/val/success_auc", 0.7, 1)]
    assert [output.model_id for output in run.outputs.model_outputs] == [model.model_id]
    from mlflow.models import Model

    folder = Path(model.artifact_location.removeprefix("file://"))
    signature = Model.load(str(folder)).signature
    assert signature is not None
    assert signature.inputs.input_names() == ["frames", "box"]
    (weights,) = folder.rglob("weights.safetensors")
    assert weights.read_bytes() == b"weights 0.7"


def saved_once(folder: Path, score: float) -> Path:
    return folder if folder.exists() else saved(folder, score)


def test_data_sets_and_load_of_the_machine(tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "_LOAD_SECONDS", 0.05)
    other = from_flat({"data.benchmark": "lasher", "data.root": "/data/LasHeR"})
    with open_study(tmp_path, "inputs", {0: TRIALS[0], 1: TRIALS[1], 2: other}, digest="d", uri=store) as log:
        for index in range(3):
            log.start_trial(index)
        assert log.flush()
        deadline = time.monotonic() + 20
        while "system/cpu_utilization_percentage" not in log.client.get_run(log.run_id).data.metrics and time.monotonic() < deadline:
            time.sleep(0.05)
    assert log.client.get_run(log.run_id).data.metrics["system/system_memory_usage_megabytes"] > 0
    inputs = {name: run.inputs.dataset_inputs for name, run in children(log).items()}
    contexts = {tag.value: each.dataset for each in inputs["run"] for tag in each.tags}
    assert contexts.keys() == {"training", "validation", "source"}
    assert (contexts["training"].name, contexts["training"].source_type) == ("lasher training", "local")
    assert json.loads(contexts["training"].source) == {"uri": "/data/LasHeR"}
    import mlflow.data

    assert "srft.data.synthetic" in mlflow.data.get_source(inputs["toy-000"][0]).to_json()
    digests = [{each.dataset.digest for each in inputs[name]} for name in ("toy-000", "toy-001", "run")]
    assert digests[0] == digests[1]
    assert len(digests[0] & digests[2]) == 1  # the source domain


def test_store_away_never_blocks_and_everything_arrives_once(tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.exceptions import MlflowException

    with open_study(tmp_path, "away", TRIALS, digest="d", uri=store) as log:
        log.start_trial(0)
        log.log_epoch(0, 0, {"val/success_auc": 0.1})
        assert log.flush()
        write = log.client.log_batch

        def refuse(*_: Any, **__: Any) -> None:
            raise MlflowException("API request to http://nowhere failed: connection refused")

        def lost_answer(*arguments: Any, **named: Any) -> None:
            write(*arguments, **named)
            monkeypatch.setattr(log.client, "log_batch", write)
            raise MlflowException("connection reset")

        monkeypatch.setattr(log.client, "log_batch", refuse)
        started = time.monotonic()
        for epoch in range(1, 6):
            log.log_epoch(0, epoch, {"val/success_auc": 0.1})
        assert time.monotonic() - started < 0.5
        assert not log.flush(0.5)
        assert len((tmp_path / "unsent.jsonl").read_text().splitlines()) == 5
        assert log.register(0, "srft-toy", score=1.0, timeout=0.2) is None  # warns, does not raise
        monkeypatch.setattr(log.client, "log_batch", lost_answer)  # the store takes it, and it is sent again
        assert log.flush(30)
        assert not (tmp_path / "unsent.jsonl").exists()
        log.end_trial(0, "FINISHED")
    assert steps(log, children(log)["toy-000"], "val/success_auc") == [0, 1, 2, 3, 4, 5]


def test_unsent_entries_are_sent_at_the_next_start(tmp_path: Path, store: str) -> None:
    with open_study(tmp_path, "unsent", TRIALS, digest="d", uri=store) as log:
        log.start_trial(0)
        log.log_epoch(0, 0, {"val/success_auc": 0.1})
    lines = [{"do": "epoch", "trial": 0, "epoch": epoch, "metrics": {"val/success_auc": 0.1}, "time": 1} for epoch in (0, 1)]
    (tmp_path / "unsent.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"do": "ep')
    with open_study(tmp_path, "unsent", TRIALS, digest="d", uri=store) as log:
        pass
    assert steps(log, children(log)["toy-000"], "val/success_auc") == [0, 1]
    assert not (tmp_path / "unsent.jsonl").exists()


def test_what_a_slow_store_has_not_taken_at_the_end_is_kept(tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "plots.png").write_bytes(b"a picture")
    go_on = threading.Event()
    with open_study(tmp_path, "slow", TRIALS, digest="d", uri=store) as log:
        log.start_trial(0)
        assert log.flush()
        send = log.client.log_artifact
        monkeypatch.setattr(log.client, "log_artifact", lambda *given: (go_on.wait(20), send(*given)))
        monkeypatch.setattr(log._outbox, "flush", lambda timeout=0.0: False)
        monkeypatch.setattr(log._outbox._thread, "join", lambda timeout=0.0: None)
        log.log_artifact(tmp_path / "plots.png", index=0)
        log.log_metrics({"test/success_auc": 0.7}, index=0)
        log.end_trial(0, "FINISHED")
    kept = [json.loads(line)["do"] for line in (tmp_path / "unsent.jsonl").read_text().splitlines()]
    assert kept[-3:] == ["metrics", "end", "end"]
    monkeypatch.undo()
    go_on.set()
    while log._outbox._thread.is_alive():
        time.sleep(0.05)
    lost = json.dumps({"do": "model", "trial": 0, "path": str(tmp_path / "epoch_0007")})  # its checkpoint is gone
    (tmp_path / "unsent.jsonl").write_text(lost + "\n" + (tmp_path / "unsent.jsonl").read_text())
    with open_study(tmp_path, "slow", TRIALS, digest="d", uri=store) as log:
        pass
    run = children(log)["toy-000"]
    assert (run.info.status, run.data.metrics["test/success_auc"]) == ("FINISHED", 0.7)
    assert not (tmp_path / "unsent.jsonl").exists()


def test_pictures_alone_are_stored_whatever_else_is_in_their_folder(tmp_path: Path, store: str) -> None:
    with open_study(tmp_path, "pictures", TRIALS, digest="d", uri=store) as log:
        log.start_trial(0)
    for name in ("pareto.png", "private.txt"):
        (tmp_path / name).write_text(name)
    log_pictures(tmp_path, [tmp_path / "pareto.png"])
    assert [found.path for found in log.client.list_artifacts(log.run_id, "pictures")] == ["pictures/pareto.png"]


def test_unreachable_store_is_refused_at_the_start(tmp_path: Path) -> None:
    with (
        pytest.raises(ConfigError, match=r"http://127\.0\.0\.1:9") as caught,
        open_study(tmp_path, "x", {}, digest="d", uri="http://127.0.0.1:9"),
    ):
        pass
    assert "--tracking-uri" in str(caught.value)
    blocked = tmp_path / "file"
    blocked.write_text("no database")
    with pytest.raises(ConfigError, match="MLflow store"), open_study(tmp_path, "x", {}, digest="d", uri=f"sqlite:///{blocked}"):
        pass


def test_processes_that_open_a_new_store_at_once_make_it_once(store: str) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(store)
    experiment = client.get_experiment_by_name("together")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert (len(runs), {run.info.status for run in runs}) in ((4, {"FINISHED"}), (8, {"FINISHED"}))


def test_password_in_a_uri_is_refused_and_not_shown(tmp_path: Path) -> None:
    with (
        pytest.raises(ConfigError, match="MLFLOW_TRACKING_PASSWORD") as caught,
        open_study(tmp_path, "x", {}, digest="d", uri="https://user:hidden@server.example:5000"),
    ):
        pass
    assert "hidden" not in str(caught.value)
    assert not (tmp_path / "mlflow.json").exists()


def test_uri_and_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert ui_command(tmp_path) == f"uv run mlflow ui --backend-store-uri sqlite:///{tmp_path}/mlflow.db"
    assert shlex.split(ui_command(tmp_path / "my studies"))[-1] == f"sqlite:///{tmp_path}/my studies/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    assert store_uri(tmp_path) == "http://server:5000"
    assert store_uri(tmp_path, "sqlite:////x.db") == "sqlite:////x.db"
    assert "http://server:5000" in ui_command(tmp_path)


def test_import_needs_no_mlflow() -> None:
    code = "import sys, srft.run_logging; sys.exit('mlflow' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
