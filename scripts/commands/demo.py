"""`rankmq demo`: an example, from its export to its answer."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..options import with_settings

if TYPE_CHECKING:
    from ...engine.servable import Servable
    from ...engine.settings import Settings
    from ..demos import ExampleDemo
    from ..interrupts import Interrupts
    from ..progress import StartProgress

__all__ = ["add_to"]

_EPILOG = """
It exports the example's graphs if they are not there, starts a private broker on free ports (or uses the one that \
--broker-url or RANKMQ_BROKER_URL names), the orchestrator and eight agents, asks, prints the answer and how long each \
part took, and stops all that it started.

matmul is asked the original document's request, twice. smollm2 is a language model with real weights, which \
./scripts/demo smollm2 installs:

    rankmq demo smollm2 --question "Why is the sky blue?"

minilm finds the sentences that are nearest to a question in meaning, among some thousand that every Python has, with \
real weights, which ./scripts/demo minilm installs:

    rankmq demo minilm --question "What can I do against a memory leak?"
"""

_LOG_LINES = 20
_EXPORT_SECONDS = 300.0


class Example(StrEnum):
    """What can be shown."""

    MATMUL = "matmul"
    SMOLLM2 = "smollm2"
    MINILM = "minilm"


def add_to(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("demo", epilog=_EPILOG)(demo)


@with_settings("demo", quiet=True)
def demo(
    settings: Settings,
    name: Annotated[Example, typer.Argument(metavar="NAME", help="matmul, smollm2 or minilm.")] = Example.MATMUL,
    example: Annotated[
        Path | None,
        typer.Option(
            "--example", metavar="DIR", help="Its folder (default: examples/NAME of this clone).", show_default=False
        ),
    ] = None,
    question: Annotated[
        str | None,
        typer.Option("--question", metavar="TEXT", help="What smollm2 or minilm is asked.", show_default=False),
    ] = None,
) -> None:
    """Show an example at work: export, start, ask, stop."""
    from ..demos import ConversationDemo, MatmulDemo, SearchDemo
    from ..report import Usage

    if question is not None and name is Example.MATMUL:
        raise Usage(f"--question is for smollm2 and minilm: {name} is no language model")
    found = _example(example, name)
    shown: ExampleDemo
    match name:
        case Example.MATMUL:
            shown = MatmulDemo()
        case Example.SMOLLM2:
            shown = ConversationDemo(question)
        case Example.MINILM:
            shown = SearchDemo(found, question)
    with _state_folder(settings) as folder:
        state = settings.model_copy(update={"state_dir": folder})
        asyncio.run(_Demo(shown, found, folder / "log", state).run())


def _example(given: Path | None, name: str) -> Path:
    from ...schemas.errors import ConfigurationError

    found = given or Path(__file__).resolve().parents[2] / "examples" / name
    if not (found / "export_model.py").is_file():
        raise ConfigurationError(f"no export_model.py in {found}: run this in a clone of rankmq, or give --example")
    return found.absolute()


@contextlib.contextmanager
def _state_folder(settings: Settings) -> Iterator[Path]:
    """A folder for this run, which goes with it unless it failed: then the end of its logs is shown."""
    given = settings.state_dir
    folder = given.absolute() if given is not None else Path(tempfile.mkdtemp(prefix="rankmq-demo-"))
    try:
        yield folder
    except Exception:
        _show_logs(folder / "log")
        raise
    except BaseException:
        if given is None:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    if given is None:
        shutil.rmtree(folder, ignore_errors=True)


def _show_logs(folder: Path) -> None:
    for file in sorted(folder.glob("*.log")):
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
        if lines:
            typer.echo(f"--- the end of {file}", err=True)
            typer.echo("\n".join(lines[-_LOG_LINES:]), err=True)


class _Demo:
    """One run.

    Args:
        shown: what is asked, and how its answer is shown.
        example: the example's folder.
        logs: a folder for log files.
        settings: with the state folder of this run.
    """

    def __init__(self, shown: ExampleDemo, example: Path, logs: Path, settings: Settings) -> None:
        self._shown = shown
        self._example = example
        self._logs = logs
        self._settings = settings
        self._seconds: list[tuple[str, float]] = []

    async def run(self) -> None:
        """From the export to the end.

        Raises:
            OperatorError: something cannot be done, or the answer is wrong.
            RankmqError: the answer is an error.
            KeyboardInterrupt: interrupted; all is stopped by then.
        """
        from ...workers.local import LocalEngine
        from ..interrupts import Interrupts
        from ..progress import StartProgress

        began = time.monotonic()
        with StartProgress(live=True) as progress, Interrupts() as interrupts:
            servable = await self._servable(interrupts, progress)
            if servable is not None:
                engine = LocalEngine([servable], self._settings, log_dir=self._logs, on_progress=progress.show)
                interrupts.impatient = engine.kill
                async with engine:
                    if await interrupts.first(engine.ready()):
                        broker, ready = engine.seconds["broker"], engine.seconds["ready"]
                        self._seconds += [("broker up", broker), ("ranks ready", ready - broker)]
                        progress.say("asking")
                        await interrupts.first(self._ask(engine.settings, began, progress))
                    progress.say("stopping")
        interrupts.raise_if_interrupted()
        self._report(time.monotonic() - began)

    async def _servable(self, interrupts: Interrupts, progress: StartProgress) -> Servable | None:
        from ...engine.loader import load_servable
        from ...schemas.errors import ModelError

        try:
            return load_servable(self._example, self._shown.name)
        except ModelError:
            progress.say("exporting the graphs")
        began = time.monotonic()
        if not await interrupts.first(self._export()):
            return None
        self._seconds.append(("export", time.monotonic() - began))
        return load_servable(self._example, self._shown.name)

    async def _export(self) -> None:
        from ...schemas.errors import ModelError

        self._logs.mkdir(parents=True, exist_ok=True)
        file = self._logs / "export.log"
        with open(file, "wb") as log:  # noqa: ASYNC230 - a local file, once
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                str(self._example / "export_model.py"),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._example,
                start_new_session=True,
            )
        try:
            code = await asyncio.wait_for(process.wait(), _EXPORT_SECONDS)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if code:
            last = (file.read_text(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
            raise ModelError(f"the export of the graphs failed: {last}")

    async def _ask(self, settings: Settings, started: float, progress: StartProgress) -> None:
        from ...engine.client import Client

        client = Client(
            settings.address().url(),
            self._shown.name,
            self._shown.method,
            timeout=self._shown.seconds,
            ca_file=settings.tls_ca_file,
            cert_file=settings.tls_cert_file,
            key_file=settings.tls_key_file,
        )

        def took(part: str, seconds: float) -> None:
            if not any(name == "start to first answer" for name, _ in self._seconds):
                self._seconds += [(part, seconds), ("start to first answer", time.monotonic() - started)]
            else:
                self._seconds.append((part, seconds))

        try:
            await self._shown.ask(client, took, progress)
        finally:
            await asyncio.to_thread(client.close)

    def _report(self, total: float) -> None:
        from rich.table import Table

        from ...schemas.errors import OperatorError
        from ..show import console

        table = Table(box=None, show_header=False, pad_edge=False)
        table.add_column()
        table.add_column(justify="right")
        for part, seconds in [*self._seconds, ("total, all stopped again", total)]:
            table.add_row(part, f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms")
        wrong: OperatorError | None = None
        try:
            last = self._shown.show(self._example)
        except OperatorError as error:
            wrong = error
        out = console()
        out.print(table)
        if wrong is not None:
            raise wrong
        out.print(f"\n{last}", style="green")
