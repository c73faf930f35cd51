import copy
import dataclasses
import io

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import nn

from srft.method.optimizer import SRFTAdamW
from srft.method.sparsity import LocalExchange, MergedStatistics, merge
from tests.small_net import (
    ADAM,
    LAYOUTS,
    gradients,
    lay_out,
    make_prior,
    net,
    run,
    settings,
    weights,
)


@pytest.mark.parametrize(
    "options",
    [{}, {"foreach": True}, {"foreach": False}, {"fused": True}, {"amsgrad": True}, {"maximize": True}, {"amsgrad": True, "fused": True}],
)
@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("mode", [None, "penalty", "proximal", "projection"])
def test_without_strength_it_is_adamw_bit_for_bit(mode, decay, options):
    a, b = net(), net()
    arguments = {**ADAM, "weight_decay": decay, **options}
    prior = make_prior(a)
    ours = SRFTAdamW(
        a.named_parameters(), total_steps=10, srft=settings(mode=mode) if mode else None, prior=prior if mode else None, **arguments
    )
    theirs = torch.optim.AdamW(b.parameters(), **arguments)
    for step in range(12):
        for model, optimizer in ((a, ours), (b, theirs)):
            gradients(model, step)
            if step == 3:
                model.out.bias.grad = None
            optimizer.step()
        assert torch.equal(weights(a), weights(b))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("options", [{}, {"amsgrad": True}, {"maximize": True}])
def test_damping_kernel_without_decay_of_the_step_is_adamw(options, layout, monkeypatch):
    """The damped kernel is another one than torch's: with ranks that all give no damping it agrees to rounding."""
    lay_out(monkeypatch, layout)
    a, b = net(torch.float64), net(torch.float64)
    ours = SRFTAdamW(a.named_parameters(), total_steps=9, srft=settings(damping_strength=1e-12), **ADAM, **options)
    theirs = torch.optim.AdamW(b.parameters(), **ADAM, **options)
    for step in range(9):
        for model, optimizer in ((a, ours), (b, theirs)):
            gradients(model, step)
            optimizer.step()
    # Ranks and factors are float32: relative 1e-7 of the displacement.
    torch.testing.assert_close(weights(a), weights(b), rtol=0, atol=1e-7)


def test_shares_of_workers_add_up_to_the_whole():
    model = net()
    optimizer = SRFTAdamW(model.named_parameters(), total_steps=10, **ADAM)
    assert merge([optimizer.sketches()]).groups["out.weight"].total == 0
    run(model, optimizer, 2)
    whole = optimizer.sketches().to_bytes()
    for workers in (1, 2, 3, 7):
        assert merge([optimizer.sketches(rank, workers) for rank in range(workers)]).to_bytes() == whole


def test_gradients_that_are_not_finite_are_named():
    model = net()
    optimizer = SRFTAdamW(model.named_parameters(), total_steps=10, **ADAM)
    gradients(model, 0)
    model.out.weight.grad[0, 0] = float("nan")
    optimizer.step()
    with pytest.raises(ValueError, match=r"out\.weight: 1 of 40 values are NaN"):
        optimizer.sketches()


@pytest.mark.parametrize("mode", ["penalty", "proximal", "projection"])
@pytest.mark.parametrize("transfer", ["adam", "two_step"])
def test_state_dict_continues_bit_for_bit(mode, transfer):
    config = settings(mode=mode, transfer=transfer, prior_strength=5.0, damping_strength=0.9)

    def build(model):
        return SRFTAdamW(model.named_parameters(), total_steps=30, srft=config, prior=make_prior(model), **ADAM)

    model = net()
    optimizer = build(model)
    run(model, optimizer, 7, refresh=3)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    expected = run(model, optimizer, 8, first=7, refresh=3)
    # The optimizer is rebuilt after the tuned weights were loaded: its anchors must still be the old ones.
    resumed = net(seed=9)
    resumed.load_state_dict(saved["model"])
    other = build(resumed)
    other.load_state_dict(saved["optimizer"])
    assert other.steps_taken == 7
    assert torch.equal(run(resumed, other, 8, first=7, refresh=3), expected)


