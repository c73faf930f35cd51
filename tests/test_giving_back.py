"""Giving back: against dense matrices, at its limits, and what it leaves alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from srft.cli import main
from srft.method.giving_back import GivingBack, strength_with
from tests.small_net import make_prior, net


def displaced(model, seed: int = 1):
    generator = torch.Generator().manual_seed(seed)
    return {name: w + 0.1 * torch.randn(w.shape, generator=generator, dtype=w.dtype) for name, w in model.state_dict().items()}


@pytest.mark.parametrize("diagonal", [True, False])
def test_it_solves_the_quadratic(diagonal):
    model = net(torch.float64)
    prior = make_prior(model, diagonal=diagonal)
    prior = replace(prior, groups={n: replace(p, share=0.3 if n.startswith("out") else 1.0) for n, p in prior.groups.items()})
    start, tuned = model.state_dict(), displaced(model)
    found = GivingBack.of(prior, start, 2.0)(tuned)
    everything = np.concatenate([p.measure().double().numpy() for p in prior.groups.values()])
    for p in prior.groups.values():
        h = p.share * p.measure().double().numpy() / everything.mean()
        a, b = (p.group.of(w[p.group.parameter]).numpy() for w in (tuned, start))
        expected = np.linalg.solve(np.eye(len(h)) + 2.0 * np.diag(h), a + 2.0 * h * b)  # normal equations
        np.testing.assert_allclose(p.group.of(found[p.group.parameter]).numpy(), expected, rtol=0, atol=1e-6)


def test_its_limits_and_what_has_no_prior():
    model = net()
    prior = make_prior(model, diagonal=True)
    left = replace(prior, groups={n: p for n, p in prior.groups.items() if not n.startswith("out")})
    start, tuned = model.state_dict(), displaced(model)
    before = {name: w.clone() for name, w in (*start.items(), *((f"tuned {n}", w) for n, w in tuned.items()))}
    for name, w in GivingBack.of(prior, start, 0.0)(tuned).items():
        torch.testing.assert_close(w, tuned[name], rtol=0, atol=1e-7)
    nearest = GivingBack.of(prior, start, 1e12)(tuned)
    for p in prior.groups.values():  # What has no sensitivity is kept whatever the strength.
        sensitive = p.measure() > 1e-6
        moved = (p.group.of(nearest[p.group.parameter]) - p.group.of(start[p.group.parameter])).abs()
        assert float(moved[sensitive].amax()) < 1e-3
    found = GivingBack.of(left, start, 3.0)(tuned)
    assert all(found[name] is tuned[name] for name in found if name.startswith("out"))
    once, more = (GivingBack.of(prior, start, s)(tuned) for s in (0.5, 5.0))
    for name in prior.groups:
        p = prior.groups[name].group
        at = lambda weights, p=p: (p.of(weights[p.parameter]) - p.of(start[p.parameter])).abs()
        assert (at(more) <= at(once) + 1e-7).all()
    for name, w in before.items():  # Nothing is changed in place.
        torch.testing.assert_close(tuned[name.removeprefix("tuned ")] if name.startswith("tuned ") else start[name], w, rtol=0, atol=0)


def test_equal_sensitivities_are_the_interpolation_of_weights():
    model = net()
    prior = make_prior(model, diagonal=True)
    groups = {n: replace(p, diagonal=torch.full_like(p.measure(), 7.0)) for n, p in prior.groups.items()}
    start, tuned = model.state_dict(), displaced(model)
    for giving in (GivingBack.of(replace(prior, groups=groups), start, 1.0), GivingBack.of(prior, start, 1.0, alike=True)):
        for name, w in giving(tuned).items():
            torch.testing.assert_close(w, (start[name] + tuned[name]) / 2, rtol=0, atol=1e-6)


def test_the_strength_falls_with_the_data():
    assert [strength_with(3.0, n, up_to=24) for n in (1, 24, 48, 240)] == [3.0, 3.0, 1.5, pytest.approx(0.3)]
    assert strength_with(3.0, 1000, up_to=0) == 3.0
    assert strength_with(0.0, 1000, up_to=24) == 0.0


def test_what_cannot_be():
    model = net()
    prior = make_prior(model, diagonal=True)
    with pytest.raises(ValueError, match=r"strength is -1\.0"):
        GivingBack.of(prior, model.state_dict(), -1.0)
    silent = {n: replace(p, diagonal=torch.zeros_like(p.measure())) for n, p in prior.groups.items()}
    with pytest.raises(ValueError, match=r"mean sensitivity is 0\.0"):
        GivingBack.of(replace(prior, groups=silent), model.state_dict(), 1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out", "mine.safetensors"], "--out has no effect without --write"),
        (["--write", "3", "--strengths", "1", "2", "--plot", "p.png"], "--strengths --plot have no effect with --write"),
    ],
)
def test_options_that_would_do_nothing_are_refused(options, message, monkeypatch):
    monkeypatch.setattr("sys.argv", ["srft", "give-back", "run", *options])
    with pytest.raises(SystemExit, match=message):
        main()
