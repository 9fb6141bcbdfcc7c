"""The commands of `rankmq`, put together."""

from __future__ import annotations

from typing import Annotated

import typer

from .commands import agents, bench, broker, cancel, chaos, dead, demo, infer, job, orchestrator, schema, status, up
from .report import EXIT_CODES

__all__ = ["app"]

app = typer.Typer(
    name="rankmq",
    help="Batch inference over RabbitMQ for models that are split into several compiled graphs and run by ranks in "
    "lockstep.",
    epilog=f"""
Start here:

    rankmq demo                          see the matmul example at work

    rankmq up my_servables               run all on this machine

    rankmq infer matmul fun1 -i x=@x.npy   send a request

    rankmq status                        see what runs, rank by rank

Every setting is an option, an environment variable RANKMQ_NAME, or a key of the TOML file that RANKMQ_CONFIG names; \
the first that says something counts.

{EXIT_CODES}
""",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if not wanted:
        return
    from importlib import metadata

    try:
        version = metadata.version("rankmq")
    except metadata.PackageNotFoundError:
        version = "(not installed: run from its source)"
    typer.echo(f"rankmq {version}")
    raise typer.Exit


@app.callback()
def _rankmq(
    version: Annotated[
        bool, typer.Option("--version", help="Print rankmq's own version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    pass


for module in (up, infer, job, cancel, status, dead, demo, bench, chaos, broker, orchestrator, agents, schema):
    module.add_to(app)
