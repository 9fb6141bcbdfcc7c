"""Rows out of JSON lines: one object a line, read line by line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import IO, Any

import msgspec
import msgspec.json

from ...schemas.errors import InvalidInput, JobStopped, LimitExceeded, RankmqError, Undecodable
from .custom_ids import CUSTOM_ID, custom_id_of
from .places import Place
from .rows import Row

__all__ = ["JsonLines", "parse_line"]

_BOM = b"\xef\xbb\xbf"
_PIECE = 1 << 20
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
                    raise JobStopped(
                        f"{self._place} ends at byte {position + length} of {self.size}: it was cut off meanwhile"
                    )
                if long:
                    text = f"a line of {length} bytes: {self._most} are allowed"
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
        raise _BadLine(Undecodable(f"not JSON: {' '.join(str(error).split())[:200]}")) from None
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
