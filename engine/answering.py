"""How a request ends: its reply is confirmed by the broker, or it is in the dead-letter queue; then it is acknowledged.

No I/O of its own. Of a request that was delivered more than once, the first delivery is answered, and the others end
with it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol

from ..schemas import codec
from ..schemas.errors import (
    Cancelled,
    DeadlineExceeded,
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
from .instances import named_outputs
from .open_request import OpenRequest

__all__ = ["AnswerPorts", "Answering"]

log = logging.getLogger(__name__)

_REPLY_OVERHEAD = 4096
_MAY_PASS = (ServingError, DeadlineExceeded, Cancelled)
"""Errors after which the same request may be asked again, and may be served then."""


class AnswerPorts(Protocol):
    """How answers reach the world. All are called on the loop."""

    def reply(self, delivery: Delivery, body: bytes, content_type: str, then: Callable[[Outcome], None]) -> None:
        """Publishes the reply to a request; `then` is called with what became of it."""

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
        ended: called with each request that has its outcome, and whether it was served; None where the broker has it.
    """

    def __init__(
        self,
        ports: AnswerPorts,
        clock: Callable[[], float],
        wall: Callable[[], float],
        answers: Answers,
        max_message: int,
        ended: Callable[[OpenRequest, bool | None], bool],
    ) -> None:
        self._ports = ports
        self._clock = clock
        self._wall = wall
        self._answers = answers
        self._max_message = max_message
        self._ended = ended

    def results(self, open_: OpenRequest) -> None:
        """All instances have their results: the request is answered."""
        if open_.answered:
            return
        outcomes = [named_outputs(open_.output_names, result) for result in open_.results]
        failures = {index: it for index, it in enumerate(outcomes) if isinstance(it, RankmqError)}
        errors = [InstanceError(index=index, error=_info(failure)) for index, failure in failures.items()]
        if len(errors) == len(outcomes) and len({error.error for error in errors}) == 1:
            self.fail(open_, failures[0])
            return
        outputs = [None if isinstance(it, RankmqError) else it for it in outcomes]
        reply = Reply(id=open_.id, outputs=outputs, errors=errors, stats=open_.stats(self._clock()))
        try:
            body = codec.encode_reply(reply, open_.content_type)
        except RankmqError as error:
            self.fail(open_, StageFailed(f"the reply cannot be sent: {error.message}"))
            return
        if len(body) + _REPLY_OVERHEAD > self._max_message:
            text = (
                f"the reply has {len(body)} bytes: the broker takes {self._max_message}; send fewer instances at once"
            )
            self.fail(open_, LimitExceeded(text))
            return
        may_pass = any(isinstance(it, _MAY_PASS) for it in failures.values())
        self._answer(open_, body, next(iter(failures.values()), None), may_pass=may_pass)

    def fail(self, open_: OpenRequest, error: RankmqError) -> None:
        """The request failed as a whole."""
        if open_.answered:
            return
        open_.error = error
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

    # --------------------------------------------------------------------------------------------------- in the end

    def _answer(self, open_: OpenRequest, body: bytes, error: RankmqError | None, *, may_pass: bool) -> None:
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
                self._publish(it, body, served=error is None, may_pass=may_pass)

    def _publish(self, open_: OpenRequest, body: bytes, *, served: bool, may_pass: bool) -> None:
        went = True

        def then(outcome: Outcome) -> None:
            nonlocal went
            went = outcome is Outcome.CONFIRMED
            if outcome is Outcome.CONFIRMED:
                # Not before: of a channel that ends, a quorum queue may drop what the broker had read already.
                self._record(open_, open_.reply_to, body, may_pass=may_pass)
                self._end(open_, served=served)
            elif outcome is Outcome.LOST:
                self._answers.doubt(open_.key, open_.route)
                self._ended(open_, None)  # the channel is gone, and the broker has the request back
            else:
                self._remember(open_, "", body, may_pass=may_pass)
                self._record(open_, "", body, may_pass=may_pass)
                text = f"the reply queue {open_.reply_to!r} is gone or takes no messages"
                self._dead_letter(open_, ReplyUnroutable(text))

        try:
            self._ports.reply(open_.delivery, body, open_.content_type, then)
        except RankmqError as error:
            self._dead_letter(open_, ReplyUnroutable(f"the reply cannot be sent: {error.message}"))
            return
        if went:  # as far as is known: what was not even written is nothing to remember
            self._remember(open_, open_.reply_to, body, may_pass=may_pass)

    def _remember(self, open_: OpenRequest, reply_to: str, body: bytes, *, may_pass: bool) -> None:
        """Remembers where the answer went; "": it reached nobody, and is to be sent when it is asked for again."""
        if open_.key:
            self._answers.remember(_answered(open_, reply_to, body, may_pass=may_pass), self._wall())

    def _record(self, open_: OpenRequest, reply_to: str, body: bytes, *, may_pass: bool) -> None:
        """The same for whoever comes after us."""
        if open_.key:
            self._ports.answered(_answered(open_, reply_to, body, may_pass=may_pass))

    def _dead_letter(self, open_: OpenRequest, error: RankmqError) -> None:
        def then(outcome: Outcome) -> None:
            if outcome is Outcome.CONFIRMED:
                self._end(open_, served=False)
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

    def _end(self, open_: OpenRequest, *, served: bool) -> None:
        if self._ended(open_, served):
            self._ports.ack(open_.delivery)


def _info(error: RankmqError) -> ErrorInfo:
    return ErrorInfo(code=error.code, message=error.message, side=error.side)


def _answered(open_: OpenRequest, reply_to: str, body: bytes, *, may_pass: bool) -> Answered:
    return Answered(
        id=open_.key,
        check=open_.check,
        reply_to=reply_to,
        correlation_id=open_.route[1],
        content_type=open_.content_type,
        body=body if len(body) <= MOST_BODY_BYTES else None,
        failed=may_pass,
    )
