"""What one call of a function stage has in processes, so that it can be ended when nobody wants its rows any more."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, Protocol

__all__ = ["StageCall"]


class _Process(Protocol):
    def kill(self) -> None: ...


class StageCall:
    """Its rows are of one request, and so nobody wants any of them once that is over. For any thread.

    Attributes:
        is_ended: whether its processes were ended.
    """

    def __init__(self) -> None:
        self.is_ended = False
        self._lock = threading.Lock()
        self._pieces: list[Future[Any]] = []
        self._processes: set[_Process] = set()
        self._given_up = False

    @property
    def is_given_up(self) -> bool:
        """Whether nobody wants it any more."""
        return self._given_up

    def waits_for(self, pieces: Sequence[Future[Any]]) -> None:
        """These are its pieces."""
        with self._lock:
            self._pieces = list(pieces)
            given_up = self._given_up
        if given_up:
            self.give_up()

    @contextmanager
    def at(self, process: _Process) -> Iterator[None]:
        """A process is at one of its pieces, and at nothing else."""
        with self._lock:
            self._processes.add(process)
            if self.is_ended:
                process.kill()
        try:
            yield
        finally:
            with self._lock:
                self._processes.discard(process)

    def give_up(self) -> None:
        """What has not begun does not begin."""
        with self._lock:
            self._given_up = True
            pieces = self._pieces
        for piece in pieces:
            piece.cancel()

    def end(self) -> None:
        """Ends the processes that are at it, too: they may never be done."""
        self.give_up()
        with self._lock:
            self.is_ended = True
            for process in self._processes:
                process.kill()
