"""Entries on their way to a store that refuses, is away, or cannot even be asked; and a disk that is full meanwhile."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import requests

from srft.run_logging import outbox
from srft.run_logging.outbox import Outbox
from srft.run_logging.store import is_temporary


class Store:
    """Raises what it is told to, once each, then takes entries."""

    def __init__(self, *errors: Exception) -> None:
        self.errors, self.taken = list(errors), []

    def send(self, entries: list[dict]) -> None:
        if self.errors:
            raise self.errors.pop(0)
        self.taken += [entry["n"] for entry in entries]


def filled(kept: Path, store: Store, count: int = 3) -> Outbox:
    box = Outbox(kept, store.send, together=())
    for n in range(count):
        box.put({"do": "file", "n": n})
    box.start()
    return box


def answered(status: int) -> requests.HTTPError:
    return requests.HTTPError(f"{status} Client Error", response=SimpleNamespace(status_code=status))  # pyrefly: ignore


@pytest.mark.parametrize("error", [ModuleNotFoundError("No module named 'boto3'"), answered(413), ValueError("gone"), KeyError("x")])
def test_what_will_never_be_taken_is_dropped_and_the_rest_sent(tmp_path: Path, error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    store = Store(error)
    box = filled(tmp_path / "unsent.jsonl", store)
    assert box.flush(10)
    box.close()
    assert store.taken == [1, 2]
    assert "dropped" in caplog.text


def test_a_refused_batch_is_sent_one_by_one(tmp_path: Path) -> None:
    store = Store(ModuleNotFoundError("No module named 'boto3'"), ModuleNotFoundError("No module named 'boto3'"))
    box = Outbox(tmp_path / "unsent.jsonl", store.send, together=["file"])
    for n in range(3):
        box.put({"do": "file", "n": n})
    box.start()
    assert box.flush(10)
    box.close()
    assert store.taken == [1, 2]


@pytest.mark.parametrize("status", [401, 403, 404, 408, 429, 500, 503])
def test_what_may_be_put_right_is_tried_again(status: int) -> None:
    assert is_temporary(answered(status))


def test_a_full_disk_while_the_store_is_away_loses_nothing_in_memory(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = tmp_path / "file"  # In the place of the folder, as a disk without room.
    blocked.touch()
    store = Store(*(OSError("away") for _ in range(3)))
    monkeypatch.setattr(outbox.Outbox, "pause", 0.05)
    box = filled(blocked / "unsent.jsonl", store)
    box.put({"do": "file", "n": 3})
    assert box.flush(20)
    box.close()
    assert store.taken == [0, 1, 2, 3]
    assert caplog.text.count("kept in memory alone") == 1
