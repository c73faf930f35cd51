import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from srft.config import ConfigError, DataConfig, SRFTConfig, TrainConfig
from srft.method.groups import groups_of
from srft.method.optimizer import SRFTAdamW
from srft.method.paradigms import (
    PARADIGMS,
    PUBLISHED_RATES,
    PUBLISHED_RATES_FE108,
    Rate,
    add_parts,
    matches,
    parameter_groups,
    select_trainable,
    what_trains,
)
from srft.method.prior import GroupPrior, PriorSensitivity
from srft.model.losses import tracking_loss
from srft.model.tracker import MultiModalTracker


def tiny() -> MultiModalTracker:
    torch.manual_seed(0)
    return MultiModalTracker.from_preset("tiny", 2)


def trained(network, paradigm, freeze_head):
    names = select_trainable(network, paradigm, freeze_head=freeze_head)
    assert names == [name for name, p in network.named_parameters() if p.requires_grad]
    return set(names)


@pytest.mark.parametrize("paradigm", ["full", "srft"])
def test_full_and_srft_train_the_backbone_and_the_head_unless_it_is_frozen(paradigm):
    network = tiny()
    everything = {name for name, _ in network.named_parameters()}
    head = {name for name in everything if name.startswith("box_head.")}
    positions = {"backbone.pos_embed_z", "backbone.pos_embed_x"}
    assert trained(network, paradigm, True) == everything - head - positions
    assert trained(network, paradigm, False) == everything - positions


def test_head_trains_the_head_whatever_was_selected_before():
    network = tiny()
    select_trainable(network, "full", freeze_head=True)
    for freeze_head in (True, False):
        assert trained(network, "head", freeze_head) == {n for n, _ in network.named_parameters() if n.startswith("box_head.")}


@pytest.mark.parametrize("paradigm", [*PARADIGMS, "srft", "srft-aux", "srft-prompt"])
def test_settings_ask_for_a_single_stream_only_where_it_can_train(paradigm):
    network, refused = MultiModalTracker.from_preset("tiny", 1), set()
    try:
        add_parts(network, paradigm)
        select_trainable(network, paradigm, freeze_head=True)
    except ValueError:
        refused.add("network")
    try:
        TrainConfig(paradigm=paradigm, data=DataConfig(modality="rgb"))
    except ConfigError:
        refused.add("settings")
    assert refused == ({"network", "settings"} if paradigm.endswith(("aux", "prompt")) else set())


def test_frozen_parameters_get_no_gradient():
    network = tiny().eval()
    boxes = torch.tensor([[0.4, 0.5, 0.2, 0.3]])
    for paradigm in ("srft", "head"):
        names = set(select_trainable(network, paradigm, freeze_head=True))
        network.zero_grad()
        tracking_loss(network(torch.randn(1, 6, 64, 64), torch.randn(1, 6, 128, 128)), boxes)["loss"].backward()
        assert {name for name, p in network.named_parameters() if p.grad is not None} == names


def flat_prior(groups):
    """One eigenpair per group: the direction in which all elements grow alike."""
    one = torch.ones(1, dtype=torch.float64)
    pairs = {
        g.name: GroupPrior(group=g, eigenvalues=one, eigenvectors=torch.full((1, g.numel), g.numel**-0.5), trace=2.0, next_eigenvalue=0.5)
        for g in groups
    }
    return PriorSensitivity(groups=pairs, rank=1, samples=2, fisher_type="empirical", base_hash="0", data="", scale=1.0)


def prepared(paradigm, streams=2):
    network = MultiModalTracker.from_preset("tiny", streams)
    add_parts(network, paradigm, seed=3)
    return network


