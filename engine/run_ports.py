"""What the runs of a request share, and how they reach the engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from .life import Life
from .parts import PartSender
from .servable import RepeatStage, Servable
from .sessions import InstanceSessions
from .stage_processes import StageProcesses
from .ticket import Came, Done
from .topology import DEFAULT_LANE
from .waits import Waits

__all__ = ["RunContext", "RunPorts", "Tally"]

_T = TypeVar("_T")


@dataclass(slots=True)
class Tally:
    """What a request took of the ranks.

    Attributes:
        calls: subgraph calls.
        seconds: waiting for them, summed over the calls.
        for_slots: instances that wait for a slot now.
        slot_at: when the first of them was given one, on the monotonic clock; None before that.
    """

    calls: int = 0
    seconds: float = 0.0
    for_slots: int = 0
    slot_at: float | None = None


@dataclass(frozen=True, slots=True)
class RunContext:
    """What the runs of one request share.

    Attributes:
        servable: whose method or pipeline runs.
        request: the request's id.
        lenient: whether values may be converted to the graphs' dtypes.
        tally: kept over all its runs.
        waits: of the threads that its Python runs on.
        sessions: what the instance that runs holds on the ranks; None where rows of several instances run together.
        lane: by which it came.
        life: whether it is still wanted.
        max_attempts: how often what fails for a reason that passes is tried.
        alone: its calls share no step with others': ranks were lost under it more than once.
        processes: for functions of methods; None: they run on threads.
        most_collected: bytes that a loop may collect for a row; None: any number.
    most_given: bytes that the servable's Python may give for a row, as a result or to a call; None: any number.
        came: told of what each row of a call gave, as it comes; None where nobody asks.
        parts: per row that runs, where parts of its answer go; none where nobody asked for them.
    """

    servable: Servable
    request: str
    lenient: bool
    tally: Tally = field(default_factory=Tally)
    waits: Waits = field(default_factory=Waits)
    sessions: InstanceSessions | None = None
    lane: str = DEFAULT_LANE
    life: Life = field(default_factory=Life)
    max_attempts: int = 1
    alone: bool = False
    processes: StageProcesses | None = None
    most_collected: int | None = None
    most_given: int | None = None
    came: Came | None = None
    parts: tuple[PartSender, ...] = ()


class RunPorts(Protocol):
    """How a run reaches the engine. All but `on_loop` are called on the loop."""

    def call_subgraph(self, context: RunContext, subgraph: int, rows: Sequence[tuple[Any, ...]], done: Done) -> None:
        """Runs a subgraph of the context's servable over rows."""

    def repeat_subgraph(
        self,
        context: RunContext,
        stage: RepeatStage,
        rows: Sequence[tuple[Any, ...]],
        turns: Sequence[int],
        done: Done,
    ) -> None:
        """Runs a slice of a loop over rows, of each as many turns at most; `done` gets them packed (see `Turned`)."""

    def call_method(
        self,
        context: RunContext,
        servable: str,
        version: int,
        method: str,
        row: tuple[Any, ...],
        done: Done,
        *,
        ports: RunPorts,
    ) -> None:
        """Runs a method of any servable on one row, by means of `ports`."""

    def in_pool(self, work: Callable[[], _T], done: Callable[[_T], None]) -> None:
        """Runs `work` on a thread, then `done` with its result on the loop."""

    def later(self, seconds: float, work: Callable[[], None]) -> None:
        """Runs `work` on the loop, so many seconds from now."""

    def on_loop(self, work: Callable[[], None]) -> None:
        """Runs `work` on the loop; may be called from any thread."""
