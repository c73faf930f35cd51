import copy
import io

import pytest
import torch

from srft.method.optimizer import SRFTAdamW
from srft.method.sparsity import MergedStatistics
from srft.method.wrap import SRFTAround
from tests.small_net import ADAM, gradients, make_prior, net, settings

CASES = {
    "damping": {"damping_strength": 0.8},
    "uniform damping": {"damping_strength": 0.8, "damping_range": (0.4, 0.4)},
    "proximal": {"mode": "proximal", "prior_strength": 30.0},
    "proximal and damping": {"mode": "proximal", "prior_strength": 30.0, "damping_strength": 0.8},
    "penalty and damping": {"mode": "penalty", "prior_strength": 3.0, "damping_strength": 0.8},
    "projection and damping": {"mode": "projection", "prior_strength": 3.0, "damping_strength": 0.8},
    "two steps": {"damping_strength": 1.0, "transfer": "two_step"},
    "nothing": {},
}


def flat(model):
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def around_adamw(model, prior, srft, total_steps=8):
    base = torch.optim.AdamW(model.parameters(), **ADAM)
    return SRFTAround(base, model.named_parameters(), total_steps=total_steps, srft=srft, prior=prior)


def walk(model, optimizer, first, last, refresh=2):
    for step in range(first, last):
        gradients(model, step)
        optimizer.step()
        if (step + 1) % refresh == 0:
            optimizer.set_statistics(MergedStatistics.of(step + 1, optimizer.sketches()))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("some", [False, True])
def test_around_adamw_it_is_srft_adamw(case, some):
    srft, a, b = settings(**CASES[case]), net(torch.float64), net(torch.float64)
    names = {"qkv.weight:q", "qkv.weight:v", "out.weight"} if some else None
    one = SRFTAdamW(a.named_parameters(), total_steps=8, srft=srft, prior=make_prior(a, names=names), **ADAM)
    two = around_adamw(b, make_prior(b, names=names), srft)
    start = flat(a)
    walk(a, one, 0, 8)
    walk(b, two, 0, 8)
    # Ranks are float32 numbers, which round apart; weights are float64.
    torch.testing.assert_close(flat(a), flat(b), rtol=0, atol=1e-8)
    assert float((flat(a) - start).abs().max()) > 1e-3
    assert one.prior_weight == two.prior_weight
    if case != "nothing":
        plain = net(torch.float64)
        walk(plain, SRFTAdamW(plain.named_parameters(), total_steps=8, **ADAM), 0, 8)
        assert float((flat(plain) - flat(b)).abs().max()) > 1e-4


def test_without_a_strength_the_step_is_the_bases_bitwise():
    for make in (lambda p: torch.optim.AdamW(p, **ADAM), lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True)):
        a, b = net(), net()
        plain, base = make(a.parameters()), make(b.parameters())
        optimizer = SRFTAround(base, b.named_parameters(), total_steps=4, srft=settings(rank=0))
        for step in range(4):
            gradients(a, step)
            plain.step()
        walk(b, optimizer, 0, 4)
        assert torch.equal(flat(a), flat(b))


def test_sgd_is_damped_by_the_ranks_of_its_own_running_mean():
    model = net(torch.float64)
    base = torch.optim.SGD(model.parameters(), lr=0.5)
    optimizer = SRFTAround(base, model.named_parameters(), total_steps=9, srft=settings(rank=0, damping_strength=1.0), beta2=0.5)
    gradients(model, 0)
    before, g = flat(model), [p.grad.clone() for p in model.parameters()]
    optimizer.step()
    middle = 1 - (0.25 + 0.4 * 0.5)  # no statistics yet: every rank is a half
    torch.testing.assert_close(flat(model), before - 0.5 * middle * torch.cat([x.reshape(-1) for x in g]), rtol=0, atol=1e-6)
    optimizer.set_statistics(MergedStatistics.of(1, optimizer.sketches()))
    gradients(model, 1)
    old = model.out.weight.detach().clone()
    second = (0.5 * 0.5 * g[2] ** 2 + 0.5 * model.out.weight.grad**2) / (1 - 0.5**2)
    optimizer.step()
    factor = (old - model.out.weight.detach()) / (0.5 * model.out.weight.grad)
    assert float(factor.min()) >= 1 - 0.65 - 1e-6
    assert float(factor.max()) <= 1 - 0.25 + 1e-6
    order = second.reshape(-1).argsort()
    assert (factor.reshape(-1)[order].diff() <= 1e-7).all()
    assert float(factor.max() - factor.min()) > 0.2


def test_learning_rates_of_the_wrapper_reach_the_base_and_frozen_parameters_rest():
    model = net()
    base = torch.optim.SGD([{"params": model.qkv.parameters(), "lr_multiplier": 2.0}, {"params": model.out.parameters()}], lr=0.1)
    optimizer = SRFTAround(base, model.named_parameters(), total_steps=3, srft=settings(rank=0, damping_strength=0.5))
    assert optimizer.param_groups[0]["lr_multiplier"] == 2.0
    gradients(model, 0)
    model.out.bias.grad = None
    before = copy.deepcopy(model)
    optimizer.param_groups[0]["lr"] = 0.0
    assert optimizer.step(lambda: 7) == 7
    assert torch.equal(model.qkv.weight, before.qkv.weight)
    assert torch.equal(model.out.bias, before.out.bias)
    assert not torch.equal(model.out.weight, before.out.weight)


@pytest.mark.parametrize("sgd", [False, True])
def test_a_run_resumes_bitwise(sgd):
    srft = settings(mode="proximal", prior_strength=5.0, damping_strength=0.7)

    def build(model, prior):
        if sgd:
            base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
            return SRFTAround(base, model.named_parameters(), total_steps=8, srft=srft, prior=prior)
        return around_adamw(model, prior, srft)

    whole = net()
    prior = make_prior(whole)
    walk(whole, build(whole, prior), 0, 8)
    first = net()
    optimizer = build(first, prior)
    walk(first, optimizer, 0, 4)
    file = io.BytesIO()
    torch.save({"model": first.state_dict(), "optimizer": optimizer.state_dict()}, file)
    saved = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    second = net(seed=3)
    resumed = build(second, prior)
    second.load_state_dict(saved["model"])
    resumed.load_state_dict(saved["optimizer"])
    assert resumed.steps_taken == 4
    walk(second, resumed, 4, 8)
    assert torch.equal(flat(second), flat(whole))


def test_refusals():
    model = net()
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="2 parameters of the base optimizer have no name"):
        SRFTAround(base, model.out.named_parameters(), total_steps=3, srft=settings(rank=0))
    optimizer = SRFTAround(base, model.named_parameters(), total_steps=3, srft=settings(rank=0))
    with pytest.raises(ValueError, match="no base"):
        optimizer.load_state_dict(base.state_dict())
    upwards = torch.optim.SGD(model.parameters(), lr=0.1, maximize=True)
    with pytest.raises(ValueError, match="the base optimizer maximizes"):
        SRFTAround(upwards, model.named_parameters(), total_steps=3, srft=settings(rank=0))