@pytest.mark.parametrize("strength", [0.0, 5.0])
def test_gradients_of_two_steps_are_averaged_whether_they_damp_or_not(strength):
    found = {}
    for damping in (0.0, 1e-9):
        config = settings(transfer="two_step", prior_strength=strength, damping_strength=damping)
        model = net()
        optimizer = SRFTAdamW(model.named_parameters(), total_steps=30, srft=config, prior=make_prior(model), **ADAM)
        run(model, optimizer, 4, refresh=3)
        found[damping] = {name: tensor.clone() for name, tensor in optimizer.named_state().items() if name.startswith("two_step.")}
        assert all(tensor.abs().max() > 0 for tensor in found[damping].values())
    torch.testing.assert_close(found[0.0], found[1e-9], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("mode", ["penalty", "proximal"])
def test_state_by_name_continues_bit_for_bit(mode):
    config = settings(mode=mode, transfer="two_step", prior_strength=5.0, damping_strength=0.9, schedule="adaptive")

    def build(model):
        return SRFTAdamW(model.named_parameters(), total_steps=30, srft=config, prior=make_prior(model), **ADAM)

    model = net()
    optimizer = build(model)
    names = build(net()).named_state().keys()
    run(model, optimizer, 7, refresh=3)
    state = {name: tensor.clone() for name, tensor in optimizer.named_state().items()}
    assert state.keys() == names
    assert {"exp_avg.out.weight", "two_step.out.weight", "step.out.weight", "anchor.out.weight"} <= names
    saved, method_state = copy.deepcopy(model.state_dict()), optimizer.method_state()
    expected = run(model, optimizer, 8, first=7, refresh=3)
    again = net(seed=9)
    resumed = build(again)
    again.load_state_dict(saved)
    with torch.no_grad():
        for name, tensor in resumed.named_state().items():
            tensor.copy_(state[name])
    resumed.resume(method_state)
    assert resumed.steps_taken == 7
    assert torch.equal(run(again, resumed, 8, first=7, refresh=3), expected)


def test_state_of_another_rank_is_refused():
    model = net()
    config = settings(prior_strength=1.0)
    saved = SRFTAdamW(model.named_parameters(), total_steps=3, srft=config, prior=make_prior(model), **ADAM).state_dict()
    other = SRFTAdamW(model.named_parameters(), total_steps=3, srft=settings(prior_strength=1.0, rank=2), prior=make_prior(model), **ADAM)
    with pytest.raises(ValueError, match=r"same srft\.rank"):
        other.load_state_dict(saved)


def test_state_of_plain_adamw_is_taken():
    a, b = net(), net()
    theirs = torch.optim.AdamW(b.parameters(), **ADAM)
    run(b, theirs, 4)
    a.load_state_dict(b.state_dict())
    ours = SRFTAdamW(a.named_parameters(), total_steps=10, srft=settings(prior_strength=3.0), prior=make_prior(a), **ADAM)
    ours.load_state_dict(copy.deepcopy(theirs.state_dict()))
    assert ours.steps_taken == 4
    assert torch.isfinite(run(a, ours, 3, first=4)).all()


def test_going_back_to_a_state_before_the_first_statistics_forgets_the_later_ones():
    def build(model):
        config = settings(prior_strength=3.0, damping_strength=0.5, schedule="adaptive")
        return SRFTAdamW(model.named_parameters(), total_steps=20, srft=config, prior=make_prior(model), **ADAM)

    model = net()
    optimizer = build(model)
    start = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    expected = run(model, optimizer, 9, refresh=3)
    run(model, optimizer, 6, first=9, refresh=3)
    model.load_state_dict(start[0])
    optimizer.load_state_dict(start[1])
    assert optimizer.prior_weight == build(net()).prior_weight
    assert torch.equal(run(model, optimizer, 9, refresh=3), expected)


@pytest.mark.parametrize("mode", ["penalty", "proximal", "projection"])
def test_weights_in_half_precision_take_every_kind_of_step(mode):
    model = net(torch.bfloat16)
    config = settings(prior_strength=3.0, mode=mode, diagonal=True)
    optimizer = SRFTAdamW(model.named_parameters(), total_steps=5, srft=config, prior=make_prior(model, diagonal=True), **ADAM)
    before = weights(model).clone()
    after = run(model, optimizer, 2)
    assert torch.isfinite(after).all()
    assert not torch.equal(before, after)


def test_a_prior_that_knows_no_eigenvalue_has_no_scale():
    model = net()
    prior = make_prior(model, diagonal=True).truncated(0)
    config = settings(rank=0, prior_strength=3.0, diagonal=True)
    build = lambda prior: SRFTAdamW(model.named_parameters(), total_steps=5, srft=config, prior=prior, **ADAM)
    with pytest.raises(ValueError, match="its scale is 0"):
        build(dataclasses.replace(prior, scale=0.0))
    nothing = {name: dataclasses.replace(g, diagonal=torch.zeros_like(g.diagonal), trace=0.0) for name, g in prior.groups.items()}
    optimizer = build(dataclasses.replace(prior, scale=0.0, groups=nothing))  # Nothing is sensitive: AdamW.
    plain = net()
    theirs = torch.optim.AdamW(plain.parameters(), **ADAM)
    torch.testing.assert_close(run(model, optimizer, 3), run(plain, theirs, 3))


def test_learning_rate_schedulers_and_groups():
    a, b = net(), net()

    def parts(model, named):
        pairs = list(model.named_parameters())
        split = [pairs[:2], pairs[2:]]
        return [{"params": s if named else [p for _, p in s], "lr": lr} for s, lr in zip(split, (1e-2, 1e-3), strict=True)]

    ours = SRFTAdamW(parts(a, True), total_steps=10, srft=settings(prior_strength=1.0, kappa=1e9), prior=make_prior(a))
    ours.steps_taken = 5  # the prior has handed over
    theirs = torch.optim.AdamW(parts(b, False))
    schedules = [torch.optim.lr_scheduler.CosineAnnealingLR(o, 8) for o in (ours, theirs)]
    for step in range(6):
        for model, optimizer, schedule in zip((a, b), (ours, theirs), schedules, strict=True):
            gradients(model, step)
            optimizer.step()
            schedule.step()
        assert torch.equal(weights(a), weights(b))
    assert [g["lr"] for g in ours.param_groups] == [g["lr"] for g in theirs.param_groups]


def test_gradient_scaling_and_accumulation_change_nothing():
    config = settings(prior_strength=5.0, damping_strength=0.9)
    results = []
    for scaled in (False, True):
        model = net()
        optimizer = SRFTAdamW(model.named_parameters(), total_steps=10, srft=config, prior=make_prior(model), **ADAM)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=scaled)
        x = torch.randn(8, 8, generator=torch.Generator().manual_seed(2))
        for step in range(6):
            optimizer.zero_grad()
            for half in x.chunk(2 if scaled else 1):
                loss = (model.qkv(half).square().sum() + model.out(half).pow(3).sum()) / 8
                scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
            if step == 2:
                optimizer.set_statistics(MergedStatistics.of(3, optimizer.sketches()))
        results.append(weights(model))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


