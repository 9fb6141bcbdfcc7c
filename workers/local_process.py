"""A process that `local` starts, seen from the one that starts it; `child` is the other end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from ..schemas.errors import RankmqError, from_wire

__all__ = ["End", "LocalProcess", "Role"]

Role = Literal["orchestrator", "agents"]

_STANDARD_ERROR = 2


@dataclass(frozen=True, slots=True)
class End:
    """How a process ended.

    Attributes:
        code: its exit code, negative for a signal.
        failure: what it said about it; None if it said nothing.
    """

    code: int
    failure: RankmqError | None = None

    def __str__(self) -> str:
        if self.failure is not None:
            return self.failure.message
        return f"killed by {signal.Signals(-self.code).name}" if self.code < 0 else f"exit code {self.code}"


class LocalProcess:
    """Runs in a session of its own, so that Ctrl-C in a terminal does not reach it.

    Args:
        role: what it is.
        log_file: where what it logs and prints goes; our standard error if None.
        on_ready: called when it serves.
        on_warning: called with a line that whoever starts it should see.
    """

    def __init__(
        self,
        role: Role,
        *,
        log_file: Path | None = None,
        on_ready: Callable[[], None],
        on_warning: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.role = role
        self._log_file = log_file
        self._on_ready = on_ready
        self._on_warning = on_warning
        self._failure: RankmqError | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._reader: asyncio.StreamReader | None = None

    @property
    def pid(self) -> int | None:
        """Its process id; None before `start`."""
        return None if self._process is None else self._process.pid

    async def start(self, order: Mapping[str, Any]) -> None:
        """Starts it, with its order; it then waits for `connect`."""
        ours, theirs = socket.socketpair()
        with contextlib.ExitStack() as files:
            files.enter_context(theirs)
            log: int | IO[bytes] = _STANDARD_ERROR
            if self._log_file is not None:
                log = files.enter_context(self._log_file.open("ab"))
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-u",  # what a servable prints is in the log at once
                "-m",
                f"{__package__}.child",
                self.role,
                str(theirs.fileno()),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
                env=_environment(),
            )
        self._reader, self._writer = await asyncio.open_connection(sock=ours)
        self._say(dict(order))

    def connect(self, broker_url: str) -> None:
        """Tells it where the broker is, now that there is one."""
        self._say({"broker_url": broker_url})

    def _say(self, word: dict[str, Any]) -> None:
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(json.dumps(word).encode() + b"\n")

    async def ended(self) -> End:
        """Listens to it until its end."""
        process, reader = self._process, self._reader
        if process is None or reader is None:
            return End(0)
        with contextlib.suppress(OSError):
            async for line in reader:
                self._hear(json.loads(line))
        code = await process.wait()
        if code < 0:
            self._kill_all(process.pid)  # what a launcher that was killed leaves behind would hold the ranks' places
        if self._writer is not None:
            self._writer.close()
        return End(code, self._failure)

    def _hear(self, word: dict[str, Any]) -> None:
        match word:
            case {"event": "ready"}:
                self._on_ready()
            case {"event": "warning", "message": str(message)}:
                self._on_warning(message)
            case {"event": "failed", "code": str(code), "message": str(message)}:
                self._failure = from_wire(code, message)

    async def stop(self, timeout: float) -> None:
        """Asks it to end, and sees to it.

        Args:
            timeout: seconds after which it is killed.
        """
        process = self._process
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), timeout)
        except TimeoutError:
            self.kill()
            await process.wait()

    def kill(self) -> None:
        """Ends it and all processes below it at once."""
        if self._process is not None and self._process.returncode is None:
            self._kill_all(self._process.pid)

    def _kill_all(self, leader: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(leader, signal.SIGKILL)  # its session is its own, and so is its group


def _environment() -> dict[str, str]:
    """Ours, and where this package is, should it be importable only by our own `sys.path`."""
    root = str(Path(__file__).absolute().parents[2])
    if Path(root).name in ("site-packages", "dist-packages"):
        return dict(os.environ)
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
