"""Which trial trains next, tried with a loop that trains in this process where Ray Tune would start processes."""

import dataclasses
import math
from itertools import pairwise

import numpy as np
import pytest

from srft.config import ConfigError
from srft.search.compare import plasticity_and_stability
from srft.search.population import exchanges
from srft.search.queue import Queue
from srft.search.record import best, claim, read_study, trial_directory
from srft.search.space import Choice, LogUniform, Space
from srft.search.study import Study
from srft.search.watch import Watch
from srft.settings import from_flat
from srft.training import checkpoint
from srft.training.distributed import train
from tests.toy_training import score, toy_entry

BASE = from_flat({"optim.epochs": 4, "optim.steps_per_epoch": 1, "optim.batch_size": 2})
SPACE = Space({"srft.kappa": LogUniform(0.5, 2.0)})


def session(study, directory, *, turns=10**6, fail=()):
    """Trains one trial after the other; stops dead after some turns, as a killed driver would."""
    record = read_study(directory)
    watch = Watch(study, directory, None, None, list(record.results))
    queue = Queue(study, directory, watch, record.generation)
    order = []
    while turns and (turn := queue.next()):
        turns -= 1
        index, home = turn.trial.index, trial_directory(directory, turn.trial)
        order.append(index)
        watch.start(index)
        error = None
        if index in fail:
            error = "planned"
        else:

            def on_epoch(report, index=index):
                watch.epoch(index, report.epoch, dict(report.metrics), replayed=False)

            for entry in checkpoint.history(home) if home.exists() else []:
                watch.epoch(index, entry["epoch"], entry["metrics"], replayed=True)
            if watch.epochs(index) < turn.until:
                train(turn.trial.config, toy_entry, directory=home, on_epoch=on_epoch, resume=True, until=turn.until)
        queue.back(index)
        watch.end(index, error, paused=queue.pauses(index))
    if turns:
        assert queue.done
        queue.end()
    return order, queue


def summary(study, directory):
    scores = lambda r: [e["metrics"]["val/success_auc"] for e in r.history]
    return [(r.trial.point, r.trial.origins, r.state, scores(r)) for r in read_study(directory).results]


def test_proposed_trials_are_the_same_after_an_interruption(tmp_path):
    study = Study(name="toy", base=BASE, space=SPACE, num_samples=9, search="tpe", fixed=({"paradigm": "full"},), early_stopping=False)
    for name in ("a", "b"):
        claim(study, tmp_path / name, resume=False)
    assert session(study, tmp_path / "a")[0] == list(range(10))
    assert session(study, tmp_path / "b", turns=8)[0] == list(range(8))
    assert len(read_study(tmp_path / "b").results) == 8
    session(study, tmp_path / "b")
    found = summary(study, tmp_path / "a")
    assert summary(study, tmp_path / "b") == found
    assert {state for _, _, state, _ in found} == {"finished"}
    drawn = [point["srft.kappa"] for point, *_ in found[1:]]
    assert len(set(drawn)) == 9
    warm = dataclasses.replace(
        study, known=tuple(Watch(study, tmp_path / "a", None, None, read_study(tmp_path / "a").results).observations())
    )
    claim(warm, tmp_path / "c", resume=False)
    session(warm, tmp_path / "c", turns=3)
    learned = [r.trial.point["srft.kappa"] for r in read_study(tmp_path / "c").results[1:]]
    assert len(learned) == 2
    assert not set(learned) & set(drawn)  # the same seeds, but ten trials to learn from


