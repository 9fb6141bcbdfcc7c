"""The rows of a job's input, whatever it is stored in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from ...schemas.errors import RankmqError

__all__ = ["Row", "Rows"]


@dataclass(frozen=True, slots=True)
class Row:
    """One row as it was read.

    Attributes:
        position: where reading must begin for this row to come first.
        values: its columns by name; or what is wrong with it.
        end: where the next row is looked for.
        nbytes: about how many bytes it has.
        custom_id: the id that it brought.
    """

    position: int
    end: int
    values: Mapping[str, Any] | RankmqError
    nbytes: int = 0
    custom_id: str | None = None


class Rows(Protocol):
    """Rows that can be read again from any of their positions, each time the same.

    Attributes:
        columns: their names; None where each row has its own.
        total: how many rows there are, where that is known before they are read.
        size: the position behind the last row.
    """

    columns: tuple[str, ...] | None
    total: int | None
    size: int

    def read(self, position: int) -> Iterator[Row]:
        """The rows from a position on.

        Raises:
            JobStopped: the input cannot be read on.
        """
        ...
