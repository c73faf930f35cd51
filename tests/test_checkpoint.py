from __future__ import annotations

import json
import logging
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from srft.config import ConfigError, TrainConfig
from srft.settings import from_flat
from srft.training import checkpoint, home
from srft.training.checkpoint import Progress

CONFIG = TrainConfig(name="toy")


def save(directory: Path, epoch: int, score: float = 0.5, config: TrainConfig = CONFIG) -> Path:
    generator = torch.Generator().manual_seed(epoch)
    weights = {"layer.weight": torch.randn(8, 4, generator=generator), "steps": torch.tensor(epoch)}
    state = {"optimizer": {"exp_avg": torch.randn(3, generator=generator), "step": epoch}, "rng": {"state": 2**100 + epoch}, "names": ["a"]}
    progress = Progress(epoch=epoch, step=10 * (epoch + 1), metrics={"val/success_auc": score})
    (checkpoint.begin(directory, progress) / "state").mkdir()
    (checkpoint.aside_of(directory, progress) / "state" / "__0_0.distcp").write_bytes(bytes(range(epoch, epoch + 100)))
    return checkpoint.commit(directory, progress, config=config, weights=weights, state=state)


def test_round_trip_is_exact(tmp_path: Path) -> None:
    path = save(tmp_path, 3, 0.25)
    assert path.name == "epoch_0003"
    saved = checkpoint.load(path)
    generator = torch.Generator().manual_seed(3)
    assert torch.equal(saved.weights["layer.weight"], torch.randn(8, 4, generator=generator))
    assert torch.equal(saved.state["optimizer"]["exp_avg"], torch.randn(3, generator=generator))
    assert saved.state["rng"]["state"] == 2**100 + 3
    assert saved.state["names"] == ["a"]
    assert (saved.meta.epoch, saved.meta.step, saved.meta.metrics) == (3, 40, {"val/success_auc": 0.25})
    assert saved.meta.digest == CONFIG.digest()
    assert from_flat(saved.meta.config) == CONFIG
    assert saved.meta.environment["torch"] == torch.__version__.split("+")[0]


def inside(directory: Path, epoch: int, step: int) -> Path:
    progress = Progress(epoch=epoch, step=step, metrics=None)
    checkpoint.begin(directory, progress)
    return checkpoint.commit(directory, progress, config=CONFIG, weights={}, state={})