@pytest.mark.parametrize(
    "changes", [{}, {"search": "tpe"}, {"brackets": 2}, {"reduction": 3, "num_samples": 9}], ids=["asha", "tpe", "brackets", "thirds"]
)
def test_only_the_best_go_on_from_a_rung(tmp_path, changes):
    base = from_flat({"optim.epochs": 8}, BASE)
    study = Study(**{"name": "toy", "base": base, "space": SPACE, "num_samples": 8, "fixed": ({"srft.kappa": 2.0},), **changes})
    for name in ("a", "b"):
        claim(study, tmp_path / name, resume=False)
    session(study, tmp_path / "a")
    fixed, *found = read_study(tmp_path / "a").results
    assert (fixed.state, len(fixed.history)) == ("finished", 8)
    assert {r.state for r in found} == {"finished", "stopped"}
    whole = [r for r in found if r.state == "finished"]
    assert min(found, key=lambda r: r.trial.point["srft.kappa"]) in whole  # the smallest is the best
    assert sum(len(r.history) for r in found) <= 0.5 * 8 * len(found)
    ahead = Watch(study, tmp_path / "a", None, None, ())._epochs_left()  # what the progress display reckons with
    assert ahead == pytest.approx(sum(len(r.history) for r in (fixed, *found)), rel=0.35)
    assert Watch(study, tmp_path / "a", None, None, read_study(tmp_path / "a").results)._epochs_left() <= 0.35 * ahead
    reached = [sum(len(r.history) > rung for r in found if r.trial.index % study.brackets == 0) for rung in (0, 1, 2, 4)]
    assert reached[0] == len([r for r in found if r.trial.index % study.brackets == 0])
    assert (reached[-1] < reached[0]) if changes.keys() & {"reduction", "brackets"} else all(b <= 0.75 * a for a, b in pairwise(reached))
    for turns in (1, 4, 5):  # interrupted between turns
        session(study, tmp_path / "b", turns=turns)
    session(study, tmp_path / "b")
    assert summary(study, tmp_path / "b") == summary(study, tmp_path / "a")


@pytest.mark.parametrize("search", ["random", "tpe"])
def test_with_two_measures_both_ends_of_the_front_go_on(tmp_path, search):
    study = Study(name="toy", base=BASE, space=SPACE, num_samples=8, search=search, second="source/success_auc")
    for name in ("a", "b"):
        claim(study, tmp_path / name, resume=False)
    session(study, tmp_path / "a")
    found = read_study(tmp_path / "a").results
    assert {r.state for r in found} == {"finished", "stopped"}
    kappa = lambda r: r.trial.point["srft.kappa"]  # of the toy: the smallest learns best, the largest keeps most; none beats another
    for end in (min(found, key=kappa), max(found, key=kappa)):
        assert end.state == "finished"
    session(study, tmp_path / "b", turns=6)
    session(study, tmp_path / "b")
    assert summary(study, tmp_path / "b") == summary(study, tmp_path / "a")


def test_a_budget_leaves_paused_trials_to_go_on(tmp_path):
    study = Study(name="toy", base=BASE, space=SPACE, num_samples=4, max_hours=1.0)
    claim(study, tmp_path, resume=False)
    session(study, tmp_path, turns=3)
    (tmp_path / "spent.json").write_text('{"hours": 2.0, "trial_hours": 2.0}')
    assert session(study, tmp_path)[0] == []
    assert not {r.state for r in read_study(tmp_path).results} & {"finished", "stopped"}
    session(dataclasses.replace(study, max_hours=9.0), tmp_path)
    assert {r.state for r in read_study(tmp_path).results} == {"finished", "stopped"}


def test_one_trial_is_trained_to_the_end_however_few_there_are(tmp_path):
    study = Study(name="toy", base=BASE, space=SPACE, num_samples=3)
    claim(study, tmp_path, resume=False)
    session(study, tmp_path, fail=(0,))
    found = read_study(tmp_path).results
    assert [r.state for r in found].count("finished") == 1
    assert found[0].state == "failed"


def test_longer_trials_go_on_from_rungs_that_shorter_ones_lack(tmp_path):
    study = Study(name="toy", base=BASE, space=Space({"optim.epochs": Choice((2, 8))}), num_samples=8, seed=1)
    claim(study, tmp_path, resume=False)
    session(study, tmp_path)
    found = [(r.trial.point["optim.epochs"], len(r.history)) for r in read_study(tmp_path).results]
    assert found[0][0] == 2
    assert max(trained for _, trained in found) == 4  # Of four that reached two epochs two were the best; one of them was over.


