"""Rows as a table, for a person."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from .row import Row

__all__ = ["number", "spread", "table"]


def table(rows: Sequence[Row]) -> Any:
    """A table (of rich) with a section for each benchmark."""
    from rich.table import Table
    from rich.text import Text

    out = Table(box=None, pad_edge=False, header_style="bold")
    out.add_column("name")
    out.add_column("case")
    for column in ("value", "ceiling"):
        out.add_column(column, justify="right")
    out.add_column("unit")
    for column in ("ratio", "min .. max", "rounds"):
        out.add_column(column, justify="right")
    for name, of_name in groupby(rows, key=lambda row: row.name):
        for index, row in enumerate(of_name):
            out.add_row(
                Text("" if index else name),
                Text(row.case),
                number(row.value),
                number(row.ceiling),
                row.unit,
                number(row.ratio),
                spread(row),
                str(row.rounds),
            )
        out.add_section()
    return out


def spread(row: Row) -> str:
    """The least and the greatest of the rounds' ratios."""
    if row.ratio_min is None or row.ratio_max is None:
        return ""
    return f"{number(row.ratio_min)} .. {number(row.ratio_max)}"


def number(value: float | None) -> str:
    """Three digits that count, without an exponent; nothing for None."""
    if value is None:
        return ""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{digits}f}"
