"""The arguments and options of `rankmq job`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "Base64",
    "Deadline",
    "Input",
    "Json",
    "Lane",
    "LineBytes",
    "Map",
    "Method",
    "Output",
    "Patience",
    "Record",
    "Results",
    "RowsPerRequest",
    "Servable",
    "Version",
    "Which",
    "Window",
]

_PANEL = "How it is run"

Input = Annotated[
    str,
    typer.Argument(
        metavar="INPUT",
        help="A .jsonl, .npz, .npy or .parquet file, a folder of .npy files, or - for JSON lines on standard input; a "
        "path or anything that fsspec opens.",
        show_default=False,
    ),
]
Servable = Annotated[str, typer.Option("--servable", "-s", metavar="NAME", help="The servable.", show_default=False)]
Method = Annotated[
    str, typer.Option("--method", "-m", metavar="NAME", help="A method or pipeline of it.", show_default=False)
]
Version = Annotated[int, typer.Option("--version", metavar="N", help="The servable's version; 0 is the newest.", min=0)]
Output = Annotated[
    str,
    typer.Option("--output", "-o", metavar="DIR", help="A folder for results, errors and summary.", show_default=False),
]
Results = Annotated[
    str | None,
    typer.Option(
        "--results",
        metavar="NAME",
        help="The results' file in it: .jsonl, .npz, .npy, .parquet, or a folder, NAME/ (default: as the input).",
        show_default=False,
    ),
]
Map = Annotated[
    list[str] | None,
    typer.Option(
        "--map",
        metavar="INPUT[=COLUMN][:DTYPE]",
        help="Which column is which input; once for each (default: by their names).",
        show_default=False,
    ),
]
Lane = Annotated[str, typer.Option("--lane", metavar="LANE", help="high, normal or low.", rich_help_panel=_PANEL)]
Base64 = Annotated[
    bool, typer.Option("--base64", help="Tensors in JSON lines with dtype, shape and base64, not as nested lists.")
]
RowsPerRequest = Annotated[
    int | None,
    typer.Option(
        "--rows-per-request",
        metavar="N",
        help="So many rows travel together (default: it adapts).",
        min=1,
        max=4096,
        rich_help_panel=_PANEL,
        show_default=False,
    ),
]
LineBytes = Annotated[
    int,
    typer.Option("--line-bytes", metavar="BYTES", help="A longer line of JSON fails.", min=64, rich_help_panel=_PANEL),
]
Deadline = Annotated[
    float | None,
    typer.Option(
        "--deadline",
        metavar="SECONDS",
        help="So long a request may take once it has begun; past it its rows are sent one by one, and one that takes "
        "longer by itself fails (default: as long as it takes).",
        min=0.001,
        rich_help_panel=_PANEL,
        show_default=False,
    ),
]
Record = Annotated[
    Path | None,
    typer.Option(
        "--record",
        metavar="DIR",
        help="A folder on this machine for what is on record of the job (default: the output's).",
        rich_help_panel=_PANEL,
        show_default=False,
    ),
]
Window = Annotated[
    int,
    typer.Option(
        "--window", metavar="N", help="The most requests under way; it adapts.", min=1, rich_help_panel=_PANEL
    ),
]
Patience = Annotated[
    float,
    typer.Option(
        "--patience",
        metavar="SECONDS",
        help="Stop, to be resumed, when nothing is answered for so long.",
        min=1.0,
        rich_help_panel=_PANEL,
    ),
]
Which = Annotated[str, typer.Argument(metavar="JOB", help="A job's folder, or its id.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="As JSON, for programs.")]
