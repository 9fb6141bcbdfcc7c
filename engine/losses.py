"""What becomes of the rows of a step that was under way when its epoch ended. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..schemas.errors import InternalError, SessionLost
from .batch import Apart, Batch, Owner, PendingCall, age
from .slots import Session
from .ticket import Ticket

__all__ = ["Losses", "given_of", "losses_of", "session_lost", "ticket_of"]


@dataclass(frozen=True, slots=True)
class Losses:
    """How the rows of a batch go on.

    Attributes:
        again: batches to be put back.
        exhausted: rows that have no attempt left: their ticket, their place in it, and how often they were lost.
    """

    again: list[Batch] = field(default_factory=list)
    exhausted: list[tuple[Ticket, int, int]] = field(default_factory=list)


def losses_of(batch: Batch, max_attempts: int) -> Losses:
    """Sorts the rows under which an epoch was lost. They may be why, so they run by themselves from now on.

    Where a last attempt is left, each runs alone, so that a row that takes ranks down does not exhaust the attempts of
    others.

    Args:
        batch: the rows of the step.
        max_attempts: how many epochs may be lost under a row.
    """
    losses = Losses()
    again: list[Owner] = []
    singly = False
    for call, index in batch.owners:
        ticket = ticket_of(call)
        place = ticket.places[index]
        lost = ticket.voids[place] = ticket.voids.get(place, 0) + 1
        if lost >= max_attempts:
            losses.exhausted.append((ticket, place, lost))
        else:
            again.append((call, index))
            singly = singly or lost == max_attempts - 1
    apart = batch.apart or Apart(age(batch.owners[0]), len(batch))
    for owners in [[owner] for owner in again] if singly else [again] if again else []:
        losses.again.append(Batch(batch.subgraph, tuple(owners), apart))
    return losses


def session_lost(session: Session | None) -> SessionLost:
    """The error of a call whose session ended with its epoch."""
    epoch = session.epoch if session is not None else 0
    return SessionLost(f"the ranks lost what they held for it when epoch {epoch} ended")


def given_of(batch: Batch) -> list[tuple[Any, ...]]:
    """The rows of a batch as they were given to their calls."""
    found = []
    for call, index in batch.owners:
        ticket = ticket_of(call)
        found.append(ticket.rows[ticket.places[index]])
    return found


def ticket_of(call: PendingCall) -> Ticket:
    """The ticket that a call in the batcher stands for."""
    if not isinstance(call.owner, Ticket):
        raise InternalError(f"a call without its ticket: {call.owner!r}")
    return call.owner
