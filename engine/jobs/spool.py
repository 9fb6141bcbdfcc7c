"""The replies to a job, one behind the other in a file, until they become its results."""

from __future__ import annotations

import contextlib
import os
import zlib
from pathlib import Path
from typing import NamedTuple

from ...schemas.errors import JobStopped
from .places import cannot

__all__ = ["Span", "Spool"]


class Span(NamedTuple):
    """Where a reply is.

    Attributes:
        offset: of its first byte.
        length: in bytes.
        check: its CRC-32.
    """

    offset: int
    length: int
    check: int


class Spool:
    """A file that is only appended to. What is behind the last reply on record was never whole, and is cut off.

    Args:
        path: the file; made if it is not there.
        end: where the last reply on record ends.

    Raises:
        JobStopped: it cannot be opened, or is shorter than what is on record.
    """

    def __init__(self, path: Path, end: int) -> None:
        self._path = path
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
            size = os.fstat(self._file).st_size
            if size > end:
                os.ftruncate(self._file, end)
        except OSError as error:
            raise JobStopped(cannot(f"{path} cannot be used", error)) from None
        if size < end:
            raise JobStopped(f"{path} has {size} bytes, and {end} are on record: it was cut off", way="new")
        self._end = end

    def append(self, body: bytes) -> Span:
        """Puts a reply at the end; it is there for good after `sync`.

        Raises:
            JobStopped: no space left.
        """
        left, at = memoryview(body), self._end
        try:
            while left:
                written = os.pwrite(self._file, left, at)
                left, at = left[written:], at + written
        except OSError as error:
            raise JobStopped(cannot(f"{self._path} cannot be written", error)) from None
        span = Span(self._end, len(body), zlib.crc32(body))
        self._end = at
        return span

    def cut(self, end: int) -> None:
        """Takes back what is behind a place, so that there is room for a word on why."""
        with contextlib.suppress(OSError):
            os.ftruncate(self._file, end)
        self._end = end

    def sync(self) -> None:
        """Has the disk keep what was put there.

        Raises:
            JobStopped: it does not.
        """
        try:
            os.fdatasync(self._file)
        except OSError as error:
            raise JobStopped(cannot(f"{self._path} cannot be written", error)) from None

    def read(self, span: Span) -> bytes:
        """A reply.

        Raises:
            JobStopped: it is not as it was written.
        """
        try:
            body = os.pread(self._file, span.length, span.offset)
        except OSError as error:
            raise JobStopped(cannot(f"{self._path} cannot be read", error)) from None
        if len(body) != span.length or zlib.crc32(body) != span.check:
            raise JobStopped(f"{self._path} is damaged at byte {span.offset}", way="new")
        return body

    def close(self) -> None:
        """Closes the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
