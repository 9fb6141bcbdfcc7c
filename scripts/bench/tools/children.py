"""Processes that a benchmark starts, and which end with it, however it ends."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Self

from ....engine.short_sockets import keep_sockets_short
from ....schemas.errors import OperatorError

__all__ = ["Child", "Children", "Line", "prepare"]

_BACKEND = "rankmq.workers.mindspore_executor"
_GRACE_SECONDS = 5.0


def prepare(mindspore: bool) -> None:
    """Starts the server from which the processes are forked, which imports once what they need.

    Args:
        mindspore: whether some of them run graphs of MindSpore.
    """
    keep_sockets_short()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, *([_BACKEND] if mindspore else [])])
    # It does not take over our sys.path, and is silent about what it cannot import.
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    try:
        forkserver.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


class Child:
    """One process, and the pipe to it.

    Args:
        what: what it is, for messages.
        target: called there with its end of the pipe and `args`; must be importable by name.
        args: further arguments.
    """

    def __init__(self, what: str, target: Callable[..., None], *args: object) -> None:
        self._what = what
        context = multiprocessing.get_context("forkserver")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_run, args=(target, theirs, *args), name=what, daemon=True)
        self._process.start()
        theirs.close()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid or 0

    def tell(self, message: object) -> None:
        """Sends it something.

        Raises:
            OperatorError: it has ended.
        """
        try:
            self._pipe.send(message)
        except OSError:
            raise self._failure() from None

    def hear(self, seconds: float) -> Any:
        """The next thing that it sends.

        Args:
            seconds: to wait for it.

        Raises:
            OperatorError: it has ended, or failed, or says nothing in time.
        """
        if not self._pipe.poll(seconds):
            raise OperatorError(f"{self._what} says nothing within {seconds:g} s")
        try:
            kind, said = self._pipe.recv()
        except (EOFError, OSError):
            raise self._failure() from None
        if kind == "failed":
            raise OperatorError(f"{self._what} failed: {said}")
        return said

    def _failure(self) -> OperatorError:
        self._process.join(_GRACE_SECONDS)
        return OperatorError(f"{self._what} ended with exit code {self._process.exitcode}")

    def end(self) -> None:
        """Closes the pipe: who listens to it, ends."""
        self._pipe.close()

    def ended(self, seconds: float) -> None:
        """Waits for its end, and sees to it; what it has started itself ends with it."""
        self._process.join(seconds)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.kill()
        self._process.join(_GRACE_SECONDS)


class Children:
    """Several processes that do the same, such as the ranks of a group; ended at the end of the block."""

    def __init__(self, children: Iterable[Child] = ()) -> None:
        self._children = list(children)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for child in self._children:
            child.end()
        deadline = time.monotonic() + (_GRACE_SECONDS if error is None else 0.0)
        for child in self._children:
            child.ended(max(0.0, deadline - time.monotonic()))

    @property
    def pids(self) -> list[int]:
        """Their process ids."""
        return [child.pid for child in self._children]

    def add(self, child: Child) -> Child:
        """One more."""
        self._children.append(child)
        return child

    def tell(self, message: object) -> None:
        """Sends it to all."""
        for child in self._children:
            child.tell(message)

    def hear(self, seconds: float) -> Sequence[Any]:
        """The next thing that each of them sends, within `seconds` altogether."""
        deadline = time.monotonic() + seconds
        return [child.hear(max(0.0, deadline - time.monotonic())) for child in self._children]


class Line:
    """A child's end of the pipe.

    Args:
        pipe: to the benchmark.
    """

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    def say(self, message: object) -> None:
        """Sends something."""
        self._pipe.send(("said", message))

    def hear(self) -> Any:
        """What comes next.

        Raises:
            EOFError: nothing will.
        """
        return self._pipe.recv()


def _run(target: Callable[..., None], pipe: Connection, *args: object) -> None:
    os.setpgrp()  # Ctrl-C is for the benchmark, which then ends us and whatever we have started
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()
    try:
        target(Line(pipe), *args)
    except (EOFError, BrokenPipeError):
        pass
    except Exception as error:  # noqa: BLE001 - the top of the process; what it says is shown
        pipe.send(("failed", f"{type(error).__name__}: {error}"))
        os._exit(1)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.killpg(0, signal.SIGKILL)
