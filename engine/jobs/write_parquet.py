"""Results as a Parquet file: custom_id and a column for each output. The one module that writes pyarrow's tables."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

from ...schemas.errors import ConfigurationError, JobStopped
from ...schemas.tensors import BFLOAT16, Tensor, bfloat16_to_float32, nbytes, to_array
from .assembly import Result
from .places import Place

__all__ = ["check", "write_parquet"]

_MOST_ROWS = 4096
_MOST_BYTES = 16 << 20
_CUSTOM_ID = "custom_id"
_OTHER = "JSON lines (--results results.jsonl) can hold it, and nothing is computed again"


def check() -> None:
    """Whether Parquet can be written.

    Raises:
        ConfigurationError: pyarrow is not installed.
    """
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError:
        raise ConfigurationError("Parquet needs pyarrow: pip install 'rankmq[parquet]'") from None


def write_parquet(place: Place, results: Any) -> None:
    """Writes a table, some rows at a time; an output with axes is a column of lists, nested as deep as it has axes.

    Raises:
        JobStopped: rows whose outputs have different names, dtypes or numbers of axes, or no space left.
    """
    import pyarrow
    import pyarrow.parquet

    with place.writing() as file:
        writer = None
        try:
            for rows in _groups(results()):
                table = _table(place, rows, None if writer is None else writer.schema)
                if writer is None:
                    writer = pyarrow.parquet.ParquetWriter(file, table.schema)
                writer.write_table(table, row_group_size=len(rows))
            if writer is None:
                schema = pyarrow.schema([(_CUSTOM_ID, pyarrow.string())])
                writer = pyarrow.parquet.ParquetWriter(file, schema)
        except pyarrow.ArrowException as error:
            raise JobStopped(f"{place}: {' '.join(str(error).split())[:300]}; {_OTHER}", way="results") from None
        finally:
            if writer is not None:
                writer.close()


def _groups(results: Iterator[Result]) -> Iterator[list[Result]]:
    rows: list[Result] = []
    size = 0
    for result in results:
        rows.append(result)
        size += sum(map(nbytes, result.outputs.values()))
        if len(rows) >= _MOST_ROWS or size >= _MOST_BYTES:
            yield rows
            rows, size = [], 0
    if rows:
        yield rows


def _table(place: Place, rows: list[Result], schema: Any) -> Any:
    import pyarrow

    names = list(rows[0].outputs)
    columns: dict[str, Any] = {_CUSTOM_ID: pyarrow.array([it.custom_id for it in rows], pyarrow.string())}
    for row in rows:
        if list(row.outputs) != names:
            raise _unlike(place, row, f"has the outputs {', '.join(row.outputs)}")
    for name in names:
        columns[name if name != _CUSTOM_ID else "custom_id_"] = _column(place, name, rows)
    table = pyarrow.table(columns)
    if schema is not None and table.schema != schema:
        raise _unlike(place, rows[0], "and those behind it have other outputs or dtypes")
    return table


def _column(place: Place, name: str, rows: list[Result]) -> Any:
    import pyarrow

    arrays = [_array(row.outputs[name]) for row in rows]
    dtype, axes = arrays[0].dtype, arrays[0].ndim
    for row, array in zip(rows, arrays, strict=True):
        if array.dtype != dtype or array.ndim != axes:
            raise _unlike(place, row, f"has {name} of {array.dtype} with {array.ndim} axes")
    flat: list[Any] = [it.reshape(-1) for it in arrays]
    if dtype.kind in "TO":
        kind = pyarrow.string() if dtype.kind == "T" else pyarrow.binary()
        values = pyarrow.array(list(itertools.chain.from_iterable(it.tolist() for it in flat)), kind)
    else:
        values = pyarrow.array(np.concatenate(flat))
    shapes = [it.shape for it in arrays]
    for axis in range(axes - 1, -1, -1):
        lengths = [size for shape in shapes for size in [shape[axis]] * int(np.prod(shape[:axis], dtype=np.int64))]
        offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int32)
        values = pyarrow.ListArray.from_arrays(pyarrow.array(offsets), values)
    return values


def _array(tensor: Tensor) -> np.ndarray[Any, Any]:
    array = to_array(tensor)
    return bfloat16_to_float32(array) if array.dtype == BFLOAT16 else array


def _unlike(place: Place, row: Result, what: str) -> JobStopped:
    return JobStopped(f"{place}: row {row.row} {what}, unlike the first; {_OTHER}", way="results")
