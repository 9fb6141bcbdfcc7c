"""A process of a chaos run, seen from the one that starts it; `child` is the other end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import psutil

from ...schemas.errors import GroupError

__all__ = ["Process"]


class Process:
    """Runs in a session of its own. What it logs goes to a file.

    Args:
        name: for people.
        log: the file, which is added to.
        family: whether it has processes below it that outlive it when it is killed.

    Attributes:
        expected: whether its end is no surprise.
    """

    def __init__(self, name: str, log: Path, *, family: bool = False) -> None:
        self.name = name
        self.log = log
        self.expected = False
        self._family = family
        self._gone = False
        self._process: asyncio.subprocess.Process | None = None

    async def start(self, *arguments: str, **environment: str) -> None:
        """Starts it.

        Args:
            arguments: see `child`.
            environment: variables beside our own.
        """
        log: IO[bytes]
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", f"{__package__}.child", *arguments),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**_environment(os.environ), **environment},
            )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid if self._process is not None else 0

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._process is not None and self._process.returncode is None

    @property
    def code(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        return self._process.returncode if self._process is not None else None

    def signal(self, number: signal.Signals) -> None:
        """Sends it a signal; its end is no surprise from then on, where that is what the signal is for."""
        self.expected = self.expected or number in (signal.SIGKILL, signal.SIGTERM)
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    async def ended(self, seconds: float) -> int:
        """Waits for its end, and gives its exit code.

        Raises:
            GroupError: it does not end.
        """
        if self._process is None:
            return 0
        try:
            code = await asyncio.wait_for(self._process.wait(), seconds)
        except TimeoutError:
            raise GroupError(f"{self.name} does not end within {seconds:g} s; its log is {self.log}") from None
        self._gone = not self._family or code >= 0
        return code

    async def stop(self, seconds: float) -> int:
        """Tells it to end, and waits for that."""
        self.signal(signal.SIGTERM)
        return await self.ended(seconds)

    def destroy(self) -> None:
        """Ends it, and all processes below it, at once."""
        self.expected = True
        if self._process is not None and not self._gone:  # whose number may be another's by now
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)  # its session is its own, and so is its group
            self._gone = not self.alive

    def below(self) -> bool:
        """Whether a process of its session runs, itself or one below it."""
        return self._process is not None and not self._gone and any(map(self._is_ours, psutil.process_iter()))

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            return os.getpgid(process.pid) == self.pid and process.status() != psutil.STATUS_ZOMBIE
        except (ProcessLookupError, psutil.NoSuchProcess):
            return False


def _environment(ours: Mapping[str, str]) -> dict[str, str]:
    """Ours, and where this package is, should it be importable only by our own `sys.path`."""
    root = Path(__file__).absolute().parents[3]
    if root.name in ("site-packages", "dist-packages"):
        return dict(ours)
    paths = [str(root), *filter(None, [ours.get("PYTHONPATH")])]
    return {**ours, "PYTHONPATH": os.pathsep.join(paths)}
