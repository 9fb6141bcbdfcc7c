"""The producers of examples/producers, which know nothing of rankmq but the wire, against a real engine."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgpack
import numpy as np
import pika
import pytest
from rankmq.engine import topology
from rankmq.scripts.chaos.proxy import Proxy

from tests.e2e.systems import ROOT, System, Vhosts, wait_until
from tests.integration.client_engine import declare

PRODUCERS = ROOT / "examples" / "producers"
INSTALL_SECONDS, ANSWER_SECONDS = 90, 60

Ask = Callable[..., subprocess.CompletedProcess[str]]


def run(command: Sequence[str], folder: Path, seconds: float, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("RANKMQ_", "PYTHON"))}
    return subprocess.run(
        command,
        cwd=folder,
        env={**inherited, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )


def npm_install(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Node.js producer with its packages, in a folder of its own."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("node or npm is not installed")
    folder = tmp_path_factory.mktemp("node")
    for name in ("producer.js", "package.json"):
        shutil.copy(PRODUCERS / name, folder)
    done = run([npm, "install", "--no-audit", "--no-fund", "--ignore-scripts"], folder, INSTALL_SECONDS)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module", params=["python", "node"])
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path]:
    """The command of a producer, and the folder to call it in."""
    if request.param == "python":
        return [sys.executable, "-P", str(PRODUCERS / "producer.py")], tmp_path_factory.mktemp("python")
    return ["node", "producer.js"], npm_install(tmp_path_factory)


@pytest.fixture(scope="module")
def ask(program: tuple[list[str], Path], gallery: System) -> Ask:
    """Runs a producer, with arguments, against the engine that serves the original's servable."""
    command, folder = program

    def asking(*arguments: str, url: str = gallery.url) -> subprocess.CompletedProcess[str]:
        return run([*command, *arguments], folder, ANSWER_SECONDS, RANKMQ_BROKER_URL=url)

    return asking


def test_the_pipeline_answers_with_the_originals_numbers(ask: Ask) -> None:
    done = ask()

    assert done.returncode == 0, done.stderr
    found = re.fullmatch(r"\s*x\b(.*?)\bz\b(.*)", done.stdout, re.DOTALL)
    assert found, done.stdout
    for printed, expected in zip(found.groups(), (-96.0, -144.0), strict=True):
        numbers = [float(number) for number in re.findall(r"-\d+\.?\d*", printed)]
        assert len(numbers) >= 4
        assert np.array_equal(numbers, np.full(len(numbers), expected)), printed


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("nobody", "predict"), "unknown_servable"),
        (("matmul", "nothing"), "unknown_method"),
        (("matmul", "fun1"), "invalid_input"),
        (("matmul", "predict", "urgent"), "invalid_input"),
        (("matmul", "predict", "low", "0.001"), "deadline_exceeded"),
    ],
)
def test_an_error_reply_is_printed_and_ends_it_with_a_code(ask: Ask, arguments: tuple[str, ...], code: str) -> None:
    done = ask(*arguments)

    assert done.returncode == 1
    assert done.stderr.startswith(f"{code}: "), done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


@pytest.mark.parametrize("lane", ["high", "low"])
def test_other_lanes_are_served(ask: Ask, lane: str) -> None:
    done = ask("matmul", "predict", lane)

    assert done.returncode == 0, done.stderr
    assert "-96" in done.stdout


def test_a_broker_that_is_not_there_ends_it_with_a_code(ask: Ask) -> None:
    done = ask(url="amqp://guest:guest@127.0.0.1:1/%2F")

    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr


def test_without_a_broker_url_it_says_so(ask: Ask) -> None:
    done = ask(url="")

    assert (done.returncode, done.stdout, done.stderr) == (1, "", "RANKMQ_BROKER_URL names no broker\n")


# ----------------------------------------------------------------------------------- what it says, heard by a test


