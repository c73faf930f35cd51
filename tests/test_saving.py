"""Checkpoints of real runs: inside an epoch, of running means, by a thread, sharded over processes, and back."""

import dataclasses
import json
import math
import os
import resource
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from srft.commands import give_back
from srft.commands.give_back import GiveBack
from srft.config import BaselineConfig, ConfigError, DataConfig, OptimConfig, SRFTConfig, TrackerConfig, TrainConfig
from srft.data.loader import PairLoader
from srft.evaluation.follow import track_sequences
from srft.evaluation.metrics import measure
from srft.method.giving_back import GivingBack
from srft.method.paradigms import select_trainable
from srft.model.pretrained import load_tracker
from srft.training import checkpoint
from srft.training import prior as prior_module
from srft.training.checkpoint import CheckpointError, Progress
from srft.training.epoch import Told
from srft.training.prior import carry
from srft.training.returning import trackers, weights_as_trained
from srft.training.saving import Checkpointer
from srft.training.state import read_tensors, write_tensors
from srft.training.step import Worker, fine_tune, prepare, tuned_tracker
from srft.training.worker import worker_of_group
from tests.processes import in_processes

CONFIG = TrainConfig(
    name="t",
    seed=3,
    data=DataConfig(train_sequences=3, val_sequences=2, source_sequences=1, length=8, max_gap=6),
    srft=SRFTConfig(rank=2, prior_strength=10.0, damping_strength=0.5, fisher_samples=4, refresh=2, give_back=2.0),
    optim=OptimConfig(batch_size=4, epochs=2, steps_per_epoch=5, lr=1e-3, warmup=0.34, ema=0.9, accumulate=2),
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Rendered sequences and the prior, kept so that other processes find them too."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prior_module, "SOURCE_SEQUENCES", 3)
        prepare(CONFIG, folder)
        yield folder


@pytest.fixture(scope="module")
def ready(cache):
    return prepare(CONFIG, cache)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, ready):
    directory, reports = tmp_path_factory.mktemp("whole"), []
    fine_tune(CONFIG, *ready, directory=directory, on_epoch=reports.append)
    return directory, reports


def told_at(*steps):
    """A worker that is told to end before these of its steps, counted from 1."""
    asked = []

    def told():
        asked.append(None)
        return "end" if len(asked) in steps else ""

    return Worker(told=told)


def timeless(metrics):
    return {name: value for name, value in metrics.items() if not name.startswith(("throughput/", "memory/"))}


def exported(directory):
    newest = checkpoint.latest(directory)
    assert newest is not None
    return checkpoint.load(newest).weights


def assert_same(a, b):
    torch.testing.assert_close(exported(a), exported(b), rtol=0, atol=0)


def test_a_run_that_is_told_to_end_saves_inside_the_epoch_and_goes_on_to_the_bit(whole, tmp_path, ready):
    seen = []
    with pytest.raises(Told, match="after step 7"):
        fine_tune(CONFIG, *ready, directory=tmp_path, worker=told_at(7), on_epoch=seen.append)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["epoch_0000", "epoch_0001_step_000007"]
    with pytest.raises(Told, match="after step 9"):
        fine_tune(CONFIG, *ready, directory=tmp_path, worker=told_at(2), on_epoch=seen.append, resume=True)
    fine_tune(CONFIG, *ready, directory=tmp_path, on_epoch=seen.append, resume=True)
    assert_same(whole[0], tmp_path)
    assert [timeless(r.metrics) for r in seen] == [timeless(r.metrics) for r in whole[1]]


def test_a_penalty_on_the_head_goes_on_to_the_bit(cache, tmp_path):
    """Small operations of odd sizes, whose copies lie elsewhere in memory than they do."""
    config = dataclasses.replace(CONFIG, tracker=TrackerConfig(freeze_head=False))
    ready = prepare(config, cache)
    fine_tune(config, *ready, directory=tmp_path / "whole")
    with pytest.raises(Told):
        fine_tune(config, *ready, directory=tmp_path / "a", worker=told_at(7))
    fine_tune(config, *ready, directory=tmp_path / "a", resume=True)
    assert_same(tmp_path / "whole", tmp_path / "a")


def test_checkpoints_inside_epochs_bound_what_is_lost(whole, tmp_path, ready):
    config = dataclasses.replace(CONFIG, checkpoint_steps=2)

    def die(report):
        if report.epoch == 0:
            assert sorted(p.name for p in tmp_path.iterdir()) == ["epoch_0000", "epoch_0000_step_000004"]
        else:
            assert sorted(p.name for p in tmp_path.iterdir()) == ["epoch_0000", "epoch_0001", "epoch_0001_step_000008"]

    fine_tune(config, *ready, directory=tmp_path, on_epoch=die)
    os.truncate(tmp_path / "epoch_0001" / "state" / "__0_0.distcp", 100)
    newest = checkpoint.latest(tmp_path)
    assert newest is not None
    assert newest.name == "epoch_0001_step_000008"
    fine_tune(config, *ready, directory=tmp_path, resume=True)
    assert_same(whole[0], tmp_path)


