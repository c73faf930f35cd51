import dataclasses
import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from srft.config import DataConfig, OptimConfig
from srft.data.pairs import Batch, PairSampler
from srft.data.synthetic import sequences
from srft.method.optimizer import SRFTAdamW
from srft.method.paradigms import select_trainable
from srft.model.pretrained import load_tracker
from srft.training import update
from srft.training.update import LossScale, RunningMean, Updater, learning_rate
from srft.training.worker import accumulating


@pytest.fixture(scope="module")
def batch(tmp_path_factory):
    train = tuple(sequences("target-train", 2, seed=DataConfig().world_seed, length=8, cache=tmp_path_factory.mktemp("cache")))
    arch = load_tracker("tiny_rgb").arch
    return PairSampler(sequences=train, arch=arch, seed=0, max_gap=6, center_jitter=3.0, scale_jitter=0.25).batch(0, 0, 4)


def updater(**optim):
    network = load_tracker("tiny_rgb", streams=2)
    select_trainable(network, "full", freeze_head=True)
    network.train()
    network.box_head.eval()
    optimizer = SRFTAdamW([(n, p) for n, p in network.named_parameters() if p.requires_grad], total_steps=4, fused=True)
    return network, Updater(network, optimizer, OptimConfig(warmup=0.0, **optim))


def gradients(network):
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("count", [2, 4])
def test_parts_of_a_batch_give_the_gradient_of_the_whole(batch, count):
    (one, whole), (other, parts) = updater(), updater(accumulate=count)
    expected, found = whole.gradients(batch, 0, ""), parts.gradients(batch, 0, "")
    assert found == pytest.approx(expected, rel=1e-4)
    wanted = gradients(one)
    for name, gradient in gradients(other).items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 0.1), ("fp16", 0.02)])
def test_lower_precision_gives_nearly_the_same_gradient_in_float32(batch, precision, tolerance):
    (one, full), (other, low) = updater(), updater(precision=precision)
    expected, found = full.gradients(batch, 0, ""), low.gradients(batch, 0, "")
    assert found["loss"] == pytest.approx(expected["loss"], rel=tolerance)
    assert found["grad_norm"] == pytest.approx(expected["grad_norm"], rel=tolerance)
    a, b = gradients(one), gradients(other)
    dot = sum(float((a[n] * b[n]).sum()) for n in a) / low.scale.scale
    assert dot / (expected["grad_norm"] * found["grad_norm"]) > 1 - tolerance
    assert all(gradient.dtype == torch.float32 for gradient in b.values())
    full.apply(0)
    low.apply(0)
    for name, p in other.named_parameters():
        assert p.dtype == torch.float32
        assert (p - one.get_parameter(name)).abs().max() < 1e-3, name
    assert other.get_parameter("backbone.norm_rgb.weight").grad.norm() < 2 * expected["grad_norm"]  # unscaled


def test_an_overflow_is_skipped_and_halves_the_scale_until_it_is_too_many(batch):
    network, low = updater(precision="fp16")
    low.scale = LossScale(scale=2.0**120)
    before = {name: p.clone() for name, p in network.named_parameters()}
    low.gradients(batch, 0, "")
    low.apply(0)
    assert (low.scale.scale, low.scale.skipped, low.optimizer.steps_taken) == (2.0**119, 1, 1)
    assert all(torch.equal(p, before[name]) for name, p in network.named_parameters())
    low.scale.skipped = 20
    with pytest.raises(FloatingPointError, match="epoch 3"):
        low.gradients(batch, 0, "epoch 3")


def test_a_loss_that_overflows_is_skipped_like_a_gradient(batch):
    network, low = updater(precision="fp16")
    before = {name: p.clone() for name, p in network.named_parameters()}
    values = low.gradients(batch._replace(search=batch.search * float("nan")), 0, "")
    assert values == {**dict.fromkeys(values, 0.0), "skipped": 1.0}  # To be left out of means.
    low.apply(0)
    assert (low.scale.scale, low.scale.skipped) == (2.0**15, 1)
    assert all(torch.equal(p, before[name]) for name, p in network.named_parameters())


def test_the_scale_doubles_after_many_clean_steps():
    scale = LossScale(scale=4.0)
    for _ in range(1999):
        scale.passed()
    assert scale.scale == 4
    scale.passed()
    assert (scale.scale, scale.clean) == (8, 0)


