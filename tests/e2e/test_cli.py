"""One `rankmq up` with two servables, and what its user does with it; the last test stops it with Ctrl-C."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pika
import psutil
import pytest
from rankmq.workers.endpoint import Endpoint

from tests.e2e.cli import Service, failed, mode, rankmq, visible_secrets, write_servables
from tests.e2e.systems import wait_until


@pytest.fixture(scope="module")
def servables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two servables: matmul on eight ranks, small on two."""
    folder = tmp_path_factory.mktemp("servables")
    write_servables(folder)
    return folder


@pytest.fixture(scope="module")
def ones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("inputs") / "ones.npz"
    np.savez(file, x=np.ones((128, 96), np.float32), y=np.ones((128, 96), np.float32))
    return file


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("up") / "state"


@pytest.fixture(scope="module")
def up(servables: Path, state: Path) -> Iterator[Service]:
    with Service(state.parent, "up", servables, "--state", state) as service:
        service.wait_for("call it with")
        yield service


def test_it_says_what_can_be_called(up: Service, state: Path):
    assert "rankmq is up after" in up.output
    assert "with 10 ranks" in up.output
    assert "predict(x, y) -> x, z  (pipeline)" in up.output
    assert "double(x) -> y" in up.output
    assert "call it with: rankmq infer matmul predict -i x=... -i y=... --state" in up.output
    assert f"state   {state}" in up.output
    assert "10 of 10 ranks" in up.output or "ready" in up.output


def test_its_password_is_seen_by_nobody(up: Service, state: Path):
    endpoint = Endpoint.read(state)
    assert endpoint is not None
    password = pika.URLParameters(endpoint.broker_url).credentials.password
    assert mode(state / "endpoint.json") == 0o600
    assert password not in up.output + up.errors
    family = up.family()
    assert len(family) >= 14  # orchestrator, launcher, fork server, ten ranks, and the broker's
    assert visible_secrets(password, family) == []


def test_the_original_s_request(up: Service, state: Path, ones: Path, tmp_path: Path):
    done = rankmq("infer", "matmul", "predict", "--inputs", ones, "--state", state)
    assert done.returncode == 0, done.stderr
    assert "x       float32  128 x 16  -96, -96," in done.stdout
    assert "z       float32  128 x 16  -144, -144," in done.stdout
    assert "served in" in done.stdout
    answer = tmp_path / "answer.npz"
    arguments = ("-i", f"x=@{ones}:x", "-i", f"y=@{ones}:y", "--output", answer, "--state", state)
    assert rankmq("infer", "matmul", "predict", *arguments).returncode == 0
    with np.load(answer) as found:
        assert (found["x"] == -96).all()
        assert (found["z"] == -144).all()
        assert found["z"].shape == (128, 16)


def test_the_other_servable_in_json(up: Service, state: Path, tmp_path: Path):
    done = rankmq("infer", "small", "double", "-i", "x=[1,2,3]", "-o", "-", "--state", state)
    assert json.loads(done.stdout) == {"y": {"dtype": "int32", "shape": [3], "data": [2, 4, 6]}}
    instances = tmp_path / "instances.json"
    instances.write_text('[{"x": [1, 2, 3]}, {"x": [4, 5, 6]}]')
    done = rankmq("infer", "small", "double", "--inputs", instances, "-o", "-", "--state", state)
    assert [row["y"]["data"] for row in json.loads(done.stdout)] == [[2, 4, 6], [8, 10, 12]]
    assert "note: 1" in up.errors
    assert "note" not in up.output


def test_parts_of_an_answer_are_lines_of_their_own(up: Service, state: Path, tmp_path: Path):
    ask = ("infer", "small", "double", "-i", "x=[7,8,9]", "--state", state, "--stream")
    part = {"instance": 0, "attempt": 1, "number": 0, "outputs": {"noted": {"dtype": "int32", "shape": [], "data": 7}}}
    done = rankmq(*ask, "-o", "-")
    first, last = done.stdout.splitlines()
    assert json.loads(first) == part
    assert json.loads(last)["y"]["data"] == [14, 16, 18]
    done = rankmq(*ask, "-o", tmp_path / "answer.json")
    assert json.loads(done.stderr) == part
    assert done.stdout.startswith("written to")


