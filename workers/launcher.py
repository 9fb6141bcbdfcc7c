"""Starts the agents of this host, one process per rank, watches them, and starts again those that die.

The processes are forked from a server that has imported what they need, once: eight ranks are up in one import's time.
"""

from __future__ import annotations

import logging
import math
import multiprocessing
import multiprocessing.connection
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from ..engine.settings import Settings
from ..engine.short_sockets import keep_sockets_short
from ..schemas.errors import BrokerUnavailable, ConnectionLost, GroupError, OperatorError, from_wire
from ..schemas.messages import GroupId, RankExited
from .agent import RESTART, AgentConfig
from .agent_process import executor_kind, preload, run_agent, run_scheduler, run_spare
from .reporter import Reporter
from .restarts import Restarts

__all__ = ["Launcher"]

log = logging.getLogger(__name__)

_GRACE_SECONDS = 10.0
_LOOK_SECONDS = 1.0
_STALL_SECONDS = 3.0

_Pipe = multiprocessing.connection.Connection


@dataclass(slots=True)
class _Rank:
    """One rank; `patience` is when its process counts as frozen, unless it says something before."""

    config: AgentConfig
    restarts: Restarts
    process: ForkServerProcess | None = None
    pipe: _Pipe | None = None
    due: float = 0.0
    patience: float | None = None
    served: bool = False
    failure: OperatorError | None = None


