import dataclasses
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from srft.commands.train import Train, settings
from srft.config import ConfigError, DataConfig, OptimConfig, SRFTConfig, TrackerConfig, TrainConfig, to_flat
from srft.settings import from_flat, load


def test_flat_form_is_json_and_round_trips():
    config = from_flat({"srft.rank": 4, "optim.lr": 1e-3, "srft.damping_range": [0.1, 0.2]})
    again = from_flat(json.loads(json.dumps(to_flat(config))))
    assert again == config
    assert again.srft.damping_range == (0.1, 0.2)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"srft.rnk": 4}, ["srft.rnk", "srft.rank"]),
        ({"srft.rank": -1}, ["srft.rank", "-1", "0 to 1024"]),
        ({"srft.rank": 2.5}, ["srft.rank", "2.5", "whole number"]),
        ({"srft.rank": True}, ["srft.rank", "whole number"]),
        ({"srft.schedule": "sigmoid"}, ["srft.schedule", "sigmoid", "cosine"]),
        ({"srft.damping_range": [0.9, 0.1]}, ["srft.damping_range", "0.9"]),
        ({"optim.lr": "fast"}, ["optim.lr", "fast", "number"]),
        ({"data.modality": "lidar"}, ["data.modality", "lidar", "rgbe"]),
        ({"baseline.kind": "ewc"}, ["baseline.kind", "none with paradigm srft"]),
        ({"baseline.kind": "ewc2", "paradigm": "full"}, ["baseline.kind", "l2_sp"]),
        ({"optim.rates": "published", "data.modality": "rgb"}, ["optim.rates", "uniform"]),
        ({"workers": 3}, ["optim.batch_size", "16", "3 workers"]),
        ({"paradigm": "aux", "data.modality": "rgb"}, ["paradigm", "'aux'", "data.modality rgb", "full"]),
        ({"paradigm": "srft-prompt", "data.modality": "rgb"}, ["paradigm", "'srft-prompt'", "data.modality rgb"]),
        ({"workers": 8, "srft.fisher_samples": 7}, ["srft.fisher_samples", "7", "at least 8", "workers"]),
        ({"workers": 8, "srft.fisher_samples": 7, "paradigm": "full", "baseline.kind": "ewc"}, ["srft.fisher_samples", "at least 8"]),
        ({"srft.scale": "group", "srft.rank": 0, "srft.diagonal": True}, ["srft.scale", "'group'", "global", "srft.rank 0"]),
        ({"data.pairs": "published", "data.length": 19}, ["data.length", "19", "at least 20", "data.pairs published"]),
        ({"optim.epochs": math.inf}, ["optim.epochs", "inf", "whole number"]),
        ({"optim.epochs": math.nan}, ["optim.epochs", "nan", "whole number"]),
        ({"optim.grad_clip": math.inf}, ["optim.grad_clip", "inf", "finite number"]),
        ({"optim.weight_decay": 10**400}, ["optim.weight_decay", "finite number"]),
        ({"srft.damping_range": ["a", 1]}, ["srft.damping_range", "'a'", "two finite numbers"]),
        ({"srft.damping_range": [0, math.nan]}, ["srft.damping_range", "nan", "two finite numbers"]),
        ({"srft.damping_range": [0.5]}, ["srft.damping_range", "0.5", "two finite numbers"]),
        ({"srft.schedule": ["cosine"]}, ["srft.schedule", "['cosine']", "one of"]),
        ({"name": 3}, ["name", "3", "a word"]),
    ],
)
def test_a_wrong_setting_is_one_sentence_with_key_value_and_remedy(values, words):
    with pytest.raises(ConfigError) as caught:
        from_flat(values, source="sweep.json")
    message = str(caught.value)
    assert message.startswith("sweep.json: ")
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize("value", [None, math.inf, math.nan, [], {}, b"x"])
def test_no_setting_takes_what_is_neither_its_kind_nor_finite(value):
    for key in to_flat(TrainConfig()):
        with pytest.raises(ConfigError, match=rf"^here: {key} is .*; expected "):
            from_flat({key: value}, source="here")


