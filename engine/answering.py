"""How a request ends: its reply is confirmed by the broker, or it is in the dead-letter queue; then it is acknowledged.

No I/O of its own. Of a request that was delivered more than once, the first delivery is answered, and the others end
with it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import numpy as np

from ..schemas import codec
from ..schemas.errors import (
    Cancelled,
    DeadlineExceeded,
    InternalError,
    LimitExceeded,
    RankmqError,
    ReplyUnroutable,
    ServingError,
    StageFailed,
)
from ..schemas.messages import Answered, ErrorInfo, InstanceError, Reply
from .answers import MOST_BODY_BYTES, Answers, Known
from .confirms import Outcome
from .delivery import Delivery
from .edge_blobs import EdgeBlobs
from .instances import named_outputs
from .open_request import OpenRequest, contained
from .references import BLOBS_HEADER
from .sizes import least_json_bytes, may_be_blob, size_of

__all__ = ["AnswerPorts", "Answering"]

log = logging.getLogger(__name__)

_REPLY_OVERHEAD = 4096
_MAY_PASS = (ServingError, DeadlineExceeded, Cancelled)
"""Errors after which the same request may be asked again, and may be served then."""


class AnswerPorts(Protocol):
    """How answers reach the world. All are called on the loop."""

    def reply(self, delivery: Delivery, body: bytes, content_type: str, then: Callable[[Outcome], None]) -> None:
        """Publishes the reply to a request; `then` is called with what became of it."""

    def heard(self, reply_to: str, then: Callable[[bool], None]) -> None:
        """Asks whether a reply can reach anybody there; `then` is called with False where it is known not to.

        Only what the broker would not say of the reply itself is asked.
        """

    def dead_letter(
        self, open_: OpenRequest, error: RankmqError, last: RankmqError | None, then: Callable[[Outcome], None]
    ) -> None:
        """Publishes the request itself to the dead-letter exchange, with the reason, and the error it met before."""

    def answered(self, answered: Answered) -> None:
        """Puts it on record that a request was answered: the broker has confirmed its reply."""

    def ack(self, delivery: Delivery) -> None:
        """Acknowledges the delivery."""

    def hand_back(self, delivery: Delivery) -> None:
        """Gives the delivery back to its queue."""


class Answering:
    """Gives requests their outcome, each once.

    Args:
        ports: how it reaches the world.
        clock: seconds, monotonic.
        wall: seconds since 1970.
        answers: the memory of what was answered.
        max_message: largest message that the broker takes, in bytes.
        ended: called with each request that has its outcome, and whether it was served; None where the broker has it,
            or another delivery stands for it.
        blobs: for large outputs; None where there is no blob store.
    """

    def __init__(
        self,
        ports: AnswerPorts,
        clock: Callable[[], float],
        wall: Callable[[], float],
        answers: Answers,
        max_message: int,
        ended: Callable[[OpenRequest, bool | None], bool],
        blobs: EdgeBlobs | None = None,
    ) -> None:
        self._ports = ports
        self._clock = clock
        self._wall = wall
        self._answers = answers
        self._max_message = max_message
        self._ended = ended
        self._blobs = blobs

    def weigh(self, open_: OpenRequest, result: tuple[np.ndarray[Any, Any], ...]) -> RankmqError | None:
        """Counts what a result takes of the reply to its request.

        Args:
            open_: the request.
            result: what an instance of it was given.

        Returns:
            The error with which the request fails, whatever else comes: no message can take what it has so far.
        """
        refers = self._blobs is not None and open_.reads_blobs
        inline = [it for it in result if not refers or not may_be_blob(it)]
        size = least_json_bytes if open_.content_type == codec.JSON else size_of
        added = contained(open_, lambda: sum(map(size, inline)))
        if isinstance(added, RankmqError):
            return added
        open_.result_bytes += added
        if open_.result_bytes + _REPLY_OVERHEAD <= self._max_message:
            return None
        return self._too_large(open_, f"{open_.result_bytes} bytes" + (" without its large outputs" if refers else ""))

    def results(self, open_: OpenRequest) -> None:
        """All instances have their results: the request is answered."""
        if open_.answered:
            return
        made = contained(open_, lambda: _made(open_, self._clock()))
        if isinstance(made, RankmqError):
            self.fail(open_, made)
            return
        reply, failures = made
        if len(failures) == len(reply.outputs) and len({it.error for it in reply.errors}) == 1:
            self.fail(open_, failures[0])
            return
        may_pass = any(isinstance(it, _MAY_PASS) for it in failures)
        first = next(iter(failures), None)
        if self._blobs is not None and self._blobs.gives(open_, reply):
            self._by_reference(open_, reply, first, {}, may_pass=may_pass)
        else:
            self._inline(open_, reply, first, may_pass=may_pass)

    def _inline(
        self,
        open_: OpenRequest,
        reply: Reply,
        first: RankmqError | None,
        *,
        may_pass: bool,
        trouble: RankmqError | None = None,
    ) -> None:
        """The request is answered with all that it has come to, within the message.

        Args:
            open_: the request.
            reply: its answer.
            first: the first error that an instance met.
            may_pass: whether it would be another answer next time.
            trouble: why it is not answered by reference.
        """
        body = _encoded(open_, reply)
        if isinstance(body, RankmqError):
            self.fail(open_, body)
        elif len(body) + _REPLY_OVERHEAD > self._max_message:
            self.fail(open_, trouble or self._too_large(open_, f"{len(body)} bytes"))
        else:
            self._answer(open_, body, first, may_pass=may_pass)

    def _too_large(self, open_: OpenRequest, what: str) -> LimitExceeded:
        helps = ["send fewer instances at once"] if len(open_.results) > 1 else []
        if self._blobs is None:
            helps.append("have the engine use a blob store (blob_store), past which large outputs go")
        elif not open_.reads_blobs:
            helps.append(f"send the header {BLOBS_HEADER} to have large outputs by reference")
        text = f"the reply has {what}: the broker takes {self._max_message}"
        return LimitExceeded("; ".join([text, ", or ".join(helps)] if helps else [text]))

    def _by_reference(
        self,
        open_: OpenRequest,
        reply: Reply,
        first: RankmqError | None,
        given: dict[tuple[str, str], Reply],
        *,
        may_pass: bool,
    ) -> None:
        """The same with large outputs in the blob store: who reads them deletes them, so each question has its own."""
        blobs = self._blobs
        missing = [it.route for it in (open_, *open_.followers) if it.reply_to and it.route not in given]
        if blobs is None or not missing:
            self._answer_each(open_, given, first, may_pass=may_pass)
            return

        def written(found: Reply | RankmqError) -> None:
            if isinstance(found, RankmqError):
                self._take_back(given.values())
                if not open_.answered:
                    log.warning("answered without the blob store: %s", found.message, extra={"request": open_.id})
                    self._inline(open_, reply, first, may_pass=may_pass, trouble=found)
                return
            given[missing[0]] = found
            self._ports.heard(missing[0][0], lambda heard: asked(found, heard=heard))

        def asked(found: Reply, *, heard: bool) -> None:
            if open_.answered:
                self._take_back(given.values())
                return
            if not heard:  # its message is sent all the same: the broker drops it, as any to who is gone
                self._take_back([found])
            self._by_reference(open_, reply, first, given, may_pass=may_pass)

        blobs.give(open_, reply, written)

    def _take_back(self, replies: Iterable[Reply]) -> None:
        """What replies have in the blob store is deleted: nobody will read it."""
        for reply in replies:
            if self._blobs is not None:
                self._blobs.take_back(reply)

    def _answer_each(
        self,
        open_: OpenRequest,
        given: Mapping[tuple[str, str], Reply],
        first: RankmqError | None,
        *,
        may_pass: bool,
    ) -> None:
        asked = {it.route for it in (open_, *open_.followers)}
        self._take_back(reply for route, reply in given.items() if route not in asked)  # who waits no more
        given = {route: reply for route, reply in given.items() if route in asked}
        bodies: dict[tuple[str, str], bytes] = {}
        for route, reply in given.items():
            body = _encoded(open_, reply)
            if isinstance(body, RankmqError):
                self._take_back(given.values())
                self.fail(open_, body)
                return
            bodies[route] = body
        size = max(map(len, bodies.values()), default=0)
        if size + _REPLY_OVERHEAD > self._max_message:
            self._take_back(given.values())
            text = f"the reply has {size} bytes without its large outputs: the broker takes {self._max_message}"
            self.fail(open_, LimitExceeded(text))
            return
        written = {route: (body, given[route]) for route, body in bodies.items()}
        self._answer(open_, b"", first, may_pass=may_pass, written=written)

    def fail(self, open_: OpenRequest, error: RankmqError) -> None:
        """The request failed as a whole."""
        if open_.answered:
            return
        open_.error = error.kept()
        open_.results = []
        log.info("request failed: %s: %s", error.code, error.message, extra={"request": open_.id})
        reply = Reply(id=open_.id, error=_info(error), stats=open_.stats(self._clock()))
        body = codec.encode_reply(reply, open_.content_type)
        self._answer(open_, body, error, may_pass=isinstance(error, _MAY_PASS))

    def again(self, open_: OpenRequest, known: Known) -> None:
        """The request was answered before, elsewhere: the same answer goes here."""
        open_.answered = True
        open_.content_type = known.content_type
        self._publish(open_, known.body or b"", served=not known.failed, may_pass=known.failed)

    def settled(self, open_: OpenRequest) -> None:
        """The request was answered before, and to this very queue."""
        open_.answered = True
        log.info("delivered again, and answered before: %s", open_.id, extra={"request": open_.id})
        self._end(open_, served=True)

    def stood_for(self, open_: OpenRequest) -> None:
        """The request is under way, and another delivery stands for this one, which the broker keeps until the end."""
        open_.answered = True
        self._end(open_, served=None)

    # --------------------------------------------------------------------------------------------------- in the end

    def _answer(
        self,
        open_: OpenRequest,
        body: bytes,
        error: RankmqError | None,
        *,
        may_pass: bool,
        written: Mapping[tuple[str, str], tuple[bytes, Reply]] | None = None,
    ) -> None:
        """Each question that is to have the answer gets it once; what has failed and has no queue is dead-lettered."""
        all_of_it = [open_, *open_.followers]
        open_.followers = []
        told: set[tuple[str, str]] = set()
        for it in all_of_it:
            it.answered = True
            it.content_type = open_.content_type
            if it is open_ and not it.reply_to and error is not None:
                self._dead_letter(it, error)
            elif not it.reply_to or it.route in told:
                self._end(it, served=error is None)
            else:
                told.add(it.route)
                own, reply = (body, None) if written is None else written[it.route]
                self._publish(it, own, reply, served=error is None, may_pass=may_pass)

    def _publish(
        self, open_: OpenRequest, body: bytes, written: Reply | None = None, *, served: bool, may_pass: bool
    ) -> None:
        went = True
        unsent = () if written is None else (written,)
        kept = body if written is None else None  # who reads its blobs deletes them: it is no answer to anybody else

        def then(outcome: Outcome) -> None:
            nonlocal went
            went = outcome is Outcome.CONFIRMED
            if outcome is Outcome.CONFIRMED:
                # Not before: of a channel that ends, a quorum queue may drop what the broker had read already.
                self._record(open_, open_.reply_to, kept, may_pass=may_pass)
                self._end(open_, served=served)
            elif outcome is Outcome.LOST:
                self._answers.doubt(open_.key, open_.route)
                self._ended(open_, None)  # the channel is gone, and the broker has the request back
            else:
                self._take_back(unsent)
                self._remember(open_, "", kept, may_pass=may_pass)
                self._record(open_, "", kept, may_pass=may_pass)
                text = f"the reply queue {open_.reply_to!r} is gone or takes no messages"
                self._dead_letter(open_, ReplyUnroutable(text))

        try:
            self._ports.reply(open_.delivery, body, open_.content_type, then)
        except RankmqError as error:
            self._take_back(unsent)
            self._dead_letter(open_, ReplyUnroutable(f"the reply cannot be sent: {error.message}"))
            return
        if went:  # as far as is known: what was not even written is nothing to remember
            self._remember(open_, open_.reply_to, kept, may_pass=may_pass)

    def _remember(self, open_: OpenRequest, reply_to: str, body: bytes | None, *, may_pass: bool) -> None:
        """Remembers where the answer went; "": it reached nobody, and is to be sent when it is asked for again."""
        if open_.key:
            self._answers.remember(_answered(open_, reply_to, body, may_pass=may_pass), self._wall())

    def _record(self, open_: OpenRequest, reply_to: str, body: bytes | None, *, may_pass: bool) -> None:
        """The same for whoever comes after us."""
        if open_.key:
            self._ports.answered(_answered(open_, reply_to, body, may_pass=may_pass))

    def _dead_letter(self, open_: OpenRequest, error: RankmqError) -> None:
        def then(outcome: Outcome) -> None:
            if outcome is Outcome.CONFIRMED:
                self._end(open_, served=False, dead=True)
            elif outcome is Outcome.LOST:
                self._ended(open_, None)
            elif self._ended(open_, None):
                log.error("the dead-letter queue takes nothing: the request goes back", extra={"request": open_.id})
                self._ports.hand_back(open_.delivery)

        try:
            self._ports.dead_letter(open_, error, open_.error, then)
        except RankmqError as failure:
            log.error("it cannot be dead-lettered: %s", failure.message, extra={"request": open_.id})
            then(Outcome.REJECTED)

    def _end(self, open_: OpenRequest, *, served: bool | None, dead: bool = False) -> None:
        if not self._ended(open_, served):
            return
        self._ports.ack(open_.delivery)
        if self._blobs is not None and not dead:  # a dead letter may be sent again
            self._blobs.answered(open_)


def _made(open_: OpenRequest, now: float) -> tuple[Reply, list[RankmqError]]:
    """The reply of all that a request has come to, and the errors in it."""
    outcomes = [named_outputs(open_.output_names, result) for result in open_.results]
    failures = {index: it for index, it in enumerate(outcomes) if isinstance(it, RankmqError)}
    errors = [InstanceError(index=index, error=_info(failure)) for index, failure in failures.items()]
    outputs = [None if isinstance(it, RankmqError) else it for it in outcomes]
    return Reply(id=open_.id, outputs=outputs, errors=errors, stats=open_.stats(now)), list(failures.values())


def _encoded(open_: OpenRequest, reply: Reply) -> bytes | RankmqError:
    body = contained(open_, lambda: codec.encode_reply(reply, open_.content_type))
    if isinstance(body, RankmqError) and not isinstance(body, InternalError):
        return StageFailed(f"the reply cannot be sent: {body.message}")
    return body


def _info(error: RankmqError) -> ErrorInfo:
    return ErrorInfo(code=error.code, message=error.message, side=error.side)


def _answered(open_: OpenRequest, reply_to: str, body: bytes | None, *, may_pass: bool) -> Answered:
    return Answered(
        id=open_.key,
        check=open_.check,
        reply_to=reply_to,
        correlation_id=open_.route[1],
        content_type=open_.content_type,
        body=body if body is not None and len(body) <= MOST_BODY_BYTES else None,
        failed=may_pass,
    )
