"""Given requests with deadlines, lanes, and some that are given up, when they are served, then no work is wasted."""

from __future__ import annotations

import pytest
from rankmq.engine.confirms import Outcome

from tests.unit.engine.edge import MODEL, ROW, Edge, error_of, only, outputs_of
from tests.unit.engine.servable_files import WORDS
from tests.unit.engine.simulation import ready_world, steps

CONFIRMED, LOST = Outcome.CONFIRMED, Outcome.LOST
RIGHT = [{"y": [3, 5, 7]}]
SECOND = 1000

STAGES = """
seen = []

@register.register_method(output_names=["y"])
def scale(x):
    return register.call_servable(x, subgraph=0)

def note(x):
    seen.append(float(x[0]))
    return x

def told(x):
    return np.array(seen)

@register.register_method(output_names=["y"])
def noted(x):
    return register.add_stage(note, x)

@register.register_method(output_names=["y"])
def two(x):
    y = register.call_servable(x, subgraph=0)
    return register.add_stage(note, y)

@register.register_method(output_names=["y"])
def what_was_seen(x):
    return register.add_stage(told, x)

scale_ = PipelineServable("matmul", "scale")

@register.register_pipeline(output_names=["y"])
def twice(x):
    seen.append(float(x[0]))
    y = scale_.run(x)
    seen.append(float(y[0]))
    return scale_.run(y)
"""
SLOTTED = (
    WORDS
    + "distributed.declare_servable(rank_size=3, stage_size=1, with_batch_dim=True, slots=2)\n"
    + """
@register.register_method(output_names=["y"])
def scale(x):
    return register.call_servable(x, subgraph=0)
"""
)


@pytest.fixture
def make(tmp_path):
    edges = []

    def make(text=MODEL + STAGES, **given):
        edge = Edge(tmp_path, {"matmul": text}, **given)
        edges.append(edge)
        return edge

    yield make
    for edge in edges:
        assert edge.ended == len([fate for fate in edge.fates.values() if fate.ends])
        edge.close()


@pytest.fixture
def edge(make):
    return make()


def seen(edge):
    """The first numbers of the rows that the functions of the servable were called with."""
    fate = edge.ask("what_was_seen", {"x": ROW})
    edge.run()
    return outputs_of(fate)[0]["y"]


def within(edge, seconds):
    """Headers of a request that is to be served within so many seconds."""
    return {"rankmq-deadline": int((edge.wall() + seconds) * SECOND)}


def later(edge, seconds):
    """Time passes."""
    edge.world.clock.now += seconds
    edge.service.tick()


def nothing_is_left(edge):
    status = edge.world.driver.status()
    assert (status.in_flight, status.waiting, status.slots_held, status.slots_waiting) == (0, 0, 0, 0)
    assert edge.world.driver._tickets == {}
    assert edge.service.waiting == 0
    only(edge)


def rows_run(edge):
    return sum(steps(edge.world).values())


# --------------------------------------------------------------------------------------------------------- deadlines


@pytest.mark.parametrize(
    "given",
    [
        lambda edge: {"headers": within(edge, -0.25)},
        lambda edge: {"headers": within(edge, 0)},
        lambda edge: {"headers": {"rankmq-deadline": -5}},
        lambda edge: {"expiration": "1500", "timestamp": int(edge.wall()) - 4},
        lambda edge: {"expiration": "0"},
    ],
)
def test_a_deadline_that_has_passed(edge, given):
    fate = edge.ask("scale", {"x": ROW}, **given(edge))
    edge.run()
    code, message = error_of(fate)
    assert code == "deadline_exceeded"
    assert message.startswith("its deadline passed ")
    assert "-" not in message
    assert rows_run(edge) == 0
    assert edge.wakes == []
    nothing_is_left(edge)


def test_what_a_request_may_take_counts_from_its_start(make):
    edge = make(max_in_flight=1)
    now = edge.world.clock()
    first = edge.ask("scale", {"x": ROW}, headers={"rankmq-run-ms": 5000})
    second = edge.ask("scale", {"x": ROW}, headers={"rankmq-run-ms": 2000})
    third = edge.ask("scale", {"x": ROW}, headers={"rankmq-run-ms": 2000, **within(edge, 5.5)})
    assert edge.wakes == pytest.approx([now + 5, now + 5.5], abs=0.01)
    later(edge, 4.9)
    assert not first.replies
    later(edge, 0.2)  # the second one begins
    assert error_of(first)[0] == "deadline_exceeded"
    later(edge, 1.0)
    assert error_of(third)[0] == "deadline_exceeded"
    assert not second.replies
    edge.run()
    assert outputs_of(second) == RIGHT
    later(edge, 10)
    nothing_is_left(edge)


@pytest.mark.parametrize("value", ["5", 1.5, True, 0, [1], {}])
def test_what_it_may_take_is_no_time(edge, value):
    fate = edge.ask("scale", {"x": ROW}, headers={"rankmq-run-ms": value})
    edge.run()
    assert error_of(fate)[0] == "invalid_input"
    nothing_is_left(edge)


