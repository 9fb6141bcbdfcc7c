"""Logs: time, role, rank, epoch and request id, as lines for people or as JSON, to standard error."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any, Literal, TextIO

__all__ = ["configure"]

_FIELDS = ("role", "rank", "epoch", "request")

# What comes from a producer must not look like lines of ours, nor speak to the terminal.
_UNSAFE = (*range(127, 160), 0x2028, 0x2029)
_IN_LINES = {code: f"\\u{code:04x}" for code in (*range(32), *_UNSAFE)}
_IN_JSON = {code: f"\\u{code:04x}" for code in _UNSAFE}


class _Context(logging.Filter):
    """Gives every record the fields of its process, unless it has its own."""

    def __init__(self, role: str, rank: int | None) -> None:
        super().__init__()
        self._given = {"role": role, "rank": rank, "epoch": None, "request": None}

    def filter(self, record: logging.LogRecord) -> bool:
        for name, value in self._given.items():
            if not hasattr(record, name):
                setattr(record, name, value)
        return True


class _Lines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%H:%M:%S", time.localtime(record.created))
        role = getattr(record, "role", "")
        rank = getattr(record, "rank", None)
        who = role if rank is None else f"{role} {rank}"
        tags = "".join(
            f" {name}={value}" for name in ("epoch", "request") if (value := getattr(record, name, None)) is not None
        )
        words = f"{who}: {record.getMessage()}{tags}".translate(_IN_LINES)
        text = f"{moment}.{int(record.msecs):03d} {record.levelname.lower():7} {words}"
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        return text


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "time": round(record.created, 6),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        entry |= {name: value for name in _FIELDS if (value := getattr(record, name, None)) is not None}
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False, default=str).translate(_IN_JSON)


def configure(
    role: str,
    *,
    rank: int | None = None,
    form: Literal["lines", "json"] = "lines",
    level: str = "info",
    stream: TextIO | None = None,
) -> None:
    """Sets up the logs of this process.

    Args:
        role: orchestrator, agent, launcher, producer and so on.
        rank: the rank that the process holds.
        form: how entries are written.
        level: the least level that is written.
        stream: where to; standard error if None.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(_Json() if form == "json" else _Lines())
    handler.addFilter(_Context(role, rank))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
