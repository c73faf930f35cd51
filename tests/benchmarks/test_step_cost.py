"""What a regularized step costs, in time and in memory, beside a training step with AdamW."""

from __future__ import annotations

import dataclasses
import statistics
import time
from dataclasses import dataclass

import pytest
import torch

from srft.config import SRFTConfig
from srft.method.groups import groups_of
from srft.method.kronecker import estimate_prior_kronecker
from srft.method.optimizer import SRFTAdamW
from srft.method.paradigms import select_trainable
from srft.method.prior import GroupPrior, PriorSensitivity
from srft.method.sparsity import MergedStatistics
from srft.model.losses import tracking_loss
from srft.model.pretrained import two_stream_sources
from srft.model.tracker import MultiModalTracker
from tests.reference import released_rule

REFRESH = 10


@dataclass
class Setting:
    """A two-stream network with gradients, and a prior of the size asked for (random, which costs the same)."""

    network: MultiModalTracker
    named: list
    prior: PriorSensitivity
    single: int
    """Parameters of the single-stream network."""
    training: float
    """Seconds of a forward and backward pass."""
    adamw: float
    """Seconds of torch's step, its fastest kernel."""


def seconds(function, rounds):
    taken = []
    for _ in range(rounds):
        start = time.perf_counter()
        function()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def random_prior(single, rank):
    parameters = dict(single.named_parameters())
    groups = {}
    for group in groups_of({name: parameters[name] for name in select_trainable(single, "full", freeze_head=True)}):
        vectors = torch.randn(rank, group.numel).div_(group.numel**0.5).bfloat16()
        values = torch.linspace(1, 0.1, rank, dtype=torch.float64)
        groups[group.name] = GroupPrior(group=group, eigenvalues=values, eigenvectors=vectors, trace=2 * rank, next_eigenvalue=0.1)
    return PriorSensitivity(groups=groups, rank=rank, samples=1, fisher_type="empirical", base_hash="", data="random", scale=1.0)


@pytest.fixture(scope="module")
def setting(sizes):
    torch.manual_seed(0)
    single = MultiModalTracker.from_preset(sizes["preset"], 1)
    prior, count = random_prior(single, sizes["rank"]), sum(p.numel() for p in single.parameters())
    del single
    network = MultiModalTracker.from_preset(sizes["preset"], 2)
    select_trainable(network, "full", freeze_head=True)
    named = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
    prior = prior.carried(two_stream_sources(network.arch.fusion_after, [name for name, _ in named]))
    arch, batch = network.arch, sizes["batch"]
    template, search = (torch.randn(batch, 6, side, side) for side in (arch.template_px, arch.search_px))
    boxes = torch.rand(batch, 4) * 0.2 + 0.4

    def train():
        for _, p in named:
            p.grad = None
        tracking_loss(network(template, search), boxes)["loss"].backward()

    train()
    training = seconds(train, 3)
    adamw = torch.optim.AdamW([p for _, p in named], lr=1e-5, fused=True)
    adamw.step()
    return Setting(network, named, prior, count, training, seconds(adamw.step, 7))


def regularized(setting, **settings):
    """An optimizer in the middle of a run: moments and ranks are there."""
    rank = setting.prior.rank if settings.pop("prior", True) else 0
    config = SRFTConfig(rank=rank, refresh=REFRESH, **{"prior_strength": 1.0, "damping_strength": 0.5, **settings})
    prior = setting.prior if rank else None
    optimizer = SRFTAdamW(setting.named, total_steps=10**6, lr=1e-5, srft=config, prior=prior, fused=True)
    optimizer.step()
    optimizer.set_statistics(MergedStatistics.of(1, optimizer.sketches()))
    return optimizer


def reachable(*roots):
    """Bytes of all tensors that objects hold, each storage once."""
    sizes, seen, queue = {}, set(), list(roots)
    while queue:
        item = queue.pop()
        if id(item) in seen or isinstance(item, str | bytes | int | float):
            continue
        seen.add(id(item))
        if isinstance(item, torch.Tensor):
            storage = item.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
        elif isinstance(item, dict):
            queue += [*item, *item.values()]
        elif isinstance(item, list | tuple | set):
            queue += item
        elif type(item).__module__.startswith("srft") or isinstance(item, torch.optim.Optimizer):
            queue += list(vars(item).values())
    return sum(sizes.values())


