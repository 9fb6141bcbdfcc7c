"""What a private RabbitMQ node is told: its configuration file, its environment, and what it said when it failed.

Plain values in, plain values out: `broker.py` writes the files and starts the processes.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Self
from urllib.parse import quote

from ..schemas.errors import ConfigurationError

__all__ = ["Account", "Ports", "TlsFiles", "boot_failure", "node_environment", "render_conf"]

NODE_NAME = "rankmq@localhost"  # stable: the data folder carries it, and `localhost` outlives a change of host name
LOOPBACK = "127.0.0.1"

_LOGGED = re.compile(r"^\S+ \S+ \[(?P<level>[a-z]+)\] <[\d.]+>(?P<text>.*)$")
_ERRORS = ("error", "critical", "alert", "emergency")
_LONGEST_REASON = 300


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files for a TLS listener; clients must show a certificate that `ca` has signed."""

    ca: Path
    cert: Path
    key: Path


@dataclass(frozen=True, slots=True)
class Ports:
    """The node's TCP ports, all on loopback.

    Attributes:
        amqp: clients.
        dist: Erlang distribution, for rabbitmqctl.
        epmd: Erlang's port mapper, the node's own.
        tls: clients with TLS, if there is such a listener.
    """

    amqp: int
    dist: int
    epmd: int
    tls: int | None = None

    def by_name(self) -> dict[str, int]:
        """The ports there are."""
        return {name: port for name, port in asdict(self).items() if port is not None}


@dataclass(frozen=True, slots=True)
class Account:
    """The node's one user, made when its state folder is, and what is known of its last start.

    Kept as JSON in the state folder: RabbitMQ takes the user only into an empty database, so a lost password is not
    made good by a new one.

    Attributes:
        user: its name.
        password: its password.
        ports: those of the last start, by name.
        used: whether the node was ever up, so that its data may matter to somebody.
    """

    user: str
    password: str = field(repr=False)
    ports: Mapping[str, int] = field(default_factory=dict)
    used: bool = False

    @classmethod
    def fresh(cls) -> Self:
        """A new user with a random password (192 bits)."""
        return cls(user="rankmq", password=secrets.token_urlsafe(24))

    @classmethod
    def from_json(cls, text: str, *, file: Path) -> Self:
        """Read what `to_json` wrote.

        Raises:
            ConfigurationError: `text` is not that.
        """
        try:
            kept = json.loads(text)
            ports = {str(name): int(port) for name, port in kept["ports"].items()}
            user, password, used = kept["user"], kept["password"], kept["used"]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise _damaged(file) from error
        right_types = isinstance(user, str) and isinstance(password, str) and isinstance(used, bool)
        if not right_types or not all(0 < port < 65536 for port in ports.values()):
            raise _damaged(file)
        return cls(user=user, password=password, ports=ports, used=used)

    def to_json(self) -> str:
        """The text to keep."""
        return json.dumps(asdict(self), indent=2) + "\n"

    def url(self, port: int, *, host: str = LOOPBACK, scheme: str = "amqp", vhost: str = "/") -> str:
        """An AMQP URL."""
        user, password, vhost = (quote(part, safe="") for part in (self.user, self.password, vhost))
        return f"{scheme}://{user}:{password}@{host}:{port}/{vhost}"


def _damaged(file: Path) -> ConfigurationError:
    return ConfigurationError(
        "does not hold the private broker's user; restore it, or remove its folder to start empty", file=str(file)
    )


def render_conf(
    account: Account,
    ports: Ports,
    *,
    tls: TlsFiles | None = None,
    definitions: Path | None = None,
    extra: Mapping[str, str] | None = None,
) -> str:
    """The node's rabbitmq.conf, in words that RabbitMQ 3.10 to 4.x all know.

    Args:
        account: becomes the only user (there is no guest).
        ports: `amqp`, and `tls` where `tls` files are given.
        tls: adds a listener that asks its clients for a certificate.
        definitions: a file of users and virtual hosts; they are made at every start.
        extra: further keys, or other values for these.
    """
    lines = {
        "listeners.tcp.1": f"{LOOPBACK}:{ports.amqp}",
        "default_user": account.user,
        "default_pass": account.password,
        "log.console": "false",
        "log.file.level": "info",
        "log.file.rotation.size": "10485760",
        "log.file.rotation.count": "3",
        # The default of 512 MiB is for servers: the log is kept in memory until it is full.
        "raft.wal_max_size_bytes": "67108864",
    }
    if tls is not None:
        lines |= {
            "listeners.ssl.1": f"{LOOPBACK}:{ports.tls}",
            "ssl_options.cacertfile": str(tls.ca),
            "ssl_options.certfile": str(tls.cert),
            "ssl_options.keyfile": str(tls.key),
            "ssl_options.verify": "verify_peer",
            "ssl_options.fail_if_no_peer_cert": "true",
        }
    if definitions is not None:
        lines["load_definitions"] = str(definitions)
    lines |= extra or {}
    return "".join(f"{key} = {value}\n" for key, value in lines.items())


