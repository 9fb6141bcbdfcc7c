"""Results as arrays of numpy: .npz with an array for each output, .npy with the one output, or a file for each row."""

from __future__ import annotations

import contextlib
import math
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from ...schemas.errors import JobStopped
from ...schemas.tensors import BFLOAT16, Tensor, bfloat16_to_float32, to_array
from .assembly import Result
from .places import Place

__all__ = ["write_folder", "write_npy", "write_npz"]

_ROW = "row"
_SAFE = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,199}")
_OTHER = "JSON lines (--results results.jsonl) can hold it, and nothing is computed again"
_LONG_AGO = (1980, 1, 1, 0, 0, 0)
"""The files of the archive have no time of their own, so that the same results have the same bytes."""


@dataclass(slots=True)
class _Column:
    """An output of all rows.

    Attributes:
        dtype: of the array; for text as wide as the longest.
        shape: of one row.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]


def _array(tensor: Tensor) -> np.ndarray[Any, Any]:
    array = to_array(tensor)
    if array.dtype == BFLOAT16:
        return bfloat16_to_float32(array)
    if array.dtype.kind == "T":
        return np.array(array.tolist(), np.str_).reshape(array.shape)
    return array


def _look_over(place: Place, results: Iterator[Result]) -> tuple[dict[str, _Column], int]:
    """What the outputs are, and of how many rows: an array's head says so, and comes first."""
    columns: dict[str, _Column] = {}
    count = 0
    for result in results:
        arrays = {name: _array(tensor) for name, tensor in result.outputs.items()}
        if not count:
            columns = {name: _Column(array.dtype, array.shape) for name, array in arrays.items()}
        if arrays.keys() != columns.keys():
            raise _unlike(place, result, f"has the outputs {', '.join(arrays)}")
        for name, array in arrays.items():
            column = columns[name]
            if array.dtype.kind == "O":
                raise JobStopped(f"{place}: output {name} is bytes, which arrays cannot hold; {_OTHER}", way="results")
            if array.shape != column.shape or array.dtype.kind != column.dtype.kind:
                raise _unlike(place, result, f"has {name} of {array.dtype} and shape {list(array.shape)}")
            if array.dtype.kind == "U":
                column.dtype = max(column.dtype, array.dtype, key=lambda it: it.itemsize)
            elif array.dtype != column.dtype:
                raise _unlike(place, result, f"has {name} of {array.dtype}")
        count += 1
    return columns, count


def _unlike(place: Place, result: Result, what: str) -> JobStopped:
    text = f"{place}: the results are no one array: row {result.row} {what}, unlike the first; {_OTHER}"
    return JobStopped(text, way="results")


def _write_head(file: IO[bytes], dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    npy.write_array_header_2_0(file, {"descr": npy.dtype_to_descr(dtype), "fortran_order": False, "shape": shape})


def write_npz(place: Place, results: Any) -> None:
    """An array for each output, whose first axis are the rows that have results; `row` has their numbers.

    Raises:
        JobStopped: rows whose outputs have different dtypes or shapes, bytes, or no space left.
    """
    columns, count = _look_over(place, results())
    names = [name if name != _ROW else "row_" for name in columns]
    with place.writing() as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, column in zip(columns, names, strict=True):
            with _member(archive, column) as member:
                _write_head(member, columns[name].dtype, (count, *columns[name].shape))
                for result in results():
                    member.write(_bytes_of(result.outputs[name], columns[name].dtype))
        with _member(archive, _ROW) as member:
            _write_head(member, np.dtype("<i8"), (count,))
            for result in results():
                member.write(result.row.to_bytes(8, "little"))


@contextlib.contextmanager
def _member(archive: zipfile.ZipFile, name: str) -> Iterator[IO[bytes]]:
    with archive.open(zipfile.ZipInfo(f"{name}.npy", _LONG_AGO), "w", force_zip64=True) as member:
        yield member


def write_npy(place: Place, results: Any) -> None:
    """The one output there is, whose first axis are the rows that have results.

    Raises:
        JobStopped: more than one output, and as for `write_npz`.
    """
    columns, count = _look_over(place, results())
    if len(columns) > 1:
        text = f"{place}: there are the outputs {', '.join(columns)}, and a .npy file holds one; {_OTHER}"
        raise JobStopped(text, way="results")
    with place.writing() as file:
        for name, column in columns.items():
            _write_head(file, column.dtype, (count, *column.shape))
            for result in results():
                file.write(_bytes_of(result.outputs[name], column.dtype))
        if not columns:
            _write_head(file, np.dtype("<f4"), (0,))


def write_folder(place: Place, results: Any) -> None:
    """A .npy file for each row and output, named for the row's id where that makes a file's name.

    Raises:
        JobStopped: bytes, or no space left.
    """
    place.make_folder()  # also where no row has a result
    for result in results():
        stem = result.custom_id if _SAFE.fullmatch(result.custom_id) else f"row-{result.row}~"  # which is nobody's id
        for name, tensor in result.outputs.items():
            array = _array(tensor)
            if array.dtype.kind == "O":
                raise JobStopped(f"{place}: output {name} is bytes, which arrays cannot hold; {_OTHER}", way="results")
            with place.within(f"{stem}.{name}.npy" if len(result.outputs) > 1 else f"{stem}.npy").writing() as file:
                _write_head(file, array.dtype, array.shape)
                file.write(np.ascontiguousarray(array).tobytes())


def _bytes_of(tensor: Tensor, dtype: np.dtype[Any]) -> bytes | memoryview:
    if isinstance(tensor.data, memoryview) and tensor.dtype != "bfloat16":
        return tensor.data if math.prod(tensor.shape) else b""
    return _array(tensor).astype(dtype, copy=False).tobytes()
