"""How large, how deep and how many: the bounds on what a request may bring."""

from __future__ import annotations

from dataclasses import dataclass

from .errors import LimitExceeded

__all__ = ["Limits", "body_too_large"]


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on one request.

    The bytes of tensors are decoded in place and cost nothing beyond the body. Everything else becomes an object for
    each value, up to 100 bytes for one that took a single byte in the body: `elements` bounds those, and with them the
    memory of a decoder, at `body_bytes` + 100 * `elements`.

    Attributes:
        body_bytes: size of the body, in bytes (RabbitMQ itself takes 128 MiB up to 3.13, 16 MiB from 4.0).
        instances: instances in a request.
        inputs: named inputs of an instance.
        name_length: characters in the name of an input.
        nesting: depth of nested lists.
        elements: values in nested lists and in tensors of text or bytes, over the whole request. A body of no more
            bytes than this is not looked at more closely.
    """

    body_bytes: int = 64 * 1024 * 1024
    instances: int = 4096
    inputs: int = 64
    name_length: int = 255
    nesting: int = 32
    elements: int = 4 * 1024 * 1024


def body_too_large(nbytes: int, most: int) -> LimitExceeded:
    """The error of a request whose body is larger than `max_body_bytes`."""
    return LimitExceeded(
        f"a body of {nbytes} bytes: {most} are allowed (max_body_bytes); with a blob store large tensors go past it"
    )
