"""Tensors through the blob store, in whole engines: past the broker's limit, between hosts, and whoever is killed."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pika
import pytest
from rankmq.engine.blobs import BlobStore
from rankmq.schemas.codec import encode_request
from rankmq.schemas.errors import BlobMissing, BlobUnavailable
from rankmq.schemas.messages import Request
from rankmq.schemas.tensors import from_array
from rankmq.workers.broker import PrivateBroker

from tests.e2e.cli import Service, rankmq
from tests.e2e.conftest import Start
from tests.e2e.graphs import WORDS, Graph, op, spec, write_servable
from tests.e2e.systems import ROLE, ROOT, Role, System, Vhosts, environment, running, wait_until

LIMIT = 64 * 1024
RANKS = 2

CONFIGURATION = (
    WORDS
    + f"""
distributed.declare_servable(
    rank_size={RANKS},
    stage_size=1,
    with_batch_dim=False,
    subgraphs=[
        subgraph("minus.npz", outputs=[from_rank(1)]),
        subgraph("divided.npz", inputs=[shard(0)], outputs=[concat(0)]),
    ],
)

def wait(x):
    time.sleep(1.0)
    return x

@register.register_method(output_names=["y"])
def minus(x):
    return register.call_servable(x, subgraph=0)

@register.register_method(output_names=["y"])
def divided(x):
    return register.call_servable(x, subgraph=1)

@register.register_method(output_names=["y"])
def slowly(x):
    return register.call_servable(register.add_stage(wait, x), subgraph=0)
"""
)

ELSEWHERE = """
import os
_open = os.open
def elsewhere(path, flags, *args, **given):
    if str(path).startswith("/dev/shm/rankmq") and not flags & os.O_CREAT:
        raise FileNotFoundError(2, "No such file or directory")
    return _open(path, flags, *args, **given)
os.open = elsewhere
"""
"""What a process on another host sees of this host's shared memory."""


def negative(rank: int) -> Graph:
    return Graph([op("negative", "x", "y")], [spec("x", -1)], [spec("y", -1)])


def write(directory: Path) -> None:
    write_servable(directory, "blobs", CONFIGURATION, {"minus": negative, "divided": negative}, ranks=RANKS)


def names(store: Path) -> list[str]:
    return sorted(path.name for path in store.glob("*"))


def emptied(store: Path) -> None:
    wait_until(lambda: not names(store), "an empty store")


@contextmanager
def watched(store: Path) -> Iterator[set[str]]:
    """The names of all blobs that are there at any time within the block, as far as they are seen."""
    seen: set[str] = set()
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.0005):
            seen.update(names(store))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


def test_200_megabytes_over_a_broker_that_takes_16(tmp_path):
    write(tmp_path / "servables")
    store, logs = tmp_path / "store", tmp_path / "logs"
    logs.mkdir()
    given = {"blob_store": f"file://{store}"}
    with (
        PrivateBroker(tmp_path / "broker", extra_conf={"max_message_size": str(16 * 1024 * 1024)}) as broker,
        running(System(broker.url, tmp_path / "servables", ["blobs"], logs, **given)) as system,
        system.client("blobs", "minus", **given) as client,
    ):
        x = np.arange(50_000_000, dtype=np.float32)
        assert x.nbytes == 200_000_000
        (row,) = client.infer({"x": x})
        assert np.array_equal(row["y"], -x)
    assert not names(store)  # what the engine has kept for who might ask again went when it stopped


