"""What the orchestrators' logs tell of a group's life, with its moments. Pure."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["Sign", "Word", "sign_of"]

Word = Literal["registered", "ready", "ended", "standing by", "taking over", "disconnected"]

_PATTERNS: tuple[tuple[Word, re.Pattern[str]], ...] = (
    ("registered", re.compile(r"rank (?P<rank>\d+) of (?P<group>\S+) registers: pid (?P<pid>\d+)")),
    ("ready", re.compile(r"(?P<group>\S+) is ready: epoch (?P<epoch>\d+)")),
    ("ended", re.compile(r"(?P<group>\S+): epoch (?P<epoch>\d+) ended, .*?\((?P<rows>\d+) rows\): (?P<reason>.*)")),
    ("standing by", re.compile(r"standing by: another orchestrator serves (?P<group>\S+)")),
    ("taking over", re.compile(r"taking over (?P<group>\S+)")),
    ("disconnected", re.compile(r"the connection to the broker ended: (?P<reason>.*)")),
)


@dataclass(frozen=True, slots=True)
class Sign:
    """Something that an orchestrator has logged.

    Attributes:
        word: what.
        at: when, as `time.time()`.
        epoch: which began or ended.
        rank: which registered.
        pid: its process.
        rows: that were under way when the epoch ended, and are issued again.
        reason: why.
    """

    word: Word
    at: float
    epoch: int = 0
    rank: int = 0
    pid: int = 0
    rows: int = 0
    reason: str = ""


def sign_of(line: bytes) -> Sign | None:
    """What a line of a log in JSON tells; None for any other line."""
    try:
        entry: Any = json.loads(line)
        at, message = float(entry["time"]), str(entry["message"])
    except (ValueError, KeyError, TypeError):
        return None
    for word, pattern in _PATTERNS:
        if found := pattern.match(message):
            told = found.groupdict()
            numbers = {name: int(told[name]) for name in ("epoch", "rank", "pid", "rows") if name in told}
            return Sign(word, at, **numbers, reason=told.get("reason", ""))
    return None
