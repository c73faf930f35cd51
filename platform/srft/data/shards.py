"""Packs: benchmarks as a few large Arrow files instead of hundreds of thousands of images, on this machine or in an object store.

A pack is a folder: ``manifest.json``, and shards of whole sequences. ``train-00000.arrow`` holds encoded images, a row a frame;
``train-00000.index.arrow`` the annotation, a row a sequence. Frames are read through a memory map; a shard of a remote pack is fetched when
the first of its frames is asked for.
"""

from __future__ import annotations

import functools
import json
import os
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from srft.config import Modality
from srft.data.benchmarks.layouts import DataError
from srft.data.images import StoredFrame, StoredImage, decode_frame
from srft.data.sequence import Sequence
from srft.files import sha256

__all__ = [
    "FORMAT",
    "MANIFEST",
    "ROWS",
    "Manifest",
    "PackedFrames",
    "ShardFile",
    "fetch",
    "index_of",
    "is_pack",
    "local_folder",
    "open_pack",
    "place_of",
    "read_index",
    "read_manifest",
    "shard_sequences",
]

FORMAT = 1
"""Version of the files, in the manifest."""
MANIFEST = "manifest.json"
ROWS = 64
"""Frames per record batch; the last of a shard may have fewer."""


def place_of(root: str | Path) -> tuple[Any, str]:
    """Where a pack is.

    Args:
        root: a folder, or an address that fsspec knows, such as ``s3://bucket/pack``.

    Returns:
        The file system, and the path in it.
    """
    filesystem, path = url_to_fs(str(root))
    return filesystem, path.rstrip("/")


def local_folder(root: str | Path) -> Path | None:
    """The pack's own folder, if it is on this machine's file system.

    Args:
        root: of the pack.

    Returns:
        The folder; None for packs elsewhere.
    """
    filesystem, path = place_of(root)
    return Path(path) if isinstance(filesystem, LocalFileSystem) else None


def index_of(file: str) -> str:
    """File of a shard's annotation.

    Args:
        file: of the shard.

    Returns:
        Its name.
    """
    return file.removesuffix(".arrow") + ".index.arrow"


@dataclass(frozen=True, kw_only=True)
class ShardFile:
    """One shard, as the manifest lists it."""

    file: str
    split: str
    sequences: int
    frames: int
    absent: int
    """Frames without visible target."""
    bytes: int
    sha256: str
    index_sha256: str

    @property
    def index(self) -> str:
        """File of its annotation."""
        return index_of(self.file)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a pack holds and where it is from."""

    benchmark: str
    modality: str
    """``rgb`` if the auxiliary frames were left out."""
    licence: str
    """Of the images, as whoever packed them stated it."""
    source: str
    """Where they are from."""
    context: float | None
    """Of training frames only this many target sizes around the box were kept, encoded again; None for whole frames as they were."""
    quality: int | None
    """JPEG quality of frames that were encoded again."""
    shards: tuple[ShardFile, ...]
    format: int = FORMAT
    made_with: dict[str, str] = field(default_factory=dict)
    """Versions of the software."""

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of its parts."""
        return tuple(dict.fromkeys(shard.split for shard in self.shards))


def is_pack(root: str | Path) -> bool:
    """Whether a folder is a pack.

    Args:
        root: see :func:`place_of`.

    Returns:
        True if it has a manifest, or shards: then its making was interrupted, and :func:`read_manifest` says so.
    """
    filesystem, path = place_of(root)
    return bool(filesystem.exists(f"{path}/{MANIFEST}") or filesystem.glob(f"{path}/*.index.arrow"))


def read_manifest(root: str | Path) -> Manifest:
    """Read what a pack holds.

    Args:
        root: of the pack.

    Returns:
        The manifest.

    Raises:
        DataError: there is none, or it is not one.
    """
    filesystem, path = place_of(root)
    where = f"{root}/{MANIFEST}"
    try:
        content: Any = json.loads(filesystem.cat_file(f"{path}/{MANIFEST}"))
    except FileNotFoundError:
        raise DataError(f"{where}: missing; the pack is not finished, or this is none: run srft data pack again to finish it") from None
    except (ValueError, UnicodeDecodeError) as error:
        raise DataError(f"{where}: not JSON ({error}); run srft data pack again") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else content
        raise DataError(f"{where}: format is {found!r}; expected {FORMAT}. Pack the benchmark again with this version")
    try:
        fields: dict[str, Any] = {**content, "shards": tuple(ShardFile(**shard) for shard in content["shards"])}
        return Manifest(**fields)
    except (KeyError, TypeError) as error:
        raise DataError(f"{where}: {error}; run srft data pack again") from None


