"""What is said where rows fail for the names of their inputs."""

import pytest
from rankmq.engine.instances import arguments_of
from rankmq.engine.jobs.hints import mapping_hint
from rankmq.schemas.errors import InvalidInput
from rankmq.schemas.limits import Limits


def said(inputs: list[str], columns: list[str]) -> str:
    with pytest.raises(InvalidInput) as error:
        arguments_of(dict.fromkeys(columns, 1), inputs, Limits())
    return mapping_hint(error.value.message, columns)


@pytest.mark.parametrize(
    ("inputs", "columns", "hint"),
    [
        (["x"], ["array"], "the inputs are x, and the columns array: say which is which, as --map x=array"),
        (["x"], ["x", "note"], "the inputs are x, and the columns x, note: say which is which, as --map x"),
        (
            ["x", "y"],
            ["b", "y", "a"],
            "the inputs are x, y, and the columns b, y, a: say which is which, as --map x=b --map y",
        ),
        (["x", "y"], ["y"], "the inputs are x, y, and the columns y: say which is which, as --map y"),
        (["x"], [], "the inputs are x, and the columns none"),
    ],
)
def test_the_columns_are_named_and_how_they_are_mapped(inputs: list[str], columns: list[str], hint: str) -> None:
    assert said(inputs, columns) == hint


def test_of_other_errors_nothing_is_said() -> None:
    assert mapping_hint("input x: has shape (2,)", ["x"]) == ""
    assert mapping_hint("missing input x", ["x"]) == ""
