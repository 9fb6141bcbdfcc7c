"""How the ranks of a group find each other before MindSpore joins them: addresses, waiting, and who is missing.

Nothing here imports MindSpore; its key-value store is taken as any object of that shape.
"""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from ..schemas.errors import AlreadyRunning, GroupError

__all__ = ["Store", "await_server", "check_free", "free_port", "gather_ranks", "split_address", "woken"]

_POLL_SECONDS = 0.005


class Store(Protocol):
    """A store that all ranks can reach."""

    def add(self, key: str, amount: int) -> int:
        """Add to the number under a key, which begins as 0; returns what it is then, without waiting for anybody."""


def free_port(host: str = "127.0.0.1") -> int:
    """A port of this host that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


def split_address(address: str) -> tuple[str, int]:
    """The numeric address and the port of host:port.

    Raises:
        GroupError: it is not that, or no such host is known here.
    """
    host, _, port = address.rpartition(":")
    try:
        return socket.gethostbyname(host), int(port)  # MindSpore takes addresses, not names
    except (OSError, ValueError):
        raise GroupError(f"the ranks cannot meet at {address!r}: that is no host:port that is known here") from None


def check_free(host: str, port: int) -> None:
    """Check that rank 0 can listen there.

    Raises:
        AlreadyRunning: somebody else does, or the address is not this host's.
    """
    try:
        with socket.create_server((host, port)):
            return
    except OSError as error:
        raise AlreadyRunning(f"the ranks cannot meet at {host}:{port}: {error.strerror or error}") from None


def await_server(host: str, port: int, deadline: float) -> None:
    """Wait until rank 0 listens.

    Args:
        host: numeric address.
        port: likewise.
        deadline: on the monotonic clock, seconds.

    Raises:
        GroupError: it does not, by then.
    """
    while True:
        try:
            with socket.create_connection((host, port), timeout=max(0.01, deadline - time.monotonic())):
                return
        except OSError as error:
            if time.monotonic() > deadline:
                raise GroupError(
                    f"rank 0 did not join the group: nobody answers at {host}:{port} ({error.strerror or error})"
                ) from None
            time.sleep(_POLL_SECONDS)


def gather_ranks(store: Store, rank: int, size: int, deadline: float) -> None:
    """Wait until every rank has come this far.

    Args:
        store: shared by the ranks.
        rank: this one.
        size: how many there are.
        deadline: on the monotonic clock, seconds.

    Raises:
        GroupError: some have not, by then; says which.
    """
    store.add(f"rankmq/{rank}", 1)
    store.add("rankmq", 1)
    while store.add("rankmq", 0) < size:
        if time.monotonic() > deadline:
            missing = [str(other) for other in range(size) if not store.add(f"rankmq/{other}", 0)]
            raise GroupError(f"rank {', '.join(missing)} did not join the group in time")
        time.sleep(_POLL_SECONDS)


@contextmanager
def woken() -> Iterator[None]:
    """Cuts MindSpore's naps short, on the main thread.

    A rank that asks for another's address a moment before that one has told it sleeps for three seconds, in a call of
    sleep(), which any signal ends. It asks 19 times at most: so the signals must not come too fast.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.signal(signal.SIGALRM, lambda *_: None)
    timer = signal.setitimer(signal.ITIMER_REAL, 0.05, 0.5)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, *timer)
        signal.signal(signal.SIGALRM, handler)
