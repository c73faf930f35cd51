"""The command line ``srft …``: which commands there are. Each is a module of ``srft.commands``."""

from __future__ import annotations

import contextlib
import importlib
import logging
import sys
from collections.abc import Iterator
from typing import Annotated

import tyro

from srft.commands.convert import Convert
from srft.commands.data import Data
from srft.commands.evaluate import Evaluate
from srft.commands.events import Events
from srft.commands.export import Export
from srft.commands.give_back import GiveBack
from srft.commands.report import Report
from srft.commands.retrain import Retrain
from srft.commands.score import Score
from srft.commands.sparsity import Sparsity
from srft.commands.study import Study
from srft.commands.track import Track
from srft.commands.train import Train
from srft.commands.trax import Trax

Command = (
    Annotated[Convert, tyro.conf.subcommand("convert")]
    | Annotated[Data, tyro.conf.subcommand("data")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[Events, tyro.conf.subcommand("events")]
    | Annotated[Export, tyro.conf.subcommand("export")]
    | Annotated[GiveBack, tyro.conf.subcommand("give-back")]
    | Annotated[Report, tyro.conf.subcommand("report")]
    | Annotated[Retrain, tyro.conf.subcommand("retrain")]
    | Annotated[Score, tyro.conf.subcommand("score")]
    | Annotated[Sparsity, tyro.conf.subcommand("sparsity")]
    | Annotated[Study, tyro.conf.subcommand("study")]
    | Annotated[Track, tyro.conf.subcommand("track")]
    | Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Trax, tyro.conf.subcommand("trax")]
)  # fmt: skip


@contextlib.contextmanager
def one_sentence(stopped: str = "") -> Iterator[None]:
    """End a command with a sentence and exit status 1 where a user can put right what is wrong.

    Args:
        stopped: what is said after an interruption, which passes through when empty.

    Yields:
        Nothing.

    Raises:
        KeyboardInterrupt: one that passes through.
    """
    try:
        yield
    except (ValueError, OSError, FloatingPointError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        if not stopped:
            raise
        sys.exit(f"stopped; {stopped}")


def main() -> None:
    """Entry point of the ``srft`` command."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    command = tyro.cli(Command, prog="srft", description="Sensitivity-regularized fine-tuning of visual object trackers.")
    with one_sentence("the same command goes on (srft train, retrain: with --resume)"):
        importlib.import_module(type(command).__module__).run(command)


if __name__ == "__main__":
    main()
