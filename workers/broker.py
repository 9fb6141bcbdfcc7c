"""A RabbitMQ node of our own, on loopback, with its data in a state folder."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import subprocess
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

from ..schemas.errors import AlreadyRunning, BrokerUnavailable, ConfigurationError
from .broker_config import LOOPBACK, NODE_NAME, Account, Ports, TlsFiles, boot_failure, node_environment, render_conf
from .broker_guard import Guard
from .broker_server import Server, find_server, link_modules, link_plugins
from .broker_state import StateFolder, reserve_ports
from .broker_users import User, definitions

__all__ = ["PrivateBroker", "TlsFiles", "User", "find_server"]

LOG = logging.getLogger(__name__)

_AMQP_HEADER = b"AMQP\x00\x00\x09\x01"
_METHOD_FRAME = b"\x01"  # a broker that knows this version answers with the method Connection.Start
_LOOK_EVERY = 0.03  # seconds between two looks at the AMQP port
_MOST_SCHEDULERS = 4
_BOOTING_STOP_TIMEOUT = 3.0  # seconds; a node that is told to end while it boots may hang, and has nothing to save yet
_HOW_TO_GET = "install it (apt-get install rabbitmq-server), or name a broker with --broker-url or RANKMQ_BROKER_URL"


@dataclass(frozen=True, slots=True)
class _Node:
    """A node that was started."""

    server: Server
    account: Account
    ports: Ports
    environment: Mapping[str, str]
    pid: int


class PrivateBroker:
    """One private node. Its user, password, queues and durable messages outlive it, in the state folder.

    Nothing of it listens elsewhere than on loopback, and it ends with its owner, however that ends.

    Args:
        state_dir: made if it is not there; readable by nobody else.
        port: of AMQP; 0 takes the one it had last if that is free, else any that is.
        start_timeout: seconds until `start` gives up.
        stop_timeout: seconds that the node has for an orderly end before it is killed.
        tls: files of a second listener, for amqps.
        extra_conf: further lines of rabbitmq.conf, by key.
        advanced_conf: what advanced.config says, in Erlang's terms: `[{rabbit, [{channel_tick_interval, 1000}]}].`
        users: further users; see `user_url`.
        vhosts: further virtual hosts, in which the node's own user may do anything.
        fast: boot through links to the modules (see `broker_server`); if that fails, `start` tries again without.
    """

    def __init__(
        self,
        state_dir: Path,
        *,
        port: int = 0,
        start_timeout: float = 60,
        stop_timeout: float = 20,
        tls: TlsFiles | None = None,
        extra_conf: Mapping[str, str] | None = None,
        advanced_conf: str = "",
        users: Iterable[User] = (),
        vhosts: Iterable[str] = (),
        fast: bool = True,
    ) -> None:
        self._state = StateFolder(Path(state_dir))
        self._port = port
        self._start_timeout = start_timeout
        self._stop_timeout = stop_timeout
        self._tls = tls
        self._extra_conf = dict(extra_conf or {})
        self._advanced_conf = advanced_conf
        self._users = {user.name: user for user in users}
        self._vhosts = tuple(vhosts)
        self._fast = fast
        self._guard: Guard | None = None
        self._node: _Node | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """The AMQP URL, with user and password."""
        node = self._started()
        return node.account.url(node.ports.amqp)

    @property
    def tls_url(self) -> str:
        """The AMQPS URL, where `tls` was given; its host is `localhost`, as a certificate would say."""
        node = self._started()
        return node.account.url(_tls_port(node), host="localhost", scheme="amqps")

    def user_url(self, name: str, *, tls: bool = False) -> str:
        """The AMQP URL of one of `users`, for its virtual host.

        Args:
            name: the user's.
            tls: whether the AMQPS URL is wanted.

        Raises:
            ConfigurationError: there is no such user, or no TLS listener.
        """
        node = self._started()
        user = self._users.get(name)
        if user is None:
            raise ConfigurationError(
                f"this private broker has no user {name}: it has {', '.join(self._users) or 'none'}"
            )
        account = Account(user.name, user.password)
        if tls:
            return account.url(_tls_port(node), host="localhost", scheme="amqps", vhost=user.vhost)
        return account.url(node.ports.amqp, vhost=user.vhost)

    @property
    def pid(self) -> int:
        """The node's process id."""
        return self._started().pid

    @property
    def state_dir(self) -> Path:
        """The state folder."""
        return self._state.path

    @property
    def log_file(self) -> Path:
        """The node's own log."""
        return self._state.log_file

    def alive(self) -> bool:
        """Whether the node runs."""
        return self._guard is not None and self._guard.alive()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the node has ended by itself.

        Args:
            timeout: seconds; None waits for as long as it runs.

        Returns:
            Whether it has ended.
        """
        return self._guard is None or self._guard.wait(timeout)

    def start(self) -> None:
        """Start the node and return when it takes AMQP connections. A node that ended by itself is started again.

        Raises:
            AlreadyRunning: the state folder or the port is taken.
            BrokerUnavailable: there is no RabbitMQ here, or it does not come up.
            ConfigurationError: the state folder cannot be used.
        """
        if self.alive():
            raise AlreadyRunning(f"the private broker in {self.state_dir} is started already")
        self.stop()
        until = time.monotonic() + self._start_timeout
        server = _installed()
        try:
            lock = self._state.take(until)
            try:
                self._boot(server, lock, until, fast=self._fast)
            except BrokerUnavailable as error:
                if not self._fast or time.monotonic() >= until:
                    raise
                LOG.warning("the private broker does not come up through links, trying without: %s", error)
                self._end_guard()
                self._boot(server, lock, until, fast=False)
        except BaseException:
            self.stop()
            raise
        node = self._started()
        LOG.info("private broker up: port %d, pid %d, state %s", node.ports.amqp, node.pid, self.state_dir)

    def stop(self) -> None:
        """End the node, then its epmd; returns when both are gone. Nothing happens if it was not started."""
        self._end_guard()
        self._state.release()

    def ctl(self, *arguments: str, timeout: float = 60) -> str:
        """Run rabbitmqctl on this node (a second or two).

        Args:
            arguments: as on its command line; the node is given already.
            timeout: seconds.

        Returns:
            What it printed.

        Raises:
            BrokerUnavailable: it failed; with its last line.
        """
        node = self._started()
        command = [str(node.server.ctl), "--node", NODE_NAME, *arguments]
        what = f"rabbitmqctl {arguments[0] if arguments else ''}"
        try:
            done = subprocess.run(
                command, env=node.environment, capture_output=True, text=True, timeout=timeout, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise BrokerUnavailable(f"{what} took more than {timeout:g} s") from error
        if done.returncode:
            said = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()
            raise BrokerUnavailable(f"{what} failed: {said[-1]}")
        return done.stdout

    def _started(self) -> _Node:
        if self._node is None:
            raise BrokerUnavailable("the private broker is not started")
        return self._node

    def _boot(self, server: Server, lock: int, until: float, *, fast: bool) -> None:
        state = self._state
        account = state.account()
        if not account.used:
            state.clear()
        with reserve_ports(account, amqp=self._port, tls=self._tls is not None) as ports:
            account = replace(account, ports=ports.by_name())
            state.keep(account)
            state.make_cookie()
            self._configure(account, ports)
            environment = node_environment(
                os.environ,
                state=state.path,
                home=server.home,
                ports=ports,
                schedulers=min(os.cpu_count() or 1, _MOST_SCHEDULERS),
                code=link_modules(server, state.path / "modules") if fast else None,
                plugins=link_plugins(server, state.path / "plugins") if fast else None,
            )
            logged = state.log_file.stat().st_size if state.log_file.exists() else 0
            guard = self._guard = Guard(lock)
            ordered = guard.order(
                epmd=[str(server.epmd), "-port", str(ports.epmd), "-address", LOOPBACK],
                epmd_port=ports.epmd,
                node=[str(server.script)],
                environment=environment,
                folder=state.path,
                output=state.output_file,
                timeout=max(until - time.monotonic(), 0.0),
                stop_timeout=self._stop_timeout,
            )
            if not ordered and time.monotonic() >= until:
                raise self._too_late(logged)
            if not ordered:
                raise BrokerUnavailable(f"the private broker's epmd does not start (log: {state.output_file})")
            self._wait_until_up(guard, ports, until, logged)
            account = replace(account, used=True)
            state.keep(account)
            self._node = _Node(server, account, ports, environment, guard.pid)

    def _configure(self, account: Account, ports: Ports) -> None:
        state = self._state
        defined = state.path / "definitions.json" if self._users or self._vhosts else None
        if defined is not None:
            state.write(defined.name, definitions(account, self._users.values(), self._vhosts))
        conf = render_conf(account, ports, tls=self._tls, definitions=defined, extra=self._extra_conf)
        state.write("rabbitmq.conf", conf)
        state.write("advanced.config", self._advanced_conf or "[].\n")

    def _wait_until_up(self, guard: Guard, ports: Ports, until: float, logged: int) -> None:
        """Wait until AMQP is spoken at the port.

        Args:
            guard: whose node it is.
            ports: the node's.
            until: `time.monotonic()` at which to give up.
            logged: bytes of the log that are older than this node.
        """
        while not guard.wait(_LOOK_EVERY):
            if _speaks_amqp(ports.amqp, timeout=max(until - time.monotonic(), _LOOK_EVERY)):
                return
            if time.monotonic() >= until:
                raise self._too_late(logged)
        why = self._last_words(logged)
        if "eaddrinuse" in why:
            raise AlreadyRunning(f"a port of the private broker is taken{why}")
        raise BrokerUnavailable(f"the private broker ended while it started{why}")

    def _too_late(self, logged: int) -> BrokerUnavailable:
        why = self._last_words(logged)
        return BrokerUnavailable(f"the private broker did not come up within {self._start_timeout:g} s{why}")

    def _last_words(self, logged: int) -> str:
        printed, log = self._state.output_file, self._state.log_file
        texts = [printed.read_bytes() if printed.exists() else b"", log.read_bytes()[logged:] if log.exists() else b""]
        reason = boot_failure(text.decode(errors="replace") for text in texts)
        return f": {reason or 'it said nothing'} (log: {log if texts[1] else printed})"

    def _end_guard(self) -> None:
        timeout = min(self._stop_timeout, _BOOTING_STOP_TIMEOUT) if self._node is None else self._stop_timeout
        guard, self._guard, self._node = self._guard, None, None
        if guard is not None and not guard.end(timeout):
            LOG.warning("the private broker in %s did not end in an orderly way and was killed", self.state_dir)


def _installed() -> Server:
    script = find_server()
    if script is None:
        raise BrokerUnavailable(f"no rabbitmq-server on this machine: {_HOW_TO_GET}")
    server = Server.at(script)
    if server is None:
        raise BrokerUnavailable(f"{script} is there, but Erlang (erl, epmd) is not on the PATH: {_HOW_TO_GET}")
    return server


def _tls_port(node: _Node) -> int:
    if node.ports.tls is None:
        raise ConfigurationError("this private broker has no TLS listener: give it certificate files (tls=)")
    return node.ports.tls


def _speaks_amqp(port: int, *, timeout: float) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((LOOPBACK, port), timeout) as connection:
        connection.sendall(_AMQP_HEADER)
        return connection.recv(1) == _METHOD_FRAME
    return False