def test_checkpoints_inside_an_epoch_are_older_than_its_end(tmp_path: Path) -> None:
    save(tmp_path, 0, 0.9)
    assert inside(tmp_path, 1, 13).name == "epoch_0001_step_000013"
    inside(tmp_path, 1, 17)
    assert checkpoint.latest(tmp_path) == tmp_path / "epoch_0001_step_000017"
    assert checkpoint.best(tmp_path) == tmp_path / "epoch_0000"
    assert [entry["epoch"] for entry in checkpoint.history(tmp_path)] == [0]
    meta = checkpoint.read_meta(tmp_path / "epoch_0001_step_000017")
    assert (meta.epoch, meta.step, meta.metrics) == (1, 17, None)
    save(tmp_path, 1, 0.1)
    assert checkpoint.latest(tmp_path) == tmp_path / "epoch_0001"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["epoch_0000", "epoch_0001", "epoch_0001_step_000017"]
    save(tmp_path, 2, 0.2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["epoch_0000", "epoch_0001", "epoch_0002"]


def test_best_and_the_newest_two_are_kept(tmp_path: Path) -> None:
    for epoch, score in enumerate([0.3, 0.6, float("nan"), 0.5, 0.6]):
        save(tmp_path, epoch, score)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["epoch_0001", "epoch_0003", "epoch_0004"]
    assert checkpoint.latest(tmp_path) == tmp_path / "epoch_0004"
    assert checkpoint.best(tmp_path) == tmp_path / "epoch_0001"  # the earlier of equals
    assert [entry["epoch"] for entry in checkpoint.history(tmp_path)] == [0, 1, 2, 3, 4]
    assert checkpoint.history(tmp_path)[3]["metrics"] == {"val/success_auc": 0.5}


def test_a_damaged_checkpoint_pushes_out_no_whole_one(tmp_path: Path) -> None:
    for epoch, score in enumerate([0.6, 0.3, 0.2]):
        save(tmp_path, epoch, score)
    (tmp_path / "epoch_0002" / "weights.safetensors").write_bytes(b"cut short")
    save(tmp_path, 3, 0.4)
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["epoch_0000", "epoch_0001", "epoch_0003"]
    assert checkpoint.best(tmp_path) == tmp_path / "epoch_0000"


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "manifest"])
@pytest.mark.parametrize("name", ["weights.safetensors", "state.pt", "state/__0_0.distcp", "meta.json"])
def test_damaged_newest_is_reported_and_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, damage: str) -> None:
    save(tmp_path, 0, 0.9)
    file = save(tmp_path, 1, 0.1) / name
    if damage == "truncate":
        os.truncate(file, file.stat().st_size // 2)
    elif damage == "flip":
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    elif damage == "remove":
        file.unlink()
    else:
        (tmp_path / "epoch_0001" / "manifest.json").write_text("{")
    with caplog.at_level(logging.WARNING):
        assert checkpoint.latest(tmp_path) == tmp_path / "epoch_0000"
    assert "epoch_0001" in caplog.text
    with pytest.raises(checkpoint.CheckpointError, match="epoch_0001"):
        checkpoint.load(tmp_path / "epoch_0001")
    assert len(checkpoint.history(tmp_path)) == 1  # what a resumed run goes on from
    save(tmp_path, 1, 0.2)  # the repeated epoch replaces it
    assert checkpoint.latest(tmp_path) == tmp_path / "epoch_0001"
    assert [entry["metrics"]["val/success_auc"] for entry in checkpoint.history(tmp_path)] == [0.9, 0.2]


@pytest.mark.parametrize("content", [b"null", b'{"meta.json": 3}', b'{"meta.json": {"bites": 3, "sha256": ""}}', b'{"\xff": 1}'])
@pytest.mark.parametrize("name", ["manifest.json", "meta.json"])
def test_altered_descriptions_are_passed_over(tmp_path: Path, name: str, content: bytes) -> None:
    save(tmp_path, 0, 0.9)
    (save(tmp_path, 1, 0.1) / name).write_bytes(content)
    assert checkpoint.latest(tmp_path) == checkpoint.best(tmp_path) == tmp_path / "epoch_0000"
    assert len(checkpoint.recorded(tmp_path)) == (2 if name == "manifest.json" else 1)
    with pytest.raises(checkpoint.CheckpointError, match=name if name == "manifest.json" else "differs|has"):
        checkpoint.load(tmp_path / "epoch_0001")


def test_claim_refuses_another_configuration_and_reuse(tmp_path: Path) -> None:
    home.claim(tmp_path, CONFIG, resume=False)
    assert home.config_of(tmp_path) == CONFIG
    with pytest.raises(ConfigError, match="--resume"):
        home.claim(tmp_path, CONFIG, resume=False)
    home.claim(tmp_path, from_flat({"workers": 2, "name": "renamed"}, CONFIG), resume=True)  # neither is part of the identity
    other = from_flat({"optim.lr": 1e-5}, CONFIG)
    with pytest.raises(ConfigError) as caught:
        home.claim(tmp_path, other, resume=True)
    for part in (str(tmp_path), CONFIG.digest(), other.digest(), "choose another directory"):
        assert part in str(caught.value)
    (tmp_path / "run.json").write_text("[]")
    with pytest.raises(ConfigError, match=r"run\.json"):
        home.claim(tmp_path, CONFIG, resume=True)


def test_claim_removes_what_a_dead_process_left(tmp_path: Path) -> None:
    save(tmp_path, 0)
    orphan = tmp_path / ".epoch_0001.tmp"
    orphan.mkdir()
    (orphan / "weights.safetensors").write_bytes(b"half")
    assert checkpoint.latest(tmp_path) == tmp_path / "epoch_0000"
    home.claim(tmp_path, CONFIG, resume=True)
    assert not orphan.exists()
    assert checkpoint.latest(tmp_path) == tmp_path / "epoch_0000"


def test_a_run_is_trained_by_one_process_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home.claim(tmp_path, CONFIG, resume=False)
    writing = tmp_path / ".epoch_0001.tmp"
    writing.mkdir()
    code = f"import time; from pathlib import Path; from srft.training import home\nwith home.occupied(Path({str(tmp_path)!r})):\n"
    other = subprocess.Popen([sys.executable, "-c", code + "    print('in', flush=True); time.sleep(60)"], stdout=subprocess.PIPE)
    assert other.stdout is not None
    assert other.stdout.readline() == b"in\n"
    monkeypatch.setattr(home, "PATIENCE", 0.3)
    with pytest.raises(ConfigError, match="another process is training this run"):
        home.claim(tmp_path, CONFIG, resume=True)
    assert writing.exists()
    other.kill()
    other.wait()
    home.claim(tmp_path, CONFIG, resume=True)
    assert not writing.exists()


def test_full_disk_leaves_earlier_checkpoints(tmp_path: Path) -> None:
    save(tmp_path, 0)
    limit, ignore = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, limit[1]))
    try:
        with pytest.raises(Exception):  # noqa: B017 - safetensors, torch and the file system each have their own
            save(tmp_path, 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, ignore)
    home.claim(tmp_path, CONFIG, resume=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "epoch_0000", "run.json"]
    assert checkpoint.latest(tmp_path) == tmp_path / "epoch_0000"


def test_state_with_code_is_not_loaded(tmp_path: Path) -> None:
    progress = Progress(epoch=0, step=1, metrics={})
    checkpoint.begin(tmp_path, progress)
    path = checkpoint.commit(tmp_path, progress, config=CONFIG, weights={}, state={"path": tmp_path})
    with pytest.raises(Exception, match=r"weights_only|Weights only"):
        checkpoint.load(path)


def test_import_needs_no_torch() -> None:
    code = "import sys, srft.training.checkpoint, srft.training.sparsity_actor; print(json.dumps(sorted(sys.modules)))"
    modules = json.loads(subprocess.run([sys.executable, "-c", f"import json; {code}"], capture_output=True, text=True, check=True).stdout)
    assert not {"torch", "ray", "mlflow", "timm"} & set(modules)
