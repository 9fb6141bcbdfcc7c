"""What all messages share: their roots, the kinds of their fields, the error and the group as they travel."""

from __future__ import annotations

from typing import Annotated

import msgspec
import msgspec.structs
from msgspec import Meta

__all__ = [
    "MAX_ERROR_MESSAGE",
    "SCHEMA_VERSION",
    "Count",
    "ErrorInfo",
    "GroupId",
    "Identifier",
    "Message",
    "Name",
    "Part",
]

SCHEMA_VERSION = 1
MAX_ERROR_MESSAGE = 4000

Count = Annotated[int, Meta(ge=0)]
Name = Annotated[str, Meta(pattern=r"^[A-Za-z_][A-Za-z0-9_-]*$(?!\n)", max_length=64)]
Identifier = Annotated[str, Meta(min_length=1, max_length=255)]


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=False):
    """Root of all messages; `v` is the schema version."""

    v: int = SCHEMA_VERSION


class Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Root of what is only ever a part of a message."""


class ErrorInfo(Part, frozen=True, kw_only=True):
    """An error as it travels.

    Attributes:
        code: stable, one of `errors.error_codes()`.
        message: for a person; cut to 4,000 characters, and what is not Unicode in it replaced, so that no error is too
            odd to be reported.
        side: who can put it right: "sender", "engine", "producer" or "operator".
    """

    code: str
    message: str
    side: str = "engine"

    def __post_init__(self) -> None:
        message = self.message
        if len(message) > MAX_ERROR_MESSAGE:
            message = message[: MAX_ERROR_MESSAGE - 3] + "..."
        if not message.isascii():
            message = message.encode("utf-8", "replace").decode("utf-8")
        if message != self.message:
            msgspec.structs.force_setattr(self, "message", message)


class GroupId(Part, frozen=True, kw_only=True):
    """One group of ranks: a servable in a version, and the group's name among its replicas."""

    servable: Name
    version: Annotated[int, Meta(ge=1)]
    group: Name = "g0"

    def __str__(self) -> str:
        return f"{self.servable}.v{self.version}.{self.group}"
