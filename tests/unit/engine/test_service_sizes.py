"""Given what is larger than anybody can be given, or what makes memory short, then one request fails, and no other."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from rankmq.engine import answering, starting
from rankmq.engine.confirms import Outcome
from rankmq.schemas import codec
from rankmq.schemas.tensors import from_array

from tests.unit.engine.edge import MODEL, ROW, Edge, error_of, errors_of, only, outputs_of
from tests.unit.engine.simulation import ready_world, steps

SIZED = """
ran = []

def wide(x, n):
    return np.broadcast_to(np.float64(x[0]), (int(n),))

def text(x, n):
    return np.broadcast_to(np.array("abcd"), (int(n),))

def objects(x, n):
    return np.broadcast_to(np.array(b"abcd", object), (int(n),))

def several(rows):
    return [wide(*row) for row in rows]

def two(x, n):
    return wide(x, n), wide(x, n)

def count(x):
    return np.int64(x.size)

def grow(x, n):
    ran.append(int(n))
    return np.full(int(n), 1, np.uint8)

@register.register_method(output_names=["y"])
def scale(x):
    return register.call_servable(x, subgraph=0)

@register.register_method(output_names=["y"])
def wide_(x, n):
    return register.add_stage(wide, x, n)

@register.register_method(output_names=["y"])
def text_(x, n):
    return register.add_stage(text, x, n)

@register.register_method(output_names=["y"])
def objects_(x, n):
    return register.add_stage(objects, x, n)

@register.register_method(output_names=["y"])
def several_(x, n):
    return register.add_stage(several, x, n, batch_size=2)

@register.register_method(output_names=["y", "z"])
def two_(x, n):
    return register.add_stage(two, x, n, outputs_count=2)

@register.register_method(output_names=["y"])
def between(x, n):
    return register.add_stage(count, register.add_stage(wide, x, n))

@register.register_method(output_names=["y"])
def any_size(x, n):
    return register.call_servable(register.add_stage(wide, x, n), subgraph=2)

@register.register_method(output_names=["y"])
def grow_(x, n):
    return register.add_stage(grow, x, n)

scale_ = PipelineServable("matmul", "scale")
grows = PipelineServable("matmul", "grow_")

@register.register_pipeline(output_names=["y"])
def pipeline(x, n):
    return wide(x, n)

@register.register_pipeline(output_names=["y"])
def asking(x, n):
    return scale_.run(wide(x, n).astype(np.float32) if n < 9 else wide(x, n))

@register.register_pipeline(output_names=["y"])
def growing(x, n):
    return grow(x, n) if n > 9 else grows.run(scale_.run(x), n)

def seen(x):
    return np.array(ran)

@register.register_method(output_names=["y"])
def what_ran(x, n):
    return register.add_stage(seen, x)
