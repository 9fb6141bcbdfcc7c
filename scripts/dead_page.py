"""What `rankmq dead` shows, from values. Text of a producer's is made harmless: it could speak to the terminal."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..engine.dead_letters import DeadLetter
    from ..engine.dead_work import Tally
    from ..engine.delivery import Delivery

__all__ = ["HEAD", "age", "as_json", "in_full", "line", "remarks", "with_inputs"]

_COLUMNS = (("died", 9), ("id", 34), ("code", 19), ("request", 24), ("tries", 5), ("size", 8), ("reason", 0))
_LONGEST_REASON = 100
_MOST_BODY = 256
_MOST_INSTANCES = 8
_UNSAFE = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))} | {0x2028: "\\u2028", 0x2029: "\\u2029"}

HEAD = "  ".join(name.ljust(width) for name, width in _COLUMNS).rstrip()


def line(letter: DeadLetter, now: float) -> str:
    """A letter in one line, under `HEAD`.

    Args:
        letter: as read.
        now: seconds since 1970.
    """
    from .show import human_bytes

    reason = _safe(letter.reason or letter.unreadable)
    cells = (
        age(letter.died_at, now),
        _safe(letter.id) or "-",
        _safe(letter.code) or "-",
        _request(letter),
        str(letter.attempts or "-"),
        human_bytes(letter.size),
        reason if len(reason) <= _LONGEST_REASON else reason[: _LONGEST_REASON - 3] + "...",
    )
    return "  ".join(cell.ljust(width) for cell, (_, width) in zip(cells, _COLUMNS, strict=True)).rstrip()


def in_full(letter: DeadLetter, delivery: Delivery, now: float) -> Any:
    """All of a letter, for a rich console."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in _facts(letter, now):
        table.add_row(name, Text(_safe(value)))
    return Group(table, "", *_body(letter, delivery))


def _facts(letter: DeadLetter, now: float) -> list[tuple[str, str]]:
    error = "" if letter.error == f"{letter.code}: {letter.reason}" else letter.error
    facts = (
        ("id", letter.id),
        ("request", _request(letter) + (f", version {letter.version}" if letter.version else "")),
        ("died", f"{_moment(letter.died_at)} ({age(letter.died_at, now)} ago)" if letter.died_at is not None else ""),
        ("code", letter.code),
        ("reason", letter.reason),
        ("last error", error),
        ("tries", str(letter.attempts or "")),
        ("epoch", "" if letter.epoch is None else str(letter.epoch)),
        ("exchange", letter.exchange or "(default)"),
        ("routing key", letter.routing_key),
        ("reply to", letter.reply_to or "(nobody)"),
        ("correlation id", letter.correlation_id),
        ("deadline", "" if letter.deadline is None else _moment(letter.deadline)),
        ("sent again", f"{letter.replayed} times" if letter.replayed else ""),
        ("content type", letter.content_type),
        ("size", f"{letter.size} bytes"),
    )
    return [(name, value) for name, value in facts if value]


def _body(letter: DeadLetter, delivery: Delivery) -> list[Any]:
    from rich.text import Text

    from ..engine.dead_letters import inputs_of
    from .show import outputs_table

    if letter.unreadable:
        return [Text(f"the body cannot be decoded: {_safe(letter.unreadable)}"), Text(_dump(delivery.body))]
    rows = inputs_of(delivery)
    more = len(rows) - _MOST_INSTANCES
    safe = [{_safe(name): value for name, value in row.items()} for row in rows[:_MOST_INSTANCES]]
    return [outputs_table(safe, "input"), *([Text(f"and {more} instances more")] if more > 0 else [])]


def _dump(body: bytes) -> str:
    """The first bytes of a body, 16 in a line, as numbers and as text."""
    lines = []
    for at in range(0, min(len(body), _MOST_BODY), 16):
        part = body[at : at + 16]
        text = "".join(chr(it) if 32 <= it < 127 else "." for it in part)
        lines.append(f"{at:06x}  {part.hex(' '):<47}  {text}")
    if len(body) > _MOST_BODY:
        lines.append(f"and {len(body) - _MOST_BODY} bytes more")
    return "\n".join(lines) or "(empty)"


def as_json(letter: DeadLetter) -> dict[str, Any]:
    """A letter as an object of JSON; moments are seconds since 1970."""
    return dataclasses.asdict(letter)


def with_inputs(letter: DeadLetter, delivery: Delivery) -> dict[str, Any]:
    """The same with its inputs, as tensors; or with its body in hexadecimal digits, if it cannot be decoded."""
    from ..engine.dead_letters import inputs_of

    if letter.unreadable:
        return {**as_json(letter), "body": delivery.body.hex()}
    rows = [{name: _tensor(value) for name, value in row.items()} for row in inputs_of(delivery)]
    return {**as_json(letter), "inputs": rows}


def _tensor(value: Any) -> Any:
    from ..schemas.errors import RankmqError
    from ..schemas.plain import tensor_to_json
    from ..schemas.tensors import from_array

    try:
        if isinstance(value, RankmqError):
            raise value
        return tensor_to_json(from_array(value))
    except RankmqError as error:
        return {"error": f"{error.code}: {error.message}"}


def remarks(tally: Tally) -> list[str]:
    """What must be said of letters that stayed, a line for each reason."""
    lines = []
    for reason, stayed in tally.stayed.items():
        ids = ", ".join(_safe(it) or "(no id)" for it in stayed.ids)
        more = f" and {stayed.count - len(stayed.ids)} more" if stayed.count > len(stayed.ids) else ""
        lines.append(f"{stayed.count} stay: {_safe(reason)} ({ids}{more})")
    return lines


def age(moment: float | None, now: float) -> str:
    """How long ago: `3 min`."""
    if moment is None:
        return "-"
    seconds = max(0.0, now - moment)
    for size, unit in ((86400.0, "d"), (3600.0, "h"), (60.0, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def _request(letter: DeadLetter) -> str:
    names = f"{letter.servable}.{letter.method}" if letter.method else letter.servable
    return _safe(names) or "-"


def _moment(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _safe(text: str) -> str:
    return text.translate(_UNSAFE).encode(errors="replace").decode()
