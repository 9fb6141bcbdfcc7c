from __future__ import annotations

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from rankmq.schemas import codec
from rankmq.schemas.errors import InvalidInput, LimitExceeded
from rankmq.schemas.messages import Request
from rankmq.schemas.tensors import (
    BFLOAT16,
    DTYPES,
    MAX_DIMENSIONS,
    MAX_EMPTY_ROWS,
    Tensor,
    dtype_name,
    from_array,
    nbytes,
    numpy_dtype,
    to_array,
)

NUMBERS = {
    "bool": "?",
    "int8": "i1",
    "int16": "<i2",
    "int32": "<i4",
    "int64": "<i8",
    "uint8": "u1",
    "uint16": "<u2",
    "uint32": "<u4",
    "uint64": "<u8",
    "float16": "<f2",
    "float32": "<f4",
    "float64": "<f8",
}
SHAPES = [(), (0,), (1,), (0, 3), (3, 0), (2, 0, 5), (2, 3), (4, 1, 2, 3), (1,) * MAX_DIMENSIONS]


def over_the_wire(array: np.ndarray) -> np.ndarray:
    """The array as the other side gets it."""
    request = Request(servable="m", method="p", instances=[{"x": from_array(array)}])
    tensor = codec.decode_request(codec.encode_request(request)).instances[0]["x"]
    assert isinstance(tensor, Tensor)
    return to_array(tensor)


def assert_same(found: np.ndarray, array: np.ndarray) -> None:
    """Equal in dtype (but for the byte order), shape and every bit, NaN included."""
    assert found.dtype == array.dtype.newbyteorder("<")
    assert found.shape == array.shape
    assert found.tobytes() == array.astype(array.dtype.newbyteorder("<")).tobytes()


def test_the_list_of_dtypes_is_this():
    assert set(DTYPES) == {*NUMBERS, "bfloat16", "string", "bytes"}
    assert len(DTYPES) == len(set(DTYPES))


@pytest.mark.parametrize(("name", "code"), NUMBERS.items())
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_number_in_every_shape(name, code, shape):
    rng = np.random.default_rng(7)
    size = int(np.prod(shape))
    raw = rng.integers(0, 2, size, np.uint8) if name == "bool" else rng.bytes(size * np.dtype(code).itemsize)
    array = np.frombuffer(raw, code).reshape(shape)
    assert from_array(array).dtype == name
    assert_same(over_the_wire(array), array)


@settings(max_examples=300, deadline=None)
@given(
    hnp.arrays(
        dtype=st.sampled_from(list(NUMBERS.values()) + [">" + code[1:] for code in NUMBERS.values() if code[0] == "<"]),
        shape=hnp.array_shapes(min_dims=0, max_dims=6, min_side=0, max_side=5),
    )
)
def test_any_array_round_trips(array):
    assert_same(over_the_wire(array), array)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_view_round_trips(data):
    code = data.draw(st.sampled_from([">i4", "<f8", "u1", ">f2", "?"]))
    array = data.draw(hnp.arrays(code, hnp.array_shapes(min_dims=1, max_dims=4, max_side=6)))
    view = array[data.draw(hnp.basic_indices(array.shape, allow_newaxis=True))]
    view = np.asarray(view).T
    assert_same(over_the_wire(view), view)


@pytest.mark.filterwarnings("ignore:the matrix subclass")
@pytest.mark.parametrize(
    "change",
    [
        lambda a: a[::2],
        lambda a: a[:, 1:3],
        lambda a: a[::-1],
        lambda a: a[::-2, ::-1],
        lambda a: a.T,
        lambda a: np.asfortranarray(a),
        lambda a: np.broadcast_to(a[0], (5, 4)),
        lambda a: a[2, 3],
        lambda a: a.astype(">f4")[::-1].T,
        lambda a: np.frombuffer(b"\0" + a.tobytes(), "u1")[1:].view("<f4"),
        lambda a: np.matrix(a),
    ],
    ids=["slice", "columns", "reversed", "both", "transposed", "fortran", "broadcast", "scalar", "big", "odd", "mat"],
)  # fmt: skip
def test_strides_and_byte_orders(change):
    array = change(np.arange(24, dtype="<f4").reshape(6, 4))
    assert_same(over_the_wire(array), np.asarray(array))


def test_a_read_only_array_is_taken_as_it_is():
    array = np.arange(5)
    array.flags.writeable = False
    assert_same(over_the_wire(array), array)


def test_a_large_array():
    array = np.random.default_rng(1).standard_normal((1024, 1024, 4)).astype("f4")
    assert_same(over_the_wire(array), array)


def test_a_contiguous_array_is_not_copied_into_a_tensor():
    array = np.arange(6, dtype="<f4").reshape(2, 3)
    assert np.shares_memory(np.frombuffer(from_array(array).data, "u1"), array)


@pytest.mark.parametrize("name", [*NUMBERS, "bfloat16"])
def test_decoding_copies_no_number_and_gives_read_only_views(name):
    array = np.zeros((128, 96), numpy_dtype(name))
    body = codec.encode_request(Request(servable="m", method="p", instances=[{"x": from_array(array)}]))
    found = to_array(codec.decode_request(body).instances[0]["x"])
    assert np.shares_memory(found, np.frombuffer(body, np.uint8))
    assert not found.flags.writeable
    assert not found.flags.owndata


