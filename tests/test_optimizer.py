import copy
import io

import numpy as np
import pytest
import torch
from torch import nn

from srft.config import SRFTConfig
from srft.method.groups import groups_of
from srft.method.histogram import rank_table
from srft.method.kronecker_prior import KroneckerGroup
from srft.method.operation import Operation
from srft.method.optimizer import SRFTAdamW
from srft.method.prior import GroupPrior, PriorSensitivity
from srft.method.sketch import histogram_of
from srft.method.sparsity import LocalExchange, MergedStatistics, merge
from srft.method.storage import from_log8, to_log8
from tests.reference import released_rule
from tests.reference.optimizer import DenseStep
from tests.reference.sparsity import true_rank

ADAM = {"lr": 1e-2, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.05}


class Net(nn.Module):
    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.qkv = nn.Linear(8, 24, dtype=dtype)
        self.out = nn.Linear(8, 5, dtype=dtype)


def net(dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    return Net(dtype)


def settings(**kw):
    return SRFTConfig(**{"rank": 3, "prior_strength": 0.0, "damping_strength": 0.0, **kw})


def make_prior(model, rank=3, names=None, dtype=None, seed=5, diagonal=False):
    """Random orthonormal directions for some groups, and a diagonal larger than theirs if asked for."""
    g = torch.Generator().manual_seed(seed)
    groups = {}
    for group in groups_of(dict(model.named_parameters())):
        if names is None or group.name in names:
            k = min(rank, group.numel - 1)
            q = torch.linalg.qr(torch.randn(group.numel, k, generator=g, dtype=torch.float64))[0].T.contiguous()
            values = torch.rand(k, generator=g, dtype=torch.float64).sort(descending=True).values + 0.1
            trace = float(values.sum()) + 0.7
            vectors = q.to(dtype or next(model.parameters()).dtype)
            kept = (values[:, None] * vectors.double().square()).sum(0)
            whole = (kept + torch.rand(group.numel, generator=g, dtype=torch.float64) ** 4).float() if diagonal else None
            groups[group.name] = GroupPrior(
                group=group, eigenvalues=values, eigenvectors=vectors, trace=trace, next_eigenvalue=0.1, diagonal=whole
            )
    return PriorSensitivity(groups=groups, rank=rank, samples=9, fisher_type="empirical", base_hash="0", data="", scale=0.8)


def make_kronecker(model, seed=5, diagonal=False):
    """Random products of orthonormal rows for the matrices, random directions for the rest."""
    g = torch.Generator().manual_seed(seed)
    prior, shapes = make_prior(model, diagonal=diagonal), {name: p.shape for name, p in model.named_parameters()}
    groups = dict(prior.groups)
    for name, low_rank in prior.groups.items():
        shape, group, dtype = shapes[low_rank.group.parameter], low_rank.group, low_rank.eigenvectors.dtype
        inputs, rows = shape[-1], group.numel // shape[-1]
        if len(shape) == 2 and rows > 2:
            u, w = (
                torch.linalg.qr(torch.randn(n, k, generator=g, dtype=torch.float64))[0].T.to(dtype) for n, k in ((rows, 2), (inputs, 3))
            )
            pairs = torch.tensor([[0, 1, 0], [0, 0, 2]])
            groups[name] = KroneckerGroup(
                group=group,
                eigenvalues=low_rank.eigenvalues,
                out_vectors=u.contiguous(),
                in_vectors=w.contiguous(),
                pairs=pairs,
                trace=low_rank.trace + 0.3,
                spectral=0.1,
                frobenius=0.1,
                vector_errors=torch.zeros(3, dtype=torch.float64),
                diagonal=low_rank.diagonal,
            )
    return PriorSensitivity(**{**vars(prior), "groups": groups})


def as_rows(prior):
    """[K, n] float64 eigenvectors of either kind."""
    return torch.stack([prior.expand(e).double() for e in torch.eye(len(prior.eigenvalues))])


def gradients(model, step, scale=1.0):
    g = torch.Generator().manual_seed(100 + step)
    for p in model.parameters():
        p.grad = (scale * torch.randn(p.shape, generator=g, dtype=torch.float64) ** 3).to(p.dtype)


def weights(model):
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def run(model, optimizer, steps, first=0, refresh=0, scale=1.0):
    for step in range(first, first + steps):
        gradients(model, step, scale)
        optimizer.step()
        if refresh and (step + 1) % refresh == 0:
            optimizer.set_statistics(MergedStatistics.of(step + 1, optimizer.sketches()))
    return weights(model)


def table_lookup(table):
    """A rank table applied in numpy, from its definition."""

    def lookup(magnitude):
        bits = np.asarray(magnitude, np.float32).view(np.uint32).astype(np.int64)
        return table.ranks[np.clip((bits >> 17) - table.first, 0, len(table.ranks) - 1)].astype(np.float64)

    return lookup


LAYOUTS = {"gathered": {}, "several buckets": {"kernel.CHUNK": 64}, "pieces": {"kernel.SMALL": 0, "tangent.CHUNK": 16}}
"""Sizes that make a small network's operations share a bucket, fill several, or be worked through piece by piece."""


def lay_out(monkeypatch, layout):
    for name, value in LAYOUTS[layout].items():
        monkeypatch.setattr(f"srft.method.{name}", value)


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


@pytest.mark.parametrize(
    ("kind", "layout"),
    [
        *(("low rank", layout) for layout in LAYOUTS),
        ("kronecker", "pieces"),
        ("kronecker", "gathered"),
        ("low rank and diagonal", "pieces"),
        ("kronecker and diagonal", "gathered"),
        ("diagonal alone", "several buckets"),
    ],
)
@pytest.mark.parametrize(("damping", "scale"), [(0.0, "global"), (0.8, "global"), (0.8, "group")])
@pytest.mark.parametrize("mode", ["penalty", "proximal", "projection"])
def test_every_mode_against_dense(mode, damping, scale, kind, layout, monkeypatch):
    lay_out(monkeypatch, layout)
    model, total, strength = net(torch.float64), 12, 0.7
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    pretrained = {name: p + 0.1 for name, p in start.items()}
    make = make_kronecker if "kronecker" in kind else make_prior
    prior = make(model, diagonal="diagonal" in kind)
    if kind == "diagonal alone":
        prior = prior.truncated(0)
    prior = PriorSensitivity(**{**vars(prior), "groups": {n: p for n, p in prior.groups.items() if n != "out.bias"}})
    config = settings(rank=prior.rank, mode=mode, scale=scale, prior_strength=strength, damping_strength=damping, kappa=2.0)
    optimizer = SRFTAdamW(model.named_parameters(), total_steps=total, srft=config, prior=prior, pretrained=pretrained, **ADAM)
    dense, tables, prior_ranks = {}, {}, {}
    for group in groups_of(start):
        p = prior.groups.get(group.name)
        vectors, values = (as_rows(p), p.eigenvalues) if p and len(p.eigenvalues) else (np.zeros((0, group.numel)), np.zeros(0))
        top = 1.0 if p is None else 0.8 if scale == "global" or not len(values) else float(values[0])
        remainder = from_log8(*to_log8(p.residual_diagonal())) if p and p.diagonal is not None else None
        dense[group] = DenseStep(
            group.of(start[group.parameter]),
            group.of(pretrained[group.parameter]),
            vectors,
            values,
            remainder,
            scale=top,
            residual=p.residual if p else 1.0,
            mode=mode,
            strength=strength,
            damping=damping,
            **ADAM,
        )
        if p:
            kept = sum((float(values[k]) * vectors[k].numpy() ** 2 for k in range(len(values))), np.zeros(group.numel))
            measure = kept if p.diagonal is None else p.diagonal.double().numpy()
            np.testing.assert_allclose(p.measure(), measure, rtol=1e-9, atol=1e-12)
            ranks = table_lookup(rank_table(histogram_of(torch.from_numpy(measure))))(measure)
            prior_ranks[group] = np.round(255 * ranks) / 255  # Kept in 8 bits.
            assert np.abs(prior_ranks[group] - true_rank(measure)).max() < 0.15
    for step in range(total + 2):
        if step == 7:  # Somebody else moves the weights between two steps.
            with torch.no_grad():
                for p in model.parameters():
                    p.mul_(1.25)
            for reference in dense.values():
                reference.values = reference.values * 1.25
        w = max(1 - step / total, 0) ** 2
        assert optimizer.prior_weight == pytest.approx(w)
        gradients(model, step)
        given = {group: group.of(dict(model.named_parameters())[group.parameter].grad).numpy().copy() for group in dense}
        optimizer.step()
        for group, reference in dense.items():
            expected = reference.step(given[group], w, prior_ranks.get(group), tables.get(group))
            actual = group.of(dict(model.named_parameters())[group.parameter]).numpy()
            np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-6, err_msg=f"{group.name} at step {step}")
        if step == 4:
            statistics = MergedStatistics.of(step, optimizer.sketches())
            optimizer.set_statistics(statistics)
            tables = {group: table_lookup(statistics.tables[group.name]) for group in dense}
            for group, reference in dense.items():
                assert np.abs(tables[group](reference.magnitude) - true_rank(reference.magnitude)).max() < 0.2