def test_what_is_exported_is_what_was_validated(whole, ready):
    directory, reports = whole
    domain = ready[0]
    tracker = tuned_tracker(directory / "epoch_0001")
    tracked = [(t.boxes, s.boxes, s.absent) for t, s in zip(track_sequences(tracker, domain.val), domain.val, strict=True)]
    assert measure(tracked).success_auc == pytest.approx(reports[1].metrics["val/success_auc"], abs=1e-12)
    plain = dataclasses.replace(CONFIG, optim=dataclasses.replace(CONFIG.optim, ema=0.0))
    assert checkpoint.load(directory / "epoch_0001").meta.digest != plain.digest()


def test_a_run_that_gives_back_trains_the_same_and_exports_less(whole, tmp_path, cache, ready):
    plain = dataclasses.replace(CONFIG, srft=dataclasses.replace(CONFIG.srft, give_back=0.0))
    fine_tune(plain, *prepare(plain, cache), directory=tmp_path)
    raw = [weights_as_trained(directory / "epoch_0001") for directory in (whole[0], tmp_path)]
    torch.testing.assert_close(*raw, rtol=0, atol=1e-6)
    assert any(not torch.equal(raw[0][name], w) for name, w in exported(whole[0]).items())
    start = load_tracker("tiny_rgb", streams=2)
    select_trainable(start, "full", freeze_head=True)
    prior = carry(ready[1], start, aux_share=CONFIG.srft.aux_share)
    expected = GivingBack.of(prior, start.state_dict(), 2.0)(exported(tmp_path))  # of the running mean
    torch.testing.assert_close(exported(whole[0]), expected, rtol=0, atol=1e-6)


def test_one_run_gives_the_trackers_of_all_strengths(tmp_path, cache, capsys):
    plain = dataclasses.replace(CONFIG.optim, ema=0.0, epochs=1)
    ends = {}
    for strength in (0.0, 3.0):
        sequences = len(prepare(CONFIG, cache)[0].train)  # More than one, so that the strength falls.
        srft = SRFTConfig(
            rank=0, prior_strength=0.0, fisher_samples=4, give_back=strength * sequences, give_back_sequences=1, aux_share=0.25
        )
        config = dataclasses.replace(CONFIG, optim=plain, srft=srft)
        ends[strength] = tmp_path / str(strength)
        fine_tune(config, *prepare(config, cache), directory=ends[strength])
    for made_with in ends:
        _, of_strength = trackers(ends[made_with] / "epoch_0000", cache, aux_share=0.25)
        for strength, directory in ends.items():
            torch.testing.assert_close(dict(of_strength(strength).state_dict()), exported(directory), rtol=0, atol=1e-6)
    figures, picture, written = (tmp_path / name for name in ("front.json", "front.png", "back.safetensors"))
    give_back.run(GiveBack(run=ends[0.0], strengths=(0.0, 3.0), aux_share=0.25, cache=cache, json=figures, plot=picture))
    shown = capsys.readouterr().out
    assert f"{ends[0.0] / 'epoch_0000'}: success AUC" in shown
    lines = json.loads(figures.read_text())["validation"]
    for line, directory in zip(lines, ends.values(), strict=True):  # what the runs themselves measured
        metrics = checkpoint.history(directory)[-1]["metrics"]
        assert (line["target"], line["source"]) == pytest.approx((metrics["val/success_auc"], metrics["source/success_auc"]), abs=1e-9)
    assert picture.read_bytes().startswith(b"\x89PNG")
    give_back.run(GiveBack(run=ends[0.0] / "epoch_0000", write=3.0, aux_share=0.25, cache=cache, out=written))
    torch.testing.assert_close(load_tracker(written).state_dict(), exported(ends[3.0]), rtol=0, atol=1e-6, check_device=False)
    with pytest.raises(ValueError, match="no checkpoint"):
        give_back.run(GiveBack(run=tmp_path))
    lora = dataclasses.replace(CONFIG, paradigm="lora", optim=plain)
    fine_tune(lora, *prepare(lora, cache), directory=tmp_path / "lora")
    with pytest.raises(ConfigError, match="paradigm is lora, which trains added parts"):
        trackers(tmp_path / "lora" / "epoch_0000", cache)


