import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from srft.method import sketch
from srft.method.histogram import BINS, Histogram, bin_values, rank_table
from srft.method.sketch import histogram_of, histograms_of, rank_tables, tensor_ranks
from srft.method.sparsity import (
    Energies,
    LocalExchange,
    MergedStatistics,
    Sketch,
    merge,
    noise_scale,
    sparsity_figures,
    worker_overlap,
)
from tests.reference import sparsity as reference
from tests.reference.released_rule import released_momentum, repaired_momentum

magnitudes = st.lists(
    st.one_of(st.just(0.0), st.floats(0, 2.0**100, width=32), st.sampled_from([1e-45, 1e-40, 1.0, 1.5, 3e38])), max_size=40
)


def ranks(x):
    return tensor_ranks(rank_table(histogram_of(x))).lookup(x)


def lognormal(n, seed=0, sigma=1.5):
    return torch.exp(sigma * torch.randn(n, generator=torch.Generator().manual_seed(seed)))


def test_numpy_side_imports_no_torch():
    code = "import sys, srft.method.sparsity; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": "platform"}, check=False).returncode == 0


@given(magnitudes)
def test_every_element_is_in_the_bin_of_its_value(values):
    histogram = histogram_of(torch.tensor(values, dtype=torch.float32))
    assert histogram.total == len(values)
    counts = np.zeros(BINS, int)
    for v in values:
        mantissa, exponent = np.frexp(np.float32(v))
        # Normal floats: 16 bins per octave from 2^-126 on; below, 16 bins of equal width.
        counts[int(v * 2.0**130) if v < 2.0**-126 else (int(exponent) + 126) * 16 + int((mantissa * 2 - 1) * 16)] += 1
    whole = np.zeros(BINS, int)
    whole[histogram.first : histogram.first + len(histogram.counts)] = histogram.counts
    assert (whole == counts).all()


def test_bin_values_are_within_the_stated_error():
    x = lognormal(5000, sigma=10)
    number = (x.numpy().view(np.uint32) >> 19).astype(int)
    error = np.abs(bin_values(0, BINS)[number] - x.numpy()) / x.numpy()
    assert error.max() <= 1 / 32
    assert np.isfinite(bin_values(0, BINS)).all()


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize(
    ("bad", "found"),
    [
        (float("nan"), "1 of 2 values are NaN or infinite and 0 negative"),
        (-float("nan"), "1 of 2 values are NaN or infinite and 0 negative"),
        (float("inf"), "1 of 2 values are NaN or infinite and 0 negative"),
        (-float("inf"), "1 of 2 values are NaN or infinite and 0 negative"),
        (-1.0, "0 of 2 values are NaN or infinite and 1 negative"),
    ],
)
def test_what_is_no_magnitude_is_refused_by_name(bad, found, together):
    """A NaN's sign says nothing: processors make negative ones of inf - inf."""
    values = torch.tensor([1.0, bad])
    assert torch.signbit(values[1]) == np.signbit(bad)
    count = (lambda: histograms_of([("block.weight", values)], "size")) if together else lambda: histogram_of(values, "block.weight")
    with pytest.raises(ValueError, match=rf"block\.weight: {found}"):
        count()


@pytest.mark.parametrize("most", [1 << 17, 64, 0])
def test_tensors_counted_together_are_counted_as_alone(most, monkeypatch):
    monkeypatch.setattr(sketch, "CHUNK", most)
    generator = torch.Generator().manual_seed(0)
    tensors = {f"t{n}": torch.rand(n, generator=generator, dtype=torch.float64 if n % 2 else None) ** 9 for n in (0, 1, 7, 40, 300)}
    tensors["zeros"], tensors["largest"] = torch.zeros(3), torch.tensor([torch.finfo(torch.float32).max, 1e-45])
    found = histograms_of(tensors.items(), "size")
    assert set(found) == set(tensors)
    for name, values in tensors.items():
        alone = histogram_of(values)
        assert (found[name].first, found[name].counts.tolist()) == (alone.first, alone.counts.tolist()), name
    for bad in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"size of bad: 1 of 2 values are|size of bad: 0 of 2 values are .* and 1 negative"):
            histograms_of([*tensors.items(), ("bad", torch.tensor([1.0, bad]))], "size")
    tables = {name: rank_table(histogram) for name, histogram in found.items()}
    for name, ranks in rank_tables(tables, torch.device("cpu")).items():
        assert torch.equal(ranks.lookup(tensors[name]), tensor_ranks(tables[name]).lookup(tensors[name]))


@given(magnitudes, magnitudes, magnitudes)
def test_merge_is_associative_commutative_and_the_whole(a, b, c):
    def sketch(values):
        return Sketch({"x": histogram_of(torch.tensor(values, dtype=torch.float32))})

    x, y, z = sketch(a), sketch(b), sketch(c)
    whole = sketch(a + b + c).to_bytes()
    assert ((x + y) + z).to_bytes() == whole
    assert (x + (y + z)).to_bytes() == whole
    assert merge([z, x, y]).to_bytes() == whole


