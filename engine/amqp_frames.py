"""Frames of AMQP on their way in and out, as bytes: cut out of what was read, put together into what is written. Pure.

The driver would copy what is left in its buffer for each frame, and hand each to the system by itself.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

__all__ = ["FrameCutter", "Outbox"]

_HEAD = struct.Struct(">BHL")
_AROUND = _HEAD.size + 1
_PROTOCOL = b"AMQP"
_PROTOCOL_HEADER = 8

_JOINED = 64 * 1024


class FrameCutter:
    """Cuts what was read into frames."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The frames that are complete, in their order; whether they are right is for who decodes them.

        Args:
            data: what was read.
        """
        buffer = self._rest + data if self._rest else data
        at, size = 0, len(buffer)
        while size - at >= _PROTOCOL_HEADER:
            if buffer.startswith(_PROTOCOL, at):
                end = at + _PROTOCOL_HEADER
            else:
                end = at + _AROUND + _HEAD.unpack_from(buffer, at)[2]
            if end > size:
                break
            yield buffer[at:end]
            at = end
        self._rest = buffer[at:]


class Outbox:
    """What is to be written when all who have something to say have said it."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._size = 0

    def __bool__(self) -> bool:
        """Whether there is anything to be written."""
        return bool(self._pieces)

    def add(self, piece: bytes) -> bool:
        """Puts a piece behind the others.

        Returns:
            Whether it is the first one.
        """
        self._pieces.append(piece)
        self._size += len(piece)
        return len(self._pieces) == 1

    @property
    def is_full(self) -> bool:
        """Whether there is no sense in waiting for more."""
        return self._size >= _JOINED

    def take(self) -> list[bytes]:
        """Everything, in its order: what is small put together, since each piece is a call of the system."""
        pieces, self._pieces, self._size = self._pieces, [], 0
        taken: list[bytes] = []
        small: list[bytes] = []
        for piece in pieces:
            if len(piece) < _JOINED:
                small.append(piece)
                continue
            if small:
                taken.append(b"".join(small))
                small = []
            taken.append(piece)
        if small:
            taken.append(b"".join(small))
        return taken
