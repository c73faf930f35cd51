"""What was logged, read again; and what is added to runs after they ended."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from srft.config import ConfigError
from srft.run_logging.store import LINK, TRIAL, children, client_of, first_line, linked, own_history, settings_of, store_errors, store_uri


def compare_address(directory: Path, trials: list[int], *, port: int = 5000) -> str:
    """The MLflow UI's page that compares trials of a study.

    Args:
        directory: of the study.
        trials: numbers of the trials, in order.
        port: of a UI on this machine; a tracking server's own address is used where the study has one.

    Returns:
        The address.

    Raises:
        ConfigError: not all runs are known without the store, and that is away.
    """
    from urllib.parse import quote

    link = json.loads((directory / LINK).read_text())
    found: dict[str, str] = link.get("runs", {})
    if not found.keys() >= {str(index) for index in trials}:
        try:
            known = children(client_of(link["store"], make=False), link["experiment_id"], link["run_id"])
        except store_errors() as error:
            raise ConfigError(f"MLflow store {link['store']} is away: {first_line(error)}") from None
        found = {run.data.tags[TRIAL]: run.info.run_id for run in known}
    runs = [found[str(index)] for index in trials if str(index) in found]
    compact = lambda value: quote(json.dumps(value, separators=(",", ":")))
    host = link["store"].rstrip("/") if link["store"].startswith(("http://", "https://")) else f"http://127.0.0.1:{port}"
    return f"{host}/#/compare-runs?runs={compact(runs)}&experiments={compact([link['experiment_id']])}"


def log_pictures(directory: Path, pictures: Sequence[Path]) -> None:
    """Store pictures with a study's run, in place of those that were stored before.

    Args:
        directory: of the study.
        pictures: files.

    Raises:
        ConfigError: the study was not logged, or the store does not answer.
    """
    link = directory / LINK
    if not link.exists():
        raise ConfigError(f"{directory} holds no logged study ({LINK} is missing); its plots are in {pictures[0].parent}")
    about = json.loads(link.read_text())
    try:
        client = client_of(about["store"], make=False)
        for picture in pictures:
            client.log_artifact(about["run_id"], str(picture), "pictures")
    except store_errors() as error:
        raise ConfigError(f"MLflow store {about['store']}: {first_line(error)}; the plots are in {pictures[0].parent}") from None


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
    client = client_of(uri)
    try:
        client.log_artifact(run_id, str(page), "reports")
        for name, value in measures.items():
            client.log_metric(run_id, f"test/{benchmark}/{name}", value)
    except store_errors() as error:
        raise ConfigError(f"run {run_id} in MLflow store {uri}: {first_line(error)}; the page is in {page}") from None


@dataclass(frozen=True, kw_only=True)
class LoggedTrial:
    """A trial as MLflow has it."""

    index: int
    params: Mapping[str, str]
    """Setting, as text, by dotted key; the newest of one that changed while it trained."""
    end: str
    """What the study made of it: finished, stopped or failed; empty while it runs."""
    history: Mapping[str, Sequence[float]]
    """Values of a metric by epoch, not-a-number where there is none, and before the settings changed."""


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
    about = linked(source) or {"store": store_uri(out, uri), "run_id": source}
    found: list[LoggedTrial] = []
    try:
        client = client_of(about["store"], make=False)
        experiment = about.get("experiment_id") or client.get_run(source).info.experiment_id
        for run in children(client, experiment, about["run_id"]):
            history: dict[str, list[float]] = {}
            for name in metrics:
                values = own_history(client, run, name)
                history[name] = [values.get(step, math.nan) for step in range(max(values, default=-1) + 1)]
            tags = run.data.tags
            found.append(LoggedTrial(index=int(tags[TRIAL]), params=settings_of(run), end=tags.get("srft.end", ""), history=history))
    except store_errors() as error:
        raise ConfigError(f"study {source} in MLflow store {about['store']}: {first_line(error)}; check both") from None
    return sorted(found, key=lambda trial: trial.index)