def test_a_job_with_rows_larger_than_messages(tmp_path):
    """In the background, where the store's URL must come along; without the store such rows fail alone."""
    write(tmp_path / "servables")
    store, logs, rows = tmp_path / "store", tmp_path / "logs", tmp_path / "rows"
    logs.mkdir()
    rows.mkdir()
    given = {"blob_store": f"file://{store}"}
    sizes = [10, 6_000_000, 300_000, 5_000_000, 3]
    for number, size in enumerate(sizes):
        np.save(rows / f"{number}.npy", np.arange(size, dtype=np.float32) - number)

    def job(command: str, *options: object) -> str:
        done = rankmq("job", command, *options, "--broker-url", broker.url, "--state", tmp_path / "state")
        assert done.returncode in (0, 8), done.stderr
        return done.stderr

    which = (rows, "--map", "x", "-s", "blobs", "-m", "minus", "-o")
    with (
        PrivateBroker(tmp_path / "broker", extra_conf={"max_message_size": str(16 * 1024 * 1024)}) as broker,
        running(System(broker.url, tmp_path / "servables", ["blobs"], logs, **given)),
    ):
        out = tmp_path / "out"
        job("submit", *which, out, "--blob-store", store)
        wait_until(lambda: (out / "summary.json").exists(), "the end of the job", 60)
        assert "2 of 5 rows failed" in job("run", *which, tmp_path / "without")
    assert not names(store)
    for number, size in enumerate(sizes):
        y = np.load(out / "results" / f"{number}.npy")
        np.testing.assert_array_equal(y, number - np.arange(size, dtype=np.float32))
    assert json.loads((out / "summary.json").read_text())["counts"]["completed"] == len(sizes)
    errors = [json.loads(line) for line in (tmp_path / "without" / "errors.jsonl").read_text().splitlines()]
    assert [(it["custom_id"], it["code"]) for it in errors] == [("1", "limit_exceeded"), ("3", "limit_exceeded")]
    assert all("with a blob store large tensors go past it" in it["message"] for it in errors)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store") / "blobs"


@pytest.fixture(scope="module")
def system(vhosts: Vhosts, store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """An engine whose ranks see nothing of this host's shared memory."""
    directory, logs = tmp_path_factory.mktemp("elsewhere"), tmp_path_factory.mktemp("logs")
    write(directory)
    (directory / "sitecustomize.py").write_text(ELSEWHERE)
    settings = {"blob_store": f"file://{store}", "inline_limit": LIMIT}
    system = System(vhosts.url(), directory, ["blobs"], logs, **settings)
    try:
        system.start_orchestrator()
        order = json.dumps({"directory": str(directory), "servables": [("blobs", 0)], "ranks": None})
        env = environment(broker_url=system.url, connect_timeout=20, **settings)
        env["PYTHONPATH"] = f"{directory}{os.pathsep}{ROOT / '.dev'}"
        system.agents = Role("agents", [sys.executable, str(ROLE), "agents", order], logs / "agents.log", env)
        system._roles.append(system.agents)
        system.wait_ready()
        yield system
    finally:
        system.close()


@pytest.mark.parametrize("method", ["minus", "divided"])
def test_ranks_on_another_host(system, store, method):
    assert "on another host" in system.log
    rows = [{"x": np.arange(40_000, dtype=np.float32) + number} for number in range(4)]
    with watched(store) as seen, system.client("blobs", method) as client:  # which itself has no store
        pending = [client.infer_async(row) for row in rows]
        for row, answer in zip(rows, pending, strict=True):
            np.testing.assert_array_equal(answer.result(30)[0]["y"], -row["x"])
        (small,) = client.infer({"x": rows[0]["x"][:8]})
    assert small["y"].tolist() == [-0.0, -1, -2, -3, -4, -5, -6, -7]
    assert seen
    emptied(store)


def test_many_at_once_leave_nothing(system, store):
    wrong: list[int] = []
    with system.client("blobs", "minus", blob_store=f"file://{store}", inline_limit=LIMIT) as client:

        def ask(number: int) -> None:
            for size in (10, 20_000, 50_000):
                x = np.full(size, number, np.float32)
                rows = client.infer([{"x": x}, {"x": x + 1}], lane=("high", "low")[number % 2])
                if not all((row["y"] == -number - index).all() for index, row in enumerate(rows)):
                    wrong.append(number)

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not wrong
        emptied(store)


def test_any_language_in_json(system, store):
    x = np.arange(30_000, dtype="<f4")
    name = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime()) + "-" + os.urandom(16).hex()
    store.mkdir(exist_ok=True)
    (store / name).write_bytes(x.tobytes())
    blob = {"name": name, "bytes": x.nbytes, "digest": f"crc32:{zlib.crc32(x.tobytes()):08x}"}
    tensors = [
        {"dtype": "float32", "shape": [30_000], "blob": blob},
        {"dtype": "float32", "shape": [30_000], "blob": {**blob, "digest": "crc32:00000000"}},
        {"dtype": "float32", "shape": [30_000], "blob": {**blob, "name": "../" + name}},
        {"dtype": "float32", "shape": [3], "data": [1, 2, 3]},
    ]
    request = {"servable": "blobs", "method": "minus", "instances": [{"x": it} for it in tensors]}
    bodies: list[bytes] = []
    connection = pika.BlockingConnection(pika.URLParameters(system.url))
    channel = connection.channel()
    channel.basic_consume("amq.rabbitmq.reply-to", lambda *given: bodies.append(given[3]), auto_ack=True)
    properties = pika.BasicProperties(reply_to="amq.rabbitmq.reply-to", content_type="application/json")
    channel.basic_publish("rankmq.requests", "blobs", json.dumps(request).encode(), properties)
    wait_until(lambda: connection.process_data_events(1.0) or bodies, "a reply", every=0)
    connection.close()
    reply = json.loads(bodies[0])

    assert {it["index"]: it["error"]["code"] for it in reply["errors"]} == {1: "invalid_input", 2: "invalid_input"}
    assert reply["outputs"][3]["y"]["data"] == [-1, -2, -3]
    found = reply["outputs"][0]["y"]
    data = (store / found["blob"]["name"]).read_bytes()
    assert found["blob"]["digest"] == f"crc32:{zlib.crc32(data):08x}"
    np.testing.assert_array_equal(np.frombuffer(data, "<f4"), -x)
    assert (store / name).exists(), "kept for a while, should the producer ask once more"
    for left in names(store):
        (store / left).unlink()


