import pytest
import torch

from srft.method.paradigms import select_trainable
from srft.model.architecture import PRESETS
from srft.model.head import decode
from srft.model.losses import tracking_loss
from srft.model.normalization import normalize
from srft.model.pretrained import to_two_streams
from srft.model.tracker import MultiModalTracker
from tests.reference import model as reference
from tests.reference import ostrack

CELLS = PRESETS["tiny"].search_cells


def tiny(streams: int) -> MultiModalTracker:
    torch.manual_seed(streams)
    return MultiModalTracker.from_preset("tiny", streams).eval()


def crops(batch: int, channels: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, channels, 64, 64, generator=generator), torch.randn(batch, channels, 128, 128, generator=generator)


@pytest.fixture(scope="module")
def single():
    return tiny(1)


@pytest.fixture(scope="module")
def double():
    """Two streams whose weights all differ, so that no mix-up of streams goes unseen."""
    return tiny(2)


@pytest.mark.parametrize(("streams", "channels"), [(1, 3), (2, 6), (2, 3)])
def test_maps_have_their_shapes_and_ranges(single, double, streams, channels):
    with torch.inference_mode():
        out = (single if streams == 1 else double)(*crops(2, channels))
    assert out.score_map.shape == (2, 1, CELLS, CELLS)
    assert out.size_map.shape == out.offset_map.shape == (2, 2, CELLS, CELLS)
    assert out.boxes.shape == (2, 4)
    for bounded in (out.score_map, out.size_map):
        assert bounded.min() >= 1e-4
        assert bounded.max() <= 1 - 1e-4


@pytest.mark.parametrize(("streams", "z", "x"), [(1, 6, 6), (2, 6, 3), (2, 3, 6), (2, 4, 4)])
def test_a_wrong_number_of_channels_is_named(single, double, streams, z, x):
    with pytest.raises(ValueError, match=f"have {z} and {x} channels; a tracker of {streams} stream"):
        (single if streams == 1 else double)(torch.zeros(1, z, 64, 64), torch.zeros(1, x, 128, 128))


def test_rgb_alone_is_the_rgb_half_of_the_network(double):
    """The auxiliary stream, its embedding and its norm play no part when three channels come in."""
    template, search = crops(2, 6)
    spoiled = tiny(2)
    spoiled.load_state_dict(double.state_dict())
    with torch.no_grad():
        for name, parameter in spoiled.named_parameters():
            if "_aux" in name:
                parameter.fill_(float("nan"))
        torch.testing.assert_close(spoiled(template[:, :3], search[:, :3]), double(template[:, :3], search[:, :3]), rtol=0, atol=0)
        assert not torch.equal(double(template, search).score_map, double(template[:, :3], search[:, :3]).score_map)


