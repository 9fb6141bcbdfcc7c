"""`rankmq up`: everything on this machine."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..options import Paths, Version, with_settings

if TYPE_CHECKING:
    from ...engine.servable import Method, Pipeline, Servable
    from ...engine.settings import Settings
    from ...workers.local import LocalEngine

__all__ = ["add_to"]

_EPILOG = """
Examples:

    rankmq up my_servables

    rankmq up my_servables/matmul --state /var/lib/rankmq

    rankmq up my_servables --broker-url amqp://me:secret@broker/

    rankmq up my_servables/matmul --model-files 'out/{rank}/a.mindir' --model-files 'out/{rank}/b.mindir'

Without a broker's URL it starts a private RabbitMQ node, on loopback alone; what is queued there survives a restart. \
Stop it with Ctrl-C or SIGTERM: it finishes what runs. A second Ctrl-C does not wait for that.
"""


def add_to(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("up", epilog=_EPILOG)(up)


@with_settings("up", tuning=True, blobs=True)
def up(
    settings: Settings,
    paths: Paths,
    version: Version = 0,
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
    log_dir: Annotated[
        Path | None,
        typer.Option(
            "--log-dir",
            metavar="DIR",
            help="A log file per process there (default: standard error).",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Run broker, orchestrator and agents for the servables in PATH on this machine."""
    from ...workers.local import LocalEngine
    from ..progress import StartProgress
    from ..servable_paths import load_servables

    servables = load_servables(paths, version, model_files=model_files or ())
    with StartProgress(live=log_dir is not None) as progress:
        engine = LocalEngine(servables, settings, log_dir=log_dir, on_progress=progress.show, on_warning=progress.warn)
        asyncio.run(_serve(engine, progress))


async def _serve(engine: LocalEngine, progress: Any) -> None:
    from ..interrupts import Interrupts

    with Interrupts() as interrupts:
        interrupts.impatient = engine.kill
        async with engine:
            if await interrupts.first(engine.ready()):
                progress.close()
                _print(engine)
                await interrupts.first(engine.failed())
            progress.close()
            typer.echo("stopping")
    interrupts.raise_if_interrupted()


def _print(engine: LocalEngine) -> None:
    from rich.markup import escape

    from ...workers.endpoint import state_folder
    from ..show import console

    out = console()
    out.soft_wrap = True  # a path is for copying
    ranks = sum(servable.rank_size for servable in engine.servables)
    out.print(f"[bold green]rankmq is up[/] after {engine.seconds['ready']:.1f} s, with {ranks} ranks")
    folder = escape(str(engine.state_dir))
    out.print(f"  broker  {engine.settings.address()}  (its password is in {folder}/endpoint.json)")
    out.print(f"  state   {folder}")
    for servable in engine.servables:
        out.print(f"  [bold]{servable.name}[/]  version {servable.version}")
        for name, inputs, outputs, kind in _callable(servable):
            out.print(f"    {name}({inputs}) -> {outputs}{kind}")
    example = engine.servables[0]
    first = _first(example)
    given = " ".join(f"-i {it}=..." for it in first.input_names)
    default = state_folder(engine.settings.model_copy(update={"state_dir": None}))
    state = "" if engine.state_dir == default else f" --state {folder}"
    out.print(f"call it with: rankmq infer {example.name} {first.name} {given}{state}; stop with Ctrl-C", style="dim")


def _first(servable: Servable) -> Method | Pipeline:
    """What a person would call first: the first pipeline, or the first method where there is none."""
    found: list[Method | Pipeline] = [*servable.pipelines.values(), *servable.methods.values()]
    return found[0]


def _callable(servable: Servable) -> list[tuple[str, str, str, str]]:
    found: list[tuple[str, str, str, str]] = []
    for method in servable.methods.values():
        found.append((method.name, ", ".join(method.input_names), ", ".join(method.output_names), ""))
    for it in servable.pipelines.values():
        found.append((it.name, ", ".join(it.input_names), ", ".join(it.output_names), "  (pipeline)"))
    return found
