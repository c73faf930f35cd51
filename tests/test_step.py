import dataclasses
import math
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from srft.config import BaselineConfig, ConfigError, DataConfig, OptimConfig, SRFTConfig, TrackerConfig, TrainConfig
from srft.data.domain import load_domain
from srft.data.loader import PairLoader
from srft.data.pairs import PairSampler
from srft.data.synthetic import sequences
from srft.method.optimizer import SRFTAdamW
from srft.method.paradigms import select_trainable
from srft.method.sparsity import LocalExchange, merge
from srft.model.losses import tracking_loss
from srft.model.pretrained import load_tracker, save_tracker
from srft.training import checkpoint, epoch
from srft.training import prior as prior_module
from srft.training.prior import carry, source_prior, wants_prior
from srft.training.step import Worker, fine_tune, run
from srft.training.update import learning_rate

# A refresh of 2 in epochs of 3 steps: statistics of step 2 are still on their way when the first epoch is saved.
CONFIG = TrainConfig(
    name="t",
    seed=3,
    data=DataConfig(train_sequences=3, val_sequences=2, source_sequences=1, length=8, max_gap=6),
    srft=SRFTConfig(rank=2, prior_strength=10.0, damping_strength=0.5, fisher_samples=4, refresh=2),
    optim=OptimConfig(batch_size=4, epochs=2, steps_per_epoch=3, lr=1e-3, warmup=0.34),
)
FIXED_NAMES = {
    *("train/loss", "train/focal", "train/giou", "train/l1", "train/iou", "train/grad_norm"),
    *("val/success_auc", "val/precision_20", "source/success_auc"),
    *("lr", "throughput/samples_per_s", "throughput/data_share", "memory/peak_mb", "srft/prior_weight"),
}


def changed(**changes) -> TrainConfig:
    return dataclasses.replace(CONFIG, **changes)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def domain(cache):
    return load_domain(CONFIG.data, cache)


@pytest.fixture(scope="module")
def few_source_sequences():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prior_module, "SOURCE_SEQUENCES", 3)
        yield


@pytest.fixture(scope="module")
def prior(cache, few_source_sequences):
    return source_prior(CONFIG, cache, rank=4)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, domain, prior):
    """A run that nothing disturbed: its directory and reports."""
    directory, reports = tmp_path_factory.mktemp("whole"), []
    assert fine_tune(CONFIG, domain, prior, directory=directory, on_epoch=reports.append) == reports[-1]
    return directory, reports


@pytest.fixture(scope="module")
def full(tmp_path_factory, domain):
    """The directory of a run that nothing holds back."""
    directory = tmp_path_factory.mktemp("full")
    fine_tune(changed(paradigm="full"), domain, None, directory=directory)
    return directory


def weights(directory: Path) -> dict[str, torch.Tensor]:
    newest = checkpoint.latest(directory)
    assert newest is not None
    return checkpoint.load(newest).weights


def same(a: Path, b: Path) -> bool:
    first, second = weights(a), weights(b)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def timeless(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if not name.startswith(("throughput/", "memory/"))}


def test_a_run_reports_fixed_names_and_keeps_its_checkpoints(whole):
    directory, reports = whole
    assert [(r.epoch, r.step) for r in reports] == [(0, 3), (1, 6)]
    for report in reports:
        assert report.metrics.keys() >= FIXED_NAMES
        assert all(math.isfinite(value) for value in report.metrics.values())
    assert "sparsity/hoyer" not in reports[0].metrics
    assert {"sparsity/hoyer", "sparsity/hoyer/blocks_rgb.0.attn.qkv.weight:q"} <= reports[1].metrics.keys()
    assert [entry["metrics"] for entry in checkpoint.history(directory)] == [r.metrics for r in reports]
    assert reports[0].metrics["srft/prior_weight"] == pytest.approx(0.5)
    assert reports[1].metrics["lr"] == learning_rate(CONFIG.optim, 5)


def test_batches_made_by_another_process_train_alike(whole, tmp_path, domain, prior):
    apart = changed(data=dataclasses.replace(CONFIG.data, loader_workers=1))
    fine_tune(apart, domain, prior, directory=tmp_path)
    assert same(tmp_path, whole[0])
    assert apart.digest() == CONFIG.digest()


def test_the_backbone_moves_and_what_is_frozen_does_not(whole):
    before, after = load_tracker("tiny_rgb", streams=2).state_dict(), weights(whole[0])
    assert before.keys() == after.keys()
    still = {name for name in before if torch.equal(before[name], after[name])}
    assert {name for name in still if not name.startswith("box_head.")} == {"backbone.pos_embed_z", "backbone.pos_embed_x"}
    assert {name for name in before if name.startswith("box_head.")} <= still


