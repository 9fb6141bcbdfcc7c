from __future__ import annotations

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from rankmq.schemas import codec
from rankmq.schemas.errors import InvalidInput
from rankmq.schemas.messages import Request
from rankmq.schemas.tensors import Tensor, from_array, to_array

from .test_tensors import over_the_wire

STRING = np.dtypes.StringDType()
TEXTS = ["", "a", "a\0", "\0", "a\0b\0\0", "ä", "€", "😀", "👩‍👩‍👧", "x" * 1000, "﻿", "￿", "\U0010ffff", "line\nline"]
BINARIES = [b"", b"a", b"a\0", b"\0", b"a\0b\0\0", b"\xff\xfe", b"\xc3\x28", b"x" * 1000, "ä".encode()]


def objects(elements: list, shape: tuple[int, ...] | None = None) -> np.ndarray:
    array = np.empty(len(elements), object)
    array[:] = elements
    return array.reshape(shape or (len(elements),))


def test_text_is_kept_to_the_last_character():
    for array in (np.array(TEXTS, STRING), objects(TEXTS)):
        found = over_the_wire(array)
        assert found.dtype == STRING
        assert found.tolist() == TEXTS


def test_binary_is_kept_to_the_last_byte():
    found = over_the_wire(objects(BINARIES))
    assert found.dtype == object
    assert found.tolist() == BINARIES
    assert {type(element) for element in found.tolist()} == {bytes}


@settings(max_examples=200, deadline=None)
@given(shape=hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4), data=st.data())
def test_any_text_and_binary_in_any_shape(shape, data):
    size = int(np.prod(shape))
    for elements in (st.text(max_size=20), st.binary(max_size=20)):
        array = objects(data.draw(st.lists(elements, min_size=size, max_size=size)), (size,)).reshape(shape)
        found = over_the_wire(array)
        assert found.shape == shape
        assert found.tolist() == array.tolist()


def test_fixed_width_arrays_of_numpy():
    assert over_the_wire(np.array([["ab", "c"], ["", "äöü"]])).tolist() == [["ab", "c"], ["", "äöü"]]
    assert over_the_wire(np.array(["ab", "€"], ">U3")).tolist() == ["ab", "€"]
    assert over_the_wire(np.array([b"ab", b"c"])).tolist() == [b"ab", b"c"]


def test_scalars_and_views():
    assert over_the_wire(np.array("ä\0", STRING)).tolist() == "ä\0"
    assert over_the_wire(np.array("ä\0", STRING)).shape == ()
    array = np.array([["a", "b", "c"], ["d", "e", "f"]], STRING)
    assert over_the_wire(array.T[::-1]).tolist() == array.T[::-1].tolist()


@pytest.mark.filterwarnings("ignore:the matrix subclass")
def test_a_matrix_of_text():
    assert over_the_wire(np.matrix([["a", "b"], ["c", "d"]])).tolist() == [["a", "b"], ["c", "d"]]


@pytest.mark.parametrize(("array", "name"), [
    (np.zeros((0, 3), STRING), "string"), (np.zeros((0, 3), "U1"), "string"),
    (np.zeros((0, 3), object), "bytes"), (np.zeros((0, 3), "S1"), "bytes"),
])  # fmt: skip
def test_empty_ones_keep_their_kind_and_shape(array, name):
    assert from_array(array).dtype == name
    assert over_the_wire(array).shape == (0, 3)


def test_the_elements_travel_as_they_are():
    request = Request(servable="m", method="p", instances=[{"x": from_array(np.array([["a"], ["😀"]], STRING))}])
    sent = msgpack.unpackb(codec.encode_request(request))["instances"][0]["x"]
    assert sent == {"dtype": "string", "shape": [2, 1], "data": ["a", "😀"]}


@pytest.mark.parametrize(
    "elements", [["a", b"a"], [1], [None], ["a", None], [["a"]], [1.5, "a"], [Ellipsis], [bytearray(b"a")]], ids=str
)
def test_objects_of_another_kind_cannot_be_sent(elements):
    with pytest.raises(InvalidInput, match="only str or only bytes"):
        from_array(objects(elements))


def test_a_missing_text_cannot_be_sent():
    array = np.array(["a", None], np.dtypes.StringDType(na_object=None))
    with pytest.raises(InvalidInput, match="only str or only bytes"):
        from_array(array)


@pytest.mark.parametrize("text", ["\ud800", "a\udfff", "\ude00\ud83d"])
def test_a_lone_surrogate_cannot_be_sent(text):
    for array in (objects(["ok", text]), np.array([text])):
        with pytest.raises(InvalidInput, match="surrogate"):
            from_array(array)
    with pytest.raises(InvalidInput, match="surrogate"):
        to_array(Tensor("string", (1,), (text,)))


@pytest.mark.parametrize("data", [("a", b"b"), (1,), (None,), (("a",),), ({},), (1.5, 2.5)], ids=str)
@pytest.mark.parametrize("dtype", ["string", "bytes"])
def test_elements_of_another_kind_are_refused(dtype, data):
    with pytest.raises(InvalidInput, match="may hold only"):
        to_array(Tensor(dtype, (len(data),), data))


def test_text_is_not_binary_and_binary_not_text():
    with pytest.raises(InvalidInput, match="only text"):
        to_array(Tensor("string", (1,), (b"a",)))
    with pytest.raises(InvalidInput, match="only binary"):
        to_array(Tensor("bytes", (1,), ("a",)))


@pytest.mark.parametrize("dtype", ["string", "bytes"])
def test_one_binary_string_is_not_an_array_of_elements(dtype):
    with pytest.raises(InvalidInput, match="array of its elements"):
        to_array(Tensor(dtype, (1,), memoryview(b"a")))


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 2), (0,), (2**62, 2)])
def test_the_number_of_elements_must_match_the_shape(shape):
    with pytest.raises(InvalidInput, match="do not match"):
        to_array(Tensor("string", shape, ("a", "b")))


def test_one_long_text_does_not_make_the_others_long(peak_bytes):
    long = "x" * 1_000_000
    tensor = Tensor("string", (10_001,), (long, *["a"] * 10_000))
    assert peak_bytes(lambda: to_array(tensor)) < 8_000_000
