"""Runs in MLflow: a study is a parent run, its trials are child runs. The only module that imports mlflow.

One process writes, the one that started the study, by explicit run ids. Writing happens in a thread behind a queue, so a store that
is slow or away never holds up training: what could not be sent is kept beside the study, sent later and sent once.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from srft.config import ConfigError, TrainConfig, to_flat
from srft.files import environment, git_commit, write_json

if TYPE_CHECKING:
    from mlflow import MlflowClient

__all__ = [
    "LoggedTrial", "RunState", "StudyLog", "compare_address", "log_pictures",
    "log_report", "logged_trials", "open_study", "store_uri", "ui_command",
]  # fmt: skip

log = logging.getLogger(__name__)

RunState = Literal["FINISHED", "FAILED", "KILLED"]
CHAMPION = "champion"
_UNSENT, _LINK = "unsent.jsonl", "mlflow.json"
_PARENT, _TRIAL, _ATTEMPTS, _SCORE = "mlflow.parentRunId", "srft.trial_id", "srft.attempts", "srft.score"
_ENVIRONMENT = {
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_CONFIGURE_LOGGING": "false",
    # The queue repeats what fails; MLflow's own repetitions would only keep it from noticing.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}


def store_uri(out: Path, uri: str | None = None) -> str:
    """Where runs are stored: what is given, else MLFLOW_TRACKING_URI, else a database file under the output directory.

    Args:
        out: output directory.
        uri: any MLflow tracking URI.

    Returns:
        The URI.
    """
    return uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(out / 'mlflow.db').resolve()}"


def ui_command(out: Path, uri: str | None = None) -> str:
    """How to look at the runs.

    Args:
        out: output directory.
        uri: as given to :func:`store_uri`.

    Returns:
        A shell command that opens the UI on port 5000, or the address of the server that is in use.
    """
    where = store_uri(out, uri)
    return f"open {where}" if where.startswith(("http://", "https://")) else f"uv run mlflow ui --backend-store-uri {where}"


def compare_address(directory: Path, trials: list[int], *, port: int = 5000) -> str:
    """The MLflow UI's page that compares trials of a study.

    Args:
        directory: of the study.
        trials: numbers of the trials, in order.
        port: of a UI on this machine; a tracking server's own address is used where the study has one.

    Returns:
        The address; the compare page of no runs if the store is away.
    """
    from urllib.parse import quote

    link = json.loads((directory / _LINK).read_text())
    found: dict[str, str] = link.get("runs", {})
    if not found.keys() >= {str(index) for index in trials}:
        client = _client(link["store"])
        found = {run.data.tags[_TRIAL]: run.info.run_id for run in _children(client, link["experiment_id"], link["run_id"])}
    runs = [found[str(index)] for index in trials if str(index) in found]
    compact = lambda value: quote(json.dumps(value, separators=(",", ":")))
    host = link["store"].rstrip("/") if link["store"].startswith(("http://", "https://")) else f"http://127.0.0.1:{port}"
    return f"{host}/#/compare-runs?runs={compact(runs)}&experiments={compact([link['experiment_id']])}"


def log_pictures(directory: Path, folder: Path) -> None:
    """Store pictures with a study's run, in place of those that were stored before.

    Args:
        directory: of the study.
        folder: of the pictures.

    Raises:
        ConfigError: the study was not logged, or the store does not answer.
    """
    link = directory / _LINK
    if not link.exists():
        raise ConfigError(f"{directory} holds no logged study ({_LINK} is missing); its plots are in {folder}")
    about = json.loads(link.read_text())
    try:
        _client(about["store"]).log_artifacts(about["run_id"], str(folder), "pictures")
    except _mlflow_errors() as error:
        raise ConfigError(f"MLflow store {about['store']}: {_first_line(error)}; the plots are in {folder}") from None


def log_report(uri: str, run_id: str, page: Path, benchmark: str, measures: Mapping[str, float]) -> None:
    """Store a page of results with a run, and measures as ``test/<benchmark>/<measure>``.

    Args:
        uri: MLflow tracking URI.
        run_id: of the run.
        page: HTML file.
        benchmark: that was scored.
        measures: fractions by name.

    Raises:
        ConfigError: there is no such run, or the store does not answer.
    """
    client = _client(uri)
    try:
        client.log_artifact(run_id, str(page), "reports")
        for name, value in measures.items():
            client.log_metric(run_id, f"test/{benchmark}/{name}", value)
    except _mlflow_errors() as error:
        raise ConfigError(f"run {run_id} in MLflow store {uri}: {_first_line(error)}; the page is in {page}") from None


@dataclass(frozen=True, kw_only=True)
class LoggedTrial:
    """A trial as MLflow has it."""

    index: int
    params: Mapping[str, str]
    """Setting, as text, by dotted key."""
    end: str
    """What the study made of it: finished, stopped or failed; empty while it runs."""
    history: Mapping[str, Sequence[float]]
    """Values of a metric by epoch, not-a-number where there is none."""


def logged_trials(source: str, *, out: Path, uri: str | None = None, metrics: Sequence[str] = ()) -> list[LoggedTrial]:
    """The trials of a study that was logged before.

    Args:
        source: its output directory, or the id of its MLflow run.
        out: output directory of the asking study.
        uri: as given to :func:`store_uri`; where a run id is looked up.
        metrics: whose histories are wanted.

    Returns:
        By index.

    Raises:
        ConfigError: there is no such study, or the store does not answer.
    """
    link = Path(source) / _LINK
    if link.exists():
        about = json.loads(link.read_text())
    elif Path(source).exists():
        raise ConfigError(f"{source} holds no logged study ({_LINK} is missing); give the output directory of a sweep")
    else:
        about = {"store": store_uri(out, uri), "run_id": source}
    client = _client(about["store"])
    found: list[LoggedTrial] = []
    try:
        experiment = about.get("experiment_id") or client.get_run(source).info.experiment_id
        for run in _children(client, experiment, about["run_id"]):
            history: dict[str, list[float]] = {}
            for name in metrics:
                values = {one.step: one.value for one in client.get_metric_history(run.info.run_id, name)}
                history[name] = [values.get(step, math.nan) for step in range(max(values, default=-1) + 1)]
            tags = run.data.tags
            found.append(LoggedTrial(index=int(tags[_TRIAL]), params=run.data.params, end=tags.get("srft.end", ""), history=history))
    except _mlflow_errors() as error:
        raise ConfigError(f"study {source} in MLflow store {about['store']}: {_first_line(error)}; check both") from None
    return sorted(found, key=lambda trial: trial.index)


def _client(uri: str) -> MlflowClient:
    for key, value in _ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


@contextlib.contextmanager
def open_study(
    out: Path, name: str, trials: Mapping[int, TrainConfig], *, digest: str, uri: str | None = None, params: Mapping[str, Any] | None = None
) -> Iterator[StudyLog]:
    """The log of one study, for as long as it runs.

    A study that was logged from this output directory to this store before is taken up again. On the way out the study and every
    trial still running become KILLED after Ctrl-C or SIGTERM, FAILED after another exception; without one the study is FINISHED.

    Args:
        out: output directory of the study.
        name: of the study; the MLflow experiment has the same.
        trials: configuration of each trial by index; its name is the run's.
        digest: of the study.
        uri: any MLflow tracking URI; see :func:`store_uri`.
        params: of the study itself.

    Yields:
        The log.

    Raises:
        ConfigError: the store does not answer or cannot be opened.
    """
    out = out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    where = store_uri(out, uri)
    try:
        client = _client(where)
        experiment_id = _experiment(client, name, out, where)
        run_id = _study_run(client, experiment_id, out, name, digest=digest, where=where, params=params or {})
        study_log = StudyLog(client, experiment_id, run_id, trials, out=out, digest=digest)
    except _mlflow_errors() as error:
        raise ConfigError(
            f"MLflow store {where}: {_first_line(error)}; check the URI (--tracking-uri, MLFLOW_TRACKING_URI) and that its server runs"
        ) from None
    state: RunState = "FAILED"
    try:
        yield study_log
        state = "FINISHED"
    finally:
        if isinstance(sys.exception(), KeyboardInterrupt | SystemExit):
            state = "KILLED"
        study_log.close(state)


class StudyLog:
    """Writes one study and its trials; made by :func:`open_study`. No method raises when the store is away."""

    def __init__(
        self, client: MlflowClient, experiment_id: str, run_id: str, trials: Mapping[int, TrainConfig], *, out: Path, digest: str
    ) -> None:
        """Take up what the store already knows of the study, and start the writing thread.

        Args:
            client: of the store.
            experiment_id: of the study's experiment.
            run_id: of the study's run.
            trials: configuration of each trial by index.
            out: output directory.
            digest: of the study.
        """
        self.client, self.experiment_id, self.run_id, self.trials, self.digest = client, experiment_id, run_id, dict(trials), digest
        self._spool = out / _UNSENT
        self._runs: dict[int, str] = {}
        self._newest: dict[int, int] = {}
        self._attempts: dict[int, int] = {}
        self._open: set[int] = set()
        for run in _children(client, experiment_id, run_id):
            index = int(run.data.tags[_TRIAL])
            self._runs[index] = run.info.run_id
            self._newest[index] = int(run.data.metrics.get("epoch", -1))
            self._attempts[index] = int(run.data.tags.get(_ATTEMPTS, 0))
            if run.info.status == "RUNNING":
                self._open.add(index)
        self._queue: deque[dict[str, Any]] = deque(_read_lines(self._spool))
        self._changed = threading.Condition()
        self._away = False
        self._stop = False
        self._thread = threading.Thread(target=self._write, name="run-logging", daemon=True)
        self._thread.start()

    def start_trial(self, index: int, config: TrainConfig | None = None) -> None:
        """A trial starts, or starts again.

        Args:
            index: of the trial.
            config: of a trial that was not known when the log was opened.
        """
        if config is not None:
            self.trials.setdefault(index, config)
        self._attempts[index] = self._attempts.get(index, 0) + 1
        self._open.add(index)
        self._put({"do": "start", "trial": index, "attempt": self._attempts[index]})

    def log_epoch(self, index: int, epoch: int, metrics: Mapping[str, float]) -> None:
        """A trial finished an epoch; one that was logged before is ignored, so a resumed trial leaves no duplicates.

        Args:
            index: of the trial.
            epoch: from 0; the step of its metrics.
            metrics: by name.
        """
        self._put({"do": "epoch", "trial": index, "epoch": epoch, "metrics": dict(metrics), "time": int(time.time() * 1000)})

    def end_trial(self, index: int, state: RunState, tags: Mapping[str, str] | None = None) -> None:
        """A trial ended.

        Args:
            index: of the trial.
            state: how.
            tags: set on its run.
        """
        self._open.discard(index)
        self._put({"do": "end", "trial": index, "state": state, "tags": dict(tags or {})})

    def log_metrics(self, metrics: Mapping[str, float], *, index: int | None = None) -> None:
        """Figures without an epoch, such as the test scores at the end.

        Args:
            metrics: by name.
            index: of the trial; None for the study.
        """
        self._put({"do": "metrics", "trial": index, "metrics": dict(metrics), "time": int(time.time() * 1000)})

    def set_tags(self, tags: Mapping[str, str], *, index: int | None = None) -> None:
        """Tags on a run.

        Args:
            tags: by name.
            index: of the trial; None for the study.
        """
        self._put({"do": "tags", "trial": index, "tags": dict(tags)})

    def log_artifact(self, path: Path, *, index: int | None = None, folder: str = "") -> None:
        """Store a file, or all files of a directory.

        Args:
            path: must stay where it is until the log is closed.
            index: of the trial; None for the study.
            folder: inside the run's artifacts.
        """
        self._put({"do": "artifact", "trial": index, "path": str(path.resolve()), "folder": folder})

    def register(self, index: int, model: str, *, folder: str, score: float, timeout: float = 30.0) -> str | None:
        """Register artifacts of a trial as a new version of a model; the alias ``champion`` moves to it if its score is higher.

        Args:
            index: of the trial.
            model: registered model, such as ``srft-rgbe``.
            folder: inside the trial's artifacts.
            score: on validation sequences, comparable between versions.
            timeout: seconds to wait at most for what is still to be written.

        Returns:
            The version; None, with a warning, if the store is away.
        """
        if not self.flush(timeout):
            log.warning("model %s was not registered: the MLflow store is away", model)
            return None
        from mlflow.exceptions import MlflowException

        try:
            with contextlib.suppress(MlflowException):  # It exists already.
                self.client.create_registered_model(model)
            run_id = self._run(index)
            tags = {_SCORE: repr(score), "srft.digest": self.trials[index].digest()}
            version = self.client.create_model_version(model, source=f"runs:/{run_id}/{folder}", run_id=run_id, tags=tags).version
            champion = self.client.get_registered_model(model).aliases.get(CHAMPION)
            standing = float(self.client.get_model_version(model, champion).tags.get(_SCORE, "-inf")) if champion else float("-inf")
            if score > standing:
                self.client.set_registered_model_alias(model, CHAMPION, version)
            return str(version)
        except _mlflow_errors() as error:
            log.warning("model %s was not registered: %s", model, _first_line(error))
            return None

    def flush(self, timeout: float = 30.0) -> bool:
        """Wait until everything is written.

        Args:
            timeout: seconds to wait at most.

        Returns:
            Whether everything is.
        """
        with self._changed:
            return self._changed.wait_for(lambda: not self._queue, timeout)

    def close(self, state: RunState) -> None:
        """End the study's run, and those of trials that did not end; what cannot be sent in time is kept for the next start.

        Args:
            state: how the study ended.
        """
        for index in sorted(self._open):
            self.end_trial(index, "KILLED" if state != "FAILED" else "FAILED", {})
        self._put({"do": "end", "trial": None, "state": state, "tags": {}})
        if not self.flush():
            log.warning("MLflow store away: %d entries kept in %s; they are sent when the study is resumed", len(self._queue), self._spool)
        with self._changed:
            self._stop = True
            self._changed.notify_all()
        self._thread.join(timeout=30.0)

    def _put(self, entry: dict[str, Any]) -> None:
        with self._changed:
            self._queue.append(entry)
            if self._away:
                self._keep()
            self._changed.notify_all()

    def _keep(self) -> None:
        if self._queue:
            self._spool.write_text("".join(json.dumps(entry) + "\n" for entry in self._queue))
        else:
            self._spool.unlink(missing_ok=True)

    def _write(self) -> None:
        errors, pause = _mlflow_errors(), 1.0
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._stop)
                if self._stop:
                    return
                entry = self._queue[0]
            try:
                self._apply(entry)
            except errors as error:
                if _is_temporary(error):
                    with self._changed:
                        if not self._away:
                            log.warning("MLflow store is away (%s); training goes on, entries wait in %s", _first_line(error), self._spool)
                        self._away = True
                        self._keep()
                        self._changed.wait_for(lambda: self._stop, pause)
                    pause = min(2 * pause, 15.0)
                    continue
                log.error("MLflow refused an entry, which is dropped: %s", _first_line(error))
            pause = 1.0
            with self._changed:
                self._queue.popleft()
                if self._away or self._spool.exists():
                    self._keep()
                self._away = False
                self._changed.notify_all()

    def _apply(self, entry: dict[str, Any]) -> None:
        from mlflow.entities import Metric, RunTag

        index = entry["trial"]
        run_id = self.run_id if index is None else self._run(index)
        tags = [RunTag(key, str(value)) for key, value in entry.get("tags", {}).items()]
        match entry["do"]:
            case "start":
                self.client.update_run(run_id, status="RUNNING")
                self.client.set_tag(run_id, _ATTEMPTS, str(entry["attempt"]))
            case "epoch":
                epoch = entry["epoch"]
                if epoch > self._newest.get(index, -1):
                    values = {**entry["metrics"], "epoch": float(epoch)}
                    self.client.log_batch(run_id, metrics=[Metric(key, value, entry["time"], epoch) for key, value in values.items()])
                    self._newest[index] = epoch
            case "metrics":
                self.client.log_batch(run_id, metrics=[Metric(key, value, entry["time"], 0) for key, value in entry["metrics"].items()])
            case "tags":
                self.client.log_batch(run_id, tags=tags)
            case "artifact":
                path = Path(entry["path"])
                store = self.client.log_artifacts if path.is_dir() else self.client.log_artifact
                store(run_id, str(path), entry["folder"] or None)
            case "end":
                self.client.log_batch(run_id, tags=tags)
                self.client.set_terminated(run_id, entry["state"])

    def _run(self, index: int) -> str:
        if index not in self._runs:
            # A request whose answer was lost may have made the run: look before making another.
            found = [run for run in _children(self.client, self.experiment_id, self.run_id) if run.data.tags[_TRIAL] == str(index)]
            self._runs[index] = found[0].info.run_id if found else self._make_run(index)
            link = self._spool.parent / _LINK  # So that they are found without asking the store.
            write_json(link, json.loads(link.read_text()) | {"runs": self._runs})
        return self._runs[index]

    def _make_run(self, index: int) -> str:
        from mlflow.entities import Param

        config = self.trials[index]
        tags = {_PARENT: self.run_id, _TRIAL: str(index), "srft.digest": config.digest(), **_source_tags()}
        run_id = self.client.create_run(self.experiment_id, tags=tags, run_name=config.name).info.run_id
        self.client.log_batch(run_id, params=[Param(key, str(value)) for key, value in to_flat(config).items()])
        return run_id


def _experiment(client: MlflowClient, name: str, out: Path, where: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is not None:
        if found.lifecycle_stage != "active":
            raise ConfigError(f"MLflow store {where}: experiment {name!r} was deleted there; restore it or give the study another name")
        return found.experiment_id
    # A server decides itself; otherwise artifacts would land below whatever directory this process happens to run in.
    artifacts = None if where.startswith(("http://", "https://")) else (out / "artifacts").as_uri()
    return client.create_experiment(name, artifact_location=artifacts)


def _study_run(
    client: MlflowClient, experiment_id: str, out: Path, name: str, *, digest: str, where: str, params: Mapping[str, Any]
) -> str:
    from mlflow.entities import Param
    from mlflow.exceptions import MlflowException

    link = out / _LINK
    if link.exists():
        known = json.loads(link.read_text())
        if known["experiment_id"] == experiment_id and known["digest"] == digest and known["store"] == where:
            try:
                client.update_run(known["run_id"], status="RUNNING")
                return known["run_id"]
            except MlflowException as error:
                if _is_temporary(error):
                    raise
                log.warning("MLflow run %s of this study is gone; starting another", known["run_id"])
    tags = {"srft.role": "study", "srft.digest": digest, **_source_tags()}
    tags |= {f"srft.version.{key}": value for key, value in environment().items()}
    run_id = client.create_run(experiment_id, tags=tags, run_name=name).info.run_id
    client.log_batch(run_id, params=[Param(key, str(value)) for key, value in params.items()])
    write_json(link, {"store": where, "experiment_id": experiment_id, "run_id": run_id, "digest": digest})
    return run_id


def _children(client: MlflowClient, experiment_id: str, run_id: str) -> list[Any]:
    found, token = [], None
    while True:
        page = client.search_runs([experiment_id], filter_string=f"tags.`{_PARENT}` = '{run_id}'", max_results=1000, page_token=token)
        found += [run for run in page if _TRIAL in run.data.tags]
        token = page.token
        if not token:
            return found


def _source_tags() -> dict[str, str]:
    commit = git_commit()
    return {"mlflow.source.git.commit": commit} if commit else {}


def _mlflow_errors() -> tuple[type[Exception], ...]:
    import requests
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    return MlflowException, requests.RequestException, SQLAlchemyError, OSError


def _is_temporary(error: Exception) -> bool:
    refused = ("INVALID_PARAMETER_VALUE", "RESOURCE_ALREADY_EXISTS", "RESOURCE_DOES_NOT_EXIST", "BAD_REQUEST", "INVALID_STATE")
    return getattr(error, "error_code", "") not in refused and not isinstance(error, FileNotFoundError)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__


def _read_lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    entries = []
    for line in path.read_text().splitlines():
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:  # The process died while writing it.
            log.warning("%s: skipping a line that was cut short", path)
    return entries
