"""The edge of the engine: a delivery from a requests queue in, a terminal outcome out.

Each request ends in exactly one of three ways: its reply is confirmed by the broker, or it is in the dead-letter queue,
and then its delivery is acknowledged; or the broker has it back. No I/O of its own.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

import numpy as np

from ..schemas.errors import Cancelled, DeadlineExceeded, RankmqError, TemporaryFailure
from ..schemas.limits import Limits
from ..schemas.messages import Request
from .admission import Admission
from .answering import Answering
from .answers import Answers
from .calls import Calls
from .catalog import Catalog
from .deadline import Deadlines, run_seconds
from .delivery import Delivery
from .driver import GroupDriver
from .edge_blobs import EdgeBlobs
from .followers import MOST_FOLLOWERS, is_repeated, join, leave, spare_blobs
from .heavy import Heavy
from .open_request import OpenRequest
from .routes import lane_of
from .servable import Method, Pipeline, Servable
from .service_ports import ServicePorts
from .stage_processes import StageProcesses
from .starting import Starting
from .ticket import RowResult
from .waits import Waits

__all__ = ["CancelState", "Service", "ServicePorts"]

log = logging.getLogger(__name__)

CancelState = Literal["cancelled", "answered", "noted"]

_MOST_NOTED = 10_000


class Service:
    """Takes requests, runs their methods and pipelines, answers them.

    Args:
        catalog: what is served.
        drivers: by servable name and version; a servable without models has none.
        ports: how it reaches the world.
        clock: seconds, monotonic.
        wall: seconds since 1970.
        limits: the bounds on a request.
        max_attempts: how often a request is tried.
        max_deliveries: how often the broker may deliver it.
        max_in_flight: how many requests run at once; those that were taken beyond them wait.
        max_message: largest message that the broker takes, in bytes.
        plane_bytes: how much memory is shared with the ranks of a group, at most.
        answers: the memory of what was answered.
        blobs: for inputs and outputs by reference; None where there is no blob store.
        processes: for functions of methods; None: they run on threads.
    """

    def __init__(
        self,
        catalog: Catalog,
        drivers: Mapping[tuple[str, int], GroupDriver],
        ports: ServicePorts,
        clock: Callable[[], float],
        wall: Callable[[], float],
        *,
        limits: Limits,
        max_attempts: int,
        max_deliveries: int,
        max_in_flight: int,
        max_message: int,
        plane_bytes: int = 0,
        answers: Answers,
        blobs: EdgeBlobs | None = None,
        processes: StageProcesses | None = None,
    ) -> None:
        self._catalog = catalog
        self._ports = ports
        self._clock = clock
        self._wall = wall
        self._limits = limits
        self._max_deliveries = max_deliveries
        self._waits = Waits()
        self._open: dict[OpenRequest, None] = {}
        self._by_key: dict[str, OpenRequest] = {}
        self._admission: Admission[OpenRequest] = Admission(max_in_flight)
        self._admitting = False
        self._answers = answers
        self._blobs = blobs
        self._starting = Starting(
            Calls(catalog, drivers, ports, clock),
            ports,
            self._settle,
            self._weigh,
            self._waits,
            limits=limits,
            max_attempts=max_attempts,
            max_message=max_message,
            # Where an input is divided, each rank gets its own part in a message of its own.
            most_step=max(plane_bytes, max_message * max((it.rank_size for it in catalog), default=0)),
            blobs=blobs,
            processes=processes,
        )
        self._answering = Answering(ports, clock, wall, answers, max_message, self._ended, blobs)
        self._deadlines: Deadlines[OpenRequest] = Deadlines()
        self._noted: OrderedDict[str, None] = OrderedDict()
        self._heavy = Heavy(clock, ports.later, lambda: len(self._open))
        self.served = 0
        self.failed = 0

    @property
    def in_flight(self) -> int:
        """Requests taken and not yet ended."""
        return len(self._open)

    @property
    def requests(self) -> tuple[OpenRequest, ...]:
        """All of them."""
        return tuple(self._open)

    @property
    def waiting(self) -> int:
        """Of those, the ones that wait for others to end."""
        return self._admission.waiting

    # ---------------------------------------------------------------------------------------------- taking a request

    def receive(self, delivery: Delivery) -> None:
        """Takes a request; whatever is wrong with it is answered, never raised."""
        open_ = OpenRequest.of(delivery, self._clock())
        key = open_.key
        self._open[open_] = None
        try:
            unreadable = open_.read_properties()
            if self._is_known(open_):
                return
            if key:
                self._by_key[key] = open_
            if unreadable is not None:
                raise unreadable
            self._check_way(open_)
        except RankmqError as error:
            self._answering.fail(open_, error)
            return
        self._heavy.read(open_, partial(self._read, open_))

    def _read(self, open_: OpenRequest) -> None:
        delivery, open_.start = open_.delivery, None
        try:
            request = open_.decoded(self._limits)
            lane = lane_of(delivery, request.servable)
            servable, entry = self._catalog.resolve(request.servable, request.version, request.method)
        except RankmqError as error:
            self._answering.fail(open_, error)
            return
        begin = partial(self._begin, open_, request, servable, entry, lane)
        open_.start = partial(self._heavy.start, open_, lane, begin)
        self._admission.put(lane, open_)
        self._admit()

    def knows(self, delivery: Delivery) -> bool:
        """Whether a delivery is of a request that is under way here or was answered, as far as is known."""
        key = delivery.properties.message_id
        return (
            not isinstance(key, str)
            or not key
            or key in self._by_key
            or self._answers.find(key, self._wall()) is not None
        )

    def _is_known(self, open_: OpenRequest) -> bool:
        """Whether the request was taken before, and it is seen to that it ends as it did then.

        Raises:
            RequestIdReused: it was another one under the same id.
        """
        if not open_.key or isinstance(open_.delivery.properties.reply_to, bytes):
            return False
        first = self._by_key.get(open_.key)
        if first is not None and not first.answered:
            open_.check_same(first.check)
            self._join(open_, first)
            return True
        known = self._answers.find(open_.key, self._wall())
        if known is None:
            return False
        open_.check_same(known.check)
        routed = known.routes.get(open_.route)
        if (routed or not open_.reply_to) and (open_.delivery.redelivered or not known.failed):
            self._answering.settled(open_)
        elif known.body is not None and (routed is False or not known.failed):
            self._answering.again(open_, known)
        else:
            return False
        return True

    def _join(self, open_: OpenRequest, first: OpenRequest) -> None:
        """The request is under way: it is not run again, and whoever asks from elsewhere gets the same outcome.

        Raises:
            RequestError: this one comes too late, whatever becomes of the first.
        """
        if self._blobs is not None:
            open_.blobs = spare_blobs(open_, first)
        if is_repeated(open_, first):
            log.debug("delivered again, and under way: %s", open_.id, extra={"request": open_.id})
            self._answering.stood_for(open_)
            return
        key, open_.key = open_.key, ""  # what is said of its deadline is no outcome of the request
        self._check_deadline(open_)
        open_.key = key
        excess = join(open_, first)
        if excess is not None:
            # Not handed back: it would be delivered again at once, and again. Asked once more it joins, or is answered.
            text = f"the request is under way, and {MOST_FOLLOWERS} wait for its outcome who asked later: ask once more"
            self._answering.fail(excess, TemporaryFailure(text))

    def _check_deadline(self, open_: OpenRequest) -> None:
        now = self._clock()
        open_.read_deadline(now, self._wall())
        self._has_until(open_, now)

    def _check_way(self, open_: OpenRequest) -> None:
        """Whether the request may be served still, by what its message says."""
        open_.check_deliveries(self._max_deliveries)
        self._check_deadline(open_)
        open_.run_seconds = run_seconds(open_.delivery.headers)
        if open_.key and self._noted.pop(open_.key, self) is None:
            raise Cancelled("somebody asked for it to be given up before it was taken")

    def _has_until(self, open_: OpenRequest, now: float) -> bool:
        """Has the request looked at again when its time is up; False where it is."""
        when = open_.life.deadline = open_.ends_at(now)
        if when is None:
            return True
        if when <= now:
            return False
        self._deadlines.add(open_, when)
        self._ports.wake_at(when)
        return True

    def _admit(self) -> None:
        """Starts what may be started; requests that end while they are started let further ones start."""
        if self._admitting:
            return
        self._admitting = True
        try:
            while (open_ := self._admission.take()) is not None:
                start, open_.start = open_.start, None
                if start is not None:
                    start()
        finally:
            self._admitting = False

    def _begin(
        self, open_: OpenRequest, request: Request, servable: Servable, entry: Method | Pipeline, lane: str
    ) -> None:
        open_.start = None
        if open_.run_seconds is not None:
            open_.started = self._clock()
            self._has_until(open_, open_.started)
        try:
            self._starting.start(open_, request, servable, entry, lane)
        except RankmqError as error:
            self._answering.fail(open_, error)

    def _settle(self, open_: OpenRequest, index: int, result: RowResult) -> None:
        if open_.answered:
            return
        if not open_.weighed and not isinstance(result, RankmqError) and not self._weigh(open_, result):
            return
        open_.results[index] = result.kept() if isinstance(result, RankmqError) else result
        open_.left -= 1
        if open_.left == 0 and open_ in self._open:
            self._heavy.answer(open_, partial(self._answering.results, open_))

    def _weigh(self, open_: OpenRequest, result: tuple[np.ndarray[Any, Any], ...]) -> bool:
        """An instance has its outputs; False where the reply cannot have them besides those that came before.

        The request has failed then.
        """
        error = None if open_.answered else self._answering.weigh(open_, result)
        if error is not None:
            self._answering.fail(open_, error)
            # Later, for we may be in the midst of a step of which other rows are this request's as well.
            self._ports.on_loop(partial(open_.life.end, error))
        return not open_.answered

    # --------------------------------------------------------------------------------------------------------- ending

    def _ended(self, open_: OpenRequest, served: bool | None) -> bool:
        """A request has its outcome, or the broker has it back; only once."""
        if self._open.pop(open_, self) is self:
            return False
        open_.ended = True
        if self._blobs is not None:
            self._blobs.ended(open_)
        self._deadlines.discard(open_)
        self._heavy.discard(open_)
        if self._by_key.get(open_.key) is open_:
            del self._by_key[open_.key]
        self.served += served is True
        self.failed += served is False
        self._admission.ended(open_)
        self._ports.request_ended()
        self._admit()
        return True

    def tick(self) -> None:
        """Time passed: what is past its deadline is given up."""
        now = self._clock()
        # Those that are given up leave their slots to others, which may be past theirs as well.
        for open_, in_vain in [(it, it.waits_for_slots) for it in self._deadlines.due(now)]:
            if not self._has_until(open_, now):
                when = "while it waited for a slot" if in_vain else "before it was done"
                in_part = open_.expires is None or open_.expires > now  # nobody said that it is of no use by now
                self._give_up(open_, DeadlineExceeded(f"its deadline passed {when}"), in_part=in_part)
        following = self._deadlines.next()
        if following is not None:
            self._ports.wake_at(following)

    def cancel(self, key: str) -> CancelState:
        """Gives up a request, wherever it is: one that runs stops at its next step.

        Args:
            key: its message id.
        """
        open_ = self._by_key.get(key)
        if open_ is not None and not open_.answered:
            self._give_up(open_, Cancelled("somebody asked for it to be given up"))
            return "cancelled"
        if open_ is not None or self._answers.find(key, self._wall()) is not None:
            return "answered"
        self._noted[key] = None
        while len(self._noted) > _MOST_NOTED:
            self._noted.popitem(last=False)
        return "noted"

    def _give_up(self, open_: OpenRequest, error: RankmqError, *, in_part: bool = False) -> None:
        leave(open_)
        if in_part and open_.left < len(open_.results):  # what its instances gave that are done is not lost
            open_.results = [error if it is None else it for it in open_.results]
            self._answering.results(open_)
        else:
            self._answering.fail(open_, error)
        open_.life.end(error)
        self._heavy.discard(open_)
        if open_.start is not None:  # it has not begun, and leaves the line
            open_.start = None
            self._admission.ended(open_)

    def hand_back_waiting(self) -> int:
        """Gives back what was taken and has not been started, and what waits for the outcome of that.

        Returns:
            How many requests went back.
        """
        waiting = [it for it in self._open if it.start is not None]
        return self._hand_back([*waiting, *(follower for it in waiting for follower in it.followers)])

    def hand_back_all(self) -> int:
        """Gives what is not done back to the queue, and forgets it. What waits for the broker's word on its answer
        stays as it is: the broker has it back by itself, should the answer be lost.

        Returns:
            How many requests went back.
        """
        return self._hand_back([it for it in self._open if not it.answered])

    def _hand_back(self, handed: list[OpenRequest]) -> int:
        for open_ in handed:
            open_.answered = True
        count = 0
        for open_ in handed:
            if self._ended(open_, None):
                self._ports.hand_back(open_.delivery)
                count += 1
        return count

    def close(self, error: RankmqError) -> None:
        """Ends the waits of all threads that run a servable's Python for it; to be called from any thread, once."""
        self._waits.close(error)
