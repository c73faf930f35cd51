"""SIGTERM, as ``ray job stop`` and schedulers send it, and SIGINT: end at once, or save first. Outside the main thread nothing changes."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["interruptible", "politely"]

log = logging.getLogger(__name__)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Make both a KeyboardInterrupt.

    Yields:
        Nothing.
    """

    def interrupt(signum: int, frame: Any) -> None:
        raise KeyboardInterrupt

    with _handled(interrupt):
        yield


@contextlib.contextmanager
def politely() -> Iterator[threading.Event]:
    """Make the first of them an event, and the second a KeyboardInterrupt.

    Yields:
        The event.
    """
    told = threading.Event()

    def tell(signum: int, frame: Any) -> None:
        if told.is_set():
            raise KeyboardInterrupt
        told.set()
        log.warning("saving a checkpoint, then ending; once more to end at once")

    with _handled(tell):
        yield told


@contextlib.contextmanager
def _handled(handler: Callable[[int, Any], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)