class Launcher:
    """The agents of this host, of one or more groups.

    Args:
        files: by group and rank of this host, the rank's model files in the order of the subgraphs.
        settings: see `Settings`; the broker's URL must be set.
        host: this host's name in the rank table.
    """

    def __init__(
        self, files: Mapping[GroupId, Mapping[int, Sequence[Path]]], settings: Settings, *, host: str | None = None
    ) -> None:
        self._settings = settings
        self._host = host or socket.gethostname()
        self._ranks = [
            _Rank(
                AgentConfig(group, rank, tuple(paths), settings, self._host, sum(map(len, files.values()))),
                Restarts(f"rank {rank} of {group}", settings.max_restarts),
            )
            for group, ranks in files.items()
            for rank, paths in sorted(ranks.items())
        ]
        keep_sockets_short()
        self._context = multiprocessing.get_context("forkserver")
        self._schedulers: dict[GroupId, ForkServerProcess] = {}
        self._reporter = Reporter(settings)
        self._spares: list[tuple[ForkServerProcess, _Pipe]] = []
        self._silence = settings.heartbeat_seconds * settings.heartbeats_missed
        self._looked = time.monotonic()
        self._stop_read, self._stop_write = os.pipe()
        self._stopping = False

    def run(self) -> None:
        """Runs the agents until told to stop, by `stop`, SIGTERM or SIGINT; then lets them finish what they were sent.

        Raises:
            OperatorError: an agent cannot start (a model file, the broker), or died more than `max_restarts` times.
        """
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, lambda *_: self.stop())
        self._context.set_forkserver_preload(preload({executor_kind(it.config.files) for it in self._ranks}))
        try:
            for rank in self._ranks:
                self._start(rank)
            while not self._stopping:
                self._wait()
                self._raise_failure()
                self._fill_spares()
        finally:
            self._end()

    def stop(self) -> None:
        """Asks `run` to end; may be called from any thread and from a signal handler."""
        self._stopping = True
        os.write(self._stop_write, b"x")

    # ------------------------------------------------------------------------------------------------------ watching

    def _start(self, rank: _Rank) -> None:
        old = rank.config
        # With a new id.
        rank.config = config = AgentConfig(old.group, old.rank, old.files, self._settings, self._host, old.ranks)
        rank.due, rank.patience = 0.0, None
        spare = self._take_spare(config)
        if spare is None:
            rank.process, rank.pipe = self._spawn(f"rankmq-agent-{config.rank}", run_agent, config)
        else:
            rank.process, rank.pipe = spare
        log.info("rank %d of %s started: pid %d", config.rank, config.group, rank.process.pid)

    def _spawn(self, name: str, target: Callable[..., None], *args: object) -> tuple[ForkServerProcess, _Pipe]:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=target, args=(*args, theirs), name=name)
        process.start()
        theirs.close()
        return process, ours

    def _take_spare(self, config: AgentConfig) -> tuple[ForkServerProcess, _Pipe] | None:
        """Has a spare be the agent of a rank; None where no spare lives."""
        while self._spares:
            process, pipe = self._spares.pop()
            try:
                pipe.send(config)
            except OSError:  # it has died
                pipe.close()
                continue
            return process, pipe
        return None

    def _fill_spares(self) -> None:
        while len(self._spares) < self._settings.spares:
            self._spares.append(self._spawn("rankmq-spare", run_spare))

    def _kill_frozen(self) -> None:
        """A rank whose I/O thread says nothing any more is frozen, or worse; its end is a sign that all understand."""
        now = time.monotonic()
        stalled, self._looked = now - self._looked > _STALL_SECONDS, now
        for rank in self._ranks:
            if rank.process is None or rank.patience is None:
                continue
            if stalled:  # it was us who did not listen
                rank.patience = max(rank.patience, now + self._silence)
            elif now > rank.patience:
                log.warning("rank %d of %s says nothing: killed", rank.config.rank, rank.config.group)
                rank.process.kill()
                rank.patience = None

    def _wait(self) -> None:
        """Waits for the next event: a word from an agent, the end of one, the time to start one again, or a stop."""
        waits: dict[Any, _Rank | None] = {self._stop_read: None}
        for rank in self._ranks:
            if rank.process is not None:
                waits[rank.process.sentinel] = rank
            if rank.pipe is not None:
                waits[rank.pipe] = rank
        due = [rank.due for rank in self._ranks if rank.process is None]
        timeout = max(0.0, min([_LOOK_SECONDS, *(moment - time.monotonic() for moment in due)]))
        for ready in multiprocessing.connection.wait(list(waits), timeout):
            awaited = waits[ready]
            if awaited is not None and ready is awaited.pipe:
                self._listen(awaited)
            elif awaited is not None:
                self._ended(awaited)
        self._kill_frozen()
        for rank in self._ranks:
            if rank.process is None and rank.due <= time.monotonic() and not self._stopping:
                self._start(rank)

    def _listen(self, rank: _Rank) -> None:
        if rank.pipe is None:
            return
        try:
            message = rank.pipe.recv()
        except (EOFError, OSError):
            rank.pipe.close()
            rank.pipe = None
            return
        match message:
            case ("alive", bool(serving)):
                rank.served = rank.served or serving
                rank.patience = time.monotonic() + self._silence + (0.0 if serving else self._settings.load_timeout)
            case ("scheduler", str(address), int(size)):
                self._start_scheduler(rank.config.group, address, size)
            case ("failed", str(code), str(text)):
                error = from_wire(code, text)
                if not (rank.served and isinstance(error, ConnectionLost | BrokerUnavailable)):  # which may pass
                    rank.failure = error if isinstance(error, OperatorError) else GroupError(text)

    def _start_scheduler(self, group: GroupId, address: str, size: int) -> None:
        self._end_scheduler(group)
        process = self._context.Process(target=run_scheduler, args=(address, size), name="rankmq-scheduler")
        process.start()
        self._schedulers[group] = process

    def _end_scheduler(self, group: GroupId) -> None:
        process = self._schedulers.pop(group, None)
        if process is not None:
            process.kill()  # it holds nothing that could be lost
            process.join(_GRACE_SECONDS)

    def _ended(self, rank: _Rank) -> None:
        process = rank.process
        if process is None:
            return
        while rank.pipe is not None and rank.pipe.poll():
            self._listen(rank)
        process.join(_GRACE_SECONDS)
        code, pid = process.exitcode, process.pid or 0
        rank.process = None
        if self._stopping:
            return
        reason = _reason(code)
        log.warning("rank %d of %s ended: %s", rank.config.rank, rank.config.group, reason)
        self._reporter.report(RankExited(group=rank.config.group, rank=rank.config.rank, pid=pid, reason=reason))
        if code == RESTART:
            rank.due = time.monotonic()
            return
        self._schedule(rank, reason)

    def _schedule(self, rank: _Rank, reason: str) -> None:
        """When to start a rank again that died: after pauses that double, and not for ever."""
        try:
            rank.due = time.monotonic() + rank.restarts.pause(reason)
        except GroupError as error:
            rank.failure = rank.failure or error
        if rank.failure is not None:
            rank.due = math.inf

    def _raise_failure(self) -> None:
        for rank in self._ranks:
            if rank.failure is not None and rank.process is None:
                raise rank.failure

    # -------------------------------------------------------------------------------------------------------- ending

    def _end(self) -> None:
        self._stopping = True
        running = [rank.process for rank in self._ranks if rank.process is not None]
        for process in running:
            process.terminate()
        deadline = time.monotonic() + self._settings.drain_timeout + _GRACE_SECONDS
        for process in running:
            process.join(max(0.0, deadline - time.monotonic()))
            if process.exitcode is None:
                log.error("pid %s did not end and is killed", process.pid)
                process.kill()
                process.join(_GRACE_SECONDS)
        for process, pipe in self._spares:
            pipe.close()
            process.kill()
            process.join(_GRACE_SECONDS)
        for group in list(self._schedulers):
            self._end_scheduler(group)
        self._reporter.close()
        for rank in self._ranks:
            if rank.pipe is not None:
                rank.pipe.close()


def _reason(code: int | None) -> str:
    if code is None:
        return "unknown"
    if code == RESTART:
        return "asked to be started anew"
    if code < 0:
        known = {it.value: it.name for it in signal.Signals}
        return f"killed by {known.get(-code, f'signal {-code}')}"
    return f"exit code {code}"