def test_same_inputs_give_the_same_bits_through_an_exchange():
    config = settings(prior_strength=5.0, damping_strength=0.9)
    results = []
    for workers in (1, 2):
        model = net()
        optimizer = SRFTAdamW(model.named_parameters(), total_steps=30, srft=config, prior=make_prior(model), **ADAM)
        exchange = LocalExchange(refresh=4)
        for step in range(20):
            if (statistics := exchange.due(step)) is not None:
                optimizer.set_statistics(statistics)
            gradients(model, step)
            optimizer.step()
            if (step + 1) % 4 == 0:
                exchange.submit(step + 1, merge([optimizer.sketches(r, workers) for r in reversed(range(workers))]))
        results.append(weights(model))
    assert torch.equal(*results)


def test_sparse_gradients_are_refused_by_name():
    model = nn.Embedding(4, 2, sparse=True)
    optimizer = SRFTAdamW(model.named_parameters(), total_steps=3)
    model(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match="weight has a sparse gradient"):
        optimizer.step()


def test_a_parameter_that_had_no_gradient_for_a_while_counts_its_own_steps():
    a, b = net(torch.float64), net(torch.float64)
    ours = SRFTAdamW(a.named_parameters(), total_steps=9, srft=settings(damping_strength=1e-12), **ADAM)
    theirs = torch.optim.AdamW(b.parameters(), **ADAM)
    for step in range(6):
        for model, optimizer in ((a, ours), (b, theirs)):
            gradients(model, step)
            if step in (0, 1, 4):
                model.out.weight.grad = None
            optimizer.step()
    torch.testing.assert_close(weights(a), weights(b), rtol=0, atol=1e-7)


