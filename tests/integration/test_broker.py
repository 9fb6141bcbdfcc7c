from __future__ import annotations

import ipaddress
import os
import signal
import ssl
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pika
import psutil
import pytest
from rankmq.schemas.errors import AlreadyRunning, BrokerUnavailable, ConfigurationError
from rankmq.workers import broker as module
from rankmq.workers.broker import PrivateBroker, TlsFiles

from tests.processes import runs

QUORUM = {"x-queue-type": "quorum"}


def eventually(holds: Callable[[], bool], within: float = 10) -> bool:
    until = time.monotonic() + within
    while not holds():
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


def family(node: PrivateBroker) -> list[psutil.Process]:
    """The guard and all below it: epmd, the node, and the node's own helpers."""
    guard = psutil.Process(psutil.Process(node.pid).ppid())
    return [guard, *guard.children(recursive=True)]


def named(processes: list[psutil.Process], name: str) -> psutil.Process:
    (found,) = [process for process in processes if name in process.name()]
    return found


def gone(processes: list[psutil.Process]) -> bool:
    return not any(runs(process) for process in processes)


def publish(url: str, queue: str, body: bytes) -> None:
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        channel = connection.channel()
        channel.queue_declare(queue, durable=True, arguments=QUORUM)
        channel.confirm_delivery()
        channel.basic_publish("", queue, body, pika.BasicProperties(delivery_mode=2), mandatory=True)


def take(url: str, queue: str) -> bytes | None:
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        channel = connection.channel()
        for _, _, body in channel.consume(queue, auto_ack=True, inactivity_timeout=10):
            return body
    return None


# ---- one running node, shared


def test_nothing_listens_but_on_loopback(broker):
    listening = [
        connection.laddr
        for process in family(broker)
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]

    assert len({address.port for address in listening}) == 3  # AMQP, distribution, epmd
    assert all(ipaddress.ip_address(address.ip).is_loopback for address in listening), listening


def test_secrets_are_readable_by_their_owner_alone(broker):
    modes = {
        name: stat.S_IMODE((broker.state_dir / name).stat().st_mode)
        for name in (".", "broker.json", "rabbitmq.conf", ".erlang.cookie")
    }

    assert modes == {".": 0o700, "broker.json": 0o600, "rabbitmq.conf": 0o600, ".erlang.cookie": 0o400}
    password = pika.URLParameters(broker.url).credentials.password
    for process in family(broker):
        assert password not in " ".join(process.cmdline())


def test_the_generated_user_is_the_only_one(broker):
    given = pika.URLParameters(broker.url)

    assert broker.ctl("list_users", "--quiet", "--no-table-headers").split()[0] == given.credentials.username
    assert len(broker.ctl("list_users", "--quiet", "--no-table-headers").splitlines()) == 1
    given.credentials = pika.PlainCredentials("guest", "guest")
    with pytest.raises(pika.exceptions.ProbableAuthenticationError):
        pika.BlockingConnection(given)


def test_failing_rabbitmqctl_says_why(broker):
    with pytest.raises(BrokerUnavailable, match=r"^rabbitmqctl delete_queue failed: .+") as raised:
        broker.ctl("delete_queue", "there-is-no-such-queue")
    assert "\n" not in str(raised.value)


def test_a_terminals_signals_do_not_reach_the_node(broker):
    assert {os.getsid(process.pid) for process in family(broker)}.isdisjoint({os.getsid(0)})


def test_state_folder_in_use_names_the_process(broker):
    with pytest.raises(AlreadyRunning, match=rf"in use by process {os.getpid()}\b"):
        PrivateBroker(broker.state_dir).start()
    assert broker.alive()


def test_second_start_of_one_object_is_refused(broker):
    with pytest.raises(AlreadyRunning, match="started already"):
        broker.start()
    assert broker.alive()


def test_port_in_use_is_refused(broker, tmp_path):
    taken = pika.URLParameters(broker.url).port

    with pytest.raises(AlreadyRunning, match=rf"port {taken} is taken"):
        PrivateBroker(tmp_path, port=taken).start()


def test_without_tls_files_there_is_no_tls_url(broker):
    with pytest.raises(ConfigurationError, match="no TLS listener"):
        _ = broker.tls_url


# ---- a life of its own, in one folder: certificates, restart, and every kind of death


def tls_connection(url: str, files: TlsFiles, *, show_certificate: bool) -> pika.BlockingConnection:
    context = ssl.create_default_context(cafile=str(files.ca))
    if show_certificate:
        context.load_cert_chain(files.cert, files.key)
    parameters = pika.URLParameters(url)
    parameters.ssl_options = pika.SSLOptions(context, "localhost")
    return pika.BlockingConnection(parameters)


