"""An agent's line to its launcher: a pipe that more than one thread may speak into."""

from __future__ import annotations

import threading
from multiprocessing.connection import Connection

__all__ = ["LauncherLine"]


class LauncherLine:
    """What an agent tells the process that started it; a launcher that is gone hears nothing, and that is no error.

    Args:
        pipe: the agent's end.
    """

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._lock = threading.Lock()

    def alive(self, *, serving: bool) -> None:
        """The I/O thread runs: said regularly, so that a process that was frozen is found out.

        Args:
            serving: whether to expect the next word soon; a graph's compilation may hold Python's lock for long.
        """
        self._say(("alive", serving))

    def failed(self, code: str, message: str) -> None:
        """Why the agent is about to end."""
        self._say(("failed", code, message))

    def start_scheduler(self, address: str, size: int) -> None:
        """Have a scheduler of MindSpore's own communication started.

        Args:
            address: host:port for it to listen on.
            size: how many ranks it waits for.
        """
        self._say(("scheduler", address, size))

    def _say(self, message: tuple[object, ...]) -> None:
        with self._lock:
            try:
                self._pipe.send(message)
            except OSError:
                return
