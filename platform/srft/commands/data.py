"""``srft data …``: a group of commands, each a module of its own."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Annotated

import tyro

from srft.commands.data_check import Check
from srft.commands.data_layouts import Layouts
from srft.commands.data_pack import Pack
from srft.commands.data_preview import Preview
from srft.commands.data_synth import Synth

DataCommand = (
    Annotated[Check, tyro.conf.subcommand("check")]
    | Annotated[Layouts, tyro.conf.subcommand("layouts")]
    | Annotated[Pack, tyro.conf.subcommand("pack")]
    | Annotated[Preview, tyro.conf.subcommand("preview")]
    | Annotated[Synth, tyro.conf.subcommand("synth")]
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Data:
    """Look at data, check it, make it."""

    command: tyro.conf.OmitSubcommandPrefixes[DataCommand]


def run(command: Data) -> None:
    """Run the command of the group.

    Args:
        command: the group.
    """
    importlib.import_module(type(command.command).__module__).run(command.command)
