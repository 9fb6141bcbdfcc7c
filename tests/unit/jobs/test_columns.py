"""Which column is which input."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rankmq.engine.jobs.columns import Columns, Mapped
from rankmq.schemas.errors import ConfigurationError, InvalidInput, LimitExceeded, RankmqError
from rankmq.schemas.tensors import DTYPES, Tensor, bfloat16_to_float32, to_array

NAME = st.text(st.characters(codec="ascii", exclude_characters="=:", min_codepoint=33), min_size=1, max_size=8)


@given(NAME, st.one_of(st.just(""), NAME), st.sampled_from(["", *DTYPES]))
def test_a_mapping_is_read_as_it_is_written(name: str, column: str, dtype: str) -> None:
    mapped = Mapped(name, column, dtype)
    assert Mapped.parse(str(mapped)) == mapped


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("x", Mapped("x")),
        ("x=a:b", Mapped("x", "a:b")),
        ("x=a:b:int8", Mapped("x", "a:b", "int8")),
        ("x:float32", Mapped("x", "", "float32")),
    ],
)
def test_mappings(text: str, wanted: Mapped) -> None:
    assert Mapped.parse(text) == wanted


@pytest.mark.parametrize(
    ("mapped", "known", "said"),
    [
        (["=a"], ["a"], "write it as"),
        (["x=a", "x=b"], ["a", "b"], "twice"),
        (["x=c"], ["a", "b"], "no column 'c'; there are: a, b"),
        (["x"], ["a", "b"], "which column is meant"),
        (["x:float33"], ["x"], "no such dtype float33; there are: .*float32"),
        (["x=a:float33"], ["a"], "no such dtype float33"),
        (["x=c:float33"], ["a"], "no column 'c:float33'"),
    ],
)
def test_mappings_that_cannot_be(mapped: list[str], known: list[str], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        Columns([Mapped.parse(it) for it in mapped], known)


def test_a_dtype_that_there_is_not_is_no_column() -> None:
    columns = Columns([Mapped.parse("x=a:float33")], None)
    with pytest.raises(InvalidInput, match="column 'a': no such dtype float33"):
        columns.input_of({"a": 1})
    assert columns.input_of({"a": 1, "a:float33": 2}).values == {"x": 2}


def test_each_column_is_the_input_of_its_name_unless_something_is_said() -> None:
    assert Columns([], None).input_of({"x": 1, "y": "a"}).values == {"x": 1, "y": "a"}
    assert Columns([Mapped("x", "a")], None).input_of({"a": 1, "b": 2}).values == {"x": 1}
    assert Columns([Mapped("x")], ["array"]).input_of({"array": 3}).values == {"x": 3}


def test_a_row_is_lenient_if_one_of_its_values_has_no_dtype() -> None:
    array = np.ones(2, np.float32)
    assert not Columns([], None).input_of({"x": array}).lenient
    assert Columns([], None).input_of({"x": array, "y": 1}).lenient


@pytest.mark.parametrize(
    ("values", "error", "said"),
    [
        ({"y": 1}, InvalidInput, "no column 'x'; there are: y"),
        ({"x": None}, InvalidInput, "column 'x': it is null"),
        ({"x": {"dtype": "float99", "data": []}}, InvalidInput, "column 'x': dtype"),
        ({"x": np.ones(2, complex)}, InvalidInput, "column 'x': an array of dtype complex128"),
        ({str(number): 1 for number in range(65)}, LimitExceeded, "65 inputs"),
    ],
)
def test_rows_that_cannot_be(values: dict[str, object], error: type[RankmqError], said: str) -> None:
    columns = Columns([], None) if len(values) > 1 else Columns([Mapped("x", "x")], None)
    with pytest.raises(error, match=said):
        columns.input_of(values)


@given(st.lists(st.integers(-300, 300), max_size=8), st.sampled_from(["int8", "uint8", "int64", "float16", "float32"]))
def test_numbers_change_their_dtype_where_none_is_lost(numbers: list[int], dtype: str) -> None:
    columns = Columns([Mapped("x", "x", dtype)], None)
    given_, wanted = np.array(numbers, np.float64), np.array(numbers).astype(dtype)
    if np.array_equal(wanted.astype(np.float64), given_):
        tensor = columns.input_of({"x": given_}).values["x"]
        assert isinstance(tensor, Tensor)
        assert tensor.dtype == dtype
        assert np.array_equal(to_array(tensor), wanted)
    else:
        with pytest.raises(InvalidInput, match="does not fit"):
            columns.input_of({"x": given_})


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        *((1e300, "float32"), (1.5, "int32"), (-1, "uint64"), ("a", "int8")),
        *(((1 << 24) + 1, "float32"), (2049, "float16"), (257, "bfloat16"), (1e39, "bfloat16")),
    ],
)
def test_and_not_where_one_is(value: object, dtype: str) -> None:
    with pytest.raises(InvalidInput):
        Columns([Mapped("x", "x", dtype)], None).input_of({"x": np.array(value)})


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_floats_are_rounded(dtype: str) -> None:
    tensor = (
        Columns([Mapped("x", "x", dtype)], None).input_of({"x": np.array([0.1, np.nan, np.inf, 1e-300])}).values["x"]
    )
    assert isinstance(tensor, Tensor)
    found = to_array(tensor)
    found = bfloat16_to_float32(found) if dtype == "bfloat16" else found
    np.testing.assert_allclose(found.astype(np.float64), [0.1, np.nan, np.inf, 0.0], rtol=1e-2)