def test_a_held_run_of_one_stream_gives_back_that_stream(tmp_path, cache):
    held = dataclasses.replace(
        CONFIG, paradigm="aux", baseline=BaselineConfig(kind="ewc"), optim=dataclasses.replace(CONFIG.optim, ema=0.0, epochs=1)
    )
    fine_tune(held, *prepare(held, cache), directory=tmp_path)
    _, of_strength = trackers(tmp_path / "epoch_0000", cache)
    start, trained = load_tracker("tiny_rgb", streams=2).state_dict(), exported(tmp_path)
    torch.testing.assert_close(dict(of_strength(0.0).state_dict()), trained, rtol=0, atol=1e-6)
    back = of_strength(3.0).state_dict()
    moved = {name for name in start if not torch.equal(trained[name], start[name])}
    assert moved
    assert {name for name in start if not torch.equal(back[name], trained[name])} <= moved
    assert all(torch.equal(back[name], start[name]) for name in start if "_rgb" in name)
    assert sum(float((back[n] - start[n]).norm()) for n in moved) < sum(float((trained[n] - start[n]).norm()) for n in moved)


def test_a_thread_writes_what_was_given_and_its_failure_is_told(tmp_path):
    worker, tensor = Worker(), torch.arange(100.0)
    saver = Checkpointer(tmp_path, CONFIG, worker, aside_from=0)
    saver.expect({"w": tensor}, {"exp_avg.w": tensor})
    before = tensor.clone()

    def save(epoch):
        progress = Progress(epoch=epoch, step=epoch, metrics={"val/success_auc": 0.5})
        saver.save(progress, {"w": tensor}, {"exp_avg.w": tensor}, {"n": epoch})

    save(0)
    assert torch.equal(tensor, before)
    tensor.add_(1)
    save(1)
    tensor.add_(1)
    saver.wait()
    for epoch in range(2):
        saved = checkpoint.load(tmp_path / f"epoch_{epoch:04d}")
        back = torch.zeros(100)
        read_tensors(saved.tensors, {"exp_avg.w": back})
        assert torch.equal(back, torch.arange(100.0) + epoch)
        assert torch.equal(saved.weights["w"], back)
        assert saved.state == {"n": epoch}
    (tmp_path / ".epoch_0002.tmp").write_text("in the way")
    with pytest.raises(OSError, match="epoch_0002"):
        save(2)
    (tmp_path / ".epoch_0002.tmp").unlink()
    tmp_path.chmod(0o755)
    saver.save(Progress(epoch=3, step=3, metrics={}), {"w": tensor}, {"exp_avg.w": tensor}, {"path": Path()})
    saver.wait()
    with pytest.raises(CheckpointError, match="state"):
        read_tensors(tmp_path / "epoch_0003" / "state", {"exp_avg.w": torch.zeros(3)})
    assert checkpoint.latest(tmp_path) == tmp_path / "epoch_0003"


def test_a_full_disk_is_one_sentence_whoever_noticed_it(tmp_path):
    saver = Checkpointer(tmp_path, CONFIG, Worker())
    limit, ignore = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    large = torch.zeros(100_000)
    for weights, tensors in (({"w": torch.zeros(1)}, {"exp_avg.w": large}), ({"w": large}, {"exp_avg.w": torch.zeros(1)})):
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))
        try:
            with pytest.raises(OSError, match=r"epoch_0000: the checkpoint was not written \(.*make room") as caught:
                saver.save(Progress(epoch=0, step=1, metrics={}), weights, tensors, {})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        assert "\n" not in str(caught.value)
        assert list(tmp_path.iterdir()) == []
    signal.signal(signal.SIGXFSZ, ignore)


def test_state_of_other_shapes_or_names_is_refused(tmp_path):
    write_tensors(tmp_path, {"anchor.w": torch.zeros(4)})
    with pytest.raises(CheckpointError, match=r"anchor\.w has shape \(4,\), this run's has \(6,\)"):
        read_tensors(tmp_path, {"anchor.w": torch.zeros(6)})
    with pytest.raises(CheckpointError, match=r"raw\.w has shape nothing, this run's has \(2,\)"):
        read_tensors(tmp_path, {"raw.w": torch.zeros(2)})


STRATEGIES = ("ddp", "fsdp2")