def test_a_population_goes_on_from_its_best_members(tmp_path):
    study = Study(name="toy", base=BASE, space=SPACE, num_samples=4, search="pbt", fixed=({"paradigm": "full"},), own_seeds=True)
    for name in ("a", "b"):
        claim(study, tmp_path / name, resume=False)
    order, _ = session(study, tmp_path / "a")
    assert order[:9] == [0, 1, 2, 3, 4, 1, 2, 3, 4]  # the given one to its end, then one epoch each
    found = read_study(tmp_path / "a").results
    assert [r.state for r in found] == ["finished"] * 5
    assert found[0].trial.origins == ()
    moved = [r for r in found if r.trial.origins]
    assert moved
    for r in moved:
        donor, epochs = r.trial.origins[-1]
        assert donor != r.trial.index
        new = [score(r.trial.config, epoch) for epoch in range(epochs, 4)]
        assert [e["metrics"]["val/success_auc"] for e in r.history][epochs:] == pytest.approx(new)
        assert r.trial.config.seed == r.trial.index  # its own seed throughout
        assert r.score == pytest.approx(max(new))  # not its donor's
        kept = checkpoint.read_meta(checkpoint.best(r.directory))
        assert (kept.digest, kept.metrics["val/success_auc"]) == (r.trial.config.digest(), pytest.approx(r.score))
    drawn = [t.point["srft.kappa"] for t in study.trials()[1:]]
    assert np.mean([r.trial.point["srft.kappa"] for r in found[1:]]) < np.mean(drawn)
    for turns in (3, 4, 5):  # interrupted inside generations
        session(study, tmp_path / "b", turns=turns)
    session(study, tmp_path / "b")
    assert summary(study, tmp_path / "b") == summary(study, tmp_path / "a")


@pytest.mark.parametrize("search", ["tpe", "pbt"])
def test_combinations_that_are_no_configuration_are_drawn_anew(tmp_path, search, monkeypatch):
    """Each value is valid, not each combination: a study that meets one goes on, the same way after an interruption."""
    real = Study.trial
    refused = []

    def trial(study, index, point, origins=()):
        if (search == "tpe" or origins) and point["srft.kappa"] < 1 < point["srft.prior_strength"]:
            refused.append(point)
            raise ConfigError("planned")
        return real(study, index, point, origins)

    monkeypatch.setattr(Study, "trial", trial)
    space = Space({"srft.kappa": LogUniform(0.5, 2.0), "srft.prior_strength": LogUniform(0.5, 2.0)})
    study = Study(name="toy", base=BASE, space=space, num_samples=8, search=search, early_stopping=False)
    for name in ("a", "b"):
        claim(study, tmp_path / name, resume=False)
    session(study, tmp_path / "a")
    assert refused
    assert [r.state for r in read_study(tmp_path / "a").results] == ["finished"] * 8
    session(study, tmp_path / "b", turns=11)
    session(study, tmp_path / "b")
    assert summary(study, tmp_path / "b") == summary(study, tmp_path / "a")


def test_a_space_without_any_configuration_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(Study, "trial", lambda *_, **__: (_ for _ in ()).throw(ConfigError("planned")))
    study = Study(name="toy", base=BASE, space=SPACE, num_samples=2, search="tpe")
    claim(study, tmp_path, resume=False)
    with pytest.raises(ConfigError, match="50 points in a row are no valid configuration; the last: planned"):
        session(study, tmp_path)


def test_a_member_goes_on_from_the_weights_of_its_donor(tmp_path):
    """With a rate of nothing, weights stay what they were: the donor's."""
    study = Study(name="toy", base=from_flat({"optim.lr": 1e-30}, BASE), space=SPACE, num_samples=4, search="pbt", own_seeds=True)
    claim(study, tmp_path, resume=False)
    session(study, tmp_path)
    weights = lambda r: {round(e["metrics"]["weight"], 6) for e in r.history}
    first = {r.trial.index: r for r in read_study(tmp_path).results}
    moved = [r for r in first.values() if r.trial.origins]
    stayed = [r for r in first.values() if not r.trial.origins]
    assert moved
    assert len({min(weights(r)) for r in stayed}) == len(stayed)  # every seed has its own
    assert all(len(weights(r)) == 1 for r in first.values())
    assert all(any(weights(r) == weights(other) for other in first.values() if other is not r) for r in moved)


def test_a_failed_member_is_replaced(tmp_path):
    study = Study(name="toy", base=BASE, space=SPACE, num_samples=4, search="pbt")
    claim(study, tmp_path, resume=False)
    order, _ = session(study, tmp_path, turns=5, fail=(2,))
    assert order[:4] == [0, 1, 2, 3]
    replaced = read_study(tmp_path).results[2]
    assert replaced.trial.origins
    assert len(replaced.history) == 1
    session(study, tmp_path)
    assert [r.state for r in read_study(tmp_path).results] == ["finished"] * 4


