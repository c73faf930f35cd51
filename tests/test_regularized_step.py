import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from srft.method.groups import groups_of
from srft.method.histogram import rank_table
from srft.method.operation import Operation
from srft.method.optimizer import SRFTAdamW
from srft.method.prior import GroupPrior, PriorSensitivity
from srft.method.sketch import histogram_of
from srft.method.sparsity import MergedStatistics
from srft.method.storage import from_log8, to_log8
from srft.method.wrap import SRFTAround
from tests.reference import released_rule
from tests.reference.optimizer import DenseStep
from tests.reference.sparsity import true_rank
from tests.small_net import (
    ADAM,
    LAYOUTS,
    as_rows,
    gradients,
    lay_out,
    make_kronecker,
    make_prior,
    net,
    run,
    settings,
    table_lookup,
)


@pytest.mark.parametrize(
    ("kind", "layout"),
    [
        *(("low rank", layout) for layout in LAYOUTS),
        ("kronecker", "pieces"),
        ("kronecker", "gathered"),
        ("low rank and diagonal", "pieces"),
        ("low rank and diagonal", "stacked"),
        ("kronecker", "stacked"),
        ("kronecker and diagonal", "gathered"),
        ("diagonal alone", "several buckets"),
    ],
)
@pytest.mark.parametrize(
    ("damping", "scale", "damped"), [(0.0, "global", "both"), (0.8, "global", "both"), (0.8, "group", "opposed"), (0.8, "global", "prior")]
)
@pytest.mark.parametrize("mode", ["penalty", "proximal", "projection"])
def test_every_mode_against_dense(mode, damping, scale, damped, kind, layout, monkeypatch):
    lay_out(monkeypatch, layout)
    model, total, strength = net(torch.float64), 12, 0.7
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    pretrained = {name: p + 0.1 for name, p in start.items()}
    make = make_kronecker if "kronecker" in kind else make_prior
    prior = make(model, diagonal="diagonal" in kind)
    if kind == "diagonal alone":
        prior = prior.truncated(0)
    share = 1.5 if mode == "projection" else 0.3
    groups = {n: replace(p, share=share if n.startswith("out") else 1.0) for n, p in prior.groups.items() if n != "out.bias"}
    prior = replace(prior, groups=groups)
    rate = "reduced" if damped == "both" else "kept"
    forms = {"damping_strength": damping, "damped": damped, "damped_rate": rate}
    config = settings(rank=prior.rank, mode=mode, scale=scale, prior_strength=strength, kappa=2.0, **forms)
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
            damped=damped,
            kept=rate == "kept",
            share=p.share if p else 1.0,
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


@pytest.mark.parametrize("mode", ["penalty", "proximal", "projection"])
def test_no_share_is_no_prior(mode):
    ends = []
    for without in (False, True):
        model = net()
        prior = make_prior(model, diagonal=True)
        groups = {n: p if without else replace(p, share=0.0 if n.startswith("out") else 1.0) for n, p in prior.groups.items()}
        prior = replace(prior, groups={n: p for n, p in groups.items() if not (without and n.startswith("out"))})
        config = settings(rank=3, mode=mode, prior_strength=2.0, damping_strength=0.0)
        ends.append(run(model, SRFTAdamW(model.named_parameters(), total_steps=4, srft=config, prior=prior, **ADAM), 4))
    torch.testing.assert_close(*ends, rtol=0, atol=0)


@pytest.mark.parametrize("mode", ["penalty", "proximal", "projection"])
def test_damping_does_not_depend_on_the_share(mode):
    """A share is of the tangent-space term: the less of it, the nearer to none of it, and the prior's ranks damp as ever."""
    ends = []
    for share in (1e-12, 0.0):
        model = net()
        prior = make_prior(model, diagonal=True)
        prior = replace(prior, groups={n: replace(p, share=share) for n, p in prior.groups.items()})
        config = settings(rank=3, mode=mode, prior_strength=2.0, damping_strength=0.8)
        ends.append(run(model, SRFTAdamW(model.named_parameters(), total_steps=4, srft=config, prior=prior, **ADAM), 4))
    torch.testing.assert_close(*ends, rtol=0, atol=1e-6)
    undamped = net()
    plain = SRFTAdamW(undamped.named_parameters(), total_steps=4, srft=settings(prior_strength=0.0, damping_strength=0.8), **ADAM)
    assert (run(undamped, plain, 4) - ends[1]).abs().max() > 1e-4


@pytest.mark.parametrize("rank", [0, 3])
def test_damping_alone_takes_the_priors_ranks_whatever_they_come_from(rank):
    """With a strength of the term or without: ranks are of the diagonal where there is one."""
    ends = []
    for strength in (0.0, 1e-12):
        model = net()
        config = settings(rank=rank, prior_strength=strength, damping_strength=0.8)
        prior = make_prior(model, diagonal=True)
        ends.append(run(model, SRFTAdamW(model.named_parameters(), total_steps=4, srft=config, prior=prior, **ADAM), 4))
    torch.testing.assert_close(*ends, rtol=0, atol=1e-6)