@pytest.mark.parametrize("value", ["soon", 1.5, True, [1], {}])
def test_a_deadline_that_is_none(edge, value):
    fate = edge.ask("scale", {"x": ROW}, headers={"rankmq-deadline": value})
    edge.run()
    code, message = error_of(fate)
    assert code == "invalid_input"
    assert "rankmq-deadline is milliseconds since 1970 as an integer" in message
    nothing_is_left(edge)


@pytest.mark.parametrize(
    ("deaths", "code", "words"),
    [
        ([{"reason": "expired"}], "deadline_exceeded", "waited in its queue for longer"),
        ([{"reason": "expired"}, {"reason": "delivery_limit"}], "deadline_exceeded", "waited"),
        ([{"reason": "delivery_limit"}], "attempts_exhausted", "the broker gave it up: delivery_limit"),
        ([{"reason": None}], "attempts_exhausted", "no reason given"),
        (["what"], "attempts_exhausted", "no reason given"),
        (None, "attempts_exhausted", "no reason given"),
    ],
)
def test_what_the_broker_took_out_of_its_queue(edge, deaths, code, words):
    fate = edge.ask("scale", {"x": ROW}, exchange="rankmq.unrouted", headers={"x-death": deaths})
    edge.run()
    assert error_of(fate)[0] == code
    assert words in error_of(fate)[1]
    assert rows_run(edge) == 0
    nothing_is_left(edge)


def test_what_found_no_queue_is_told_what_is_wrong_with_it(edge):
    """It comes by the alternate exchange, and bears the name of the first."""
    fate = edge.ask("scale", {"x": ROW}, servable="nope", key="nope")
    edge.run()
    assert error_of(fate)[0] == "unknown_servable"


def test_a_request_that_is_served_in_time(edge):
    fate = edge.ask("scale", {"x": ROW}, headers=within(edge, 5))
    edge.run()
    later(edge, 10)
    assert outputs_of(fate) == RIGHT
    nothing_is_left(edge)


def test_the_service_is_woken_when_the_next_deadline_passes(edge):
    now = edge.world.clock()
    for seconds in (5, 2, 9):
        edge.ask("scale", {"x": ROW}, headers=within(edge, seconds))
    assert edge.wakes == pytest.approx([now + 5, now + 2, now + 9], abs=0.01)
    edge.wakes.clear()
    later(edge, 2.1)
    assert [error_of(fate)[0] for fate in edge.fates.values() if fate.replies] == ["deadline_exceeded"]
    assert edge.wakes == pytest.approx([now + 5], abs=0.01)
    edge.run()
    edge.wakes.clear()
    later(edge, 20)
    assert edge.wakes == []
    nothing_is_left(edge)


def test_a_deadline_passes_while_the_ranks_are_at_it(edge):
    """It is answered at once; what the ranks still make of it is dropped."""
    fate = edge.ask("scale", {"x": ROW}, headers=within(edge, 1))
    other = edge.ask("scale", {"x": ROW + 1})
    assert edge.world.tasks
    later(edge, 1.1)
    assert error_of(fate) == ("deadline_exceeded", "its deadline passed before it was done")
    assert fate.acked == 1
    edge.run()
    assert outputs_of(other) == [{"y": [5, 7, 9]}]
    nothing_is_left(edge)


def test_a_deadline_passes_while_rows_wait_for_their_step(make):
    """They leave, and the ranks never see them."""
    edge = make(world=ready_world(window=1))
    first = edge.ask("scale", {"x": ROW})
    fate = edge.ask("scale", *({"x": ROW} for _ in range(7)), headers=within(edge, 1))
    assert edge.world.driver.status().waiting == 7
    later(edge, 1.1)
    assert edge.world.driver.status().waiting == 0
    assert error_of(fate)[0] == "deadline_exceeded"
    edge.run()
    assert outputs_of(first) == RIGHT
    assert rows_run(edge) == 1
    nothing_is_left(edge)


def test_a_deadline_passes_between_two_stages(edge):
    fate = edge.ask("two", {"x": ROW}, headers=within(edge, 1))
    later(edge, 1.1)
    edge.run()
    assert error_of(fate)[0] == "deadline_exceeded"
    assert seen(edge) == []
    nothing_is_left(edge)


def test_a_deadline_passes_while_a_pipeline_waits(make):
    edge = make(pool="threads")
    fate = edge.ask("twice", {"x": ROW}, headers=within(edge, 1))
    while not edge.world.tasks:
        edge.news.get(timeout=10)()
    later(edge, 1.1)
    assert error_of(fate)[0] == "deadline_exceeded"
    edge.run()
    assert seen(edge) == [1.0]  # its thread is free, and did nothing more
    nothing_is_left(edge)


