"""`rankmq chaos`: damages a group under load, and looks at every answer."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import json
import shutil
import tempfile
import time
from collections.abc import Coroutine
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any, Self

import typer

from ..chaos.faults import FAULTS, LONGEST_PAUSE
from ..report import reported

if TYPE_CHECKING:
    from ..chaos.outcome import Outcome

__all__ = ["add_to"]

_NAMES = "\n\n".join(f"    {fault.name}: {fault.what}" for fault in FAULTS.values())
_EPILOG = f"""
Examples:

    rankmq chaos --seconds 120 --seed 7 --json chaos.json

    rankmq chaos --communication shm --each-once

    rankmq chaos --faults kill-orchestrator-standby,kill-broker --seconds 30

    rankmq chaos --groups 2 --faults kill-group

It starts a private broker on free ports, and orchestrators, agents and producers of its own; nothing else on this \
machine is touched. The same seed gives the same faults in the same order. Faults:

{_NAMES}

Exit code 0 if every request that the broker had accepted was answered once, with the right numbers or a typed error, \
and the group served again after each fault; else 1.
"""


class _Communication(enum.StrEnum):
    none = "none"
    shm = "shm"
    mccl = "mccl"


def add_to(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("chaos", epilog=_EPILOG)(chaos)


def chaos(
    seconds: Annotated[
        float, typer.Option("--seconds", metavar="N", help="For so long a further fault may begin.", min=0)
    ] = 60.0,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Decides which fault comes when.")] = 0,
    faults: Annotated[
        str,
        typer.Option(
            "--faults", metavar="A,B,C", help="Only these (default: all that are possible).", show_default=False
        ),
    ] = "",
    each_once: Annotated[
        bool,
        typer.Option(
            "--each-once", help="Each fault once, in their order, however long it takes; kill-rank for each rank."
        ),
    ] = False,
    communication: Annotated[
        _Communication,
        typer.Option(
            "--communication",
            help="none: graphs in numpy. shm, mccl: the matmul example in MindSpore, whose ranks talk that way.",
        ),
    ] = _Communication.none,
    ranks: Annotated[int, typer.Option("--ranks", metavar="N", help="Of each group.", min=1, max=96)] = 8,
    groups: Annotated[int, typer.Option("--groups", metavar="N", help="Replicas of the servable.", min=1, max=8)] = 1,
    spares: Annotated[int, typer.Option("--spares", metavar="N", help="Spare processes.", min=0, max=8)] = 0,
    standby: Annotated[bool, typer.Option("--standby", help="An orchestrator stands by all the time.")] = False,
    in_flight: Annotated[
        int, typer.Option("--in-flight", metavar="N", help="Requests that are unanswered at once.", min=1, max=10_000)
    ] = 64,
    peace: Annotated[
        float, typer.Option("--peace", metavar="N", help="Seconds between two faults, at most.", min=0)
    ] = LONGEST_PAUSE,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write everything there.", show_default=False)
    ] = None,
    logs: Annotated[
        Path | None,
        typer.Option(
            "--logs", metavar="DIR", help="Keep logs and journals there; it must be empty.", show_default=False
        ),
    ] = None,
    example: Annotated[
        Path | None,
        typer.Option(
            "--example",
            metavar="DIR",
            help="The matmul example (default: examples/matmul of this clone).",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Damage a group under load in every way, and look at every answer."""
    with reported():
        from ...engine.settings import load_settings
        from ..chaos.faults import Setting, chosen
        from ..chaos.whole import Chaos, Options

        options = Options(
            faults=chosen(faults, Setting(ranks=ranks, groups=groups)),
            seconds=None if each_once else seconds,
            seed=seed,
            communication=str(communication),
            ranks=ranks,
            groups=groups,
            spares=spares,
            standby=standby,
            in_flight=in_flight,
            peace=peace,
        )
        _check(json_file)
        began = time.monotonic()

        def say(text: str) -> None:
            typer.echo(f"{time.monotonic() - began:7.1f} s  {text}", err=True)

        with _Folder(logs) as folder:
            run = Chaos(options, load_settings(), folder.path, folder.logs, _example(example), say=say, show=typer.echo)
            asyncio.run(_interruptible(run.run()))
            outcome = run.outcome
            if outcome is None:
                raise typer.Exit(1)  # told to end before it was over
            folder.keep = not outcome.good
        if json_file is not None:
            json_file.write_text(json.dumps(outcome.as_dict(), indent=1) + "\n", encoding="utf-8")
        _print(outcome)
        if not outcome.good:
            say(f"the logs are in {folder.logs}")
            raise typer.Exit(1)


async def _interruptible(work: Coroutine[Any, Any, None]) -> None:
    from ..interrupts import Interrupts

    with Interrupts() as interrupts:
        await interrupts.first(work)
    interrupts.raise_if_interrupted()


def _check(file: Path | None) -> None:
    """That a file can be written shows before the run, not after it."""
    from ...schemas.errors import ConfigurationError

    try:
        if file is not None:
            file.open("a").close()
    except OSError as error:
        raise ConfigurationError(f"cannot be written: {error.strerror}", file=str(file)) from None


def _example(given: Path | None) -> Path:
    return (given or Path(__file__).resolve().parents[2] / "examples" / "matmul").absolute()


class _Folder:
    """A folder for the run, which goes with it; its logs stay where something went wrong.

    Args:
        logs: a folder for the logs, which is kept; None: one in the folder.

    Attributes:
        path: the folder.
        logs: the folder for the logs.
        keep: whether to keep the logs.
    """

    def __init__(self, logs: Path | None) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="rankmq-chaos-"))
        self.logs = self.path / "logs" if logs is None else logs.absolute()
        self.keep = False

    def __enter__(self) -> Self:
        from ...schemas.errors import ConfigurationError

        try:
            self.logs.mkdir(parents=True, exist_ok=True)
            if any(self.logs.iterdir()):
                raise ConfigurationError(f"{self.logs} is not empty: what others have logged would be taken for ours")
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.keep = self.keep or (isinstance(error, Exception) and not isinstance(error, typer.Exit))
        self._remove()

    def _remove(self) -> None:
        for file in self.path.iterdir():
            if file == self.logs and self.keep and any(file.iterdir()):
                continue
            shutil.rmtree(file) if file.is_dir() else file.unlink()
        with contextlib.suppress(OSError):  # the logs are there
            self.path.rmdir()


def _print(outcome: Outcome) -> None:
    from ..chaos.outcome import tables
    from ..show import console

    out = console()
    for table in tables(outcome):
        out.print()
        out.print(table, markup=False)