@pytest.mark.parametrize("freeze_head", [True, False])
@pytest.mark.parametrize(
    ("paradigm", "chosen"),
    [
        ("bias", lambda name: name.endswith(".bias")),
        ("lora", lambda name: name.endswith((".lora_A", ".lora_B"))),
        ("adapter", lambda name: ".adapter." in name),
        ("prompt", lambda name: ".prompt." in name or name.startswith("backbone.patch_embed_aux.")),
    ],
)
def test_few_parameters_train_and_the_head_only_if_it_is_free(paradigm, chosen, freeze_head):
    network = prepared(paradigm)
    names = {name for name, _ in network.named_parameters()}
    expected = {n for n in names if (not freeze_head if n.startswith("box_head.") else chosen(n))}
    assert trained(network, paradigm, freeze_head) == expected
    sizes = {name: p.numel() for name, p in network.named_parameters()}
    backbone = [n for n in names if n.startswith("backbone.")]
    assert 0 < sum(sizes[n] for n in expected if n in backbone) < 0.2 * sum(sizes[n] for n in backbone)


def test_all_but_the_rgb_stream():
    network = prepared("aux")
    rgb = {name for name, _ in network.named_parameters() if "_rgb" in name}
    assert trained(network, "aux", False) == trained(network, "full", False) - rgb
    assert rgb & trained(network, "full", True)


@pytest.mark.parametrize("paradigm", ["full", "srft", "head", "bias", "lora", "adapter"])
def test_one_stream_has_every_paradigm_that_needs_no_second(paradigm):
    assert trained(prepared(paradigm, streams=1), paradigm, True)


def test_missing_parts_and_unknown_paradigms_are_errors():
    assert what_trains("srft") == ("full", True)
    assert what_trains("srft-lora") == ("lora", True)
    assert what_trains("lora") == ("lora", False)
    for unknown in ("srft-srft", "srft-", "", "Full"):
        with pytest.raises(ValueError, match="with srft- in front"):
            what_trains(unknown)
    for paradigm in ("lora", "adapter", "prompt"):
        with pytest.raises(ValueError, match="add_parts"):
            select_trainable(tiny(), paradigm, freeze_head=True)
    with pytest.raises(ValueError, match="expected one of full, aux"):
        select_trainable(tiny(), "ful", freeze_head=True)
    with pytest.raises(ValueError, match="expected one of full, aux"):
        add_parts(tiny(), "ful")


@pytest.mark.parametrize("regularized", [False, True])
@pytest.mark.parametrize("choice", PARADIGMS)
def test_frozen_parameters_stay_bitwise_and_the_others_move(choice, regularized):
    paradigm = f"srft-{choice}" if regularized else choice
    network = tiny()
    new = add_parts(network, paradigm, seed=3)
    names = set(select_trainable(network, paradigm, freeze_head=True))
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    settings, prior = None, None
    if regularized:
        settings = SRFTConfig(rank=1, damping_strength=0.5, prior_strength=1.0)
        originals = groups_of({n: before[n] for n in sorted(names - new)})
        assert (not originals) == (choice in ("lora", "adapter"))
        prior = flat_prior(originals) if originals else None
    pairs = [(n, p) for n, p in network.named_parameters() if n in names]
    optimizer = SRFTAdamW(pairs, total_steps=3, lr=1e-2, srft=settings, prior=prior)
    network.train()
    network.box_head.eval()
    for _ in range(2):  # after the first, what stands in front of a zero matrix gets a gradient too
        network.zero_grad()
        output = network(torch.randn(2, 6, 64, 64), torch.randn(2, 6, 128, 128))
        tracking_loss(output, torch.tensor([[0.4, 0.5, 0.2, 0.3], [0.6, 0.5, 0.3, 0.2]]))["loss"].backward()
        optimizer.step()
    moved = {name for name, p in network.named_parameters() if not torch.equal(p, before[name])}
    assert moved <= names
    # A bias of k shifts all scores of a query alike; of one whose gradient is rounding alone nothing is expected.
    assert len(moved) > 0.9 * len(names)


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [
        ("blocks.1.**", "blocks.1.attn.weight", True),
        ("blocks.1.**", "blocks.10.attn.weight", False),
        ("blocks.1", "blocks.1.attn.weight", False),
        ("blocks.1*.**", "blocks.10.attn.weight", True),
        ("blocks.*.weight", "blocks.1.attn.weight", False),
        ("blocks.*.*.weight", "blocks.1.attn.weight", True),
        ("**.weight", "weight", True),
        ("**.weight", "a.b.weight", True),
        ("**.weight", "a.b.weights", False),
        ("blocks", "a.blocks", False),
        ("a.**.c", "a.c", True),
        ("a.**.c", "a.b.b.c", True),
        ("a.[12].c", "a.2.c", True),
        ("a.[12].c", "a.3.c", False),
        ("A.b", "a.b", False),
        ("**", "a.b", True),
    ],
)
def test_patterns(pattern, name, expected):
    assert matches(pattern, name) is expected