def test_a_blob_that_is_gone_and_a_store_that_cannot_be_read(system, store, tmp_path):
    elsewhere = f"file://{tmp_path}/another"  # not the engine's
    x = np.arange(40_000, dtype=np.float32)
    with (
        system.client("blobs", "minus", blob_store=elsewhere, inline_limit=LIMIT) as client,
        pytest.raises(BlobMissing, match=r"input x: .* is not in the store"),
    ):
        client.infer({"x": x})
    emptied(tmp_path / "another")
    aside = store.with_name("aside")
    if store.exists():
        store.rename(aside)
    store.write_bytes(b"")
    try:
        with system.client("blobs", "minus") as client:  # ranks and replies do without, where messages will do
            np.testing.assert_array_equal(client.infer({"x": x})[0]["y"], -x)
        with (
            system.client("blobs", "minus", blob_store=f"file://{store}", inline_limit=LIMIT) as client,
            pytest.raises(BlobUnavailable, match="Not a directory"),
        ):
            client.infer({"x": x})
    finally:
        store.unlink()
    with system.client("blobs", "minus", blob_store=f"file://{store}", inline_limit=LIMIT) as client:
        np.testing.assert_array_equal(client.infer({"x": x})[0]["y"], -x)
    emptied(store)


def test_from_a_shell(system, store, tmp_path):
    np.save(tmp_path / "x.npy", np.arange(40_000, dtype=np.float32))
    told = rankmq(
        "infer", "blobs", "minus", "-i", f"x=@{tmp_path}/x.npy", "-o", tmp_path / "y.npz", "--blob-store", store,
        "--broker-url", system.url,
    )  # fmt: skip
    assert told.returncode == 0, told.stderr
    np.testing.assert_array_equal(np.load(tmp_path / "y.npz")["y"], -np.arange(40_000, dtype=np.float32))
    emptied(store)


