"""Benchmarks as they are on disk: layouts, annotations and their traps."""

from srft.data.benchmarks.annotations import Annotation, parse_boxes, parse_flags, read_annotations
from srft.data.benchmarks.layouts import LAYOUTS, DataError, Layout, describe, layout_of

__all__ = ["LAYOUTS", "Annotation", "DataError", "Layout", "describe", "layout_of", "parse_boxes", "parse_flags", "read_annotations"]
