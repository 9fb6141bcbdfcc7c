"""The messages of the edge as JSON has them: tensors as nested lists or base64, where MessagePack has their bytes."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from . import plain
from .messages import Reply, ReplyPart, Request

__all__ = ["JsonPart", "JsonReply", "JsonRequest"]


class JsonRequest(Request, frozen=True, kw_only=True):
    """A request; its inputs stay as they came until `plain.array_of` reads them."""

    instances: Annotated[list[dict[str, Any]], msgspec.Meta(min_length=1)]

    @classmethod
    def of(cls, request: Request) -> JsonRequest:
        """A request on its way out."""
        rows = [{name: plain.value_to_json(value) for name, value in row.items()} for row in request.instances]
        return cls(
            servable=request.servable,
            method=request.method,
            version=request.version,
            instances=rows,
            stream=request.stream,
        )

    def message(self) -> Request:
        """A request that has come."""
        return Request(
            servable=self.servable,
            method=self.method,
            version=self.version,
            instances=self.instances,
            stream=self.stream,
        )


class JsonReply(Reply, frozen=True, kw_only=True):
    """A reply."""

    outputs: list[dict[str, Any] | None] = msgspec.field(default_factory=list)

    @classmethod
    def of(cls, reply: Reply) -> JsonReply:
        """A reply on its way out."""
        outputs: list[dict[str, Any] | None] = [row and _to_json(row) for row in reply.outputs]
        return cls(id=reply.id, outputs=outputs, errors=reply.errors, error=reply.error, stats=reply.stats)

    def message(self) -> Reply:
        """A reply that has come.

        Raises:
            InvalidInput: an output whose dtype, shape and data do not go together.
        """
        outputs = [row and _from_json(row) for row in self.outputs]
        return Reply(id=self.id, outputs=outputs, errors=self.errors, error=self.error, stats=self.stats)


class JsonPart(ReplyPart, frozen=True, kw_only=True):
    """A part of an answer."""

    outputs: dict[str, Any]

    @classmethod
    def of(cls, part: ReplyPart) -> JsonPart:
        """A part on its way out."""
        outputs = _to_json(part.outputs)
        return cls(id=part.id, index=part.index, attempt=part.attempt, number=part.number, outputs=outputs)

    def message(self) -> ReplyPart:
        """A part that has come.

        Raises:
            InvalidInput: an output whose dtype, shape and data do not go together.
        """
        outputs = _from_json(self.outputs)
        return ReplyPart(id=self.id, index=self.index, attempt=self.attempt, number=self.number, outputs=outputs)


def _to_json(row: dict[str, Any]) -> dict[str, Any]:
    return {name: plain.tensor_to_json(tensor) for name, tensor in row.items()}


def _from_json(row: dict[str, Any]) -> dict[str, Any]:
    return {name: plain.tensor_from_json(value) for name, value in row.items()}
