"""Weights in and out: safetensors files, and the key map that carries an RGB tracker into two streams."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from srft.files import aside
from srft.model.architecture import PRESETS
from srft.model.tracker import MultiModalTracker


def two_stream_sources(arch_fusion_after: tuple[int, ...], names: Mapping[str, object] | list[str]) -> dict[str, str]:
    """Where each weight of a two-stream tracker comes from in the single-stream one.

    Embedding, blocks and final norm are copied to both streams; the block after which the streams are fused is also copied into
    the fusion block; positions and head keep their names (SRTrack's map).

    Args:
        arch_fusion_after: blocks after which the streams are fused.
        names: parameter and buffer names of the two-stream tracker.

    Returns:
        Two-stream name to single-stream name.
    """

    def source(name: str) -> str:
        name = re.sub(r"^backbone\.(patch_embed|norm)_(rgb|aux)\.", r"backbone.\1.", name)
        name = re.sub(r"^backbone\.blocks_(rgb|aux)\.", "backbone.blocks.", name)
        return re.sub(r"^backbone\.fusion\.(\d+)\.", lambda m: f"backbone.blocks.{arch_fusion_after[int(m[1])]}.", name)

    return {name: source(name) for name in names}


def to_two_streams(single: MultiModalTracker) -> MultiModalTracker:
    """A two-stream tracker that starts from an RGB tracker.

    Args:
        single: the trained RGB tracker.

    Returns:
        The two-stream tracker in eval mode; every weight is a copy of one of the RGB tracker's.
    """
    double = MultiModalTracker(single.arch, streams=2)
    weights = single.state_dict()
    sources = two_stream_sources(single.arch.fusion_after, list(double.state_dict()))
    double.load_state_dict({name: weights[source] for name, source in sources.items()})
    return double.eval()


def weights_path(name: str | Path) -> Path:
    """The file behind a name.

    Args:
        name: a path, or the name of a file shipped with the package (``tiny_rgb``).

    Returns:
        An existing safetensors file.

    Raises:
        FileNotFoundError: neither exists; the message lists what is shipped.
    """
    path = Path(name)
    if path.suffix == ".safetensors" and path.exists():
        return path
    shipped = Path(str(resources.files("srft"))) / "weights"
    inside = shipped / f"{name}.safetensors"
    if inside.exists():
        return inside
    have = ", ".join(sorted(p.stem for p in shipped.glob("*.safetensors"))) or "none"
    raise FileNotFoundError(f"no weights {str(name)!r}: neither a .safetensors file nor a shipped name ({have})")


def load_tracker(path: str | Path, *, streams: int | None = None) -> MultiModalTracker:
    """Read a tracker written by :func:`save_tracker`.

    Args:
        path: file or shipped name.
        streams: 2 turns an RGB tracker into a two-stream one by the key map; None keeps what the file holds.

    Returns:
        The tracker in eval mode. A file that is not found is a FileNotFoundError that lists the shipped names.

    Raises:
        ValueError: the file is damaged or not one of ours, its keys or shapes do not fit, or two streams are to become one.
    """
    path = weights_path(path)
    try:
        with safe_open(path, framework="pt") as file:
            meta = file.metadata() or {}
        weights = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path}: not a complete safetensors file ({error}); fetch or write it again") from None
    if meta.get("preset") not in PRESETS or meta.get("streams") not in ("1", "2"):
        raise ValueError(
            f"{path}: its metadata says preset {meta.get('preset')!r} and streams {meta.get('streams')!r}; "
            f"expected one of {', '.join(PRESETS)} and 1 or 2, as srft.model.pretrained.save_tracker writes them"
        )
    tracker = MultiModalTracker.from_preset(meta["preset"], int(meta["streams"]))
    expected = tracker.state_dict()
    missing, unexpected = sorted(expected.keys() - weights.keys()), sorted(weights.keys() - expected.keys())
    reshaped = [f"{k} {tuple(weights[k].shape)}" for k in expected.keys() & weights.keys() if weights[k].shape != expected[k].shape]
    if missing or unexpected or reshaped:
        raise ValueError(
            f"{path} does not fit preset {meta['preset']}: missing {missing}, unexpected {unexpected}, of another shape {reshaped}"
        )
    tracker.load_state_dict(weights)
    tracker.eval()
    if streams is None or streams == tracker.streams:
        return tracker
    if streams == 2:
        return to_two_streams(tracker)
    raise ValueError(f"{path} holds {tracker.streams} streams; streams={streams} cannot be made from it")


def save_tracker(tracker: MultiModalTracker, path: str | Path, *, preset: str, about: Mapping[str, object]) -> None:
    """Write weights as safetensors, aside and then renamed.

    Args:
        tracker: what to save.
        path: target file, ``.safetensors``.
        preset: its size's name.
        about: JSON-able facts kept in the file's metadata (training, measured success, ...).

    Raises:
        ValueError: the tracker is not of that preset, so that the file could not be read again.
    """
    path = Path(path)
    if PRESETS.get(preset) != tracker.arch:
        raise ValueError(f"{path}: the tracker is not of preset {preset!r} ({tracker.arch}); name the preset it was built from")
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in tracker.state_dict().items()}
    with aside(path) as temporary:
        save_file(weights, temporary, metadata={"preset": preset, "streams": str(tracker.streams), "about": json.dumps(dict(about))})
