"""Claim checks: between processes of one host the body of a large message can lie in memory, and the message has a
claim to it alone.

For producers who can ask again, as a job can: the broker keeps the message when the host goes down, and nobody the
body.
A producer makes a folder in /dev/shm, and names it in the header `rankmq-claims` of its requests. An engine that can
open it says so in the same header of its replies, and from then on either may put bodies there: the header
`rankmq-claim` then says which, how long it is, and its CRC-32. Who made the folder deletes what is in it.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import errno
import fcntl
import logging
import os
import re
import secrets
import shutil
import stat
import time
import zlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from ..schemas.errors import BlobMissing, InvalidInput, RankmqError
from ..schemas.limits import body_too_large
from .delivery import Delivery
from .shared_file import FOLDER

__all__ = ["CLAIMED_BYTES", "CLAIMS_HEADER", "CLAIM_HEADER", "ClaimFolder", "Claims", "new_token"]

log = logging.getLogger(__name__)

CLAIMS_HEADER = "rankmq-claims"
"""On a request: the token of its producer's folder. On a reply: true where the engine can open it."""

CLAIM_HEADER = "rankmq-claim"
"""On either: its body is in the folder, and this is the claim to it."""

CLAIMED_BYTES = 4096
"""What is smaller goes with the message."""

_TOKEN = re.compile(r"[0-9a-f]{32}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9.]{0,79}")
_CLAIM = re.compile(rf"(?P<name>{_NAME.pattern}):(?P<bytes>[0-9]{{1,12}}):(?P<check>[0-9a-f]{{8}})")
_MOST_OPEN = 32
_MAKE_ATTEMPTS = 20
_SWEEP_SECONDS = 86_400.0
_MOST_RESERVED = 64 << 20

T = TypeVar("T")


def new_token() -> str:
    """A token for a folder, which nobody guesses."""
    return secrets.token_hex(16)


