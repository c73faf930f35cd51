"""Samples per second and memory of full fine-tuning and of SRFT on one GPU: `base`, two streams, bf16.

    PYTHONPATH=platform:. python tests/benchmarks/gpu_training.py --json tests/benchmarks/results/gpu_training.json

SRFT has a prior of 16 eigenpairs per operation (random, which costs the same), damping, and statistics refreshed every 10 steps. Batches
are random and on the device already. Needs torch and timm only, no Ray and no MLflow. ``--device cpu --preset tiny`` tries it out.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any, Literal

import torch

from srft.config import OptimConfig, SRFTConfig
from srft.data.pairs import Batch
from srft.method.optimizer import SRFTAdamW
from srft.method.paradigms import select_trainable
from srft.method.sparsity import MergedStatistics
from srft.model.architecture import PRESETS
from srft.model.tracker import MultiModalTracker
from srft.training.update import Updater
from tests.benchmarks.test_step_cost import random_prior

Method = Literal["FFT", "SRFT"]
REFRESH = 10


def measure(method: Method, *, preset: str, device: str, precision: Any, batch: int, steps: int) -> dict[str, float]:
    """Train on random batches; the first ten steps are not timed."""
    from srft.training.prior import carry

    torch.manual_seed(0)
    network = MultiModalTracker.from_preset(preset, 2).to(device)
    select_trainable(network, "full", freeze_head=True)
    network.train()
    network.box_head.eval()
    srft = prior = None
    if method == "SRFT":
        srft = SRFTConfig(rank=16, prior_strength=100.0, damping_strength=0.5, refresh=REFRESH)
        prior = carry(random_prior(MultiModalTracker.from_preset(preset, 1), 16), network)
    named = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
    optimizer = SRFTAdamW(named, total_steps=steps + 10, lr=1e-5, srft=srft, prior=prior)
    update = Updater(network, optimizer, OptimConfig(batch_size=batch, lr=1e-5, precision=precision))
    arch = PRESETS[preset]
    images = (torch.randn(batch, 6, side, side, device=device) for side in (arch.template_px, arch.search_px))
    data = Batch(*images, torch.rand(batch, 4, device=device) * 0.3 + 0.3)
    cuda = device.startswith("cuda")
    started = 0.0
    for step in range(steps + 10):
        if step == 10:
            if cuda:
                torch.cuda.synchronize()
                torch.cuda.reset_peak_memory_stats()
            started = time.perf_counter()
        update.gradients(data, step, "")
        update.apply(step)
        if method == "SRFT" and (step + 1) % REFRESH == 0:
            optimizer.set_statistics(MergedStatistics.of(step + 1, optimizer.sketches()))
    if cuda:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    found = {"samples_per_s": batch * steps / seconds, "step_ms": 1000 * seconds / steps}
    return found | ({"peak_memory_gib": torch.cuda.max_memory_allocated() / 2**30} if cuda else {})


def main() -> None:
    """Measure and record."""
    from srft.files import environment, write_json

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="base")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    settings = {key: getattr(given, key) for key in ("preset", "device", "precision", "batch", "steps")}
    methods: tuple[Method, ...] = ("FFT", "SRFT")
    figures: dict[str, Any] = {method: measure(method, **settings) for method in methods}
    figures["SRFT beside FFT"] = figures["SRFT"]["samples_per_s"] / figures["FFT"]["samples_per_s"]
    name = torch.cuda.get_device_name() if given.device.startswith("cuda") else "CPU"
    report = {**settings, "device": name, **figures, "environment": environment()}
    print(json.dumps(report, indent=1))
    if given.json:
        write_json(given.json, report)


if __name__ == "__main__":
    main()