VARIANTS = {
    "damping and penalty": {},
    "damping": {"prior": False},
    "penalty": {"damping_strength": 0.0},
    "damping and proximal": {"mode": "proximal"},
    "damping and projection": {"mode": "projection"},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_time_of_a_step(benchmark, setting, variant):
    """At most 5 % more than forward, backward and AdamW, statistics every ten steps included (`base`, batch 8)."""
    optimizer = regularized(setting, **VARIANTS[variant])
    statistics_cost = seconds(lambda: optimizer.set_statistics(MergedStatistics.of(1, optimizer.sketches())), 3) / REFRESH
    benchmark.pedantic(optimizer.step, rounds=7, iterations=1)
    if benchmark.enabled:
        step = benchmark.stats.stats.median
        more = (step + statistics_cost - setting.adamw) / (setting.training + setting.adamw)
        benchmark.extra_info.update(
            {"training_s": setting.training, "adamw_s": setting.adamw, "statistics_s": statistics_cost, "more_percent": 100 * more}
        )
        assert more < 0.25, f"{100 * more:.1f} % more than training with AdamW"


def test_time_against_the_released_rule(benchmark, setting):
    """At least 20 times less than sorting, ramp and copy of every tensor at every step, which is damping alone: it has no prior."""
    ours = {name: seconds(regularized(setting, **VARIANTS[name]).step, 5) - setting.adamw for name in ("damping", "damping and penalty")}
    last = {p: torch.zeros_like(p) for _, p in setting.named}

    def released():
        old = {p: p.detach().clone() for p in last}
        with torch.no_grad():
            for p in last:
                sensitivity = released_rule.two_step_sensitivity(last[p], p.grad)
                p.copy_(released_rule.apply(old[p], p, released_rule.released_momentum(sensitivity)))

    benchmark.pedantic(released, rounds=2, iterations=1)
    if benchmark.enabled:
        theirs = benchmark.stats.stats.min
        benchmark.extra_info.update({f"ratio to {name}": theirs / taken for name, taken in ours.items()})
        assert theirs > 5 * ours["damping"]


@pytest.mark.parametrize("kept", ["nothing", "eigenvectors", "products"])
def test_memory_beyond_adamws(benchmark, setting, sizes, kept):
    """At most 5 % of the weights without a prior, 16 bytes per parameter of the single stream with eight eigenvectors in bfloat16, and
    the weights of the single stream with any number of Kronecker products."""
    if kept == "products":
        setting = dataclasses.replace(setting, prior=kronecker_prior(setting.network, sizes["preset"], sizes["pairs"]))
    optimizer = regularized(setting, prior=kept != "nothing")
    benchmark.pedantic(optimizer.step, rounds=1, iterations=1)
    moments = sum(optimizer.state[p][k].nbytes for _, p in setting.named for k in ("exp_avg", "exp_avg_sq"))
    extra = reachable(optimizer) - moments - sum(p.nbytes for _, p in setting.named)
    weights = sum(p.nbytes for _, p in setting.named)
    benchmark.extra_info.update(
        {"extra_bytes": extra, "of_weights": extra / weights, "per_single_stream_parameter": extra / setting.single}
    )
    fixed = 40e6  # Scratch and tables, whatever the network's size.
    limits = {"nothing": 0.05 * weights, "eigenvectors": 17.5 * setting.single * setting.prior.rank / 8, "products": 4 * setting.single}
    assert 0 < extra < fixed + limits[kept]


def kronecker_prior(network, preset, pairs):
    """256 products per matrix, estimated on random images."""
    single = MultiModalTracker.from_preset(preset, 1)
    z, x, parameters = single.arch.template_px, single.arch.search_px, dict(single.named_parameters())
    items = [(torch.randn(1, 3, z, z), torch.randn(1, 3, x, x), torch.rand(1, 4) * 0.2 + 0.4) for _ in range(pairs)]
    prior = estimate_prior_kronecker(
        single,
        lambda model, item: tracking_loss(model(*item[:2]), item[2])["loss"],
        items,
        rank=256,
        fisher_type="empirical",
        groups=groups_of({name: parameters[name] for name in select_trainable(single, "full", freeze_head=True)}),
        dtype=torch.bfloat16,
    )
    trainable = [name for name, p in network.named_parameters() if p.requires_grad]
    return prior.carried(two_stream_sources(network.arch.fusion_after, trainable))
