"""Rows out of a Parquet file, batch by batch of its row groups; the one module that reads pyarrow's tables."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

from ...schemas.errors import ConfigurationError, InvalidInput, JobStopped
from .custom_ids import CUSTOM_ID, custom_id_of
from .places import Place, cannot
from .rows import Row

__all__ = ["ParquetRows"]

_BATCH = 256


class ParquetRows:
    """A Parquet file. Positions are numbers of rows. A column of text or integers called custom_id has the rows' ids.

    Numbers and lists of numbers keep the dtype of their column; lists of lists are plain values, as in JSON.

    Args:
        place: the file.
        wanted: the columns that are read; all if None.
    """

    def __init__(self, place: Place, wanted: frozenset[str] | None = None) -> None:
        self._place = place
        with place.open() as file:
            parquet = self._file(file)
            names = tuple(parquet.schema_arrow.names)
            groups = [parquet.metadata.row_group(i).num_rows for i in range(parquet.metadata.num_row_groups)]
        self._starts = [0, *itertools.accumulate(groups)]
        self.columns: tuple[str, ...] | None = tuple(name for name in names if name != CUSTOM_ID)
        self._read = [name for name in names if wanted is None or name in wanted or name == CUSTOM_ID]
        self.size = self._starts[-1]
        self.total: int | None = self.size
        if not self.size:
            raise ConfigurationError(f"{place} has no rows: there is nothing to do")

    def _file(self, file: Any) -> Any:
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError:
            raise ConfigurationError(f"{self._place}: Parquet needs pyarrow: pip install 'rankmq[parquet]'") from None
        try:
            return pyarrow.parquet.ParquetFile(file, pre_buffer=False)
        except (pyarrow.ArrowException, OSError) as error:
            raise ConfigurationError(cannot(f"{self._place} is no whole Parquet file", error)) from None

    def read(self, position: int) -> Iterator[Row]:
        """See `Rows`."""
        import pyarrow

        with self._place.open() as file:
            parquet = self._file(file)
            group = bisect.bisect_right(self._starts, position) - 1
            number = self._starts[group]
            try:
                for batch in parquet.iter_batches(
                    _BATCH, row_groups=list(range(group, len(self._starts) - 1)), columns=self._read, use_threads=False
                ):
                    if number + len(batch) > position:
                        yield from _rows_of(batch, number, max(0, position - number))
                    number += len(batch)
            except (pyarrow.ArrowException, OSError) as error:
                text = cannot(f"{self._place} cannot be read on at row {number}", error)
                raise JobStopped(text, way="cancel") from None


def _rows_of(batch: Any, first: int, start: int) -> Iterator[Row]:
    columns = {name: _values(batch.column(name)) for name in batch.schema.names}
    share = max(1, batch.nbytes // max(1, len(batch)))
    for index in range(start, len(batch)):
        number = first + index
        values: dict[str, Any] = {name: column[index] for name, column in columns.items()}
        try:
            custom_id = custom_id_of(values.pop(CUSTOM_ID, None))
        except InvalidInput as error:
            yield Row(number, number + 1, error)
        else:
            yield Row(number, number + 1, values, share, custom_id)


def _values(column: Any) -> Any:
    """By row what a column has: numpy's numbers and arrays of them, text, bytes, None, or nested lists."""
    import pyarrow.types as kinds

    kind = column.type
    if kinds.is_dictionary(kind):
        column = column.dictionary_decode()
        kind = column.type
    if (kinds.is_integer(kind) or kinds.is_floating(kind)) and not column.null_count:
        return column.to_numpy(zero_copy_only=False)
    if kinds.is_list(kind) or kinds.is_large_list(kind) or kinds.is_fixed_size_list(kind):
        if not (kinds.is_integer(kind.value_type) or kinds.is_floating(kind.value_type)):
            return column.to_pylist()
        # A whole array even where a row is null: its part of it is not looked at.
        flat = column.flatten()
        if flat.null_count:
            return column.to_pylist()
        numbers = flat.to_numpy(zero_copy_only=False)
        lengths = [0 if it is None else it for it in _lengths(column)]
        ends = list(itertools.accumulate(lengths))
        valid = column.is_valid().to_pylist()
        return [
            np.asarray(numbers[end - length : end]) if there else None
            for end, length, there in zip(ends, lengths, valid, strict=True)
        ]
    return column.to_pylist()


def _lengths(column: Any) -> list[int | None]:
    import pyarrow.compute

    found: list[int | None] = pyarrow.compute.list_value_length(column).to_pylist()
    return found
