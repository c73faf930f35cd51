import copy

import pytest
import torch
from torch import nn

from srft.config import SRFTConfig
from srft.method.baselines import attach, diagonals, ewc, l2_sp
from srft.method.fisher import estimate_prior
from srft.method.optimizer import SRFTAdamW
from tests.reference.baselines import Element
from tests.reference.fisher import dense_fisher

ADAM = {"lr": 1e-2, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.05}


def net(dtype=torch.float64, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Dropout(0.5), nn.Linear(4, 2)).to(dtype)


def moved(model, scale=0.3):
    g = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for p in model.parameters():
            p += scale * torch.randn(p.shape, generator=g, dtype=torch.float64).to(p.dtype)


def gradients(model, step):
    g = torch.Generator().manual_seed(100 + step)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=g, dtype=torch.float64).to(p.dtype)


def flat(model):
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def random_fisher(model):
    g = torch.Generator().manual_seed(9)
    return {name: torch.rand(p.shape, generator=g, dtype=torch.float64) ** 4 for name, p in model.named_parameters()}


def anchor_of(kind, model, strength, **kw):
    named = list(model.named_parameters())
    return l2_sp(named, strength=strength, **kw) if kind == "l2_sp" else ewc(named, random_fisher(model), strength=strength, **kw)


@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("kind", ["l2_sp", "ewc"])
def test_steps_around_adamw_are_the_reference(kind, decoupled):
    model = net()
    origin = flat(model).tolist()
    pretrained = {name: p.detach().clone() for name, p in model.named_parameters()}
    moved(model)
    h = torch.cat([f.reshape(-1) for f in random_fisher(model).values()])
    h = (h / h.mean()).tolist() if kind == "ewc" else [1.0] * len(origin)
    elements = [
        Element(v, o, i, strength=7.0, decoupled=decoupled, **ADAM) for v, o, i in zip(flat(model).tolist(), origin, h, strict=True)
    ]
    optimizer = torch.optim.AdamW(model.parameters(), **ADAM)
    attach(anchor_of(kind, model, 7.0, pretrained=pretrained), optimizer, decoupled=decoupled)
    for step in range(4):
        gradients(model, step)
        for element, g in zip(elements, torch.cat([p.grad.reshape(-1) for p in model.parameters()]).tolist(), strict=True):
            element.step(g)
        optimizer.step()
    torch.testing.assert_close(flat(model), torch.tensor([e.value for e in elements], dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["l2_sp", "ewc"])
def test_the_gradient_is_that_of_the_penalty(kind):
    model = net()
    anchor = anchor_of(kind, model, 3.0)
    moved(model)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    anchor.add_to_gradients(model.parameters())
    p = model[0].weight
    for i in range(3):
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                p[1, i] += sign * 1e-4
            values.append(anchor.penalty())
            with torch.no_grad():
                p[1, i] -= sign * 1e-4
        assert float(p.grad[1, i]) == pytest.approx((values[0] - values[1]) / 2e-4, abs=1e-7)


def test_equal_importance_is_l2_sp_whatever_its_unit():
    a, b = net(), net()
    attach(l2_sp(a.named_parameters(), strength=5.0), oa := torch.optim.AdamW(a.parameters(), **ADAM), decoupled=True)
    fisher = {name: torch.full(p.shape, 1e-9, dtype=torch.float64) for name, p in b.named_parameters()}
    attach(ewc(b.named_parameters(), fisher, strength=5.0), ob := torch.optim.AdamW(b.parameters(), **ADAM), decoupled=True)
    for step in range(3):
        for model, optimizer in ((a, oa), (b, ob)):
            gradients(model, step)
            optimizer.step()
    torch.testing.assert_close(flat(a), flat(b), rtol=0, atol=1e-12)


@pytest.mark.parametrize("decoupled", [False, True])
def test_strength_zero_changes_nothing_bitwise_and_a_removed_hook_neither(decoupled):
    plain, zero, removed = net(), net(), net()
    optimizers = [torch.optim.AdamW(m.parameters(), **ADAM) for m in (plain, zero, removed)]
    attach(anchor_of("ewc", zero, 0.0), optimizers[1], decoupled=decoupled)
    attach(anchor_of("ewc", removed, 9.0), optimizers[2], decoupled=decoupled).remove()
    for step in range(3):
        for model, optimizer in zip((plain, zero, removed), optimizers, strict=True):
            gradients(model, step)
            optimizer.step()
    assert torch.equal(flat(plain), flat(zero))
    assert torch.equal(flat(plain), flat(removed))


@pytest.mark.parametrize(
    "make",
    [
        lambda m: torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9),
        lambda m: torch.optim.Adam(m.parameters(), lr=1e-3),
        lambda m: SRFTAdamW(m.named_parameters(), total_steps=400, lr=1e-2, srft=SRFTConfig(rank=0)),
    ],
)
def test_any_optimizer_ends_at_the_origin_when_decoupled_and_infinitely_strong(make):
    model = net(torch.float32)
    start = flat(model)
    optimizer = make(model)
    attach(anchor_of("l2_sp", model, 1e9), optimizer, decoupled=True)
    moved(model)
    gradients(model, 0)
    optimizer.step()
    torch.testing.assert_close(flat(model), start, rtol=0, atol=1e-5)


