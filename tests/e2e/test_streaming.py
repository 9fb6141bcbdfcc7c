"""Parts of an answer, as they are made: in order, before the reply, and none where nobody asked."""

import json
import os
import signal
from collections.abc import Iterator

import msgpack
import numpy as np
import pytest
from rankmq.engine import Part
from rankmq.schemas.errors import Cancelled

from tests.e2e.graphs import WORDS, Graph, op, spec, write_servable
from tests.e2e.producer import JSON, MSGPACK, Producer, request
from tests.e2e.systems import System, Vhosts, running, wait_until

WIDTH, TURNS, SLICE = 4, 24, 4

CONFIGURATION = (
    WORDS
    + f"""
distributed.declare_servable(rank_size=2, stage_size=1, with_batch_dim=True, slots=4)

def begin(name, total):
    register.send_part(text=f"{{name}} begins")
    return total

def so_far(name, all_of_it):
    return {{"text": f"{{name}} has {{len(all_of_it)}}", "newest": all_of_it[-1]}}

def none_for(name, all_of_it):
    if str(name) == "wrong":
        raise ValueError("no preview today")
    return None

@register.register_method(output_names=["all"])
def count(name, total, step):
    total = register.call_preprocess(begin, name, total)
    return register.repeat(
        total, step, times={TURNS}, feed={{0: 0}}, collect=0, slice_turns={SLICE}, stream=so_far, stream_args=[name]
    )

@register.register_method(output_names=["all"])
def silent(name, total, step):
    return register.repeat(
        total, step, times={TURNS}, feed={{0: 0}}, collect=0, slice_turns={SLICE}, stream=none_for, stream_args=[name]
    )

@register.register_method(output_names=["x"])
def together(x):
    def several(rows):
        register.send_part(x=1)
        return rows
    return register.add_stage(several, x, batch_size=0)

counting = PipelineServable("slow", "count")

@register.register_pipeline(output_names=["all"])
def twice(name, total, step):
    first = counting.run(name, total, step)
    register.send_part(half=first[-1])
    return counting.run(name, first[-1], step)
"""
)

SLOW = Graph(
    [op("sleep", "total", "t", milliseconds=15), op("add", "t step", "after")],
    [spec("total", -1, WIDTH), spec("step", -1, WIDTH), spec("slot", -1, dtype="int32")],
    [spec("after", -1, WIDTH)],
)


