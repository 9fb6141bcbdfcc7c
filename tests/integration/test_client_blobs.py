"""The producer library and the blob store, over a real broker, with an orchestrator that only answers."""

from __future__ import annotations

import multiprocessing
import threading
import time
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rankmq.engine.blobs import BlobStore
from rankmq.engine.client import Client
from rankmq.schemas.errors import (
    BlobMissing,
    BlobUnavailable,
    ConfigurationError,
    InvalidInput,
    LimitExceeded,
    ReplyTimeout,
    RequestIdReused,
    StageFailed,
)
from rankmq.schemas.messages import ErrorInfo, Reply, Request
from rankmq.schemas.tensors import from_array, to_array

from tests.integration.client_engine import PATIENCE, answering

LARGE = np.arange(50_000, dtype=np.float32)
LIMIT = 64 * 1024


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store"


class Engine:
    """Answers with twice what it is given, both by reference."""

    def __init__(self, folder: Path) -> None:
        self.store = BlobStore(f"file://{folder}")
        self.written: list[int] = []

    def __call__(self, request: Request) -> Reply:
        self.written.append(sum(it.blob is not None for row in request.instances for it in row.values()))
        return Reply(id="", outputs=[{name: self.double(it) for name, it in row.items()} for row in request.instances])

    def double(self, value: Any) -> Any:
        whole = value if value.blob is None else self.store.get(value)
        out = from_array(to_array(whole) * 2)
        return out if value.blob is None else self.store.put(out)


def a_client(url: str, servable: str, folder: Path, **given: Any) -> Client:
    return Client(url, servable, "m", blob_store=f"file://{folder}", inline_limit=LIMIT, **given)


def emptied(folder: Path) -> bool:
    """Blobs are deleted on a thread, soon after the call has its result."""
    until = time.monotonic() + PATIENCE
    while list(folder.glob("*")):
        if time.monotonic() > until:
            return False
        time.sleep(0.01)
    return True


def test_large_tensors_in_and_out(broker_url, folder):
    engine = Engine(folder)
    with answering(broker_url, engine) as it, a_client(broker_url, it.servable, folder) as client:
        first, second = client.infer([{"x": LARGE, "y": LARGE[:3]}, {"x": LARGE.reshape(100, 500), "y": LARGE + 1}])
        np.testing.assert_array_equal(first["x"], LARGE * 2)
        np.testing.assert_array_equal(first["y"], [0, 2, 4])
        assert second["x"].shape == (100, 500)
        first["x"] += 1  # an array of the caller's own
        reply = client.request({"x": LARGE})
        np.testing.assert_array_equal(to_array(reply.outputs[0]["x"]), LARGE * 2)
        pending = [client.infer_async({"x": LARGE + number}) for number in range(8)]
        for number, future in enumerate(pending):
            np.testing.assert_array_equal(future.result(PATIENCE)[0]["x"], (LARGE + number) * 2)
    assert engine.written[:2] == [3, 1]
    assert all(properties.headers["rankmq-blobs"] is True for _, properties in it.requests)
    assert emptied(folder)


def test_a_client_without_a_store_says_nothing_of_blobs(broker_url):
    with answering(broker_url) as it, Client(broker_url, it.servable, "m") as client:
        client.infer({"x": LARGE})
    assert "rankmq-blobs" not in it.requests[0][1].headers


def test_a_request_past_the_brokers_limit_goes_with_as_much_by_reference_as_needed(broker_url, folder, monkeypatch):
    engine = Engine(folder)
    rows = [{"x": np.full(10_000, number, np.float32)} for number in range(20)]
    with answering(broker_url, engine) as it, a_client(broker_url, it.servable, folder) as client:
        client._line.max_message = 400_000
        found = client.infer(rows)
        for number, row in enumerate(found):
            assert (row["x"] == 2 * number).all()
        with pytest.raises(LimitExceeded, match="400000"):
            client.infer({"x": np.array(["a" * 500_000])})
    assert 0 < engine.written[0] < 20
    assert emptied(folder)