def test_normalization_statistics_stay_when_the_head_trains(tmp_path, domain):
    config = changed(paradigm="head", optim=dataclasses.replace(CONFIG.optim, epochs=1, steps_per_epoch=1))
    fine_tune(config, domain, None, directory=tmp_path)
    before, after = load_tracker("tiny_rgb", streams=2).state_dict(), weights(tmp_path)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert all(name.startswith("box_head.") for name in moved)
    assert not any("running" in name or "num_batches" in name for name in moved)


def test_the_same_seed_gives_the_same_weights_bit_by_bit(whole, tmp_path, domain, prior):
    report = fine_tune(CONFIG, domain, prior, directory=tmp_path)
    assert same(whole[0], tmp_path)
    assert timeless(report.metrics) == timeless(whole[1][-1].metrics)


def test_an_interrupted_run_goes_on_to_the_same_weights(whole, tmp_path, domain, prior):
    directory, reports = whole

    def stop(report):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fine_tune(CONFIG, domain, prior, directory=tmp_path / "halves", on_epoch=stop)
    seen = []
    fine_tune(CONFIG, domain, prior, directory=tmp_path / "halves", on_epoch=seen.append, resume=True)
    assert [r.epoch for r in seen] == [1]
    assert timeless(seen[0].metrics) == timeless(reports[1].metrics)
    assert same(directory, tmp_path / "halves")
    finished = fine_tune(CONFIG, domain, prior, directory=tmp_path / "halves", on_epoch=seen.append, resume=True)
    assert (len(seen), finished) == (1, seen[0])


def test_full_is_srft_without_strengths(whole, full, tmp_path, domain, prior):
    idle = dataclasses.replace(CONFIG.srft, prior_strength=0.0, damping_strength=0.0, give_back=0.0)
    fine_tune(changed(srft=idle), domain, prior, directory=tmp_path)
    assert same(tmp_path, full)
    assert not same(whole[0], full)


OTHERS = {
    "kronecker and diagonal": {"srft": dataclasses.replace(CONFIG.srft, estimator="kronecker", diagonal=True)},
    "streaming, proximal": {"srft": dataclasses.replace(CONFIG.srft, estimator="streaming", mode="proximal")},
    "L2-SP": {"paradigm": "full", "baseline": BaselineConfig(kind="l2_sp", strength=10.0)},
    "EWC in the gradient": {"paradigm": "full", "baseline": BaselineConfig(kind="ewc", strength=10.0, decoupled=False)},
    "published rates": {"paradigm": "full", "optim": dataclasses.replace(CONFIG.optim, rates="published")},
}


@pytest.mark.parametrize("other", OTHERS)
def test_other_priors_baselines_and_rates_change_the_run_and_resume_to_the_bit(
    other, whole, full, tmp_path, domain, cache, few_source_sequences
):
    config = changed(**OTHERS[other])
    prior = source_prior(config, cache, rank=4) if wants_prior(config) else None
    fine_tune(config, domain, prior, directory=tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "halves")
    shutil.rmtree(tmp_path / "halves" / "epoch_0001")  # As a run that ended after its first epoch leaves it.
    fine_tune(config, domain, prior, directory=tmp_path / "halves", resume=True)
    assert same(tmp_path / "whole", tmp_path / "halves")
    plain = whole[0] if config.paradigm == "srft" else full
    assert not same(tmp_path / "whole", plain)


@pytest.mark.parametrize("paradigm", ["lora", "adapter"])
def test_added_parts_have_nothing_to_be_held_near_to(paradigm, tmp_path, domain):
    held = changed(paradigm=paradigm, baseline=BaselineConfig(kind="ewc"))
    assert not wants_prior(held)
    assert not wants_prior(changed(paradigm=f"srft-{paradigm}"))
    assert wants_prior(changed(paradigm=f"srft-{paradigm}", tracker=dataclasses.replace(CONFIG.tracker, freeze_head=False)))
    with pytest.raises(ConfigError, match="added parts only"):
        fine_tune(held, domain, None, directory=tmp_path)