@pytest.fixture(scope="module")
def system(vhosts: Vhosts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    directory, logs = tmp_path_factory.mktemp("streaming"), tmp_path_factory.mktemp("logs")
    write_servable(directory, "slow", CONFIGURATION, {"slow": lambda rank: SLOW}, ranks=2)
    with running(System(vhosts.url(), directory, ["slow"], logs, heartbeats_missed=30)) as system:
        yield system


def row(name: str, first: int = 0) -> dict[str, object]:
    return {"name": name, "total": np.full(WIDTH, first, np.float32), "step": np.ones(WIDTH, np.float32)}


def counted(first: int = 0) -> np.ndarray:
    return np.repeat(np.arange(first + 1, first + TURNS + 1, dtype=np.float32)[:, None], WIDTH, axis=1)


def check_counting(parts: list[Part], name: str, first: int = 0) -> None:
    """The parts of one instance in one attempt, all of them."""
    assert [part.number for part in parts] == list(range(len(parts)))
    assert str(parts[0].outputs["text"]) == f"{name} begins"
    turns = [int(part.outputs["newest"][0]) - first for part in parts[1:]]
    assert [str(part.outputs["text"]) for part in parts[1:]] == [f"{name} has {number}" for number in turns]
    # A slice that others join may be shorter; the last one is told with the answer.
    assert turns == sorted(set(turns))
    assert 0 < turns[0] <= SLICE
    assert TURNS - SLICE <= turns[-1] < TURNS


def wait_for_reply(producer: Producer) -> None:
    """And a moment longer: nothing comes after it."""
    while not producer.replies or producer.replies[-1][0].type != "reply":
        producer.wait(len(producer.replies) + 1)
    producer.rest(0.3)


def test_parts_come_in_order_and_then_the_whole(system: System) -> None:
    with system.client("slow", "count") as client, client.stream([row("a"), row("b", 100)]) as stream:
        parts = list(stream)
        assert stream.done()
        result = stream.result()
    for instance, (name, first) in enumerate((("a", 0), ("b", 100))):
        check_counting([part for part in parts if part.instance == instance], name, first)
        np.testing.assert_array_equal(result[instance]["all"], counted(first))
    assert {part.attempt for part in parts} == {1}


def test_a_pipeline_tells_its_own_parts_and_those_of_its_methods(system: System) -> None:
    with system.client("slow", "twice") as client, client.stream(row("p")) as stream:
        parts = list(stream)
        (result,) = stream.result()
    assert [part.number for part in parts] == list(range(len(parts)))
    (middle,) = [at for at, part in enumerate(parts) if "half" in part.outputs]
    np.testing.assert_array_equal(parts[middle].outputs["half"], np.full(WIDTH, TURNS))
    assert str(parts[middle + 1].outputs["text"]) == "p begins"
    np.testing.assert_array_equal(result["all"], counted(TURNS))


@pytest.mark.parametrize("content_type", [MSGPACK, JSON])
def test_on_the_wire(system: System, content_type: str) -> None:
    read = json.loads if content_type == JSON else msgpack.unpackb
    plain = {"name": "w", "total": [0.0] * WIDTH, "step": [1.0] * WIDTH}
    with Producer(system.url) as producer:
        producer.send(request("slow", "count", plain, stream=True), content_type=content_type, correlation_id="q")
        wait_for_reply(producer)
        *parts, (last, body) = producer.replies
    assert len(parts) >= 3
    for number, (properties, part) in enumerate(parts):
        assert (properties.type, properties.delivery_mode) == ("part", 1)
        assert (properties.correlation_id, properties.content_type) == ("q", content_type)
        found = read(part)
        assert found.keys() == {"v", "id", "index", "attempt", "number", "outputs"}
        assert (found["index"], found["attempt"], found["number"]) == (0, 1, number)
        assert found["outputs"]["text"]["dtype"] == "string"
    assert (last.type, last.delivery_mode, last.correlation_id) == ("reply", 2, "q")
    assert read(body)["outputs"][0]["all"]["shape"] == [TURNS, WIDTH]


def test_who_does_not_ask_gets_the_reply_alone(system: System) -> None:
    with Producer(system.url) as producer:
        producer.send(request("slow", "count", {"name": "w", "total": [0.0] * WIDTH, "step": [1.0] * WIDTH}))
        wait_for_reply(producer)
    assert [properties.type for properties, _ in producer.replies] == ["reply"]


def test_a_preview_that_fails_fails_nothing_else(system: System) -> None:
    with system.client("slow", "silent") as client, client.stream([row("wrong"), row("right")]) as stream:
        assert list(stream) == []
        for answer in stream.result():
            np.testing.assert_array_equal(answer["all"], counted())
    assert "no preview today" in system.orchestrator.said


def test_a_stage_of_several_instances_has_no_parts(system: System) -> None:
    with system.client("slow", "together") as client, pytest.raises(Exception, match="several instances at a time"):
        client.infer({"x": np.float32(1)})


def test_a_stream_that_is_broken_off_is_cancelled(system: System) -> None:
    with system.client("slow", "count") as client:
        with client.stream(row("c")) as stream:
            for part in stream:
                if part.number == 2:
                    break
        with pytest.raises(Cancelled):
            stream.result()
        assert list(stream) == []
        wait_until(lambda: system.status().in_flight == 0, "the request is given up")
    assert system.group("slow").slots_held == 0


def test_somebody_else_cancels_it(system: System) -> None:
    with system.client("slow", "count") as client, client.stream(row("c")) as stream:
        numbers = []
        for part in stream:
            numbers.append(part.number)
            if part.number == 1:
                assert client.cancel(stream.request_id) == "cancelled"
        with pytest.raises(Cancelled):
            stream.result()
    assert len(numbers) < TURNS // SLICE


def test_a_client_that_goes_away_harms_nobody(system: System) -> None:
    with Producer(system.url) as producer:
        producer.send(
            request("slow", "count", {"name": "w", "total": [0.0] * WIDTH, "step": [1.0] * WIDTH}, stream=True)
        )
        assert producer.wait()[0][0].type == "part"
    with system.client("slow", "count") as client, client.stream(row("next")) as stream:
        check_counting(list(stream), "next")
    wait_until(lambda: system.status().in_flight == 0, "the other one ends as well")
    assert system.status().groups[0].epoch == 1


def test_a_rank_that_dies_begins_them_anew(system: System) -> None:
    # Last: it ends the epoch of the others.
    with system.client("slow", "count") as client, client.stream(row("k")) as stream:
        parts = []
        for part in stream:
            parts.append(part)
            if len(parts) == 3:
                os.kill(system.group("slow").ranks[1].pid, signal.SIGKILL)
        (result,) = stream.result()
    np.testing.assert_array_equal(result["all"], counted())
    attempts = sorted({part.attempt for part in parts})
    assert attempts == [1, 2]
    assert [part.attempt for part in parts] == sorted(part.attempt for part in parts)
    check_counting([part for part in parts if part.attempt == 2], "k")
