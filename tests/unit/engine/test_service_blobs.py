"""Requests and replies by reference at the edge: what is read and written, what is refused, and when blobs go."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from typing import Any

import fsspec
import msgpack
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from rankmq.engine.blobs import BlobStore
from rankmq.engine.confirms import Outcome
from rankmq.engine.edge_blobs import EdgeBlobs
from rankmq.schemas import codec
from rankmq.schemas.messages import Request
from rankmq.schemas.tensors import Tensor, from_array, to_array

from .edge import MODEL, ROW, SERVED, Edge, Fate, error_of, errors_of, only, outputs_of

MOST = 4 * 1024 * 1024
LIMIT = 64 * 1024
SPEAKS = {"rankmq-blobs": True}

SIMPLE = """
from rankmq.engine import register

def double(x):
    return x * 2

@register.register_method(output_names=["y"])
def double_it(x):
    return register.add_stage(double, x)

@register.register_method(output_names=["a", "b"])
def same(a, b):
    return a, b

def fail(x):
    raise RuntimeError("no")

@register.register_method(output_names=["y"])
def failing(x):
    return register.add_stage(fail, x)
"""


class Store:
    """An engine with a store in memory."""

    def __init__(self, edge: Edge, blobs: BlobStore, root: str, discarded: list[str], work: list[Any]) -> None:
        self.edge = edge
        self.blobs = blobs
        self.root = root
        self.discarded = discarded
        self.work = work

    @property
    def names(self) -> set[str]:
        files = MemoryFileSystem()
        return {it.rpartition("/")[2] for it in files.find(self.root)}

    def refer(self, array: np.ndarray) -> Tensor:
        return self.blobs.put(from_array(array))

    def ask(self, method: str, *rows: dict[str, Any], content_type: str = codec.MSGPACK, **properties: Any) -> Fate:
        request = Request(servable="simple", method=method, instances=list(rows))
        body = codec.encode_request(request, content_type)
        return self.edge.deliver(body, **{"content_type": content_type, "key": "simple", **properties})

    def read(self, fate: Fate, number: int = 0) -> list[Any]:
        """The outputs of a reply, those by reference read and deleted, as a producer does."""
        reply = fate.replies[number][0].reply
        assert reply.error is None, reply.error
        out: list[Any] = []
        for row in reply.outputs:
            found = row and {name: self.blobs.get(it) if it.blob else it for name, it in row.items()}
            out.append(found and {name: to_array(it) for name, it in found.items()})
        self.blobs.delete([it.blob.name for row in reply.outputs for it in (row or {}).values() if it.blob])
        return out


def build(tmp_path, *, slow: bool = False, **given: Any) -> Store:
    root = f"/{uuid.uuid4().hex}"
    blobs, discarded = BlobStore(f"memory:/{root}"), []
    work: list[tuple[Any, Any]] = []

    def in_pool(what: Any, done: Any) -> None:
        if slow:
            work.append((what, done))
        else:
            done(what())

    edge_blobs = EdgeBlobs(blobs, in_pool, discarded.extend, inline_limit=LIMIT, most_bytes=MOST, max_message=1 << 20)
    edge = Edge(tmp_path, {"matmul": MODEL + SERVED, "simple": SIMPLE}, blobs=edge_blobs, **given)
    return Store(edge, blobs, root, discarded, work)


@pytest.fixture
def store(tmp_path) -> Iterator[Store]:
    found = build(tmp_path)
    yield found
    found.edge.close()


@pytest.fixture
def slow(tmp_path) -> Iterator[Store]:
    found = build(tmp_path, slow=True)
    yield found
    found.edge.close()


LARGE = np.arange(50_000, dtype=np.float32)


@pytest.mark.parametrize("content_type", [codec.MSGPACK, codec.JSON])
def test_in_and_out_by_reference(store, content_type):
    tensor = store.refer(LARGE)
    fate = store.ask("double_it", {"x": tensor}, {"x": from_array(ROW)}, content_type=content_type, headers=SPEAKS)
    store.edge.run()

    ((publish, _),) = fate.replies
    assert publish.reply.outputs[0]["y"].blob is not None
    assert publish.reply.outputs[1]["y"].blob is None
    assert len(publish.body) < 2000
    assert store.discarded == [tensor.blob.name]
    found = store.read(fate)
    np.testing.assert_array_equal(found[0]["y"], LARGE * 2)
    np.testing.assert_array_equal(found[1]["y"], ROW * 2)
    assert store.names == {tensor.blob.name}  # which the keeper deletes in its time
    only(store.edge)


def test_who_does_not_speak_of_blobs_gets_none(store):
    fate = store.ask("double_it", {"x": from_array(LARGE)})
    store.edge.run()
    np.testing.assert_array_equal(outputs_of(fate)[0]["y"], LARGE * 2)
    assert store.names == set()


def test_who_has_written_a_blob_reads_them(store):
    fate = store.ask("double_it", {"x": store.refer(LARGE)})
    store.edge.run()
    np.testing.assert_array_equal(store.read(fate)[0]["y"], LARGE * 2)


def test_a_reply_past_the_brokers_limit_although_no_output_is_large(store):
    rows = [{"x": from_array(np.full(8000, number, np.float32))} for number in range(60)]
    fate = store.ask("double_it", *rows, headers=SPEAKS)
    store.edge.run()
    ((publish, _),) = fate.replies
    assert len(publish.body) <= 1 << 20
    assert {it["y"].blob is None for it in publish.reply.outputs} == {True, False}
    for number, row in enumerate(store.read(fate)):
        np.testing.assert_array_equal(row["y"], np.full(8000, 2 * number))

    fate = store.ask("double_it", *rows)
    store.edge.run()
    code, message = error_of(fate)
    assert code == "limit_exceeded"
    assert "rankmq-blobs" in message


def test_an_input_that_several_share_is_read_once(store, monkeypatch):
    tensor, reads = store.refer(LARGE), []
    whole = BlobStore.get
    monkeypatch.setattr(BlobStore, "get", lambda self, it: reads.append(it) or whole(self, it))
    square = Tensor("float32", (250, 200), blob=tensor.blob)
    fate = store.ask("same", {"a": tensor, "b": square}, {"a": tensor, "b": 1})
    store.edge.run()
    assert len(reads) == 1
    found = store.read(fate)
    assert found[0]["b"].shape == (250, 200)
    np.testing.assert_array_equal(found[1]["a"], LARGE)
    assert store.discarded == [tensor.blob.name]


# ------------------------------------------------------------------------------------------------------------ refused


def evil(**blob: Any) -> bytes:
    tensor = {"dtype": "float32", "shape": [3], "blob": blob}
    good = {"dtype": "float32", "shape": [3], "data": ROW.tobytes()}
    return msgpack.packb({"servable": "simple", "method": "double_it", "instances": [{"x": tensor}, {"x": good}]})


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/b", "", "..", "20260131T235959Z-" + "0" * 31 + "/"])
def test_evil_names(store, name):
    body = evil(name=name, bytes=12, digest="crc32:00000000")
    fate = store.edge.deliver(body, key="simple", content_type=codec.MSGPACK)
    in_json = json.loads(json.dumps(msgpack.unpackb(body), default=lambda data: np.frombuffer(data, "<f4").tolist()))
    other = store.edge.deliver(json.dumps(in_json).encode(), key="simple", content_type=codec.JSON)
    store.edge.run()
    assert errors_of(fate) == errors_of(other) == {0: "invalid_input"}
    assert outputs_of(fate)[1]["y"] == outputs_of(other)[1]["y"] == (ROW * 2).tolist()
    assert store.discarded == []
    only(store.edge)


def test_a_blob_that_is_not_what_it_should_be(store):
    tensor = store.refer(ROW)
    gone, blob = store.refer(ROW), tensor.blob
    store.blobs.delete([gone.blob.name])
    wrong = [
        gone,
        Tensor("float32", (4,), blob=blob),
        Tensor("float32", (4,), blob=type(blob)(name=blob.name, bytes=16, digest=blob.digest)),
        Tensor("float32", (3,), blob=type(blob)(name=blob.name, bytes=12, digest="crc32:00000000")),
        Tensor("string", (3,), blob=blob),
    ]
    fate = store.ask("double_it", *[{"x": it} for it in [*wrong, tensor]])
    store.edge.run()
    assert errors_of(fate) == {0: "blob_missing", **dict.fromkeys(range(1, 5), "invalid_input")}
    assert outputs_of(fate)[5]["y"] == (ROW * 2).tolist()
    assert set(store.discarded) == {blob.name, gone.blob.name}
    messages = [it.error.message for it in fate.replies[0][0].reply.errors]
    assert all(it.startswith("input x: ") for it in messages)
    assert not any(store.root in it for it in messages)


def test_without_a_store(tmp_path):
    edge = Edge(tmp_path, {"matmul": MODEL + SERVED, "simple": SIMPLE})
    blobs = BlobStore(f"memory://{uuid.uuid4().hex}")
    rows = [{"x": blobs.put(from_array(ROW))}, {"x": from_array(ROW)}]
    body = codec.encode_request(Request(servable="simple", method="double_it", instances=rows))
    fate = edge.deliver(body, content_type=codec.MSGPACK, key="simple", headers=SPEAKS)
    edge.run()
    assert errors_of(fate) == {0: "invalid_input"}
    assert "blob_store" in fate.replies[0][0].reply.errors[0].error.message
    assert outputs_of(fate)[1]["y"] == (ROW * 2).tolist()
    edge.close()


def test_more_bytes_than_any_request_may_bring(store):
    tensor = store.refer(np.zeros(MOST // 8, np.float32))
    fate = store.ask("double_it", *[{"x": tensor}] * 3)  # each row would be an array of its own in a batch
    store.edge.run()
    assert error_of(fate)[0] == "limit_exceeded"
    assert store.discarded == [tensor.blob.name]


def test_a_store_that_cannot_be_read(store, monkeypatch):
    tensor = store.refer(ROW)
    monkeypatch.setattr(MemoryFileSystem, "cat_file", _refuse)
    fate = store.ask("double_it", {"x": tensor})
    store.edge.run()
    assert error_of(fate) == ("blob_unavailable", "input x: the blob store cannot be read: Permission denied")


def _refuse(*_: Any, **__: Any) -> None:
    raise PermissionError(13, "Permission denied")


def test_a_store_that_cannot_be_written_is_done_without_where_it_can_be(store, monkeypatch):
    monkeypatch.setattr(MemoryFileSystem, "pipe_file", _refuse)
    fate = store.ask("double_it", {"x": from_array(LARGE)}, headers=SPEAKS)
    store.edge.run()
    np.testing.assert_array_equal(outputs_of(fate)[0]["y"], LARGE * 2)

    fate = store.ask("double_it", *[{"x": from_array(LARGE)}] * 6, headers=SPEAKS)
    store.edge.run()
    assert error_of(fate) == ("blob_unavailable", "the blob store cannot be written: Permission denied")
    only(store.edge)
    assert store.names == set()


def test_memory_is_short_while_blobs_are_read_or_written(store, monkeypatch):
    """The request does not wait for ever for what a thread has not brought about."""

    def short(*_):
        raise MemoryError

    tensor = store.refer(LARGE)
    monkeypatch.setattr(BlobStore, "get", short)
    fate = store.ask("double_it", {"x": tensor})
    store.edge.run()
    assert error_of(fate)[0] == "internal"

    monkeypatch.setattr(BlobStore, "put_all", short)
    fate = store.ask("double_it", {"x": from_array(LARGE)}, headers=SPEAKS)
    store.edge.run()
    np.testing.assert_array_equal(outputs_of(fate)[0]["y"], LARGE * 2)
    only(store.edge)


# ------------------------------------------------------------------------------------------------- the life of a blob


def test_a_dead_letter_keeps_its_blobs(store):
    tensor = store.refer(ROW)
    fate = store.ask("failing", {"x": tensor}, reply_to=None)
    store.edge.run()
    assert len(fate.dead) == 1
    assert store.discarded == []

    fate = store.ask("failing", {"x": tensor})
    store.edge.run()
    assert error_of(fate)[0] == "stage_failed"
    assert store.discarded == [tensor.blob.name]


def test_nobody_is_to_be_answered(store):
    tensor = store.refer(LARGE)
    fate = store.ask("double_it", {"x": tensor}, reply_to=None)
    store.edge.run()
    assert fate.acked == 1
    assert store.discarded == [tensor.blob.name]
    assert store.names == {tensor.blob.name}


@pytest.mark.parametrize("outcome", [Outcome.LOST, Outcome.RETURNED])
def test_what_the_broker_has_back_or_puts_aside_keeps_its_blobs(store, outcome):
    tensor = store.refer(ROW)
    store.edge.outcomes.append(outcome)
    store.ask("double_it", {"x": tensor})
    store.edge.run()
    assert store.discarded == []


@pytest.mark.parametrize("method", ["double_it", "unknown"])
def test_what_was_never_understood_leaves_nothing(store, method):
    tensor = store.refer(ROW)
    fate = store.ask(method, {"x": tensor}, headers={"rankmq-deadline": 1})
    store.edge.run()
    assert error_of(fate)[0] == "deadline_exceeded"
    assert store.discarded == [tensor.blob.name]


def test_the_deadline_passes_while_blobs_are_read(slow):
    tensor = slow.refer(ROW)
    wall = slow.edge.wall()
    fate = slow.ask("double_it", {"x": tensor}, headers={"rankmq-deadline": int(1000 * wall) + 2000})
    slow.edge.run()
    assert not fate.replies
    slow.edge.world.clock.now += 3
    slow.edge.service.tick()
    assert error_of(fate)[0] == "deadline_exceeded"
    ((work, done),) = slow.work
    done(work())
    slow.edge.run()
    assert len(fate.replies) == 1
    only(slow.edge)


def test_requests_wait_for_room_in_memory(slow):
    tensor = slow.refer(np.zeros(MOST // 4 // 4, np.float32))
    fates = [slow.ask("double_it", *[{"x": tensor}] * 3, message_id=f"m{number}") for number in range(3)]
    slow.edge.run()
    assert len(slow.work) == 1, "a second one was read beside the first"
    slow.edge.service.cancel("m1")
    assert error_of(fates[1])[0] == "cancelled"
    while slow.work:
        work, done = slow.work.pop(0)
        done(work())
        slow.edge.run()
    assert [len(fate.replies) for fate in fates] == [1, 1, 1]
    only(slow.edge)
    assert slow.edge.service._blobs._room.used == 0


def test_a_request_that_is_given_up_while_its_reply_is_written(slow):
    fate = slow.ask("double_it", {"x": from_array(LARGE)}, headers=SPEAKS, message_id="m1")
    slow.edge.run()
    ((work, done),) = slow.work
    found = work()
    assert slow.edge.service.cancel("m1") == "cancelled"
    done(found)
    slow.edge.run()
    assert error_of(fate)[0] == "cancelled"
    assert set(slow.discarded) == slow.names
    assert len(slow.names) == 1
    only(slow.edge)


# -------------------------------------------------------------------------------------------------- the same id again


def test_asked_again_with_the_same_inputs_under_other_names(store):
    first = store.ask("double_it", {"x": store.refer(LARGE)}, headers=SPEAKS, message_id="m1", correlation_id="a")
    store.edge.run()
    np.testing.assert_array_equal(store.read(first)[0]["y"], LARGE * 2)
    second = store.ask("double_it", {"x": store.refer(LARGE)}, headers=SPEAKS, message_id="m1", correlation_id="b")
    store.edge.run()
    np.testing.assert_array_equal(store.read(second)[0]["y"], LARGE * 2)  # not what the first has read and deleted
    other = store.ask("double_it", {"x": store.refer(LARGE + 1)}, headers=SPEAKS, message_id="m1", correlation_id="c")
    store.edge.run()
    assert error_of(other)[0] == "request_id_reused"
    assert len(store.discarded) == 3
    assert set(store.discarded) == store.names


def test_asked_from_two_queues_at_once_each_has_blobs_of_its_own(slow):
    x = {"x": from_array(LARGE)}
    fates = [slow.ask("double_it", x, headers=SPEAKS, message_id="m1", reply_to="a")]
    slow.edge.run()
    fates.append(slow.ask("double_it", x, headers=SPEAKS, message_id="m1", reply_to="b"))  # while it is written
    while slow.work:
        work, done = slow.work.pop(0)
        done(work())
        slow.edge.run()
    for fate in fates:
        np.testing.assert_array_equal(slow.read(fate)[0]["y"], LARGE * 2)
    assert slow.names == set()
    only(slow.edge)


def test_what_was_written_for_one_whose_time_is_up_is_deleted(slow):
    x = {"x": from_array(LARGE)}
    first = slow.ask("double_it", x, headers=SPEAKS, message_id="m1", reply_to="a")
    soon = {**SPEAKS, "rankmq-deadline": int(1000 * slow.edge.wall()) + 2000}
    hasty = slow.ask("double_it", x, headers=soon, message_id="m1", reply_to="b")
    slow.edge.run()
    work, done = slow.work.pop()
    done(work())
    slow.edge.run()
    work, done = slow.work.pop()
    done(work())  # both are written, and nobody was told yet
    slow.edge.world.clock.now += 3
    slow.edge.service.tick()
    slow.edge.run()
    assert error_of(hasty)[0] == "deadline_exceeded"
    np.testing.assert_array_equal(slow.read(first)[0]["y"], LARGE * 2)
    assert len(slow.names) == 1
    assert slow.names == set(slow.discarded)
    only(slow.edge)


def test_a_copy_leaves_the_blobs_that_the_first_reads(slow):
    tensor, other = slow.refer(LARGE), slow.refer(LARGE)
    first = slow.ask("double_it", {"x": tensor}, headers=SPEAKS, message_id="m1")
    slow.edge.run()
    slow.ask("double_it", {"x": tensor}, headers=SPEAKS, message_id="m1")
    slow.ask("double_it", {"x": other}, headers=SPEAKS, message_id="m1")  # asked anew: what it has written is its own
    late = {**SPEAKS, "rankmq-deadline": 1}
    slow.ask("double_it", {"x": tensor}, headers=late, message_id="m1", reply_to="b")
    assert slow.discarded == [other.blob.name]
    while slow.work:
        work, done = slow.work.pop(0)
        done(work())
        slow.edge.run()
    np.testing.assert_array_equal(slow.read(first)[0]["y"], LARGE * 2)
    assert slow.discarded == [other.blob.name, tensor.blob.name]
    only(slow.edge)


def test_delivered_again_after_the_answer_was_lost(store):
    """The orchestrator was cut off before the broker said that it has the reply: nothing was deleted yet."""
    tensor = store.refer(LARGE)
    store.edge.outcomes.append(Outcome.LOST)
    body = {"x": tensor}
    store.ask("double_it", body, headers=SPEAKS, message_id="m1")
    store.edge.run()
    fate = store.ask("double_it", body, headers=SPEAKS, message_id="m1", redelivered=True)
    store.edge.run()
    np.testing.assert_array_equal(store.read(fate)[0]["y"], LARGE * 2)
    assert store.discarded == [tensor.blob.name]


def test_files_of_the_store_are_only_named_as_blobs(store):
    store.ask("double_it", {"x": store.refer(LARGE)})
    store.edge.run()
    files, _ = fsspec.url_to_fs("memory://")
    assert all(it.rpartition("/")[2].startswith("20") for it in files.find(store.root))