def test_the_running_mean_follows_and_starts_fast():
    p = nn.Parameter(torch.zeros(3))
    mean = RunningMean({"p": p}, 0.9)
    expected, value = 0.0, 0.0
    for step in range(1, 40):
        value = math.sin(step)
        with torch.no_grad():
            p.fill_(value)
        mean.update(step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
        assert mean.values["p"][0].item() == pytest.approx(expected, abs=1e-6)
    mean.begin_here()
    assert mean.values["p"][0].item() == pytest.approx(value)


def test_a_network_alone_accumulates():
    with accumulating(nn.Linear(1, 1)) as nothing:
        assert nothing is None


@pytest.mark.parametrize(("loss", "clip"), [("log", 1.0), ("sqrt", 1.0), ("sqrt", 0.0)])
def test_nothing_moves_when_loss_or_gradient_is_not_finite(monkeypatch, loss, clip):
    """The root has a finite value and an infinite slope at 0."""
    model = nn.Linear(2, 1)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    optimizer = SRFTAdamW(model.named_parameters(), total_steps=1)
    monkeypatch.setattr(update, "tracking_loss", lambda output, boxes: {"loss": getattr(output, loss)().sum()})
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    monkeypatch.setattr(model, "forward", lambda template, search: nn.functional.linear(template, model.weight, model.bias))
    batch = Batch(torch.ones(1, 2), torch.zeros(1), torch.zeros(1))
    named = "" if loss == "log" else "; the gradient of weight and 1 more is not finite"
    with pytest.raises(FloatingPointError, match=f"epoch 7, step 9: loss.*{named}"):
        Updater(model, optimizer, OptimConfig(grad_clip=clip)).gradients(batch, 9, "epoch 7, step 9")
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert optimizer.steps_taken == 0


@pytest.mark.parametrize(("clip", "norm"), [(0.5, 0.5), (100.0, 5.0), (0.0, 5.0)])
def test_gradients_are_clipped_by_their_global_norm(monkeypatch, clip, norm):
    model = nn.Linear(2, 1, bias=False)
    optimizer = SRFTAdamW(model.named_parameters(), total_steps=1)
    monkeypatch.setattr(update, "tracking_loss", lambda output, boxes: {"loss": output.sum()})
    monkeypatch.setattr(model, "forward", lambda template, search: template @ model.weight.T)
    updater = Updater(model, optimizer, OptimConfig(grad_clip=clip, lr=0.1, warmup=0.0))
    values = updater.gradients(Batch(torch.tensor([[3.0, 4.0]]), torch.zeros(1), torch.zeros(1)), 0, "")
    updater.apply(0)
    assert values["grad_norm"] == pytest.approx(5.0)
    assert model.weight.grad.norm().item() == pytest.approx(norm, rel=1e-5)
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_the_learning_rate_rises_and_falls_to_zero():
    optim = OptimConfig(lr=0.1, epochs=5, steps_per_epoch=20, warmup=0.1)
    rates = [learning_rate(optim, at) for at in range(100)]
    assert rates[0] == pytest.approx(0.01)
    assert rates[4] == pytest.approx(0.05)
    assert rates[9] == rates[10] == max(rates) == pytest.approx(0.1)
    assert rates[55] == pytest.approx(0.05)
    assert all(a > b for a, b in pairwise(rates[10:]))
    assert 0 < rates[99] < 1e-4
    assert learning_rate(optim, 100) == pytest.approx(0, abs=1e-18)
    assert learning_rate(dataclasses.replace(optim, warmup=0.0), 0) == pytest.approx(0.1)
    short = OptimConfig(lr=0.1, epochs=1, steps_per_epoch=1, warmup=0.99)
    assert learning_rate(short, 0) == pytest.approx(0.1)


def test_other_decays_and_the_batch_that_a_rate_is_meant_for():
    optim = OptimConfig(lr=0.1, epochs=5, steps_per_epoch=20, warmup=0.0, decay="step", drop_epoch=3)
    assert [learning_rate(optim, at) for at in (0, 59, 60, 99)] == pytest.approx([0.1, 0.1, 0.01, 0.01])
    constant = dataclasses.replace(optim, decay="constant", batch_size=32, lr_batch=128)
    assert [learning_rate(constant, at) for at in (0, 99)] == pytest.approx([0.025, 0.025])
