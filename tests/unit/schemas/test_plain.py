from __future__ import annotations

import base64
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from rankmq.schemas.errors import InvalidInput, LimitExceeded
from rankmq.schemas.limits import Limits
from rankmq.schemas.plain import array_of, is_untyped, tensor_from_json, tensor_to_json, value_to_json
from rankmq.schemas.tensors import BFLOAT16, DTYPES, bfloat16_to_float32, from_array, numpy_dtype, to_array

LIMITS = Limits()
WHOLE = [name for name in DTYPES if "int" in name]
FLOATS = ["float16", "float32", "float64", "bfloat16"]


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def read(dtype: object, data: object, shape: object = ...) -> np.ndarray:
    value = {"dtype": dtype, "data": data} | ({} if shape is ... else {"shape": shape})
    return array_of(value, LIMITS)


@pytest.mark.parametrize("name", [*WHOLE, *FLOATS])
def test_numbers_as_nested_lists(name):
    array = read(name, [[1, 2, 3], [4, 5, 6]], [2, 3])
    assert array.dtype == numpy_dtype(name)
    values = bfloat16_to_float32(array) if name == "bfloat16" else array
    assert values.tolist() == [[1, 2, 3], [4, 5, 6]]


@pytest.mark.parametrize("name", [*WHOLE, *FLOATS, "bool"])
@pytest.mark.parametrize("shape", [(), (2, 3), (0, 3)])
def test_numbers_as_base64(name, shape):
    one = np.full(shape, 0x3F80, "<u2").view(BFLOAT16) if name == "bfloat16" else np.ones(shape, numpy_dtype(name))
    tensor = from_array(one)
    found = read(name, b64(bytes(tensor.data)), list(tensor.shape))
    assert found.dtype == numpy_dtype(name)
    assert found.tobytes() == bytes(tensor.data)
    assert found.shape == tensor.shape


def test_a_scalar_needs_no_list():
    assert read("float64", 1.5).shape == ()
    assert read("float64", 1.5, []).tolist() == 1.5
    assert read("string", "abc").tolist() == "abc"
    assert read("bytes", b64(b"a\0")).tolist() == b"a\0"
    assert read("bool", True).tolist() is True


def test_text_and_binary():
    assert read("string", [["a\0", ""], ["😀", "b"]], [2, 2]).tolist() == [["a\0", ""], ["😀", "b"]]
    assert read("bytes", [b64(b"a\0"), "", b64(b"\xff")]).tolist() == [b"a\0", b"", b"\xff"]


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize(
    ("data", "shape"), [([], ...), ([], [0]), ([], [0, 3]), ([[], []], [2, 0]), ([], [2, 0, 5])], ids=str
)
def test_no_elements(name, data, shape):
    array = read(name, data, shape)
    assert array.dtype == numpy_dtype(name)
    assert array.shape == ((0,) if shape is ... else tuple(shape))


@pytest.mark.parametrize(("name", "low", "high"), [
    (name, int(np.iinfo(name).min), int(np.iinfo(name).max)) for name in WHOLE
])  # fmt: skip
def test_whole_numbers_up_to_the_edge_of_their_range(name, low, high):
    assert read(name, [low, high]).tolist() == [low, high]
    for over in (high + 1, low - 1, 2**64, -(2**64), 10**400, 2.0**70, -(2.0**70)):
        with pytest.raises(InvalidInput, match="does not fit"):
            read(name, [0, over])


def test_a_float_at_the_edge_of_64_bits_is_compared_exactly():
    assert read("int64", [-(2.0**63)]).tolist() == [-(2**63)]
    for name, over in (("int64", 2.0**63), ("uint64", 2.0**64)):
        with pytest.raises(InvalidInput, match="does not fit"):
            read(name, [over])


def test_floats_that_are_whole_may_stand_for_ints():
    assert read("int32", [1.0, 2, -3.0]).tolist() == [1, 2, -3]
    for odd in (1.5, math.nan, math.inf, -math.inf, 1e-9):
        with pytest.raises(InvalidInput, match="whole"):
            read("int32", [1, odd])


@pytest.mark.parametrize(("name", "over"), [
    ("float16", 65520.0), ("float32", 3.5e38), ("bfloat16", 3.4e38), ("float64", 10**400), ("float32", 10**39),
])  # fmt: skip
def test_floats_past_their_range_are_refused(name, over):
    for value in (over, -over):
        with pytest.raises(InvalidInput, match=f"does not fit into {name}|does not fit into float32"):
            read(name, [0, value])


def test_the_largest_floats_fit():
    assert read("float16", [65504.0]).tolist() == [65504.0]
    assert read("float32", [float(np.finfo("f4").max)]).tolist() == [float(np.finfo("f4").max)]


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize(
    "data", [None, {}, [None], [1, "a"], [[1], 2], [[1], [1, 2]], [{}], {"a": 1}, [True, 1]], ids=repr
)
def test_data_of_no_one_kind(name, data):
    with pytest.raises(InvalidInput):
        read(name, data)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("bool", [1, 0]),
        ("bool", [0.0]),
        ("int32", [True]),
        ("float32", [True, False]),
        ("float32", ["1"]),
        ("int8", ["a"]),
        ("string", [1]),
        ("string", [True]),
        ("string", 1.5),
        ("bytes", [1]),
        ("bfloat16", [True]),
    ],
)
def test_data_of_another_kind_than_the_dtype(name, data):
    with pytest.raises(InvalidInput, match=f"data of a {name} tensor"):
        read(name, data)