class ClaimFolder:
    """A folder of bodies in memory. Nobody but this user finds it, even knowing its token.

    Args:
        path: of the folder.
        file: its descriptor.
    """

    def __init__(self, path: Path, file: int) -> None:
        self.token = path.name
        self._path = path
        self._file = file

    @classmethod
    def make(cls, token: str, folder: Path = FOLDER) -> ClaimFolder:
        """Makes one, or takes up one that is there; what others have left a day ago is swept away.

        Args:
            token: see `new_token`.
            folder: where.

        Raises:
            OSError: it cannot be made.
        """
        for left in reversed(range(_MAKE_ATTEMPTS)):
            try:
                made = cls._made(token, folder)
                break
            except (FileNotFoundError, FileExistsError):  # others, who have done with theirs, take away what is empty
                if not left:
                    raise
        with contextlib.suppress(OSError):
            _sweep(_base(folder))
        return made

    @classmethod
    def _made(cls, token: str, folder: Path) -> ClaimFolder:
        base = _base(folder)
        base.mkdir(mode=0o700, exist_ok=True)
        _check_ours(os.lstat(base), base)
        (base / token).mkdir(mode=0o700, exist_ok=True)
        made = cls.open(token, folder)
        try:
            fcntl.flock(made._file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # against the sweep, as long as this process lives
        except OSError:
            made.close()
            raise
        return made

    @classmethod
    def open(cls, token: str, folder: Path = FOLDER) -> ClaimFolder:
        """Opens one that a process of this user has made.

        Raises:
            OSError: there is none.
        """
        if not _TOKEN.fullmatch(token):
            raise FileNotFoundError(f"{token!r:.80} is not the token of a folder")
        base = _base(folder)
        _check_ours(os.lstat(base), base)
        file = os.open(base / token, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            _check_ours(os.fstat(file), base / token)
            return cls(base / token, file)
        except BaseException:
            os.close(file)
            raise

    def put(self, body: bytes, name: str = "") -> str:
        """Puts a body there, whole or not at all.

        Args:
            body: of the message.
            name: letters, digits and dots; what is there under this name goes. "" makes one.

        Returns:
            The claim to it.

        Raises:
            OSError: no room, or the folder is gone.
        """
        _check_room(self._file, len(body))
        draft = f"x{secrets.token_hex(8)}"
        file = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=self._file)
        try:
            try:
                left = memoryview(body)
                while left:
                    left = left[os.write(file, left) :]
            finally:
                os.close(file)
            if name:
                os.rename(draft, name, src_dir_fd=self._file, dst_dir_fd=self._file)
        except BaseException:
            self.drop(draft)
            raise
        return f"{name or draft}:{len(body)}:{zlib.crc32(body):08x}"

    def get(self, claim: str, most: int) -> bytes:
        """The body that a claim is to.

        Args:
            claim: as it came.
            most: bytes that it may have.

        Raises:
            InvalidInput: it has not the form of a claim.
            LimitExceeded: the body is too large.
            BlobMissing: it is not there, or is another.
            FileNotFoundError: it is not there.
        """
        name, nbytes, check = _parsed(claim)
        if nbytes > most:
            raise body_too_large(nbytes, most)
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # what is no file is not waited for
        file = os.open(name, flags, dir_fd=self._file)
        try:
            if not stat.S_ISREG(os.fstat(file).st_mode):
                raise BlobMissing(f"the body {name} is no file")
            with open(file, "rb", buffering=0, closefd=False) as opened:
                body = opened.read(nbytes + 1) or b""
        finally:
            os.close(file)
        if len(body) != nbytes or zlib.crc32(body) != check:
            raise BlobMissing(f"the body {name} is not what its claim says")
        return body

    def drop(self, claim: str) -> None:
        """Deletes a body, by its claim or by its name, if it is there; claims come from others, and may be anything."""
        name = claim.partition(":")[0]
        if _NAME.fullmatch(name):
            with contextlib.suppress(OSError):
                os.unlink(name, dir_fd=self._file)

    def close(self) -> None:
        """Lets go of it; it stays."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def remove(self) -> None:
        """Deletes it, and all that is in it."""
        shutil.rmtree(self._path, ignore_errors=True)
        self.leave()

    def leave(self) -> None:
        """Lets go of it for good, or until its producer is back: only what somebody has put there stays."""
        with contextlib.suppress(OSError):
            self._path.rmdir()
        with contextlib.suppress(OSError):  # others have theirs there
            self._path.parent.rmdir()
        self.close()


class Claims:
    """An engine's end: reads the bodies of requests, and puts the bodies of replies where they are asked for.

    Args:
        most_bytes: of a request's body.
        folder: where the folders are; None: none is opened.
    """

    def __init__(self, most_bytes: int, folder: Path | None = FOLDER) -> None:
        self._most = most_bytes
        self._folder = folder
        self._open: OrderedDict[str, ClaimFolder] = OrderedDict()

    def taken(self, delivery: Delivery) -> Delivery:
        """A request with its body; where that cannot be had, with the reason."""
        claim = delivery.headers.get(CLAIM_HEADER)
        if claim is None:
            return delivery
        try:
            token = delivery.headers.get(CLAIMS_HEADER)
            if not isinstance(claim, str) or not isinstance(token, str):
                raise InvalidInput(f"the header {CLAIM_HEADER} is text, and there is {CLAIMS_HEADER} beside it")
            body = self._in_folder(token, lambda it: it.get(claim, self._most))
        except OSError as error:
            log.debug("a body cannot be read: %s", error)
            missing = BlobMissing("the request's body is not in the folder that it names: send it with the message")
            return dataclasses.replace(delivery, fault=missing)
        except RankmqError as error:
            return dataclasses.replace(delivery, fault=error)
        properties = copy.copy(delivery.properties)
        # Where the message goes from here, its body goes with it.
        properties.headers = {name: it for name, it in delivery.headers.items() if name != CLAIM_HEADER}
        return dataclasses.replace(delivery, body=body, properties=properties)

    def given(self, asked: Mapping[str, Any], body: bytes) -> tuple[dict[str, Any] | None, bytes]:
        """The headers and the body of a reply.

        Args:
            asked: the headers of the request.
            body: of the reply.
        """
        token = asked.get(CLAIMS_HEADER)
        if not isinstance(token, str):
            return None, body
        try:
            if len(body) < CLAIMED_BYTES:
                self._in_folder(token, lambda it: None)
                return {CLAIMS_HEADER: True}, body
            return {CLAIMS_HEADER: True, CLAIM_HEADER: self._in_folder(token, lambda it: it.put(body))}, b""
        except OSError as error:
            log.debug("a reply goes with its message: %s", error)
            return None, body

    def take_back(self, asked: Mapping[str, Any], headers: Mapping[str, Any] | None) -> None:
        """A reply has not reached anybody: its body goes.

        Args:
            asked: the headers of the request.
            headers: those of the reply, as `given` has made them.
        """
        claim = headers.get(CLAIM_HEADER) if headers is not None else None
        if claim is not None:
            with contextlib.suppress(OSError):
                self._in_folder(asked[CLAIMS_HEADER], lambda it: it.drop(claim))

    def _in_folder(self, token: str, work: Callable[[ClaimFolder], T]) -> T:
        """Does something in a folder; if it was made anew since it was opened here, in the new one."""
        known = self._open.get(token)
        if known is not None:
            self._open.move_to_end(token)
            try:
                return work(known)
            except FileNotFoundError:
                self._open.pop(token).close()
        if self._folder is None:
            raise FileNotFoundError("shared memory is switched off")
        opened = self._open[token] = ClaimFolder.open(token, self._folder)
        if len(self._open) > _MOST_OPEN:
            self._open.popitem(last=False)[1].close()
        return work(opened)

    def close(self) -> None:
        """Lets go of all folders, and opens no more."""
        self._folder = None
        for folder in self._open.values():
            folder.close()
        self._open.clear()


def _parsed(claim: str) -> tuple[str, int, int]:
    found = _CLAIM.fullmatch(claim)
    if found is None:
        raise InvalidInput(f"{claim!r:.120} is no claim: name, bytes and CRC-32, with colons between them")
    return found["name"], int(found["bytes"]), int(found["check"], 16)


def _base(folder: Path) -> Path:
    return folder / f"rankmq-claims-{os.geteuid()}"


def _check_room(file: int, nbytes: int) -> None:
    """Leaves room for what must have it there: the memory that ranks share."""
    there = os.fstatvfs(file)
    left = there.f_bavail * there.f_frsize - nbytes
    if left < min(_MOST_RESERVED, there.f_blocks * there.f_frsize // 4):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _check_ours(status: os.stat_result, path: Path) -> None:
    if status.st_uid != os.geteuid() or status.st_mode & 0o077 or not stat.S_ISDIR(status.st_mode):
        raise PermissionError(f"{path} is not ours alone")


def _sweep(base: Path) -> None:
    """Deletes the folders of those who were killed and did not come back."""
    before = time.time() - _SWEEP_SECONDS
    for path in base.iterdir():
        with contextlib.suppress(OSError):
            if path.lstat().st_mtime > before:
                continue
            file = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(file)
