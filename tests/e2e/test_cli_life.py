"""How an engine under `rankmq up` lives and ends: kills, interrupts, restarts."""

import json
import signal
import time
from pathlib import Path

import numpy as np
import pika
import pytest
from rankmq.workers.endpoint import Endpoint

from tests.e2e.cli import Service, failed, rankmq, write_servables
from tests.e2e.graphs import WORDS, write_servable
from tests.e2e.producer import Producer, request
from tests.e2e.systems import wait_until

ODD = (
    WORDS
    + """
import os

def end(x):
    os._exit(9)

@register.register_method(output_names=["x"])
def fatal(x):
    return register.add_stage(end, x)

@register.register_method(output_names=["x"])
def same(x):
    return register.add_stage(abs, x)

same_ = PipelineServable("odd", "same")

@register.register_pipeline(output_names=["x"])
def stubborn(x):
    while True:
        try:
            time.sleep(0.01)
            same_.run(x)
        except Exception:
            pass

def waits(x):
    while True:
        time.sleep(1)

@register.register_method(output_names=["x"])
def endless(x):
    return register.add_stage(waits, x)
"""
)


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


def test_a_request_that_takes_the_orchestrator_down_does_not_take_all_down(tmp_path: Path):
    """A function of a servable that ends its process, as a library in it would that crashes."""
    write_servable(tmp_path, "odd", ODD, {})
    state = tmp_path / "state"
    with Service(tmp_path, "up", tmp_path / "odd", "--state", state, max_deliveries=3, max_restarts=1) as up:
        up.wait_for("call it with")
        ask = ("-i", "x=-3", "--state", state, "--timeout", 60)
        assert "3 are allowed" in failed(rankmq("infer", "odd", "fatal", *ask), 8)
        assert "3" in rankmq("infer", "odd", "same", *ask).stdout
        assert up.stop() == 0


def test_functions_that_do_not_end_do_not_hold_up_the_stop(tmp_path: Path):
    write_servable(tmp_path, "odd", ODD, {})
    state = tmp_path / "state"
    with Service(tmp_path, "up", tmp_path / "odd", "--state", state, drain_timeout=1) as up:
        up.wait_for("call it with")
        ask = ("-i", "x=-3", "--state", state, "--deadline", 0.5)
        for method in ("stubborn", "endless"):
            assert "its deadline passed" in failed(rankmq("infer", "odd", method, *ask), 9)
        assert in_flight(state) == 0
        assert up.stop() == 0
        assert "functions of servables go on, and the process ends without them: threads stage_0" in up.errors
        assert up.left_behind() == []


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


def test_an_interrupt_while_it_starts(servables: Path, tmp_path: Path):
    state = tmp_path / "state"
    with Service(tmp_path, "up", servables / "small", "--state", state) as up:
        up.wait_for("the broker is up")
        assert up.stop(signal.SIGINT) == 130
        assert up.left_behind() == []


def test_it_finishes_what_runs_unless_it_is_told_twice(servables: Path, tmp_path: Path):
    state = tmp_path / "state"
    slow = ("infer", "small", "slow", "--state", state, "--timeout", 60)
    many = tmp_path / "many.json"
    many.write_text(json.dumps([{"x": [1.0]}] * 20))  # a minute's work
    with Service(tmp_path, "up", servables / "small", "--state", state) as up:
        up.wait_for("call it with")
        with Service(tmp_path, *slow, "-i", "x=[1.0]", "-o", "-") as asking:
            wait_until(lambda: in_flight(state) == 1, "the request")
            assert up.stop(signal.SIGINT) == 130
            assert asking.ended() == 0
            assert json.loads(asking.output)["y"]["data"] == [1.0]
    with Service(tmp_path, "up", servables / "small", "--state", state) as up:
        up.wait_for("call it with")
        with Service(tmp_path, *slow, "--inputs", many):
            wait_until(lambda: in_flight(state) == 1, "the request")
            up.process.send_signal(signal.SIGINT)
            up.wait_for("stopping")
            began = time.monotonic()
            assert up.stop(signal.SIGINT) == 130
            assert time.monotonic() - began < 15
            assert up.left_behind() == []


def in_flight(state: Path) -> int:
    (orchestrator,) = json.loads(rankmq("status", "--json", "--state", state).stdout)
    return orchestrator["in_flight"]


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