@pytest.mark.parametrize("center_jitter", [3.0, 7.0])
def test_the_mean_of_the_workers_gradients_is_the_gradient_of_the_whole_batch(domain, center_jitter):
    """Also when the targets of one worker's samples lie off the score map, as a wide jitter makes them."""
    network = load_tracker("tiny_rgb", streams=2).double()
    names = select_trainable(network, "full", freeze_head=True)
    parameters = [dict(network.named_parameters())[name] for name in names]
    sampler = PairSampler(sequences=domain.train, arch=network.arch, seed=0, max_gap=6, center_jitter=center_jitter, scale_jitter=0.25)

    def gradient(rank: int, workers: int) -> list[torch.Tensor]:
        template, search, boxes = (part.double() for part in sampler.batch(0, 1, 8, rank, workers))
        return list(torch.autograd.grad(tracking_loss(network(template, search), boxes)["loss"], parameters))

    expected, shares = gradient(0, 1), [gradient(rank, 4) for rank in range(4)]
    for name, one, parts in zip(names, expected, zip(*shares, strict=True), strict=True):
        torch.testing.assert_close(torch.stack(parts).mean(0), one, rtol=1e-6, atol=1e-9, msg=name)


class Threads:
    """Workers as threads: gradients are averaged parameter by parameter, values gathered and sketches merged through shared lists."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.barrier = threading.Barrier(count, timeout=60)
        self.slots: list[object] = [None] * count
        self.submitted: list[tuple[int, int, int]] = []

    def exchanged(self, rank: int, value: object) -> list:
        self.slots[rank] = value
        self.barrier.wait()
        everyone = list(self.slots)
        self.barrier.wait()
        return everyone

    def worker(self, rank: int, refresh: int) -> Worker:
        threads, local = self, LocalExchange(refresh)

        class Shared:
            def submit(self, at, sketch):
                merged = merge(threads.exchanged(rank, sketch))
                threads.submitted.append((rank, at, sum(histogram.total for histogram in merged.groups.values())))
                local.submit(at, merged)

            def due(self, at):
                return local.due(at)

        def wrap(network: nn.Module) -> nn.Module:
            for parameter in network.parameters():
                if parameter.requires_grad:
                    parameter.register_hook(lambda gradient: torch.stack(threads.exchanged(rank, gradient)).mean(0))
            return network

        return Worker(rank=rank, world_size=self.count, wrap=wrap, gather=lambda value: threads.exchanged(rank, value), statistics=Shared())


def test_two_workers_train_as_one_and_never_differ(whole, tmp_path, domain, prior, monkeypatch):
    threads, reports, final, failures = Threads(2), {0: [], 1: []}, {}, []
    taken, track, tracked = SRFTAdamW.step, epoch.track_sequences, []

    def remembered(self, closure=None):
        result = taken(self, closure)
        final[threading.get_ident()] = [p.detach().clone() for group in self.param_groups for p in group["params"]]
        return result

    def noted(network, mine, **options):
        tracked.extend(sequence.name for sequence in mine)
        return track(network, mine, **options)

    monkeypatch.setattr(SRFTAdamW, "step", remembered)
    monkeypatch.setattr(epoch, "track_sequences", noted)

    def work(rank: int) -> None:
        try:
            worker = threads.worker(rank, CONFIG.srft.refresh)
            fine_tune(CONFIG, domain, prior, directory=tmp_path, worker=worker, on_epoch=reports[rank].append)
        except Exception as error:
            failures.append(error)
            threads.barrier.abort()

    running = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join(120)
    assert failures == []
    replicas = list(final.values())
    assert len(replicas) == 2
    assert all(torch.equal(a, b) for a, b in zip(*replicas, strict=True))
    elements = sum(len(p.view(-1)) for p in replicas[0])
    assert sorted(threads.submitted) == [(rank, at, elements) for rank in range(2) for at in (2, 4, 6)]
    assert sorted(tracked) == sorted(2 * [s.name for s in (*domain.val, *domain.source)])  # each once an epoch, by one of them
    assert [timeless(r.metrics) for r in reports[0]] == [timeless(r.metrics) for r in reports[1]]
    for together, alone in zip(reports[0], whole[1], strict=True):
        for name in ("train/loss", "train/giou", "train/l1", "train/focal"):
            assert together.metrics[name] == pytest.approx(alone.metrics[name], rel=1e-3), name
    assert reports[0][1].metrics["sparsity/hoyer"] == pytest.approx(whole[1][1].metrics["sparsity/hoyer"], abs=1e-3)
    assert len(checkpoint.history(tmp_path)) == 2


def test_a_bad_batch_stops_the_run_before_the_update_and_is_named(tmp_path, domain, prior, monkeypatch):
    good = PairLoader.batch

    def bad(self, epoch, at):
        batch = good(self, epoch, at)
        return batch._replace(search=batch.search * float("nan")) if (epoch, at) == (1, 1) else batch

    monkeypatch.setattr(PairLoader, "batch", bad)
    with pytest.raises(FloatingPointError, match=r"epoch 1, step 4: .*'loss': nan.*optim\.lr"):
        fine_tune(CONFIG, domain, prior, directory=tmp_path)
    assert [entry["epoch"] for entry in checkpoint.history(tmp_path)] == [0]


def test_settings_of_training_reach_the_network(tmp_path, domain):
    def loss(name, **settings):
        config = changed(paradigm="full", tracker=TrackerConfig(**settings), optim=dataclasses.replace(CONFIG.optim, epochs=1))
        return fine_tune(config, domain, None, directory=tmp_path / name).metrics["train/loss"]

    plain = loss("plain")
    assert loss("checkpointing", grad_checkpointing=True) == plain
    assert loss("dropping", drop_path=0.5) != plain


def test_weights_that_overflow_stop_the_run_at_its_first_step(tmp_path, domain):
    broken = load_tracker("tiny_rgb")
    with torch.no_grad():
        broken.get_parameter("backbone.blocks.0.mlp.fc1.bias")[:] = 3e38
    save_tracker(broken, tmp_path / "broken.safetensors", preset="tiny", about={})
    config = changed(paradigm="full", tracker=TrackerConfig(pretrained=str(tmp_path / "broken.safetensors")))
    with pytest.raises(FloatingPointError, match="epoch 0, step 0"):
        fine_tune(config, domain, None, directory=tmp_path / "run")
    assert checkpoint.latest(tmp_path / "run") is None


def test_a_run_that_cannot_be_right_is_refused(whole, tmp_path, domain, prior):
    with pytest.raises(ValueError, match=r"srft\.rank 2 and baseline\.kind none needs a prior"):
        fine_tune(CONFIG, domain, None, directory=tmp_path)
    with pytest.raises(ConfigError, match=r"tracker\.preset is 'small', but the weights tiny_rgb are of preset 'tiny'"):
        fine_tune(changed(tracker=TrackerConfig(preset="small")), domain, prior, directory=tmp_path)
    with pytest.raises(ConfigError, match="holds checkpoints of an earlier start"):
        fine_tune(CONFIG, domain, prior, directory=whole[0])
    with pytest.raises(ConfigError, match=f"configuration {CONFIG.digest()}, this run is configuration {changed(seed=9).digest()}"):
        fine_tune(changed(seed=9), domain, prior, directory=whole[0], resume=True)
    with pytest.raises(ValueError, match="rank is 8, but the prior holds 4"):
        fine_tune(changed(srft=dataclasses.replace(CONFIG.srft, rank=8)), domain, prior, directory=tmp_path)
    with pytest.raises(ValueError, match="the prior is of weights another, tiny_rgb holds"):
        fine_tune(CONFIG, domain, dataclasses.replace(prior, base_hash="another"), directory=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_rgb_run_trains_one_stream_on_three_channels(tmp_path, cache, few_source_sequences):
    config = changed(
        data=dataclasses.replace(CONFIG.data, modality="rgb"), optim=dataclasses.replace(CONFIG.optim, epochs=1, steps_per_epoch=1)
    )
    report = run(config, cache=cache, directory=tmp_path)
    assert report.metrics.keys() >= FIXED_NAMES
    assert "backbone.blocks.0.attn.qkv.weight" in weights(tmp_path)


def test_a_damaged_sequence_in_the_cache_is_named(tmp_path):
    sequences("target-val", 1, seed=7, length=8, cache=tmp_path)
    (path,) = tmp_path.iterdir()
    for content in (b"", path.read_bytes()[:5000]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"{path.name}: not a readable sequence .*; delete the file"):
            sequences("target-val", 1, seed=7, length=8, cache=tmp_path)


def test_the_prior_is_estimated_once(cache, prior, monkeypatch):
    def never(*arguments, **settings):
        raise AssertionError("estimated again")

    with monkeypatch.context() as patch:
        patch.setattr(prior_module, "estimate_prior", never)
        again = source_prior(changed(name="u", seed=11, workers=2), cache, rank=4)
    assert again.groups.keys() == prior.groups.keys()
    for name, group in again.groups.items():
        assert torch.equal(group.eigenvectors, prior.groups[name].eigenvectors)
        assert torch.equal(group.eigenvalues, prior.groups[name].eigenvalues)
    assert (again.samples, again.rank, again.fisher_type) == (4, 4, "empirical")


def test_what_the_prior_depends_on_gets_a_file_of_its_own(tmp_path, cache, prior, few_source_sequences, monkeypatch):
    """Estimating is replaced by a note of who asked: only the files' names are of interest."""
    other = load_tracker("tiny_rgb")
    with torch.no_grad():
        other.get_parameter("backbone.norm.bias").add_(1)
    save_tracker(other, tmp_path / "other.safetensors", preset="tiny", about={})
    files = {path.name for path in cache.glob("prior-*")}
    (known,) = (path for path in cache.glob("prior-*") if "-exact-empirical-diagonal-n4-k4-w7-" in path.name)
    for estimator in ("exact", "streaming"):
        monkeypatch.setitem(prior_module._ESTIMATORS, estimator, lambda *arguments, **settings: prior)
    plain = dataclasses.replace(CONFIG.srft, give_back=0.0)  # without the diagonal
    variants = [
        (changed(srft=plain, tracker=TrackerConfig(pretrained=str(tmp_path / "other.safetensors"))), 4),
        (changed(srft=plain, tracker=TrackerConfig(freeze_head=False)), 4),
        (changed(srft=plain, data=dataclasses.replace(CONFIG.data, length=9)), 4),
        (changed(srft=plain, data=dataclasses.replace(CONFIG.data, world_seed=8)), 4),
        (changed(srft=plain, data=dataclasses.replace(CONFIG.data, max_gap=5)), 4),
        (changed(srft=plain, data=dataclasses.replace(CONFIG.data, scale_jitter=0.1)), 4),
        (changed(srft=dataclasses.replace(plain, fisher="mc")), 4),
        (changed(srft=dataclasses.replace(plain, fisher_samples=5)), 4),
        (changed(srft=dataclasses.replace(plain, estimator="streaming", fisher_samples=5)), 4),
        (changed(srft=dataclasses.replace(plain, diagonal=True, fisher_samples=5)), 4),
        (changed(srft=plain), 3),
    ]
    for config, rank in variants:
        source_prior(config, cache, rank=rank)
    made = {path.name for path in cache.glob("prior-*")} - files
    assert len(made) == len(variants)
    # A file that lies under the wrong name is refused, not used.
    (wrong,) = (path for path in cache.glob("prior-*") if path.name.removeprefix("prior-")[:12] != known.name.removeprefix("prior-")[:12])
    wrong.write_bytes(known.read_bytes())
    with pytest.raises(ValueError, match="estimated on weights"):
        source_prior(variants[0][0], cache, rank=4)


