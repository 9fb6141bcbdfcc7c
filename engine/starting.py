"""How a request begins: its inputs are looked up and read, then its instances run, by themselves or in one go."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from ..schemas import plain
from ..schemas.errors import RankmqError, SessionLost
from ..schemas.limits import Limits
from ..schemas.messages import Request
from . import retry
from .calls import Calls
from .edge_blobs import EdgeBlobs, Fetched, look_up
from .functions import run_pipeline
from .instances import arguments_of
from .open_request import OpenRequest, contained
from .parts import InstanceParts, Parts
from .run_ports import RunContext
from .runs import MethodRun
from .servable import Method, Pipeline, Servable, SubgraphStage
from .service_ports import ServicePorts
from .sessions import InstanceSessions
from .stage_processes import StageProcesses
from .thread_caller import ThreadCaller
from .ticket import Done, RowResult
from .waits import Waits

__all__ = ["Starting"]


class Starting:
    """Starts requests.

    Args:
        calls: how methods reach the ranks and other methods.
        ports: how it reaches the world.
        settle: called once for each instance of a request, by its index, with its result.
        weigh: called once with each result that is there before all are, if any are (see `OpenRequest.weighed`).
        waits: of the threads on which a servable's Python waits for the ranks.
        limits: the bounds on a request.
        max_attempts: how often a request is tried.
        max_message: largest message that the broker takes, in bytes.
        most_step: bytes that a row may bring the ranks of any group, all of them together.
        blobs: for inputs by reference; None where there is no blob store.
        processes: for functions of methods; None: they run on threads.
    """

    def __init__(
        self,
        calls: Calls,
        ports: ServicePorts,
        settle: Callable[[OpenRequest, int, RowResult], None],
        weigh: Callable[[OpenRequest, tuple[Any, ...]], object],
        waits: Waits,
        *,
        limits: Limits,
        max_attempts: int,
        max_message: int,
        most_step: int,
        blobs: EdgeBlobs | None,
        processes: StageProcesses | None,
    ) -> None:
        self._calls = calls
        self._ports = ports
        self._settle = settle
        self._weigh = weigh
        self._waits = waits
        self._limits = limits
        self._max_attempts = max_attempts
        self._max_message = max_message
        self._blobs = blobs
        # More could not be answered with as it is, and is in the memory of all until a row is done.
        self._most_collected = max(max_message, 0 if blobs is None else blobs.most_bytes)
        self._most_given = max(self._most_collected, most_step)
        self._processes = processes

    def start(
        self, open_: OpenRequest, request: Request, servable: Servable, entry: Method | Pipeline, lane: str
    ) -> None:
        """Starts a request, once the inputs that are there by reference have been read.

        Raises:
            LimitExceeded: it refers to more bytes than any request may.
        """
        begin = partial(self._begin, open_, request, servable, entry, lane)
        look_up(self._blobs, open_, request.instances, begin)

    def _begin(
        self,
        open_: OpenRequest,
        request: Request,
        servable: Servable,
        entry: Method | Pipeline,
        lane: str,
        instances: Fetched,
    ) -> None:
        lenient = any(plain.is_untyped(value) for instance in request.instances for value in instance.values())
        context = open_.context = RunContext(
            servable,
            open_.id,
            lenient,
            lane=lane,
            life=open_.life,
            waits=self._waits,
            max_attempts=self._max_attempts,
            processes=self._processes,
            most_collected=self._most_collected,
            most_given=self._most_given,
        )
        open_.output_names = entry.output_names
        open_.results = [None] * len(request.instances)
        open_.left = len(request.instances)
        rows: list[tuple[int, tuple[Any, ...]]] = []
        refused: list[tuple[int, RankmqError]] = []
        for index, instance in enumerate(instances):
            row: tuple[Any, ...] | RankmqError
            if isinstance(instance, RankmqError):
                row = instance
            else:
                row = contained(open_, partial(arguments_of, instance, entry.input_names, self._limits))
            if isinstance(row, RankmqError):
                refused.append((index, row))
            else:
                rows.append((index, row))
        for index, refusal in refused:
            self._settle(open_, index, refusal)
        parts: dict[int, InstanceParts] = {}
        if request.stream and open_.reply_to:
            parts = Parts(open_, self._ports, self._max_message).instances(index for index, _ in rows)
        if isinstance(entry, Method) and not servable.slots:
            if rows:
                places = [index for index, _ in rows]
                if parts:
                    context = replace(context, parts=tuple(it.begin() for it in parts.values()))
                open_.weighed = bool(entry.stages) and isinstance(entry.stages[-1], SubgraphStage)
                came = partial(self._weigh, open_)
                done = self._settler(open_, places)
                MethodRun(self._calls, context, entry, [row for _, row in rows], done, came).start()
            return
        for index, row in rows:
            self._run(open_, context, entry, index, row, parts.get(index))

    def _run(
        self,
        open_: OpenRequest,
        context: RunContext,
        entry: Method | Pipeline,
        index: int,
        row: tuple[Any, ...],
        parts: InstanceParts | None,
        attempt: int = 1,
    ) -> None:
        """Runs one instance by itself; where that fails for a reason that passes, once more from its inputs."""
        if context.life.over is not None:
            self._settle(open_, index, context.life.over)
            return
        sessions = InstanceSessions()
        senders = () if parts is None else (parts.begin(),)
        own = replace(context, sessions=sessions, alone=1 < attempt == self._max_attempts, parts=senders)

        def ran(result: RowResult) -> None:
            blameless = isinstance(result, SessionLost) and not sessions.suspect
            sessions.release()
            pause = retry.pause_before(result, attempt) if isinstance(result, RankmqError) else None
            following = attempt if blameless else attempt + 1
            if not isinstance(result, RankmqError) or pause is None or context.life.over is not None:
                self._settle(open_, index, result)
            elif following > self._max_attempts:
                self._settle(open_, index, retry.given_up(result, attempt))
            else:
                again = partial(self._run, open_, context, entry, index, row, parts, following)
                self._ports.later(pause, again) if pause else again()

        if isinstance(entry, Method):
            MethodRun(self._calls, own, entry, [row], lambda results: ran(results[0])).start()
        else:
            caller = ThreadCaller(self._calls, own)
            kind = f"{own.servable.name}.{entry.name}"
            self._ports.in_pipeline_pool(
                kind, lambda: own.life.over or run_pipeline(entry, row, caller, own.most_given), ran
            )

    def _settler(self, open_: OpenRequest, places: Sequence[int]) -> Done:
        def done(results: list[RowResult]) -> None:
            for place, result in zip(places, results, strict=True):
                self._settle(open_, place, result)

        return done
