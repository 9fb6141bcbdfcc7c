"""Whole engines of real processes: an orchestrator, and a launcher with its agents, on a virtual host of their own."""

import asyncio
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from rankmq.engine.address import BrokerAddress
from rankmq.engine.client import Client
from rankmq.engine.connection import Connection
from rankmq.engine.status import ask_status
from rankmq.schemas.errors import RankmqError
from rankmq.schemas.messages import GroupStatus, Status
from rankmq.workers.broker import PrivateBroker

ROOT = Path(__file__).parents[2]
ROLE = Path(__file__).with_name("role.py")
STOP_SECONDS = 40.0


def wait_until(condition: Callable[[], Any], what: str, seconds: float = 30.0, every: float = 0.05) -> Any:
    """Wait for something that announces itself nowhere; gives the first true value of `condition`."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what}: not within {seconds:g} s"
        time.sleep(every)
    return found


def environment(**settings: Any) -> dict[str, str]:
    """The environment of a process of the engine: ours, without settings of ours, and with these."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RANKMQ_")}
    given = {f"RANKMQ_{name.upper()}": str(value) for name, value in settings.items()}
    return {**inherited, "PYTHONPATH": str(ROOT / ".dev"), **given}


class Vhosts:
    """Virtual hosts of one broker, made some at a time: a call of rabbitmqctl takes a second."""

    def __init__(self, broker: PrivateBroker) -> None:
        self._broker = broker
        self._names: Iterator[str] = iter(())
        self._batches = itertools.count()

    def url(self) -> str:
        """The URL of one that nobody has used."""
        name = next(self._names, None)
        if name is None:
            batch = next(self._batches)
            names = [f"e2e-{batch}-{number}" for number in range(6)]
            listed = ", ".join(f'<<"{name}">>' for name in names)
            user = BrokerAddress.parse(self._broker.url).user
            self._broker.ctl(
                "eval",
                f'[begin rabbit_vhost:add(V, <<"t">>), rabbit_auth_backend_internal:set_permissions(<<"{user}">>, V, '
                f'<<".*">>, <<".*">>, <<".*">>, <<"t">>) end || V <- [{listed}]].',
            )
            self._names = iter(names)
            name = next(self._names)
        return self._broker.url.rsplit("/", 1)[0] + "/" + name


class Role:
    """One process of an engine, with what it logs."""

    def __init__(self, role: str, command: Sequence[str], log: Path, env: Mapping[str, str]) -> None:
        self.role = role
        self.log = log
        with log.open("ab") as out:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=dict(env), start_new_session=True
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def said(self) -> str:
        """Everything that it has logged so far."""
        return self.log.read_text()

    def family(self) -> list[psutil.Process]:
        """Itself and all processes below it."""
        me = psutil.Process(self.pid)
        return [me, *me.children(recursive=True)]

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def ended(self, seconds: float = STOP_SECONDS) -> int:
        """Its exit code, once it has ended."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the {self.role} does not end within {seconds:g} s:\n{self.said[-3000:]}") from None

    def stop(self) -> int:
        self.signal(signal.SIGTERM)
        return self.ended()

    def destroy(self) -> None:
        """Leave nothing of it behind, whatever state it is in."""
        if self.process.poll() is None:
            try:
                family = self.family()
            except psutil.NoSuchProcess:
                family = []
            for process in family:
                try:
                    process.kill()
                except psutil.NoSuchProcess:
                    continue
        self.process.wait(10)


class System:
    """An engine.

    Args:
        url: the broker's, with a virtual host that nobody else uses.
        directory: the folder of the servables' folders.
        servables: their names, or names and versions.
        logs: a folder for what the processes log.
        settings: as RANKMQ_* in the environment of all its processes.
    """

    def __init__(
        self, url: str, directory: Path, servables: Sequence[str | tuple[str, int]], logs: Path, **settings: Any
    ) -> None:
        self.url = url
        self.vhost = BrokerAddress.parse(url).vhost
        self.directory = directory
        self._servables = [(it, 0) if isinstance(it, str) else it for it in servables]
        self._logs = logs
        self._settings = {"connect_timeout": 20, **settings}
        self._roles: list[Role] = []
        self.orchestrator: Role | None = None
        self.agents: Role | None = None

    def __enter__(self) -> "System":
        self.start_orchestrator()
        self.start_agents()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self.destroy()

    def start_orchestrator(self) -> Role:
        self.orchestrator = self._start("orchestrator")
        return self.orchestrator

    def start_agents(self, ranks: Sequence[int] | None = None) -> Role:
        self.agents = self._start("agents", ranks)
        return self.agents

    def _start(self, role: str, ranks: Sequence[int] | None = None) -> Role:
        given = {"directory": str(self.directory), "servables": self._servables, "ranks": ranks}
        log = self._logs / f"{len(self._roles)}-{role}.log"
        command = [sys.executable, str(ROLE), role, json.dumps(given)]
        started = Role(role, command, log, environment(broker_url=self.url, **self._settings))
        self._roles.append(started)
        return started

    def stop(self) -> None:
        """End it in order; whatever still runs must end well."""
        for role in (self.orchestrator, self.agents):
            if role is not None and role.process.poll() is None:
                assert role.stop() == 0, role.said[-3000:]

    def close(self) -> None:
        """End it, whatever state it is in."""
        try:
            self.stop()
        finally:
            self.destroy()

    def destroy(self) -> None:
        """Leave nothing of it behind."""
        for role in self._roles:
            role.destroy()

    @property
    def log(self) -> str:
        """What all its processes have logged, one after the other."""
        return "\n".join(role.said for role in self._roles)

    def client(self, servable: str, method: str, version: int = 0, **options: Any) -> Client:
        return Client(self.url, servable, method, version, **{"timeout": 60.0, **options})

    def status(self) -> Status:
        """What its orchestrator says of itself."""
        return wait_until(self.try_status, "an answer to a status query", every=0.2)

    def try_status(self) -> Status | None:
        async def ask() -> list[Status]:
            connection = await Connection.open(BrokerAddress.parse(self.url), name="tests", patience=10.0)
            try:
                return await ask_status(connection, timeout=3.0, settle=0.0)
            finally:
                await connection.close()

        try:
            answers = asyncio.run(ask())
        except RankmqError:  # while a connection is being cut
            return None
        return next((it for it in answers if self.orchestrator and it.pid == self.orchestrator.pid), None)

    def group(self, servable: str, version: int = 1) -> GroupStatus:
        """The status of one of its groups."""
        groups = {(it.group.servable, it.group.version): it for it in self.status().groups}
        return groups[servable, version]

    def wait_ready(self, epoch: int = 1, seconds: float = 60.0) -> None:
        """Wait until all its groups serve, in this epoch or a later one."""

        def ready() -> bool:
            for role in (self.orchestrator, self.agents):
                assert role is None or role.process.poll() is None, role.said[-3000:]
            status = self.try_status()
            return status is not None and all(it.state == "ready" and it.epoch >= epoch for it in status.groups)

        wait_until(ready, f"epoch {epoch} of all groups", seconds, every=0.1)


@contextmanager
def running(system: System) -> Iterator[System]:
    """A system that serves within the block."""
    with system:
        system.wait_ready()
        yield system
