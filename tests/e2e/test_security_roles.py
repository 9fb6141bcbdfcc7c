"""The roles of the engine, each a user of the broker with the permissions of docs/security.md and no others."""

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pika
import pytest
from rankmq.engine.address import BrokerAddress
from rankmq.engine.client import Client
from rankmq.schemas.errors import Cancelled, DeadlineExceeded, InvalidInput, RankmqError
from rankmq.workers.broker import PrivateBroker, TlsFiles, find_server

from tests.e2e.cli import failed, rankmq
from tests.e2e.producer import request
from tests.e2e.roles import RoleSystem, write_pair
from tests.e2e.systems import wait_until
from tests.integration.certificates import Certificate, make
from tests.permissions import roles

X = np.arange(3, dtype=np.float32)
LONG = np.ones(1, np.float32)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateBroker]:
    if find_server() is None:
        pytest.skip("needs a rabbitmq-server of its own on this machine")
    with PrivateBroker(tmp_path_factory.mktemp("node"), users=roles().values()) as broker:
        yield broker


@pytest.fixture(scope="module")
def users(node: PrivateBroker) -> dict[str, dict[str, Any]]:
    return {role: {"broker_url": node.user_url(role)} for role in roles()}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("servables")
    write_pair(folder)
    return folder


@pytest.fixture(scope="module")
def system(
    users: dict[str, dict[str, Any]], directory: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RoleSystem]:
    with RoleSystem(users, directory, ["pair"], tmp_path_factory.mktemp("logs"), hold_seconds=1) as system:
        system.wait_ready()
        yield system
    assert "refuses" not in system.log


def works(system: RoleSystem) -> None:
    with system.client("pair", "double") as client:
        assert client.infer({"x": X})[0]["y"].tolist() == [0, 2, 4]


# --------------------------------------------------------------------------------------------------- what each can do


def test_a_producer_is_answered(system: RoleSystem) -> None:
    works(system)
    with system.client("pair", "double") as client, pytest.raises(InvalidInput):
        client.infer({"x": X[:1]})


def test_a_long_request_is_kept_for_it(system: RoleSystem) -> None:
    """Which the orchestrator does by a queue of its own, whose copies may go back to the requests."""
    with system.client("pair", "long") as client:
        assert client.infer({"x": LONG})[0]["y"].tolist() == [1]
    assert "taken anew from the broker" in system.log


def test_deadlines_and_cancels(system: RoleSystem) -> None:
    with system.client("pair", "long") as client:
        with pytest.raises(DeadlineExceeded):
            client.infer({"x": LONG}, deadline=0.5)
        future = client.infer_async({"x": LONG}, request_id="to be cancelled")
        wait_until(lambda: system.status().in_flight, "the request is taken")
        assert "cancelled" in rankmq("cancel", "to be cancelled", **system.users["operator"]).stdout
        with pytest.raises(Cancelled):
            future.result(10)


def test_an_operator_sees_the_status_and_the_dead_letters(system: RoleSystem) -> None:
    operator = system.users["operator"]
    assert json.loads(rankmq("status", "--json", **operator).stdout)[0]["groups"][0]["state"] == "ready"

    bad = msgpack.packb(request("pair", "double", {"x": X[:1]}))
    with pika.BlockingConnection(pika.URLParameters(system.users["producer"]["broker_url"])) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        channel.basic_publish("rankmq.requests", "pair", bad, pika.BasicProperties(message_id="bad"), mandatory=True)
    wait_until(lambda: '"bad"' in rankmq("dead", "list", "--json", **operator).stdout, "a dead letter")
    assert "1 of 1 dead letters sent again" in rankmq("dead", "replay", "--yes", **operator).stdout
    wait_until(lambda: '"bad"' in rankmq("dead", "list", "--json", **operator).stdout, "the same dead letter")
    assert "1 of 1 dead letters thrown away" in rankmq("dead", "purge", "--yes", **operator).stdout


def test_a_lost_rank_comes_back(system: RoleSystem) -> None:
    before = system.group("pair")
    os.kill(before.ranks[0].pid, signal.SIGKILL)
    system.wait_ready(epoch=before.epoch + 1)
    works(system)


def test_an_orchestrator_and_agents_end_well_and_start_again(system: RoleSystem) -> None:
    system.stop()
    system.start_orchestrator()
    system.start_agents()
    system.wait_ready()
    works(system)


# ----------------------------------------------------------------------------------------------- what each is refused


@pytest.mark.parametrize(
    ("role", "user", "permission", "what"),
    [
        ("orchestrator", "agent", "configure", "exchange 'rankmq.dead'"),
        ("orchestrator", "producer", "configure", "exchange 'rankmq.dead'"),
        ("agents", "producer", "configure", "exchange 'rankmq.control'"),
        ("agents", "operator", "configure", "exchange 'rankmq.control'"),
    ],
)
def test_a_process_under_the_wrong_user_ends_with_one_line(
    users: dict[str, dict[str, Any]], directory: Path, tmp_path: Path, role: str, user: str, permission: str, what: str
) -> None:
    system = RoleSystem(dict.fromkeys(users, users[user]), directory, ["pair"], tmp_path)
    try:
        process = system.start_orchestrator() if role == "orchestrator" else system.start_agents()
        assert process.ended(30) == 4
        [line] = [line for line in process.said.splitlines() if line.startswith("rankmq: ")]
        assert f"user '{user}' has no {permission} " in line
        assert f"permission on {what} in virtual host '/'" in line
        assert "Traceback" not in process.said
    finally:
        system.destroy()


