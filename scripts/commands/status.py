"""`rankmq status`: what runs, rank by rank, and what waits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..options import with_settings

if TYPE_CHECKING:
    from ...engine.settings import Settings
    from ...schemas.messages import GroupStatus, Status

__all__ = ["add_to"]

_EPILOG = """
Examples:

    rankmq status

    rankmq status --json | jq '.[0].groups[0].ranks[].step'

Exit code 0 if all groups are ready, 6 if one is not or nothing runs.
"""

_NOT_READY = 6


def add_to(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("status", epilog=_EPILOG)(status)


@with_settings("operator", quiet=True)
def status(
    settings: Settings,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON: a list with an object per orchestrator.")
    ] = False,
    timeout: Annotated[
        float, typer.Option("--timeout", metavar="SECONDS", help="How long to wait for the first answer.", min=0.001)
    ] = 3.0,
) -> None:
    """Ask every orchestrator on the broker what it serves and how it is."""
    from ...engine.status import collect_status
    from ...workers.endpoint import reachable

    settings = reachable(settings)
    answers = collect_status(settings, name="rankmq status", timeout=timeout)
    if as_json:
        import msgspec

        typer.echo(msgspec.json.format(msgspec.json.encode(answers)).decode())
    elif not answers:
        typer.echo(f"no orchestrator answers on {settings.address()}", err=True)
    else:
        _print(answers)
    if not answers or any(group.state != "ready" for it in answers for group in it.groups):
        raise typer.Exit(_NOT_READY)


def _print(answers: Sequence[Status]) -> None:
    from ..show import console

    out = console()
    for it in answers:
        out.print(
            f"[bold]orchestrator[/] {it.orchestrator}: up {_duration(it.uptime_seconds)}, "
            f"{it.in_flight} of {it.max_in_flight} in flight, {it.served} served, {it.failed} failed"
        )
        for group in it.groups:
            out.print()
            _print_group(out, group)
        out.print()
        out.print(_queues(it))


def _print_group(out: Any, group: GroupStatus) -> None:
    from rich.markup import escape
    from rich.table import Table

    color = "green" if group.state == "ready" else "yellow"
    out.print(
        f"[bold]{group.group}[/] [{color}]{group.state}[/]: epoch {group.epoch}, {group.step} steps, {group.size} "
        f"ranks, communication {group.communication}, {group.waiting} rows waiting"
    )
    if group.subgraphs:
        names = f"subgraphs {', '.join(group.subgraphs)}; methods {', '.join(group.methods)}"
        out.print(f"  {escape(names)}", style="dim")
    if group.slots:
        out.print(f"  {group.slots_held} of {group.slots} slots held, {group.slots_waiting} requests wait for one")
    if group.forming is not None:
        missing = f"ranks {_ranges(group.forming.missing)} are missing; " if group.forming.missing else ""
        out.print(f"  [yellow]{missing}{escape(group.forming.reason)}[/]")
    with_errors = any(rank.last_error for rank in group.ranks)
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("rank", "pid", "step", "memory", "restarts"):
        table.add_column(name, justify="right")
    for name in ("state", "host", "queue", *(("last error",) if with_errors else ())):
        table.add_column(name, overflow="fold")
    for rank in group.ranks:
        table.add_row(
            str(rank.rank),
            str(rank.pid or ""),
            str(rank.step) if rank.step >= 0 else "",
            _memory(rank.rss),
            str(rank.restarts or ""),
            rank.state,
            escape(rank.host),
            escape(rank.queue),
            *([escape(rank.last_error)] if with_errors else []),
        )
    out.print(table)


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
    from ..show import human_bytes

    return human_bytes(rss) if rss else ""


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = int(seconds // 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = [f"{days} d" if days else "", f"{hours} h" if hours else "", f"{minutes} min"]
    return " ".join(part for part in parts if part)


def _ranges(numbers: Sequence[int]) -> str:
    """`0-2, 5` for 0, 1, 2, 5."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
