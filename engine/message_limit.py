"""How large a message a broker takes. It says so only when it refuses one, and closes the channel over it. Pure."""

from __future__ import annotations

import re
import sys

from ..schemas.errors import LimitExceeded, RankmqError

__all__ = ["MESSAGE_OVERHEAD", "MessageLimit", "too_large"]

MESSAGE_OVERHEAD = 4096
"""Bytes that a message may take beside its body."""

_SAID = re.compile(r"larger than (?:configured )?max size (\d+)")


def too_large(what: str, nbytes: int, most: int, *, blobs: bool) -> LimitExceeded:
    """The error of what makes a larger message than the broker takes.

    Args:
        what: of so many bytes.
        nbytes: how many.
        most: as many as the broker takes.
        blobs: whether large tensors would go through a blob store.
    """
    hint = "" if blobs else "; with a blob store large tensors go past it"
    return LimitExceeded(f"{what} of {nbytes} bytes: the broker takes {most}{hint}")


class MessageLimit:
    """What somebody knows of it, over all connections that they make one after the other."""

    def __init__(self) -> None:
        self._said = sys.maxsize

    def of(self, version: tuple[int, ...]) -> int:
        """The largest message, in bytes: what the broker has said, or what is usual for its version."""
        return min((16 if version >= (4,) else 128) * 1024 * 1024, self._said)

    def learn(self, error: RankmqError) -> None:
        """Takes down what the broker said, if it said it."""
        found = _SAID.search(error.message) if isinstance(error, LimitExceeded) else None
        if found is not None:
            self._said = min(self._said, int(found[1]))