def test_ranks_come_from_the_corrected_second_moment_and_the_table():
    model = net()
    optimizer = SRFTAdamW(model.named_parameters(), total_steps=10, srft=settings(damping_strength=1.0), **ADAM)
    run(model, optimizer, 3)
    sketch = optimizer.sketches()
    for group in groups_of(dict(model.named_parameters())):
        p = dict(model.named_parameters())[group.parameter]
        magnitude = (group.of(optimizer.state[p]["exp_avg_sq"]) / (1 - 0.99**3)).sqrt()
        difference = sketch.groups[group.name].counts.sum() - group.numel
        assert difference == 0
        assert np.abs(table_lookup(rank_table(sketch.groups[group.name]))(magnitude) - true_rank(magnitude)).max() < 0.2


@pytest.mark.parametrize("transfer", ["adam", "two_step"])
@pytest.mark.parametrize("case", ["rank 0", "weight 0", "no prior"])
def test_without_prior_it_is_the_repaired_released_rule(case, transfer):
    model, total = net(), 4
    prior = None if case == "no prior" else make_prior(model)
    config = settings(rank=3 if case == "weight 0" else 0, prior_strength=2.0, damping_strength=1.0, transfer=transfer)
    optimizer = SRFTAdamW(model.named_parameters(), total_steps=total, srft=config, prior=prior, **ADAM)
    run(model, optimizer, 6)
    statistics = MergedStatistics.of(6, optimizer.sketches())
    optimizer.set_statistics(statistics)
    # The same state under plain AdamW gives the increment.
    plain = copy.deepcopy(model)
    adam = torch.optim.AdamW(plain.parameters(), **ADAM)
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        adam.state[q] = {k: optimizer.state[p][k].clone() for k in ("step", "exp_avg", "exp_avg_sq")}
    old = {name: p.detach().clone() for name, p in model.named_parameters()}
    last = {name: optimizer.state[p].get("last_square", torch.zeros(())).sqrt() for name, p in model.named_parameters()}
    for m in (model, plain):
        gradients(m, 6)
    optimizer.step()
    adam.step()
    for group in groups_of(old):
        p, q = dict(model.named_parameters())[group.parameter], dict(plain.named_parameters())[group.parameter]
        if transfer == "two_step":
            s = released_rule.two_step_sensitivity(group.of(last[group.parameter]), group.of(p.grad))
            magnitude = ((group.of(last[group.parameter]) ** 2 + group.of(p.grad) ** 2) / 2).sqrt()
        else:
            magnitude = (group.of(adam.state[q]["exp_avg_sq"]) / (1 - 0.99**7)).sqrt()
            s = magnitude
        momentum = 0.25 + 0.4 * torch.from_numpy(table_lookup(statistics.tables[group.name])(magnitude)).float()
        expected = released_rule.apply(group.of(old[group.parameter]), group.of(q), momentum)
        torch.testing.assert_close(group.of(p), expected, rtol=0, atol=1e-6)
        # And with a table of the present values that momentum is the intended ramp, to the mass of one bin.
        if group.numel > 50:
            present = torch.from_numpy(table_lookup(rank_table(histogram_of(magnitude)))(magnitude)).float()
            assert (0.25 + 0.4 * present - released_rule.repaired_momentum(s)).abs().max() < 0.4 * 0.15
            assert (0.25 + 0.4 * present - released_rule.released_momentum(s)).abs().max() > 0.2


