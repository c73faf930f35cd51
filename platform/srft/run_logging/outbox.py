"""Entries on their way to a store that may be slow or away: kept in order, in a file if need be, and sent once, by a thread."""

from __future__ import annotations

import itertools
import json
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from srft.files import write_text
from srft.run_logging.store import first_line, is_temporary, store_errors

__all__ = ["Outbox"]

log = logging.getLogger(__name__)

Entry = dict[str, Any]
"""``do``: what is to be done; and with what."""
_AT_ONCE = 200


class Outbox:
    """A queue and the thread that empties it. Putting something in never waits for the store."""

    pause = 1.0
    """Seconds before the first of several tries, each twice as long as the one before."""

    def __init__(self, kept: Path, send: Callable[[list[Entry]], None], *, together: Iterable[str]) -> None:
        """Take up what an earlier process could not send; :meth:`start` sends it.

        Args:
            kept: file of entries while the store is away.
            send: sends entries that may go together, or one; raises errors of the store.
            together: what is done to entries that may.
        """
        self.kept, self.send, self.together = kept, send, frozenset(together)
        self.away = False
        """Whether the store did not answer the last time."""
        self._queue: deque[Entry] = deque(_read_lines(kept))
        self._changed = threading.Condition()
        self._stop = self._full = False
        self._thread = threading.Thread(target=self._work, name="run-logging", daemon=True)

    def __iter__(self) -> Any:
        """What waits.

        Returns:
            Over a copy of the entries, oldest first.
        """
        with self._changed:
            return iter(list(self._queue))

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def put(self, entry: Entry) -> None:
        """Send something, when it can be.

        Args:
            entry: what to do; JSON types.
        """
        with self._changed:
            self._queue.append(entry)
            if self.away:
                self._write(lambda: _append(self.kept, _line(entry)))
            self._changed.notify_all()

    def flush(self, timeout: float) -> bool:
        """Wait until everything is sent.

        Args:
            timeout: seconds to wait at most.

        Returns:
            Whether everything is.
        """
        with self._changed:
            return self._changed.wait_for(lambda: not self._queue, timeout)

    def close(self) -> None:
        """End the thread once everything is sent; what cannot be in half a minute is kept for the next start."""
        if not self.flush(30.0):
            log.warning(
                "MLflow store away or slow: %d entries kept in %s; they are sent when the study is resumed", len(self._queue), self.kept
            )
        with self._changed:
            self._stop = True
            if self._queue:  # The store may be slow rather than away, and nothing of this kept yet.
                self._keep()
            self._changed.notify_all()
        self._thread.join(timeout=30.0)

    def _keep(self) -> None:
        lines = "".join(map(_line, self._queue))
        self._write(lambda: write_text(self.kept, lines) if lines else self.kept.unlink(missing_ok=True))

    def _write(self, write: Callable[[], object]) -> None:
        # A disk that is full ends neither training nor this thread: entries are in memory.
        try:
            write()
        except OSError as error:
            if not self._full:
                log.warning("%s: %s; entries that MLflow has not taken are kept in memory alone", self.kept, error)
            self._full = True
        else:
            self._full = False

    def _work(self) -> None:
        errors, pause, alone = store_errors(), self.pause, 0
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._stop)
                if self._stop:
                    return
                # A batch goes as one request for each run; should something in it be refused, one by one.
                batch = itertools.takewhile(lambda entry: entry["do"] in self.together, self._queue)
                entries = list(itertools.islice(batch, 1 if alone else _AT_ONCE)) or [self._queue[0]]
            try:
                self.send(entries)
            except Exception as error:  # Of the store; of a kept entry, whose checkpoint is gone; of a package that is missing.
                if isinstance(error, errors) and is_temporary(error):
                    with self._changed:
                        if not self.away:
                            log.warning("MLflow store is away (%s); training goes on, entries wait in %s", first_line(error), self.kept)
                        self.away = True
                        self._keep()
                        self._changed.wait_for(lambda: self._stop, pause)
                    pause = min(2 * pause, 15.0)
                    continue
                if len(entries) > 1:
                    alone = len(entries)
                    continue
                log.error("an entry cannot be logged and is dropped: %s: %s", type(error).__name__, first_line(error))
            pause, alone = self.pause, max(0, alone - 1)
            with self._changed:
                for _ in entries:
                    self._queue.popleft()
                if self.away or self.kept.exists():
                    self._keep()
                self.away = False
                self._changed.notify_all()


def _line(entry: Entry) -> str:
    return json.dumps(entry) + "\n"


def _append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def _read_lines(path: Path) -> list[Entry]:
    if not path.exists():
        return []
    entries = []
    for line in path.read_text().splitlines():
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:  # The process died while writing it.
            log.warning("%s: skipping a line that was cut short", path)
    return entries
