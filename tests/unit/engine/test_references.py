"""Tensors by reference: names, which inputs are some, and which tensors are made some."""

import string

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rankmq.engine.references import chosen, inputs_of, names_of, new_name, refers, speaks, unnamed, written_at
from rankmq.schemas import codec
from rankmq.schemas.blobs import Blob, check_blob
from rankmq.schemas.errors import InvalidInput
from rankmq.schemas.messages import Request
from rankmq.schemas.tensors import Tensor, from_array, nbytes

TOKENS = st.binary(min_size=16, max_size=16)
MOMENTS = st.floats(0, 4e9)


def a_blob(name: str) -> Blob:
    return Blob(name=name, bytes=4, digest="crc32:00000000")


@given(MOMENTS, TOKENS)
def test_a_name_is_a_plain_token_that_says_when_it_was_made(now, token):
    name = new_name(now, token)
    check_blob(a_blob(name))
    assert set(name) <= set(string.ascii_letters + string.digits + "-")
    assert written_at(name) == int(now)


@given(MOMENTS, MOMENTS, TOKENS, TOKENS)
def test_names_sort_by_date(one, other, token, another):
    if int(one) < int(other):
        assert new_name(one, token) < new_name(other, another)


@pytest.mark.parametrize(
    "name", ["", "..", "notes.txt", "20261332T000000Z-" + "0" * 32, "99999999T999999Z-" + "0" * 32]
)
def test_what_is_no_name_of_ours_has_no_age(name):
    assert written_at(name) is None


@given(MOMENTS, MOMENTS, TOKENS, TOKENS, st.sampled_from([codec.MSGPACK, codec.JSON]))
def test_two_bodies_that_differ_in_names_alone_are_the_same_request(one, other, token, another, content_type):
    def body(name: str, digest: str = "crc32:00000000") -> bytes:
        tensor = Tensor("float32", (1,), blob=Blob(name=name, bytes=4, digest=digest))
        return codec.encode_request(Request(servable="m", method="f", instances=[{"x": tensor}]), content_type)

    first, second = new_name(one, token), new_name(other, another)
    assert unnamed(body(first)) == unnamed(body(second))
    assert unnamed(body(first)) != unnamed(body(first, "crc32:00000001"))
    plain = codec.encode_request(Request(servable="m", method="f", instances=[{"x": 1}]), content_type)
    assert unnamed(plain) == plain


@pytest.mark.parametrize(
    ("headers", "wanted"),
    [({}, False), ({"rankmq-blobs": True}, True), ({"rankmq-blobs": "true"}, True), ({"rankmq-blobs": False}, False),
     ({"rankmq-blobs": "no"}, False), ({"rankmq-blobs": {}}, False), ({"rankmq-blobs": None}, False)],
)  # fmt: skip
def test_who_says_that_it_reads_blobs(headers, wanted):
    assert speaks(headers) is wanted


NAME, OTHER = new_name(0, bytes(16)), new_name(1, bytes(16))


def test_the_inputs_by_reference():
    good = Tensor("float32", (1,), blob=a_blob(NAME))
    evil = Tensor("float32", (1,), blob=a_blob("../x"))
    in_json = {"dtype": "int32", "shape": [1], "blob": {"name": OTHER, "bytes": 4, "digest": "crc32:00000000"}}
    rows = [{"x": good, "y": 1, "z": from_array(np.ones(3))}, {"x": evil, "y": [1], "z": good}, {"x": in_json, "y": {}}]
    found = inputs_of(rows)
    assert [type(it) for it in found] == [Tensor, InvalidInput, Tensor, Tensor]
    assert names_of(found) == (NAME, OTHER)
    assert [refers(value) for row in rows for value in row.values()] == [
        True,
        False,
        False,
        True,
        False,
        True,
        True,
        False,
    ]


SIZES = st.lists(st.integers(0, 40_000) | st.integers(4090, 4100), max_size=20)


@given(SIZES, st.integers(0, 50_000), st.integers(0, 200_000), st.integers(0, 3))
def test_what_is_large_goes_by_reference_and_the_largest_until_the_rest_has_room(sizes, each, together, texts):
    tensors = [from_array(np.zeros(size, np.uint8)) for size in sizes]
    tensors += [Tensor("string", (1,), ("a" * 9000,))] * texts
    out = chosen(tensors, each, together)

    assert all(index < len(sizes) for index in out), "text went by reference"
    for index, size in enumerate(sizes):
        if size > max(each, 4096):
            assert index in out
        if size < 4096:
            assert index not in out
    left = [index for index in range(len(tensors)) if index not in out]
    kept = sum(nbytes(tensors[index]) for index in left)
    assert kept <= together or all(nbytes(tensors[index]) < 4096 for index in left if index < len(sizes))
    beyond = [sizes[index] for index in out if sizes[index] <= max(each, 4096)]
    if beyond:  # none of them was needless
        assert kept + min(beyond) > together