class Listener:
    """Takes what producers publish, in place of an engine."""

    def __init__(self, url: str) -> None:
        self.connection = pika.BlockingConnection(pika.URLParameters(url))
        self.channel = self.connection.channel()
        declare(self.channel, topology.servable_queues(("matmul",)))
        self.cancels = self.channel.queue_declare("", exclusive=True).method.queue
        self.channel.queue_bind(self.cancels, topology.CANCEL)

    def next(self, queue: str) -> tuple[pika.BasicProperties, bytes]:
        def found() -> Any:
            method, properties, body = self.channel.basic_get(queue, auto_ack=True)
            return method and (properties, body)

        properties, body = wait_until(found, f"a message in {queue}")
        return properties, body

    def answer(self, question: pika.BasicProperties) -> None:
        tensor = {"dtype": "float32", "shape": [1, 1], "data": [[-96.0]]}
        reply: Any = {"v": 1, "id": question.message_id, "outputs": [{"x": tensor}], "errors": [], "error": None}
        if question.content_type == "application/msgpack":
            tensor["data"] = np.float32(-96).tobytes()
            body = msgpack.packb(reply)
        else:
            body = json.dumps(reply).encode()
        answered = pika.BasicProperties(correlation_id=question.correlation_id, content_type=question.content_type)
        self.channel.basic_publish("", question.reply_to, body, answered)


@pytest.fixture
def listener(vhosts: Vhosts) -> Iterator[tuple[Listener, str]]:
    url = vhosts.url()
    one = Listener(url)
    yield one, url
    one.connection.close()


@contextmanager
def started(program: tuple[list[str], Path], url: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    command, folder = program
    environment = {name: it for name, it in os.environ.items() if not name.startswith(("RANKMQ_", "PYTHON"))}
    process = subprocess.Popen(
        [*command, *arguments],
        cwd=folder,
        env={**environment, "RANKMQ_BROKER_URL": url},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL) and None,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_request_says_until_when_and_in_which_lane(
    program: tuple[list[str], Path], listener: tuple[Listener, str]
) -> None:
    it, url = listener
    before = time.time()
    with started(program, url, "matmul", "predict", "low", "30") as process:
        question, _ = it.next(topology.requests_queue("matmul", "low"))
        it.answer(question)
        output, errors = process.communicate(timeout=ANSWER_SECONDS)

    assert process.returncode == 0, errors
    assert "-96" in output
    assert question.message_id
    assert question.message_id != question.correlation_id
    assert question.delivery_mode == 2
    assert 0 < int(question.expiration) <= 30_000
    assert 30 <= question.headers["rankmq-deadline"] / 1000 - before <= 30 + ANSWER_SECONDS


def test_a_lost_connection_makes_it_ask_once_more_under_the_same_id(
    program: tuple[list[str], Path], listener: tuple[Listener, str]
) -> None:
    it, url = listener
    parts = urlsplit(url)
    queue = topology.requests_queue("matmul")
    assert parts.hostname is not None
    assert parts.port is not None
    with (
        Proxy(parts.hostname, parts.port) as proxy,
        started(program, url.replace(f":{parts.port}/", f":{proxy.port}/")) as process,
    ):
        first, body = it.next(queue)
        proxy.cut()
        again, same = it.next(queue)
        it.answer(again)
        output, errors = process.communicate(timeout=ANSWER_SECONDS)

    assert process.returncode == 0, errors
    assert "-96" in output
    assert body == same
    for name in ("message_id", "correlation_id", "headers"):
        assert getattr(first, name) == getattr(again, name), name


def test_an_interrupt_tells_the_engine(program: tuple[list[str], Path], listener: tuple[Listener, str]) -> None:
    it, url = listener
    with started(program, url) as process:
        question, _ = it.next(topology.requests_queue("matmul"))
        process.send_signal(signal.SIGINT)
        cancel, body = it.next(it.cancels)
        output, errors = process.communicate(timeout=ANSWER_SECONDS)

    assert (cancel.correlation_id, body) == (question.message_id, b"")
    assert (process.returncode, output, errors) == (1, "", "interrupted\n")


def test_it_needs_nothing_of_ours() -> None:
    assert "rankmq" not in re.findall(r"^\s*(?:import|from)\s+(\w+)", (PRODUCERS / "producer.py").read_text(), re.M)
    assert re.findall(r"require\(\"([^\"]+)\"\)", (PRODUCERS / "producer.js").read_text()) == ["node:crypto", "amqplib"]