def test_learning_rates_of_groups_and_frozen_or_new_parameters():
    model = net()
    pretrained = {name: p.detach().clone() for name, p in model.named_parameters() if name != "3.bias"}
    anchor = l2_sp(model.named_parameters(), strength=2.0, pretrained=pretrained)
    moved(model)
    before = copy.deepcopy(model)
    groups = [{"params": model[0].parameters(), "lr": 0.5}, {"params": model[3].parameters(), "lr": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    attach(anchor, optimizer, decoupled=True)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    model[0].bias.grad = None
    optimizer.step()
    torch.testing.assert_close(model[0].weight.detach(), (before[0].weight + pretrained["0.weight"]).detach() / 2)  # s = 1
    assert torch.equal(model[0].bias, before[0].bias)
    assert torch.equal(model[3].weight, before[3].weight)
    anchor.pull_back(model.parameters(), 0.5)
    assert torch.equal(model[3].bias, before[3].bias)
    assert not torch.equal(model[3].weight, before[3].weight)


def test_the_diagonal_is_the_dense_fishers_in_the_shapes_of_the_parameters():
    model = nn.ModuleDict({"qkv": nn.Linear(2, 6, dtype=torch.float64), "out": nn.Linear(3, 2, dtype=torch.float64)})
    g = torch.Generator().manual_seed(3)
    samples = [torch.randn(2, generator=g, dtype=torch.float64) for _ in range(7)]

    def loss(m, x):
        q, k, v = m["qkv"](x).view(3, 2)
        return m["out"](torch.stack([q @ k, k @ v, v.sum()])).square().sum()

    dense, places = dense_fisher(model, loss, samples)
    prior = estimate_prior(model, loss, samples, rank=0, fisher_type="empirical", diagonal=True)
    found = diagonals(prior, model.named_parameters())
    assert list(found) == ["qkv.weight", "qkv.bias", "out.weight", "out.bias"]
    for name, p in model.named_parameters():
        torch.testing.assert_close(found[name].double(), dense.diagonal()[slice(*places[name])].view(p.shape), rtol=1e-6, atol=1e-9)
    assert diagonals(prior, [("lora_A", model["out"].weight)]) == {}
    with pytest.raises(ValueError, match=r"prior: qkv\.weight has no diagonal"):
        diagonals(estimate_prior(model, loss, samples, rank=1, fisher_type="empirical"), model.named_parameters())


def test_bad_input():
    model = net()
    named, fisher = list(model.named_parameters()), random_fisher(model)
    with pytest.raises(ValueError, match="strength is -1"):
        l2_sp(named, strength=-1.0)
    with pytest.raises(ValueError, match=r"0\.weight has shape \(4,\)"):
        l2_sp(named, strength=1.0, pretrained={"0.weight": torch.zeros(4)})
    with pytest.raises(ValueError, match=r"3\.bias is missing"):
        ewc(named, {k: v for k, v in fisher.items() if k != "3.bias"}, strength=1.0)
    with pytest.raises(ValueError, match=r"3\.bias is \(1,\)"):
        ewc(named, {**fisher, "3.bias": torch.ones(1)}, strength=1.0)
    with pytest.raises(ValueError, match=r"3\.bias has negative or non-finite"):
        ewc(named, {**fisher, "3.bias": torch.tensor([0.1, float("nan")])}, strength=1.0)
    with pytest.raises(ValueError, match="zero everywhere"):
        ewc(named, {k: torch.zeros_like(v) for k, v in fisher.items()}, strength=1.0)
