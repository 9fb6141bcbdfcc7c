"""From a call's rows, as they were given, to rows that can wait for a step: checked against the graph's plan."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import numpy as np

from ..schemas.errors import RankmqError
from ..schemas.tensors import numpy_dtype
from .batch import PendingCall, Row
from .loop_plan import LoopPlan
from .plan import SubgraphPlan
from .slots import Session
from .ticket import Ticket

__all__ = ["pending_call", "refusal"]

_HEAD_STARTS = {"high": 4096, "normal": 512}
"""How many calls that came before it a call of a lane may overtake: a bound, so that none is starved."""


_ANY = Session(slot=0, epoch=0)


def pending_call(ticket: Ticket, plan: SubgraphPlan, loop: LoopPlan | None = None) -> PendingCall | None:
    """What is to wait in the batcher; a row that does not fit the graph is settled with its error.

    Args:
        ticket: the call.
        plan: of the subgraph's first stage.
        loop: of the call, if it is one.

    Returns:
        The rows that fit; None where there is none.
    """
    good: list[Row] = []
    for place, row in enumerate(ticket.rows):
        try:
            checked = plan.check_row(_arguments(plan, row, ticket.session), lenient=ticket.lenient)
            if loop is not None and ticket.turns[place] < 1:
                ticket.settle(place, loop.without_turns(plan, row))
                continue
        except RankmqError as error:
            ticket.settle(place, error)
        else:
            good.append(checked)
            ticket.places.append(place)
    if not good:
        return None
    keys: list[Hashable] = [plan.batch_key(row) for row in good]
    if loop is not None:  # however many turns each has: those that are done leave the others
        keys = [(loop, key) for key in keys]
    if ticket.alone:
        keys = [(ticket, place) for place in range(len(good))]
    head_start, turns = _HEAD_STARTS.get(ticket.lane, 0), [ticket.turns[place] for place in ticket.places if loop]
    return PendingCall(ticket.subgraph, good, keys, ticket, ticket.requests, head_start, loop, turns)


def refusal(plan: SubgraphPlan, row: tuple[Any, ...], *, lenient: bool) -> RankmqError | None:
    """What a row of an instance that has no slot yet would fail with, without getting to the ranks; None if nothing.

    Args:
        plan: of the subgraph's first stage.
        row: the inputs as they were given.
        lenient: whether values may be converted to the graph's dtypes.
    """
    try:
        plan.check_row(_arguments(plan, row, _ANY), lenient=lenient)
    except RankmqError as error:
        return error
    return None


def _arguments(plan: SubgraphPlan, row: tuple[Any, ...], session: Session | None) -> list[np.ndarray[Any, Any]]:
    """A row's arrays; where the graph has an input named `slot`, the session's slot is put in its place."""
    arrays = [np.asarray(value) for value in row]
    if session is not None:
        place = plan.slot_input
        if place is not None:
            arrays.insert(place, np.asarray(session.slot, numpy_dtype(plan.inputs[place].spec.dtype)))
    return arrays