@hypothesis_settings(deadline=None, max_examples=40)
@given(
    shapes=st.lists(st.lists(st.integers(0, 5), max_size=3).map(tuple), min_size=1, max_size=6),
    zero=st.booleans(),
    layout=st.sampled_from(sorted(LAYOUTS)),
    seed=st.integers(0, 99),
)
def test_any_shapes_take_adamws_step_and_are_all_counted(shapes, zero, layout, seed):
    """Without an element, with one, of no dimension, with gradients that are zero everywhere."""
    g = torch.Generator().manual_seed(seed)
    start = [torch.randn(shape, generator=g, dtype=torch.float64) for shape in shapes]
    given_gradients = [torch.randn(shape, generator=g, dtype=torch.float64) * (not zero) for shape in shapes]
    with pytest.MonkeyPatch.context() as patch:
        lay_out(patch, layout)
        ours, theirs = (nn.ParameterDict({f"p{i}": value.clone() for i, value in enumerate(start)}) for _ in range(2))
        a = SRFTAdamW(ours.named_parameters(), total_steps=9, srft=settings(damping_strength=1e-12), **ADAM)
        b = torch.optim.AdamW(theirs.parameters(), **ADAM)
        for step in range(3):
            for model in (ours, theirs):
                for p, gradient in zip(model.parameters(), given_gradients, strict=True):
                    p.grad = gradient.clone()
            a.step()
            b.step()
            statistics = MergedStatistics.of(step + 1, a.sketches())
            a.set_statistics(statistics)
    assert sum(histogram.total for histogram in statistics.sketch.groups.values()) == sum(value.numel() for value in start)
    for p, q in zip(ours.values(), theirs.values(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-7)


def test_empty_and_single_element_parameters():
    model = nn.ParameterDict({"empty": torch.zeros(0, 3), "one": torch.ones(()), "zero": torch.zeros(4)})
    optimizer = SRFTAdamW(model.named_parameters(), total_steps=9, srft=settings(damping_strength=1.0), **ADAM)
    for _ in range(3):
        for p in model.parameters():
            p.grad = torch.zeros_like(p) if p.numel() == 4 else torch.ones_like(p)
        optimizer.step()
        optimizer.set_statistics(MergedStatistics.of(1, optimizer.sketches()))
    assert model["one"].item() == pytest.approx((1 - 0.55 * 1e-2 * 0.05) ** 3 - 3 * 0.55 * 1e-2, abs=1e-4)
    assert torch.equal(model["zero"], torch.zeros(4))


def test_closure_is_evaluated_with_gradients():
    model = net()
    optimizer = SRFTAdamW(model.named_parameters(), total_steps=9, **ADAM)

    def closure():
        optimizer.zero_grad()
        loss = model.out(torch.ones(1, 8)).square().sum()
        loss.backward()
        return loss

    first = optimizer.step(closure).item()
    assert [optimizer.step(closure).item() < first for _ in range(3)][-1]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"named_parameters": lambda m: m.parameters()}, "without names"),
        ({"total_steps": 0}, "total_steps is 0"),
        ({"lr": -1.0}, "nothing negative"),
        ({"srft": settings(rank=9)}, "rank is 9"),
        ({"prior": make_prior(net()).carried({"x": "out.weight"})}, "none of its groups"),
        ({"prior": make_prior(net()).carried({"out.bias": "out.weight"})}, "prior of out.bias is of elements"),
        ({"pretrained": {}}, "pretrained: no values for"),
        ({"pretrained": {n: torch.zeros(2) for n, _ in net().named_parameters()}}, r"pretrained: .* has shape \(2,\)"),
    ],
)
def test_bad_input(change, match):
    model = net()
    arguments = {
        "named_parameters": lambda m: m.named_parameters(),
        "total_steps": 9,
        "srft": settings(),
        "prior": make_prior(model),
        **ADAM,
        **change,
    }
    with pytest.raises(ValueError, match=match):
        SRFTAdamW(arguments.pop("named_parameters")(model), **arguments)


def test_statistics_of_other_groups_are_refused():
    model, other = net(), nn.Linear(2, 2)
    optimizer = SRFTAdamW(model.named_parameters(), total_steps=9)
    strange = SRFTAdamW(other.named_parameters(), total_steps=9)
    with pytest.raises(ValueError, match=r"lack qkv\.weight:q"):
        optimizer.set_statistics(MergedStatistics.of(5, strange.sketches()))
