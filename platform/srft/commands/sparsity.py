"""``srft sparsity``."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import tyro


@dataclass(frozen=True, kw_only=True)
class Sparsity:
    """Show how unevenly a run's gradients are spread, by operation: of a run that trains now, or of its newest checkpoint.

    srft sparsity outputs/winner

    srft sparsity outputs/winner --json sparsity.json
    """

    run: tyro.conf.Positional[Path]
    """Directory of the run."""
    json: Path | None = None
    """Write the figures here."""


def run(command: Sparsity) -> None:
    """Print one line per operation, most uneven first.

    Args:
        command: the options.

    Raises:
        ValueError: the run has no statistics yet.
    """
    from srft.files import write_json
    from srft.training import checkpoint, home, sparsity_actor

    config = home.config_of(command.run)
    found, source = sparsity_actor.of_running(command.run), "its workers, now"
    if found is None:
        newest = checkpoint.latest(command.run)
        found, source = (checkpoint.load(newest).statistics(), newest.name) if newest else (None, "")
    if found is None:
        raise ValueError(
            f"{command.run}: no gradient statistics yet; they come every srft.refresh = {config.srft.refresh} steps, "
            f"if the paradigm is regularized (it is {config.paradigm})"
        )
    batch = config.optim.batch_size // max(1, found.sketch.workers)
    order = sorted(found.figures, key=lambda name: -found.figures[name].hoyer)
    print(f"step {found.step} ({source}): overlap of workers {found.overlap:.3f}, noise scale {found.noise(batch):.1f} samples")
    print(f"{'hoyer':>7} {'gini':>7} {'top 1 %':>8} {'participation':>14}  operation")
    for name in order:
        f = found.figures[name]
        print(f"{f.hoyer:7.3f} {f.gini:7.3f} {f.top_share:8.3f} {f.participation:14.4f}  {name}")
    if command.json:
        figures = {name: asdict(found.figures[name]) for name in order}
        shared = {"overlap": found.overlap, "noise_scale": found.noise(batch)} if found.sketch.workers > 1 else {}
        write_json(command.json, {"step": found.step, **shared, "operations": figures})
