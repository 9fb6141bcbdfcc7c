"""What goes into a step of a job's desk, and what comes out: see `Desk.step`."""

from __future__ import annotations

from dataclasses import dataclass, field

from ...schemas import codec
from ...schemas.messages import ErrorInfo, Reply
from ..message_limit import MESSAGE_OVERHEAD, too_large
from .manifest import Key
from .spec import Counts

__all__ = ["Answer", "Asking", "Room", "Step"]


@dataclass(frozen=True, slots=True)
class Answer:
    """A reply as it came.

    Attributes:
        key: of the request.
        body: the message's, or what it was a claim to.
        content_type: of the body.
        claim: the claim; "" where the body came with the message.
    """

    key: Key
    body: bytes
    content_type: str = codec.MSGPACK
    claim: str = ""


@dataclass(frozen=True, slots=True)
class Asking:
    """A request that is on record and may be sent.

    Attributes:
        key: which.
        rows: how many it has.
        body: the message.
        nbytes: of the message, and of what it refers to.
    """

    key: Key
    rows: int
    body: bytes
    nbytes: int

    def fits(self, most: int) -> bool:
        """Whether the broker takes it, if it takes messages of so many bytes."""
        return len(self.body) + MESSAGE_OVERHEAD <= most

    def too_large(self, most: int, *, blobs: bool) -> Answer:
        """What is to be put on record where it does not."""
        error = too_large("a row", len(self.body), most, blobs=blobs)
        info = ErrorInfo(code=error.code, message=error.message, side=error.side)
        return Answer(self.key, codec.encode_reply(Reply(error=info)))


@dataclass(frozen=True, slots=True)
class Room:
    """How much may be planned.

    Attributes:
        requests: how many.
        rows_per_second: how fast rows are done; 0 if that is not new.
        near: whether bodies go past the broker, as far as is known.
    """

    requests: int = 0
    rows_per_second: float = 0.0
    near: bool = False


@dataclass(slots=True)
class Step:
    """What a step has done.

    Attributes:
        asking: requests that may be sent now.
        counts: how far the job is.
        settled: rows that were ended by this step's replies, by request.
        next_due: seconds until a request that failed is to be sent again; None if there is none.
        over: every row is on record.
        more: further requests can be planned now, if there is room.
        fatal: why no row can be answered.
        cancel_asked: somebody has given up the job.
        claims_lost: a body in memory was not found at the other end.
    """

    counts: Counts
    asking: list[Asking] = field(default_factory=list)
    settled: dict[Key, int] = field(default_factory=dict)
    next_due: float | None = None
    over: bool = False
    more: bool = True
    fatal: str = ""
    cancel_asked: bool = False
    claims_lost: bool = False
