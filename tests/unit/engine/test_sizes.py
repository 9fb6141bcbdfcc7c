"""How large an array is goes by its shape and dtype, and is known without a copy of it."""

from __future__ import annotations

import json
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from rankmq.engine.sizes import check_row, least_json_bytes, may_be_blob, size_of
from rankmq.schemas import codec
from rankmq.schemas.errors import LimitExceeded
from rankmq.schemas.messages import Reply
from rankmq.schemas.tensors import from_array

STRING = np.dtypes.StringDType()
MANY = 1 << 40
WORDS = st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=9), min_size=1, max_size=6)


def objects(values):
    array = np.empty(len(values), object)
    array[:] = values
    return array


numbers = arrays.arrays(
    st.sampled_from(["?", "<i1", ">i4", "<u8", "<f2", ">f8"]),
    arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
)
text = st.one_of(
    WORDS.map(lambda it: np.array(it)),
    WORDS.map(lambda it: np.array(it, STRING)),
    WORDS.map(lambda it: np.array(it[0])),
    st.lists(st.binary(max_size=9), min_size=1, max_size=6).map(objects),
    st.lists(st.binary(max_size=9), min_size=1, max_size=6).map(np.array),
)
repeated = st.tuples(st.one_of(numbers, text), st.integers(0, 4)).map(
    lambda it: np.broadcast_to(it[0], (it[1], *it[0].shape))
)


@given(st.one_of(numbers, text, repeated))
def test_no_message_has_less(array):
    tensor = from_array(array)
    assert size_of(array) <= len(codec.encode_reply(Reply(outputs=[{"y": tensor}])))
    if isinstance(tensor.data, memoryview):
        assert size_of(array) == tensor.data.nbytes
    else:
        assert size_of(array) == sum(1 + len(element) for element in tensor.data)


@given(st.one_of(numbers, text, repeated))
def test_nor_one_in_json(array):
    with np.errstate(all="ignore"):
        body = codec.encode_reply(Reply(outputs=[{"y": from_array(array)}]), codec.JSON)
    tensor = json.loads(body)["outputs"][0]["y"]
    data = tensor["data"] if isinstance(tensor, dict) else tensor
    shortest = json.dumps(data, separators=(",", ":"), ensure_ascii=False)
    assert least_json_bytes(array) <= len(shortest.encode()) + 1


@pytest.mark.parametrize(
    ("one", "size"),
    [
        (np.float32(1), 4 * MANY),
        (np.array("abc"), 4 * MANY),
        (np.array("äbc", STRING), 4 * MANY),
        (np.array(b"abcd"), 5 * MANY),
        (objects([b"abcd"])[0:1], 5 * MANY),
        (np.array([], np.float32), 0),
    ],
)
def test_what_was_broadcast_counts_as_often_as_it_is_there(one, size):
    array = np.broadcast_to(one, (MANY, *one.shape))
    tracemalloc.start()
    try:
        assert size_of(array) == size
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_a_row_is_measured_by_all_that_it_has():
    row = (np.zeros(10, np.uint8), np.array("abcd", STRING))
    check_row(row, 15, "f returned")
    check_row(row, None, "f returned")
    with pytest.raises(
        LimitExceeded, match=r"f returned 15 bytes for a row, and no reply or step can carry more than 14: give"
    ):
        check_row(row, 14, "f returned")


def test_text_is_not_looked_at_where_there_is_too_much_of_it():
    letters = np.zeros(1 << 20, "U1")
    array = np.lib.stride_tricks.as_strided(letters, (1 << 19, 1 << 19), (4, 4))
    with pytest.raises(LimitExceeded, match=f"{1 << 38} bytes"):
        check_row((array,), 1 << 30, "f returned")


@pytest.mark.parametrize(
    ("array", "may"),
    [(np.zeros(4096, np.uint8), True), (np.zeros(4095, np.uint8), False), (np.full(9000, "a"), False)],
)
def test_only_numbers_and_not_few_go_by_reference(array, may):
    assert may_be_blob(array) is may
