"""What a producer writes down as it goes, one line of JSON an event, so that nothing is forgotten when it is killed.

Each line is an array: the word, the moment (`time.time()`), then, by word:

    sent      the request's number
    accepted  the number: the broker has confirmed the publish
    refused   the number: the broker took it not; it is sent again
    reply     the number, the reply's message_id, whether the broker delivered it before, the verdict, a text
    unwanted  an id: the producer library dropped a reply for which nobody waits
    gave-up   the number, a code, a text: whoever asked has stopped waiting
    opened    a connection to the broker is there
    lost      a text: it is gone
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

__all__ = ["RIGHT", "WRONG", "Journal", "Tail", "read"]

RIGHT = "right"
WRONG = "wrong"
"""Verdicts on an answer; any other verdict is the code of a typed error."""


class Journal:
    """The writing end.

    Args:
        path: of the file, which is added to.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def say(self, word: str, *told: object) -> None:
        """Writes an event; it is the kernel's when this returns, whatever becomes of the process."""
        os.write(self._descriptor, json.dumps([word, round(time.time(), 6), *told]).encode() + b"\n")


class Tail:
    """Reads what is added to a file.

    Args:
        path: it need not be there yet.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._at = 0
        self._rest = b""

    def lines(self) -> list[bytes]:
        """The whole lines that are new since the last call."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._at)
                more = file.read()
        except FileNotFoundError:
            return []
        self._at += len(more)
        *whole, self._rest = (self._rest + more).split(b"\n")
        return whole


def read(path: Path) -> list[list[Any]]:
    """All events of a journal."""
    return [json.loads(line) for line in Tail(path).lines()]
