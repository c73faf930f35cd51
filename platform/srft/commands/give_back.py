"""``srft give-back``."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import tyro

from srft.config import ReturnBy


@dataclass(frozen=True, kw_only=True)
class GiveBack:
    """Give tuned weights back to the pre-trained ones by prior sensitivity, for several strengths and without training again.

    srft give-back outputs/winner                                      # what is learned and kept at each strength, on validation

    srft give-back outputs/winner/epoch_0011 --strengths 0.5 2 8 --aux-share 0.1 --plot front.png

    srft give-back outputs/winner --write 3 --out given_back.safetensors && srft track car.mp4 --weights given_back.safetensors ...
    """

    run: tyro.conf.Positional[Path]
    """Checkpoint, or directory of a run, whose newest checkpoint is meant."""
    strengths: tuple[float, ...] = (0.0, 0.3, 1.0, 3.0, 10.0)
    """How far weights return; 0 leaves them as they were trained."""
    aux_share: float | None = None
    """Share of the strength in the auxiliary stream; the run's srft.aux_share when left out."""
    by: ReturnBy = "sensitivity"
    """What says how far a weight returns: its prior sensitivity, or nothing, all alike."""
    write: float | None = None
    """Write the tracker of this strength to --out instead."""
    out: Path = Path("given_back.safetensors")
    """File for --write."""
    plot: Path | None = None
    """Draw target success against what is kept of the source here."""
    json: Path | None = None
    """Write the figures here."""
    cache: Path | None = None
    """Folder of rendered sequences and priors; that of the run, or of its sweep, when left out."""


def run(command: GiveBack) -> None:
    """Validate the trackers of all strengths, or write one.

    Args:
        command: the options.

    Raises:
        ValueError: there is no checkpoint, or an option would do nothing.
    """
    _check_options(command)

    from srft.files import write_json
    from srft.training import checkpoint
    from srft.training.returning import trackers

    folder = command.run if (command.run / checkpoint.META).exists() else checkpoint.latest(command.run)
    if folder is None:
        raise ValueError(f"{command.run}: no checkpoint; expected an epoch_* directory, or the directory of a run")
    cache = command.cache or _cache(folder)
    config, given_back = trackers(folder, cache, aux_share=command.aux_share, by=command.by)
    if command.write is not None:
        from srft.model.pretrained import save_tracker

        about = {"run": config.name, "give_back": command.write}
        save_tracker(given_back(command.write), command.out, preset=config.tracker.preset, about=about)
        print(f"wrote {command.out}: {folder}, given back with strength {command.write:g}")
        return

    from tqdm import tqdm

    from srft.data.domain import load_domain
    from srft.evaluation.runner import TestSet, evaluate
    from srft.method.giving_back import strength_with
    from srft.method.paradigms import what_trains

    domain = load_domain(config.data, cache)
    sets = [TestSet(name="target", sequences=domain.val), TestSet(name="source", sequences=domain.source, rgb_only=True)]
    found: list[dict[str, float]] = []
    total = len(command.strengths) * sum(s.frames for s in sets)
    with tqdm(total=total, desc="validate", unit="frame", disable=None, leave=False) as bar:
        for strength in command.strengths:
            measures = evaluate(given_back(strength), sets, on_frames=bar.update).measures
            found.append({"strength": strength, **{name: m.success_auc for name, m in measures.items()}})
    print(
        f"{folder}: success AUC in percent on {len(domain.val)} validation sequences, and on {len(domain.source)} of the source, RGB only"
    )
    print(f"{'strength':>10} {'target':>8} {'source':>8}")
    for line in found:
        print(f"{line['strength']:>10g} {100 * line['target']:>8.1f} {100 * line['source']:>8.1f}")
    srft = config.srft
    if what_trains(config.paradigm)[1] and srft.give_back:
        own = strength_with(srft.give_back, len(domain.train), up_to=srft.give_back_sequences)
        print(f"the run itself exported strength {own:.3g}")
    best = max(found, key=lambda line: line["target"] + line["source"])["strength"]
    print(f"the highest sum has strength {best:g}: --write {best:g}, or train with srft.give_back={best:g} srft.give_back_sequences=0")
    if command.json:
        write_json(command.json, {"checkpoint": str(folder), "aux_share": command.aux_share, "validation": found})
    if command.plot:
        from srft.evaluation.plots import front_plot

        points = [(line["source"], line["target"], f"{line['strength']:g}") for line in found]
        front_plot(points, command.plot, title=f"{config.name}: strengths of giving back, on validation")


def _check_options(command: GiveBack) -> None:
    # An option as it is by default cannot be told from one that was left out.
    case, names = ("without --write", ("out",)) if command.write is None else ("with --write", ("strengths", "plot", "json"))
    defaults = {f.name: f.default for f in fields(command)}
    if idle := [f"--{name}" for name in names if getattr(command, name) != defaults[name]]:
        raise ValueError(f"{' '.join(idle)} {'has' if len(idle) == 1 else 'have'} no effect {case}")


def _cache(folder: Path) -> Path:
    # A run's own, or that of the sweep whose trial it is.
    own, sweep = folder.parent / "cache", folder.parent.parent.parent / "cache"
    return sweep if not own.exists() and sweep.exists() else own
