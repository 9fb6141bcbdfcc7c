"""How an engine under `rankmq up` lives and ends: kills, interrupts, restarts."""

import json
import signal
from pathlib import Path

import numpy as np
import pika
import pytest
from rankmq.workers.endpoint import Endpoint

from tests.e2e.cli import Service, failed, rankmq, write_servables
from tests.e2e.producer import Producer, request
from tests.e2e.systems import wait_until


@pytest.fixture(scope="module")
def servables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("servables")
    write_servables(folder)
    return folder


def test_what_is_killed_comes_back(servables: Path, tmp_path: Path):
    state = tmp_path / "state"

    def answers() -> bool:
        ask = ("infer", "small", "double", "-i", "x=[1,2,3]", "-o", "-", "--timeout", 20, "--state", state)
        done = rankmq(*ask)
        return done.returncode == 0 and json.loads(done.stdout)["y"]["data"] == [2, 4, 6]

    with Service(tmp_path, "up", servables / "small", "--state", state) as up:
        up.wait_for("call it with")
        assert answers()
        for victim in ("child orchestrator", "child agents", "beam.smp"):
            process = up.child(victim)
            process.kill()
            process.wait(10)
            wait_until(answers, f"an answer after the end of {victim}", 60)
            assert up.process.poll() is None
        assert up.stop() == 0
        assert up.left_behind() == []
        assert "Traceback" not in up.errors


def test_a_killed_one_leaves_nothing_behind(servables: Path, tmp_path: Path):
    state = tmp_path / "state"
    with Service(tmp_path, "up", servables / "small", "--state", state) as up:
        up.wait_for("call it with")
        assert up.stop(signal.SIGKILL) == -signal.SIGKILL
        assert up.left_behind(seconds=20) == []
        assert "nothing runs here" in failed(rankmq("status", "--state", state), 3)
        with Service(tmp_path, "up", servables / "small", "--state", state) as again:
            again.wait_for("call it with")
            assert again.stop() == 0


def test_an_impatient_one_is_served(servables: Path, tmp_path: Path):
    state = tmp_path / "state"
    with Service(tmp_path, "up", servables / "small", "--state", state) as up:
        up.wait_for("the broker is up")
        assert up.stop(signal.SIGINT) == 130  # while it starts
        assert up.left_behind() == []


def test_what_is_queued_survives(servables: Path, tmp_path: Path):
    state = tmp_path / "state"
    with Service(tmp_path, "up", servables / "small", "--state", state) as up:
        up.wait_for("call it with")
        assert up.stop() == 0
    with Service(tmp_path, "broker", "--state", state) as broker:
        broker.wait_for("its password is in")
        endpoint = Endpoint.read(state)
        assert endpoint is not None
        connection = pika.BlockingConnection(pika.URLParameters(endpoint.broker_url))
        connection.channel().queue_declare("answers", durable=True)
        connection.close()
        with Producer(endpoint.broker_url) as producer:
            body = request("small", "double", {"x": np.array([1, 2, 3], np.int32)})
            producer.send(body, reply_to="answers", message_id="kept")
        assert broker.stop() == 0
        assert broker.left_behind() == []
    with Service(tmp_path, "up", servables / "small", "--state", state) as up:
        up.wait_for("call it with")
        endpoint = Endpoint.read(state)
        assert endpoint is not None
        with Producer(endpoint.broker_url) as producer:
            wait_until(lambda: producer.depth("answers") == 1, "the answer to what was queued")
        assert up.stop() == 0
