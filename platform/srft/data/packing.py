"""Making packs (see ``srft.data.shards``), and looking through them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from srft.config import Modality
from srft.data.benchmarks import DataError, open_benchmark
from srft.data.benchmarks.check import Counts, Problem, Report
from srft.data.benchmarks.layouts import layout_of
from srft.data.benchmarks.splits import Split
from srft.data.crops import Window, window
from srft.data.images import Data, StoredFrame, StoredFrames, StoredImage, decode, same_size
from srft.data.processes import clean_processes
from srft.data.sequence import Sequence
from srft.data.shards import MANIFEST, ROWS, Manifest, ShardFile, fetch, index_of, local_folder, place_of, read_manifest, shard_sequences
from srft.files import environment, sha256, sync

__all__ = ["check_pack", "crop_context", "pack"]

_PART = ".part-"


class _Plan(NamedTuple):
    # One shard to write.
    file: str
    split: str
    sequences: tuple[Sequence, ...]
    context: float | None
    quality: int
    identity: str


def pack(
    benchmark: str,
    root: str | Path,
    out: str | Path,
    *,
    splits: tuple[Split, ...] = ("train", "val"),
    modality: Modality | None = None,
    partial: bool = False,
    context: float | None = None,
    quality: int = 95,
    frames_per_shard: int = 4000,
    workers: int | None = None,
    licence: str = "not stated",
    source: str = "not stated",
    on_shard: Callable[[int, int], object] | None = None,
) -> Manifest:
    """Pack a benchmark. What an interrupted call has finished is kept: the same call goes on.

    A shard whose sequences, boxes or flags are others now is written again; that images were replaced is not noticed.

    Args:
        benchmark: one of ``srft.data.benchmarks.LAYOUTS``.
        root: its folder.
        out: of the pack: a folder, or an address that fsspec knows.
        splits: parts to pack.
        modality: ``rgb`` leaves the auxiliary frames out.
        partial: leave out sequences that are listed and not on the disk.
        context: keep only this many target sizes around the box of training frames, see :func:`crop_context`. Other splits are tracked
            from frame to frame and stay whole.
        quality: JPEG quality of what is encoded again.
        frames_per_shard: sequences are added to a shard until it has as many.
        workers: processes; None takes as many as there are cores.
        licence: of the images, for the manifest.
        source: of the images, for the manifest.
        on_shard: called with the frames of a shard that is finished, or was already, and with the frames of all.

    Returns:
        The manifest, which is written last.

    Raises:
        DataError: the place holds another pack. Or something is wrong with the benchmark: see ``srft data check``.
        ValueError: a setting is out of range.
    """
    if context is not None and not 2 <= context < np.inf:
        raise ValueError(f"context is {context}; expected at least 2 target sizes, and what search regions need: about 10")
    if frames_per_shard < 1 or not 1 <= quality <= 100 or (workers is not None and workers < 1):
        raise ValueError(
            f"frames_per_shard {frames_per_shard}, quality {quality}, workers {workers}; expected positive, 1 to 100, positive"
        )
    kind = modality or layout_of(benchmark).modality
    plans: list[_Plan] = []
    for split in splits:
        sequences = open_benchmark(benchmark, root, split=split, modality=modality, partial=partial)
        kept = context if split in ("train", "trainval") else None
        for number, some in enumerate(_grouped(sequences, frames_per_shard)):
            described = hashlib.sha256(f"{benchmark}|{modality}|{split}|{kept}|{quality if kept else None}".encode())
            for s in some:
                described.update(f"|{s.name}:{len(s)}:{s.offset}:{s.attributes}".encode() + s.boxes.tobytes() + s.absent.tobytes())
            identity = described.hexdigest()[:16]
            plans.append(_Plan(f"{split}-{number:05d}.arrow", split, some, kept, quality, identity))
    files = {plan.file for plan in plans}
    filesystem, path = place_of(out)
    if there := filesystem.exists(f"{path}/{MANIFEST}"):
        found = read_manifest(out)
        settings = (found.benchmark, found.modality, found.context, found.quality)
        if {shard.file for shard in found.shards} != files or settings != (benchmark, kind, context, quality if context else None):
            raise DataError(
                f"{out}: holds another pack ({found.benchmark}, {found.modality}, context {found.context}, quality {found.quality}, "
                f"{len(found.shards)} shards); choose another place or delete it"
            )
    if folder := local_folder(out):
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(f"{_PART}*"):  # of a call that was killed
            shutil.rmtree(left)
    total, done = sum(len(s) for plan in plans for s in plan.sequences), {}
    todo = []
    for plan in plans:
        finished = _finished(out, plan)
        if finished is None:
            todo.append(plan)
        else:
            done[plan.file] = finished
            if on_shard:
                on_shard(finished.frames, total)
    if todo and there:  # of shards that are about to be others
        filesystem.rm_file(f"{path}/{MANIFEST}")
    for shard in _written(out, todo, workers or os.cpu_count() or 1):
        done[shard.file] = shard
        if on_shard:
            on_shard(shard.frames, total)
    manifest = Manifest(
        benchmark=benchmark,
        modality=kind,
        licence=licence,
        source=source,
        context=context,
        quality=quality if context else None,
        shards=tuple(done[plan.file] for plan in plans),
        made_with=environment(),
    )
    with _workspace(out) as folder:
        file = folder / MANIFEST
        file.write_text(json.dumps(dataclasses.asdict(manifest), indent=1))
        _publish(file, out)
    return manifest


def crop_context(stored: StoredFrame, box: np.ndarray, factor: float, quality: int) -> StoredFrame:
    """Keep what is around the target, encoded again for cheap decoding: JPEGs, those of the auxiliary modality without colour subsampling.

    Renderings, such as colours for depth, need the whole frame and are applied before. What is cut off appears black, as if outside the
    frame: for training crops of the published sizes and jitter 10 target sizes cut off next to nothing.

    Args:
        stored: the frame.
        box: ``[4]`` ltwh, pixels.
        factor: side of the square, in target sizes.
        quality: 1 to 100.

    Returns:
        The frame, with its size and the place of the part.
    """
    import simplejpeg

    parts = [decode(image) for image in stored.images]
    same_size(stored, parts)
    height, width = stored.size or (parts[0].height, parts[0].width)
    square = window(box, factor)
    (x1, x2), (y1, y2) = _inside(square.left, square, width), _inside(square.top, square, height)
    images = []
    for image, part, subsampling in zip(stored.images, parts, ("420", "444"), strict=False):
        pixels = np.ascontiguousarray(part.pixels[y1:y2, x1:x2])
        images.append(StoredImage(simplejpeg.encode_jpeg(pixels, quality, "RGB", subsampling), "image", image.name))
    return StoredFrame(tuple(images), (height, width), (x1, y1))


def check_pack(root: str | Path, *, images: bool = False, on_sequence: Callable[[int], object] | None = None) -> Report:
    """Look through a pack: files, checksums, counts, and images.

    Args:
        root: of the pack.
        images: decode every image; otherwise the first and the last of each sequence.
        on_sequence: called with the number of sequences, then with 0 after each.

    Returns:
        The report; it lists everything that is wrong.
    """
    manifest = read_manifest(root)
    report = Report(benchmark=manifest.benchmark, root=str(root))
    if on_sequence:
        on_sequence(sum(shard.sequences for shard in manifest.shards))

    def note(shard: ShardFile, sequence: str, message: str) -> None:
        report.problems.append(Problem(kind="shard", split=shard.split, sequence=sequence, message=message))

    for shard in manifest.shards:
        counts = report.splits.setdefault(shard.split, Counts(source=f"{root}/{MANIFEST}"))
        counts.sequences += shard.sequences
        whole = True
        for file, checksum in ((shard.file, shard.sha256), (shard.index, shard.index_sha256)):
            try:
                if (found := sha256(fetch(root, file, checksum))) != checksum:
                    whole = False
                    note(shard, "", f"{root}/{file}: SHA-256 is {found}, in {MANIFEST} {checksum}; the file is damaged. Copy it again")
            except DataError as error:
                whole = False
                note(shard, "", str(error))
        if not whole:
            continue
        for sequence in shard_sequences(root, shard):
            counts.frames += len(sequence)
            counts.absent += int(sequence.absent.sum())
            for index in range(len(sequence)) if images else sorted({0, len(sequence) - 1}):
                try:
                    counts.images += sequence.frames[index].shape[2] // 3
                except ValueError as error:
                    note(shard, sequence.name, str(error))
            if on_sequence:
                on_sequence(0)
    return report


def _inside(start: int, square: Window, size: int) -> tuple[int, int]:
    # The part of an axis that a square shows; one pixel of the border if it shows none.
    low = min(max(0, start), size - 1)
    return low, max(low + 1, min(start + square.side, size))


def _grouped(sequences: tuple[Sequence, ...], frames: int) -> Iterator[tuple[Sequence, ...]]:
    group: list[Sequence] = []
    for sequence in sequences:
        group.append(sequence)
        if sum(map(len, group)) >= frames:
            yield tuple(group)
            group = []
    if group:
        yield tuple(group)


def _written(out: str | Path, plans: list[_Plan], workers: int) -> Iterator[ShardFile]:
    if workers == 1 or len(plans) < 2:
        yield from (_write(out, plan) for plan in plans)
        return
    with ProcessPoolExecutor(min(workers, len(plans)), mp_context=clean_processes()) as pool:
        jobs = [pool.submit(_write, out, plan) for plan in plans]
        try:
            for job in as_completed(jobs):
                yield job.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _write(out: str | Path, plan: _Plan) -> ShardFile:
    import pyarrow as pa

    with _workspace(out) as folder:
        file, index = folder / plan.file, folder / index_of(plan.file)
        rows: list[dict[str, Any]] = []
        schema: pa.Schema | None = None
        writer = None
        with pa.OSFile(str(file), "wb") as sink:
            for batch in _batches(plan, rows):
                if writer is None:
                    schema = batch.schema
                    writer = pa.ipc.new_file(sink, schema)
                elif batch.schema != schema:
                    raise DataError(f"{plan.file}: sequence {rows[-1]['name']} has other modalities than the one before; pack them apart")
                writer.write_batch(batch)
            if writer is not None:
                writer.close()
        described: dict[str, Any] = {
            "file": plan.file,
            "split": plan.split,
            "sequences": len(rows),
            "frames": sum(len(row["absent"]) for row in rows),
            "absent": sum(sum(row["absent"]) for row in rows),
            "bytes": file.stat().st_size,
            "sha256": sha256(file),
        }
        kinds = {"boxes": pa.list_(pa.float64()), "absent": pa.list_(pa.bool_()), "attributes": pa.list_(pa.string())}
        kinds |= {"name": pa.string(), "offset": pa.int64(), "renderings": pa.list_(pa.string())}
        fields = pa.schema(list(kinds.items()), {"srft": json.dumps({**described, "identity": plan.identity})})
        table = pa.Table.from_pylist(rows, fields)
        with pa.OSFile(str(index), "wb") as sink, pa.ipc.new_file(sink, fields) as ends:
            ends.write_table(table)
        shard = ShardFile(**described, index_sha256=sha256(index))
        _publish(file, out)
        _publish(index, out)  # last: its presence says that the shard is whole
    return shard


def _batches(plan: _Plan, rows: list[dict[str, Any]]) -> Iterator[Any]:
    import pyarrow as pa

    pending: list[StoredFrame] = []

    def made() -> Any:
        count = len(pending[0].images)
        arrays = {
            name: pa.array([_bytes(frame.images[i].data) for frame in pending], pa.large_binary())
            for i, name in enumerate(("rgb", "aux")[:count])
        }
        if plan.context is not None:
            for name, values in {
                "frame_height": [f.size[0] if f.size else 0 for f in pending],
                "frame_width": [f.size[1] if f.size else 0 for f in pending],
                "left": [f.corner[0] for f in pending],
                "top": [f.corner[1] for f in pending],
            }.items():
                arrays[name] = pa.array(values, pa.int32())
        pending.clear()
        return pa.record_batch(arrays)

    for sequence in plan.sequences:
        frames = sequence.frames
        if not isinstance(frames, StoredFrames):
            raise DataError(f"sequence {sequence.name}: its frames are no stored images")
        renderings: tuple[str, ...] = ()
        for i in range(len(sequence)):
            stored = frames.stored(i)
            if plan.context is not None:
                stored = crop_context(stored, sequence.boxes[i], plan.context, plan.quality)
            found = tuple(image.rendering for image in stored.images)
            if renderings and found != renderings:
                raise DataError(
                    f"{stored.images[-1].name}: rendered as {found}, frames before as {renderings}; expected one for a sequence"
                )
            renderings = found
            pending.append(stored)
            if len(pending) == ROWS:
                yield made()
        rows.append({
            "name": sequence.name,
            "boxes": sequence.boxes.ravel().tolist(),
            "absent": sequence.absent.tolist(),
            "attributes": list(sequence.attributes),
            "offset": sequence.offset,
            "renderings": list(renderings),
        })  # fmt: skip
    if pending:
        yield made()


def _bytes(data: Data) -> bytes:
    return data.tobytes() if isinstance(data, np.ndarray) else bytes(data)


def _finished(out: str | Path, plan: _Plan) -> ShardFile | None:
    # The shard if it was written before, for the same plan.
    import pyarrow as pa

    filesystem, path = place_of(out)
    try:
        data = filesystem.cat_file(f"{path}/{index_of(plan.file)}")
        size = filesystem.size(f"{path}/{plan.file}")
        described = json.loads(pa.ipc.open_file(pa.BufferReader(data)).schema.metadata[b"srft"])
    except (FileNotFoundError, pa.ArrowInvalid, KeyError, TypeError, ValueError):
        return None
    identity = described.pop("identity")
    if identity != plan.identity or size != described["bytes"]:
        return None
    return ShardFile(**described, index_sha256=hashlib.sha256(data).hexdigest())


@contextmanager
def _workspace(out: str | Path) -> Iterator[Path]:
    # Where files are written before they are published: beside their place if that is local, so that publishing is a rename.
    with tempfile.TemporaryDirectory(prefix=_PART, dir=local_folder(out)) as folder:
        yield Path(folder)


def _publish(file: Path, out: str | Path) -> None:
    # Whole or not at all: a rename here, one upload elsewhere.
    if folder := local_folder(out):
        sync(file)
        os.replace(file, folder / file.name)
        return
    filesystem, path = place_of(out)
    filesystem.makedirs(path, exist_ok=True)
    filesystem.put_file(str(file), f"{path}/{file.name}")
