"""What a reply by reference has written goes when nobody can have it: not sent, sent back, or nobody there to hear."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from rankmq.engine.confirms import Outcome
from rankmq.schemas.tensors import from_array

from .edge import error_of, only
from .test_service_blobs import LARGE, SPEAKS, Store, build


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


@pytest.mark.parametrize("outcome", [Outcome.LOST, Outcome.RETURNED, Outcome.REJECTED])
def test_what_a_reply_brings_goes_with_it_where_the_broker_does_not_have_it(store, outcome):
    store.edge.outcomes.append(outcome)
    store.ask("double_it", {"x": from_array(LARGE)}, headers=SPEAKS)
    store.edge.run()
    assert len(store.names) == 1
    assert set(store.discarded) == (set() if outcome is Outcome.LOST else store.names)  # it may have come all the same


def test_what_a_reply_brings_goes_with_it_where_nobody_hears_it(store):
    store.edge.deaf.add("gone")
    fate = store.ask("double_it", {"x": from_array(LARGE)}, headers=SPEAKS, reply_to="gone")
    store.edge.run()
    assert (fate.acked, len(fate.dead)) == (1, 0)
    assert len(store.names) == 1
    assert set(store.discarded) == store.names


def test_of_those_who_ask_for_the_same_only_who_is_gone_gets_nothing(slow):
    x = {"x": from_array(LARGE)}
    slow.edge.deaf.add("gone")
    slow.ask("double_it", x, headers=SPEAKS, message_id="m1", reply_to="gone")
    slow.edge.run()
    fate = slow.ask("double_it", x, headers=SPEAKS, message_id="m1", reply_to="here")
    while slow.work:
        work, done = slow.work.pop(0)
        done(work())
        slow.edge.run()
    np.testing.assert_array_equal(slow.read(fate)[0]["y"], LARGE * 2)
    assert slow.names == set(slow.discarded)
    assert len(slow.names) == 1
    only(slow.edge)


def test_a_request_that_is_given_up_while_it_is_asked_who_hears_it(slow):
    fate = slow.ask("double_it", {"x": from_array(LARGE)}, headers=SPEAKS, message_id="m1")
    slow.edge.run()
    ((work, done),) = slow.work
    done(work())
    assert slow.edge.asked == ["answers"]
    assert slow.edge.service.cancel("m1") == "cancelled"
    slow.edge.run()
    assert error_of(fate)[0] == "cancelled"
    assert set(slow.discarded) == slow.names
    assert len(slow.names) == 1


def test_nobody_is_asked_for_a_reply_without_blobs(store):
    store.ask("double_it", {"x": from_array(LARGE)})
    store.edge.run()
    assert store.edge.asked == []


@pytest.mark.parametrize(("letters", "is_written"), [(40_000, False), (34_810, True)])
def test_a_reply_that_is_too_large_without_its_large_outputs_leaves_nothing(store, letters, is_written):
    """It is known by the text, or else when all that is around it has been added."""
    rows = [{"a": from_array(LARGE), "b": "x" * letters}] * 30
    fate = store.ask("same", *rows, headers=SPEAKS)
    store.edge.run()
    assert error_of(fate)[0] == "limit_exceeded"
    assert "bytes without its large outputs: the broker takes 1048576" in error_of(fate)[1]
    assert bool(store.names) is is_written
    assert set(store.discarded) == store.names