@pytest.mark.usefixtures("system")
@pytest.mark.parametrize("user", ["agent"])
def test_a_producer_under_the_wrong_user_is_told_so(users: dict[str, dict[str, Any]], user: str) -> None:
    with (
        Client(users[user]["broker_url"], "pair", "double", timeout=10) as client,
        pytest.raises(RankmqError, match=rf"'{user}' has no write permission on exchange 'rankmq\.requests'"),
    ):
        client.infer({"x": X})


@pytest.mark.usefixtures("system")
@pytest.mark.parametrize(
    ("user", "command", "permission", "what"),
    [
        ("producer", ("status",), "write", "exchange 'rankmq.status'"),
        ("agent", ("status",), "write", "exchange 'rankmq.status'"),
        ("agent", ("cancel", "any"), "write", "exchange 'rankmq.cancel'"),
        ("agent", ("infer", "pair", "double", "-i", "x=[1,2,3]"), "write", "exchange 'rankmq.requests'"),
        ("producer", ("dead", "list"), "read", "queue 'rankmq.dead'"),
        ("producer", ("dead", "purge", "--yes"), "read", "queue 'rankmq.dead'"),
        ("agent", ("dead", "replay", "--yes"), "read", "queue 'rankmq.dead'"),
    ],
)
def test_a_command_under_the_wrong_user_ends_with_one_line(
    node: PrivateBroker,
    users: dict[str, dict[str, Any]],
    user: str,
    command: tuple[str, ...],
    permission: str,
    what: str,
) -> None:
    if command[0] == "dead":
        with pika.BlockingConnection(pika.URLParameters(node.url)) as connection:
            connection.channel().basic_publish("rankmq.dead", "any", b"", pika.BasicProperties(message_id="there"))
    line = failed(rankmq(*command, **users[user]), 4)
    assert f"user '{user}' has no {permission} permission on {what} in virtual host '/'" in line


# ---------------------------------------------------------------------------------------------------------------- TLS


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Certificate]:
    folder = tmp_path_factory.mktemp("certificates")
    authority, other = make(folder, "authority"), make(folder, "other")
    signed = {name: make(folder, name, authority) for name in ("server", *roles())}
    return {**signed, "authority": authority, "stranger": make(folder, "stranger", other)}


@pytest.fixture(scope="module")
def secure(
    certificates: dict[str, Certificate], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, dict[str, Any]]]:
    """The users of a node to which they come by TLS, each with a certificate of its own."""
    server, authority = certificates["server"], certificates["authority"]
    files = TlsFiles(authority.cert, server.cert, server.key)
    with PrivateBroker(tmp_path_factory.mktemp("secure"), tls=files, users=roles().values()) as node:
        yield {role: with_certificate(node.user_url(role, tls=True), certificates, role) for role in roles()}


def with_certificate(url: str, certificates: dict[str, Certificate], name: str) -> dict[str, Any]:
    return {
        "broker_url": url,
        "tls_ca_file": certificates["authority"].cert,
        "tls_cert_file": certificates[name].cert,
        "tls_key_file": certificates[name].key,
    }


def test_all_roles_by_tls_with_certificates_of_their_own(
    secure: dict[str, dict[str, Any]], directory: Path, tmp_path: Path
) -> None:
    with RoleSystem(secure, directory, ["pair"], tmp_path) as system:
        system.wait_ready()
        works(system)
        assert rankmq("status", **secure["operator"]).returncode == 0
        done = rankmq("infer", "pair", "double", "-i", "x=[1,2,3]", "-o", "-", **secure["producer"])
        assert json.loads(done.stdout)["y"]["data"] == [2, 4, 6]
        assert system.orchestrator is not None
        connections = [it for process in system.orchestrator.family() for it in process.net_connections("tcp")]
        port = BrokerAddress.parse(secure["orchestrator"]["broker_url"]).port
        assert {it.raddr.port for it in connections if it.raddr} == {port}


@pytest.mark.parametrize("role", ["orchestrator", "agents"])
def test_a_certificate_of_somebody_else_does_not_get_in(
    secure: dict[str, dict[str, Any]],
    certificates: dict[str, Certificate],
    directory: Path,
    tmp_path: Path,
    role: str,
) -> None:
    url = secure["agent" if role == "agents" else role]["broker_url"]
    users = dict.fromkeys(secure, with_certificate(url, certificates, "stranger"))
    system = RoleSystem(users, directory, ["pair"], tmp_path)
    try:
        began = time.monotonic()
        process = system.start_orchestrator() if role == "orchestrator" else system.start_agents()
        assert process.ended(30) == 4
        assert time.monotonic() - began < 20
        [line] = [line for line in process.said.splitlines() if line.startswith("rankmq: ")]
        assert "the broker does not take our certificate" in line
    finally:
        system.destroy()
