"""What logging costs a trial: the seconds that it holds training up, and the processor time of its thread, against the training.

    OMP_NUM_THREADS=1 PYTHONPATH=platform:. python tests/benchmarks/logging_cost.py --out results.json

One trial of the tiny tracker trains and is logged epoch by epoch into a database file, with its start and end. Epochs of ten steps, a third
of a sweep's, make the share larger than it is in use.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from srft.config import TrainConfig
from srft.files import environment, write_json
from srft.run_logging import StudyLog, open_study
from srft.settings import from_flat
from srft.training.epoch import EpochReport
from srft.training.step import fine_tune, prepare

SETTINGS = {
    "data.train_sequences": 4, "data.val_sequences": 2, "data.source_sequences": 2, "data.length": 16,
    "srft.fisher_samples": 16, "optim.epochs": 4, "optim.steps_per_epoch": 10,
}  # fmt: skip


def trial(config: TrainConfig, log: StudyLog, index: int, cache: Path, directory: Path) -> dict[str, float]:
    """Train and log one trial.

    Args:
        config: of the trial.
        log: where to.
        index: of the trial.
        cache: folder of sequences and prior.
        directory: of the checkpoints.

    Returns:
        Seconds of the trial, seconds that calls of the log took, and processor seconds of its thread.
    """
    domain, prior = prepare(config, cache)
    calls, started = 0.0, time.perf_counter()
    # The thread's own clock, whatever else runs on the machine.
    clock = time.pthread_getcpuclockid(log._thread.ident or 0)
    before = time.clock_gettime(clock)

    def note(report: EpochReport) -> None:
        nonlocal calls
        begin = time.perf_counter()
        log.log_epoch(index, report.epoch, report.metrics)
        calls += time.perf_counter() - begin

    log.start_trial(index)
    fine_tune(config, domain, prior, directory=directory, on_epoch=note)
    log.end_trial(index, "FINISHED")
    trained = time.perf_counter() - started
    log.flush()
    return {"trial_seconds": trained, "call_seconds": calls, "thread_seconds": time.clock_gettime(clock) - before}


def measure(repetitions: int = 3) -> dict[str, object]:
    """Medians over trials; the first, which warms up, is left out.

    Args:
        repetitions: trials.

    Returns:
        Seconds, and shares of the trial's time.
    """
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary)
        trials = {i: from_flat(SETTINGS | {"name": f"cost-{i:03d}"}) for i in range(repetitions + 1)}
        with open_study(out, "cost", trials, digest="cost", uri=f"sqlite:///{out / 'mlflow.db'}") as log:
            rows = [trial(config, log, i, out / "cache", out / str(i)) for i, config in trials.items()][1:]
    median = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
    return {
        **{key: round(value, 5) for key, value in median.items()},
        "call_share": round(median["call_seconds"] / median["trial_seconds"], 6),
        "thread_share": round(median["thread_seconds"] / median["trial_seconds"], 5),
        "trials": repetitions,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("logging.json"))
    found = {"environment": environment(), "settings": SETTINGS, "logging": measure()}
    write_json(parser.parse_args().out, found)
    print(found["logging"])
