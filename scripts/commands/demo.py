"""`rankmq demo`: the matmul example, from its export to the answer that the original document shows."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..options import with_settings

if TYPE_CHECKING:
    from ...engine.servable import Servable
    from ...engine.settings import Settings
    from ..interrupts import Interrupts
    from ..progress import StartProgress

__all__ = ["add_to"]

_EPILOG = """
It exports the example's graphs if they are not there, starts a private broker on free ports (or uses the one that \
--broker-url or RANKMQ_BROKER_URL names), the orchestrator and eight agents, sends the original document's request \
twice, prints the answer and how long each part took, and stops all that it started.
"""

_EXPECTED = {"x": -96.0, "z": -144.0}
_LOG_LINES = 20
_EXPORT_SECONDS = 300.0
_ANSWER_SECONDS = 60.0


def add_to(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("demo", epilog=_EPILOG)(demo)


@with_settings("demo", quiet=True)
def demo(
    settings: Settings,
    example: Annotated[
        Path | None,
        typer.Option(
            "--example", metavar="DIR", help="The example (default: examples/matmul of this clone).", show_default=False
        ),
    ] = None,
) -> None:
    """Show the matmul example at work: export, start, ask, stop."""
    with _state_folder(settings) as folder:
        state = settings.model_copy(update={"state_dir": folder})
        asyncio.run(_Demo(_example(example), folder / "log", state).run())


def _example(given: Path | None) -> Path:
    from ...schemas.errors import ConfigurationError

    found = given or Path(__file__).resolve().parents[2] / "examples" / "matmul"
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
        example: the example's folder.
        logs: a folder for log files.
        settings: with the state folder of this run.
    """

    def __init__(self, example: Path, logs: Path, settings: Settings) -> None:
        self._example = example
        self._logs = logs
        self._settings = settings
        self._seconds: list[tuple[str, float]] = []
        self._answer: list[dict[str, Any]] = []

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
                        await interrupts.first(self._ask(engine.settings, began))
                    progress.say("stopping")
        interrupts.raise_if_interrupted()
        self._report(time.monotonic() - began)

    async def _servable(self, interrupts: Interrupts, progress: StartProgress) -> Servable | None:
        from ...engine.loader import load_servable
        from ...schemas.errors import ModelError

        try:
            return load_servable(self._example, "matmul")
        except ModelError:
            progress.say("exporting the graphs")
        began = time.monotonic()
        if not await interrupts.first(self._export()):
            return None
        self._seconds.append(("export", time.monotonic() - began))
        return load_servable(self._example, "matmul")

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

    async def _ask(self, settings: Settings, started: float) -> None:
        import numpy as np

        from ...engine.client import Client

        client = Client(
            settings.address().url(),
            "matmul",
            "predict",
            timeout=_ANSWER_SECONDS,
            ca_file=settings.tls_ca_file,
            cert_file=settings.tls_cert_file,
            key_file=settings.tls_key_file,
        )
        instance = {"x": np.ones((128, 96), np.float32), "y": np.ones((128, 96), np.float32)}
        try:
            for part in ("first answer", "second answer"):
                began = time.monotonic()
                await asyncio.to_thread(client.connect)
                self._answer = await asyncio.wrap_future(client.infer_async(instance))
                self._seconds.append((part, time.monotonic() - began))
                if part == "first answer":
                    self._seconds.append(("start to first answer", time.monotonic() - started))
        finally:
            await asyncio.to_thread(client.close)

    def _report(self, total: float) -> None:
        from rich.table import Table

        from ...schemas.errors import OperatorError
        from ..show import console

        typer.echo(f"result:\n {self._answer}\n")
        right = len(self._answer) == 1 and all(
            self._answer[0][name].shape == (128, 16) and (self._answer[0][name] == value).all()
            for name, value in _EXPECTED.items()
        )
        table = Table(box=None, show_header=False, pad_edge=False)
        table.add_column()
        table.add_column(justify="right")
        for part, seconds in [*self._seconds, ("total, all stopped again", total)]:
            table.add_row(part, f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms")
        out = console()
        out.print(table)
        if not right:
            raise OperatorError(
                f"x must be -96 and z -144 everywhere; if other graphs are in {self._example / 'model'}, remove it"
            )
        out.print("\nx is -96 and z is -144 everywhere, as it must be.", style="green")
