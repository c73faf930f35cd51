"""Time and peak memory of an estimate of the prior, beside as many forward and backward passes at batch 1.

    OMP_NUM_THREADS=1 PYTHONPATH=platform python tests/benchmarks/fisher_cost.py --preset base --samples 8 --rank 64 --estimator kronecker

Weights and images are random. Each measurement is a process of its own; memory is the growth of its peak resident size over what was
there with the model loaded, plus the weights, in units of the weights.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

ESTIMATORS = ("exact", "streaming", "kronecker")


def resident_peak(*, reset: bool = False) -> int:
    """Peak resident size of this process in bytes, since the last reset."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))


def measure(what: str, preset: str, samples: int, rank: int, *, diagonal: bool) -> dict[str, float]:
    """Measure one thing in this process: ``passes`` or an estimator."""
    import torch

    from srft.method.fisher import estimate_prior
    from srft.method.kronecker import estimate_prior_kronecker
    from srft.method.streaming import estimate_prior_streaming
    from srft.model.losses import tracking_loss
    from srft.model.tracker import MultiModalTracker

    torch.manual_seed(0)
    tracker = MultiModalTracker.from_preset(preset, 1).eval()
    weights = sum(p.numel() * p.element_size() for p in tracker.parameters())
    z, x = tracker.arch.template_px, tracker.arch.search_px
    boxes = torch.rand(samples, 1, 4) * 0.3 + 0.3
    items = [(torch.randn(1, 3, z, z), torch.randn(1, 3, x, x), box) for box in boxes]

    def loss(network, item):
        template, search, box = item
        return tracking_loss(network(template, search), box)["loss"]

    before = resident_peak(reset=True)
    wall, cpu = time.perf_counter(), time.process_time()
    share = None
    if what == "passes":
        for item in items:
            loss(tracker, item).backward()
            tracker.zero_grad(set_to_none=True)
    else:
        estimate = {"exact": estimate_prior, "streaming": estimate_prior_streaming, "kronecker": estimate_prior_kronecker}[what]
        prior = estimate(tracker, loss, items, rank=rank, fisher_type="empirical", diagonal=diagonal)
        kept, trace = (sum(values) for values in zip(*((float(p.eigenvalues.sum()), p.trace) for p in prior.groups.values()), strict=True))
        share = kept / trace
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    figures = {"seconds": wall, "cpu_seconds": cpu, "peak_in_weights": 1 + (resident_peak() - before) / weights}
    return figures | ({} if share is None else {"captured_trace": share})


def in_process(what: str, preset: str, samples: int, rank: int, *, diagonal: bool = False) -> dict[str, float]:
    """:func:`measure` in a fresh process."""
    command = [sys.executable, __file__, "--preset", preset, "--samples", str(samples), "--rank", str(rank), "--measure", what]
    done = subprocess.run([*command, *(["--diagonal"] if diagonal else [])], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


def compare(estimator: str, preset: str, samples: int, rank: int, *, diagonal: bool = False) -> dict[str, object]:
    """Figures of the passes, of the estimate, and the ratio of their times on the processor."""
    passes = in_process("passes", preset, samples, rank)
    estimate = in_process(estimator, preset, samples, rank, diagonal=diagonal)
    sizes = {"preset": preset, "samples": samples, "rank": rank, "estimator": estimator, "diagonal": diagonal}
    return {**sizes, "passes": passes, "estimate": estimate, "time_ratio": estimate["cpu_seconds"] / passes["cpu_seconds"]}


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="base")
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--estimator", choices=ESTIMATORS, default="kronecker")
    parser.add_argument("--diagonal", action="store_true", help="estimate the diagonal, too")
    parser.add_argument("--json", action="store_true", help="print figures as JSON")
    parser.add_argument("--measure", choices=("passes", *ESTIMATORS), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(measure(given.measure, given.preset, given.samples, given.rank, diagonal=given.diagonal)))
        return
    figures = compare(given.estimator, given.preset, given.samples, given.rank, diagonal=given.diagonal)
    if given.json:
        print(json.dumps(figures))
        return
    for name in ("passes", "estimate"):
        print(f"{name:9}", " ".join(f"{key} {value:.3f}" for key, value in figures[name].items()))
    print(f"time of the estimate in passes: {figures['time_ratio']:.2f}")


if __name__ == "__main__":
    main()
