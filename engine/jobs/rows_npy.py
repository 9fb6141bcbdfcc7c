"""Rows out of arrays on disk: .npy files, and the arrays of an .npz file, row by row along their first axis.

They are read where they are, some rows at a time. They are not mapped into memory: a file that shrinks under a mapping
ends the process, and the pages of a mapping count as its memory.
"""

from __future__ import annotations

import contextlib
import math
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from ...schemas.errors import ConfigurationError, InvalidInput, JobStopped, RankmqError
from ...schemas.tensors import dtype_name
from .custom_ids import CUSTOM_ID, custom_id_of
from .places import Place, cannot
from .rows import Row

__all__ = ["ARRAY", "ArrayFile", "ArrayFolder", "ArrayZip"]

ARRAY = "array"
"""The name of the one column of a .npy file, and of a folder of them."""

_BLOCK_BYTES = 1 << 20
_LOCAL_HEADER = 30
_BROKEN = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True, slots=True)
class _Header:
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    start: int

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    @property
    def end(self) -> int:
        return self.start + math.prod(self.shape) * self.dtype.itemsize


def _header(file: IO[bytes], what: str) -> _Header:
    try:
        version = npy.read_magic(file)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran, dtype = read(file)
    except _BROKEN as error:
        raise ConfigurationError(cannot(f"{what} is no .npy array", error)) from None
    if dtype.hasobject:
        raise ConfigurationError(
            f"{what} holds Python objects, which are not read: save it with a dtype of numpy's own"
        )
    try:
        dtype_name(dtype)
    except RankmqError as error:
        raise ConfigurationError(f"{what}: {error.message}") from None
    if fortran and len(shape) > 1:
        raise ConfigurationError(f"{what} is in Fortran order: save it again as numpy.ascontiguousarray(...)")
    return _Header(dtype, shape, file.tell())


@dataclass(slots=True)
class _Sum:
    """A checksum over what is read of a file, and what it should come to."""

    expected: int
    found: int = 0

    def add(self, data: bytes) -> None:
        self.found = zlib.crc32(data, self.found)