def test_ranks_are_a_half_before_the_first_statistics():
    a, b = net(), net()
    ours = SRFTAdamW(a.named_parameters(), total_steps=10, srft=settings(damping_strength=1.0), **ADAM)
    flat = SRFTAdamW(b.named_parameters(), total_steps=10, srft=settings(damping_strength=1.0, damping_range=(0.45, 0.45)), **ADAM)
    torch.testing.assert_close(run(a, ours, 3), run(b, flat, 3), rtol=0, atol=1e-6)


def test_uniform_damping_is_a_smaller_learning_rate():
    a, b = net(), net()
    ours = SRFTAdamW(a.named_parameters(), total_steps=10, srft=settings(damping_strength=0.5, damping_range=(0.5, 0.5)), **ADAM)
    theirs = torch.optim.AdamW(b.parameters(), **{**ADAM, "lr": ADAM["lr"] * 0.75})
    assert torch.equal(run(a, ours, 4), run(b, theirs, 4))


@pytest.mark.parametrize("transfer", ["adam", "two_step"])
def test_scaling_the_loss_leaves_ranks_unchanged(transfer):
    tables, moved = [], []
    for scale in (1.0, 2.0**12):
        model = net()
        config = settings(damping_strength=1.0, transfer=transfer)
        optimizer = SRFTAdamW(model.named_parameters(), total_steps=20, srft=config, **{**ADAM, "eps": 0.0})
        moved.append(run(model, optimizer, 8, refresh=2, scale=scale))
        tables.append(MergedStatistics.of(8, optimizer.sketches()).tables)
    for name, table in tables[0].items():
        assert np.array_equal(table.ranks, tables[1][name].ranks)
    assert torch.equal(*moved)


