import itertools
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from srft.method.fisher import estimate_prior, merge_priors, sample_gradients, trainable_groups
from srft.method.groups import Group, groups_of
from tests.reference.fisher import dense_fisher


class Net(nn.Module):
    """A small model with a fused qkv, an unused parameter, dropout and batch normalization."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(3, 6)
        self.norm = nn.BatchNorm1d(6)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(6, 1)
        self.unused = nn.Parameter(torch.ones(2))

    def forward(self, x):
        return self.head(self.drop(torch.tanh(self.norm(self.qkv(x)))))


def net(seed=0):
    torch.manual_seed(seed)
    model = Net()
    model.norm.running_mean.normal_()
    return model


def loss(model, sample):
    x, y = sample
    dtype = model.head.weight.dtype
    return (model(x.to(dtype)[None]) - y).square().sum()


def samples(n=12, seed=1):
    g = torch.Generator().manual_seed(seed)
    return [(torch.randn(3, generator=g), float(torch.randn((), generator=g))) for _ in range(n)]


def estimate(model, items, rank, **kw):
    return estimate_prior(model, loss, items, rank=rank, fisher_type="empirical", **kw)


def dense(prior, name):
    p = prior.groups[name]
    v = p.eigenvectors.double()
    return (v.T * p.eigenvalues) @ v


def test_groups_split_fused_projections_by_rows():
    w = torch.arange(18.0).view(6, 3)
    parameters = {
        "a.qkv.weight": w,
        "a.qkv.bias": torch.zeros(6),
        "a.qkv.lora_a.weight": w,
        "qkv": torch.zeros(3),
        "b.weight": torch.zeros(4, 2),
    }
    groups = groups_of(parameters)
    assert [g.name for g in groups] == [
        *(f"a.qkv.weight:{p}" for p in "qkv"),
        *(f"a.qkv.bias:{p}" for p in "qkv"),
        "a.qkv.lora_a.weight",
        "qkv",
        "b.weight",
    ]
    assert torch.equal(groups[1].of(w), w[2:4].reshape(-1))
    assert sum(g.numel for g in groups) == sum(p.numel() for p in parameters.values())


def test_every_eigenpair_kept_is_the_dense_fisher():
    model, data = net(), samples()
    prior = estimate(model, data, rank=100)
    fisher, places = dense_fisher(model, loss, data)
    for group in groups_of(dict(model.named_parameters())):
        start = places[group.parameter][0]
        block = fisher[start + group.start : start + group.stop, start + group.start : start + group.stop]
        p = prior.groups[group.name]
        torch.testing.assert_close(dense(prior, group.name), block, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(p.measure().double(), block.diagonal(), rtol=1e-5, atol=1e-6)
        assert p.trace == pytest.approx(block.trace().item(), rel=1e-5)
    assert len(prior.groups["unused"].eigenvalues) == 0
    assert prior.groups["unused"].trace == 0


@pytest.mark.parametrize("rank", [0, 1, 3])
def test_leading_eigenpairs_trace_and_scale(rank):
    model, data = net(), samples()
    prior = estimate(model, data, rank)
    fisher, places = dense_fisher(model, loss, data)
    tops = []
    for name, p in prior.groups.items():
        start = places[p.group.parameter][0]
        block = fisher[start + p.group.start : start + p.group.stop, start + p.group.start : start + p.group.stop]
        values = torch.linalg.eigvalsh(block).flip(0).clamp(min=0)
        tops.append(values[0].item())
        kept = len(p.eigenvalues)
        assert kept <= rank
        torch.testing.assert_close(p.eigenvalues, values[:kept], rtol=1e-5, atol=1e-8)
        torch.testing.assert_close(p.eigenvectors @ p.eigenvectors.T, torch.eye(kept), rtol=0, atol=1e-5)
        assert p.trace == pytest.approx(block.trace().item(), rel=1e-5), name
        assert p.residual == pytest.approx(values[kept:].sum().item(), abs=1e-5 * max(p.trace, 1e-9))
    assert prior.scale == pytest.approx(sum(tops) / len(tops), rel=1e-5)  # Whatever is kept.
    assert estimate(model, data, 5).scale == pytest.approx(sum(tops) / len(tops), rel=1e-5)


def test_scale_survives_truncation_and_carrying():
    prior = estimate(net(), samples(), 5)
    for other in (prior.truncated(0), prior.truncated(2), prior.carried({"x": "head.weight"})):
        assert other.scale == prior.scale


def test_truncation_shares_storage_and_refuses_more():
    prior = estimate(net(), samples(), 4)
    cut = prior.truncated(2)
    fresh = estimate(net(), samples(), 2)
    for name, p in cut.groups.items():
        assert p.eigenvectors.data_ptr() == prior.groups[name].eigenvectors.data_ptr()
        torch.testing.assert_close(p.eigenvalues, fresh.groups[name].eigenvalues)
        torch.testing.assert_close(dense(cut, name), dense(fresh, name))
        assert p.next_eigenvalue == pytest.approx(fresh.groups[name].next_eigenvalue)
    assert cut.rank == 2
    with pytest.raises(ValueError, match="rank is 5"):
        prior.truncated(5)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("rank", [0, 1, 2, 4])
def test_error_bound_holds(seed, rank):
    model, data = net(seed), samples(9, seed)
    prior = estimate(model, data, rank)
    fisher, places = dense_fisher(model, loss, data)
    blocks, approximation = torch.zeros_like(fisher), torch.zeros_like(fisher)
    for name, p in prior.groups.items():
        start = places[p.group.parameter][0]
        at = slice(start + p.group.start, start + p.group.stop)
        blocks[at, at], approximation[at, at] = fisher[at, at], dense(prior, name)
    bound, tolerance = prior.error_bound(), 1e-5 * fisher.norm().item()
    assert torch.linalg.matrix_norm(blocks - approximation, 2) <= bound.spectral + tolerance
    assert torch.linalg.matrix_norm(fisher - approximation, 2) <= torch.linalg.matrix_norm(fisher - blocks, 2) + bound.spectral + tolerance
    assert (blocks - approximation).norm() <= bound.frobenius + tolerance
    assert bound.frobenius <= math.sqrt(sum(p.residual**2 for p in prior.groups.values())) + tolerance
    # A bound is worth something only if it is not far off: the spectral one is attained.
    assert torch.linalg.matrix_norm(blocks - approximation, 2) >= bound.spectral - tolerance


@settings(deadline=None, max_examples=20)
@given(st.permutations(range(10)), st.lists(st.integers(1, 9), max_size=3, unique=True))
def test_order_and_unequal_parts_do_not_matter(order, cuts):
    model, data = net(), samples(10)
    whole = estimate(model, data, 10)
    edges = [0, *sorted(cuts), 10]
    parts = [estimate(model, [data[i] for i in order[a:b]], 10) for a, b in itertools.pairwise(edges)]
    merged = merge_priors(parts, rank=3)
    assert merged.samples == 10
    assert merged.scale == pytest.approx(whole.scale, rel=1e-5)
    for name, p in merged.groups.items():
        reference = whole.truncated(3).groups[name]
        torch.testing.assert_close(p.eigenvalues, reference.eigenvalues, rtol=1e-5, atol=1e-8)
        torch.testing.assert_close(dense(merged, name), dense(whole.truncated(3), name), rtol=1e-4, atol=1e-4 * max(reference.trace, 1e-9))
        assert p.trace == pytest.approx(reference.trace, rel=1e-6)


def test_merging_truncated_parts_keeps_trace_and_a_valid_bound():
    model, data = net(), samples(12)
    parts = [estimate(model, data[:5], 2), estimate(model, data[5:], 2)]
    merged, whole = merge_priors(parts), estimate(model, data, 12)
    for name, p in merged.groups.items():
        assert p.trace == pytest.approx(whole.groups[name].trace, rel=1e-6)
        difference = torch.linalg.matrix_norm(dense(whole, name) - dense(merged, name), 2).item()
        assert difference <= p.next_eigenvalue + 1e-5 * p.trace


@pytest.mark.parametrize("rank", [0, 2, 100])
def test_the_exact_diagonal_and_what_the_eigenpairs_leave_of_it(rank):
    model, data = net(), samples()
    prior = estimate(model, data, rank, diagonal=True)
    fisher, places = dense_fisher(model, loss, data)
    for name, p in prior.groups.items():
        start = places[p.group.parameter][0]
        at = slice(start + p.group.start, start + p.group.stop)
        exact = fisher[at, at].diagonal()
        atol = 1e-6 * max(p.trace, 1e-9)
        assert (p.diagonal.dtype, p.diagonal.shape) == (torch.float32, (p.group.numel,))
        torch.testing.assert_close(p.diagonal.double(), exact, rtol=1e-5, atol=atol)
        assert p.measure() is p.diagonal
        kept = dense(prior, name).diagonal()
        torch.testing.assert_close(p.kept_measure().double(), kept, rtol=1e-5, atol=atol)
        left = p.residual_diagonal()
        assert (left >= 0).all()
        torch.testing.assert_close(left.double(), (exact - kept).clamp(min=0), rtol=1e-4, atol=10 * atol)
        # What both leave out of the trace is the same, however the diagonal came about.
        assert left.sum().item() == pytest.approx(p.residual, rel=1e-4, abs=1e-5 * max(p.trace, 1e-9))
    if rank == 100:
        assert all(p.residual_diagonal().sum() <= 1e-5 * p.trace for p in prior.groups.values())


def test_truncation_and_copies_share_the_diagonal():
    prior = estimate(net(), samples(), 3, diagonal=True)
    source = prior.groups["head.weight"]
    for p in (prior.truncated(1).groups["head.weight"], prior.carried({"a": "head.weight"}).groups["a"], source.to("cpu", torch.float32)):
        assert p.diagonal.data_ptr() == source.diagonal.data_ptr()
    assert prior.truncated(0).groups["head.weight"].residual_diagonal().equal(source.diagonal)
    with pytest.raises(ValueError, match=r"head\.weight: the prior holds no diagonal; estimate it with diagonal=True"):
        estimate(net(), samples(), 3).groups["head.weight"].residual_diagonal()


def test_diagonals_merge_by_the_samples_behind_them():
    model, data = net(), samples(12)
    parts = [estimate(model, data[a:b], 12, diagonal=True) for a, b in ((0, 2), (2, 12))]
    merged, whole = merge_priors(parts, rank=2), estimate(model, data, 2, diagonal=True)
    for name, p in merged.groups.items():
        torch.testing.assert_close(p.diagonal, whole.groups[name].diagonal)
        assert p.diagonal.sum().item() == pytest.approx(p.trace, rel=1e-5, abs=1e-9)
    with pytest.raises(ValueError, match="1 of 2 priors to merge have a diagonal"):
        merge_priors([parts[0], estimate(model, data[2:], 12)])


def test_merging_into_fewer_bits_says_what_that_costs():
    model, data = net(), samples(12)
    parts = [estimate(model, data[:5], 12), estimate(model, data[5:], 12)]
    p = merge_priors(parts, rank=2, dtype=torch.bfloat16).groups["head.weight"]
    assert p.eigenvectors.dtype == torch.bfloat16
    assert (p.vector_errors > 1e-4).all()


def test_merging_what_does_not_belong_together_is_refused():
    a, b = estimate(net(0), samples(), 2), estimate(net(1), samples(), 2)
    with pytest.raises(ValueError, match="base_hash"):
        merge_priors([a, b])
    with pytest.raises(ValueError, match="groups"):
        merge_priors([a, replace(a, groups={})])
    with pytest.raises(ValueError, match="at least one"):
        merge_priors([])


def test_estimation_leaves_no_trace_on_the_model():
    model = net().train()
    model.drop.eval()
    model.head.bias.requires_grad_(False)
    model.qkv.weight.grad = torch.full_like(model.qkv.weight, 7.0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = {name: m.training for name, m in model.named_modules()}
    state = torch.get_rng_state()
    prior = estimate(model, samples(), 2)
    assert torch.equal(torch.get_rng_state(), state)
    assert {name: m.training for name, m in model.named_modules()} == modes
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert {name for name, p in model.named_parameters() if p.grad is not None} == {"qkv.weight"}
    assert (model.qkv.weight.grad == 7).all()
    assert {name for name, p in model.named_parameters() if not p.requires_grad} == {"head.bias"}
    assert "head.bias" not in prior.groups


def test_modes_come_back_after_an_error():
    model = net().train()
    with pytest.raises(ValueError, match=r"loss of sample 1 is nan"):
        estimate_prior(model, lambda m, s: m(torch.ones(1, 3)).sum() * s, [1.0, float("nan")], rank=1, fisher_type="empirical")
    assert all(m.training for m in model.modules())


def test_random_labels_are_drawn_from_the_seed():
    def draw(model, x):
        prediction = model(x[0][None]).sum()
        return 0.5 * (prediction - (prediction + torch.randn(())).detach()) ** 2

    model = net()
    a, b, c = (estimate_prior(model, draw, samples(), rank=2, fisher_type="mc", seed=s) for s in (0, 0, 1))
    assert torch.equal(a.groups["head.weight"].eigenvalues, b.groups["head.weight"].eigenvalues)
    assert not torch.equal(a.groups["head.weight"].eigenvalues, c.groups["head.weight"].eigenvalues)
    assert a.fisher_type == "mc"


def test_bad_input_is_refused_by_name():
    model = net()
    with pytest.raises(ValueError, match="no samples"):
        estimate(model, [], 1)
    with pytest.raises(ValueError, match=r"group nowhere: is no parameter"):
        estimate(model, samples(), 1, groups=[Group("nowhere", 0, 1)])
    model.head.bias.requires_grad_(False)
    with pytest.raises(ValueError, match=r"group head\.bias: is frozen"):
        estimate(model, samples(), 1, groups=[Group("head.bias", 0, 1)])

    def endless_slope(m, x):
        return m.head.weight.sum().mul(0).abs().sqrt()

    with pytest.raises(ValueError, match=r"gradient of head\.weight at sample 0"):
        estimate_prior(model, endless_slope, samples(2), rank=1, fisher_type="empirical")


def test_gradients_of_one_sample_are_gone_when_the_next_are_asked_for():
    model = net().eval()
    listed = list(sample_gradients(model, loss, samples(3), trainable_groups(model, None)))
    assert [len(gradients) for gradients in listed] == [0, 0, 0]


def test_chosen_groups_only():
    prior = estimate(net(), samples(), 3, groups=[Group("qkv.weight", 6, 12, "k")])
    torch.testing.assert_close(dense(prior, "qkv.weight:k"), dense(estimate(net(), samples(), 3), "qkv.weight:k"))
    assert list(prior.groups) == ["qkv.weight:k"]
