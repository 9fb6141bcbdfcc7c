"""The messages of the edge, which producers see: `Request` in, parts and `Reply` out; what became of a cancel."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from .base import Count, ErrorInfo, Message, Name, Part
from .tensors import Tensor

__all__ = ["CancelReply", "InstanceError", "Reply", "ReplyPart", "Request", "Stats", "Value"]

Value = Tensor | None | bool | int | float | str | list[Any]
"""An input of an instance: a tensor, or a plain value that is made one (see `tensors.from_plain`); bare binary is not
allowed, since its dtype would be a guess."""


class Request(Message, frozen=True, kw_only=True):
    """What a producer publishes: one call of a method or pipeline for each instance.

    Attributes:
        servable: the servable's name.
        method: a method or pipeline of it.
        version: the servable's version; 0 means the newest.
        instances: one or more rows of named inputs.
        stream: whether parts of the answer are to come as they are made, before the reply (see `ReplyPart`).
    """

    servable: Name
    method: Name
    version: Count = 0
    instances: Annotated[list[dict[str, Value]], Meta(min_length=1)]
    stream: bool = False


class InstanceError(Part, frozen=True, kw_only=True):
    """The error that one instance of a request met, while others were served."""

    index: Count
    error: ErrorInfo


class Stats(Part, frozen=True, kw_only=True, forbid_unknown_fields=False):
    """Where the time of a request went, in milliseconds, and how many steps the ranks ran for it."""

    served_ms: float
    ranks_ms: float = 0.0
    steps: Count = 0


class Reply(Message, frozen=True, kw_only=True, forbid_unknown_fields=False):
    """The terminal answer to a request. Fields that a producer does not know it passes over: later ones may say more.

    Attributes:
        id: the request's id.
        outputs: per instance its named outputs, or null where it failed; empty when the request failed as a whole.
        errors: the instances that failed, by index.
        error: set when the request failed as a whole.
        stats: where the time went.
    """

    id: str = ""
    outputs: list[dict[str, Tensor] | None] = msgspec.field(default_factory=list)
    errors: list[InstanceError] = msgspec.field(default_factory=list)
    error: ErrorInfo | None = None
    stats: Stats | None = None


class ReplyPart(Message, frozen=True, kw_only=True, forbid_unknown_fields=False):
    """What there is of one instance's answer so far, for a request that asked for it: a preview of the reply.

    It may get lost, and none comes after the reply, which has everything. When an instance is started again, `attempt`
    rises, `number` begins at 0, and what was said before counts for nothing.

    Attributes:
        id: the request's id.
        index: which instance.
        attempt: a number that rises each time that the instance is started; not always by one.
        number: from 0 within the attempt; where one is missing, it was not sent.
        outputs: by name; which ones, the servable says. They need not be those of the reply.
    """

    id: str = ""
    index: Count = 0
    attempt: Annotated[int, Meta(ge=1)] = 1
    number: Count = 0
    outputs: dict[str, Tensor]


class CancelReply(Message, frozen=True, kw_only=True, forbid_unknown_fields=False):
    """What an orchestrator says of a request that it was asked to give up.

    Attributes:
        orchestrator: its name.
        id: the request's id.
        state: "cancelled": it had the request, and has answered it with `cancelled`; "answered": it was answered
            before; "noted": it does not know the request, and will not serve it should it come.
    """

    orchestrator: str
    id: str
    state: Literal["cancelled", "answered", "noted"]