def test_permuting_a_tensor_permutes_the_result():
    a, b = net(), net()
    permutation = torch.randperm(40, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        b.out.weight.view(-1).copy_(a.out.weight.view(-1)[permutation])
    optimizers = [SRFTAdamW(m.named_parameters(), total_steps=20, srft=settings(damping_strength=1.0), **ADAM) for m in (a, b)]
    for step in range(6):
        gradients(a, step)
        for p, q in zip(a.parameters(), b.parameters(), strict=True):
            q.grad = p.grad.clone() if p is not a.out.weight else p.grad.view(-1)[permutation].view_as(p)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.set_statistics(MergedStatistics.of(step, optimizer.sketches()))
    assert torch.equal(a.out.weight.view(-1)[permutation], b.out.weight.view(-1))


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


def test_proximal_is_stable_for_any_strength_and_holds_the_subspace():
    model = net()
    prior = make_prior(model)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    config = settings(mode="proximal", prior_strength=1e12, schedule="constant")
    optimizer = SRFTAdamW(model.named_parameters(), total_steps=10, srft=config, prior=prior, **ADAM)
    run(model, optimizer, 10)
    for group in groups_of(start):
        moved = group.of(dict(model.named_parameters())[group.parameter]) - group.of(start[group.parameter])
        assert moved.norm() > 0.01
        assert (prior.groups[group.name].eigenvectors @ moved).norm() < 1e-5


@pytest.mark.parametrize("mode", ["penalty", "proximal", "projection"])
def test_bfloat16_directions_are_those_of_float32_to_their_rounding(mode):
    results = []
    for dtype in (torch.float32, torch.bfloat16):
        model = net()
        prior = make_prior(model)
        rounded = {name: GroupPrior(**{**vars(p), "eigenvectors": p.eigenvectors.bfloat16().to(dtype)}) for name, p in prior.groups.items()}
        prior = PriorSensitivity(**{**vars(prior), "groups": rounded})
        config = settings(mode=mode, prior_strength=2.0, damping_strength=0.5)
        optimizer = SRFTAdamW(model.named_parameters(), total_steps=20, srft=config, prior=prior, **ADAM)
        results.append(run(model, optimizer, 5))
    torch.testing.assert_close(*results, rtol=0, atol=1e-5)


@pytest.mark.parametrize("mode", ["penalty", "proximal", "projection"])
def test_bfloat16_weights_are_moved_by_displacements_in_float32(mode):
    """Displacements are small differences of large numbers; what is wrong with 8 bits of mantissa is not wrong with the weights' own."""
    results = []
    for dtype in (torch.float32, torch.bfloat16):
        model = net()
        for p in model.parameters():
            p.data = p.data.bfloat16().to(dtype)
        prior = make_prior(net(), dtype=torch.float32)
        config = settings(mode=mode, prior_strength=2.0, damping_strength=0.5, schedule="constant")
        optimizer = SRFTAdamW(model.named_parameters(), total_steps=20, srft=config, prior=prior, **{**ADAM, "lr": 0.1})
        assert optimizer.state[model.out.weight]["anchor"].dtype == torch.float32
        again = SRFTAdamW(model.named_parameters(), total_steps=20, srft=config, prior=prior, **{**ADAM, "lr": 0.1})
        again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        assert torch.equal(again.state[model.out.weight]["anchor"], optimizer.state[model.out.weight]["anchor"])
        results.append(run(model, again, 3).float())
    # Adam makes a step of either sign out of a gradient that is nearly zero.
    assert ((results[0] - results[1]).abs() < 0.02).float().mean() > 0.99


def test_steps_keep_what_they_know_of_the_weights_and_notice_changes(monkeypatch):
    model = net()
    optimizer = SRFTAdamW(model.named_parameters(), total_steps=30, srft=settings(prior_strength=1.0), prior=make_prior(model), **ADAM)
    projected = []
    project = Operation.project
    monkeypatch.setattr(Operation, "project", lambda self, *a: projected.append(self.group.name) or project(self, *a))
    run(model, optimizer, 1)
    assert len(projected) == 8  # All of them, once: q, k, v twice, and out's weight and bias.
    run(model, optimizer, 3, first=1)
    assert len(projected) == 8
    with torch.no_grad():
        model.out.weight.add_(0.1)
    run(model, optimizer, 1, first=4)
    assert projected[8:] == ["out.weight"]


def test_sparse_gradients_are_refused_by_name():
    model = nn.Embedding(4, 2, sparse=True)
    optimizer = SRFTAdamW(model.named_parameters(), total_steps=3)
    model(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match="weight has a sparse gradient"):
        optimizer.step()


def test_copies_share_one_table_of_prior_ranks():
    source = nn.Linear(6, 6, bias=False)
    model = nn.ModuleDict({"a": nn.Linear(6, 6, bias=False), "b": nn.Linear(6, 6, bias=False)})
    prior = make_prior(source).carried({"a.weight": "weight", "b.weight": "weight"})
    optimizer = SRFTAdamW(model.named_parameters(), total_steps=9, srft=settings(damping_strength=1.0), prior=prior, **ADAM)
    run(model, optimizer, 2)
    a, b = ([op.prior_ranks for op in optimizer._operations[p]] for p in model.parameters())
    assert a[0].dtype == torch.uint8
    assert a[0].data_ptr() == b[0].data_ptr()


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
