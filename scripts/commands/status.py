"""`rankmq status`: what runs, rank by rank, and what waits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ..options import with_settings

if TYPE_CHECKING:
    from ...engine.settings import Settings

__all__ = ["add_to"]

_EPILOG = """
Examples:

    rankmq status

    rankmq status --watch

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
    live: Annotated[bool, typer.Option("--watch", "-w", help="Show it again and again, until Ctrl-C.")] = False,
    timeout: Annotated[
        float, typer.Option("--timeout", metavar="SECONDS", help="How long to wait for the first answer.", min=0.001)
    ] = 3.0,
) -> None:
    """Ask every orchestrator on the broker what it serves and how it is."""
    from ...engine.status import collect_status
    from ...workers.endpoint import reachable
    from ..show import console
    from ..status_page import page
    from ..watch import watch

    settings = reachable(settings)
    if live:
        watch(settings, timeout=timeout)
        return
    answers = collect_status(settings, name="rankmq status", timeout=timeout)
    if as_json:
        import msgspec

        typer.echo(msgspec.json.format(msgspec.json.encode(answers)).decode())
    elif not answers:
        typer.echo(f"no orchestrator answers on {settings.address()}", err=True)
    else:
        console().print(page(answers))
    if not answers or any(group.state != "ready" for it in answers for group in it.groups):
        raise typer.Exit(_NOT_READY)
