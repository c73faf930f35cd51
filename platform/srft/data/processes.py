"""Processes for data that start clean, whatever the process that starts them holds."""

from __future__ import annotations

import multiprocessing
from multiprocessing.context import BaseContext

__all__ = ["clean_processes"]


def clean_processes(*preload: str) -> BaseContext:
    """How to start processes that inherit no locks, threads or memory.

    A process that has trained holds locks and threads that a fork of it would wait for. A server's forks are clean and start at once; where
    there is none, each process starts anew.

    Args:
        preload: modules that the server imports once, for all.

    Returns:
        A context of multiprocessing.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    if preload:
        context.set_forkserver_preload(list(preload))
    return context
