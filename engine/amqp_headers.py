"""Headers of AMQP messages that the driver cannot read, taken out of the bytes that it reads.

A header may say anything that AMQP has a kind for, such as a moment in the year 60000 (milliseconds given for seconds).
The driver raises over some of that and gives its connection up, again with each redelivery. And a message may come with
as large headers as a frame can hold, so that one more does not fit. Pure: bytes in, bytes out.

A content header frame: type 2, channel, size; class, weight, size of the body, flags of the properties that are there;
these in their order, of which content_type and content_encoding come before the headers; the end octet.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping

__all__ = ["mended", "size_of"]

_HEADER_FRAME = 2
_PAYLOAD = 7
_FLAGS = _PAYLOAD + 12
_CONTENT_TYPE, _CONTENT_ENCODING, _HEADERS = 1 << 15, 1 << 14, 1 << 13
_LAST_MOMENT = 253_402_300_799  # of the year 9999, in which calendars end
_DEEPEST = 16

_SIZES = {
    **dict.fromkeys(b"V", 0),
    **dict.fromkeys(b"tbB", 1),
    **dict.fromkeys(b"Uus", 2),
    **dict.fromkeys(b"Iif", 4),
    **dict.fromkeys(b"D", 5),
    **dict.fromkeys(b"LldT", 8),
}
_LONG = frozenset(b"SxAF")  # with their length in front
_LARGEST_SCALAR = 9


def size_of(value: object) -> int:
    """About how many bytes a value takes in a table, with its kind, length or name; never less than it does.

    Args:
        value: as the driver gives and takes it: text, bytes, a number, a moment, a list or a table.
    """
    total, left = 0, [value]
    while left:  # and no recursion: how deep they are nested is the sender's choice
        it = left.pop()
        if isinstance(it, str):
            total += len(it.encode(errors="surrogatepass")) + 5
        elif isinstance(it, bytes):
            total += len(it) + 5
        elif isinstance(it, Mapping):
            total += 5
            left += [*it.keys(), *it.values()]
        elif isinstance(it, list | tuple):
            total += 5
            left += it
        else:
            total += _LARGEST_SCALAR
    return total


def mended(frame: bytes) -> bytes | None:
    """A content header frame without those of its headers that cannot be read.

    Args:
        frame: bytes that begin with a whole frame.

    Returns:
        The frame as it can be read; None if it is another frame, or nothing in its headers is wrong.
    """
    try:
        kind, channel, size = struct.unpack_from(">BHI", frame)
        if kind != _HEADER_FRAME:
            return None
        (flags,) = struct.unpack_from(">H", frame, _FLAGS)
        if not flags & _HEADERS:
            return None
        at = _FLAGS + 2
        for flag in (_CONTENT_TYPE, _CONTENT_ENCODING):
            if flags & flag:
                at += 1 + frame[at]
        (length,) = struct.unpack_from(">I", frame, at)
        table = frame[at + 4 : at + 4 + length]
        kept = b"".join(table[begin:end] for begin, end, readable in _fields(table) if readable)
    except (struct.error, IndexError):
        return None
    if kept == table:
        return None
    payload = frame[_PAYLOAD:at] + struct.pack(">I", len(kept)) + kept + frame[at + 4 + length : _PAYLOAD + size]
    return struct.pack(">BHI", kind, channel, len(payload)) + payload + frame[_PAYLOAD + size : _PAYLOAD + size + 1]


def _fields(table: bytes, depth: int = 0) -> Iterator[tuple[int, int, bool]]:
    """Where each field of a table begins and ends, and whether it can be read; ends before one that is cut off."""
    at = 0
    while at < len(table):
        value = at + 1 + table[at]
        end = _end(table, value)
        if end is None:
            return
        yield at, end, _is_readable(table, value, end, depth)
        at = end


def _end(data: bytes, at: int) -> int | None:
    """Where the value ends that begins with its kind; None if its kind is unknown or it is cut off."""
    if at >= len(data):
        return None
    kind = data[at]
    if kind in _LONG:
        if at + 5 > len(data):
            return None
        end = at + 5 + int(struct.unpack_from(">I", data, at + 1)[0])
    elif kind in _SIZES:
        end = at + 1 + _SIZES[kind]
    else:
        return None
    return end if end <= len(data) else None


def _is_readable(data: bytes, at: int, end: int, depth: int) -> bool:
    kind = data[at : at + 1]
    if kind == b"T":
        return int(struct.unpack_from(">Q", data, at + 1)[0]) <= _LAST_MOMENT
    if kind in (b"f", b"d"):
        return math.isfinite(struct.unpack_from(">" + kind.decode(), data, at + 1)[0])
    if kind not in (b"A", b"F"):
        return True
    if depth == _DEEPEST:
        return False
    inner, at = data[at + 5 : end], 0
    if kind == b"F":
        found = list(_fields(inner, depth + 1))
        return all(readable for _, _, readable in found) and (found[-1][1] if found else 0) == len(inner)
    while at < len(inner):
        until = _end(inner, at)
        if until is None or not _is_readable(inner, at, until, depth + 1):
            return False
        at = until
    return True
