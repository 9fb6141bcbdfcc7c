"""`rankmq orchestrator`: takes requests and walks them through their pipelines; the agents are started elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..options import Paths, Version, with_settings

if TYPE_CHECKING:
    from ...engine.settings import Settings

__all__ = ["add_to"]

_EPILOG = """
Examples:

    rankmq orchestrator my_servables --broker-url amqp://me:secret@broker/

    rankmq orchestrator my_servables/matmul --rank-table rank_table_8pcs.json --wait-agents 60

Start its agents with `rankmq agents`, here or on other hosts, before or after it. Stop it with Ctrl-C or SIGTERM: it \
finishes the requests that run; those that wait stay on the broker.
"""


def add_to(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("orchestrator", epilog=_EPILOG)(orchestrator)


@with_settings("orchestrator", tuning=True, blobs=True)
def orchestrator(
    settings: Settings,
    paths: Paths,
    version: Version = 0,
    rank_table: Annotated[
        Path | None,
        typer.Option(
            "--rank-table",
            metavar="FILE",
            help="Which rank is on which host (default: all on this one).",
            show_default=False,
        ),
    ] = None,
    group: Annotated[
        str, typer.Option("--group", metavar="NAME", help="Its group among the servables' replicas.")
    ] = "g0",
) -> None:
    """Run an orchestrator for the servables in PATH."""
    from ...engine.catalog import Catalog
    from ...engine.collector import calm
    from ...engine.distributed import rank_table_of
    from ...engine.orchestrator import Orchestrator
    from ...workers.endpoint import reachable
    from ..foreground import run_service
    from ..servable_paths import load_servables

    catalog = Catalog(load_servables(paths, version, require_models=False))
    tables = {}
    if rank_table is not None:
        tables = {(it.name, it.version): rank_table_of(it, rank_table) for it in catalog if it.models}
    calm()
    service = Orchestrator(catalog, reachable(settings), rank_tables=tables, group=group)
    run_service(service.run, service.stop)
