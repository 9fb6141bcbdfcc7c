"""Given a request that asks for parts of its answer, when its Python tells some, then they go to who waits for it."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest
from rankmq.engine.delivery import Delivery
from rankmq.engine.open_request import OpenRequest
from rankmq.engine.parts import Parts, outputs_of_part
from rankmq.schemas import codec
from rankmq.schemas.errors import InvalidInput
from rankmq.schemas.messages import ReplyPart
from rankmq.schemas.tensors import from_array, to_array

from tests.unit.engine.edge import MODEL, PATIENCE, Edge, Properties, error_of, outputs_of

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
def talk_much(x):
    for number in range(1000):
        register.send_part(n=number)
    return x

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


def test_a_thread_that_tells_more_than_the_loop_can_take_holds_two_parts(edge):
    fate = edge.ask("talk_much", {"x": ROW}, {"x": ROW}, stream=True)
    until = time.monotonic() + PATIENCE
    while edge.busy:  # the loop does nothing meanwhile
        assert time.monotonic() < until
        time.sleep(0.001)
    assert edge.news.qsize() == 4, "of each instance a word of its parts, and its result"
    edge.run()
    assert sorted((part.index, part.number) for _, part in edge.parts) == [(0, 0), (0, 999), (1, 0), (1, 999)]
    assert len(outputs_of(fate)) == 2


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
        self.behind = False

    def takes_parts(self) -> bool:
        return not self.behind

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


class Loop:
    """What is asked of it waits until the test turns it."""

    def __init__(self) -> None:
        self.asked: list[Callable[[], None]] = []

    def turn(self) -> None:
        asked, self.asked = self.asked, []
        for work in asked:
            work()


def numbered(sent: Sent) -> list[tuple[int, int]]:
    """The number of each part that was sent, and what it said."""
    return [(it.number, int(to_array(it.outputs["n"]))) for it in sent.parts]


def test_of_what_is_told_while_the_loop_is_busy_the_first_and_the_newest_are_sent():
    sent, loop = Sent(), Loop()
    sender = Parts(opened(), sent, 1 << 20).instances([0])[0].begin()
    for n in range(5):
        sender.tell({"n": n}, loop.asked.append)
    assert len(loop.asked) == 1
    assert sent.parts == []
    loop.turn()
    assert numbered(sent) == [(0, 0), (4, 4)], "the numbers of those in between are left out"
    sender.tell({"n": 5}, loop.asked.append)
    loop.turn()
    assert numbered(sent) == [(0, 0), (4, 4), (5, 5)]
    loop.turn()
    assert len(sent.parts) == 3


def test_what_is_told_while_the_loop_sends_is_asked_for_anew():
    loop = Loop()

    class Meanwhile(Sent):
        def part(self, delivery: Delivery, body: bytes, content_type: str) -> None:
            super().part(delivery, body, content_type)
            if len(self.parts) == 1:
                for n in (1, 2, 3):
                    sender.tell({"n": n}, loop.asked.append)

    sent = Meanwhile()
    sender = Parts(opened(), sent, 1 << 20).instances([0])[0].begin()
    sender.tell({"n": 0}, loop.asked.append)
    loop.turn()
    assert numbered(sent) == [(0, 0)]
    assert len(loop.asked) == 1
    loop.turn()
    assert numbered(sent) == [(0, 0), (1, 1), (3, 3)]


def test_a_loop_of_the_method_comes_behind_what_its_functions_have_told():
    sent, loop = Sent(), Loop()
    sender = Parts(opened(), sent, 1 << 20).instances([0])[0].begin()
    for n in range(2):
        sender.tell({"n": n}, loop.asked.append)
    sender({"n": from_array(np.array(2))})
    loop.turn()
    assert numbered(sent) == [(0, 0), (1, 1), (2, 2)]


def test_what_would_not_be_sent_is_neither_read_nor_held():
    sent, loop, open_ = Sent(), Loop(), opened()
    instance = Parts(open_, sent, 1 << 20).instances([0])[0]
    early, sender = instance.begin(), instance.begin()

    class Unread:
        def __array__(self, *_: object, **__: object) -> np.ndarray:
            raise AssertionError("it was read")

    early.tell({"n": Unread()}, loop.asked.append)
    sent.behind = True
    sender.tell({"n": Unread()}, loop.asked.append)
    sent.behind = False
    sender.tell({"n": 1}, loop.asked.append)
    open_.answered = True
    sender.tell({"n": Unread()}, loop.asked.append)
    assert len(loop.asked) == 1
    loop.turn()
    assert sent.parts == [], "it was answered while the part was on its way"
    open_.answered = False
    sender.tell({"n": 3}, loop.asked.append)
    sent.behind = True
    loop.turn()
    assert sent.parts == [], "the broker fell behind while the part was on its way"
    sent.behind = False
    sender.tell({"n": 4}, loop.asked.append)
    loop.turn()
    assert numbered(sent) == [(4, 4)]


def test_threads_that_tell_at_once_are_all_counted_and_nothing_goes_back():
    sent = Sent()
    sender = Parts(opened(), sent, 1 << 20).instances([0])[0].begin()
    news: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()

    def tell() -> None:
        for _ in range(200):
            sender.tell({"n": 0}, news.put)

    threads = [threading.Thread(target=tell) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads) or not news.empty():
        with contextlib.suppress(queue.Empty):
            news.get(timeout=0.01)()
    numbers = [it.number for it in sent.parts]
    assert numbers == sorted(set(numbers))
    assert numbers[-1] == 799, "the last is always sent"


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