def test_merge_keeps_groups_that_one_worker_lacks():
    merged = Sketch({"a": histogram_of(torch.ones(3))}) + Sketch({"b": histogram_of(torch.ones(2))})
    assert {name: h.total for name, h in merged.groups.items()} == {"a": 3, "b": 2}


@given(st.dictionaries(st.text(max_size=8), magnitudes, max_size=4), st.integers(0, 2**40))
def test_bytes_round_trip(groups, step):
    sketch = Sketch({name: histogram_of(torch.tensor(values, dtype=torch.float32)) for name, values in groups.items()})
    data = MergedStatistics.of(step, sketch).to_bytes()
    back = MergedStatistics.from_bytes(data)
    assert back.step == step
    assert back.to_bytes() == data
    for name, table in back.tables.items():
        np.testing.assert_array_equal(table.ranks, rank_table(sketch.groups[name]).ranks)


def test_a_sketch_is_a_few_hundred_bytes_a_group():
    sketch = Sketch({f"blocks.{i}.attn.qkv.weight:q": histogram_of(lognormal(10_000, i)) for i in range(10)})
    assert len(sketch.to_bytes()) < 10 * 600


@given(st.integers(0, 400))
def test_cut_bytes_are_refused(cut):
    data = MergedStatistics.of(3, Sketch({"a": histogram_of(lognormal(300)), "b": histogram_of(lognormal(100))})).to_bytes()
    with pytest.raises(ValueError, match="statistics"):
        MergedStatistics.from_bytes(data[: min(cut, len(data) - 1)])
    with pytest.raises(ValueError, match="statistics"):
        MergedStatistics.from_bytes(data + b"x")


def test_counts_out_of_range_are_refused():
    with pytest.raises(ValueError, match="expected bins"):
        Histogram.of_counts(np.array([1, 1]), BINS - 1)
    with pytest.raises(ValueError, match="negative"):
        Histogram.of_counts(np.array([-1, 1]))


@settings(deadline=None)
@given(magnitudes)
def test_rank_errs_by_less_than_the_mass_of_its_bin(values):
    x = torch.tensor(values, dtype=torch.float32)
    r = ranks(x).numpy()
    assert r.shape == x.shape
    bins = (x.numpy().view(np.uint32) >> 19).astype(int)
    mass = np.array([(bins == b).mean() for b in bins])
    assert (np.abs(r - reference.true_rank(values)) <= mass + 1e-6).all()
    order = np.argsort(x.numpy(), kind="stable")
    assert (np.diff(r[order]) >= 0).all()


def test_rank_is_a_rank():
    x = lognormal(2000)
    r = ranks(x)
    assert reference.spearman(x.numpy(), r.numpy()) > 0.9999
    assert np.abs(r.numpy() - reference.true_rank(x.numpy())).max() < 0.01
    permutation = torch.randperm(2000, generator=torch.Generator().manual_seed(1))
    assert torch.equal(ranks(x[permutation]), r[permutation])
    assert torch.equal(ranks(x.view(40, 50)), r.view(40, 50))


def test_released_rule_is_no_rank():
    x = lognormal(2000)
    assert abs(reference.spearman(x.numpy(), released_momentum(x).numpy())) < 0.1
    permutation = torch.randperm(2000, generator=torch.Generator().manual_seed(1))
    assert not torch.equal(released_momentum(x[permutation]), released_momentum(x)[permutation])
    assert reference.spearman(x.numpy(), repaired_momentum(x).numpy()) > 0.9999
    assert torch.equal(repaired_momentum(x[permutation]), repaired_momentum(x)[permutation])


def test_ranks_where_there_is_little_order():
    assert ranks(torch.zeros(5)).tolist() == [0.5] * 5
    assert ranks(torch.full((4,), 3.3)).tolist() == [0.5] * 4
    assert ranks(torch.zeros(0)).tolist() == []
    half = ranks(torch.tensor([0.0, 0.0, 1.0, 4.0]))
    assert half[0] == half[1] == 0.25
    assert half[1] < half[2] < half[3]
    outside = tensor_ranks(rank_table(histogram_of(torch.tensor([1.0, 2.0, 4.0])))).lookup(torch.tensor([0.0, 0.5, 1e30]))
    assert outside.tolist() == [0, 0, 1]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_float_types(dtype):
    x = lognormal(500).to(dtype)
    torch.testing.assert_close(ranks(x), ranks(x.float()), rtol=0, atol=0)


@pytest.mark.parametrize("sigma", [0.1, 1.0, 2.0])
def test_figures_against_their_definitions(sigma):
    x = lognormal(2000, sigma=sigma)
    figures = sparsity_figures(histogram_of(x))
    x = x.double().numpy()
    assert figures.hoyer == pytest.approx(reference.hoyer(x), abs=0.005)
    assert figures.gini == pytest.approx(reference.gini(x), abs=0.005)
    assert figures.top_share == pytest.approx(reference.top_share(x), rel=0.05)
    assert figures.participation == pytest.approx(reference.participation(x), rel=0.08)


