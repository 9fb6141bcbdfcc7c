"""`rankmq cancel`: has the engine give up requests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ..options import with_settings

if TYPE_CHECKING:
    from ...engine.settings import Settings

__all__ = ["add_to"]

_EPILOG = """
Examples:

    rankmq cancel 3f0c2a5e8b214d6f9a77

    rankmq cancel order-17 order-18 --timeout 5

An id is the AMQP message_id of a request, `request_id` in Python, --request-id of `rankmq infer`. A request that \
waits leaves at once, one that runs at its next step; whoever sent it is answered with the error `cancelled`.

Exit code 0 if every request was cancelled or noted, 8 if one had been answered already, 9 if no orchestrator answers.
"""

_WORDS = {
    "cancelled": "cancelled",
    "answered": "answered already",
    "noted": "not known to any orchestrator: noted, it will not be served should it come",
    None: "no orchestrator answers: not cancelled",
}
_TOO_LATE = 8
_NOBODY = 9


def add_to(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("cancel", epilog=_EPILOG)(cancel)


@with_settings("producer", quiet=True)
def cancel(
    settings: Settings,
    ids: Annotated[list[str], typer.Argument(metavar="ID", help="Ids of requests.", show_default=False)],
    timeout: Annotated[
        float, typer.Option("--timeout", metavar="SECONDS", help="How long to wait for the engine's word.", min=0.001)
    ] = 2.0,
) -> None:
    """Have the engine give up requests, and show what became of each."""
    from ...engine.client_cancel import collect_cancels
    from ...engine.client_terms import check_id
    from ...schemas.errors import InvalidInput
    from ...workers.endpoint import reachable
    from ..report import Usage

    try:
        for request_id in ids:
            check_id(request_id)
    except InvalidInput as error:
        raise Usage(error.message) from None
    found = collect_cancels(reachable(settings), ids, name="rankmq cancel", timeout=timeout)
    for request_id in ids:
        typer.echo(f"{request_id}: {_WORDS[found.get(request_id)]}")
    states = {found.get(request_id) for request_id in ids}
    if None in states:
        raise typer.Exit(_NOBODY)
    if "answered" in states:
        raise typer.Exit(_TOO_LATE)
