"""Trackers for other runtimes: ONNX files, and programs of torch.export."""

from __future__ import annotations

import importlib.util
import json
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from srft.files import aside
from srft.model.architecture import preset_of
from srft.model.normalization import MEAN, STD, normalize
from srft.model.tracker import MultiModalTracker, TrackerOutput

__all__ = ["TOLERANCE", "describe", "export"]

TOLERANCE = 1e-4
"""How far boxes and score maps may be from the network's; size and offset maps ten times as far, as offsets are in cells."""

_OPSET = 18
_INPUTS = ("template", "search")


class _Exported(nn.Module):
    """The network on what the file will take, with a plain tuple for an answer."""

    def __init__(self, network: MultiModalTracker, *, uint8: bool) -> None:
        super().__init__()
        self.network, self.uint8 = network, uint8

    def forward(self, template: Tensor, search: Tensor) -> tuple[Tensor, ...]:
        if self.uint8:
            template, search = normalize(template), normalize(search)
        return tuple(self.network(template, search))


def describe(network: MultiModalTracker, *, uint8: bool) -> dict[str, str]:
    """What a program that uses the file needs to know, written into it as metadata.

    Args:
        network: the tracker.
        uint8: whether the file takes crops rather than normalized tensors.

    Returns:
        Text by name: numbers and lists are JSON.
    """
    arch, channels = network.arch, 3 * network.streams
    facts = {
        "streams": network.streams,
        "input": f"uint8 [B, H, W, {channels}]" if uint8 else f"float32 [B, {channels}, H, W], (pixel / 255 - mean) / std per channel",
        "channels": "RGB" if network.streams == 1 else "RGB, then the auxiliary image",
        "mean": list(MEAN) * network.streams,
        "std": list(STD) * network.streams,
        "template_px": arch.template_px,
        "search_px": arch.search_px,
        "template_factor": arch.template_factor,
        "search_factor": arch.search_factor,
        "boxes": "cx, cy, w, h at the highest score, as fractions of the search region",
    }
    return {
        "preset": preset_of(arch) or "",
        **{name: value if isinstance(value, str) else json.dumps(value) for name, value in facts.items()},
    }


def export(network: MultiModalTracker, path: str | Path, *, uint8: bool = False, check: bool = False) -> dict[str, float]:
    """Write a tracker as a file that runs without this package, for any number of targets at once.

    Inputs are ``template`` and ``search``, outputs ``score_map`` ``[B, 1, S, S]``, ``size_map`` and ``offset_map`` ``[B, 2, S, S]`` and
    ``boxes`` ``[B, 4]`` (:class:`srft.model.tracker.TrackerOutput`).

    Args:
        network: on the CPU and in eval mode afterwards.
        path: ``.onnx`` (opset 18; needs onnx and onnxscript), or ``.pt2``, a program of torch.export.
        uint8: take crops ``[B, H, W, C]`` uint8 as :func:`srft.data.crops.crop` gives them, and normalize inside.
        check: run the file on random crops, one and three at once, before it gets its name.

    Returns:
        The largest difference to the network by output, empty without ``check``.

    Raises:
        ValueError: the suffix is another, the packages are not installed, or the file's answers are not the network's.
    """
    path, network = Path(path), network.cpu().eval()
    if path.suffix not in (".onnx", ".pt2"):
        raise ValueError(f"{path}: expected a name ending in .onnx or .pt2")
    if path.suffix == ".onnx":
        _need("onnx", "onnxscript", remedy="run uv sync --extra export, or write a .pt2 file")
    if check and path.suffix == ".onnx":
        _need("onnxruntime", remedy="run uv pip install onnxruntime, or export without --check")
    example = _crops(network, 2, uint8=uint8)
    batch = torch.export.Dim("batch", min=1, max=4096)
    module, shapes = _Exported(network, uint8=uint8).eval(), {name: {0: batch} for name in _INPUTS}
    with aside(path) as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporters about themselves
        with torch.no_grad():
            program = torch.export.export(module, example, dynamic_shapes=shapes)
            if path.suffix == ".pt2":
                torch.export.save(program, temporary, extra_files={"about.json": json.dumps(describe(network, uint8=uint8))})
            else:
                onnx = torch.onnx.export(
                    program, input_names=_INPUTS, output_names=TrackerOutput._fields, opset_version=_OPSET, dynamo=True, verbose=False
                )
                if onnx is None:
                    raise ValueError(f"{path}: torch.onnx.export gave no model")
                onnx.model.metadata_props.update(describe(network, uint8=uint8))
                onnx.save(temporary, external_data=False)
        return _differences(network, _runner(temporary), path, uint8=uint8) if check else {}


def _need(*packages: str, remedy: str) -> None:
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"{' and '.join(missing)} not installed: {remedy}")


def _crops(network: MultiModalTracker, batch: int, *, uint8: bool) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(batch)
    sides = network.arch.template_px, network.arch.search_px
    template, search = (torch.randint(0, 256, (batch, s, s, 3 * network.streams), dtype=torch.uint8, generator=generator) for s in sides)
    return (template, search) if uint8 else (normalize(template), normalize(search))


def _runner(path: Path) -> Callable[[Tensor, Tensor], list[np.ndarray]]:
    if path.suffix == ".pt2":
        module = torch.export.load(path).module()
        return lambda *crops: [value.detach().numpy() for value in module(*crops)]
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = list(TrackerOutput._fields)
    return lambda template, search: [np.asarray(a) for a in session.run(names, {"template": template.numpy(), "search": search.numpy()})]


def _differences(
    network: MultiModalTracker, run: Callable[[Tensor, Tensor], list[np.ndarray]], path: Path, *, uint8: bool
) -> dict[str, float]:
    largest = dict.fromkeys(TrackerOutput._fields, 0.0)
    for batch in (1, 3):
        crops = _crops(network, batch, uint8=uint8)
        with torch.no_grad():
            expected = _Exported(network, uint8=uint8)(*crops)
        for name, got, want in zip(largest, run(*crops), expected, strict=True):
            difference = float(np.abs(got - want.numpy()).max()) if got.shape == want.shape else np.inf
            largest[name] = float(np.maximum(largest[name], difference))  # keeps NaN
    allowed = {name: TOLERANCE * (10 if name in ("size_map", "offset_map") else 1) for name in largest}
    if not all(largest[name] <= allowed[name] for name in largest):
        raise ValueError(f"{path}: its answers differ from the network's by {largest}; expected at most {allowed}; the file is not kept")
    return largest
