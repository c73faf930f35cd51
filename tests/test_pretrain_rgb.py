from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from pretrain_rgb import Pretraining, main
from srft.model.pretrained import load_tracker


@pytest.mark.parametrize("init", ["", "tiny_rgb"])
def test_a_tracker_is_trained_from_scratch_or_from_another(init: str, tmp_path: Path) -> None:
    rate = 0.0 if init else 1.0
    main(Pretraining(out=tmp_path, init=init, backbone_rate=rate, steps=2, batch_size=2, sequences=3, test_sequences=1, bf16=bool(init)))
    tuned = load_tracker(tmp_path / "tiny_rgb.safetensors", preset="tiny")
    *_, last = map(json.loads, (tmp_path / "pretrain_rgb.jsonl").read_text().splitlines())
    assert last["step"] == 2
    assert 0 <= last["held_out/success_auc"] <= 1
    if init:  # A backbone with no rate stays; the head moves.
        start = load_tracker(init).state_dict()
        moved = {name.split(".")[0] for name, value in tuned.state_dict().items() if not torch.equal(value, start[name])}
        assert moved == {"box_head"}


def test_a_file_of_another_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="small"):
        main(Pretraining(out=tmp_path, preset="small", init="tiny_rgb", sequences=1, test_sequences=1))