"""
HUGE = 1 << 40
MOST = 3 << 20
"""The message of the tests, as often as there are ranks: what an input that is divided may bring them."""


@pytest.fixture
def make(tmp_path):
    edges = []

    def make(**given):
        edges.append(Edge(tmp_path, {"matmul": MODEL + SIZED}, **given))
        return edges[-1]

    yield make
    for edge in edges:
        only(edge)
        edge.close()


@pytest.fixture
def edge(make):
    return make()


def ask(edge, method, *sizes, **given):
    fate = edge.ask(method, *({"x": ROW, "n": np.int64(size)} for size in sizes), **given)
    edge.run()
    return fate


METHODS = ["wide_", "text_", "objects_", "several_", "two_", "between", "any_size", "pipeline", "asking"]


# ----------------------------------------------------------------------------------------- what functions may return


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("n", [HUGE, 1 << 26], ids=["memory would not do", "it would"])
def test_what_is_too_large_for_anybody_fails_its_row(edge, method, n):
    innocent = edge.ask("scale", {"x": ROW})
    fate = ask(edge, method, n, 3)
    assert errors_of(fate) == {0: "limit_exceeded"}
    ((publish, _),) = fate.replies
    message = publish.reply.errors[0].error.message
    assert (
        " bytes for a row, and no reply or step can carry more than 3145728: give less, or have the engine use"
        in message
    )
    assert outputs_of(fate)[1] is not None
    assert outputs_of(innocent) == [{"y": [3, 5, 7]}]


@pytest.mark.parametrize(("plane_bytes", "most"), [(0, MOST), (5 << 20, 5 << 20)])
def test_a_row_may_be_what_a_step_can_take(make, plane_bytes, most):
    edge = make(plane_bytes=plane_bytes)
    fate = ask(edge, "between", most // 8, most // 8 + 1)
    assert errors_of(fate) == {1: "limit_exceeded"}
    assert outputs_of(fate)[0] == {"y": most // 8}


def test_what_a_step_cannot_take_is_refused_before_it_is_put_together(edge, monkeypatch):
    plans = edge.world.driver._feed.plans
    monkeypatch.setattr(type(plans[2][0]), "scatter", lambda *_: pytest.fail("it is put together"))
    code, message = error_of(ask(edge, "any_size", MOST // 8))
    assert (code, message) == ("limit_exceeded", f"a row of {MOST} bytes: the broker takes 1048576")
    assert steps(edge.world) == {}


# ----------------------------------------------------------------------------------------------- what a reply may have


@pytest.mark.parametrize("content_type", [codec.MSGPACK, codec.JSON])
def test_a_request_fails_when_its_results_are_more_than_a_reply_may_have(edge, content_type, monkeypatch):
    """Nothing is put together, and what is left of its work is stopped."""
    monkeypatch.setattr(answering, "named_outputs", lambda *_: pytest.fail("its reply is put together"))
    sizes = [600_000, 600_000, 3, 3, 3]
    fate = edge.ask("growing", *({"x": ROW, "n": np.int64(size)} for size in sizes), content_type=content_type)
    while not fate.replies:
        edge.news.get(timeout=20)()  # and the ranks, which the small ones wait for, do nothing
    edge.run()
    assert error_of(fate) == (
        "limit_exceeded",
        "the reply has 1200000 bytes: the broker takes 1048576; send fewer instances at once, or have the engine use a "
        "blob store (blob_store), past which large outputs go",
    )
    monkeypatch.undo()
    assert outputs_of(ask(edge, "what_ran", 1)) == [{"y": sizes[:2]}]


def test_rows_of_a_call_are_counted_as_they_come(make):
    """Not first when all are there: those that wait for their steps leave, and the others of the steps are served."""
    edge = make(world=ready_world(window=1, batch_size=2))
    fate = edge.ask("any_size", *({"x": ROW, "n": np.int64(30_000)} for _ in range(20)))
    other = edge.ask("scale", {"x": ROW})
    random = Random(0)
    while found := edge.world.choices():
        random.choice(found)()
        while not edge.news.empty():
            edge.news.get()()
    assert error_of(fate)[0] == "limit_exceeded"
    assert "the reply has 1200000 bytes: the broker takes 1048576" in error_of(fate)[1]
    assert outputs_of(other) == [{"y": [3, 5, 7]}]
    assert sum(steps(edge.world).values()) == 6 + 2 + 1, "what came, the step that was sent meanwhile, and the other's"
    assert edge.world.driver.status().waiting == 0
    assert edge.world.driver._tickets == {}


@pytest.mark.parametrize(("content_type", "n"), [(codec.MSGPACK, 30_000), (codec.JSON, 60_000)])
def test_each_row_counts_once_and_for_no_more_than_it_takes(edge, content_type, n):
    """In JSON a number of eight bytes may be four."""
    fate = ask(edge, "any_size", *[n] * 4, content_type=content_type)
    assert [len(row["y"]) for row in outputs_of(fate)] == [n] * 4


def test_a_reply_that_has_room_is_sent(edge):
    fate = ask(edge, "grow_", *[250_000] * 4)
    assert [len(row["y"]) for row in outputs_of(fate)] == [250_000] * 4


# ------------------------------------------------------------------------------------------------ what nobody expects


def short(*_, **__):
    raise MemoryError


@pytest.mark.parametrize(
    ("module", "name"),
    [(answering, "named_outputs"), (answering, "size_of"), (answering.codec, "encode_reply")],
)
def test_what_is_raised_over_an_answer_fails_its_request(edge, monkeypatch, caplog, module, name):
    edge.hold = True
    fate = edge.ask("scale", {"x": ROW})
    first = getattr(module, name)

    def once(*args, **given):
        monkeypatch.setattr(module, name, first)
        raise MemoryError

    monkeypatch.setattr(module, name, once)
    edge.run()
    edge.answer(*edge.held.popleft(), Outcome.CONFIRMED)
    edge.hold = False
    assert error_of(fate) == ("internal", "the engine met MemoryError over this request: its log says more")
    (record,) = [it for it in caplog.records if it.exc_info]
    assert record.message == "a defect: the request fails"
    assert outputs_of(ask_scale(edge)) == [{"y": [3, 5, 7]}]


@pytest.mark.parametrize(("module", "name"), [(starting, "arguments_of"), (codec, "decode_request")])
def test_what_is_raised_over_a_request_fails_it(edge, monkeypatch, module, name):
    beside = edge.ask("scale", {"x": ROW})
    monkeypatch.setattr(module, name, short)
    fate = edge.deliver(_body(), content_type=codec.MSGPACK, message_id="m1")
    monkeypatch.undo()
    edge.run()
    assert error_of(fate)[0] == "internal"
    assert outputs_of(beside) == [{"y": [3, 5, 7]}]
    assert edge.service.cancel("m1") == "answered"


def _body():
    return codec.encode_request(
        codec.Request(servable="matmul", method="scale", instances=[{"x": from_array(ROW)}]), codec.MSGPACK
    )


def ask_scale(edge):
    fate = edge.ask("scale", {"x": ROW})
    edge.run()
    return fate
