"""The password of the broker is seen by nobody: not in lists of processes, logs, errors, answers or files of others."""

import json
import secrets
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import psutil
import pytest
from rankmq.engine.address import BrokerAddress
from rankmq.engine.client import Client
from rankmq.engine.settings import load_settings
from rankmq.workers.broker import PrivateBroker, User, find_server

from tests.e2e.cli import Service, failed, mode, rankmq
from tests.e2e.roles import write_pair
from tests.e2e.systems import wait_until

PASSWORD = f"s3cret/@:{secrets.token_hex(12)}"
QUOTED = quote(PASSWORD, safe="")
DOUBLE = ("infer", "pair", "double", "-i", "x=[1,2,3]", "-o", "-")


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateBroker]:
    if find_server() is None:
        pytest.skip("needs a rabbitmq-server of its own on this machine")
    vhosts = ["one", "two", "three"]
    anything = [User(f"user-{name}", PASSWORD, ".*", ".*", ".*", vhost=name) for name in vhosts]
    with PrivateBroker(tmp_path_factory.mktemp("node"), users=anything) as broker:
        yield broker


@pytest.fixture(scope="module")
def servables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("servables")
    write_pair(folder)
    return folder


def test_the_url_has_it(node: PrivateBroker) -> None:
    """What is looked for below is there to be found."""
    assert QUOTED in node.user_url("user-one")
    assert BrokerAddress.parse(node.user_url("user-one")).password == PASSWORD


def seen(text: str) -> bool:
    return PASSWORD in text or QUOTED in text or PASSWORD.rsplit(":", maxsplit=1)[-1] in text


def visible(service: Service) -> list[str]:
    """What the lists of processes show of those below a command."""
    shown = []
    for process in service.family():
        try:
            shown.append(" ".join([process.name(), *process.cmdline()]))
        except psutil.NoSuchProcess:
            continue
    return shown


@pytest.mark.parametrize("form", ["lines", "json"])
def test_nothing_says_it_while_all_is_logged(node: PrivateBroker, servables: Path, tmp_path: Path, form: str) -> None:
    """Given an engine that logs everything, its broker's URL on its command line, when it serves, fails and ends.

    Then the password is in its own command line, where it was put, and nowhere else.
    """
    url = node.user_url("user-one" if form == "lines" else "user-two")
    state = tmp_path / "state"
    with Service(
        tmp_path, "up", servables, "--broker-url", url, "--state", state, "--log-format", form, "--log-level", "debug"
    ) as up:
        up.wait_for("call it with")
        shown = visible(up)
        assert len(shown) >= 4
        assert not [line for line in shown if seen(line)]

        answered = rankmq(*DOUBLE, broker_url=url, log_level="debug")
        assert json.loads(answered.stdout)["y"]["data"] == [2, 4, 6]
        refused = rankmq("infer", "pair", "none", "-i", "x=[1]", broker_url=url, log_level="debug")
        assert refused.returncode == 8
        status = rankmq("status", broker_url=url, log_level="debug")
        told = rankmq("status", "--json", broker_url=url, log_level="debug")
        dead = rankmq("dead", "list", broker_url=url, log_level="debug")
        cancelled = rankmq("cancel", "any", broker_url=url, log_level="debug")
        for done in (answered, refused, status, told, dead, cancelled):
            assert not seen(done.stdout + done.stderr)

        victim = next(it for it in up.family() if it.is_running() and len(it.children()) == 0)
        victim.kill()
        wait_until(lambda: rankmq("status", broker_url=url).returncode == 0, "it serves again")
        assert up.stop() == 0
        assert not seen(up.output + up.errors)
    logs = [path for path in tmp_path.rglob("*.log") if path.is_file()]
    assert not [path for path in logs if seen(path.read_text(errors="replace"))]
    written = [path for path in tmp_path.rglob("*") if path.is_file() and seen(path.read_text(errors="replace"))]
    assert all(mode(path) == 0o600 for path in written), written


@pytest.mark.parametrize("command", ["orchestrator", "agents"])
def test_a_role_on_its_own_passes_it_to_no_command_line(
    node: PrivateBroker, servables: Path, tmp_path: Path, command: str
) -> None:
    url = node.user_url("user-three")
    with Service(tmp_path, command, servables, "--broker-url", url, "--log-level", "debug") as service:
        wait_until(lambda: "registers" in service.errors or "agent" in service.errors or service.errors, "it runs")
        if command == "agents":
            wait_until(lambda: len(visible(service)) >= 3, "its agents")
        assert not [line for line in visible(service) if seen(line)]
        service.stop()
        assert not seen(service.output + service.errors)


def test_errors_do_not_say_it(node: PrivateBroker, servables: Path) -> None:
    url = node.user_url("user-one")
    where = url.rsplit("/", 1)[0]
    wrong = {
        "another virtual host": where + "/nowhere",
        "no such user": url.replace("user-one", "nobody"),
        "nobody listens": f"amqp://user:{QUOTED}@127.0.0.1:1/x",
        "no such host": f"amqp://user:{QUOTED}@no-such-host.invalid/x",
        "TLS to a plain port": url.replace("amqp:", "amqps:"),
        "another scheme": url.replace("amqp:", "http:"),
        "a port that is none": f"amqp://user:{QUOTED}@127.0.0.1:many/x",
        "not quoted": f"amqp://user:{PASSWORD}@127.0.0.1/x",
        "nothing like a URL": PASSWORD,
    }
    for what, broker_url in wrong.items():
        for command in (("status",), ("dead", "list"), ("infer", "pair", "double", "-i", "x=1")):
            done = rankmq(*command, broker_url=broker_url, connect_timeout=0, log_level="debug")
            assert done.returncode in (3, 4), (what, done.stderr)
            assert not seen(done.stdout + done.stderr), what
    for command in ("orchestrator", "agents", "up"):
        for what, code in (("another virtual host", 4), ("no such user", 4), ("another scheme", 3)):
            line = failed(rankmq(command, servables, broker_url=wrong[what], connect_timeout=0), code)
            assert not seen(line), (command, what)


def test_no_repr_has_it(node: PrivateBroker) -> None:
    url = node.user_url("user-one")
    settings = load_settings(broker_url=url)
    client = Client(url, "pair", "double")
    things = (settings, settings.address(), client, User("u", PASSWORD), settings.broker_url)
    shown = [*(repr(it) + str(it) for it in things), repr(settings.model_dump()), settings.model_dump_json()]
    client.close()
    assert not [text for text in shown if seen(text)]
