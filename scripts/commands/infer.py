"""`rankmq infer`: one request, from a shell."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..options import with_settings

if TYPE_CHECKING:
    from ...engine.settings import Settings
    from ...schemas.errors import RankmqError
    from ...schemas.messages import Reply

__all__ = ["add_to"]

_EPILOG = """
VALUE is JSON, or names a file:

    rankmq infer matmul fun1 -i x=@x.npy

    rankmq infer matmul predict -i x=@inputs.npz:x -i y=@inputs.npz:y --output answer.npz

    rankmq infer add sum -i 'a=[1,2,3]' -i 'b={"dtype":"float32","shape":[3],"data":[1,2,3]}'

    rankmq infer add sum --inputs instances.json --output - | jq .

    rankmq infer smollm2 chat -i 'prompt="Who are you?"' -i 'options="{}"' --stream

An .npz file with --inputs has one array per input; a .json file has one instance, {"x": VALUE}, or a list of them. \
Inputs without a dtype become what the graph takes, where that loses nothing but the last digits of what becomes a \
float. With --stream each part of the answer is a line of JSON, on standard error where the outputs go to a file.
"""


def add_to(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("infer", epilog=_EPILOG)(infer)


@with_settings("producer", quiet=True, blobs=True)
def infer(
    settings: Settings,
    servable: Annotated[str, typer.Argument(metavar="SERVABLE", help="The servable's name.", show_default=False)],
    method: Annotated[str, typer.Argument(metavar="METHOD", help="A method or pipeline of it.", show_default=False)],
    version: Annotated[
        int, typer.Option("--version", metavar="N", help="The servable's version; 0 is the newest.", min=0)
    ] = 0,
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", "-i", metavar="NAME=VALUE", help="An input; once for each.", show_default=False),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option("--inputs", metavar="FILE", help="Inputs from a .json or .npz file.", show_default=False),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE|-",
            help="Write the outputs to a .npz or .json file, or as JSON to standard output.",
            show_default=False,
        ),
    ] = None,
    timeout: Annotated[float, typer.Option("--timeout", metavar="SECONDS", help="How long to wait.", min=0.001)] = 60.0,
    deadline: Annotated[
        float | None,
        typer.Option(
            "--deadline",
            metavar="SECONDS",
            help="How long the request is worth serving (default: as long as the command waits).",
            show_default=False,
            min=0.001,
        ),
    ] = None,
    lane: Annotated[
        str, typer.Option("--lane", metavar="LANE", help="high, normal or low: which go first where many wait.")
    ] = "normal",
    request_id: Annotated[
        str | None,
        typer.Option(
            "--request-id",
            metavar="ID",
            help="The request's id: asked again under it, it has the same answer, and `rankmq cancel` takes it "
            "(default: made up).",
            show_default=False,
        ),
    ] = None,
    stream: Annotated[bool, typer.Option("--stream", help="Show parts of the answer as they are made.")] = False,
) -> None:
    """Send one request and show its answer."""
    from ...engine.client import Client
    from ...engine.client_terms import check_id, check_lane
    from ...engine.client_values import rows_of
    from ...schemas.errors import InvalidInput
    from ...workers.endpoint import reachable
    from ..report import Usage
    from ..values import named_values, part_text, read_instances

    if output is not None and output != "-" and Path(output).suffix not in (".json", ".npz"):
        raise Usage(f"--output {output}: a .json or an .npz file, or - for JSON on standard output")
    try:
        check_lane(lane)
        if request_id is not None:
            check_id(request_id)
    except InvalidInput as error:
        raise Usage(error.message) from None
    rows, as_list = ([{}], False) if file is None else read_instances(file)
    given = named_values(inputs or ())
    settings = reachable(settings)
    client = Client(
        settings.address().url(),
        servable,
        method,
        version,
        lane=lane,
        timeout=timeout,
        connect_timeout=min(settings.connect_timeout, timeout),
        ca_file=settings.tls_ca_file,
        cert_file=settings.tls_cert_file,
        key_file=settings.tls_key_file,
        blob_store=settings.blob_store.get_secret_value() if settings.blob_store is not None else None,
        inline_limit=settings.inline_limit,
    )
    instances = [{**row, **given} for row in rows]
    with client:
        if stream:
            with client.stream(instances, deadline=deadline, request_id=request_id) as parts:
                for part in parts:
                    typer.echo(part_text(part), err=output not in (None, "-"))
                reply = parts.reply()
        else:
            reply = client.request(instances, deadline=deadline, request_id=request_id)
    _show(rows_of(reply), reply, output, as_list)


def _show(rows: list[dict[str, Any] | RankmqError], reply: Reply, output: str | None, as_list: bool) -> None:
    from ...engine.client_values import failures_of
    from ...schemas.errors import InstancesFailed, RankmqError
    from ..show import console, outputs_table
    from ..values import json_text, write_outputs

    results = [None if isinstance(row, RankmqError) else row for row in rows]
    if output == "-":
        typer.echo(json_text(results, as_list=as_list))
    elif output is not None:
        write_outputs(Path(output), results, as_list=as_list)
        typer.echo(f"written to {output}")
    else:
        out = console()
        out.print(outputs_table(rows))
        if reply.stats is not None:
            steps = f"{reply.stats.steps} step{'' if reply.stats.steps == 1 else 's'}"
            out.print(f"served in {reply.stats.served_ms:.1f} ms, {steps}", style="dim")
    errors = [row for row in rows if isinstance(row, RankmqError)]
    if len(errors) == len(rows) == 1:
        raise errors[0]
    if errors:
        raise InstancesFailed(failures_of(rows), [])
