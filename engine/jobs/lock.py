"""One runner of a job at a time: a lock on a file, which the system lets go when its process ends, however it does."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import struct
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from ...schemas.errors import AlreadyRunning, JobStopped
from .places import cannot

__all__ = ["Holder", "JobLock"]

_FLOCK = "hhqqi4x"


class Holder:
    """Who runs a job, as it said so itself.

    Attributes:
        pid: its process id.
        host: on which host.
        since: since when, in seconds since 1970.
    """

    def __init__(self, pid: int, host: str, since: float) -> None:
        self.pid, self.host, self.since = pid, host, since

    def __str__(self) -> str:
        """For a person."""
        return f"process {self.pid} on {self.host}"


class JobLock:
    """For a `with` block: the lock of a job.

    Args:
        path: the file.

    Raises:
        AlreadyRunning: somebody holds it; with pid and host.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = -1

    def __enter__(self) -> Self:
        try:
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.fcntl(self._file, fcntl.F_OFD_SETLK, _whole_file(fcntl.F_WRLCK))
            told = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.time()}
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, json.dumps(told).encode(), 0)
        except OSError as error:
            self._close()
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                who = _read_holder(self._path) or "another process"
                raise AlreadyRunning(f"{self._path.parent}: the job is run by {who}") from None
            raise JobStopped(cannot(f"{self._path} cannot be locked", error)) from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            os.ftruncate(self._file, 0)
        self._close()

    def _close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    @staticmethod
    def holder(path: Path) -> Holder | None:
        """Who holds the lock now; None if nobody does."""
        try:
            file = os.open(path, os.O_RDONLY)
        except OSError:
            return None
        try:
            found = fcntl.fcntl(file, fcntl.F_OFD_GETLK, _whole_file(fcntl.F_WRLCK))
            held = struct.unpack(_FLOCK, found)[0] != fcntl.F_UNLCK
        except OSError:
            return None
        finally:
            os.close(file)
        return (_read_holder(path) or Holder(0, "?", 0.0)) if held else None


def _whole_file(kind: int) -> bytes:
    """The system's `struct flock`. The lock is the open file's: a second one of the same process is refused as well."""
    return struct.pack(_FLOCK, kind, os.SEEK_SET, 0, 0, 0)


def _read_holder(path: Path) -> Holder | None:
    """Who says that it holds the lock."""
    try:
        told = json.loads(path.read_bytes())
        return Holder(int(told["pid"]), str(told["host"]), float(told["since"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