def test_figures_at_their_limits():
    one = torch.zeros(1000)
    one[7] = 0.3
    figures = sparsity_figures(histogram_of(one))
    assert (figures.hoyer, figures.gini) == (pytest.approx(1), pytest.approx(0.999))
    assert (figures.top_share, figures.participation) == (pytest.approx(1), pytest.approx(0.001))
    equal = sparsity_figures(histogram_of(torch.full((1000,), 1e-20)))
    assert (equal.hoyer, equal.gini) == (pytest.approx(0, abs=1e-12), pytest.approx(0, abs=1e-12))
    assert (equal.top_share, equal.participation) == (pytest.approx(0.01), pytest.approx(1))
    for nothing in (torch.zeros(9), torch.zeros(0)):
        assert set(vars(sparsity_figures(histogram_of(nothing))).values()) == {0.0}
    single = sparsity_figures(histogram_of(torch.ones(1)))
    assert all(np.isfinite(v) for v in vars(single).values())


@given(st.floats(1e-6, 1e6))
def test_figures_of_a_scaled_gradient(factor):
    x = lognormal(500)
    a, b = sparsity_figures(histogram_of(x)), sparsity_figures(histogram_of(x * factor))
    assert a.hoyer == pytest.approx(b.hoyer, abs=0.02)
    assert a.gini == pytest.approx(b.gini, abs=0.02)


def test_local_exchange_delivers_once_after_refresh_steps():
    exchange = LocalExchange(refresh=10)
    sketch = Sketch({"a": histogram_of(torch.ones(3))})
    exchange.submit(10, sketch)
    assert [exchange.due(step) for step in range(11, 20)] == [None] * 9
    resumed = LocalExchange(refresh=10)
    resumed.load_state_dict(exchange.state_dict())
    for one in (exchange, resumed):
        due = one.due(20)
        assert due is not None
        assert due.step == 10
        assert due.sketch.to_bytes() == sketch.to_bytes()
        assert one.due(20) is None
    with pytest.raises(ValueError, match="refresh"):
        LocalExchange(refresh=0)


def test_worker_overlap_and_noise_scale():
    same, other = np.array([3.0, 4.0]), np.array([4.0, -3.0])

    def energies(gradients):
        return sum(float(g @ g) for g in gradients), float(np.mean(gradients, 0) @ np.mean(gradients, 0)), len(gradients)

    assert worker_overlap(*energies([same, same, same])) == pytest.approx(1)
    assert worker_overlap(*energies([same, other])) == pytest.approx(0)
    assert worker_overlap(*energies([same, -same])) == pytest.approx(-1)
    assert worker_overlap(0.0, 0.0, 2) == 0
    assert noise_scale(*energies([same, same]), batch=8) == pytest.approx(0)
    assert noise_scale(*energies([same, -same]), batch=8) == float("inf")
    for function in (worker_overlap, lambda local, mean, workers: noise_scale(local, mean, workers, 4)):
        with pytest.raises(ValueError, match="at least 2"):
            function(1.0, 1.0, 1)


def test_workers_energies_add_up_and_travel():
    gradients = {"a": np.array([[3.0, 4.0], [0.0, 1.0], [-1.0, 2.0]]), "b": np.array([[1.0], [1.0], [4.0]])}

    def sketch(rank):
        share = {name: Energies(float(g[rank] @ g[rank]), float((g.mean(0)[rank::3] ** 2).sum())) for name, g in gradients.items()}
        return Sketch({}, share, 1)

    merged = MergedStatistics.from_bytes(MergedStatistics.of(5, merge([sketch(rank) for rank in range(3)])).to_bytes())
    whole = np.concatenate(list(gradients.values()), 1)
    expected = float((whole**2).sum()), float((whole.mean(0) ** 2).sum()), 3
    assert merged.overlap == pytest.approx(worker_overlap(*expected))
    assert merged.noise(8) == pytest.approx(noise_scale(*expected, 8))
    alone = MergedStatistics.of(5, sketch(0))
    assert np.isnan(alone.overlap)
    assert np.isnan(alone.noise(8))


def test_noise_scale_is_unbiased():
    rng = np.random.default_rng(0)
    n, batch, workers, mean = 400, 4, 4, 0.1
    signal, noise = n * mean**2, n * 1.0
    locals_, means = [], []
    for _ in range(200):
        g = mean + rng.normal(size=(workers, batch, n)).mean(1)
        locals_.append((g**2).sum(1))
        means.append((g.mean(0) ** 2).sum())
    # Energies averaged over steps first: the ratio of two unbiased estimates.
    assert noise_scale(float(np.mean(locals_, 0).sum()), float(np.mean(means)), workers, batch) == pytest.approx(noise / signal, rel=0.1)