def test_an_empty_array_is_read_only_too():
    assert not over_the_wire(np.zeros((0, 3), "f4")).flags.writeable


@pytest.mark.parametrize(("name", "code"), NUMBERS.items())
def test_the_bytes_on_the_wire_are_little_endian_and_in_c_order(name, code):
    array = np.array([[1, 0, 1], [0, 1, 1]], np.dtype(code).newbyteorder(">"))
    request = Request(servable="m", method="p", instances=[{"x": from_array(array.T)}])
    tensor = msgpack.unpackb(codec.encode_request(request))["instances"][0]["x"]
    assert tensor == {"dtype": name, "shape": [3, 2], "data": np.ascontiguousarray(array.T, np.dtype(code)).tobytes()}


@pytest.mark.parametrize(
    "code", ["c8", "c16", "M8[s]", "m8[s]", "V4", "g", [("a", "f4")], [("bfloat16", ">u2")]], ids=str
)
def test_a_dtype_off_the_list_cannot_be_sent(code):
    with pytest.raises(InvalidInput, match="cannot be sent"):
        from_array(np.zeros(2, code))


@pytest.mark.parametrize(
    "name", ["", "float", "object", "f4", "<f4", "complex64", "Float32", "float32 ", "x" * 1_000_000]
)
def test_a_name_off_the_list_is_refused_in_a_few_words(name):
    with pytest.raises(InvalidInput, match="is not one of") as caught:
        to_array(Tensor(name, (1,), memoryview(b"\0" * 4)))
    assert len(str(caught.value)) < 250


def test_every_name_and_its_dtype_agree():
    for name in NUMBERS:
        assert numpy_dtype(name) == np.dtype(NUMBERS[name])
        assert dtype_name(numpy_dtype(name).newbyteorder(">")) == name
    assert numpy_dtype("bfloat16") is BFLOAT16
    assert dtype_name(BFLOAT16) == "bfloat16"
    assert dtype_name(np.dtype("q")) == dtype_name(np.dtype("l")) == "int64"


@pytest.mark.parametrize(
    ("shape", "size"),
    [((2, 3), 23), ((2, 3), 25), ((2, 3), 0), ((), 0), ((0,), 4), ((2**62, 4), 16), ((2**63 - 1,) * 32, 4)],
)
def test_bytes_that_do_not_match_the_shape(shape, size):
    with pytest.raises(InvalidInput, match="do not match"):
        to_array(Tensor("float32", shape, memoryview(b"\0" * size)))


@pytest.mark.parametrize("shape", [(-1,), (2, -3), (-2, -3), (0, -1), (-(2**63),)])
@pytest.mark.parametrize("dtype", ["float32", "string"])
def test_negative_dimensions(shape, dtype):
    with pytest.raises(InvalidInput, match="negative"):
        to_array(Tensor(dtype, shape, memoryview(b"\0" * 24) if dtype == "float32" else ("a",) * 6))


@pytest.mark.parametrize("shape", [(0, 2**62), (0, 2**64), (0, 2**40, 2**40), (1, 0, 2**63)])
@pytest.mark.parametrize(("dtype", "data"), [("float32", memoryview(b"")), ("string", ())])
def test_an_empty_tensor_with_dimensions_past_the_index_range(shape, dtype, data):
    with pytest.raises(InvalidInput, match="empty tensor"):
        to_array(Tensor(dtype, shape, data))


@pytest.mark.parametrize("shape", [(2**40, 0), (2**62, 0), (2**11, 2**11, 0), (MAX_EMPTY_ROWS + 1, 0, 5)])
@pytest.mark.parametrize(("dtype", "data"), [("float32", memoryview(b"")), ("bytes", ())])
def test_an_empty_tensor_of_endless_rows(shape, dtype, data):
    with pytest.raises(LimitExceeded, match="rows"):
        to_array(Tensor(dtype, shape, data))
    assert to_array(Tensor(dtype, (MAX_EMPTY_ROWS, 0), data)).shape == (MAX_EMPTY_ROWS, 0)


@pytest.mark.parametrize("dimensions", [MAX_DIMENSIONS + 1, 64, 10_000])
def test_too_many_dimensions(dimensions):
    with pytest.raises(LimitExceeded, match="dimensions"):
        to_array(Tensor("uint8", (1,) * dimensions, memoryview(b"\0")))


def test_an_array_of_too_many_dimensions_cannot_be_sent():
    with pytest.raises(LimitExceeded, match="dimensions"):
        from_array(np.zeros((1,) * (MAX_DIMENSIONS + 1)))


@pytest.mark.parametrize("byte", [2, 128, 255])
def test_a_bool_is_the_byte_0_or_1(byte):
    with pytest.raises(InvalidInput, match="0 and 1"):
        to_array(Tensor("bool", (3,), memoryview(bytes([0, byte, 1]))))


@pytest.mark.parametrize("dtype", ["float32", "bool", "bfloat16"])
def test_numbers_do_not_travel_as_a_list(dtype):
    with pytest.raises(InvalidInput, match="one binary string"):
        to_array(Tensor(dtype, (1,), (1,)))


def test_nbytes_counts_the_data():
    assert nbytes(from_array(np.zeros((4, 5), "f8"))) == 160
    assert 9 <= nbytes(Tensor("string", (2,), ("abcd", "efghi"))) < 40
