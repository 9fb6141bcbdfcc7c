"""Values and servables as a person reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..schemas.errors import RankmqError
from ..schemas.tensors import BFLOAT16, bfloat16_to_float32, dtype_name

__all__ = ["console", "first_values", "human_bytes", "outputs_table", "shape_of"]

Array = np.ndarray[Any, Any]

_MOST_VALUES = 8
_LONGEST_TEXT = 60
_WIDTH_OF_A_PIPE = 200
_WIDEST = 10_000


def console(*, broken: bool = True) -> Any:
    """Standard output; wide where it is not a terminal, so that no line of a table is broken for a program.

    Args:
        broken: on a terminal, lines may be: else they are as long as they must be, and paths in them can be copied.
    """
    import sys

    from rich.console import Console

    width = (None if sys.stdout.isatty() else _WIDTH_OF_A_PIPE) if broken else _WIDEST
    return Console(highlight=False, width=width)


def outputs_table(rows: Sequence[Mapping[str, Array | RankmqError] | RankmqError], what: str = "output") -> Any:
    """A table of outputs: per instance (where there are several) and name the dtype, the shape and the first values.

    Args:
        rows: per instance its arrays by name, or its error; an array may be an error too.
        what: they are.
    """
    from rich.table import Table
    from rich.text import Text

    several = len(rows) > 1
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in (*(("instance",) if several else ()), what, "dtype", "shape", "values"):
        table.add_column(column, overflow="fold")
    for index, row in enumerate(rows):
        number = [str(index)] if several else []
        if isinstance(row, RankmqError):
            table.add_row(*number, "", "", "", Text(f"{row.code}: {row.message}", style="red"))
            continue
        for name, array in row.items():
            if isinstance(array, RankmqError):
                table.add_row(*number, Text(name), "", "", Text(f"{array.code}: {array.message}", style="red"))
                number = [""] if several else []
                continue
            table.add_row(*number, Text(name), dtype_name(array.dtype), shape_of(array), Text(first_values(array)))
            number = [""] if several else []
    return table


def shape_of(array: Array) -> str:
    """`128 x 16`; `scalar` for no dimensions."""
    return " x ".join(map(str, array.shape)) if array.ndim else "scalar"


def first_values(array: Array) -> str:
    """The first values of an array in C order, in one line."""
    if array.dtype == BFLOAT16:
        array = bfloat16_to_float32(array)
    flat = array.reshape(-1)[:_MOST_VALUES]
    text = ", ".join(_one(value) for value in flat.tolist())
    return text + (", ..." if array.size > _MOST_VALUES else "")


def _one(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, str | bytes):
        text = repr(value)
        return text if len(text) <= _LONGEST_TEXT else text[: _LONGEST_TEXT - 4] + "...'"
    return str(value)


def human_bytes(count: int) -> str:
    """`419 MB`."""
    size, units = float(count), ["B", "kB", "MB", "GB"]
    while size >= 1000 and len(units) > 1:
        size, units = size / 1000, units[1:]
    return f"{size:.3g} {units[0]}"