def test_some_instances_fail(up: Service, state: Path, tmp_path: Path):
    instances = tmp_path / "instances.json"
    instances.write_text('[{"x": [1, 2, 3]}, {"x": [4, 5]}]')
    done = rankmq("infer", "small", "double", "--inputs", instances, "--state", state)
    assert "1 of 2 instances failed" in failed(done, 8)
    assert "2, 4, 6" in done.stdout
    assert "graph_failed" in done.stdout or "invalid_input" in done.stdout


# Whoever sees first that time is up says it: the command or the engine.
_OUT_OF_TIME = ("rankmq: no reply within 0.5 s", "rankmq: its deadline passed before it was done")


def test_what_is_wrong_with_a_request_is_one_line(up: Service, state: Path):
    ask = ("--state", state, "-i", "x=[1,2,3]")
    assert "triple" in failed(rankmq("infer", "small", "triple", *ask), 8)
    assert "nobody" in failed(rankmq("infer", "nobody", "double", *ask), 8)
    assert "version 7" in failed(rankmq("infer", "small", "double", "--version", 7, *ask), 8)
    assert "x" in failed(rankmq("infer", "small", "double", "--state", state, "-i", "y=1"), 8)
    slow = rankmq("infer", "small", "slow", "--state", state, "-i", "x=[1.0]", "--timeout", 0.5)
    assert failed(slow, 9) in _OUT_OF_TIME


def test_an_interrupted_request_is_130(up: Service, state: Path, tmp_path: Path):
    with Service(tmp_path, "infer", "small", "slow", "-i", "x=[1.0]", "--state", state) as asking:
        me = psutil.Process(asking.process.pid)
        wait_until(lambda: any(it.status == "ESTABLISHED" for it in me.net_connections()), "its connection")
        assert asking.stop(signal.SIGINT) == 130
        assert asking.errors == ""


def test_status_shows_the_ranks(up: Service, state: Path):
    done = rankmq("status", "--json", "--state", state)
    assert done.returncode == 0, done.stderr
    (orchestrator,) = json.loads(done.stdout)
    groups = {it["group"]["servable"]: it for it in orchestrator["groups"]}
    assert {name: it["state"] for name, it in groups.items()} == {"matmul": "ready", "small": "ready"}
    pids = {rank["pid"] for it in groups.values() for rank in it["ranks"]}
    assert len(pids) == 10
    assert pids <= {process.pid for process in up.family()}
    assert {rank["step"] for rank in groups["matmul"]["ranks"]} == {groups["matmul"]["step"] - 1}
    shown = rankmq("status", "--state", state)
    assert shown.returncode == 0
    assert "matmul.v1.g0 ready: epoch 1" in shown.stdout
    for rank in groups["matmul"]["ranks"]:
        assert rank["queue"] in shown.stdout
    assert "rankmq.requests.small.normal" in shown.stdout


def test_a_second_one_with_this_state_folder_is_turned_away(up: Service, servables: Path, state: Path):
    before = (state / "endpoint.json").read_text()
    done = rankmq("up", servables, "--state", state)
    assert "in use by process" in failed(done, 7)
    assert (state / "endpoint.json").read_text() == before
    assert rankmq("status", "--state", state).returncode == 0


def test_ctrl_c_ends_it_in_order_and_nothing_is_left(up: Service, state: Path):
    assert up.stop(signal.SIGINT) == 130
    assert up.left_behind() == []
    assert not (state / "endpoint.json").exists()
    assert "stopping" in up.output
    assert "Traceback" not in up.errors
    assert up.errors.index("orchestrator: stopped") < len(up.errors)
    assert "nothing runs here" in failed(rankmq("status", "--state", state), 3)