names_of_parts = st.lists(st.sampled_from(["a", "b", "1", "10"]), min_size=1, max_size=4).map(".".join)


@given(
    names=st.sets(names_of_parts, min_size=1, max_size=6), patterns=st.lists(st.sampled_from(["a.**", "*.1.**", "b", "**.1", "**.10.*"]))
)
def test_every_trainable_parameter_is_in_one_group_and_the_first_match_decides(names, patterns):
    network = MappingOf(names)
    patterns = [p for p in dict.fromkeys(patterns) if any(matches(p, n) for n in names)] + ["**"]
    groups = parameter_groups(network, [Rate(pattern=p, multiplier=i + 1.0) for i, p in enumerate(patterns)], lr=2.0)
    placed = [(name, group["lr"]) for group in groups for name, _ in group["params"]]
    assert sorted(name for name, _ in placed) == sorted(names)
    for name, lr in placed:
        assert lr == 2.0 * (1 + next(i for i, p in enumerate(patterns) if matches(p, name)))


class MappingOf(torch.nn.Module):
    """Named parameters without modules, so that any names are possible."""

    def __init__(self, names):
        super().__init__()
        self.stored = {name: torch.nn.Parameter(torch.zeros(1)) for name in sorted(names)}

    def named_parameters(self, *args, **kwargs):
        return iter(self.stored.items())


@pytest.mark.parametrize("rates", [PUBLISHED_RATES, PUBLISHED_RATES_FE108])
def test_published_rates_cover_what_trains_and_work_in_an_optimizer(rates):
    network = tiny()
    names = select_trainable(network, "full", freeze_head=True)
    groups = parameter_groups(network, rates, lr=1e-4)
    assert sorted(name for group in groups for name, _ in group["params"]) == sorted(names)
    of = {name: group["lr"] for group in groups for name, _ in group["params"]}
    assert of["backbone.norm_rgb.weight"] == pytest.approx(1e-6)
    assert of["backbone.blocks_aux.3.mlp.fc1.weight"] == pytest.approx(1e-4)
    assert of["backbone.fusion.1.mlp.fc1.weight"] == pytest.approx(5e-5)
    assert all(group["lr"] == pytest.approx(1e-4 * group["lr_multiplier"]) for group in groups)
    optimizer = SRFTAdamW(groups, total_steps=2, lr=1e-4)
    assert [group["lr_multiplier"] for group in optimizer.param_groups] == [group["lr_multiplier"] for group in groups]


def test_a_group_that_nothing_trains_in_is_left_out():
    network = prepared("lora")
    select_trainable(network, "lora", freeze_head=True)
    groups = parameter_groups(network, [Rate(pattern="backbone.norm_*.**", multiplier=1), Rate(pattern="**", multiplier=3)], lr=1.0)
    assert [group["lr"] for group in groups] == [3.0]


def test_rates_that_do_not_fit():
    network = tiny()
    with pytest.raises(ValueError, match=r"backbone.pos_embed_z trains but matches none"):
        parameter_groups(network, PUBLISHED_RATES, lr=1.0)
    everything = Rate(pattern="**", multiplier=1.0)
    with pytest.raises(ValueError, match=r"no parameter matches backbone\.blocks\.1"):
        parameter_groups(network, [Rate(pattern="backbone.blocks.1", multiplier=1.0), everything], lr=1.0)
    with pytest.raises(ValueError, match="multiplier of"):
        parameter_groups(network, [Rate(pattern="box_head.**", multiplier=-1.0), everything], lr=1.0)
