from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rankmq.schemas.tensors import BFLOAT16, Tensor, bfloat16_to_float32, float32_to_bfloat16, from_array, to_array

from .test_tensors import over_the_wire


def float_of(bits: int) -> float:
    return struct.unpack("<f", struct.pack("<I", bits))[0]


def rounded(bits: int) -> int:
    """The bfloat16 nearest to the float32 with these bits, ties to even, by arithmetic on exact numbers (no NaN)."""
    low, lost = bits >> 16, bits & 0xFFFF
    if lost > 0x8000 or (lost == 0x8000 and low & 1):
        return low + 1  # a carry into the exponent is right: the next power of two, or infinity
    return low


def of_bits(bits: list[int]) -> np.ndarray:
    return np.array(bits, "<u2").view(BFLOAT16)


def test_every_bfloat16_becomes_its_float32_and_back():
    every = np.arange(1 << 16, dtype="<u2")
    wide = bfloat16_to_float32(every.view(BFLOAT16))
    assert wide.dtype == np.float32
    assert wide.tobytes() == b"".join(struct.pack("<HH", 0, bits) for bits in range(1 << 16))
    back = float32_to_bfloat16(wide).view("<u2")
    nan = np.isnan(wide)
    assert np.array_equal(back[~nan], every[~nan])
    assert np.isnan(bfloat16_to_float32(back[nan].view(BFLOAT16))).all()


@settings(max_examples=1000, deadline=None)
@given(st.integers(0, 2**32 - 1))
@example(0x7F7FFFFF)  # the largest float32: past the largest bfloat16
@example(0x3F808000)  # a tie, down to even
@example(0x3F818000)  # a tie, up to even
@example(0x00000001)
@example(0xFFFFFFFF)
@example(0x7F800001)
def test_any_float32_becomes_the_nearest(bits):
    single = np.array([bits], "<u4").view("<f4")
    found = int(float32_to_bfloat16(single).view("<u2")[0])
    if np.isnan(single[0]):
        assert found & 0x7F80 == 0x7F80
        assert found & 0x7F
    else:
        assert found == rounded(bits)


def test_it_agrees_with_ml_dtypes():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    values = np.random.default_rng(3).standard_normal(10_000).astype("f4") * np.float32(1e3)
    theirs = values.astype(ml_dtypes.bfloat16)
    assert float32_to_bfloat16(values).tobytes() == theirs.tobytes()
    assert np.array_equal(bfloat16_to_float32(theirs), theirs.astype("f4"))


def test_arrays_of_ml_dtypes_are_taken():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    theirs = np.arange(12, dtype="f4").astype(ml_dtypes.bfloat16).reshape(3, 4)
    for array in (theirs, theirs.T, theirs[::-2, 1:], theirs[1, 1], theirs[:0]):
        assert from_array(array).dtype == "bfloat16"
        found = over_the_wire(array)
        assert found.dtype == BFLOAT16
        assert found.shape == array.shape
        assert np.array_equal(bfloat16_to_float32(found), np.asarray(array, "f4"))


@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (2, 3), (3, 1, 2)])
def test_every_shape(shape):
    size = int(np.prod(shape))
    array = of_bits(list(range(0x3F80, 0x3F80 + size))).reshape(shape)
    found = over_the_wire(array)
    assert found.dtype == BFLOAT16
    assert found.shape == shape
    assert found.tobytes() == array.tobytes()
    assert bfloat16_to_float32(found).shape == shape
    assert float32_to_bfloat16(bfloat16_to_float32(found)).shape == shape


def test_strides():
    array = of_bits(list(range(24))).reshape(4, 6)
    for view in (array.T, array[::-1, ::2], array[1]):
        assert over_the_wire(view).tobytes() == np.ascontiguousarray(view).tobytes()
        assert np.array_equal(bfloat16_to_float32(view), bfloat16_to_float32(np.ascontiguousarray(view)))
    wide = np.arange(24, dtype=">f4").reshape(4, 6)
    assert np.array_equal(bfloat16_to_float32(float32_to_bfloat16(wide.T)), wide.T)


def test_two_bytes_an_element_on_the_wire():
    tensor = from_array(of_bits([0x3F80, 0xC000]))
    assert bytes(tensor.data) == b"\x80\x3f\x00\xc0"
    assert bfloat16_to_float32(to_array(Tensor("bfloat16", (2,), memoryview(b"\x80\x3f\x00\xc0")))).tolist() == [1, -2]


@pytest.mark.filterwarnings("error")
def test_no_bits_raise_a_warning():
    for bits in (0xFFFFFFFF, 0x7F7FFFFF, 0x7F800001):
        float32_to_bfloat16(np.array(bits, "<u4").view("<f4"))
        float32_to_bfloat16(np.array([bits], "<u4").view("<f4"))
    assert float_of(0x3F800000) == 1.0