def fetch(root: str | Path, file: str, checksum: str) -> Path:
    """Bring a file of a pack to this machine, if it is not there yet.

    Args:
        root: of the pack.
        file: its name.
        checksum: SHA-256 by the manifest, compared when a file has been fetched.

    Returns:
        Its path: in the pack itself on a local file system, else below SRFT_CACHE, or ``~/.cache/srft``.

    Raises:
        DataError: it is missing, or what came is not what the manifest says.
    """
    if folder := local_folder(root):
        if not (local := folder / file).is_file():
            raise DataError(f"{local}: missing; listed in {MANIFEST}. Copy it again, or delete {MANIFEST} and run srft data pack again")
        return local
    kept = Path(os.environ.get("SRFT_CACHE") or Path.home() / ".cache" / "srft") / "packs" / checksum[:2] / f"{checksum}.arrow"
    if kept.is_file():
        return kept
    kept.parent.mkdir(parents=True, exist_ok=True)
    part = kept.with_name(f".{uuid.uuid4().hex}.arrow")  # other processes of this machine may fetch the same
    try:
        filesystem, path = place_of(root)
        filesystem.get_file(f"{path}/{file}", str(part))
        if (found := sha256(part)) != checksum:
            raise DataError(f"{root}/{file}: SHA-256 is {found}, in {MANIFEST} {checksum}; the file is damaged. Copy the pack again")
        os.replace(part, kept)
    except FileNotFoundError:
        raise DataError(f"{root}/{file}: missing; listed in {MANIFEST}. Copy the pack again") from None
    finally:
        part.unlink(missing_ok=True)
    return kept


def read_index(root: str | Path, shard: ShardFile) -> list[dict[str, Any]]:
    """Annotation of a shard's sequences.

    Args:
        root: of the pack.
        shard: which.

    Returns:
        A row a sequence: name, boxes, absent, attributes, offset, renderings.

    Raises:
        DataError: the file is missing, damaged, or does not hold what the manifest says.
    """
    path = fetch(root, shard.index, shard.index_sha256)
    rows = _arrow(path, shard.index_sha256).read_all().to_pylist() if path.stat().st_size else []
    frames = sum(len(row["absent"]) for row in rows)
    if (len(rows), frames) != (shard.sequences, shard.frames):
        raise DataError(
            f"{path}: {len(rows)} sequences of {frames} frames; expected {shard.sequences} of {shard.frames}, by {MANIFEST}. Copy it again"
        )
    return rows


def open_pack(
    root: str | Path, *, split: str = "train", modality: Modality | None = None, benchmark: str | None = None
) -> tuple[Sequence, ...]:
    """Open the sequences of a pack: the same, in the same order, as of the benchmark that was packed.

    Args:
        root: of the pack, a folder or an address that fsspec knows.
        split: one of the manifest's.
        modality: ``rgb`` leaves the auxiliary frames out; None takes what is there.
        benchmark: that it must be of; None takes any.

    Returns:
        The sequences; frames are read when they are asked for.

    Raises:
        DataError: the pack is of another benchmark, or has no such split or modality. So is whatever is wrong with a shard.
    """
    manifest = read_manifest(root)
    if benchmark not in (None, manifest.benchmark):
        raise DataError(f"{root}: a pack of {manifest.benchmark}; expected one of {benchmark}")
    shards = [shard for shard in manifest.shards if shard.split == split]
    if not shards:
        raise DataError(f"{root}: no split {split!r}; the pack holds {', '.join(manifest.splits)}. Pack it with --splits {split}")
    if modality not in (None, "rgb", manifest.modality):
        raise DataError(f"{root}: modality is {modality!r}; the pack holds {manifest.modality}")
    rgb_only = "rgb" in (modality, manifest.modality)
    return tuple(sequence for shard in shards for sequence in shard_sequences(root, shard, rgb_only=rgb_only))