def train_in_group(rank, directory, cache, begin):
    """One of two processes: runs that are told to end after step 6, or the rest of these."""
    prior_module.SOURCE_SEQUENCES = 3
    domain, prior = prepare(CONFIG, Path(cache))
    for strategy in STRATEGIES:
        config = dataclasses.replace(CONFIG, workers=2, strategy=strategy)
        asked = []

        def told(asked=asked):  # Every second step, and between epochs.
            asked.append(None)
            return "end" if begin and len(asked) == 4 else ""

        worker = worker_of_group(config, told=told)
        try:
            report = fine_tune(config, domain, prior, directory=Path(directory) / strategy, worker=worker, resume=True)
        except Told:
            assert begin
            continue
        assert not begin
        assert report.metrics["memory/peak_mb"] > 0
        assert ("sparsity/overlap" in report.metrics) == (strategy == "ddp")


def meet_in_group(rank, directory, cache):
    """One of two processes: the loss of one of them overflows; then both are told to end, and refresh no oftener than epochs begin."""
    prior_module.SOURCE_SEQUENCES = 3
    domain, prior = prepare(CONFIG, Path(cache))
    good = PairLoader.batch

    def bad(self, epoch, at):
        batch = good(self, epoch, at)
        return batch._replace(search=batch.search * float("nan")) if rank and at == 1 else batch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PairLoader, "batch", bad)
        optim = dataclasses.replace(CONFIG.optim, precision="fp16", epochs=1, steps_per_epoch=3)
        config = dataclasses.replace(CONFIG, workers=2, optim=optim)
        worker = worker_of_group(config)
        report = fine_tune(config, domain, prior, directory=Path(directory) / "overflow", worker=worker)
    assert len(set(worker.gather(torch.initial_seed()))) == 2  # what is dropped from one's samples is not from the other's
    assert math.isfinite(report.metrics["train/loss"])
    config = dataclasses.replace(CONFIG, workers=2, srft=dataclasses.replace(CONFIG.srft, refresh=5))
    with pytest.raises(Told, match="after step 5"):
        fine_tune(config, domain, prior, directory=Path(directory) / "told", worker=worker_of_group(config, told=lambda: "end"))


def test_processes_skip_and_end_together(tmp_path, cache):
    in_processes(2, meet_in_group, str(tmp_path), str(cache))
    for run in ("overflow", "told"):
        assert [p.name for p in (tmp_path / run).iterdir()] == ["epoch_0000"]
    newest = checkpoint.latest(tmp_path / "overflow")
    assert newest is not None
    scale = checkpoint.load(newest).state["scale"]
    assert (scale["scale"], scale["clean"], scale["skipped"]) == (2.0**15, 1, 0)


def movement(directory):
    start = load_tracker("tiny_rgb", streams=2).state_dict()
    return torch.cat([(w - start[name]).flatten().double() for name, w in exported(directory).items() if w.is_floating_point()])


def save_shards_aside(rank, directory):
    """One of two processes that exchange while a thread of each writes its shards."""
    config = dataclasses.replace(CONFIG, workers=2, strategy="fsdp2")
    worker, random = worker_of_group(config), np.random.default_rng(rank)
    tensors = {str(i): distribute_tensor(torch.ones(64, 8), init_device_mesh("cpu", (2,)), [Shard(0)]) for i in range(20)}
    checkpoints = Checkpointer(Path(directory), config, worker, aside_from=0)
    for step in range(1, 4):
        checkpoints.save(Progress(epoch=0, step=step, metrics=None), {"x": torch.ones(3)}, tensors, {"step": step})
        for i in range(40):
            time.sleep(random.random() * 0.004)
            assert worker.gather((step, i)) == [(step, i)] * 2
    checkpoints.wait()


def test_writing_aside_does_not_cross_what_training_exchanges(tmp_path):
    in_processes(2, save_shards_aside, str(tmp_path))
    newest = checkpoint.latest(tmp_path)
    assert newest is not None
    assert newest.name == "epoch_0000_step_000003"


def test_processes_train_as_one_and_their_checkpoints_are_anybodys(whole, tmp_path, cache, ready):
    """Two processes train an epoch and begin the next, one goes on from their checkpoint, and two from its."""
    in_processes(2, train_in_group, str(tmp_path), str(cache), True)
    for strategy in STRATEGIES:
        assert (tmp_path / strategy / "epoch_0001_step_000006").is_dir()
        with pytest.raises(Told, match="step 8"):
            fine_tune(CONFIG, *ready, directory=tmp_path / strategy, worker=told_at(2), resume=True)
    in_processes(2, train_in_group, str(tmp_path), str(cache), False)
    expected = movement(whole[0])
    for home in (tmp_path / strategy for strategy in STRATEGIES):
        for found, alone in zip(checkpoint.history(home), whole[1], strict=True):
            for name in ("train/loss", "train/giou", "train/l1", "train/focal"):
                assert found["metrics"][name] == pytest.approx(alone.metrics[name], rel=1e-3), (home, name)
        assert (movement(home) - expected).norm() < 0.02 * expected.norm(), home
