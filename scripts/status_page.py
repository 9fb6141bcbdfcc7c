"""What `rankmq status` shows, from values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..schemas.messages import GroupStatus, Status

__all__ = ["page"]


def page(answers: Sequence[Status]) -> Any:
    """Everything that the orchestrators said, for a rich console."""
    from rich.console import Group

    return Group(*(part for it in answers for part in _orchestrator(it)))


def _orchestrator(status: Status) -> list[Any]:
    from rich.text import Text

    head = Text.from_markup(
        f"[bold]orchestrator[/] {status.orchestrator}: up {_duration(status.uptime_seconds)}, "
        f"{status.in_flight} of {status.max_in_flight} in flight, {status.served} served, {status.failed} failed"
    )
    return [head, *(part for group in status.groups for part in ("", *_group(group))), "", _queues(status)]


def _group(group: GroupStatus) -> list[Any]:
    from rich.markup import escape
    from rich.text import Text

    color = {"ready": "green", "standby": "cyan"}.get(group.state, "yellow")
    parts = [
        f"[bold]{group.group}[/] [{color}]{group.state}[/]: epoch {group.epoch}, {_count(group.step, 'step')}, "
        f"{_count(group.size, 'rank')}{f' in {group.stage_size} stages' if group.stage_size > 1 else ''}, "
        f"communication {group.communication}, {_count(group.waiting, 'row')} waiting"
    ]
    if group.subgraphs:
        names = f"subgraphs {', '.join(group.subgraphs)}; methods {', '.join(group.methods)}"
        parts.append(f"  [dim]{escape(names)}[/]")
    if group.slots:
        waiting = f"{_count(group.slots_waiting, 'instance')} {'waits' if group.slots_waiting == 1 else 'wait'} for one"
        parts.append(f"  {group.slots_held} of {_count(group.slots, 'slot')} held, {waiting}")
    if group.forming is not None and group.state != "standby":
        ranks, one = _ranges(group.forming.missing), len(group.forming.missing) == 1
        missing = (f"rank {ranks} is missing; " if one else f"ranks {ranks} are missing; ") if ranks else ""
        parts.append(f"  [yellow]{missing}{escape(group.forming.reason)}[/]")
    return [*(Text.from_markup(part) for part in parts), _ranks(group)]


def _ranks(group: GroupStatus) -> Any:
    from rich.markup import escape
    from rich.table import Table

    with_errors = any(rank.last_error for rank in group.ranks)
    newest = max((rank.step for rank in group.ranks), default=-1)
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("rank", "pid", "step", "lag", "memory", "restarts"):
        table.add_column(name, justify="right")
    for name in ("state", "host", "queue", *(("last error",) if with_errors else ())):
        table.add_column(name, overflow="fold")
    for rank in group.ranks:
        table.add_row(
            str(rank.rank),
            str(rank.pid or ""),
            str(rank.step) if rank.step >= 0 else "",
            str(newest - rank.step) if rank.step >= 0 else "",
            _memory(rank.rss),
            str(rank.restarts or ""),
            rank.state,
            escape(rank.host),
            escape(rank.queue),
            *([escape(rank.last_error)] if with_errors else []),
        )
    return table


def _queues(status: Status) -> Any:
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("queue")
    table.add_column("waiting", justify="right")
    table.add_column("consumers", justify="right")
    for queue in status.queues:
        table.add_row(queue.name, str(queue.messages), str(queue.consumers))
    return table


def _memory(rss: int) -> str:
    from .show import human_bytes

    return human_bytes(rss) if rss else ""


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = int(seconds // 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = [f"{days} d" if days else "", f"{hours} h" if hours else "", f"{minutes} min"]
    return " ".join(part for part in parts if part)


def _count(number: int, what: str) -> str:
    """`1 rank`, `2 ranks`."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def _ranges(numbers: Sequence[int]) -> str:
    """`0-2, 5` for 0, 1, 2, 5."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