def test_a_deadline_passes_before_it_may_begin(make):
    edge = make(max_in_flight=1, pool="threads")
    running = edge.ask("scale", {"x": ROW})
    fates = [edge.ask(method, {"x": ROW}, headers=within(edge, 1)) for method in ("scale", "twice", "noted")]
    assert edge.service.waiting == 3
    edge.hold = True
    later(edge, 1.1)
    assert edge.service.waiting == 0  # before the broker has said anything
    edge.run()
    while edge.held:
        edge.answer(*edge.held.popleft(), CONFIRMED)
        edge.run()
    edge.hold = False
    assert [error_of(fate)[0] for fate in fates] == ["deadline_exceeded"] * 3
    assert outputs_of(running) == RIGHT
    assert seen(edge) == []
    assert rows_run(edge) == 1
    nothing_is_left(edge)


def test_a_deadline_frees_the_slot_of_its_instance(make):
    edge = make(SLOTTED, world=ready_world(slots=2))
    late = [edge.ask("scale", {"x": ROW}, headers=within(edge, 1)) for _ in range(4)]
    assert edge.world.driver.status().slots_waiting == 2
    later(edge, 1.1)
    assert [error_of(fate) for fate in late] == [
        *[("deadline_exceeded", "its deadline passed before it was done")] * 2,
        *[("deadline_exceeded", "its deadline passed while it waited for a slot")] * 2,
    ]
    assert (edge.world.driver.status().slots_held, edge.world.driver.status().slots_waiting) == (0, 0)
    good = edge.ask("scale", {"x": ROW})
    edge.run()
    assert outputs_of(good) == RIGHT
    nothing_is_left(edge)


def test_of_those_that_joined_all_are_told(edge):
    fates = [edge.ask("scale", {"x": ROW}, message_id="m1", reply_to=queue, headers=within(edge, 1)) for queue in "aab"]
    later(edge, 1.1)
    assert [bool(fate.replies) for fate in fates] == [True, False, True]
    assert error_of(fates[2])[0] == "deadline_exceeded"
    edge.run()
    nothing_is_left(edge)


# ------------------------------------------------------------------------------------------------------------ cancel


def test_one_that_runs_is_given_up(edge):
    fate = edge.ask("two", {"x": ROW}, message_id="m1")
    other = edge.ask("scale", {"x": ROW}, message_id="m2")
    assert edge.service.cancel("m1") == "cancelled"
    assert error_of(fate) == ("cancelled", "somebody asked for it to be given up")
    edge.run()
    assert outputs_of(other) == RIGHT
    assert seen(edge) == []
    assert edge.service.cancel("m1") == "answered"
    assert edge.service.cancel("m2") == "answered"
    nothing_is_left(edge)


def test_one_that_waits_is_given_up(make):
    edge = make(max_in_flight=1)
    first = edge.ask("scale", {"x": ROW}, message_id="m1")
    second = edge.ask("noted", {"x": ROW}, message_id="m2")
    assert edge.service.cancel("m2") == "cancelled"
    assert error_of(second)[0] == "cancelled"
    edge.run()
    assert outputs_of(first) == RIGHT
    assert seen(edge) == []
    nothing_is_left(edge)


def test_one_that_was_answered_is_not_given_up_while_the_broker_has_its_answer(edge):
    edge.hold = True
    fate = edge.ask("scale", {"x": ROW}, message_id="m1")
    edge.run()
    assert edge.service.cancel("m1") == "answered"
    edge.answer(*edge.held.popleft(), CONFIRMED)
    assert outputs_of(fate) == RIGHT
    only(edge)


def test_one_that_is_not_there_yet_is_refused_when_it_comes(edge):
    assert edge.service.cancel("m1") == "noted"
    fate = edge.ask("scale", {"x": ROW}, message_id="m1")
    assert error_of(fate) == ("cancelled", "somebody asked for it to be given up before it was taken")
    other = edge.ask("scale", {"x": ROW}, message_id="m2")
    edge.run()
    assert outputs_of(other) == RIGHT
    assert rows_run(edge) == 1
    nothing_is_left(edge)


def test_what_is_noted_is_bounded(edge):
    for number in range(10_001):
        assert edge.service.cancel(f"m{number}") == "noted"
    fates = [edge.ask("scale", {"x": ROW}, message_id=f"m{number}") for number in (0, 1, 10_000)]
    edge.run()
    assert outputs_of(fates[0]) == RIGHT
    assert [error_of(fate)[0] for fate in fates[1:]] == ["cancelled"] * 2


def test_one_without_an_id_cannot_be_meant(edge):
    fate = edge.ask("scale", {"x": ROW}, message_id=None)
    edge.service.cancel("")
    edge.run()
    assert outputs_of(fate) == RIGHT
    fate = edge.ask("scale", {"x": ROW}, message_id="")
    edge.run()
    assert outputs_of(fate) == RIGHT


def test_a_pipeline_that_is_given_up_between_two_calls(make):
    edge = make(pool="threads")
    fate = edge.ask("twice", {"x": ROW}, message_id="m1")
    while not edge.world.tasks:
        edge.news.get(timeout=10)()
    assert edge.service.cancel("m1") == "cancelled"
    edge.run()
    assert error_of(fate)[0] == "cancelled"
    assert seen(edge) == [1.0]
    nothing_is_left(edge)
