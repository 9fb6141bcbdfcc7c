"""The state folder of a private broker: who uses it, its account, its ports, its files."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from ..schemas.errors import AlreadyRunning, ConfigurationError
from .broker_config import LOOPBACK, NODE_NAME, Account, Ports

__all__ = ["StateFolder", "reserve_ports"]

_LOOK_EVERY = 0.03  # seconds
_FIRST_PORT, _LAST_PORT = 20000, 32768  # the second is where Linux begins with connections, if not told otherwise
_TRIES = 100


class StateFolder:
    """One folder, used by one node at a time and readable by nobody else.

    Args:
        path: made when it is taken, if it is not there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self._lock: IO[str] | None = None

    @property
    def log_file(self) -> Path:
        """The node's own log."""
        return self.path / "log" / f"{NODE_NAME}.log"

    @property
    def output_file(self) -> Path:
        """What the node and its epmd printed; started anew with each of them."""
        return self.path / "log" / "output.log"

    def take(self, until: float) -> int:
        """Take the folder.

        The lock is passed on to the node and the processes around it, and is free when the last of them has ended:
        after an owner that was killed, that takes a moment.

        Args:
            until: `time.monotonic()` at which to give up waiting for such a moment.

        Returns:
            The lock's file descriptor.

        Raises:
            AlreadyRunning: another process has it.
            ConfigurationError: the folder cannot be made or written.
        """
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.path.chmod(0o700)
            (self.path / "log").mkdir(exist_ok=True)
            lock = open(self.path / "lock", "a+")  # noqa: SIM115 - held until `release`
        except OSError as error:
            raise ConfigurationError(
                f"cannot be the private broker's state folder: {error.strerror}", file=str(self.path)
            ) from error
        while not _locked(lock):
            lock.seek(0)
            owner = lock.read().strip()
            if _runs(owner) or time.monotonic() >= until:
                lock.close()
                raise AlreadyRunning(
                    f"the broker state folder {self.path} is in use by process {owner or '?'}: "
                    "stop that one, or choose another folder"
                )
            time.sleep(_LOOK_EVERY)  # the kernel tells nobody that a lock of a dead process's child is free
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        self._lock = lock
        return lock.fileno()

    def release(self) -> None:
        """Give the folder back; nothing happens if it was not taken."""
        if self._lock is not None:
            fcntl.flock(self._lock, fcntl.LOCK_UN)  # a forked child may hold the file open too
            self._lock.close()
            self._lock = None

    def account(self) -> Account:
        """The account kept here, or a fresh one for an empty folder.

        Raises:
            ConfigurationError: it is damaged, or gone while the data is there.
        """
        file = self.path / "broker.json"
        if file.exists():
            return Account.from_json(file.read_text(), file=file)
        if (self.path / "data").exists():
            raise ConfigurationError(
                "is missing beside the private broker's data; restore it, or remove its folder to start empty",
                file=str(file),
            )
        return Account.fresh()

    def keep(self, account: Account) -> None:
        """Keep an account."""
        self.write("broker.json", account.to_json())

    def clear(self) -> None:
        """Remove what a first start left unfinished: nobody has used it, and RabbitMQ may not go on from it."""
        shutil.rmtree(self.path / "data", ignore_errors=True)

    def make_cookie(self) -> None:
        """Make the secret by which Erlang nodes know each other, unless there is one (Erlang's own can be guessed)."""
        if not (self.path / ".erlang.cookie").exists():
            self.write(".erlang.cookie", secrets.token_hex(24), mode=0o400)

    def write(self, name: str, text: str, *, mode: int = 0o600) -> None:
        """Write a file, whole or not at all, for nobody else to read."""
        draft = self.path / f".{name}.new"
        draft.unlink(missing_ok=True)
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w") as file:
            file.write(text)
        draft.replace(self.path / name)


def _locked(lock: IO[str]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _runs(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except PermissionError:
        return True
    except (ValueError, OverflowError, ProcessLookupError):
        return False
    return True


@contextlib.contextmanager
def reserve_ports(account: Account, *, amqp: int = 0, tls: bool = False) -> Iterator[Ports]:
    """Choose the ports, those that the account had last where they are free, and keep others off until the node is up.

    Args:
        account: with the last ports.
        amqp: this one and no other, if it is not 0.
        tls: whether one for TLS is wanted.

    Raises:
        AlreadyRunning: `amqp` is taken.
    """
    with contextlib.ExitStack() as held:

        def reserve(name: str, wanted: int = 0) -> int:
            for port in (wanted,) if wanted else (account.ports.get(name, 0), *_fresh_ports()):
                if port and (taken := _hold(port, again=port in (wanted, account.ports.get(name)))) is not None:
                    held.enter_context(taken)
                    return port
            raise AlreadyRunning(
                f"port {wanted} is taken: stop what listens there, or choose another port"
                if wanted
                else "no free port found for the private broker"
            )

        ports = Ports(
            amqp=reserve("amqp", amqp),
            dist=reserve("dist"),
            epmd=reserve("epmd"),
            tls=reserve("tls") if tls else None,
        )
        if sys.platform != "linux":
            held.close()
        yield ports


def _fresh_ports() -> Iterator[int]:
    """Ports to try, from below those that the system gives to the near ends of connections.

    One of those could be taken by any connection while the node is down, even by a client's own attempt to reach it.
    """
    end = _LAST_PORT
    with contextlib.suppress(OSError, ValueError):
        low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
        end = low if _FIRST_PORT + _TRIES < low < _LAST_PORT else _LAST_PORT
    for _ in range(_TRIES):
        yield _FIRST_PORT + secrets.randbelow(end - _FIRST_PORT)


def _hold(port: int, *, again: bool) -> socket.socket | None:
    """A socket that holds a port without listening; None if the port is taken.

    With SO_REUSEADDR on both, Linux lets the node bind and listen beside it, and lets nobody else have the port. For a
    port that is new to us it is set afterwards, so that the port is nobody's; for one that we had, what is left of
    ended connections does not count.
    """
    held = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        if again:
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind((LOOPBACK, port))
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    except OSError:
        held.close()
        return None
    return held
