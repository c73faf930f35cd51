"""Backbones against the published networks in plain operations, with the same weights."""

import copy

import pytest
import torch

from srft.model.losses import tracking_loss
from srft.model.tracker import MultiModalTracker
from tests.reference import ostrack

BOXES = torch.tensor([[0.4, 0.5, 0.2, 0.3], [0.6, 0.4, 0.3, 0.2]])


def tiny(streams, **options):
    """A tracker whose weights all differ from zero, one and each other, and whose normalization statistics are not at their start."""
    torch.manual_seed(streams)
    network = MultiModalTracker.from_preset("tiny", streams, **options).eval()
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if value.is_floating_point():
                value.add_(torch.randn_like(value) * 0.05)
            if name.endswith("running_var"):
                value.clamp_(min=0.5)
    return network


def crops(channels, batch=2):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, channels, 64, 64, generator=generator), torch.randn(batch, channels, 128, 128, generator=generator)


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("options", [{}, {"frame_identity": True}, {"eliminate": True}, {"eliminate": True, "frame_identity": True}])
def test_one_stream_is_the_published_one(options):
    network, (template, search) = tiny(1, **options), crops(3)
    weights = network.state_dict()
    with torch.inference_mode():
        expected = ostrack.single_stream(weights, template, search, heads=3, eliminate_in=network.arch.eliminate_in)
        out = network(template, search)
        close(network.backbone(template, search), expected)
        for got, want in zip(out, ostrack.head(weights, expected), strict=False):
            close(got, want)
    zero = (expected == 0).all(2).sum(1).tolist()
    assert zero == ([64 - 23] * 2 if "eliminate" in options else [0, 0])


@pytest.mark.parametrize("options", [{}, {"frame_identity": True}])
def test_two_streams_are_the_published_ones(options):
    network, (template, search) = tiny(2, **options), crops(6)
    weights = ostrack.srtrack_names(network.state_dict())
    with torch.inference_mode():
        expected = ostrack.two_streams(weights, template, search, heads=3, fusion_after=(1, 3))
        close(network.backbone(template, search), expected)
        for got, want in zip(network(template, search), ostrack.head(weights, expected), strict=False):
            close(got, want)


@pytest.mark.parametrize(("streams", "options"), [(1, {}), (1, {"eliminate": True}), (2, {})])
def test_gradients_are_those_of_the_published_network(streams, options):
    network, (template, search) = tiny(streams, **options), crops(3 * streams)
    network.backbone(template, search).square().sum().backward()
    weights = {name: value.detach().clone().requires_grad_(value.is_floating_point()) for name, value in network.state_dict().items()}
    if streams == 1:
        out = ostrack.single_stream(weights, template, search, heads=3, eliminate_in=network.arch.eliminate_in)
    else:
        out = ostrack.two_streams(ostrack.srtrack_names(weights), template, search, heads=3, fusion_after=(1, 3))
    out.square().sum().backward()
    for name, parameter in network.backbone.named_parameters():
        expected = weights[f"backbone.{name}"].grad
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()), msg=name)


def test_eliminated_tokens_are_those_that_the_templates_centre_attends_to_least():
    """With keys that grow along the search region in its favour, the far end stays."""
    block = tiny(1, eliminate=True).backbone.blocks[0]
    with torch.no_grad():
        block.norm1.weight.fill_(1)
        block.norm1.bias.zero_()
        block.attn.qkv.weight.zero_()
        block.attn.qkv.weight[:96] = block.attn.qkv.weight[96:192] = torch.eye(96)
    tokens = torch.randn(1, 16 + 8, 96, generator=torch.Generator().manual_seed(0)) * 1e-3
    direction = torch.sin(torch.arange(96.0))
    tokens[0, 5] = 3 * direction  # the centre of 4 x 4
    tokens[0, 16:] += torch.linspace(0, 1e-2, 8)[:, None] * direction
    out, kept = block.eliminate(tokens, 16, 5, 3)
    assert kept.tolist() == [[7, 6, 5]]
    assert out.shape == (1, 19, 96)


@pytest.mark.parametrize("streams", [1, 2])
def test_checkpointing_changes_no_gradient(streams):
    plain, (template, search) = tiny(streams).train(), crops(3 * streams)
    saving = copy.deepcopy(plain)
    saving.set_training(grad_checkpointing=True)
    for network in (plain, saving):
        tracking_loss(network(template, search), BOXES)["loss"].backward()
    for (name, a), b in zip(plain.named_parameters(), saving.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad), name


def test_checkpointing_keeps_less():
    """What autograd holds between the passes."""

    def held(network):
        sizes = {}

        def pack(tensor):
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            out = network.backbone(*crops(6))
        assert out.requires_grad
        return sum(sizes.values()) - sum(p.nbytes for p in network.backbone.parameters())

    network = tiny(2).train()
    everything = held(network)
    network.set_training(grad_checkpointing=True)
    assert held(network) < 0.25 * everything


def test_paths_are_dropped_in_training_only_and_more_with_depth():
    network, (template, search) = tiny(2), crops(6)
    before = network(template, search).score_map
    keys = list(network.state_dict())
    network.set_training(drop_path=0.3)
    assert list(network.state_dict()) == keys
    assert torch.equal(network(template, search).score_map, before)
    rates = lambda blocks: [round(float(getattr(b.drop_path, "drop_prob", 0.0)), 6) for b in blocks]
    backbone = network.backbone
    assert rates(backbone.blocks_rgb) == rates(backbone.blocks_aux) == [0.0, 0.1, 0.2, 0.3]
    assert rates(backbone.fusion) == [0.1, 0.3]
    backbone.train()
    torch.manual_seed(0)
    assert not torch.equal(backbone(template, search), backbone(template, search))
    network.set_training()
    close(backbone(template, search), backbone.eval()(template, search))
    for rate in (-0.1, 1.0):
        with pytest.raises(ValueError, match=f"drop path rate is {rate}"):
            network.set_training(drop_path=rate)


def test_a_dropped_block_is_the_identity_on_average():
    """Samples that skip keep their tokens, the others' branches are scaled up."""
    block = tiny(1).backbone.blocks[1]
    block.set_drop_path(0.5)
    tokens = torch.randn(1, 4, 96, generator=torch.Generator().manual_seed(0)).expand(64, -1, -1)
    torch.manual_seed(1)
    with torch.no_grad():
        out = block.train()(tokens)
    skipped = (out == tokens).flatten(1).all(1)
    assert 5 < int(skipped.sum()) < 30  # a quarter of 64 skips both branches


@pytest.mark.parametrize(("streams", "options"), [(1, {"eliminate": True}), (2, {})])
def test_compiled_as_one_graph_it_computes_the_same(streams, options):
    network, inputs = tiny(streams, **options), crops(3 * streams)
    torch._dynamo.reset()
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    for got, want in zip(compiled(*inputs), network(*inputs), strict=True):
        close(got, want)
    tracking_loss(compiled(*inputs), BOXES)["loss"].backward()
    assert all(p.grad is not None for p in network.parameters())


def test_elimination_works_in_bfloat16():
    network, inputs = tiny(1, eliminate=True), crops(3)
    with torch.autocast("cpu", torch.bfloat16):
        out = network(*inputs)
    assert {part.dtype for part in out} == {torch.float32}
    assert all(torch.isfinite(part).all() for part in out)