@pytest.mark.parametrize(
    "values",
    [
        {"workers": 8, "srft.fisher_samples": 7, "paradigm": "full"},
        {"workers": 8, "srft.fisher_samples": 7, "srft.estimator": "kronecker"},
        {"workers": 8, "srft.fisher_samples": 7, "srft.rank": 0, "srft.give_back": 0},
        {"srft.scale": "group", "srft.rank": 0},
        {"data.pairs": "published", "data.length": 19, "data.benchmark": "own", "data.root": "/data"},
        *({"paradigm": paradigm, "data.modality": "rgb"} for paradigm in ("srft", "full", "head", "bias", "srft-lora", "adapter")),
    ],
)
def test_what_a_run_does_not_use_is_not_held_against_it(values):
    assert from_flat(values) != TrainConfig()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: OptimConfig(epochs=2.5), "optim.epochs is 2.5; expected a whole number"),
        (lambda: OptimConfig(grad_clip=math.inf), "optim.grad_clip is inf; expected a finite number"),
        (lambda: SRFTConfig(damping_range=("a", 1)), "srft.damping_range is .*'a'.*; expected two finite numbers"),
        (lambda: DataConfig(length=None), "data.length is None; expected a whole number"),
        (lambda: TrackerConfig(freeze_head=1), "tracker.freeze_head is 1; expected true or false"),
        (lambda: TrainConfig(optim=None), "optim is None; expected the dataclass OptimConfig"),
    ],
)
def test_configurations_made_in_python_are_held_to_the_same(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_numbers_from_json_become_those_of_the_setting():
    flat = to_flat(from_flat({"optim.epochs": 3.0, "optim.grad_clip": 2, "srft.damping_range": [0, 1]}))
    found = flat["optim.epochs"], flat["optim.grad_clip"], *flat["srft.damping_range"]
    assert list(map(repr, found)) == ["3", "2.0", "0.0", "1.0"]


def test_a_file_that_is_missing_or_not_json_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.json"):
        load(tmp_path / "none.json")
    bad = tmp_path / "bad.json"
    bad.write_text('{"optim.lr": 1e-3,\n oops}')
    with pytest.raises(ConfigError, match=r"bad\.json, line 2"):
        load(bad)
    bad.write_text("[1]")
    with pytest.raises(ConfigError, match="one JSON object"):
        load(bad)
    bad.write_text(json.dumps({"optim.lr": 1e-3}))
    assert load(bad).optim.lr == 1e-3


def test_options_and_settings_of_a_command_are_checked_together():
    config = settings(Train(workers=3, set=("optim.batch_size=12", "optim.lr=2e-4")))
    assert (config.workers, config.optim.batch_size, config.optim.lr) == (3, 12, 2e-4)
    config = settings(Train(workers=4, strategy="fsdp2", set=("optim.batch_size=24", "optim.accumulate=3")))
    assert (config.workers, config.strategy, config.optim.accumulate) == (4, "fsdp2", 3)
    assert settings(Train(workers=2, set=("workers=4",))).workers == 4
    assert settings(Train()) == TrainConfig()
    with pytest.raises(ConfigError, match=r"^--workers, --strategy, --set: .*batch_size is 12"):
        settings(Train(workers=5, set=("optim.batch_size=12",)))
    with pytest.raises(ConfigError, match=r"^--set 'optim.lr' has no '='"):
        settings(Train(set=("optim.lr",)))


LAYOUT = {
    "name": "x",
    "workers": 2,
    "min_workers": 1,
    "strategy": "fsdp2",
    "checkpoint_steps": 7,
    "data.loader_workers": 2,
    "data.loader": "ray",
}


@given(key=st.sampled_from(sorted(set(to_flat(TrainConfig())) - LAYOUT.keys())))
def test_digest_follows_every_setting_but_name_and_layout(key):
    own = {"data.benchmark": "own", "data.root": "/a", "data.source_benchmark": "own", "data.source_root": "/a"}
    base = from_flat(own if key in own else {})
    value = to_flat(base)[key]
    alternatives = {
        "data.benchmark": "lasher", "data.root": "/b", "data.source_benchmark": "lasot", "data.source_root": "/b",
        "paradigm": "full", "data.pairs": "published", "data.augmentation": "published", "data.decode": "reduced",
        "data.spread": "sequences",
        "tracker.preset": "base", "tracker.pretrained": "other", "data.modality": "rgbd",
        "srft.schedule": "cosine", "srft.mode": "proximal", "srft.scale": "group", "srft.transfer": "two_step", "srft.fisher": "mc",
        "srft.damping_range": [0.2, 0.3], "srft.damped": "prior", "srft.damped_rate": "kept",
        "srft.give_back_by": "alike",
        "srft.estimator": "kronecker", "baseline.kind": "l2_sp", "optim.rates": "published", "optim.precision": "bf16",
        "optim.decay": "step", "optim.ema": 0.9, "tracker.drop_path": 0.1,
        "optim.lr": 0.01, "optim.warmup": 0.2, "srft.damping_strength": 0.5,
    }  # fmt: skip
    if key in alternatives:
        other = alternatives[key]
    elif isinstance(value, bool):
        other = not value
    else:
        other = value + 1
    base = from_flat({"paradigm": "full"}) if key == "baseline.kind" else base  # Not beside SRFT.
    assert from_flat({key: other}, base).digest() != base.digest()
    assert from_flat(LAYOUT).digest() == TrainConfig().digest()


def test_configurations_cannot_be_changed_in_place():
    with pytest.raises(dataclasses.FrozenInstanceError):
        SRFTConfig().rank = 3