def test_epochs_of_a_donor_are_logged_without_the_settings_of_who_goes_on(tmp_path):
    study = Study(name="toy", base=BASE, space=SPACE, num_samples=4, search="pbt")
    claim(study, tmp_path, resume=False)
    watch = Watch(study, tmp_path, None, None, read_study(tmp_path).results)
    new = study.trial(0, {"srft.kappa": 1.5}, ((1, 2),))
    watch.adopt(new, [])
    for epoch in range(3):
        watch.epoch(0, epoch, {"val/success_auc": 0.5}, replayed=epoch < 2)
    assert [m.get("settings/srft.kappa") for m in watch.metrics[0]] == [None, None, 1.5]


def test_what_a_donor_reached_is_not_its_successors(tmp_path):
    """Exchanged before the last epoch, whose score is lower throughout: the winner has the settings that its weights were trained with."""
    falling = lambda config, epoch: score(config, 3 - epoch)
    study = Study(name="toy", base=BASE, space=SPACE, num_samples=4, search="pbt", perturb_epochs=3)
    claim(study, tmp_path, resume=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.toy_training.score", falling)
        session(study, tmp_path)
    found = read_study(tmp_path).results
    moved = [r for r in found if r.trial.origins]
    assert moved
    for r in moved:
        assert max(e["metrics"]["val/success_auc"] for e in r.history) > r.score == falling(r.trial.config, 3)
        assert [e["epoch"] for e in r.own] == [3]
        assert checkpoint.best(r.directory).name == "epoch_0003"
        assert plasticity_and_stability(r, study.metric)[0] == r.score
    winner = best(found, study.metric)
    assert winner.score == falling(winner.trial.config, 0)


def test_a_population_with_two_measures_goes_on_from_its_front():
    rng = np.random.default_rng(0)
    scores = {0: (0.9, 0.1), 1: (0.1, 0.9), 2: (0.05, 0.05), 3: (0.5, 0.5), 4: (0.4, 0.4), 5: (0.3, 0.3), 6: (0.2, 0.2), 7: (0.6, 0.04)}
    moves = [exchanges(scores, rng) for _ in range(20)]
    assert all(move.keys() == {2, 6} for move in moves)
    assert {donor for move in moves for donor in move.values()} == {0, 1}  # 7, third by the first measure, is on no front


def test_exchanges():
    rng = np.random.default_rng(0)
    scores = {index: [value] for index, value in enumerate([0.1, 0.9, 0.5, 0.4, 0.8, 0.2, 0.6, 0.7])}
    for _ in range(20):
        moves = exchanges(scores, rng)
        assert moves.keys() == {0, 5}
        assert set(moves.values()) <= {1, 4}
    assert exchanges({0: [math.nan], 1: [0.1], 2: [0.2], 3: [-math.inf]}, rng) == {0: 2, 3: 2}
    assert exchanges({0: [math.nan], 1: [-math.inf]}, rng) == {}
    assert exchanges({0: [0.5]}, rng) == {}
    assert exchanges({0: (0.5,), 1: (0.5,), 2: (0.5,), 3: (0.5,)}, rng) == {3: 0}  # of equals the first


def test_one_failure_after_the_other_ends_a_study(tmp_path):
    study = Study(name="toy", base=BASE, space=SPACE, num_samples=8, max_failed=3, early_stopping=False)
    claim(study, tmp_path, resume=False)
    order, queue = session(study, tmp_path, fail=range(1, 8))
    assert order == [0, 1, 2, 3]
    assert "last 3 trials failed, one after the other: planned" in queue.closed
    order, queue = session(study, tmp_path, fail=(2, 4))  # the failed ones are tried again
    assert order == list(range(1, 8))
    assert queue.closed == ""


def test_failures_with_pauses_between_them_are_not_one_after_the_other(tmp_path):
    base = from_flat({"optim.epochs": 8}, BASE)
    study = Study(name="toy", base=base, space=SPACE, num_samples=12, max_failed=3)
    claim(study, tmp_path, resume=False)
    _, queue = session(study, tmp_path, fail=range(0, 12, 2))
    assert queue.closed == ""


def test_a_search_does_not_learn_from_what_differs_in_more_than_is_searched(tmp_path):
    study = Study(name="toy", base=BASE, space=SPACE, num_samples=2, fixed=({"paradigm": "full", "srft.kappa": 1.0}, {"srft.kappa": 2.0}))
    claim(study, tmp_path, resume=False)
    seen = Watch(study, tmp_path, None, None, read_study(tmp_path).results).observations()
    assert [one.point.get("srft.kappa") for one in seen] == [2.0, *(t.point["srft.kappa"] for t in study.trials()[2:])]


def test_hours_end_a_study_that_can_go_on(tmp_path):
    study = Study(name="toy", base=BASE, space=SPACE, num_samples=3, max_hours=1e-9, early_stopping=False)
    claim(study, tmp_path, resume=False)
    order, queue = session(study, tmp_path)
    assert order == []
    assert "hours are used up" in queue.closed
    order, queue = session(dataclasses.replace(study, max_hours=1.0), tmp_path)
    assert order == [0, 1, 2]
    assert not queue
    watch = Watch(study, tmp_path, None, None, read_study(tmp_path).results)
    watch.start(0)
    watch.began -= 3600
    watch.epoch(0, 0, {}, replayed=False)  # And here the process dies.
    assert 1.0 < Watch(study, tmp_path, None, None, read_study(tmp_path).results).hours < 1.1
    (tmp_path / "spent.json").write_text('{"hours": 2.0, "trial_hours": 2.0}')  # of all sessions
    watch = Watch(study, tmp_path, None, None, read_study(tmp_path).results)
    assert Queue(dataclasses.replace(study, max_hours=1.0), tmp_path, watch, 0).spent()
    assert not Queue(dataclasses.replace(study, max_hours=3.0), tmp_path, watch, 0).spent()


def test_gpu_hours_count_where_gpus_are_used(tmp_path, monkeypatch):
    study = Study(name="toy", base=BASE, space=SPACE, num_samples=3, max_gpu_hours=1.5, gpus_per_worker=0.5, max_hours=0)
    claim(study, tmp_path, resume=False)
    (tmp_path / "spent.json").write_text('{"hours": 2.0, "trial_hours": 3.5}')
    queue = Queue(study, tmp_path, Watch(study, tmp_path, None, None, read_study(tmp_path).results), 0)
    assert queue.spent() == ""
    monkeypatch.setattr("srft.search.queue.gpus", lambda: 1.0)
    assert "1.5 GPU-hours" in queue.spent()
    monkeypatch.setattr("srft.search.queue.gpus", lambda: 0.0)
    assert queue.spent() == ""


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"search": "luck"}, "expected one of"),
        ({"metric": "test/success_auc"}, "never by what they are tested on"),
        ({"second": "loss"}, "'loss'"),
        ({"search": "grid", "num_samples": 2}, "the grid has 3 points"),
        ({"search": "pbt", "num_samples": 3}, "at least 4"),
        ({"search": "pbt", "space": Space({"srft.rank": Choice((4, 8))})}, "srft.rank cannot change"),
        ({"search": "pbt", "space": Space({"paradigm": Choice(("srft", "full"))})}, "paradigm cannot change"),
        ({"gpus_per_worker": 1.5}, "gpus_per_worker is 1.5"),
        ({"gpus_per_worker": 0.5, "base": from_flat({"workers": 2}, BASE)}, "2 worker"),
        ({"max_hours": -1.0}, "max_hours is -1"),
        ({"known": (object(),)}, "learns nothing"),
    ],
)
def test_studies_that_cannot_be_are_refused(changes, part):
    with pytest.raises(ConfigError) as caught:
        Study(**{"name": "toy", "base": BASE, "space": SPACE, "num_samples": 4, **changes})
    assert part in str(caught.value)


def test_what_decides_a_study_is_in_its_digest():
    study = Study(name="toy", base=BASE, space=SPACE, num_samples=4)
    changes = [{"search": "tpe"}, {"search": "sobol"}, {"second": "source/success_auc"}, {"early_stopping": False}]
    changes += [{"brackets": 2}, {"seed": 1}]
    digests = {dataclasses.replace(study, **change).digest() for change in ({}, *changes)}
    assert len(digests) == 7
    assert dataclasses.replace(study, max_hours=2.0, max_concurrent=1).digest() == study.digest()
    assert [t.config.seed for t in dataclasses.replace(study, own_seeds=True).trials()] == [0, 1, 2, 3]
    assert Study(name="toy", base=BASE, space=SPACE, num_samples=5, search="grid").size == 3
