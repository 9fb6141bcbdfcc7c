"""Given a request that asks for parts of its answer, when its Python tells some, then they go to who waits for it."""

from __future__ import annotations

import numpy as np
import pytest
from rankmq.engine.delivery import Delivery
from rankmq.engine.open_request import OpenRequest
from rankmq.engine.parts import Parts, outputs_of_part
from rankmq.schemas import codec
from rankmq.schemas.errors import InvalidInput
from rankmq.schemas.messages import ReplyPart
from rankmq.schemas.tensors import from_array, to_array

from tests.unit.engine.edge import MODEL, Edge, Properties, error_of, outputs_of

ROW = np.array([1, 2, 3], np.float32)

TELLING = """
def told(x):
    for number in range(2):
        register.send_part(n=np.int32(number), first=x[0])
    return x

def told_together(xs):
    register.send_part(n=1)  # in told_together
    return xs

@register.register_method(output_names=["y"])
def tell(x):
    return register.call_servable(register.add_stage(told, x), subgraph=0)

@register.register_method(output_names=["y"])
def tell_together(x):
    return register.add_stage(told_together, x, batch_size=0)

def nonsense(x):
    register.send_part(y=object())  # in nonsense

@register.register_method(output_names=["y"])
def tell_nonsense(x):
    return register.add_stage(nonsense, x)

tell_ = PipelineServable("matmul", "tell")

@register.register_pipeline(output_names=["y"])
def talk(x):
    y = tell_.run(x)
    register.send_part(last=y)
    return y

@register.register_pipeline(output_names=["y"])
def talk_nonsense(x):
    register.send_part(n=object())  # in talk_nonsense
    return x
"""


@pytest.fixture
def edge(tmp_path):
    edge = Edge(tmp_path, {"matmul": MODEL + TELLING}, pool="threads")
    yield edge
    edge.close()


def test_each_instance_tells_its_own(edge):
    fate = edge.ask("tell", {"x": ROW}, {"x": ROW + 10}, stream=True)
    edge.run()
    parts = [part for _, part in edge.parts]
    told = [(int(to_array(part.outputs["n"])), float(to_array(part.outputs["first"]))) for part in parts]
    found = [(part.index, part.attempt, part.number, *it) for part, it in zip(parts, told, strict=True)]
    assert sorted(found) == [(0, 1, 0, 0, 1.0), (0, 1, 1, 1, 1.0), (1, 1, 0, 0, 11.0), (1, 1, 1, 1, 11.0)]
    assert [it for it in found if it[0] == 1] == sorted(it for it in found if it[0] == 1)
    assert len(outputs_of(fate)) == 2


def test_a_pipeline_and_the_methods_that_it_calls_count_together(edge):
    edge.ask("talk", {"x": ROW}, stream=True, content_type=codec.JSON)
    edge.run()
    assert [(part.number, sorted(part.outputs)) for _, part in edge.parts] == [
        (0, ["first", "n"]), (1, ["first", "n"]), (2, ["last"]),
    ]  # fmt: skip


def test_nobody_asked_or_nobody_can_be_told(edge):
    fate = edge.ask("tell", {"x": ROW})
    edge.ask("tell", {"x": ROW}, stream=True, reply_to=None)
    edge.run()
    assert edge.parts == []
    assert fate.replies


def test_a_stage_of_several_and_what_cannot_be_sent_fail(edge):
    together = edge.ask("tell_together", {"x": ROW})
    nonsense = [edge.ask(name, {"x": ROW}, stream=True) for name in ("tell_nonsense", "talk_nonsense")]
    edge.run()
    # Whoever reads the error finds the line; and it is not the fault of who sent the request.
    lines = (MODEL + TELLING).splitlines()
    for fate, function, what in (
        (together, "told_together", "this stage takes several instances at a time"),
        (nonsense[0], "nonsense", "output y: "),
        (nonsense[1], "talk_nonsense", "output n: "),
    ):
        line = next(number for number, text in enumerate(lines, 1) if text.endswith(f"# in {function}"))
        code, message = error_of(fate)
        assert code == "stage_failed"
        assert message.startswith(f"{function} (servable_config.py:{line}): send_part: {what}")


def test_the_same_request_from_two_queues_is_told_to_both(tmp_path):
    edge = Edge(tmp_path, {"matmul": MODEL + TELLING}, pool="threads", max_in_flight=1)
    try:
        edge.ask("talk", {"x": ROW}, message_id="before")  # while this one runs, the others wait
        for queue in ("one", "two", "one"):
            edge.ask("tell", {"x": ROW}, stream=True, message_id="m", reply_to=queue)
        edge.run()
        assert [delivery.properties.reply_to for delivery, _ in edge.parts] in (["one", "two"] * 2, ["two", "one"] * 2)
        assert [part.number for _, part in edge.parts] == [0, 0, 1, 1]
    finally:
        edge.close()


def opened(*, count: int = 0, **properties: object) -> OpenRequest:
    headers = {"x-delivery-count": count} if count else None
    given = Properties(reply_to="q", message_id="m", headers=headers, **properties)
    return OpenRequest.of(Delivery(b"", 1, "", "", count > 0, given), 0.0)


class Sent:
    def __init__(self) -> None:
        self.parts: list[ReplyPart] = []

    def part(self, delivery: Delivery, body: bytes, content_type: str) -> None:
        self.parts.append(codec.decode_part(body, content_type))


X = {"x": from_array(ROW)}


def test_a_new_start_silences_the_one_before_it():
    sent = Sent()
    instance = Parts(opened(), sent, 1 << 20).instances([3])[3]
    first = instance.begin()
    first(X)
    second = instance.begin()
    second(X)
    first(X)
    second(X)
    assert [(it.index, it.attempt, it.number) for it in sent.parts] == [(3, 1, 0), (3, 2, 0), (3, 2, 1)]


def test_a_redelivery_is_later_than_all_attempts_of_the_delivery_before_it():
    sent = Sent()
    before = Parts(opened(), sent, 1 << 20).instances([0])[0]
    for _ in range(7):
        before.begin()(X)
    Parts(opened(count=1), sent, 1 << 20).instances([0])[0].begin()(X)
    attempts = [it.attempt for it in sent.parts]
    assert attempts == sorted(set(attempts))


def test_none_comes_after_the_answer_and_none_that_is_too_large():
    sent, open_ = Sent(), opened()
    send = Parts(open_, sent, 8192).instances([0])[0].begin()
    send({"x": from_array(np.zeros(2000, np.float32))})
    assert sent.parts == []
    send(X)
    assert sent.parts[0].number == 1, "the number of the one that was not sent is left out"
    open_.answered = True
    send(X)
    assert len(sent.parts) == 1


@pytest.mark.parametrize("given", [3, [1], {1: 2}, {"": 1}, {"x": object()}, {"x": {}}])
def test_what_is_no_part(given):
    with pytest.raises(InvalidInput):
        outputs_of_part(given)


def test_a_part_is_what_was_there_when_it_was_told():
    x = ROW.copy()
    part = outputs_of_part({"x": x, "text": "so far", "n": 3})
    x[:] = 0
    np.testing.assert_array_equal(to_array(part["x"]), ROW)
    assert str(to_array(part["text"])) == "so far"
