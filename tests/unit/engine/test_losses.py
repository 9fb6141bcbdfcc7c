"""Given the rows of a step under which an epoch ended, when they are sorted, then no row pays for others."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rankmq.engine.batch import Batch, PendingCall
from rankmq.engine.batcher import Batcher
from rankmq.engine.losses import losses_of, session_lost, ticket_of
from rankmq.engine.slots import Session
from rankmq.engine.ticket import Ticket
from rankmq.schemas.errors import InternalError, SessionLost


def calls_of(*rows, refused=0):
    """Tickets of so many good rows, whose first row was refused where `refused`; in one batch."""
    batcher = Batcher({0: 1000})
    tickets = []
    for count in rows:
        all_rows = [(np.zeros(1),)] * (count + refused)
        ticket = Ticket(0, all_rows, lenient=False, requests=("r",), done=lambda _: None)
        ticket.places = list(range(refused, count + refused))
        ticket.pending = PendingCall(0, all_rows[refused:], owner=ticket)
        batcher.add(ticket.pending)
        tickets.append(ticket)
    return tickets, batcher.take()


def owners(batches):
    return [[(call.owner, index) for call, index in batch.owners] for batch in batches]


def test_the_first_time_they_go_on_together_and_apart_from_others():
    (one, two), batch = calls_of(2, 1)
    losses = losses_of(batch, 3)
    assert owners(losses.again) == [[(one, 0), (one, 1), (two, 0)]]
    assert losses.again[0].apart is not None
    assert losses.exhausted == []
    assert (one.voids, two.voids) == ({0: 1, 1: 1}, {0: 1})


def test_before_the_last_time_each_goes_alone():
    (one, two), batch = calls_of(2, 1)
    (again,) = losses_of(batch, 3).again
    losses = losses_of(again, 3)
    assert owners(losses.again) == [[(one, 0)], [(one, 1)], [(two, 0)]]
    assert {it.apart for it in losses.again} == {again.apart}
    assert losses.exhausted == []


def test_the_last_time_it_was_lost_it_is_over():
    (one,), batch = calls_of(1, refused=2)
    for _ in range(2):
        (batch,) = losses_of(batch, 3).again
    losses = losses_of(batch, 3)
    assert losses.again == []
    assert losses.exhausted == [(one, 2, 3)]  # its place among all rows of the call


def test_one_that_was_lost_before_has_those_beside_it_go_alone():
    """They must not lose their attempts to it."""
    (bad,), batch = calls_of(1)
    losses_of(batch, 3)
    (good,), other = calls_of(2)
    losses = losses_of(Batch(0, (*batch.owners, *other.owners)), 3)
    assert owners(losses.again) == [[(bad, 0)], [(good, 0)], [(good, 1)]]


@pytest.mark.parametrize("most", [1, 2])
def test_with_few_attempts(most):
    (one,), batch = calls_of(2)
    losses = losses_of(batch, most)
    if most == 1:
        assert losses.again == []
        assert losses.exhausted == [(one, 0, 1), (one, 1, 1)]
    else:
        assert owners(losses.again) == [[(one, 0)], [(one, 1)]]


@given(rows=st.lists(st.integers(1, 4), min_size=1, max_size=5), most=st.integers(1, 5))
def test_every_row_goes_on_or_is_over_and_none_is_lost_more_often_than_allowed(rows, most):
    tickets, batch = calls_of(*rows)
    waiting, over, lost = [batch], [], 0
    while waiting:
        taken = waiting.pop(0)
        lost += 1
        assert lost <= sum(rows) * most
        losses = losses_of(taken, most)
        put_back = [owner for it in losses.again for owner in it.owners]
        ended = {(ticket, place) for ticket, place, _ in losses.exhausted}
        assert len(put_back) + len(ended) == len(taken)
        assert all(count == most for *_, count in losses.exhausted)
        over += ended
        waiting += losses.again
    assert sorted(map(str, over)) == sorted(str((it, place)) for it in tickets for place in it.places)


def test_what_a_lost_session_is_told():
    error = session_lost(Session(3, 17))
    assert isinstance(error, SessionLost)
    assert "when epoch 17 ended" in error.message


def test_a_call_of_nobody_is_a_defect():
    with pytest.raises(InternalError):
        ticket_of(PendingCall(0, [(np.zeros(1),)], owner="somebody"))
