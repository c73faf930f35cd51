import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from srft.method.fisher import undisturbed
from srft.method.layer_calls import flows_of_samples, recorded, weight_layers
from tests.reference.fisher import TokenNet, token_loss, token_samples


def gradient_of_calls(model, weight, loss):
    """What the recorded calls of a weight's layers make, and autograd's own."""
    with recorded({weight: weight_layers(model)[weight]}) as calls, undisturbed(model, 0):
        (flow,) = (f.rows(weight) for f in flows_of_samples(model, lambda m, _: loss(m), [None], calls, [], check=True))
        a, g = flow
        own = torch.autograd.grad(loss(model), model.get_parameter(weight))[0]
    return (g.T @ a).view_as(own), own


@pytest.mark.parametrize("name", ["embed", "qkv", "fc1", "fc2", "head"])
def test_recorded_calls_make_the_gradient(name):
    formed, own = gradient_of_calls(TokenNet(), f"{name}.weight", lambda m: token_loss(m, token_samples(1)[0]))
    torch.testing.assert_close(formed, own)


class Awkward(nn.Module):
    """Every way of calling a layer that could hide its gradient from a hook."""

    def __init__(self, kind):
        super().__init__()
        torch.manual_seed(0)
        self.kind = kind
        self.layer = nn.Linear(4, 4, bias=kind != "in place without bias")
        self.other = nn.Linear(4, 4)
        if kind == "tied":
            self.other.weight = self.layer.weight
        if kind == "replaced output":
            self.layer.register_forward_hook(lambda module, args, output: output * 2 + output.sum())

    def forward(self, x):
        if self.kind == "keyword":
            return self.layer(input=x)
        y = self.layer(x)
        if self.kind.startswith("in place"):
            y.mul_(2)
            y[..., 0].mul_(3)
        if self.kind == "twice":
            y = self.layer(y.tanh()[..., :2, :])
        if self.kind == "vector":
            y = self.layer(x[0, 0])
        return self.other(y) if self.kind == "tied" else y


KINDS = ["plain", "keyword", "in place", "in place without bias", "twice", "vector", "tied", "replaced output"]


@pytest.mark.parametrize("kind", KINDS)
def test_calls_of_every_kind_are_seen(kind):
    x = torch.randn(2, 3, 4)
    formed, own = gradient_of_calls(Awkward(kind), "layer.weight", lambda m: m(x).square().sum())
    torch.testing.assert_close(formed, own)
    assert own.norm() > 0.1


@settings(deadline=None, max_examples=15)
@given(st.integers(1, 3), st.integers(1, 2), st.sampled_from([0, 1, (1, 2), "valid", "same"]), st.integers(1, 2))
@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_convolutions_of_every_kind_unfold_to_their_gradient(kernel, stride, padding, dilation):
    torch.manual_seed(0)
    layer = nn.Conv2d(2, 3, kernel, 1 if padding == "same" else stride, padding, dilation)
    model, x = nn.Sequential(layer, nn.ReLU(inplace=True)), torch.randn(1, 2, 7, 6)
    assert ("0.weight" in weight_layers(model)) == (padding != "same")
    if padding != "same":
        formed, own = gradient_of_calls(model, "0.weight", lambda m: m(x).square().sum())
        torch.testing.assert_close(formed, own, rtol=1e-4, atol=1e-4)