@pytest.mark.parametrize("text", ["*", "abc", "YWJj\n", "YW Jj", "ä", "-_-_", "=", "YQ=", "\ud800"])
def test_what_is_not_base64(text):
    with pytest.raises(InvalidInput, match="not base64"):
        read("uint8", text, [3])
    with pytest.raises(InvalidInput, match="not base64"):
        read("bytes", [text])


def test_base64_needs_a_shape_that_matches():
    with pytest.raises(InvalidInput, match="needs its shape"):
        read("float32", b64(b"\0" * 8))
    with pytest.raises(InvalidInput, match="do not match"):
        read("float32", b64(b"\0" * 8), [3])


@pytest.mark.parametrize("shape", [[3], [2, 2], [4, 1], [], [2, 2, 1], [0], [2, 0], [2**62, 2**62]])
def test_lists_of_another_shape(shape):
    with pytest.raises(InvalidInput, match="does not match"):
        read("float32", [1, 2, 3, 4], shape)
    if 0 not in shape:
        with pytest.raises(InvalidInput, match="does not match"):
            read("float32", [], shape)


@pytest.mark.parametrize(
    "shape", [3, "3", {}, [1.0], [True], ["1"], [None], [-1], [2**63], [10**4000], [[1]]], ids=repr
)
@pytest.mark.parametrize("data", [[1], "AAAAAA=="])
def test_a_shape_that_is_none(shape, data):
    with pytest.raises(InvalidInput, match="shape must be"):
        read("float32", data, shape)


@pytest.mark.parametrize("data", [[1], "AAAAAA==", []])
def test_a_shape_of_too_many_dimensions(data):
    with pytest.raises(LimitExceeded, match="dimensions"):
        read("float32", data, [2**62] * 1_000_000)


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"dtype": "float32"},
        {"data": [1]},
        {"dtype": 1, "data": [1]},
        {"dtype": ["float32"], "data": [1]},
        {"dtype": None, "data": [1]},
        {"dtype": "float", "data": [1]},
        {"dtype": "x" * 1_000_000, "data": [1]},
        {"dtype": "float32", "data": [1], "colour": 1},
        {"dtype": "float32", "data": [1], "x" * 1_000_000: 1},
        {"dtype": "float32", "data": [1], 5: 1, None: 2, "a": 3},
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_map_that_is_no_tensor(value):
    with pytest.raises(InvalidInput) as caught:
        array_of(value, LIMITS)
    assert len(str(caught.value)) < 250


def test_limits_hold_for_typed_lists_and_for_bare_ones():
    small = Limits(nesting=2, elements=4)
    for value in ([[[1]]], [1] * 5):
        with pytest.raises(LimitExceeded):
            array_of(value, small)
        with pytest.raises(LimitExceeded):
            array_of({"dtype": "int32", "data": value}, small)
        with pytest.raises(LimitExceeded):
            tensor_from_json(value, small)


def test_only_bare_values_are_untyped():
    assert is_untyped([1, 2])
    assert is_untyped(1.5)
    assert not is_untyped(from_array(np.ones(3)))
    assert not is_untyped({"dtype": "float32", "data": [1]})


arrays = hnp.arrays(
    st.sampled_from(["?", "i1", "<i2", "<i4", "<i8", "u1", "<u2", "<u4", "<u8", "<f2", "<f4", "<f8"]),
    hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
)


@settings(max_examples=300, deadline=None)
@given(arrays)
def test_any_array_survives_json(array):
    text = json.dumps(tensor_to_json(from_array(array)), allow_nan=False)
    found = to_array(tensor_from_json(json.loads(text)))
    assert found.dtype == array.dtype
    assert found.shape == array.shape
    assert np.array_equal(found, array, equal_nan=array.dtype.kind == "f")
    if np.isfinite(array).all():
        assert np.array_equal(np.signbit(found.astype("f8")), np.signbit(array.astype("f8")))  # -0.0 is kept


@settings(max_examples=100, deadline=None)
@given(shape=hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3), data=st.data())
def test_any_text_and_binary_survives_json(shape, data):
    for elements in (st.text(max_size=9), st.binary(max_size=9)):
        size = int(np.prod(shape))
        array = np.empty(size, object)
        array[:] = data.draw(st.lists(elements, min_size=size, max_size=size))
        array = array.reshape(shape)
        found = to_array(tensor_from_json(json.loads(json.dumps(tensor_to_json(from_array(array))))))
        assert found.shape == shape
        assert found.tolist() == array.tolist()


def test_every_bfloat16_survives_json():
    array = np.arange(1 << 16, dtype="<u2").view(BFLOAT16)
    finite = np.isfinite(bfloat16_to_float32(array))
    for part in (array, array[finite]):
        found = to_array(tensor_from_json(json.loads(json.dumps(tensor_to_json(from_array(part)), allow_nan=False))))
        assert found.tobytes() == part.tobytes()


def test_finite_numbers_are_written_as_lists_and_others_as_base64():
    assert tensor_to_json(from_array(np.array([[1.5]], "f4"))) == {"dtype": "float32", "shape": [1, 1], "data": [[1.5]]}
    nan = np.array([math.nan, 1], "<f4")
    assert tensor_to_json(from_array(nan))["data"] == b64(nan.tobytes())


def test_values_for_which_json_has_no_word_become_tensors():
    for value in (1, 1.5, "a", True, [1, 2.5], ["a"], None, [None], [[1], [2]]):
        assert value_to_json(value) is value
    for value in (math.nan, [1, math.inf], [[1.5], [-math.inf]]):
        assert np.array_equal(to_array(value_to_json(value)), np.array(value, "f4"), equal_nan=True)
    assert to_array(value_to_json([b"a"])).tolist() == [b"a"]
