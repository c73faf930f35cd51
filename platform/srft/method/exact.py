"""Products in full precision, whatever a program allows its network."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

__all__ = ["exact_products"]


@contextlib.contextmanager
def exact_products() -> Iterator[None]:
    """Inside, matrix products of float32 tensors round as float32 does.

    What TensorFloat-32 or bfloat16 leave of ``V theta`` (``torch.set_float32_matmul_precision("high")``) is coarser than a displacement
    from the pre-trained weights. Also a decorator.

    Yields:
        Nothing.
    """
    switches = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul  # pyrefly: ignore
    before = [switch.fp32_precision for switch in switches]
    for switch in switches:
        switch.fp32_precision = "ieee"
    try:
        yield
    finally:
        for switch, precision in zip(switches, before, strict=True):
            switch.fp32_precision = precision