def node_environment(
    inherited: Mapping[str, str],
    *,
    state: Path,
    home: Path,
    ports: Ports,
    schedulers: int,
    code: Path | None = None,
    plugins: Path | None = None,
) -> dict[str, str]:
    """The environment of the node and of rabbitmqctl.

    Nothing of another RabbitMQ's settings gets in: neither the caller's RABBITMQ_* and ERL_* variables nor the files
    under /etc/rabbitmq.

    Args:
        inherited: the caller's environment.
        state: the state folder (absolute).
        home: RabbitMQ's own folder, the one with `plugins` in it.
        ports: as in the configuration.
        schedulers: threads that run Erlang code.
        code: a folder looked into first for Erlang modules.
        plugins: a folder that stands for the installed plugins.
    """
    kept = {
        name: value
        for name, value in inherited.items()
        if not name.startswith(("RABBITMQ_", "ERL_")) and name != "NOTIFY_SOCKET"
    }
    return (
        kept
        | {
            "HOME": str(state),  # where the Erlang cookie is
            "LC_ALL": "C.UTF-8",
            # Told this, rabbitmq-server replaces itself by the Erlang machine instead of waiting for it as a shell.
            "RUNNING_UNDER_SYSTEMD": "true",
            "RABBITMQ_NODENAME": NODE_NAME,
            "RABBITMQ_HOME": str(home),
            "RABBITMQ_CONF_ENV_FILE": str(state / "no-rabbitmq-env.conf"),
            "RABBITMQ_CONFIG_FILE": str(state / "rabbitmq.conf"),
            "RABBITMQ_CONFIG_FILES": str(state / "no-conf.d"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(state / "advanced.config"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(state / "no-enabled-plugins"),
            "RABBITMQ_MNESIA_BASE": str(state / "data"),
            "RABBITMQ_LOG_BASE": str(state / "log"),
            "RABBITMQ_PID_FILE": str(state / "node.pid"),
            "RABBITMQ_DIST_PORT": str(ports.dist),
            # Schedulers bound to cores would sit on the same ones as the ranks' threads.
            "RABBITMQ_SCHEDULER_BIND_TYPE": "u",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": _erlang_arguments(ports, schedulers),
            "ERL_EPMD_PORT": str(ports.epmd),
            "ERL_EPMD_ADDRESS": LOOPBACK,
            # In the environment and not among the arguments, because they are for rabbitmqctl too, and for the
            # Erlang machine that the node starts once a minute to see to its epmd.
            "ERL_FLAGS": "-start_epmd false -kernel inet_dist_use_interface {127,0,0,1}",
            "ERL_CRASH_DUMP_SECONDS": "0",
        }
        | ({} if code is None else {"RABBITMQ_SERVER_CODE_PATH": str(code)})
        | ({} if plugins is None else {"RABBITMQ_PLUGINS_DIR": str(plugins)})
    )


def _erlang_arguments(ports: Ports, schedulers: int) -> str:
    """Arguments for the node's Erlang machine; split at blanks by RabbitMQ's script, so there are none within one.

    The name is given here, and not left to RabbitMQ, which would first start a second Erlang machine to make sure of
    epmd, and a distribution under another name to look for a twin: our epmd is up, and nobody else's is asked.
    """
    return " ".join(
        (
            f"-sname {NODE_NAME}",
            f"-kernel inet_dist_listen_min {ports.dist}",
            f"-kernel inet_dist_listen_max {ports.dist}",
            f"+S {schedulers}:{schedulers}",
            f"+SDcpu {schedulers}:{schedulers}",
            "+sbwt none +sbwtdcpu none +sbwtdio none",  # no busy waiting: an idle node leaves the cores alone
        )
    )


def boot_failure(texts: Iterable[str]) -> str:
    """The line that says best why a node did not come up.

    Args:
        texts: what it printed and logged, the most telling first.

    Returns:
        One line, or "" if there is nothing to go by.
    """
    last = ""
    for text in texts:
        lines = [_Line.of(line) for line in text.splitlines()]
        lines = [line for line in lines if line.text.strip("= ")]
        titles = [at for at, line in enumerate(lines) if line.text == "BOOT FAILED"]
        errors = [line.text for line in lines[: titles[0] if titles else None] if line.is_error]
        verdicts = [line.text for line in lines[titles[-1] + 1 :]] if titles else []
        if verdicts or errors:
            return ": ".join(verdicts[:1] + errors[-1:])[:_LONGEST_REASON]
        if lines and not last:
            last = lines[-1].text[:_LONGEST_REASON]
    return last


@dataclass(frozen=True, slots=True)
class _Line:
    """A line of a log, without the time, the level and the process before it."""

    text: str
    is_error: bool

    @classmethod
    def of(cls, line: str) -> Self:
        logged = _LOGGED.match(line)
        if logged is None:
            return cls(line.strip(), is_error=False)
        return cls(logged["text"].strip(" -"), is_error=logged["level"] in _ERRORS)