def test_a_store_that_cannot_be_written(broker_url, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with answering(broker_url) as it, a_client(broker_url, it.servable, tmp_path / "file") as client:
        with pytest.raises(BlobUnavailable, match="cannot be written: Not a directory"):
            client.infer({"x": LARGE})
        assert it.requests == []
        client.infer({"x": LARGE[:3]})  # and goes on


def test_a_url_that_cannot_be(broker_url):
    with pytest.raises(ConfigurationError, match="blob_store"):
        Client(broker_url, "s", "m", blob_store="nonsense://x")


def test_a_value_that_cannot_be_sent_leaves_nothing(broker_url, folder):
    with answering(broker_url) as it, a_client(broker_url, it.servable, folder) as client:
        with pytest.raises(InvalidInput):
            client.infer({"x": LARGE, "y": [object()]})
        assert it.requests == []
    assert emptied(folder)


def test_an_output_that_cannot_be_read_is_an_error_of_its_call_alone(broker_url, folder):
    store = BlobStore(f"file://{folder}")

    def answer(request: Request) -> Reply:
        out = store.put(from_array(LARGE))
        if len(request.instances) == 2:
            store.delete([out.blob.name])
        if len(request.instances) == 3:
            (folder / out.blob.name).write_bytes(b"1234")
        return Reply(id="", outputs=[{"y": out}])

    with answering(broker_url, answer) as it, a_client(broker_url, it.servable, folder) as client:
        with pytest.raises(BlobMissing):
            client.infer([{"x": 1}] * 2)
        with pytest.raises(InvalidInput, match="has only 4"):
            client.infer([{"x": 1}] * 3)
        np.testing.assert_array_equal(client.infer({"x": 1})[0]["y"], LARGE)


@pytest.mark.parametrize("ends", ["error", "timeout"])
def test_what_becomes_of_the_blobs_of_a_request_that_fails(broker_url, folder, ends):
    failed = Reply(id="", error=ErrorInfo(code="stage_failed", message="no", side="engine"))
    with (
        answering(broker_url, lambda _: failed if ends == "error" else None) as it,
        a_client(broker_url, it.servable, folder, timeout=0.5) as client,
    ):
        with pytest.raises({"error": StageFailed, "timeout": ReplyTimeout}[ends]):
            client.infer({"x": LARGE})
        if ends == "timeout":  # it may be served still, and who serves it has them deleted
            assert len(list(folder.glob("*"))) == 1
        else:
            assert emptied(folder)


def test_a_reply_that_comes_too_late_leaves_nothing(broker_url, folder):
    store, go = BlobStore(f"file://{folder}"), threading.Event()

    def late(request: Request) -> Reply:
        assert go.wait(PATIENCE)
        return Reply(id="", outputs=[{"y": store.put(from_array(LARGE))}])

    with answering(broker_url, late) as it, a_client(broker_url, it.servable, folder) as client:
        with pytest.raises(ReplyTimeout):
            client.infer({"x": 1}, timeout=0.2)
        go.set()
        it.waits_for()
        assert emptied(folder)


def test_the_same_id_with_the_same_inputs(broker_url, folder):
    engine, go = Engine(folder), threading.Event()

    def slowly(request: Request) -> Reply:
        assert go.wait(PATIENCE)
        return engine(request)

    with answering(broker_url, slowly) as it, a_client(broker_url, it.servable, folder) as client:
        pending = [client.infer_async({"x": LARGE}, request_id="mine") for _ in range(3)]
        with pytest.raises(RequestIdReused):
            client.infer({"x": LARGE + 1}, request_id="mine")
        go.set()
        assert not wait(pending, PATIENCE).not_done
        for future in pending:
            np.testing.assert_array_equal(future.result()[0]["x"], LARGE * 2)
        assert len(it.requests) == 1
    assert emptied(folder)


def test_a_cancel_while_the_reply_is_read_is_too_late(broker_url, folder, monkeypatch):
    engine, reading, go = Engine(folder), threading.Event(), threading.Event()
    whole = BlobStore.get

    def get(self, tensor):
        if threading.current_thread().name.startswith("rankmq-blobs"):
            reading.set()
            assert go.wait(PATIENCE)
        return whole(self, tensor)

    monkeypatch.setattr(BlobStore, "get", get)
    with answering(broker_url, engine) as it, a_client(broker_url, it.servable, folder) as client:
        pending = client.infer_async({"x": LARGE}, timeout=0.5)
        assert reading.wait(PATIENCE)
        assert not pending.cancel()
        client.infer({"x": LARGE[:3]})  # the connection's thread goes on meanwhile
        go.set()
        np.testing.assert_array_equal(pending.result(PATIENCE)[0]["x"], LARGE * 2)


def _child(client: Client) -> None:
    np.testing.assert_array_equal(client.infer({"x": LARGE})[0]["x"], LARGE * 2)
    client.close()


def test_a_forked_child(broker_url, folder):
    with answering(broker_url, Engine(folder)) as it, a_client(broker_url, it.servable, folder) as client:
        client.infer({"x": LARGE})
        child = multiprocessing.get_context("fork").Process(target=_child, args=(client,))
        child.start()
        child.join(PATIENCE)
        assert child.exitcode == 0
        client.infer({"x": LARGE})
    assert emptied(folder)
