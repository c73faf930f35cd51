"""Benchmarks as they are on disk: layouts, splits, annotations and their traps, sequences with frames decoded on demand."""

from srft.data.benchmarks.annotations import Annotation, parse_boxes, parse_flags, parse_table, read_annotations
from srft.data.benchmarks.images import NativeFrames
from srft.data.benchmarks.layouts import LAYOUTS, DataError, Layout, describe, layout_of
from srft.data.benchmarks.reader import open_benchmark
from srft.data.benchmarks.splits import list_split

__all__ = [
    "LAYOUTS",
    "Annotation",
    "DataError",
    "Layout",
    "NativeFrames",
    "describe",
    "layout_of",
    "list_split",
    "open_benchmark",
    "parse_boxes",
    "parse_flags",
    "parse_table",
    "read_annotations",
]
