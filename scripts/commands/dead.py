"""`rankmq dead`: look into the dead letters, send them again, throw them away."""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from ..options import with_settings

if TYPE_CHECKING:
    from ...engine.connection import Connection
    from ...engine.dead_letters import DeadLetter, Wanted
    from ...engine.dead_work import Tally
    from ...engine.delivery import Delivery
    from ...engine.settings import Settings

__all__ = ["add_to"]

T = TypeVar("T")

_STAYED = 8
_MOST_SHOWN = 20
_UNITS = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}

_EPILOG = """
Examples:

    rankmq dead list --servable matmul --newer 2h

    rankmq dead show 6f1c...

    rankmq dead replay --code reply_unroutable --reply-to answers --dry-run

    rankmq dead purge --older 7d --yes

Looking changes nothing. While one `rankmq dead` runs, the letters are with it, and others do not see them.
"""


def _age(text: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?(s|m|min|h|d|)", text.strip())
    if found is None:
        raise typer.BadParameter(f"{text!r}: write an age as 90s, 10m, 2h or 3d")
    return float(found[1]) * _UNITS[found[2]]


_PANEL = "Which"

_Ids = Annotated[list[str] | None, typer.Argument(metavar="ID", help="These, by the request's id.", show_default=False)]
_Servable = Annotated[
    str,
    typer.Option("--servable", metavar="NAME", help="For this servable.", rich_help_panel=_PANEL, show_default=False),
]
_Code = Annotated[
    str,
    typer.Option(
        "--code",
        metavar="CODE",
        help="With this error code: reply_unroutable, expired and so on.",
        rich_help_panel=_PANEL,
        show_default=False,
    ),
]
_Reason = Annotated[
    str,
    typer.Option(
        "--reason",
        metavar="WORD",
        help="With this word in the reason or the last error.",
        rich_help_panel=_PANEL,
        show_default=False,
    ),
]
_Older = Annotated[
    float | None,
    typer.Option(
        "--older",
        metavar="AGE",
        parser=_age,
        help="Dead for so long at least: 90s, 10m, 2h, 3d.",
        rich_help_panel=_PANEL,
        show_default=False,
    ),
]
_Newer = Annotated[
    float | None,
    typer.Option(
        "--newer",
        metavar="AGE",
        parser=_age,
        help="Dead for so long at most.",
        rich_help_panel=_PANEL,
        show_default=False,
    ),
]
_Limit = Annotated[
    int,
    typer.Option(
        "--limit",
        metavar="N",
        min=0,
        help="So many at most, the oldest first; 0 for all.",
        rich_help_panel=_PANEL,
    ),
]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_Dry = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")]
_Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def add_to(app: typer.Typer) -> None:
    """Adds the commands."""
    group = typer.Typer(
        help="Look into the dead letters, send them again, throw them away.", epilog=_EPILOG, no_args_is_help=True
    )
    for command in (list_, show, replay, purge):
        group.command(command.__name__.strip("_"), epilog=_EPILOG)(command)
    app.add_typer(group, name="dead")


@with_settings("operator", quiet=True)
def list_(
    settings: Settings,
    ids: _Ids = None,
    servable: _Servable = "",
    code: _Code = "",
    reason: _Reason = "",
    older: _Older = None,
    newer: _Newer = None,
    limit: _Limit = _MOST_SHOWN,
    as_json: _Json = False,
) -> None:
    """List the dead letters, the oldest first."""
    from ...engine.dead_work import look
    from ..dead_page import HEAD, line
    from ..dead_page import as_json as json_of

    now = time.time()
    printed = 0

    def see(letter: DeadLetter, _: Delivery) -> None:
        nonlocal printed
        if as_json:
            typer.echo(("[" if not printed else ",\n ") + json.dumps(json_of(letter), ensure_ascii=False), nl=False)
        else:
            typer.echo((f"{HEAD}\n" if not printed else "") + line(letter, now))
        printed += 1

    wanted = _wanted(ids, servable, code, reason, older, newer)
    tally = _run(settings, lambda connection: look(connection, wanted, see, most=limit))
    if as_json:
        typer.echo("]" if printed else "[]")
    _say_total(tally)


@with_settings("operator", quiet=True)
def show(
    settings: Settings,
    id: Annotated[str, typer.Argument(metavar="ID", help="The request's id.", show_default=False)],
    as_json: _Json = False,
) -> None:
    """Show one dead letter whole, with its inputs."""
    from ...engine.dead_work import look
    from ..dead_page import in_full, with_inputs
    from ..report import Usage
    from ..show import console

    found: list[tuple[DeadLetter, Delivery]] = []

    def see(letter: DeadLetter, delivery: Delivery) -> None:
        found.append((letter, delivery))

    wanted = _wanted([id], "", "", "", None, None)
    tally = _run(settings, lambda connection: look(connection, wanted, see, most=_MOST_SHOWN))
    if not found:
        raise Usage(f"no dead letter has the id {id!r}: rankmq dead list shows those that there are{_held(tally)}")
    for number, (letter, delivery) in enumerate(found):
        if as_json:
            typer.echo(json.dumps(with_inputs(letter, delivery), ensure_ascii=False))
        else:
            console().print(*([""] if number else []), in_full(letter, delivery, time.time()), sep="\n")


@with_settings("operator", quiet=True)
def replay(
    settings: Settings,
    ids: _Ids = None,
    servable: _Servable = "",
    code: _Code = "",
    reason: _Reason = "",
    older: _Older = None,
    newer: _Newer = None,
    limit: _Limit = 0,
    reply_to: Annotated[
        str,
        typer.Option(
            "--reply-to",
            metavar="QUEUE",
            help="For the answers to letters whose own reply queue is gone, or that named none.",
            show_default=False,
        ),
    ] = "",
    keep_deadline: Annotated[
        bool, typer.Option("--keep-deadline", help="Their deadlines still count; else they have none.")
    ] = False,
    dry_run: _Dry = False,
    yes: _Yes = False,
    as_json: _Json = False,
) -> None:
    """Send dead letters again, as they were at first. Each is let go of once the broker has it."""
    from ...engine.connection import Connection
    from ...engine.dead_queue import queue_exists
    from ...engine.dead_work import replay as send_again
    from ...engine.direct_replies import DirectReplies, is_direct
    from ..dead_page import remarks
    from ..report import Usage

    wanted = _wanted(ids, servable, code, reason, older, newer)

    async def work(connection: Connection, most: int) -> Tally:
        if reply_to and (is_direct(reply_to) or not await queue_exists(connection, reply_to)):
            raise Usage(f"--reply-to {reply_to}: there is no such queue; declare it first")
        direct = DirectReplies(partial(Connection.open, settings.address(), name="rankmq dead, asking"))
        try:
            return await send_again(
                connection,
                wanted,
                most=most,
                reply_to=reply_to,
                keep_deadline=keep_deadline,
                dry=dry_run,
                direct=direct,
            )
        finally:
            await direct.close()

    most = limit if dry_run or yes else _agreed(settings, wanted, limit, "Send {} again?")
    tally = _run(settings, lambda connection: work(connection, most)) if most is not None else None
    if tally is None:
        return
    _say_done(tally, "sent again", dry_run=dry_run, as_json=as_json)
    for text in remarks(tally):
        typer.echo(f"rankmq: {text}", err=True)
    if tally.stayed:
        raise typer.Exit(_STAYED)


@with_settings("operator", quiet=True, blobs=True)
def purge(
    settings: Settings,
    ids: _Ids = None,
    servable: _Servable = "",
    code: _Code = "",
    reason: _Reason = "",
    older: _Older = None,
    newer: _Newer = None,
    limit: _Limit = 0,
    dry_run: _Dry = False,
    yes: _Yes = False,
    as_json: _Json = False,
) -> None:
    """Throw dead letters away, for good; with a blob store their blobs too."""
    from ...engine.dead_work import look
    from ...engine.dead_work import purge as throw_away

    store = settings.blobs()
    wanted = _wanted(ids, servable, code, reason, older, newer)
    most = limit if dry_run or yes else _agreed(settings, wanted, limit, "Throw {} away for good?")
    if most is None:
        return
    tally = _run(
        settings,
        lambda connection: (
            look(connection, wanted, most=most) if dry_run else throw_away(connection, wanted, most=most)
        ),
    )
    if store is not None:
        store.delete(tally.blobs)
    _say_done(tally, "thrown away", dry_run=dry_run, as_json=as_json)


def _wanted(
    ids: list[str] | None, servable: str, code: str, reason: str, older: float | None, newer: float | None
) -> Wanted:
    from ...engine.dead_letters import Wanted

    return Wanted(frozenset(ids or ()), servable, code, reason, older, newer)


def _run(settings: Settings, work: Callable[[Connection], Awaitable[T]]) -> T:
    from ...engine.connection import Connection
    from ...workers.endpoint import reachable

    found = reachable(settings)

    async def main() -> T:
        connection = await Connection.open(found.address(), name="rankmq dead", patience=found.connect_timeout)
        try:
            return await work(connection)
        finally:
            await connection.close()

    return asyncio.run(main())


def _agreed(settings: Settings, wanted: Wanted, limit: int, question: str) -> int | None:
    """How many letters a person agrees to: those that there are now, and no later ones; None for no."""
    from ...engine.dead_work import look
    from ..report import Usage

    if not sys.stdin.isatty():
        raise Usage("nobody is there to be asked: give --yes, or --dry-run to see what it would do")
    tally = _run(settings, lambda connection: look(connection, wanted, most=limit))
    if not tally.done:
        _say_total(tally)
        return None
    count = f"{tally.done} of {tally.total} dead letters"
    return tally.done if typer.confirm(question.format(count), err=True) else None


def _say_total(tally: Tally) -> None:
    shown = f"{tally.done} of " if tally.done < tally.meant else ""
    found = f"{shown}{tally.meant} of " if tally.meant < tally.total else shown
    more = "; --limit 0 shows all" if tally.done < tally.meant else ""
    typer.echo(f"{found}{tally.total} dead letters{more}{_held(tally)}", err=True)


def _held(tally: Tally) -> str:
    return "; somebody else looks at them just now, and may have more" if tally.others else ""


def _say_done(tally: Tally, what: str, *, dry_run: bool, as_json: bool) -> None:
    if as_json:
        stayed = [{"reason": why, "count": it.count, "ids": it.ids} for why, it in tally.stayed.items()]
        told = {"total": tally.total, "meant": tally.meant, "done": tally.done, "dry_run": dry_run, "stayed": stayed}
        typer.echo(json.dumps(told, ensure_ascii=False))
        return
    would = "would be " if dry_run else ""
    typer.echo(f"{tally.done} of {tally.total} dead letters {would}{what}{_held(tally)}")
