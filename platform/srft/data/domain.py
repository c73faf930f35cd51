"""The sequences of a run: of benchmarks on disk, or of the synthetic world."""

from __future__ import annotations

from pathlib import Path

from srft.config import DataConfig
from srft.data.benchmarks import DataError, open_benchmark
from srft.data.sampling import unusable
from srft.data.sequence import Domain, Sequence
from srft.data.synthetic import Split, sequences

__all__ = ["load_domain", "rendered", "source_training"]


def load_domain(data: DataConfig, cache: Path | None = None) -> Domain:
    """The sequences a run trains and validates on, less training sequences that no pair can be drawn from.

    Args:
        data: the run's data settings; in the synthetic world the modality chooses the camera beside the RGB camera.
        cache: folder of rendered sequences, see :func:`srft.data.synthetic.sequences`.

    Returns:
        Training, validation and source sequences; for the modality ``rgb`` the target domain has RGB frames only. Of a benchmark all
        training sequences less the validation part, and at most as many of validation and source as asked for, spread over the list.

    Raises:
        DataError: there is no training sequence, or no pair can be drawn from any.
    """
    if data.benchmark:
        train = open_benchmark(data.benchmark, data.root, split="train", modality=data.modality)
        val = _spread(open_benchmark(data.benchmark, data.root, split="val", modality=data.modality), data.val_sequences)
    else:
        train, val = rendered(data, "target-train", cache, world=data.train_world), rendered(data, "target-val", cache)
    if data.source_benchmark:
        held_out = open_benchmark(data.source_benchmark, data.source_root, split="val", modality="rgb")
        source = _spread(held_out, data.source_sequences)
    else:
        source = rendered(data, "source-test", cache)
    where = data.root or "the synthetic world"
    if not train:
        raise DataError(f"{where}: no training sequences beside those of validation; expected at least one, add sequences")
    reasons = {sequence.name: unusable(sequence, data.pairs, data.max_gap) for sequence in train}
    usable = tuple(sequence for sequence in train if reasons[sequence.name] is None)
    if not usable:
        raise DataError(f"{where}: no pair can be drawn from any of {len(train)} sequences; the first: {next(iter(reasons.values()))}")
    return Domain(train=usable, val=val, source=source)


def rendered(data: DataConfig, split: Split, cache: Path | None = None, *, world: int = -1) -> tuple[Sequence, ...]:
    """Sequences of the synthetic world, as many as a run asks for.

    Args:
        data: the run's data settings.
        split: ``target-train``, ``target-val``, ``target-test`` or ``source-test``.
        cache: see :func:`load_domain`.
        world: seed of another world than the run's; negative for the run's.

    Returns:
        The sequences.
    """
    counts = {
        "target-train": data.train_sequences,
        "target-val": data.val_sequences,
        "target-test": data.test_sequences,
        "source-test": data.source_sequences,
    }
    seed = data.world_seed if world < 0 else world
    return tuple(sequences(split, counts[split], seed=seed, length=data.length, modality=data.modality, cache=cache))


def source_training(data: DataConfig, count: int, cache: Path | None = None) -> tuple[Sequence, ...]:
    """RGB sequences of the source domain that the prior is estimated from; none is among the source sequences of :func:`load_domain`.

    Args:
        data: the run's data settings.
        count: how many, of the synthetic world; of a benchmark all training sequences.
        cache: see :func:`load_domain`.

    Returns:
        The sequences.
    """
    if data.source_benchmark:
        return open_benchmark(data.source_benchmark, data.source_root, split="train", modality="rgb")
    return tuple(sequences("source-train", count, seed=data.world_seed, length=data.length, cache=cache))


def _spread(sequences: tuple[Sequence, ...], count: int) -> tuple[Sequence, ...]:
    count = min(count, len(sequences))
    return tuple(sequences[i * len(sequences) // count] for i in range(count))