def test_a_large_share_projects_no_further_than_to_zero():
    """A gradient inside the span: what is left of it has the sign that it had, however strong the term."""
    model = nn.Linear(4, 1, bias=False)
    prior = make_prior(model)
    prior = replace(prior, groups={n: replace(p, share=50.0) for n, p in prior.groups.items()})
    optimizer = SRFTAdamW(model.named_parameters(), total_steps=9, srft=settings(rank=prior.rank, mode="projection"), prior=prior, **ADAM)
    direction = as_rows(next(iter(prior.groups.values())))[0]
    model.weight.grad = direction.to(model.weight.dtype).view(1, -1).clone()
    optimizer.step()
    assert float((model.weight.grad.view(-1) * direction).sum()) >= 0


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


def test_copies_share_one_table_of_prior_ranks():
    source = nn.Linear(6, 6, bias=False)
    model = nn.ModuleDict({"a": nn.Linear(6, 6, bias=False), "b": nn.Linear(6, 6, bias=False)})
    prior = make_prior(source).carried({"a.weight": "weight", "b.weight": "weight"})
    optimizer = SRFTAdamW(model.named_parameters(), total_steps=9, srft=settings(damping_strength=1.0), prior=prior, **ADAM)
    run(model, optimizer, 2)
    a, b = ([op.prior_ranks for op in optimizer._term.operations[p]] for p in model.parameters())
    assert a[0].dtype == torch.uint8
    assert a[0].data_ptr() == b[0].data_ptr()


def test_uniform_damping_is_a_smaller_learning_rate():
    a, b = net(), net()
    ours = SRFTAdamW(a.named_parameters(), total_steps=10, srft=settings(damping_strength=0.5, damping_range=(0.5, 0.5)), **ADAM)
    theirs = torch.optim.AdamW(b.parameters(), **{**ADAM, "lr": ADAM["lr"] * 0.75})
    assert torch.equal(run(a, ours, 4), run(b, theirs, 4))


@pytest.mark.parametrize("damped", ["both", "opposed", "prior"])
def test_a_rate_that_is_kept_is_shared_out_and_not_lowered(damped):
    a, b = net(), net()
    ours = SRFTAdamW(a.named_parameters(), total_steps=10, srft=settings(damping_strength=1.0, damped=damped, damped_rate="kept"), **ADAM)
    plain = torch.optim.AdamW(b.parameters(), **ADAM)
    assert (run(a, ours, 3) - run(b, plain, 3)).abs().max() < 1e-6  # Before the first statistics all ranks are a half.
    ours.set_statistics(MergedStatistics.of(3, ours.sketches()))
    start = a.out.weight.detach().clone(), b.out.weight.detach().clone()
    run(a, ours, 1, first=3)
    run(b, plain, 1, first=3)
    moved, usual = ((m.out.weight.detach() - s).abs().view(-1) for m, s in zip((a, b), start, strict=True))
    factor = moved / usual
    pulled = true_rank((plain.state[b.out.weight]["exp_avg_sq"].sqrt()).view(-1).numpy())
    assert factor.mean() == pytest.approx(1, abs=0.08)
    slope = np.corrcoef(pulled, factor.numpy())[0, 1] if damped != "prior" else float(factor.max() - factor.min() > 1e-3)
    assert {"both": slope < -0.9, "opposed": slope > 0.9, "prior": slope == 0}[damped]


class _Precisions(TorchDispatchMode):
    # What products were allowed when they were computed.
    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.__name__.split(".")[0] in ("mm", "bmm", "mv", "addmm_", "addmv_", "baddbmm_", "addmm", "addmv"):
            self.seen.add((torch.backends.cuda.matmul.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("mode", ["penalty", "proximal", "projection"])
@pytest.mark.parametrize("make", [make_prior, make_kronecker])
@pytest.mark.parametrize("around", [False, True])
def test_products_are_exact_whatever_the_network_may_do(layout, mode, make, around, monkeypatch):
    lay_out(monkeypatch, layout)
    model = net(torch.float32)
    config = settings(rank=3, mode=mode, prior_strength=1.0, damping_strength=0.5)
    torch.set_float32_matmul_precision("high")
    try:
        prior = make(model)
        with _Precisions() as found:
            named = list(model.named_parameters())
            if around:
                optimizer = SRFTAround(torch.optim.SGD(model.parameters(), lr=0.1), named, total_steps=9, srft=config, prior=prior)
            else:
                optimizer = SRFTAdamW(named, total_steps=9, srft=config, prior=prior, **ADAM)
        assert torch.get_float32_matmul_precision() == "high"
        for step in range(2):
            gradients(model, step)
            with found:
                optimizer.step()
        assert torch.get_float32_matmul_precision() == "high"
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert found.seen == {("ieee", "ieee")}