def test_a_life(tmp_path, tls_files):
    folder = tmp_path / "a state folder"  # blanks in its name
    node = PrivateBroker(folder, tls=tls_files, extra_conf={"consumer_timeout": "654321"})

    # it starts, with both listeners and the extra line
    node.start()
    url, processes = node.url, family(node)
    assert "654321" in node.ctl("eval", "application:get_env(rabbit, consumer_timeout).")
    tls_connection(node.tls_url, tls_files, show_certificate=True).close()
    with pytest.raises((pika.exceptions.AMQPError, ssl.SSLError, OSError)):
        tls_connection(node.tls_url, tls_files, show_certificate=False)
    publish(url, "kept", b"over a restart")

    # it stops, epmd and all, and says so
    node.stop()
    assert gone(processes)
    assert not node.alive()
    with pytest.raises(BrokerUnavailable, match="not started"):
        _ = node.url
    node.stop()  # once more does nothing

    # it starts again under the same URL, with what it had
    node = PrivateBroker(folder)
    node.start()
    assert node.url == url
    assert take(url, "kept") == b"over a restart"
    publish(url, "kept", b"over a killed node")

    # the node is killed: noticed at once, epmd goes too, and it starts again
    processes = family(node)
    os.kill(node.pid, signal.SIGKILL)
    assert node.wait(5)
    assert eventually(lambda: gone(processes))
    assert not node.alive()
    node.start()
    assert take(url, "kept") == b"over a killed node"
    publish(url, "kept", b"over a killed guard")

    # the guard is killed: its children go with it, and it starts again
    processes = family(node)
    processes[0].kill()
    assert node.wait(5)
    assert eventually(lambda: gone(processes))
    assert not node.alive()
    with node:
        assert take(url, "kept") == b"over a killed guard"
    assert not node.alive()


OWNER = """
import sys
from pathlib import Path
from rankmq.workers.broker import PrivateBroker
node = PrivateBroker(Path(sys.argv[1]))
node.start()
print(node.pid, node.url, flush=True)
sys.stdin.read()
"""


def start_owner(folder: Path) -> tuple[subprocess.Popen[str], int, str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert owner.stdout is not None
    pid, url = owner.stdout.readline().split()
    return owner, int(pid), url


def test_killed_owner_leaves_nothing_behind_and_nothing_is_lost(tmp_path):
    owner, pid, url = start_owner(tmp_path)
    guard = psutil.Process(psutil.Process(pid).ppid())
    processes = [guard, *guard.children(recursive=True)]
    publish(url, "kept", b"over a killed owner")

    owner.kill()
    owner.communicate()
    with PrivateBroker(tmp_path) as node:  # at once: waits for what is still ending
        assert gone(processes)
        assert node.url == url
        assert take(url, "kept") == b"over a killed owner"


def test_owner_that_forgets_to_stop_leaves_nothing_behind(tmp_path):
    owner, pid, _ = start_owner(tmp_path)
    guard = psutil.Process(psutil.Process(pid).ppid())
    processes = [guard, *guard.children(recursive=True)]

    owner.communicate("")
    assert owner.returncode == 0
    assert eventually(lambda: gone(processes))


# ---- what goes wrong


def test_node_that_does_not_come_up_says_why_and_leaves_nothing(tmp_path):
    node = PrivateBroker(tmp_path, extra_conf={"no.such.key": "1"}, fast=False)

    with pytest.raises(BrokerUnavailable, match=r"ended while it started: .+ \(log: .+\.log\)") as raised:
        node.start()
    assert len(str(raised.value).splitlines()) == 1
    assert not node.alive()
    PrivateBroker(tmp_path, port=1)._state.take(time.monotonic())  # the folder is free again


def test_broken_links_are_not_fatal(tmp_path, monkeypatch, caplog):
    """Given a RabbitMQ that does not boot through our links, when it is started, then it boots without."""

    def broken(server, folder):
        folder.mkdir()
        (folder / "rabbit.beam").write_bytes(b"not a module")
        return folder

    monkeypatch.setattr(module, "link_modules", broken)
    with PrivateBroker(tmp_path) as node:
        assert node.alive()
    assert "trying without" in caplog.text


def test_start_is_bounded_and_one_that_was_cut_short_can_be_done_again(tmp_path):
    begun = time.monotonic()
    with pytest.raises(BrokerUnavailable, match=r"within 0\.7 s"):
        PrivateBroker(tmp_path, start_timeout=0.7).start()
    assert time.monotonic() - begun < 12

    (tmp_path / "data" / "rankmq@localhost").mkdir(parents=True, exist_ok=True)
    (tmp_path / "data" / "rankmq@localhost" / "schema.DAT").write_bytes(b"half of it")
    with PrivateBroker(tmp_path) as node:
        publish(node.url, "any", b"thing")


def test_node_that_ignores_its_end_is_killed(tmp_path):
    node = PrivateBroker(tmp_path, stop_timeout=0.5)
    node.start()
    processes = family(node)
    os.kill(node.pid, signal.SIGSTOP)

    begun = time.monotonic()
    node.stop()
    assert time.monotonic() - begun < 8
    assert eventually(lambda: gone(processes))


def test_machine_without_rabbitmq_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "find_server", lambda: None)

    with pytest.raises(BrokerUnavailable, match=r"apt-get install rabbitmq-server.*--broker-url"):
        PrivateBroker(tmp_path).start()


def test_data_without_its_account_is_not_thrown_away(tmp_path):
    (tmp_path / "data").mkdir()

    with pytest.raises(ConfigurationError, match=r"broker\.json: is missing"):
        PrivateBroker(tmp_path).start()
    assert (tmp_path / "data").exists()


def test_state_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()

    with pytest.raises(ConfigurationError, match="cannot be the private broker's state folder"):
        PrivateBroker(tmp_path / "file" / "state").start()
