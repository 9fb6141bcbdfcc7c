"""The file in /dev/shm through which the ranks of a group find the memory that they share.

The file has a name only while the group is opened: as soon as every rank has mapped it, or has failed to, the name is
removed, and the memory goes with the last process. Whoever has it open meanwhile holds a shared lock on it, which the
kernel takes back however the process ends; so a file that nobody locks was left by ranks that were all killed while
they opened their group, and the next group to be opened sweeps it away.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ...schemas.errors import GroupError

__all__ = ["FOLDER", "opened", "segment_name", "sweep"]

log = logging.getLogger(__name__)

FOLDER = Path("/dev/shm")
_PREFIX = "rankmq-group-"
_NAME = re.compile(r"[\w.-]{1,200}", re.ASCII)
_RETRY_SECONDS = 5.0


def segment_name(group: str, epoch: int) -> str:
    """A new name, the same for all ranks: whoever begins the epoch makes it up and tells them."""
    short = re.sub(r"[^\w.-]", "_", group, flags=re.ASCII)[:100]
    return f"{_PREFIX}{short}-{epoch}-{secrets.token_hex(8)}"


@contextmanager
def opened(name: str, size: int, folder: Path = FOLDER) -> Iterator[int]:
    """Opens the file, or makes it, whoever comes first; its name is gone at the end.

    Args:
        name: from `segment_name`.
        size: bytes that it must have; new ones are zeros.
        folder: where it is.

    Yields:
        A descriptor. What is mapped from it stays when it is closed.

    Raises:
        GroupError: no room, or the file cannot be made.
    """
    if not _NAME.fullmatch(name) or not name.startswith(_PREFIX):
        raise GroupError(f"{name!r} is not the name of a group's shared memory")
    path = folder / name
    sweep(folder)
    file = _open_locked(path)
    try:
        try:
            os.posix_fallocate(file, 0, size)  # now, and not as a bus error at some later write
        except OSError as error:
            raise GroupError(_no_room(error, size, folder)) from None
        yield file
    finally:
        path.unlink(missing_ok=True)
        os.close(file)


def sweep(folder: Path = FOLDER) -> int:
    """Removes what ranks that were killed have left; returns how many files that were."""
    removed = 0
    with suppress(OSError):
        for path in folder.glob(f"{_PREFIX}*"):
            with suppress(OSError):  # somebody else's, or just gone
                removed += _remove_if_left(path)
    if removed:
        log.warning("removed shared memory of %d groups whose ranks were killed while they opened it", removed)
    return removed


def _remove_if_left(path: Path) -> bool:
    file = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        status = os.fstat(file)
        if status.st_uid != os.geteuid():
            return False
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Nobody has it open but us, and who opens it from now on sees that it has lost its name. The name itself can
        # only have been removed, and perhaps given to another file, before we had the lock.
        if path.stat().st_ino != status.st_ino:
            return False
        path.unlink()
        return True
    finally:
        os.close(file)


def _open_locked(path: Path) -> int:
    deadline = time.monotonic() + _RETRY_SECONDS
    while True:
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise GroupError(f"{path} cannot be opened: {error.strerror or error}") from None
        with suppress(BlockingIOError):  # who sweeps holds it, and is about to remove it
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            if os.fstat(file).st_nlink > 0:
                return file
        os.close(file)
        if time.monotonic() > deadline:
            raise GroupError(f"{path} is removed again and again by somebody else")
        time.sleep(0.001)


def _no_room(error: OSError, size: int, folder: Path) -> str:
    if error.errno != errno.ENOSPC:
        return f"{size} bytes of shared memory cannot be had in {folder}: {error.strerror or error}"
    status = os.statvfs(folder)
    return (
        f"{folder} has no room for the {size / 1e6:.1f} MB that the ranks share, only "
        f"{status.f_bavail * status.f_frsize / 1e6:.1f} MB: make it larger (docker run --shm-size=1g), "
        "lower plane_bytes, or set communication='mccl'"
    )
