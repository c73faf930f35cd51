import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from srft.method.storage import from_log8, stored, to_int8, to_log8

POSITIVE = st.floats(2.0**-100, 2.0**100, width=32)


def test_int8_of_zero_and_empty_rows():
    q, scale = to_int8(torch.tensor([[0.0, 0.0], [1.0, -0.5]]))
    assert q.tolist() == [[0, 0], [127, -64]]
    assert torch.isfinite(scale).all()
    for shape in ((0, 5), (3, 0)):
        q, scale = to_int8(torch.zeros(shape))
        assert q.shape == shape
        assert scale.shape == (shape[0], 1)
    with pytest.raises(ValueError, match=r"storage is torch\.int32"):
        stored("unused", torch.zeros(1, 2), torch.int32)


@settings(deadline=None, max_examples=200)
@given(st.lists(st.one_of(st.just(0.0), POSITIVE), max_size=40))
@example([])
@example([0.0, 0.0])
@example([3.5])
@example([1.0, 2.0**-31.75, 2.0**-31.9, 2.0**-100])
def test_logarithmic_codes_are_within_a_sixteenth_of_an_octave(values):
    x = torch.tensor(values, dtype=torch.float32)
    codes, top = to_log8(x)
    back = from_log8(codes, top)
    assert (codes.dtype, codes.shape, back.dtype, back.shape) == (torch.uint8, x.shape, torch.float32, x.shape)
    largest = max(x.tolist(), default=0.0)
    assert float(top) == largest
    for value, code, restored in zip(x.tolist(), codes.tolist(), back.tolist(), strict=True):
        assert restored == pytest.approx(largest * 2.0 ** (-(255 - code) / 8) if code else 0.0, rel=1e-5)
        if value >= largest * 2.0**-31.75 * (1 + 1e-6):
            assert abs(restored - value) <= (2 ** (1 / 16) - 1 + 1e-5) * value
        elif value < largest * 2.0 ** (-31.75 - 1 / 16) * (1 - 1e-6):
            assert code == 0
    assert (codes == 255)[x == x.max()].all() if len(x) and largest > 0 else (codes == 0).all()


def test_logarithmic_codes_keep_order_and_shape_across_pieces():
    x = torch.from_numpy(np.random.default_rng(0).lognormal(0, 3, (3, 50_000)).astype(np.float32))
    codes, top = to_log8(x)
    back = from_log8(codes, top)
    assert back.shape == x.shape
    order = x.flatten().argsort()
    assert (back.flatten()[order].diff() >= 0).all()
    assert ((back / x - 1).abs() <= 0.0443)[x >= top * 2**-31.7].all()
    wide, _ = to_log8(x.double())
    assert torch.equal(wide, codes)


@pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf])
def test_what_has_no_logarithm_is_refused(bad):
    with pytest.raises(ValueError, match="expected finite ones and none negative"):
        to_log8(torch.tensor([1.0, bad]))
