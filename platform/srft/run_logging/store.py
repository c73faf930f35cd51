"""The MLflow store: where it is, a client of it, what its errors mean, and the keys by which runs are found."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from srft.config import ConfigError
from srft.files import environment, git_commit, write_json

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)

LINK = "mlflow.json"
PARENT, TRIAL, ATTEMPTS = "mlflow.parentRunId", "srft.trial_id", "srft.attempts"
DIRECTORY = "srft.directory"
"""Tag: output directory of a study, on the machine that ran it."""
SETTINGS, SINCE = "srft.settings", "srft.since"
"""Tags of a run whose settings changed while it trained, which params cannot: the new ones, and after how many epochs."""
_REFUSED = (400, 405, 413, 414, 415, 422)
"""What HTTP servers, and proxies before them, answer to what they will never take: malformed, not allowed, too large."""
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
    web = where.startswith(("http://", "https://"))
    return f"open {shlex.quote(where)}" if web else f"uv run mlflow ui --backend-store-uri {shlex.quote(where)}"


def client_of(uri: str, *, make: bool = True) -> MlflowClient:
    """A client of a store; of processes that open a new database at once, one makes its tables and the others wait.

    Args:
        uri: MLflow tracking URI.
        make: a database that is not there; for who only reads, that is an error.

    Returns:
        The client.

    Raises:
        ConfigError: the URI holds a password, which would end up in files and messages.
        FileNotFoundError: there is no such database, and none is made.
    """
    if urlsplit(uri).password:
        raise ConfigError(
            f"MLflow store {urlsplit(uri).scheme}://…@{urlsplit(uri).hostname}: the URI holds a password; leave it out, and set "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD (a server) or PGPASSWORD or the like (a database)"
        )
    database = Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None
    if database and not make and not database.exists():
        raise FileNotFoundError("no such database")
    for key, value in _ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    with _turn(database) if database else contextlib.nullcontext():
        return MlflowClient(tracking_uri=uri, registry_uri=uri)


@contextlib.contextmanager
def _turn(database: Path) -> Iterator[None]:
    # One process at a time.
    database.parent.mkdir(parents=True, exist_ok=True)
    with database.with_name(f"{database.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def experiment_of(client: MlflowClient, name: str, out: Path, where: str) -> str:
    """The id of an experiment, which is made if there is none.

    Args:
        client: of the store.
        name: of the experiment.
        out: directory for its artifacts, below which they go where no server decides that.
        where: URI of the store.

    Returns:
        The id.

    Raises:
        ConfigError: the experiment was deleted.
        MlflowException: the store does not answer.
    """
    from mlflow.exceptions import MlflowException

    # A server decides itself; otherwise artifacts would land below whatever directory this process happens to run in.
    artifacts = None if where.startswith(("http://", "https://")) else (out / "artifacts").as_uri()
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return client.create_experiment(name, artifact_location=artifacts)
        except MlflowException as error:
            found = client.get_experiment_by_name(name)  # Another process may have been faster.
            if found is None:
                raise error
    if found.lifecycle_stage != "active":
        raise ConfigError(f"MLflow store {where}: experiment {name!r} was deleted there; restore it or give the study another name")
    return found.experiment_id


def linked(study: str) -> dict[str, Any]:
    """What a study's output directory says about its run.

    Args:
        study: output directory of a study, or the id of its MLflow run.

    Returns:
        Its store, experiment and run, see ``open_study``; empty for an id.

    Raises:
        ConfigError: the directory holds no logged study.
    """
    link = Path(study) / LINK
    if link.exists():
        return json.loads(link.read_text())
    if Path(study).exists():
        raise ConfigError(f"{study} holds no logged study ({LINK} is missing); give the output directory of a sweep")
    return {}


def children(client: MlflowClient, experiment_id: str, run_id: str) -> list[Any]:
    """The runs of a study's trials.

    Args:
        client: of the store.
        experiment_id: of the study.
        run_id: of the study.

    Returns:
        MLflow runs, newest first.
    """
    found, token = [], None
    while True:
        page = client.search_runs([experiment_id], filter_string=f"tags.`{PARENT}` = '{run_id}'", max_results=1000, page_token=token)
        found += [run for run in page if TRIAL in run.data.tags]
        token = page.token
        if not token:
            return found


def settings_of(run: Any) -> dict[str, str]:
    """The settings of a run, the newest where they changed while it trained.

    Args:
        run: MLflow's.

    Returns:
        Text by dotted key, with the run's other params.
    """
    return {**run.data.params, **json.loads(run.data.tags.get(SETTINGS, "{}"))}


def own_history(client: MlflowClient, run: Any, metric: str) -> dict[int, float]:
    """A metric of a run since its settings are what they are.

    Args:
        client: of the store.
        run: MLflow's.
        metric: its name.

    Returns:
        Value by step.
    """
    since = int(run.data.tags.get(SINCE, 0))
    return {e.step: e.value for e in client.get_metric_history(run.info.run_id, metric) if e.step >= since}


def source_tags() -> dict[str, str]:
    """What says which source a run came from.

    Returns:
        The tag that MLflow shows as source version, if there is a commit.
    """
    commit = git_commit()
    return {"mlflow.source.git.commit": commit} if commit else {}


def store_errors() -> tuple[type[Exception], ...]:
    """What a store that is away, or refuses, raises.

    Returns:
        Exception types.
    """
    import requests
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    return MlflowException, requests.RequestException, SQLAlchemyError, OSError, *_cloud_errors()


def _cloud_errors() -> tuple[type[Exception], ...]:
    # Of artifacts in a bucket, if its package is installed.
    try:
        from botocore.exceptions import BotoCoreError, ClientError  # pyrefly: ignore
    except ImportError:
        return ()
    return BotoCoreError, ClientError


def is_temporary(error: Exception) -> bool:
    """Whether the same request may succeed later.

    Args:
        error: one of :func:`store_errors`.

    Returns:
        False if the store understood and refused; a wrong password may be put right.
    """
    if getattr(getattr(error, "response", None), "status_code", None) in _REFUSED:
        return False
    refused = ("INVALID_PARAMETER_VALUE", "RESOURCE_ALREADY_EXISTS", "RESOURCE_DOES_NOT_EXIST", "BAD_REQUEST", "INVALID_STATE")
    return getattr(error, "error_code", "") not in refused and not isinstance(error, FileNotFoundError)


def first_line(error: Exception) -> str:
    """An error in one line.

    Args:
        error: any.

    Returns:
        At most 300 characters.
    """
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__


def study_run(client: MlflowClient, experiment_id: str, out: Path, name: str, *, digest: str, where: str, params: Mapping[str, Any]) -> str:
    """The run of a study: the one that its output directory is linked to, or a new one, linked.

    Args:
        client: of the store.
        experiment_id: of the study's experiment.
        out: output directory.
        name: of the study.
        digest: of the study.
        where: address of the store.
        params: of the study itself.

    Returns:
        The run's id. A store that does not answer is an error of :func:`store_errors`.
    """
    from mlflow.entities import Param

    link = out / LINK
    if link.exists():
        known = json.loads(link.read_text())
        if known["experiment_id"] == experiment_id and known["digest"] == digest and known["store"] == where:
            try:
                client.update_run(known["run_id"], status="RUNNING")
                return known["run_id"]
            except store_errors() as error:
                if is_temporary(error):
                    raise error
                log.warning("MLflow run %s of this study is gone; starting another", known["run_id"])
    tags = {"srft.role": "study", "srft.digest": digest, DIRECTORY: str(out), **source_tags()}
    tags |= {f"srft.version.{key}": value for key, value in environment().items()}
    run_id = client.create_run(experiment_id, tags=tags, run_name=name).info.run_id
    client.log_batch(run_id, params=[Param(key, str(value)) for key, value in params.items()])
    write_json(link, {"store": where, "experiment_id": experiment_id, "run_id": run_id, "digest": digest})
    return run_id
