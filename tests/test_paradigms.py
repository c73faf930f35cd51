import pytest
import torch

from srft.method.paradigms import select_trainable
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


def test_frozen_parameters_get_no_gradient():
    network = tiny().eval()
    boxes = torch.tensor([[0.4, 0.5, 0.2, 0.3]])
    for paradigm in ("srft", "head"):
        names = set(select_trainable(network, paradigm, freeze_head=True))
        network.zero_grad()
        tracking_loss(network(torch.randn(1, 6, 64, 64), torch.randn(1, 6, 128, 128)), boxes)["loss"].backward()
        assert {name for name, p in network.named_parameters() if p.grad is not None} == names
