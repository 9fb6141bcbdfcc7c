"""The edge of the engine: a delivery from the requests queue in, a terminal outcome out.

Each request ends in exactly one of three ways: its reply is confirmed by the broker, or it is in the dead-letter queue,
and then its delivery is acknowledged; or the broker has it back. No I/O of its own.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from ..schemas import codec, plain
from ..schemas.errors import (
    AttemptsExhausted,
    GroupUnavailable,
    InvalidInput,
    LimitExceeded,
    RankmqError,
    ReplyUnroutable,
    SessionLost,
    StageFailed,
    Undecodable,
)
from ..schemas.limits import Limits
from ..schemas.messages import ErrorInfo, InstanceError, Reply, Request, Stats
from .catalog import Catalog
from .confirms import Outcome
from .delivery import Delivery
from .driver import GroupDriver
from .instances import arguments_of, named_outputs
from .runs import MethodRun, RunContext, RunPorts, ThreadCaller, run_pipeline
from .servable import Method, Pipeline, Servable
from .sessions import InstanceSessions
from .slots import Session
from .ticket import Done, RowResult
from .waits import Waits

__all__ = ["Service", "ServicePorts"]

log = logging.getLogger(__name__)

_REPLY_OVERHEAD = 4096


class ServicePorts(Protocol):
    """How the service reaches the world. All but `on_loop` are called on the loop."""

    def reply(self, delivery: Delivery, body: bytes, content_type: str, then: Callable[[Outcome], None]) -> None:
        """Publishes the reply to a request; `then` is called with what became of it."""

    def dead_letter(self, delivery: Delivery, headers: Mapping[str, Any], then: Callable[[Outcome], None]) -> None:
        """Publishes the request itself to the dead-letter exchange, with further headers."""

    def ack(self, delivery: Delivery) -> None:
        """Acknowledges the delivery."""

    def hand_back(self, delivery: Delivery) -> None:
        """Gives the delivery back to its queue."""

    def request_ended(self) -> None:
        """A request has its terminal outcome, or the broker has it back."""

    def in_pool(self, work: Callable[[], Any], done: Callable[[Any], None]) -> None:
        """Runs `work` on a thread for the functions of methods, then `done` with its result on the loop."""

    def in_pipeline_pool(self, work: Callable[[], Any], done: Callable[[Any], None]) -> None:
        """The same on a thread for pipelines."""

    def on_loop(self, work: Callable[[], None]) -> None:
        """Runs `work` on the loop; may be called from any thread."""


@dataclass(eq=False, slots=True)
class _Open:
    """A request that was taken and has no terminal outcome yet."""

    delivery: Delivery
    id: str
    content_type: str
    began: float
    context: RunContext | None = None
    results: list[RowResult | None] = field(default_factory=list)
    output_names: tuple[str, ...] = ()
    left: int = 0

    @property
    def reply_to(self) -> str:
        """The queue for the answer; "" where nobody can be told."""
        name = self.delivery.properties.reply_to
        return name if isinstance(name, str) else ""


class Service(RunPorts):
    """Takes requests, runs their methods and pipelines, answers them.

    Args:
        catalog: what is served.
        drivers: by servable name and version; a servable without models has none.
        ports: how it reaches the world.
        clock: seconds, monotonic.
        limits: the bounds on a request.
        max_attempts: how often a request may be delivered.
        max_message: largest message that the broker takes, in bytes.
    """

    def __init__(
        self,
        catalog: Catalog,
        drivers: Mapping[tuple[str, int], GroupDriver],
        ports: ServicePorts,
        clock: Callable[[], float],
        *,
        limits: Limits,
        max_attempts: int,
        max_message: int,
    ) -> None:
        self._catalog = catalog
        self._drivers = drivers
        self._ports = ports
        self._clock = clock
        self._limits = limits
        self._max_attempts = max_attempts
        self._max_message = max_message
        self._waits = Waits()
        self._open: dict[_Open, None] = {}
        self.served = 0
        self.failed = 0

    @property
    def in_flight(self) -> int:
        """Requests taken and not yet ended."""
        return len(self._open)

    # ---------------------------------------------------------------------------------------------- taking a request

    def receive(self, delivery: Delivery) -> None:
        """Takes a request; whatever is wrong with it is answered, never raised."""
        properties = delivery.properties
        request_id = properties.message_id or properties.correlation_id or uuid.uuid4().hex
        open_ = _Open(delivery, _readable(request_id), codec.MSGPACK, self._clock())
        self._open[open_] = None
        try:
            _check_text(properties)
            open_.content_type = codec.content_type_of(properties.content_type, delivery.body)
            self._check_attempts(delivery)
            request = codec.decode_request(delivery.body, open_.content_type, self._limits)
            servable, entry = self._catalog.resolve(request.servable, request.version, request.method)
            self._start(open_, request, servable, entry)
        except RankmqError as error:
            self._fail(open_, error)

    def _check_attempts(self, delivery: Delivery) -> None:
        count = delivery.headers.get("x-delivery-count", 0)
        attempts = count + 1 if isinstance(count, int) else 1
        if attempts > self._max_attempts:
            raise AttemptsExhausted(f"delivered {attempts} times without an outcome; {self._max_attempts} are allowed")

    def _start(self, open_: _Open, request: Request, servable: Servable, entry: Method | Pipeline) -> None:
        lenient = any(plain.is_untyped(value) for instance in request.instances for value in instance.values())
        context = open_.context = RunContext(servable, open_.id, lenient, waits=self._waits)
        open_.output_names = entry.output_names
        open_.results = [None] * len(request.instances)
        open_.left = len(request.instances)
        rows: list[tuple[int, tuple[Any, ...]]] = []
        refused: list[tuple[int, RankmqError]] = []
        for index, instance in enumerate(request.instances):
            try:
                rows.append((index, arguments_of(instance, entry.input_names, self._limits)))
            except RankmqError as error:
                refused.append((index, error))
        for index, refusal in refused:
            self._settle(open_, index, refusal)
        if isinstance(entry, Method) and not servable.slots:
            if rows:
                places = [index for index, _ in rows]
                MethodRun(self, context, entry, [row for _, row in rows], self._settler(open_, places)).start()
            return
        for index, row in rows:
            self._run(open_, context, entry, index, row)

    def _run(
        self,
        open_: _Open,
        context: RunContext,
        entry: Method | Pipeline,
        index: int,
        row: tuple[Any, ...],
        attempt: int = 1,
    ) -> None:
        """Runs one instance by itself; where the ranks lose what they held for it, once more from its inputs."""
        sessions = InstanceSessions()
        own = replace(context, sessions=sessions)

        def ran(result: RowResult) -> None:
            sessions.release()
            if not isinstance(result, SessionLost):
                self._settle(open_, index, result)
            elif attempt < self._max_attempts:
                self._run(open_, context, entry, index, row, attempt + 1)
            else:
                self._settle(open_, index, AttemptsExhausted(f"started {attempt} times; last: {result.message}"))

        if isinstance(entry, Method):
            MethodRun(self, own, entry, [row], lambda results: ran(results[0])).start()
        else:
            caller = ThreadCaller(self, own)
            self._ports.in_pipeline_pool(lambda: run_pipeline(entry, row, caller), ran)

    def _settler(self, open_: _Open, places: Sequence[int]) -> Done:
        def done(results: list[RowResult]) -> None:
            for place, result in zip(places, results, strict=True):
                self._settle(open_, place, result)

        return done

    def _settle(self, open_: _Open, index: int, result: RowResult) -> None:
        open_.results[index] = result
        open_.left -= 1
        if open_.left == 0:
            self._answer(open_)

    # -------------------------------------------------------------------------------------------------- what runs ask

    def call_subgraph(self, context: RunContext, subgraph: int, rows: Sequence[tuple[Any, ...]], done: Done) -> None:
        """Runs a subgraph of the context's servable over rows."""
        driver = self._drivers.get((context.servable.name, context.servable.version))
        if driver is None:
            error = GroupUnavailable(f"servable {context.servable.name} has no ranks")
            done([error] * len(rows))
            return
        began = self._clock()

        def finished(results: list[RowResult]) -> None:
            context.tally.calls += 1
            context.tally.seconds += self._clock() - began
            done(results)

        def run(session: Session | None) -> None:
            driver.call(subgraph, rows, finished, lenient=context.lenient, requests=(context.request,), session=session)

        if driver.servable.slots and context.sessions is not None:
            context.sessions.use(driver, run)
        else:
            run(None)

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
        found, entry = self._catalog.resolve(servable, version, method)
        if isinstance(entry, Pipeline):
            raise InvalidInput(f"{servable}.{method} is a pipeline: a pipeline can call methods only")
        if len(row) != len(entry.input_names):
            raise InvalidInput(f"{servable}.{method} takes {', '.join(entry.input_names)}: got {len(row)} values")
        inner = replace(context, servable=found)
        MethodRun(ports, inner, entry, [row], done).start()

    def in_pool(self, work: Callable[[], Any], done: Callable[[Any], None]) -> None:
        """Runs `work` on a thread, then `done` with its result on the loop."""
        self._ports.in_pool(work, done)

    def on_loop(self, work: Callable[[], None]) -> None:
        """Runs `work` on the loop; may be called from any thread."""
        self._ports.on_loop(work)

    # ------------------------------------------------------------------------------------------------------ answering

    def _answer(self, open_: _Open) -> None:
        if open_ not in self._open:
            return
        outcomes = [named_outputs(open_.output_names, result) for result in open_.results]
        failures = {index: it for index, it in enumerate(outcomes) if isinstance(it, RankmqError)}
        errors = [InstanceError(index=index, error=_info(failure)) for index, failure in failures.items()]
        if len(errors) == len(outcomes) and len({error.error for error in errors}) == 1:
            self._fail(open_, failures[0])
            return
        outputs = [None if isinstance(it, RankmqError) else it for it in outcomes]
        reply = Reply(id=open_.id, outputs=outputs, errors=errors, stats=self._stats(open_))
        try:
            body = codec.encode_reply(reply, open_.content_type)
        except RankmqError as error:
            self._fail(open_, StageFailed(f"the reply cannot be sent: {error.message}"))
            return
        if len(body) + _REPLY_OVERHEAD > self._max_message:
            text = (
                f"the reply has {len(body)} bytes: the broker takes {self._max_message}; send fewer instances at once"
            )
            self._fail(open_, LimitExceeded(text))
            return
        if open_.reply_to:
            self._publish(open_, body, failed=bool(errors))
        elif errors:
            self._dead_letter(open_, next(iter(failures.values())))
        else:
            self._end(open_, failed=False)  # nobody wants to know

    def _fail(self, open_: _Open, error: RankmqError) -> None:
        log.info("request failed: %s: %s", error.code, error.message, extra={"request": open_.id})
        if not open_.reply_to:
            self._dead_letter(open_, error)
            return
        reply = Reply(id=open_.id, error=_info(error), stats=self._stats(open_))
        self._publish(open_, codec.encode_reply(reply, open_.content_type), failed=True)

    def _publish(self, open_: _Open, body: bytes, *, failed: bool) -> None:
        def then(outcome: Outcome) -> None:
            if open_ not in self._open:
                return
            if outcome is Outcome.CONFIRMED:
                self._end(open_, failed=failed)
            elif outcome is Outcome.LOST:
                self._forget(open_)  # the channel is gone, and the broker has the request back
            else:
                text = f"the reply queue {open_.reply_to!r} is gone or takes no messages"
                self._dead_letter(open_, ReplyUnroutable(text))

        try:
            self._ports.reply(open_.delivery, body, open_.content_type, then)
        except RankmqError as error:
            self._dead_letter(open_, ReplyUnroutable(f"the reply cannot be sent: {error.message}"))

    def _dead_letter(self, open_: _Open, error: RankmqError) -> None:
        delivery = open_.delivery
        headers = {
            "rankmq-code": error.code,
            "rankmq-reason": error.message[:2000],
            "rankmq-request": open_.id,
            "rankmq-exchange": delivery.exchange,
            "rankmq-routing-key": delivery.routing_key,
        }

        def then(outcome: Outcome) -> None:
            if outcome is Outcome.CONFIRMED:
                self._end(open_, failed=True)
            elif outcome is Outcome.LOST:
                self._forget(open_)
            elif self._forget(open_):
                log.error("the dead-letter queue takes nothing: the request goes back", extra={"request": open_.id})
                self._ports.hand_back(delivery)

        try:
            self._ports.dead_letter(delivery, headers, then)
        except RankmqError as failure:
            log.error("it cannot be dead-lettered: %s", failure.message, extra={"request": open_.id})
            then(Outcome.REJECTED)

    def _end(self, open_: _Open, *, failed: bool) -> None:
        if open_ in self._open:
            self._ports.ack(open_.delivery)
            self.served += not failed
            self.failed += failed
            self._forget(open_)

    def _forget(self, open_: _Open) -> bool:
        if self._open.pop(open_, self) is self:
            return False
        self._ports.request_ended()
        return True

    def _stats(self, open_: _Open) -> Stats:
        tally = open_.context.tally if open_.context is not None else None
        return Stats(
            served_ms=round((self._clock() - open_.began) * 1e3, 3),
            ranks_ms=round(tally.seconds * 1e3, 3) if tally else 0.0,
            steps=tally.calls if tally else 0,
        )

    # -------------------------------------------------------------------------------------------------------- stopping

    def hand_back_all(self) -> int:
        """Gives what is not done back to the queue, and forgets it.

        Returns:
            How many requests went back.
        """
        handed = list(self._open)
        self._open.clear()
        for open_ in handed:
            self._ports.hand_back(open_.delivery)
            self._ports.request_ended()
        return len(handed)

    def close(self, error: RankmqError) -> None:
        """Ends the waits of all threads that run a servable's Python for it; to be called from any thread, once."""
        self._waits.close(error)


def _readable(text: str | bytes) -> str:
    return text if isinstance(text, str) else text.decode(errors="replace")


def _check_text(properties: Any) -> None:
    """AMQP says that its short strings are UTF-8, and brokers pass on others as well: those arrive as bytes."""
    for name in ("content_type", "message_id", "correlation_id", "reply_to"):
        if isinstance(getattr(properties, name), bytes):
            raise Undecodable(f"the property {name} is not UTF-8")


def _info(error: RankmqError) -> ErrorInfo:
    return ErrorInfo(code=error.code, message=error.message, side=error.side)