@pytest.mark.parametrize("fisher", ["empirical", "mc"])
def test_a_prior_has_eigenpairs_of_every_trainable_weight(tmp_path, cache, few_source_sequences, fisher):
    config = changed(tracker=TrackerConfig(freeze_head=False), srft=dataclasses.replace(CONFIG.srft, fisher=fisher, fisher_samples=3))
    for source in cache.glob("source-train-*"):
        (tmp_path / source.name).hardlink_to(source)
    estimated = source_prior(config, tmp_path, rank=2)
    network = load_tracker("tiny_rgb", streams=2)
    names = set(select_trainable(network, "srft", freeze_head=False))
    carried = carry(estimated, network)
    assert {group.group.parameter for group in carried.groups.values()} == names
    # Drawn labels say nothing about offset and size.
    silent = {name for name, group in estimated.groups.items() if len(group.eigenvalues) == 0}
    if fisher == "mc":
        assert any("_size" in name for name in silent)
        assert not any("_ctr.0" in name for name in silent)
    else:
        assert not any("qkv" in name or "mlp" in name for name in silent - {n for n in silent if n.endswith("bias:k")})
    rgb, aux = (carried.groups[f"backbone.blocks_{stream}.1.mlp.fc1.weight"].eigenvectors for stream in ("rgb", "aux"))
    assert rgb.data_ptr() == aux.data_ptr() == carried.groups["backbone.fusion.0.mlp.fc1.weight"].eigenvectors.data_ptr()
    assert np.isfinite(estimated.scale)
    shares = {name: group.share for name, group in carry(estimated, network, aux_share=0.25).groups.items()}
    assert {share for name, share in shares.items() if "_aux" in name} == {0.25}
    assert {share for name, share in shares.items() if "_aux" not in name} == {1.0}
    assert set(shares) == set(carried.groups)
