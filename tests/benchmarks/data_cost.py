"""Speed of data loading beside a plain pipeline on the same files: decode both images, crop, mirror, normalize as floats.

    OMP_NUM_THREADS=1 PYTHONPATH=platform:. python tests/benchmarks/data_cost.py --json tests/benchmarks/results/data.json

640 x 480 JPEGs (RGB and auxiliary image), targets of 16 to 160 pixels, samples for `base` (template 128, search region 256 pixels).
Samples per second and core are medians of the thread's processor time over rounds that alternate with the plain pipeline. The loader's are
of the wall clock and of bytes, as they leave its processes, one or two; its memory is what a process holds beyond one that imported torch.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import torch

from srft.config import DataConfig
from srft.data.benchmarks import open_benchmark
from srft.data.crops import region_side
from srft.data.loader import PairLoader
from srft.data.packing import pack
from srft.data.pairs import PairSampler, normalized, stack
from srft.data.sequence import Sequence
from srft.files import environment, write_json
from srft.model.architecture import PRESETS

MEAN, STD = np.array([0.485, 0.456, 0.406] * 2, np.float32), np.array([0.229, 0.224, 0.225] * 2, np.float32)
SIZE = (480, 640)


def write(root: Path, sequences: int, frames: int, seed: int = 0) -> None:
    """Sequences in VisEvent's layout: textured frames that JPEG compresses about as photographs."""
    rng = np.random.default_rng(seed)
    for s in range(sequences):
        folder = root / "train" / f"seq{s}"
        for part in ("vis_imgs", "event_imgs"):
            (folder / part).mkdir(parents=True)
        coarse = rng.integers(0, 256, (SIZE[0] // 8, SIZE[1] // 8, 3), np.uint8)
        scene = cv2.resize(coarse, SIZE[::-1], interpolation=cv2.INTER_CUBIC).astype(np.float32)
        side = float(np.exp(rng.uniform(np.log(16), np.log(160))))
        boxes = []
        for t in range(frames):
            noise = cv2.GaussianBlur(rng.normal(0, 40, (*SIZE, 3)).astype(np.float32), (0, 0), 1.0)
            picture = np.clip(np.roll(scene, 3 * t, 1) + noise, 0, 255).astype(np.uint8)
            events = np.where(rng.random(SIZE)[..., None] < 0.05, rng.integers(0, 2, (*SIZE, 1)) * np.array([255, 0, -255]) % 256, 0)
            for part, image in (("vis_imgs", picture), ("event_imgs", events.astype(np.uint8))):
                cv2.imwrite(str(folder / part / f"frame{t:04d}.jpg"), image, [cv2.IMWRITE_JPEG_QUALITY, 92])
            boxes.append(f"{100 + 2 * t},{120 + t},{side:.1f},{side * 0.8:.1f}")
        (folder / "groundtruth.txt").write_text("\n".join(boxes))
        (folder / "absent_label.txt").write_text("\n".join("1" for _ in boxes))


def plain(sampler: PairSampler, folder: Path, epoch: int, index: int) -> tuple[torch.Tensor, torch.Tensor]:
    """One sample as trackers' code makes it: whole frames, padded crops, floats."""
    rng = np.random.default_rng([sampler.seed, epoch, index])
    sequence, frames = sampler._drawn(rng)
    mirrored = rng.random() < 0.5
    out = []
    for i, factor, px in zip(
        frames, (sampler.arch.template_factor, sampler.arch.search_factor), (sampler.arch.template_px, sampler.arch.search_px), strict=True
    ):
        images = [cv2.imread(str(folder / sequence.name / part / f"frame{i:04d}.jpg")) for part in ("vis_imgs", "event_imgs")]
        frame = np.concatenate([cv2.cvtColor(image, cv2.COLOR_BGR2RGB) for image in images if image is not None], 2)
        x, y, w, h = sequence.boxes[i]
        side = region_side(sequence.boxes[i], factor)
        x1, y1 = round(x + w / 2 - side / 2), round(y + h / 2 - side / 2)
        pad = [max(0, -y1), max(0, y1 + side - SIZE[0]), max(0, -x1), max(0, x1 + side - SIZE[1])]
        seen = frame[max(0, y1) : y1 + side, max(0, x1) : x1 + side]
        patch = cv2.resize(np.pad(seen, ((pad[0], pad[1]), (pad[2], pad[3]), (0, 0))), (px, px)).astype(np.float32) / 255
        patch = patch[:, ::-1] if mirrored else patch
        patch = np.clip(patch * (1 + 0.2 * rng.uniform(-1, 1)), 0, 1)
        out.append(torch.from_numpy(np.ascontiguousarray(((patch - MEAN) / STD).transpose(2, 0, 1))))
    return out[0], out[1]


def rss(pid: int | str = "self") -> float:
    """Resident memory of a process, MiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) / 1024


def per_core(root: Path, samplers: dict[str, PairSampler], count: int, rounds: int) -> dict[str, dict[str, float]]:
    """Samples per second and core of each way, and how many times that of the plain pipeline they are."""
    taken: dict[str, list[float]] = {name: [] for name in ("plain", *samplers)}
    for epoch in range(rounds + 1):
        for name in taken:
            start = time.thread_time()
            if name == "plain":
                made = [plain(samplers["exact"], root / "train", epoch, i) for i in range(count)]
                [torch.stack(part) for part in zip(*made, strict=True)]
            else:
                batch = stack([samplers[name].pair(epoch, i) for i in range(count)])
            if epoch:  # the first warms the files up
                taken[name].append((time.thread_time() - start) / count)
    rates = {name: 1 / statistics.median(values) for name, values in taken.items()}
    start = time.thread_time()
    normalized(batch)
    on_device = (time.thread_time() - start) / count
    figures = {name: {"samples_per_s": rate, "ratio": rate / rates["plain"]} for name, rate in rates.items()}
    return figures | {"normalization, on the device in training": {"samples_per_s": 1 / on_device}}


def scaling(sampler: PairSampler, batch: int, steps: int) -> dict[str, float]:
    """Samples per second, as bytes, of the loader with one and two processes, by the wall clock after its start, and a process's memory."""
    alone = subprocess.run(
        [sys.executable, "-c", "import torch; print(open('/proc/self/status').read())"], capture_output=True, text=True, check=True
    ).stdout
    torch_mib = int(next(line for line in alone.splitlines() if line.startswith("VmRSS")).split()[1]) / 1024
    figures = {}
    for workers in (1, 2, 1, 2):
        loader = PairLoader(sampler, epochs=1, steps=steps + 4, batch_size=batch, workers=workers)
        made = loader._started(0, 0)
        for _ in range(4):  # what was made ahead while the processes started
            next(made)
        start = time.perf_counter()
        for _ in range(steps):
            next(made)
        rate = batch * steps / (time.perf_counter() - start)
        figures[f"{workers} processes"] = max(rate, figures.get(f"{workers} processes", 0.0))
        figures["memory_mib_beyond_torch"] = max(rss(worker.pid) for worker in vars(made)["_workers"]) - torch_mib
        del made
    return figures | {"ratio": figures["2 processes"] / figures["1 processes"]}


def measure(*, sequences: int, frames: int, count: int, rounds: int, preset: str = "base", steps: int = 0) -> dict[str, object]:
    """All figures; the loader's only with steps."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "VisEvent"
        write(root, sequences, frames)
        settings = {"splits": ("trainval",), "partial": True, "frames_per_shard": frames}
        pack("visevent", root, Path(folder) / "pack", **settings)
        pack("visevent", root, Path(folder) / "context", context=10.0, **settings)
        data, arch = DataConfig(max_gap=24), PRESETS[preset]

        def sampler(place: Path, decode: str) -> PairSampler:
            found: tuple[Sequence, ...] = open_benchmark("visevent", place, split="trainval", partial=True)
            return PairSampler.of(found, arch, dataclasses.replace(data, decode=decode), seed=0)

        samplers = {
            "exact": sampler(root, "exact"),
            "reduced": sampler(root, "reduced"),
            "pack, exact": sampler(Path(folder) / "pack", "exact"),
            "pack, reduced": sampler(Path(folder) / "pack", "reduced"),
            "pack with context 10, exact": sampler(Path(folder) / "context", "exact"),
            "pack with context 10, reduced": sampler(Path(folder) / "context", "reduced"),
        }
        size = statistics.mean(path.stat().st_size for path in root.rglob("*.jpg"))
        result: dict[str, object] = {"preset": preset, "mean_jpeg_bytes": size, "per_core": per_core(root, samplers, count, rounds)}
        if steps:
            result["loader"] = scaling(samplers["pack, reduced"], count, steps)
        return result


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    figures = measure(sequences=12, frames=40, count=64, rounds=arguments.rounds, steps=24)
    machine = {"cores": len(os.sched_getaffinity(0)), "opencv": cv2.__version__, **environment()}
    write_json(arguments.json, {"machine": machine, "rounds": arguments.rounds, **figures})
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