def test_a_dead_letter_keeps_its_blobs_until_it_is_thrown_away(system, store):
    x = np.arange(30_000, dtype=np.float64)  # which the graph does not take
    blobs = BlobStore(f"file://{store}")
    request = Request(servable="blobs", method="minus", instances=[{"x": blobs.put(from_array(x))}])
    connection = pika.BlockingConnection(pika.URLParameters(system.url))
    properties = pika.BasicProperties(content_type="application/msgpack", message_id="dead")
    connection.channel().basic_publish("rankmq.requests", "blobs", encode_request(request), properties)
    connection.close()
    wait_until(lambda: "dead" in rankmq("dead", "list", "--broker-url", system.url).stdout, "a dead letter", every=0.2)
    shown = rankmq("dead", "show", "dead", "--broker-url", system.url)
    assert shown.returncode == 0, shown.stderr
    assert names(store)[0] in shown.stdout.replace("\n", "")
    told = rankmq("dead", "purge", "dead", "--yes", "--broker-url", system.url, "--blob-store", store)
    assert told.returncode == 0, told.stderr
    assert names(store) == []


def test_a_request_with_blobs_survives_its_orchestrator(start: Start, tmp_path):
    write(tmp_path)
    store = tmp_path / "store"
    given = {"blob_store": f"file://{store}", "inline_limit": LIMIT}
    system = start("blobs", **given)
    x = np.arange(100_000, dtype=np.float32)
    with system.client("blobs", "slowly", **given) as client:
        pending = [client.infer_async({"x": x + number}) for number in range(3)]
        wait_until(lambda: system.try_status() and system.status().in_flight == 3, "three requests under way")
        system.orchestrator.signal(signal.SIGKILL)
        system.orchestrator.ended()
        assert len(names(store)) >= 3
        system.start_orchestrator()
        for number, answer in enumerate(pending):
            np.testing.assert_array_equal(answer.result(60)[0]["y"], -(x + number))
        emptied(store)


ASKING = """
import sys, numpy, rankmq.engine
url, store, limit = sys.argv[1:]
client = rankmq.engine.Client(url, "blobs", "slowly", blob_store=store, inline_limit=int(limit))
for answer in [client.infer_async({"x": numpy.arange(100_000, dtype=numpy.float32)}) for _ in range(3)]:
    answer.result(60)
"""


def test_replies_to_a_producer_that_was_killed_leave_nothing(start: Start, tmp_path):
    write(tmp_path)
    store = tmp_path / "store"
    given = {"blob_store": f"file://{store}", "inline_limit": LIMIT}
    system = start("blobs", **given)
    order = [sys.executable, "-c", ASKING, system.url, given["blob_store"], str(LIMIT)]
    asking = subprocess.Popen(order, env=environment())
    try:
        wait_until(lambda: system.status().in_flight == 3, "three requests under way")
    finally:
        asking.kill()
        asking.wait()
    wait_until(lambda: system.status().in_flight == 0, "their end")
    assert names(store)  # until nobody can ask once more
    system.orchestrator.signal(signal.SIGTERM)
    system.orchestrator.ended()
    assert names(store) == []


def test_what_a_dead_producer_left_is_swept_up(start: Start, tmp_path):
    write(tmp_path)
    store = tmp_path / "store"
    store.mkdir()
    old = "20200101T000000Z-" + "0" * 32
    (store / old).write_bytes(b"x")
    (store / "notes.txt").write_bytes(b"mine")
    start("blobs", blob_store=f"file://{store}", blob_age=24)
    wait_until(lambda: names(store) == ["notes.txt"], "a sweep")


def test_who_starts_an_engine_sees_that_its_store_cannot_be_used(vhosts: Vhosts, tmp_path):
    """Its logs are elsewhere; and it serves what needs no store."""
    write(tmp_path / "servables")
    given = ("--broker-url", vhosts.url(), "--state", tmp_path / "state", "--log-dir", tmp_path / "logs")
    warning = (
        "warning: see the setting blob_store: the blob store cannot be written: there is no such place; "
        "until it can be used, tensors that must go through it fail"
    )
    with Service(tmp_path / "up", "up", tmp_path / "servables", *given, blob_store="/proc/nope") as service:
        service.wait_for("rankmq is up")
        wait_until(lambda: warning in service.errors, "a warning")
        done = rankmq("infer", "blobs", "minus", "-i", "x=[1]", "--state", tmp_path / "state")
        assert done.returncode == 0, done.stderr
    assert service.errors.count("blob_store") == 1
    logged = (tmp_path / "logs" / "orchestrator.log").read_text()
    assert logged.count("see the setting blob_store") == 1
    assert "not swept" not in logged
