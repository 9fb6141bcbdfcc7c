"""Given a request that is under way, when it is asked again, then what waits for its outcome holds up nobody else."""

from __future__ import annotations

import pytest
from rankmq.engine.confirms import Outcome
from rankmq.engine.followers import MOST_FOLLOWERS

from tests.unit.engine.edge import MODEL, ROW, SERVED, Edge, error_of, only, outputs_of
from tests.unit.engine.simulation import steps

RIGHT = [{"y": [3, 5, 7]}]


@pytest.fixture
def make(tmp_path):
    edges = []

    def make(**given):
        edge = Edge(tmp_path, {"matmul": MODEL + SERVED}, **given)
        edges.append(edge)
        return edge

    yield make
    for edge in edges:
        assert edge.ended == len([fate for fate in edge.fates.values() if fate.ends])
        edge.close()


@pytest.fixture
def edge(make):
    return make()


def ask(edge, reply_to="answers", question="c1", seconds=None, row=ROW, **given):
    headers = {} if seconds is None else {"rankmq-deadline": int((edge.wall() + seconds) * 1000)}
    return edge.ask(
        "scale", {"x": row}, message_id="m1", reply_to=reply_to, correlation_id=question, headers=headers, **given
    )


def quiet(fate):
    return (fate.acked, fate.replies, fate.dead) == (1, [], [])


def passes(edge, seconds):
    edge.world.clock.now += seconds
    edge.service.tick()


# ------------------------------------------------------------------------------------------------------------- copies


def test_a_mere_copy_is_kept_by_nobody(edge):
    """It would take one of the places that the broker gives the orchestrator for everybody's requests."""
    first = ask(edge)
    copies = [ask(edge, redelivered=again) for again in (False, True) * 50]
    assert all(map(quiet, copies))
    assert edge.service.in_flight == 1
    assert first.ends == 0  # the broker has this one until it is answered
    edge.run()
    assert outputs_of(first) == RIGHT
    assert (edge.service.served, edge.service.failed) == (1, 0)
    only(edge)


def test_a_copy_of_one_that_joined_is_kept_by_nobody(edge):
    first, second = ask(edge), ask(edge, "b")
    assert all(map(quiet, [ask(edge, "b") for _ in range(3)]))
    assert edge.service.in_flight == 2
    edge.run()
    assert outputs_of(first) == outputs_of(second) == RIGHT
    only(edge)


def test_one_whom_nobody_hears_is_kept_by_nobody(edge):
    first = ask(edge)
    assert quiet(ask(edge, None))
    assert edge.service.in_flight == 1
    edge.run()
    assert outputs_of(first) == RIGHT
    only(edge)


def test_when_the_first_goes_back_so_does_the_question_and_those_who_asked_from_elsewhere(make):
    edge = make(max_in_flight=1)
    running = edge.ask("scale", {"x": ROW}, message_id="m0")
    first, copy, other = ask(edge), ask(edge), ask(edge, "b")
    assert edge.service.hand_back_waiting() == 2
    assert (first.handed_back, copy.handed_back, other.handed_back) == (1, 0, 1)
    assert quiet(copy)
    edge.run()
    assert outputs_of(running) == RIGHT
    again = ask(edge, redelivered=True)
    edge.run()
    assert outputs_of(again) == RIGHT
    only(edge)


def test_a_copy_of_other_inputs_is_no_copy(edge):
    first, other = ask(edge), ask(edge, row=ROW + 1)
    assert error_of(other)[0] == "request_id_reused"
    edge.run()
    assert outputs_of(first) == RIGHT
    only(edge)


# ------------------------------------------------------------------------------------------------- their own deadlines


def test_one_whose_time_is_up_leaves_and_the_first_goes_on(edge):
    first, hasty, patient = ask(edge), ask(edge, "b", seconds=1), ask(edge, "c", seconds=60)
    passes(edge, 2)
    assert error_of(hasty) == ("deadline_exceeded", "its deadline passed before it was done")
    assert edge.service.in_flight == 2
    edge.run()
    assert outputs_of(first) == outputs_of(patient) == RIGHT
    assert [record.reply_to for record in edge.records] == ["answers", "c"]
    only(edge)


def test_one_whose_time_was_up_when_it_came_is_told_so(edge):
    first, late = ask(edge), ask(edge, "b", seconds=-1)
    assert error_of(late)[0] == "deadline_exceeded"
    edge.run()
    assert outputs_of(first) == RIGHT
    only(edge)


def test_one_whose_deadline_is_none_is_told_so(edge):
    first = ask(edge)
    odd = edge.ask("scale", {"x": ROW}, message_id="m1", reply_to="b", headers={"rankmq-deadline": "soon"})
    assert error_of(odd)[0] == "invalid_input"
    edge.run()
    assert outputs_of(first) == RIGHT
    only(edge)


@pytest.mark.parametrize("meanwhile", [True, False])
def test_who_has_left_may_ask_again_and_gets_the_answer(edge, meanwhile):
    """That its time was up is no answer to the request, which would then have been sent there."""
    ask(edge)
    ask(edge, "b", seconds=1)
    passes(edge, 2)
    if not meanwhile:
        edge.run()
    again = ask(edge, "b")
    edge.run()
    assert outputs_of(again) == RIGHT
    assert sum(steps(edge.world).values()) == 1
    only(edge)


def test_when_the_time_of_the_first_is_up_all_share_that(edge):
    first, other = ask(edge, seconds=1), ask(edge, "b", seconds=60)
    passes(edge, 2)
    assert error_of(first)[0] == error_of(other)[0] == "deadline_exceeded"
    edge.run()
    only(edge)


def test_a_cancel_reaches_all(edge):
    fates = [ask(edge, queue) for queue in "abc"]
    assert edge.service.cancel("m1") == "cancelled"
    assert {error_of(fate)[0] for fate in fates} == {"cancelled"}
    only(edge)


# --------------------------------------------------------------------------------------------------------- their bound


def test_who_asked_first_makes_room_for_who_asks_last(edge):
    """As one whose connection is lost time and again does, and is there in the latest only."""
    first = ask(edge)
    others = [ask(edge, f"q{number}") for number in range(MOST_FOLLOWERS + 3)]
    assert edge.service.in_flight == 1 + MOST_FOLLOWERS
    assert [bool(fate.replies) for fate in others] == [True] * 3 + [False] * MOST_FOLLOWERS
    assert {error_of(fate)[0] for fate in others[:3]} == {"temporary_failure"}
    edge.run()
    assert [outputs_of(fate) for fate in (first, *others[3:])] == [RIGHT] * (1 + MOST_FOLLOWERS)
    only(edge)


def test_who_made_room_may_ask_again(edge):
    ask(edge)
    for number in range(MOST_FOLLOWERS + 1):
        ask(edge, f"q{number}")
    edge.run()
    again = ask(edge, "q0")
    assert outputs_of(again) == RIGHT
    assert sum(steps(edge.world).values()) == 1
    only(edge)


def test_an_answer_on_its_way_is_not_taken_from_one_whose_time_is_up(edge):
    edge.hold = True
    first, hasty = ask(edge), ask(edge, "b", seconds=1)
    edge.run()
    passes(edge, 2)
    edge.hold = False
    while edge.held:
        edge.answer(*edge.held.popleft(), Outcome.CONFIRMED)
    assert outputs_of(first) == outputs_of(hasty) == RIGHT
    assert [record.reply_to for record in edge.records] == ["answers", "b"]
    only(edge)
