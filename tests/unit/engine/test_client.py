"""What the producer library makes of values and replies, and what it refuses before anything starts."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rankmq.engine.client import Client
from rankmq.engine.client_values import result_of, rows_of, to_wire
from rankmq.schemas.errors import (
    ConfigurationError,
    DeadlineExceeded,
    InstancesFailed,
    InvalidInput,
    RankmqError,
    ReplyTimeout,
    StageFailed,
)
from rankmq.schemas.messages import ErrorInfo, InstanceError, Reply
from rankmq.schemas.tensors import Tensor, from_array, to_array

FAILED = ErrorInfo(code="stage_failed", message="it raised", side="engine")


@pytest.mark.parametrize("value", [None, True, 3, 2.5, "text", [1, [2]]])
def test_plain_values_go_as_they_are(value):
    assert to_wire({"x": value}) == [{"x": value}]


def test_arrays_and_bytes_become_tensors():
    (row,) = to_wire(
        {"a": np.arange(6, dtype=">i4").reshape(2, 3).T, "b": bytearray(b"ab"), "c": np.float32(3), "d": (1,)}
    )
    assert np.array_equal(to_array(row["a"]), np.arange(6).reshape(2, 3).T)
    assert row["b"] == Tensor("bytes", (), (b"ab",))
    assert to_array(row["c"]).dtype == np.float32
    assert row["d"] == [1]


@pytest.mark.parametrize("instances", [[], (), "text", [1], [{"x": 1}, None]])
def test_no_instances(instances):
    with pytest.raises(InvalidInput, match="instance"):
        to_wire(instances)


def test_an_error_names_its_input():
    with pytest.raises(RankmqError, match="input bad: "):
        to_wire({"bad": object()})


@given(st.lists(st.booleans(), min_size=1, max_size=8))
def test_every_row_has_its_outputs_or_its_error(failing):
    reply = Reply(
        id="",
        outputs=[None if failed else {"y": from_array(np.float32(index))} for index, failed in enumerate(failing)],
        errors=[InstanceError(index=index, error=FAILED) for index, failed in enumerate(failing) if failed],
    )
    rows = rows_of(reply)
    for index, (failed, row) in enumerate(zip(failing, rows, strict=True)):
        assert isinstance(row, StageFailed) if failed else row["y"] == index
    if any(failing):
        with pytest.raises(InstancesFailed, match=_failed(failing)) as caught:
            result_of(reply)
        assert [isinstance(row, StageFailed) for row in caught.value.results] == failing
    else:
        assert [row["y"] for row in result_of(reply)] == list(range(len(failing)))


def _failed(failing):
    first = failing.index(True)
    return f"^{sum(failing)} of {len(failing)} instances failed; the first, instance {first}: {FAILED.message}$"


def test_a_request_that_failed_as_a_whole_raises_its_error():
    with pytest.raises(StageFailed, match="it raised"):
        result_of(Reply(id="", error=FAILED))


def test_a_row_without_outputs_and_error_is_no_outputs():
    with pytest.raises(InstancesFailed, match="no outputs and no error"):
        result_of(Reply(id="", outputs=[None]))


@pytest.mark.parametrize("url", ["", "http://host", "amqp://", "amqp://host:port/"])
def test_a_url_that_is_none_is_refused_before_anything_starts(url):
    before = threading.active_count()
    with pytest.raises(ConfigurationError):
        Client(url, "s", "m")
    assert threading.active_count() == before


def test_a_client_that_never_connected_closes():
    client = Client("amqp://user:secret@host/%2F", "s", "m")
    assert "secret" not in repr(client)
    client.close()


def test_a_lane_that_does_not_exist_is_refused_before_anything_starts():
    before = threading.active_count()
    with pytest.raises(InvalidInput, match=r"no lane 'urgent': the lanes are high, normal, low"):
        Client("amqp://u:p@host/%2F", "s", "m", lane="urgent")
    client = Client("amqp://u:p@127.0.0.1:1/%2F", "s", "m", lane="low")
    for ask in (client.infer, client.infer_async, client.request):
        with pytest.raises(InvalidInput, match="the lanes are high, normal, low"):
            ask({"x": 1}, lane="LOW")
    assert threading.active_count() == before


@pytest.mark.parametrize(
    ("terms", "error"),
    [
        ({"request_id": ""}, InvalidInput),
        ({"request_id": "é" * 128}, InvalidInput),
        ({"deadline": 0}, DeadlineExceeded),
        ({"timeout": -1}, ReplyTimeout),
        ({"timeout": float("nan")}, InvalidInput),
    ],
)
def test_terms_that_cannot_be_are_refused_before_anything_starts(terms, error):
    client = Client("amqp://u:p@127.0.0.1:1/%2F", "s", "m")
    before = threading.active_count()
    for ask in (client.infer, client.infer_async, client.request):
        with pytest.raises(error):
            ask({"x": 1}, **terms)
    assert threading.active_count() == before


def test_a_cancel_of_an_id_that_cannot_be_is_refused_before_anything_starts():
    before = threading.active_count()
    with pytest.raises(InvalidInput, match="id"):
        Client("amqp://u:p@127.0.0.1:1/%2F", "s", "m").cancel("")
    assert threading.active_count() == before
