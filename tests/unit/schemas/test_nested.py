from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rankmq.schemas.errors import InvalidInput, LimitExceeded
from rankmq.schemas.limits import Limits
from rankmq.schemas.nested import flatten
from rankmq.schemas.tensors import from_plain

STRING = np.dtypes.StringDType()


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (1, "int32"),
        (-(2**31), "int32"),
        ([2**31 - 1, -(2**31)], "int32"),
        ([2**31, 0], "int64"),
        ([-(2**31) - 1], "int64"),
        ([-(2**63), 2**63 - 1], "int64"),
        ([2**63, 0], "uint64"),
        ([2**64 - 1], "uint64"),
        (1.5, "float32"),
        ([1, 2.5], "float32"),
        ([[0.1, 0.2], [3, 4]], "float32"),
        ([], "float32"),
        ([[], []], "float32"),
        (True, "bool"),
        ([[True], [False]], "bool"),
    ],
    ids=str,
)
def test_the_dtype_of_numbers(value, dtype):
    array = from_plain(value)
    assert array.dtype == dtype
    assert np.array_equal(array, np.array(value, dtype))
    assert array.shape == np.array(value).shape


def test_floats_that_are_not_finite_stay_so():
    array = from_plain([1, math.inf, -math.inf, math.nan])
    assert array.tolist()[:3] == [1, math.inf, -math.inf]
    assert math.isnan(array[3])


@pytest.mark.parametrize("value", ["", "a\0", [["a", "b\0\0"], ["😀", ""]], ["x" * 100, "y"]], ids=repr)
def test_text(value):
    array = from_plain(value)
    assert array.dtype == STRING
    assert array.tolist() == value


@pytest.mark.parametrize("value", [b"", b"a\0", [[b"a", b"b\0\0"], [b"\xff", b""]]], ids=repr)
def test_binary(value):
    array = from_plain(value)
    assert array.dtype == object
    assert array.tolist() == value


@pytest.mark.parametrize(
    "value",
    [
        None,
        [None],
        [1, None],
        ["a", None],
        {},
        {"a": 1},
        [{}],
        [1, {}],
        Ellipsis,
        [Ellipsis],
        {1, 2},
        [1, "a"],
        ["a", 1.5],
        ["a", b"a"],
        [b"a", 1],
        [True, 2],
        [2, True],
        [True, 2.5],
        [True, "a"],
        1j,
        [[1], 2],
        [1, [2]],
        [[1], []],
        [[1, 2], [3]],
        [[[1]], [[1, 2]]],
        ["ab", ["a", "b"]],
        [[], 1],
        np.zeros(2, "c8"),
        [np.zeros(2, "M8[s]")],
        np.zeros(2, [("a", "i4")]),
    ],
    ids=repr,
)
def test_what_is_not_one_kind_in_one_shape_is_refused(value):
    with pytest.raises(InvalidInput):
        from_plain(value)


@pytest.mark.parametrize("value", [2**64, [-(2**63) - 1], [2**63, -1], 10**400, [1.5, 10**400], 1e39, [0.0, -1e300]])
def test_a_number_that_does_not_fit_is_refused_and_not_bent(value):
    with pytest.raises(InvalidInput):
        from_plain(value)


def test_scalars_and_arrays_of_numpy_count_as_numbers_and_lists():
    assert from_plain(np.float64(1.5)).dtype == np.float32
    assert from_plain([np.int64(1), 2]).tolist() == [1, 2]
    assert from_plain([np.ones(3), np.zeros(3)]).tolist() == [[1, 1, 1], [0, 0, 0]]
    assert from_plain([np.bool_(True)]).dtype == bool
    assert from_plain((1, (2,)[0])).tolist() == [1, 2]
    with pytest.raises(InvalidInput):
        from_plain([np.ones(3), np.ones(2)])


@settings(max_examples=200, deadline=None)
@given(st.recursive(st.integers(0, 9), lambda inner: st.lists(inner, max_size=3), max_leaves=12))
def test_shapes_are_those_of_numpy(value):
    try:
        expected = np.array(value)
    except ValueError:  # ragged
        with pytest.raises(InvalidInput):
            flatten(value)
    else:
        assert from_plain(value).shape == expected.shape
        assert flatten(value).leaves == expected.reshape(-1).tolist()


def nested(depth: int, value: object = 1) -> object:
    for _ in range(depth):
        value = [value]
    return value


def test_nesting_has_a_bound():
    limits = Limits(nesting=3)
    assert from_plain(nested(3), limits).shape == (1, 1, 1)
    for depth in (4, 5, 100_000):
        with pytest.raises(LimitExceeded, match="deeper than 3"):
            from_plain(nested(depth), limits)
    assert from_plain(nested(32)).ndim == 32
    with pytest.raises(LimitExceeded, match="deeper than 32"):
        from_plain(nested(33))


def test_elements_have_a_bound():
    limits = Limits(elements=6)
    assert from_plain([[1, 2, 3], [4, 5, 6]], limits).size == 6
    for value in ([1] * 7, [[1, 2, 3, 4], [5, 6, 7, 8]], [[[1]] * 7], [[]] * 7):
        with pytest.raises(LimitExceeded, match="more than 6"):
            from_plain(value, limits)


def test_a_list_that_holds_itself_many_times_is_not_unrolled(peak_bytes):
    value: list = [1.0] * 100
    for _ in range(10):
        value = [value] * 100

    def unroll() -> None:
        with pytest.raises(LimitExceeded):
            from_plain(value)

    assert peak_bytes(unroll) < 40_000_000


def test_one_long_text_does_not_make_the_others_long(peak_bytes):
    for long, short in (("x" * 1_000_000, "a"), (b"x" * 1_000_000, b"a")):
        value = [long, *[short] * 10_000]
        assert peak_bytes(lambda: from_plain(value)) < 8_000_000  # noqa: B023
