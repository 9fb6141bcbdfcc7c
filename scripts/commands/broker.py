"""`rankmq broker`: the private broker alone."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..options import with_settings

if TYPE_CHECKING:
    from ...engine.settings import Settings

__all__ = ["add_to"]

_EPILOG = """
Examples:

    rankmq broker

    rankmq broker --port 5672 --state /var/lib/rankmq

    rankmq broker --show-password

It listens on loopback alone. `rankmq orchestrator`, `agents`, `infer` and `status` find it by the state folder. \
What is queued there survives a restart.
"""


def add_to(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("broker", epilog=_EPILOG)(broker)


@with_settings("broker")
def broker(
    settings: Settings,
    port: Annotated[
        int,
        typer.Option(
            "--port",
            metavar="N",
            help="AMQP port (default: the one it had last, else any that is free).",
            min=0,
            max=65535,
            show_default=False,
        ),
    ] = 0,
    show_password: Annotated[bool, typer.Option("--show-password", help="Print the URL with its password.")] = False,
) -> None:
    """Run a private RabbitMQ node in the foreground; its user, password and queues are kept in the state folder."""
    from pydantic import SecretStr

    from ...schemas.errors import BrokerUnavailable
    from ...workers.broker import PrivateBroker
    from ...workers.endpoint import Endpoint, state_folder

    signal.signal(signal.SIGTERM, _end)
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a shell has it ignored in what it starts in the background
    folder = state_folder(settings)
    with PrivateBroker(folder / "broker", port=port) as node:
        known = settings.model_copy(update={"broker_url": SecretStr(node.url)})
        endpoint = Endpoint.of(known)
        endpoint.write(folder)
        try:
            if show_password:
                typer.echo(node.url)
            else:
                typer.echo(f"{known.address()}  (its password is in {folder / 'endpoint.json'})")
            node.wait()
        finally:
            endpoint.remove(folder)
        raise BrokerUnavailable(f"the private broker ended; see {node.log_file}")


def _end(*_: Any) -> None:
    raise typer.Exit