def _rows_of(
    file: IO[bytes], header: _Header, position: int, what: str, crc: _Sum | None = None
) -> Iterator[np.ndarray[Any, Any]]:
    """The rows of an array from one on; the file's offset is its own until the last of them."""
    count, width = header.shape[0], header.row_bytes
    block = max(1, _BLOCK_BYTES // max(1, width))
    file.seek(header.start + position * width)
    while position < count:
        rows = min(block, count - position)
        try:
            data = file.read(rows * width)
        except _BROKEN as error:
            text = cannot(f"{what} cannot be read on at row {position}", error)
            raise JobStopped(text, way="resume" if isinstance(error, OSError) else "cancel") from None
        if len(data) != rows * width:
            raise JobStopped(
                f"{what} ends within row {position + len(data) // max(1, width)}: it was cut off meanwhile",
                way="cancel",
            )
        position += rows
        if crc is not None:
            crc.add(data)
            if position == count and crc.found != crc.expected:
                raise JobStopped(f"{what} is damaged: it has not the checksum that it should have", way="cancel")
        yield from np.frombuffer(data, header.dtype, rows * math.prod(header.shape[1:])).reshape(
            rows, *header.shape[1:]
        )


class ArrayFile:
    """A .npy file, whose column is `ARRAY`. Positions are numbers of rows.

    Args:
        place: the file.
    """

    columns: tuple[str, ...] | None = (ARRAY,)

    def __init__(self, place: Place) -> None:
        self._place = place
        with place.open() as file:
            self._header = _header(file, str(place))
        _check_length(str(place), self._header, place.size())
        self.total: int | None = self._header.shape[0]
        self.size = self._header.shape[0]

    def read(self, position: int) -> Iterator[Row]:
        """See `Rows`."""
        with self._place.open() as file:
            for number, array in enumerate(_rows_of(file, self._header, position, str(self._place)), start=position):
                yield Row(number, number + 1, {ARRAY: np.asarray(array)}, self._header.row_bytes)


class ArrayZip:
    """An .npz file: its arrays are the columns, all of one length. Positions are numbers of rows.

    An array of text or integers called custom_id has the rows' ids.

    Args:
        place: the file.
    """

    def __init__(self, place: Place) -> None:
        self._place = place
        self._headers: dict[str, _Header] = {}
        with contextlib.ExitStack() as stack:
            archive = self._open(stack)
            for member in archive.infolist():
                name = member.filename.removesuffix(".npy")
                what = f"{place}: array {name!r}"
                try:
                    file = stack.enter_context(archive.open(member))
                except _BROKEN as error:
                    raise ConfigurationError(cannot(f"{what} cannot be read", error)) from None
                self._headers[name] = _header(file, what)
                _check_length(what, self._headers[name], member.file_size)
        lengths = {name: header.shape[0] for name, header in self._headers.items()}
        if len(set(lengths.values())) > 1:
            told = ", ".join(f"{name} {length}" for name, length in lengths.items())
            raise ConfigurationError(f"{place}: its arrays have different numbers of rows: {told}")
        self.columns: tuple[str, ...] | None = tuple(name for name in self._headers if name != CUSTOM_ID)
        if not self.columns:
            raise ConfigurationError(f"{place} has no arrays: there is nothing to do")
        self.size = lengths[self.columns[0]]
        self.total: int | None = self.size

    def _open(self, stack: contextlib.ExitStack) -> zipfile.ZipFile:
        try:
            return stack.enter_context(zipfile.ZipFile(stack.enter_context(self._place.open())))
        except _BROKEN as error:
            raise ConfigurationError(cannot(f"{self._place} is no whole .npz file", error)) from None

    def read(self, position: int) -> Iterator[Row]:
        """See `Rows`."""
        with contextlib.ExitStack() as stack:
            archive = self._open(stack)
            arrays = {}
            for name, header in self._headers.items():
                file, start, crc = self._member(archive, name, stack)
                what = f"{self._place}: array {name!r}"
                found = _Header(header.dtype, header.shape, start)
                arrays[name] = _rows_of(file, found, position, what, crc if not position else None)
            nbytes = sum(header.row_bytes for header in self._headers.values())
            for number in range(position, self.size):
                values = {name: np.asarray(next(rows)) for name, rows in arrays.items()}
                try:
                    custom_id = custom_id_of(values.pop(CUSTOM_ID, None))
                except InvalidInput as error:
                    yield Row(number, number + 1, error)
                else:
                    yield Row(number, number + 1, values, nbytes, custom_id)

    def _member(
        self, archive: zipfile.ZipFile, name: str, stack: contextlib.ExitStack
    ) -> tuple[IO[bytes], int, _Sum | None]:
        """A file of an array's own, and where in it the rows begin: in the archive itself if it is not compressed.

        There its checksum is for us to look at, where all of it is read.
        """
        info = archive.getinfo(name + ".npy") if name + ".npy" in archive.namelist() else archive.getinfo(name)
        start = self._headers[name].start
        if info.compress_type != zipfile.ZIP_STORED:
            return stack.enter_context(archive.open(info)), start, None
        file = stack.enter_context(self._place.open())
        file.seek(info.header_offset)
        head = file.read(_LOCAL_HEADER)  # whose name and extra field may have other lengths than the central one's
        lengths = int.from_bytes(head[26:28], "little") + int.from_bytes(head[28:30], "little")
        crc = _Sum(info.CRC)
        file.seek(info.header_offset + _LOCAL_HEADER + lengths)
        crc.add(file.read(start))
        return file, info.header_offset + _LOCAL_HEADER + lengths + start, crc


class ArrayFolder:
    """A folder of .npy files: each is a row, in the order of their names, and its name without .npy is the row's id.

    Args:
        place: the folder.
    """

    columns: tuple[str, ...] | None = (ARRAY,)

    def __init__(self, place: Place) -> None:
        self._place = place
        self._files = place.files(".npy")
        if not self._files:
            raise ConfigurationError(f"there are no .npy files in {place}: there is nothing to do")
        self.size = len(self._files)
        self.total: int | None = self.size

    def read(self, position: int) -> Iterator[Row]:
        """See `Rows`."""
        for number in range(position, self.size):
            name, nbytes = self._files[number]
            custom_id = _readable(name).removesuffix(".npy") or None
            try:
                array = self._array(name, nbytes)
            except ConfigurationError as error:
                yield Row(number, number + 1, InvalidInput(error.message), custom_id=custom_id)
            else:
                yield Row(number, number + 1, {ARRAY: array}, nbytes, custom_id)

    def _array(self, name: str, nbytes: int) -> np.ndarray[Any, Any]:
        """What a file holds.

        Raises:
            ConfigurationError: it is none, or holds no array.
            JobStopped: it cannot be read.
        """
        if (shown := _readable(name)) != name:
            raise ConfigurationError(f"{shown}: its name is no UTF-8: give it another one")
        if nbytes < 0:
            raise ConfigurationError(f"{name} is no file")
        place = self._place.within(name)
        try:
            with place.open() as file:
                header = _header(file, name)
                _check_length(name, header, nbytes, scalar=True)
                data = file.read(header.end - header.start)
            return np.frombuffer(data, header.dtype, math.prod(header.shape)).reshape(header.shape)
        except ConfigurationError as error:
            raise ConfigurationError(error.message.replace(str(place), name)) from None
        except (OSError, ValueError) as error:
            raise JobStopped(cannot(f"{place} cannot be read", error)) from None


def _readable(name: str) -> str:
    """A file's name as text, whatever bytes it has."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _check_length(what: str, header: _Header, nbytes: int, *, scalar: bool = False) -> None:
    if not header.shape and not scalar:
        raise ConfigurationError(f"{what} has no rows: it is a single value")
    if nbytes < header.end:
        raise ConfigurationError(f"{what} is cut off: it has {nbytes} bytes, and {header.end} by its own words")
    if not scalar and header.shape[0] == 0:
        raise ConfigurationError(f"{what} has no rows: there is nothing to do")
