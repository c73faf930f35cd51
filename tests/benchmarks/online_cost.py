"""Frames per second of the online tracker beside a plain one: the published network in plain operations (tests/reference/ostrack.py) in the
published loop (tests/reference/online.py), same weights and frames, alternating in one process.

    OMP_NUM_THREADS=1 PYTHONPATH=platform:. python tests/benchmarks/online_cost.py --json tests/benchmarks/results/online_base.json

Medians over frames; a ratio above 1 says how many times faster ours is. The share of our time that is inside the network is measured by
hooks around its forward pass; what of the plain network's time is matrix products of linear layers, which both have in common, by torch's
profiler. Weights and frames are random.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from srft.data.crops import crop
from srft.evaluation.online import BatchTracker
from srft.files import git_commit
from srft.model.normalization import MEAN, STD
from srft.model.tracker import MultiModalTracker
from tests.reference import online as published
from tests.reference import ostrack

CASES = {
    "one stream": (1, False),
    "one stream with elimination": (1, True),
    "two streams": (2, False),
}
BOX = [300.0, 200.0, 60.0, 50.0]


class PlainTracker:
    """One target, published arithmetic, plain operations."""

    def __init__(self, network: MultiModalTracker) -> None:
        """Take a network's weights by the published names."""
        self.arch, self.streams = network.arch, network.streams
        self.weights = network.state_dict() if self.streams == 1 else ostrack.srtrack_names(network.state_dict())
        self.box = BOX

    def _normalized(self, patch: np.ndarray) -> torch.Tensor:
        mean, std = (torch.tensor(values * self.streams).view(1, -1, 1, 1) for values in (MEAN, STD))
        return (torch.tensor(patch).float().permute(2, 0, 1).unsqueeze(0) / 255.0 - mean) / std

    def initialize(self, frame: np.ndarray) -> None:
        """Show the target at :data:`BOX`."""
        self.template = self._normalized(crop(frame, np.array(self.box), self.arch.template_factor, self.arch.template_px)[0])

    def forward(self, search: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Maps of a search region."""
        arch = self.arch
        if self.streams == 1:
            tokens = ostrack.single_stream(self.weights, self.template, search, heads=arch.heads, eliminate_in=arch.eliminate_in)
        else:
            tokens = ostrack.two_streams(self.weights, self.template, search, heads=arch.heads, fusion_after=arch.fusion_after)
        return ostrack.head(self.weights, tokens)

    @torch.inference_mode()
    def track(self, frame: np.ndarray) -> list[float]:
        """Next box, ltwh pixels."""
        patch, factor = crop(frame, np.array(self.box), self.arch.search_factor, self.arch.search_px)
        score, size, offset = (maps[0].tolist() for maps in self.forward(self._normalized(patch)))
        self.box, _ = published.locate(score[0], size, offset, self.box, factor, self.arch.search_px, frame.shape[1::-1])
        return self.box


def linear_share(forward: Callable[[], object]) -> float:
    """Share of the time of a call that is in the matrix products of linear layers."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        forward()
    times = {event.key: event.self_cpu_time_total for event in profile.key_averages()}
    return times["aten::addmm"] / sum(times.values())


def measure(preset: str, case: str, *, frames: int) -> dict[str, float]:
    """Seconds a frame of both loops, and where they go."""
    streams, eliminate = CASES[case]
    torch.manual_seed(0)
    network = MultiModalTracker.from_preset(preset, streams, eliminate=eliminate).eval()
    for value in network.parameters():
        value.requires_grad_(False)
    video = np.random.default_rng(0).integers(0, 256, (frames + 2, 480, 640, 3 * streams), np.uint8)
    inside, entered = [0.0], [0.0]
    network.register_forward_pre_hook(lambda *_: entered.__setitem__(0, time.perf_counter()))
    network.register_forward_hook(lambda *_: inside.__setitem__(0, time.perf_counter() - entered[0]))
    ours, plain = BatchTracker(network), PlainTracker(network)
    ours.join(0, video[0], np.array(BOX))
    plain.initialize(video[0])
    taken: dict[str, list[float]] = {"ours": [], "plain": [], "network": []}
    apart = 0.0
    for number, frame in enumerate(video[1:]):
        begun = time.perf_counter()
        box = ours.track({0: frame})[0].box
        between = time.perf_counter()
        other = plain.track(frame)
        ended = time.perf_counter()
        apart = max(apart, float(np.abs(box - other).max()))
        if number:  # the first frame warms up
            for name, seconds in (("ours", between - begun), ("network", inside[0]), ("plain", ended - between)):
                taken[name].append(seconds)
    medians = {name: statistics.median(values) for name, values in taken.items()}
    with torch.inference_mode():
        search = torch.randn(1, 3 * streams, network.arch.search_px, network.arch.search_px)
        embed = network.get_submodule("backbone.patch_embed" if streams == 1 else "backbone.patch_embed_rgb")
        begun = time.perf_counter()
        for _ in range(5):
            embed(plain.template[:, :3])
        embedding = streams * (time.perf_counter() - begun) / 5
        linear = linear_share(lambda: plain.forward(search))
    return {
        "ours_frames_per_s": 1 / medians["ours"],
        "plain_frames_per_s": 1 / medians["plain"],
        "ratio": medians["plain"] / medians["ours"],
        "ratio_of_fastest": min(taken["plain"]) / min(taken["ours"]),
        "share_in_network": statistics.median(n / o for n, o in zip(taken["network"], taken["ours"], strict=True)),
        "share_of_template_embedding": embedding / medians["ours"],
        "linear_share_of_plain": linear,
        "boxes_apart_px": apart,
    }


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description="Frames per second of the online tracker beside a plain one.")
    parser.add_argument("--preset", default="base")
    parser.add_argument("--frames", type=int, default=9)
    parser.add_argument("--case", choices=CASES, nargs="*", default=list(CASES))
    parser.add_argument("--json", type=Path, help="write the figures here")
    given = parser.parse_args()
    torch.set_num_threads(1)
    found = {case: measure(given.preset, case, frames=given.frames) for case in given.case}
    for case, figures in found.items():
        print(f"{case:28}", " ".join(f"{name} {value:.3g}" for name, value in figures.items()))
    if given.json:
        machine = {"vector units": torch.backends.cpu.get_cpu_capability(), "torch": torch.__version__, "threads": 1}
        setting = {"preset": given.preset, "frames": given.frames}
        given.json.write_text(json.dumps({"machine": machine, "commit": git_commit(), **setting, "cases": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
