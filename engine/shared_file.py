"""Memory that processes of one host share, found by the name of a file in /dev/shm.

A file has its name only until all who are to open it have. Whoever has it open holds a shared lock on it, which the
kernel takes back however the process ends: a file that nobody locks was left by processes that were killed, and the
next one to make a file sweeps it away.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import secrets
import sys
from contextlib import suppress
from pathlib import Path

from .memory_share import share_of

__all__ = ["ELSEWHERE", "FOLDER", "SharedFile", "why_not"]

FOLDER = Path("/dev/shm")
_PREFIX = "rankmq-plane-"

ELSEWHERE = "on another host, or in another container"
"""Why there is none where it is nobody's fault."""


class SharedFile:
    """A piece of shared memory.

    Args:
        path: of the file.
        file: its descriptor, locked.
        size: of the memory, in bytes.
        is_ours: whether we have made it.
    """

    def __init__(self, path: Path, file: int, size: int, *, is_ours: bool) -> None:
        self.name = path.name
        self.size = size
        self.memory = memoryview(mmap.mmap(file, size))
        self._path = path
        self._file = file
        self._is_ours = is_ours

    @classmethod
    def make(cls, size: int, *, least: int, among: int = 1, folder: Path = FOLDER) -> SharedFile:
        """Makes one of zeros; a smaller one where others would have too little room beside it (see `share_of`).

        Args:
            size: wanted, in bytes.
            least: what is worth having.
            among: how many processes make one of this kind.
            folder: where.

        Raises:
            OSError: there is no room, or no such folder.
        """
        _sweep(folder)
        size = share_of(size, least, _free(folder), among)
        if not size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        path = folder / f"{_PREFIX}{os.getpid()}-{secrets.token_hex(8)}"
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_SH)
            while True:
                try:
                    os.posix_fallocate(file, 0, size)  # now, and not as a bus error at some later write
                    return cls(path, file, size, is_ours=True)
                except OSError:
                    os.ftruncate(file, 0)
                    size //= 2
                    if size < least:
                        raise
        except BaseException:
            path.unlink(missing_ok=True)
            os.close(file)
            raise

    @classmethod
    def open(cls, name: str, folder: Path = FOLDER) -> SharedFile:
        """Opens one that somebody on this host has made.

        Raises:
            OSError: there is none of this name, or it is not ours to open.
        """
        if not name.startswith(_PREFIX) or "/" in name:
            raise FileNotFoundError(f"{name!r:.100} is not the name of shared memory of rankmq")
        path = folder / name
        file = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            status = os.fstat(file)
            if status.st_uid != os.geteuid():
                raise PermissionError(f"{name} is not ours")
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return cls(path, file, status.st_size, is_ours=False)
        except BaseException:
            os.close(file)
            raise

    def unlink(self) -> None:
        """Takes its name away: everybody who is to have it has opened it."""
        self._path.unlink(missing_ok=True)

    def release(self) -> None:
        """Gives the memory back now, also where others still have it open: nobody is to read it any more."""
        mapped = self.memory.obj
        if isinstance(mapped, mmap.mmap):
            with suppress(OSError):  # a file system that cannot
                mapped.madvise(mmap.MADV_REMOVE)
        self.close()

    def close(self) -> None:
        """Lets go of it; the memory itself goes when the last view of it does. Who has made it takes its name away."""
        if self._is_ours:
            self.unlink()
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        self.memory = memoryview(b"")


def why_not(error: OSError) -> str:
    """Why memory could not be made or opened, for a log."""
    match error.errno:
        case errno.ENOENT:
            return ELSEWHERE if FOLDER.is_dir() else f"there is no {FOLDER}"
        case errno.ENOSPC:
            return f"{FOLDER} has no room: make it larger (docker run --shm-size=1g), or lower plane_bytes"
        case _:
            return error.strerror or str(error)


def _free(folder: Path) -> int:
    status = os.statvfs(folder)
    if not status.f_blocks:  # a tmpfs without a limit
        return sys.maxsize
    return status.f_bavail * status.f_frsize


def _sweep(folder: Path) -> None:
    for path in folder.glob(f"{_PREFIX}*"):
        with suppress(OSError):  # somebody else's, or just gone
            file = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                if os.fstat(file).st_uid == os.geteuid():
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if path.stat().st_ino == os.fstat(file).st_ino:
                        path.unlink()
            finally:
                os.close(file)
