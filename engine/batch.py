"""Rows of calls, as they wait for a step and as they run in one."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from .loop_plan import LoopPlan

__all__ = ["Age", "Apart", "Batch", "Owner", "PendingCall", "Row", "age"]

Row: TypeAlias = "tuple[np.ndarray[Any, Any], ...]"


@dataclass(eq=False, slots=True)
class PendingCall:
    """A call of one subgraph over one or more rows, as it waits for its steps.

    Attributes:
        subgraph: its number.
        rows: the inputs of each row.
        keys: per row, what it must have in common with a row to share a step; none: any two rows may.
        owner: whatever the caller wants to find again.
        requests: the ids of the requests that it is part of.
        head_start: how many calls that came before it it may overtake.
        loop: the subgraph is run again and again; then each row has a key.
        turns: per row, how many turns of the loop it runs at most.
        waits_until: until when its rows wait for others to fill a step, in seconds of a clock that does not jump; 0:
            they do not.
        cancelled: set by `Batcher.cancel`; its rows come out no more.
    """

    subgraph: int
    rows: Sequence[Row]
    keys: Sequence[Hashable] = ()
    owner: Hashable = None
    requests: tuple[str, ...] = ()
    head_start: int = 0
    loop: LoopPlan | None = None
    turns: Sequence[int] = ()
    waits_until: float = 0.0
    cancelled: bool = field(default=False, init=False)
    number: int = field(default=-1, init=False)

    def __post_init__(self) -> None:
        if not self.rows:
            raise ValueError("a call needs at least one row")
        if self.keys and len(self.keys) != len(self.rows):
            raise ValueError(f"{len(self.keys)} batch keys for {len(self.rows)} rows")


Owner: TypeAlias = tuple[PendingCall, int]
Age: TypeAlias = tuple[int, int, int]


def age(owner: Owner) -> Age:
    """A row's place in line: by arrival, less the head start of its call."""
    call, index = owner
    return call.number - call.head_start, call.number, index


@dataclass(eq=False, slots=True)
class Apart:
    """What rows have in common that failed together, while it is searched for those to blame.

    A part that fails is halved, which finds one bad row among n in about 2 log n steps. Where nearly all are bad, that
    would be nearly 2 n. So from the second on, after each that is found the next row is tried by itself, and what runs
    lets the next part be twice as large.

    Attributes:
        age: their place in line: that of the oldest row of the batch.
        rows: how many rows the batch had.
        most: how many of them a step may have.
        found: how many of them have failed by themselves.
    """

    age: Age
    rows: int
    most: int = field(init=False)
    found: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.most = self.rows

    def ran(self) -> None:
        """A step of some of them has run."""
        self.most = min(2 * self.most, self.rows)

    def failed_alone(self) -> None:
        """One of them has failed by itself."""
        self.found += 1
        if self.found > 1:
            self.most = 1


@dataclass(frozen=True, eq=False, slots=True)
class Batch:
    """Rows of one subgraph that run as one step.

    Attributes:
        subgraph: its number.
        owners: per row the call that it is part of and its index there, oldest first.
        apart: set where these rows failed together with others and are not mixed with any until it is known which row
            it was: the same for all rows of the first batch that failed.
    """

    subgraph: int
    owners: tuple[Owner, ...]
    apart: Apart | None = None

    @property
    def rows(self) -> list[Row]:
        """The inputs of each row."""
        return [call.rows[index] for call, index in self.owners]

    @property
    def key(self) -> Hashable:
        """What its rows have in common with those that might have shared the step."""
        call, index = self.owners[0]
        return call.keys[index] if call.keys else None

    @property
    def loop(self) -> LoopPlan | None:
        """The loop that they all are in."""
        return self.owners[0][0].loop

    @property
    def turns(self) -> tuple[int, ...]:
        """Per row, how many turns of the loop it runs at most; none where there is no loop."""
        return tuple(call.turns[index] for call, index in self.owners) if self.loop is not None else ()

    @property
    def requests(self) -> tuple[str, ...]:
        """The ids of the requests that it serves, each once."""
        return tuple(dict.fromkeys(request for call, _ in self.owners for request in call.requests))

    def __len__(self) -> int:
        return len(self.owners)