def test_two_streams_of_equal_input_are_the_rgb_tracker_with_its_fused_blocks_twice(single):
    """Attention over tokens that are all there twice is attention over them once."""
    template, search = crops(3, 3)
    double = to_two_streams(single)
    with torch.inference_mode():
        expected = ostrack.single_stream(single.state_dict(), template, search, heads=3, twice=(1, 3))
        both = double.backbone(torch.cat([template, template], 1), torch.cat([search, search], 1))
        torch.testing.assert_close(both, expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(double.backbone(template, search), expected, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(single.backbone(template, search), expected, atol=1e-3)


@pytest.mark.parametrize("streams", [1, 2])
def test_samples_do_not_see_each_other(single, double, streams):
    network, order = (single if streams == 1 else double), [2, 0, 1]
    template, search = crops(3, 3 * streams)
    with torch.inference_mode():
        out, permuted = network(template, search), network(template[order], search[order])
        for a, b in zip(out, permuted, strict=True):
            torch.testing.assert_close(a[order], b, rtol=1e-4, atol=1e-5)


def test_decode_equals_the_plain_one():
    generator = torch.Generator().manual_seed(1)
    for cells in (1, 5, 8):
        score, size = torch.rand(4, 1, cells, cells, generator=generator), torch.rand(4, 2, cells, cells, generator=generator)
        offset = torch.randn(4, 2, cells, cells, generator=generator)
        torch.testing.assert_close(decode(score, size, offset).double(), reference.decode(score, size, offset), rtol=1e-5, atol=1e-6)


def test_decode_takes_x_from_columns():
    score = torch.zeros(1, 1, 8, 8)
    score[0, 0, 2, 5] = 1
    box = decode(score, torch.full((1, 2, 8, 8), 0.25), torch.zeros(1, 2, 8, 8))
    assert box.tolist() == [[5 / 8, 2 / 8, 0.25, 0.25]]


def test_gradient_reaches_every_trainable_parameter():
    network = tiny(2)
    names = select_trainable(network, "full", freeze_head=False)
    tracking_loss(network(*crops(2, 6)), torch.tensor([[0.4, 0.5, 0.2, 0.3], [0.6, 0.4, 0.3, 0.2]]))["loss"].backward()
    parameters = dict(network.named_parameters())
    without = [name for name in names if parameters[name].grad is None or not parameters[name].grad.abs().sum() > 0]
    assert len(names) > 100
    assert without == []


def test_bfloat16_autocast_gives_float32_maps_close_to_the_full_ones(double):
    boxes = torch.tensor([[0.4, 0.5, 0.2, 0.3], [0.6, 0.4, 0.3, 0.2]])
    full = double(*crops(2, 6))
    with torch.autocast("cpu", torch.bfloat16):
        half = double(*crops(2, 6))
    assert {part.dtype for part in half} == {torch.float32}
    torch.testing.assert_close(half.score_map, full.score_map, rtol=0, atol=0.03)
    torch.testing.assert_close(half.offset_map, full.offset_map, rtol=0, atol=0.1)
    loss = tracking_loss(half, boxes)["loss"]
    assert torch.isfinite(loss)
    assert loss.dtype == torch.float32


def test_saturated_scores_keep_a_finite_loss_under_autocast(double):
    """In bfloat16 a score clamped to 1 - 1e-4 would be 1 and its focal loss infinite."""
    network = tiny(2)
    with torch.no_grad():
        network.get_parameter("box_head.conv5_ctr.bias").fill_(40.0)
        with torch.autocast("cpu", torch.bfloat16):
            out = network(*crops(1, 6))
    assert out.score_map.max() < 1
    assert torch.isfinite(tracking_loss(out, torch.tensor([[0.4, 0.5, 0.2, 0.3]]))["loss"])


def test_inputs_of_other_sizes_types_and_numbers_are_named(double):
    template, search = crops(2, 6)
    for bad, message in (
        ((search, search), r"template has shape \(2, 6, 128, 128\); expected \[B, C, 64, 64\]"),
        ((template, search[..., :120]), r"search region has shape \(2, 6, 128, 120\); expected \[B, C, 128, 128\]"),
        ((template[0], search), r"template has shape \(6, 64, 64\)"),
        ((template, search[:1]), "2 templates come with 1 search regions"),
        ((template, search.to(torch.uint8)), "search region is torch.uint8; expected floating point"),
    ):
        with pytest.raises(ValueError, match=message):
            double(*bad)


def test_an_unknown_size_or_number_of_streams_is_named():
    with pytest.raises(ValueError, match="preset is 'huge'; expected one of tiny, small"):
        MultiModalTracker.from_preset("huge", 1)
    with pytest.raises(ValueError, match="streams is 3"):
        MultiModalTracker.from_preset("tiny", 3)


def test_normalize_removes_mean_and_deviation_of_each_channel():
    pixels = torch.randint(0, 256, (2, 4, 5, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    before = pixels.clone()
    out = normalize(pixels)
    assert out.shape == (2, 6, 4, 5)
    assert out.is_contiguous()
    assert torch.equal(pixels, before)
    for channel, (mean, std) in enumerate(zip((0.485, 0.456, 0.406) * 2, (0.229, 0.224, 0.225) * 2, strict=True)):
        torch.testing.assert_close(out[:, channel].double(), (pixels[..., channel].double() / 255 - mean) / std, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(normalize(pixels[..., :3]), out[:, :3], rtol=0, atol=0)
