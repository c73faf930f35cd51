"""The directory of a run: whose it is."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from srft.config import ConfigError, TrainConfig, to_flat
from srft.files import write_json
from srft.settings import recorded

__all__ = ["claim", "config_of", "held", "occupied"]

log = logging.getLogger(__name__)
RUN, LOCK = "run.json", ".lock"
PATIENCE = 15.0
"""Seconds that a process which is ending may take to leave a run's directory."""


def held(marker: Path, digest: str, *, what: str, resume: bool) -> bool:
    """Whether a directory is the home of something already; of another thing than this one it must not be.

    Args:
        marker: file in the directory that says whose it is.
        digest: of what wants the directory.
        what: run or study.
        resume: accept a directory in which this very thing was started before.

    Returns:
        False if it is nobody's.

    Raises:
        ConfigError: the directory holds another one, or holds this one and ``resume`` is False, or the marker cannot be read.
    """
    if not marker.exists():
        return False
    directory = marker.parent
    try:
        found = str(json.loads(marker.read_text())["digest"])
    except (json.JSONDecodeError, KeyError, TypeError):
        raise ConfigError(f"{marker}: not a {what} description; choose another directory (--out) or delete {directory}") from None
    if found != digest:
        raise ConfigError(
            f"{directory} holds a {what} of configuration {found}, but this {what} is configuration {digest}; "
            f"choose another directory (--out), delete this one, or use the settings in {marker}"
        )
    if not resume:
        raise ConfigError(f"{directory} already holds this {what} ({found}); pass --resume to go on, or choose another directory (--out)")
    return True


@contextlib.contextmanager
def occupied(directory: Path) -> Iterator[None]:
    """Keep other processes out of a run's directory; what a process holds is free when it ends, however it ends.

    Args:
        directory: of the run; made if missing.

    Yields:
        Nothing.

    Raises:
        ConfigError: another process has it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + PATIENCE
    with (directory / LOCK).open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise ConfigError(f"{directory}: another process is training this run; wait for it, or end it and resume") from None
                time.sleep(0.2)
            except OSError as error:  # Not every file system has locks.
                log.warning("%s: no lock (%s); see to it that no other process trains this run", directory, error)
                break
        yield


def claim(directory: Path, config: TrainConfig, *, resume: bool) -> None:
    """Make a directory the home of one run, and clear what a dead process left half-written there.

    Args:
        directory: of the run; made if missing.
        config: the run.
        resume: accept a directory in which this very run was started before; any other that is taken is an error, see ``held``, and so
            is one in which it is trained just now.
    """
    marker = directory / RUN
    known = held(marker, config.digest(), what="run", resume=resume)
    with occupied(directory):
        _remove_orphans(directory)
        if not known:
            # The name and the number of workers may change when a run goes on; the digest leaves both out.
            write_json(marker, {"digest": config.digest(), "config": to_flat(config)})


def config_of(directory: Path) -> TrainConfig:
    """The configuration a run directory was claimed for.

    Args:
        directory: of the run.

    Returns:
        The validated configuration.

    Raises:
        ConfigError: the directory holds no run, or its description cannot be read.
    """
    marker = directory / RUN
    try:
        values = json.loads(marker.read_text())["config"]
    except FileNotFoundError:
        raise ConfigError(f"{directory} holds no run ({RUN} is missing); give the directory of a run") from None
    except (json.JSONDecodeError, KeyError, TypeError):
        raise ConfigError(f"{marker}: not a run description; give the directory of a run") from None
    return recorded(values, source=str(marker))


def _remove_orphans(directory: Path) -> None:
    for path in directory.glob(".epoch_*.tmp"):
        log.info("removing %s, left by a process that died while writing it", path)
        shutil.rmtree(path, ignore_errors=True)
