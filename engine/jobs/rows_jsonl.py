"""Rows out of JSON lines: one object a line, read line by line."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import IO, Any

import msgspec
import msgspec.json

from ...schemas.errors import ConfigurationError, InvalidInput, JobStopped, LimitExceeded, RankmqError, Undecodable
from .custom_ids import CUSTOM_ID, custom_id_of
from .places import Place
from .rows import Row

__all__ = ["JsonLines", "check_lines", "parse_line"]

_BOM = b"\xef\xbb\xbf"
_PIECE = 1 << 20
_HEAD = 4096
_OTHERS = {
    b"\x1f\x8b": "packed by gzip (zcat FILE | rankmq job run - will do)",
    b"PK\3\4": "a zip archive",
    b"PAR1": "Parquet",
    b"\x93NUMPY": "an array of numpy's",
}
_FIRST_ID = re.compile(rb'\s*\{\s*"custom_id"\s*:\s*("(?:[^"\\]|\\.)*"|-?\d+)\s*[,}]')
_ENVELOPE = ("inputs", "body")


class JsonLines:
    """A file of JSON lines. Positions are offsets in bytes; lines of blanks are no rows.

    Args:
        place: the file.
        most_bytes: a longer line is refused.
    """

    columns: tuple[str, ...] | None = None
    total: int | None = None

    def __init__(self, place: Place, most_bytes: int) -> None:
        self._place = place
        self._most = most_bytes
        self.size = place.size()

    def read(self, position: int) -> Iterator[Row]:
        """See `Rows`."""
        with self._place.open() as file:
            file.seek(position)
            while position < self.size:
                line = file.readline(self._most + 1)
                length, whole = len(line), line.endswith(b"\n")
                if long := length > self._most and not whole:
                    passed, whole = _pass_over(file)
                    length += passed
                if not whole and position + length < self.size:
                    text = f"{self._place} ends at byte {position + length} of {self.size}: it was cut off meanwhile"
                    raise JobStopped(text, way="cancel")
                if long:
                    text = f"a line of {length} bytes: {self._most} are allowed (--line-bytes)"
                    yield Row(position, position + length, LimitExceeded(text))
                elif line.strip():
                    yield _row(position, position + length, line if position else line.removeprefix(_BOM))
                position += length


def _pass_over(file: IO[bytes]) -> tuple[int, bool]:
    """Reads to the end of a line, in pieces; gives how many bytes that were, and whether the end was there."""
    length = 0
    while piece := file.readline(_PIECE):
        length += len(piece)
        if piece.endswith(b"\n"):
            return length, True
    return length, False


def _row(position: int, end: int, line: bytes) -> Row:
    try:
        custom_id, values = parse_line(line)
    except _BadLine as bad:
        return Row(position, end, bad.error, custom_id=bad.custom_id)
    return Row(position, end, values, len(line), custom_id)


class _BadLine(Exception):
    def __init__(self, error: RankmqError, custom_id: str | None = None) -> None:
        super().__init__(error.message)
        self.error = error
        self.custom_id = custom_id


def parse_line(line: bytes) -> tuple[str | None, Mapping[str, Any]]:
    """Id and columns of a line: the object's `inputs`, or its `body` as in the OpenAI Batch API, or all but its id."""
    try:
        found = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, OverflowError) as error:
        text = _not_finite(line) or " ".join(str(error).split())[:200]
        raise _BadLine(Undecodable(f"not JSON: {text}"), _first_id(line)) from None
    except RecursionError:
        raise _BadLine(LimitExceeded("nested far too deeply")) from None
    if not isinstance(found, dict):
        raise _BadLine(Undecodable(f"a row is a JSON object, not {_kind(found)}"))
    try:
        custom_id = custom_id_of(found.pop(CUSTOM_ID, None))
    except InvalidInput as error:
        raise _BadLine(error) from None
    for name in _ENVELOPE:
        inner = found.get(name)
        if isinstance(inner, dict) and not {"dtype", "data"} <= inner.keys():  # those of a tensor
            return custom_id, _Enveloped(name, inner)
    return custom_id, found


def _not_finite(line: bytes) -> str:
    """What is said of a line that were JSON but for numbers that JSON has no word for; "" of any other."""
    found: list[str] = []
    try:
        json.loads(line, parse_constant=found.append)
    except (ValueError, RecursionError):
        return ""
    return f"it has no {found[0]}; give the tensor as dtype, shape and base64" if found else ""


def _first_id(line: bytes) -> str | None:
    """The id of a line that cannot be read, where it comes first in it."""
    found = _FIRST_ID.match(line)
    try:
        return custom_id_of(msgspec.json.decode(found[1])) if found is not None else None
    except (msgspec.DecodeError, UnicodeDecodeError, InvalidInput):
        return None


def check_lines(place: Place, most_bytes: int) -> None:
    """Makes sure that a file may hold lines of JSON: what is something else is told once, not line by line.

    Args:
        place: the file.
        most_bytes: the longest line.

    Raises:
        ConfigurationError: it is UTF-16, packed, no text, or one JSON array.
    """
    with place.open() as file:
        head = file.read(_HEAD)
        if head.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise ConfigurationError(f"{place} is UTF-16: save it as UTF-8")
        for magic, what in _OTHERS.items():
            if head.startswith(magic):
                raise ConfigurationError(f"{place} is {what}, not lines of JSON")
        if b"\0" in head.partition(b"\n")[0]:
            raise ConfigurationError(f"{place} is no text: a row is a line with a JSON object")
        if not head.removeprefix(_BOM).lstrip().startswith(b"["):
            return
        file.seek(0)
        line = b""
        while not line.strip():
            line = file.readline(most_bytes)
    try:
        first = msgspec.json.decode(line.removeprefix(_BOM))
    except (msgspec.DecodeError, RecursionError):
        first = None
    if first is None or any(isinstance(it, dict) for it in first):
        raise ConfigurationError(f"{place} is a JSON array: a row is a line with a JSON object, and no comma behind it")


class _Enveloped(dict[str, Any]):
    """The columns in an envelope; under the name of the envelope, where that is asked for, all of it as JSON text."""

    def __init__(self, name: str, inner: Mapping[str, Any]) -> None:
        super().__init__(inner)
        self._name = name

    def __contains__(self, column: object) -> bool:
        return super().__contains__(column) or column == self._name

    def __missing__(self, column: str) -> str:
        if column != self._name:
            raise KeyError(column)
        return msgspec.json.encode(dict(self)).decode()


def _kind(value: object) -> str:
    names = {list: "a list", dict: "an object", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
