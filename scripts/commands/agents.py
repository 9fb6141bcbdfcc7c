"""`rankmq agents`: the agents of this host, one process per rank."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..options import Paths, Version, with_settings

if TYPE_CHECKING:
    from ...engine.servable import Servable
    from ...engine.settings import Settings

__all__ = ["add_to"]

_EPILOG = """
Examples:

    rankmq agents my_servables --broker-url amqp://me:secret@broker/

    rankmq agents my_servables/matmul --ranks 0-3

    rankmq agents my_servables/matmul --rank-table rank_table.json --host 10.0.0.2

    rankmq agents my_servables/one_graph --model-files 'out/rank_{rank}/graph.mindir'

Stop them with Ctrl-C or SIGTERM: each finishes the steps that it was sent.
"""


def add_to(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("agents", epilog=_EPILOG)(agents)


@with_settings("launcher", blobs=True)
def agents(
    settings: Settings,
    paths: Paths,
    servable: Annotated[
        str | None,
        typer.Option("--servable", metavar="NAME", help="Only this one of the servables in PATH.", show_default=False),
    ] = None,
    version: Version = 0,
    ranks: Annotated[
        str | None,
        typer.Option("--ranks", metavar="0-7|0,2,5", help="Which ranks (default: all).", show_default=False),
    ] = None,
    rank_table: Annotated[
        Path | None,
        typer.Option("--rank-table", metavar="FILE", help="The ranks that it has for this host.", show_default=False),
    ] = None,
    host: Annotated[
        str | None,
        typer.Option(
            "--host",
            metavar="NAME",
            help="This host's name in the rank table (default: its host name).",
            show_default=False,
        ),
    ] = None,
    group: Annotated[
        str, typer.Option("--group", metavar="NAME", help="Their group among the servables' replicas.")
    ] = "g0",
    model_files: Annotated[
        list[str] | None,
        typer.Option(
            "--model-files",
            metavar="PATTERN",
            help="A file per subgraph, in their order, {rank} in it for the rank (default: found by their place). "
            "Give it once per subgraph.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Run the agents of this host for the servables in PATH."""
    from ...schemas.messages import GroupId
    from ...workers.endpoint import reachable
    from ...workers.launcher import Launcher
    from ..foreground import run_service
    from ..report import Usage

    if ranks is not None and rank_table is not None:
        raise Usage("either --ranks or --rank-table says which ranks these are, not both")
    settings = reachable(settings)
    chosen = _chosen(paths, version, servable, model_files or ())
    files = {
        GroupId(servable=it.name, version=it.version, group=group): _files(
            it, _ranks(it, ranks, rank_table, host), model_files or ()
        )
        for it in chosen
    }
    launcher = Launcher(files, settings, host=host)
    run_service(launcher.run, launcher.stop)


def _chosen(paths: Sequence[Path], version: int, name: str | None, model_files: Sequence[str]) -> list[Servable]:
    from ...engine.loader import load_servable
    from ...schemas.errors import ServableError
    from ..servable_paths import find_servables

    homes = find_servables(paths)
    if name is not None:
        found = ", ".join(home.name for home in homes)
        homes = [home for home in homes if home.name == name]
        if not homes:
            raise ServableError(f"no servable {name} in {', '.join(map(str, paths))}; there are: {found}")
    if model_files and len(homes) > 1:
        raise ServableError("--model-files needs --servable: there are " + ", ".join(home.name for home in homes))
    loaded = [load_servable(home.parent, home.name, version, require_models=False) for home in homes]
    with_models = [it for it in loaded if it.models]
    if not with_models:
        raise ServableError("no model is declared: a servable without a model needs no agents")
    return with_models


def _ranks(servable: Servable, ranks: str | None, table: Path | None, host: str | None) -> tuple[int, ...]:
    import socket

    from ...engine.distributed import rank_table_of
    from ...schemas.errors import ConfigurationError
    from ..report import Usage
    from ..servable_paths import parse_ranks

    if table is not None:
        name = host or socket.gethostname()
        entries = rank_table_of(servable, table)
        found = entries.ranks_of(name)
        if not found:
            hosts = ", ".join(entries.hosts())
            raise ConfigurationError(f"it has no rank on {name}: say with --host which of {hosts}", file=str(table))
        return found
    if ranks is None:
        return tuple(range(servable.rank_size))
    chosen = parse_ranks(ranks)
    if chosen[-1] >= servable.rank_size:
        raise Usage(f"--ranks {ranks}: servable {servable.name} has ranks 0 to {servable.rank_size - 1}")
    return chosen


def _files(servable: Servable, ranks: Sequence[int], patterns: Sequence[str]) -> dict[int, Sequence[Path]]:
    from ...engine.loader import files_of_ranks
    from ...engine.model_files import check_model_files
    from ...schemas.errors import ModelError
    from ..servable_paths import expand

    if patterns:
        expanded = expand(patterns, ranks)
        check_model_files(list(expanded.values()), len(ranks), servable.subgraph_count, list(expanded))
        return dict(expanded)
    try:
        return dict(files_of_ranks(servable, ranks))
    except ModelError as error:
        if len(ranks) == servable.rank_size:
            raise
        raise ModelError(f"{error.message}; say with --model-files where those of these ranks are") from None
