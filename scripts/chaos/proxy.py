"""A TCP connection that can be cut, or fall silent, on its way to the broker."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from types import TracebackType
from typing import Self

__all__ = ["Proxy"]

_CHUNK = 1 << 16
_CONNECT_SECONDS = 5.0
_RESET = struct.pack("ii", 1, 0)
"""A socket that lingers for no time is reset when it is closed, which is as near to "refused" as one can come here."""


class Proxy:
    """Listens on loopback and passes everything on.

    Args:
        host: where to.
        port: likewise.
    """

    def __init__(self, host: str, port: int) -> None:
        self._to = (host, port)
        self._lock = threading.Lock()
        self._ends: list[socket.socket] = []
        self._flowing = threading.Event()
        self._flowing.set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, name="proxy", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _shut(self._listener)  # which wakes the thread that accepts; closing it alone would not
        self._listener.close()
        self.resume()
        self.cut()

    def cut(self) -> int:
        """Closes all connections that are open; new ones are let through. Gives how many there were."""
        with self._lock:
            ends, self._ends = self._ends, []
        for end in ends:
            _shut(end)
        return len(ends) // 2

    def silence(self) -> None:
        """Passes nothing on any more, of old connections and new ones, and closes none."""
        self._flowing.clear()

    def resume(self) -> None:
        """Passes on again, also what was held back."""
        self._flowing.set()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(self._to, _CONNECT_SECONDS)
            except OSError:  # nobody there
                near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                near.close()
                continue
            far.settimeout(None)
            for end in (near, far):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._ends += [near, far]
            for pair in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=pair, name="proxy", daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(_CHUNK):
                self._flowing.wait()
                sink.sendall(data)
        _shut(source)
        _shut(sink)
        with self._lock:
            self._ends = [end for end in self._ends if end is not source and end is not sink]


def _shut(end: socket.socket) -> None:
    with contextlib.suppress(OSError):  # shut already
        end.shutdown(socket.SHUT_RDWR)
