"""Files that are whole or absent, their checksums, and what a result came from."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

_VERSIONS = ("srft", "torch", "torchvision", "timm", "ray", "mlflow", "numpy")


@contextmanager
def aside(path: str | Path) -> Iterator[Path]:
    """A path beside a file to write to; when the block ends without an error its content becomes the file, in one rename.

    Args:
        path: the file; its folder is made.

    Yields:
        Where to write: a hidden name in the same folder with the same suffix, removed if the block fails.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name of its own: processes on two machines that share the folder may have the same number.
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex}{path.suffix}")
    try:
        yield temporary
        sync(temporary)
        temporary.chmod(0o644)  # some writers keep their files to their owner
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write a file whole or not at all.

    Args:
        path: the file; its folder is made.
        data: its content.
    """
    with aside(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file whole or not at all.

    Args:
        path: the file; its folder is made.
        text: its content.
    """
    write_bytes(path, text.encode())


def write_json(path: str | Path, value: Any) -> None:
    """Write a JSON file whole or not at all.

    Args:
        path: the file; its folder is made.
        value: what JSON can hold.
    """
    write_text(path, json.dumps(value, indent=1))


def sha256(path: str | Path) -> str:
    """Checksum of a file.

    Args:
        path: the file.

    Returns:
        64 hex digits.
    """
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: str | Path) -> None:
    """Wait until a file or folder is on the disk.

    Args:
        path: what was written.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@functools.cache
def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for name in _VERSIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def environment() -> dict[str, str]:
    """Versions of Python, the packages that results depend on, and the git commit where there is one.

    Returns:
        Version by name.
    """
    commit = git_commit()
    return {**_versions(), **({"git_commit": commit} if commit else {})}


@functools.cache
def git_commit() -> str | None:
    """The commit of the source tree this package runs from.

    Returns:
        The hash, followed by ``-dirty`` if files differ from it; None outside a repository or without git.
    """
    here = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        commit, changed = git("rev-parse", "HEAD"), git("status", "--porcelain")
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("-dirty" if changed else "")