def shard_sequences(root: str | Path, shard: ShardFile, *, rgb_only: bool = False) -> tuple[Sequence, ...]:
    """Open the sequences of one shard.

    Args:
        root: of the pack.
        shard: which.
        rgb_only: leave the auxiliary frames out.

    Returns:
        The sequences. A file that is missing or of another size than the manifest says is a DataError.
    """
    if local_folder(root):
        _whole(root, shard)
    first, sequences = 0, []
    for row in read_index(root, shard):
        absent = np.array(row["absent"], bool)
        renderings = tuple(row["renderings"])[: 1 if rgb_only else None]
        frames = PackedFrames(root=str(root), shard=shard, name=row["name"], first=first, count=len(absent), renderings=renderings)
        first += len(absent)
        boxes = np.array(row["boxes"], np.float64).reshape(-1, 4)
        attributes = tuple(row["attributes"])
        sequences.append(Sequence(name=row["name"], frames=frames, boxes=boxes, absent=absent, attributes=attributes, offset=row["offset"]))
    return tuple(sequences)


@dataclass(frozen=True, kw_only=True)
class PackedFrames:
    """The frames of one sequence of a pack."""

    root: str
    shard: ShardFile
    name: str
    """Of the sequence."""
    first: int
    """Its first row in the shard."""
    count: int
    renderings: tuple[str, ...]
    """Of the images that are wanted, see ``srft.data.images.RENDERINGS``."""

    def __len__(self) -> int:
        return self.count

    def stored(self, index: int) -> StoredFrame:
        """The images of a frame as they are stored; no byte of them is copied.

        Args:
            index: which frame.

        Returns:
            Its images, encoded.

        Raises:
            IndexError: there is no such frame.
            DataError: the shard cannot be read.
        """
        if not 0 <= index < self.count:
            raise IndexError(f"frame {index} of sequence {self.name}; it has {self.count}")
        path = _local(self.root, self.shard)
        at, row = divmod(self.first + index, ROWS)
        try:
            batch = _batch(path, self.shard.sha256, at)
            columns = [batch[name][row].as_buffer() for name in ("rgb", "aux")[: len(self.renderings)]]
            where = None
            if "frame_height" in batch.schema.names:
                where = [int(batch[name][row].as_py()) for name in ("frame_height", "frame_width", "left", "top")]
        except (KeyError, IndexError, ValueError, OSError) as error:
            raise DataError(f"{path}: row {self.first + index} cannot be read ({error}); the shard is damaged, copy it again") from error
        name = f"{self.root}/{self.shard.file}, sequence {self.name}, frame {index}"
        images = tuple(
            StoredImage(memoryview(data).cast("B"), rendering, f"{name}, {kind}")
            for data, rendering, kind in zip(columns, self.renderings, ("rgb", "aux"), strict=False)
        )
        return StoredFrame(images, (where[0], where[1]), (where[2], where[3])) if where else StoredFrame(images)

    def __getitem__(self, index: int) -> np.ndarray:
        return decode_frame(self.stored(index))


def _whole(root: str | Path, shard: ShardFile) -> Path:
    path = fetch(root, shard.file, shard.sha256)
    if (size := path.stat().st_size) != shard.bytes:
        raise DataError(f"{root}/{shard.file}: {size} bytes; expected {shard.bytes}, by {MANIFEST}. The file is damaged, copy it again")
    return path


# What is kept open is kept by checksum: another pack may take a pack's place while a process lives.
_local = functools.lru_cache(maxsize=4096)(_whole)


@functools.lru_cache(maxsize=4096)
def _batch(path: Path, checksum: str, at: int) -> Any:
    return _arrow(path, checksum).get_batch(at)  # addresses in the memory map, no images


@functools.lru_cache(maxsize=512)
def _arrow(path: Path, checksum: str) -> Any:
    import pyarrow as pa

    try:
        return pa.ipc.open_file(pa.memory_map(str(path)))
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path}: not an Arrow file ({error}); the file is damaged, copy it again") from None
