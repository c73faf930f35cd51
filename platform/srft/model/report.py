"""What became of every key of a converted checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class ConversionReport:
    """Where every weight of a tracker comes from, and what became of every key of the file."""

    source: str
    """File or package."""
    layout: str
    """Whose key names it has."""
    preset: str
    streams: int
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the architecture that are not the preset's."""
    mapped: Mapping[str, tuple[str, ...]]
    """The file's keys that a weight is made of, by its name in the tracker."""
    changed: Mapping[str, str]
    """Weights that are not copies, and how they were made."""
    ignored: Mapping[str, str]
    """Keys of the file that have no part in the tracker, and why."""
    initialized: tuple[str, ...] = ()
    """Weights that no key gives: drawn at random, to be trained."""
    stubbed: tuple[str, ...] = ()
    """Classes that the file's pickle named and that were not loaded."""

    def to_json(self) -> dict[str, Any]:
        """The report as JSON types.

        Returns:
            Fields by name.
        """
        return dataclasses.asdict(self)

    def lines(self) -> list[str]:
        """The report in a few lines.

        Returns:
            What a person wants to know; lists of keys are cut.
        """
        used = {key for keys in self.mapped.values() for key in keys}
        lines = [
            f"{self.source}: {self.layout}, {self.streams} stream{'s'[: self.streams - 1]}, preset {self.preset}",
            f"  {len(self.mapped)} weights from {len(used)} keys, {len(self.changed)} of them changed, {len(self.ignored)} keys ignored",
        ]
        lines += [f"  option {name} = {value}" for name, value in self.options.items()]
        for reason in sorted(set(self.ignored.values())):
            lines.append(f"  ignored ({reason}): {some([key for key, why in self.ignored.items() if why == reason])}")
        for change in sorted(set(self.changed.values())):
            lines.append(f"  changed ({change}): {some([name for name, how in self.changed.items() if how == change])}")
        if self.initialized:
            lines.append(f"  initialized at random, to be trained: {some(self.initialized)}")
        if self.stubbed:
            lines.append(f"  pickled objects left out: {some(self.stubbed)}")
        return lines


def some(names: Iterable[str], count: int = 4) -> str:
    """The first of a list of names, and how many more there are.

    Args:
        names: all.
        count: how many to spell out.

    Returns:
        Words for a message.
    """
    names = list(names)
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")
