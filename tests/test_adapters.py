import copy
import io

import pytest
import torch
from torch import nn

from srft.method.adapters import (
    AdaptedLinear,
    LoRALinear,
    PromptBlock,
    add_adapters,
    add_lora,
    add_prompts,
    fold_lora,
    merge_lora,
    unmerge_lora,
)
from srft.model.tracker import MultiModalTracker
from tests.reference import adapters as reference

ADD = {"lora": add_lora, "adapter": add_adapters, "prompt": add_prompts}


def tiny(streams=2):
    torch.manual_seed(0)
    return MultiModalTracker.from_preset("tiny", streams).eval()


def pair(channels=6, n=2):
    g = torch.Generator().manual_seed(3)
    return torch.randn(n, channels, 64, 64, generator=g), torch.randn(n, channels, 128, 128, generator=g)


def shaken(network, scale=0.1):
    """Every new parameter moved off its start."""
    g = torch.Generator().manual_seed(4)
    old = {name for name, _ in tiny(network.streams).named_parameters()}
    with torch.no_grad():
        for name, p in network.named_parameters():
            if name not in old:
                p += scale * torch.randn(p.shape, generator=g)
    return network


def out(network, channels=6):
    with torch.no_grad():
        return network(*pair(channels))


def difference(a, b):
    return max(float((x - y).abs().max()) for x, y in zip(a, b, strict=True))


def gen():
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("part", ADD)
def test_the_start_is_the_pretrained_function_and_names_and_random_state_stay(part):
    network = tiny()
    before, names = out(network), dict(network.named_parameters())
    state = torch.get_rng_state()
    ADD[part](network)
    assert torch.equal(torch.get_rng_state(), state)
    assert difference(out(network), before) == 0
    now = dict(network.named_parameters())
    assert all(now[name] is p for name, p in names.items())
    new = {name for name in now if name not in names}
    assert new
    assert all({"lora": ".lora_", "adapter": ".adapter.", "prompt": ".prompt."}[part] in name for name in new)
    assert not any(module.training for module in network.modules())


@pytest.mark.parametrize("part", ADD)
def test_parts_change_the_function_and_come_back_from_a_state_dict(part):
    network = tiny()
    before = out(network)
    ADD[part](network)
    shaken(network)
    after = out(network)
    assert difference(after, before) > 1e-4
    file = io.BytesIO()
    torch.save(network.state_dict(), file)
    again = MultiModalTracker.from_preset("tiny", 2).eval()
    ADD[part](again, seed=9)
    again.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    assert difference(out(again), after) == 0
    assert difference(out(copy.deepcopy(network)), after) == 0


@pytest.mark.parametrize("part", ADD)
def test_the_seed_alone_decides_the_start(part):
    drawn = []
    for seed, noise in ((1, 5), (1, 6), (2, 6)):
        network = tiny()
        torch.manual_seed(noise)
        ADD[part](network, seed=seed)
        drawn.append(torch.cat([p.detach().reshape(-1) for p in network.parameters()]))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[1], drawn[2])


@pytest.mark.parametrize("part", ADD)
def test_every_new_parameter_gets_a_gradient_once_it_has_left_the_start(part):
    network = tiny()
    old = {name for name, _ in network.named_parameters()}
    ADD[part](network)
    shaken(network).train()
    result = network(*pair())
    (result.score_map.sum() + result.size_map.square().sum()).backward()
    new = {name: p for name, p in network.named_parameters() if name not in old}
    assert all(p.grad is not None and float(p.grad.abs().max()) > 0 for p in new.values())


def test_lora_is_its_definition():
    torch.manual_seed(1)
    linear = nn.Linear(6, 9).double()
    layer = LoRALinear(linear, 4, 2.0, gen())
    assert layer.weight is linear.weight
    assert layer.bias is linear.bias
    assert layer.lora_A.shape == (4, 6)
    assert layer.lora_B.shape == (9, 4)
    assert float(layer.lora_A.detach().abs().max()) <= 6**-0.5
    assert float(layer.lora_A.detach().std()) == pytest.approx((3 * 6) ** -0.5, rel=0.3)
    with torch.no_grad():
        layer.lora_B.normal_()
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    expected = torch.stack(
        [torch.stack([reference.lora(t, linear.weight, linear.bias, layer.lora_A, layer.lora_B, 2.0) for t in s]) for s in x]
    )
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-12)


def test_lora_is_on_qkv_and_proj_of_every_block_with_the_published_ranks():
    network = tiny()
    add_lora(network)
    layers = {name: m for name, m in network.named_modules() if isinstance(m, LoRALinear)}
    blocks = [*(f"backbone.{s}.{i}" for s in ("blocks_rgb", "blocks_aux") for i in range(4)), "backbone.fusion.0", "backbone.fusion.1"]
    assert set(layers) == {f"{b}.attn.{leaf}" for b in blocks for leaf in ("qkv", "proj")}
    for name, layer in layers.items():
        rank = 8 if name.endswith("qkv") else 16
        assert layer.lora_A.shape[0] == layer.lora_B.shape[1] == rank
        assert layer.scaling == 1 / rank


