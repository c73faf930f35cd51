"""Time of the network beside the published one in plain operations (tests/reference/ostrack.py), same weights, alternating in one process.

    OMP_NUM_THREADS=1 PYTHONPATH=platform:. python tests/benchmarks/network_cost.py --preset base \
        --json tests/benchmarks/results/network_base.json

Medians of the thread's processor time and their ratio; a ratio above 1 says how many times faster ours is. ``products_share_of_plain`` is
what of the plain network's time is matrix products of linear layers, which both have in common: were all the rest free, the ratio would be
its inverse. Forward passes are without gradients in eval mode, as an online tracker makes them; forward and backward passes in training
mode, head included, with the tracking loss. Weights and images are random.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from srft.files import git_commit
from srft.model.head import decode
from srft.model.losses import tracking_loss
from srft.model.tracker import MultiModalTracker, TrackerOutput
from tests.reference import ostrack

CASES = {
    "forward, one stream": (1, False, False),
    "forward, one stream with elimination": (1, True, False),
    "forward, two streams": (2, False, False),
    "forward and backward, one stream": (1, False, True),
    "forward and backward, two streams": (2, False, True),
}


def measure(preset: str, case: str, *, batch: int, rounds: int) -> dict[str, float]:
    """Seconds of both, and how far apart their boxes or losses are."""
    streams, eliminate, backward = CASES[case]
    torch.manual_seed(0)
    network = MultiModalTracker.from_preset(preset, streams, eliminate=eliminate).train(backward)
    arch = network.arch
    template, search = (torch.randn(batch, 3 * streams, side, side) for side in (arch.template_px, arch.search_px))
    truth = torch.rand(batch, 4) * 0.2 + 0.4
    weights = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    weights = weights if streams == 1 else ostrack.srtrack_names(weights)

    def plain() -> TrackerOutput:
        if streams == 1:
            tokens = ostrack.single_stream(weights, template, search, heads=arch.heads, eliminate_in=arch.eliminate_in)
        else:
            tokens = ostrack.two_streams(weights, template, search, heads=arch.heads, fusion_after=arch.fusion_after)
        maps = ostrack.head(weights, tokens, training=backward)
        return TrackerOutput(*maps, decode(*maps))

    def step(forward: Callable[[], TrackerOutput]) -> torch.Tensor:
        if not backward:
            with torch.inference_mode():
                return forward().boxes
        network.zero_grad(set_to_none=True)
        loss = tracking_loss(forward(), truth)["loss"]
        loss.backward()
        return loss.detach()

    ours = lambda: network(template, search)
    difference = float((step(ours) - step(plain)).abs().max())
    taken: dict[str, list[float]] = {"ours": [], "plain": []}
    for _ in range(rounds):
        for name, forward in (("ours", ours), ("plain", plain)):
            start = time.thread_time()
            step(forward)
            taken[name].append(time.thread_time() - start)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        step(plain)
    times = {event.key: event.self_cpu_time_total for event in profile.key_averages()}
    medians = {name: statistics.median(values) for name, values in taken.items()}
    return {
        "ours_s": medians["ours"],
        "plain_s": medians["plain"],
        "ratio": medians["plain"] / medians["ours"],
        "ratio_of_fastest": min(taken["plain"]) / min(taken["ours"]),
        "products_share_of_plain": (times["aten::addmm"] + times.get("aten::mm", 0.0)) / sum(times.values()),
        "difference": difference,
    }


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="base")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--case", choices=CASES, nargs="*", default=list(CASES))
    parser.add_argument("--json", type=Path, help="write the figures here")
    given = parser.parse_args()
    torch.set_num_threads(1)
    found = {case: measure(given.preset, case, batch=given.batch, rounds=given.rounds) for case in given.case}
    for case, figures in found.items():
        print(f"{case:38}", " ".join(f"{name} {value:.3g}" for name, value in figures.items()))
    if given.json:
        machine = {"vector units": torch.backends.cpu.get_cpu_capability(), "torch": torch.__version__, "threads": 1}
        setting = {"preset": given.preset, "batch": given.batch, "rounds": given.rounds}
        given.json.write_text(json.dumps({"machine": machine, "commit": git_commit(), **setting, "cases": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