def test_merging_keeps_the_function_and_unmerging_is_exact():
    network = tiny()
    add_lora(network)
    shaken(network, 0.5)
    before, weights = out(network), {name: p.detach().clone() for name, p in network.named_parameters()}
    for _ in range(2):  # the second call of each does nothing
        merge_lora(network)
    name = "backbone.fusion.1.attn.qkv.weight"
    assert not torch.equal(dict(network.named_parameters())[name], weights[name])
    assert difference(out(network), before) < 1e-5
    merged = network.state_dict()
    assert merged.keys() == weights.keys() | tiny().state_dict().keys()
    assert all(torch.equal(merged[name], p) for name, p in weights.items())
    for _ in range(2):
        unmerge_lora(network)
    assert all(torch.equal(p, weights[name]) for name, p in network.named_parameters())
    assert difference(out(network), before) == 0


def test_a_merged_network_neither_trains_nor_loads():
    network = tiny()
    add_lora(network)
    state = network.state_dict()
    merge_lora(network)
    with pytest.raises(ValueError, match="unmerge_lora before loading"):
        network.load_state_dict(state)
    network.train()
    with pytest.raises(ValueError, match="unmerge_lora before training"):
        network(*pair())
    unmerge_lora(network)
    network.load_state_dict(state)
    network(*pair())


@pytest.mark.parametrize("merged", [False, True])
def test_folding_leaves_a_network_of_the_original_layout(merged):
    network = tiny()
    add_lora(network)
    shaken(network, 0.5)
    before = out(network)
    if merged:
        merge_lora(network)
    fold_lora(network)
    assert difference(out(network), before) < 1e-5
    plain = tiny()
    plain.load_state_dict(network.state_dict())
    assert difference(out(plain), before) < 1e-5
    assert not any(isinstance(m, LoRALinear) for m in network.modules())


def test_the_bottleneck_is_its_definition():
    torch.manual_seed(1)
    linear = nn.Linear(6, 5).double()
    layer = AdaptedLinear(linear, 3, gen())
    assert not layer.adapter[2].weight.any()
    with torch.no_grad():
        for p in layer.adapter.parameters():
            p.normal_()
    x = torch.randn(4, 6, dtype=torch.float64)
    down, up = layer.adapter[0], layer.adapter[2]
    expected = torch.stack([reference.bottleneck(linear(t), down.weight, down.bias, up.weight, up.bias) for t in x])
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-12)


def test_adapters_stand_behind_attention_and_mlp_of_every_block():
    network = tiny()
    add_adapters(network)
    names = {name for name, m in network.named_modules() if isinstance(m, AdaptedLinear)}
    assert len(names) == 2 * 10
    assert {name.split(".", 3)[3] for name in names} == {"attn.proj", "mlp.fc2"}
    assert network.backbone.fusion[0].attn.proj.adapter[0].weight.shape == (8, 96)


def test_the_prompt_is_its_definition():
    block = PromptBlock(6, 3, 2, 5, torch.zeros(1, dtype=torch.float64), gen())
    with torch.no_grad():
        block.up.weight.copy_(torch.randn(6, 3, generator=gen()))
        block.temperature.fill_(3.0)
    g = torch.Generator().manual_seed(2)
    rgb, aux = torch.randn(2, 5, 6, generator=g, dtype=torch.float64), torch.randn(2, 5, 6, generator=g, dtype=torch.float64)
    expected = torch.stack(
        [
            reference.prompt(r, a, block.down_rgb.weight, block.down_aux.weight, block.up.weight, 3.0, 2)
            for r, a in zip(rgb, aux, strict=True)
        ]
    )
    torch.testing.assert_close(block(rgb, aux), expected, rtol=0, atol=1e-12)


def test_prompts_reach_the_rgb_tokens_alone_and_leave_rgb_only_tracking_as_it_was():
    network = tiny()
    alone = out(network, channels=3)
    add_prompts(network)
    shaken(network, 1.0)
    assert difference(out(network, channels=3), alone) == 0
    block = copy.deepcopy(network.backbone.fusion[0])
    prompt = block.prompt
    seen = []
    block.norm1.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach().clone()))
    tokens = torch.randn(1, 2 * prompt.tokens, 96, generator=gen())
    with torch.no_grad():
        block(tokens)
    n = prompt.tokens
    assert (prompt.template_tokens, n) == (16, 80)
    assert torch.equal(seen[0][:, n:], tokens[:, n:])
    torch.testing.assert_close(seen[0][:, :n], tokens[:, :n] + prompt(tokens[:, :n], tokens[:, n:]).detach())


def test_refusals():
    with pytest.raises(ValueError, match=r"no backbone\.fusion"):
        add_prompts(tiny(1))
    for part, match in (("lora", "0 of 10"), ("adapter", "0 of 10"), ("prompt", "already")):
        network = tiny()
        ADD[part](network)
        with pytest.raises(ValueError, match=match):
            ADD[part](network)
    with pytest.raises(ValueError, match="0 of 0"):
        add_lora(nn.Linear(3, 3))
    with pytest.raises(ValueError, match="rank is 0"):
        LoRALinear(nn.Linear(3, 3), 0, 1.0, gen())
    with pytest.raises(ValueError, match="width is 0"):
        AdaptedLinear(nn.Linear(3, 3), 0, gen())
