"""`rankmq job`: a file of rows in, a file of results out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import job_options as given
from ..options import with_settings

if TYPE_CHECKING:
    from ...engine.jobs.job import Job
    from ...engine.jobs.status import JobStatus
    from ...engine.settings import Settings
    from ...schemas.errors import RankmqError

__all__ = ["add_to"]

_STOPPED = 10

_RUN = """
Examples:

    rankmq job run rows.jsonl --servable matmul --method predict --output out

    rankmq job run x.npy --servable matmul --method fun2 --map x --output out

    zcat rows.jsonl.gz | rankmq job run - --servable small --method double --output out

It can be killed at any moment, with all that it uses; `rankmq job resume` goes on where it was.
"""
_SUBMIT = """
Example:

    rankmq job submit rows.parquet --servable small --method double --map x=values:int32 --output out
"""
_STATUS = """
Examples:

    rankmq job status out

    rankmq job status job-3f0c2a5e8b214d6f --json
"""
_LIST = """
Examples:

    rankmq job list

    rankmq job list /data/jobs --json
"""
_CANCEL = """
Example:

    rankmq job cancel out
"""
_RESUME = """
Examples:

    rankmq job resume out

    rankmq job resume out --results results.jsonl
"""
_CODES = """
docs/jobs.md has the kinds of files.

Exit code 0 if every row has a result, 8 if some failed, 10 if the job has not ended and can be resumed, or was \
cancelled.
"""


def add_to(app: typer.Typer) -> None:
    """Adds the command."""
    commands = {
        "run": (with_settings("job", blobs=True)(_begins(_run, "Run a job to its end, here.")), _RUN),
        "submit": (with_settings("job", quiet=True, blobs=True)(_begins(_in_background, _BACKGROUND)), _SUBMIT),
        "status": (status, _STATUS),
        "list": (list_jobs, _LIST),
        "cancel": (cancel, _CANCEL),
        "resume": (resume, _RESUME),
    }
    about = "Offline jobs: a file of rows through a servable, into a file of results."
    examples = "".join(text.replace("Example:\n", "").replace("Examples:\n", "") for _, text in commands.values())
    job = typer.Typer(name="job", help=about, epilog=f"Examples:\n{examples}{_CODES}", no_args_is_help=True)
    for name, (command, epilog) in commands.items():
        job.command(name, epilog=epilog)(command)
    app.add_typer(job)


_BACKGROUND = "Run a job in the background: what runs it goes on when this command has ended."


def _begins(go: Callable[..., None], about: str) -> Callable[..., None]:
    """A command that makes a job, then does something with it."""

    def begin(
        settings: Settings,
        source: given.Input,
        servable: given.Servable,
        method: given.Method,
        output: given.Output,
        version: given.Version = 0,
        results: given.Results = None,
        columns: given.Map = None,
        base64: given.Base64 = False,
        lane: given.Lane = "low",
        rows_per_request: given.RowsPerRequest = None,
        line_bytes: given.LineBytes = 16 << 20,
        deadline: given.Deadline = None,
        record: given.Record = None,
        window: given.Window = 256,
        patience: given.Patience = 3600.0,
    ) -> None:
        settings = _reachable(settings)
        settings.address()  # what is wrong with it is said before there is a job
        job = _made(
            settings, source, output, servable, method, version=version, results=results, columns=columns or (),
            base64=base64, lane=lane, rows_per_request=rows_per_request, line_bytes=line_bytes,
            deadline=deadline, manifest=record,
        )  # fmt: skip
        go(settings, job, window=window, patience=patience)

    begin.__doc__ = about
    return begin


@with_settings("job", blobs=True)
def resume(
    settings: Settings,
    which: given.Which,
    background: Annotated[bool, typer.Option("--background", help="In the background, as `submit`.")] = False,
    results: given.Results = None,
    deadline: given.Deadline = None,
    window: given.Window = 256,
    patience: given.Patience = 3600.0,
) -> None:
    """Go on with a job: what is on record is not computed again."""
    from ...engine.jobs.registry import remember_job

    settings = _reachable(settings)
    settings.address()
    job = _found(settings, which)
    remember_job(_state(settings), job.id, job.folder)
    state = job.status().state
    if state == "cancelled":
        raise _cancelled(job)
    if background and state != "completed":
        _in_background(settings, job, window=window, patience=patience, results=results, deadline=deadline)
    else:
        _run(settings, job, window=window, patience=patience, results=results, deadline=deadline)


@with_settings("job", quiet=True)
def status(settings: Settings, which: given.Which, as_json: given.Json = False) -> None:
    """Show how a job is, while it runs and after."""
    from ..job_page import job_page
    from ..show import console

    found = _found(settings, which).status()
    if as_json:
        typer.echo(json.dumps(found.as_json(), indent=2))
    else:
        console(broken=False).print(job_page(found))


@with_settings("job", quiet=True)
def list_jobs(
    settings: Settings,
    folder: Annotated[
        Path | None,
        typer.Argument(
            metavar="DIR", help="Jobs below a folder (default: those begun on this machine).", show_default=False
        ),
    ] = None,
    as_json: given.Json = False,
) -> None:
    """List jobs."""
    from ...engine.jobs.registry import jobs_below, known_jobs
    from ...engine.jobs.status import status_of
    from ...schemas.errors import ConfigurationError, RankmqError
    from ..job_page import jobs_table
    from ..show import console

    if folder is not None and not folder.is_dir():
        raise ConfigurationError(f"{folder}: there is no such folder")
    folders = (path for _, path in known_jobs(_state(settings))) if folder is None else jobs_below(folder.absolute())
    found: list[JobStatus] = []
    for path in folders:
        try:
            found.append(status_of(path))
        except RankmqError as error:
            typer.echo(f"rankmq: {error.message}", err=True)
    if as_json:
        typer.echo(json.dumps([it.as_json() for it in found], indent=2))
    elif found:
        console(broken=False).print(jobs_table(found))
    else:
        typer.echo("no jobs")


@with_settings("job", quiet=True)
def cancel(settings: Settings, which: given.Which) -> None:
    """Give a job up for good; what is done is kept."""
    from ...engine.address import BrokerAddress
    from ...schemas.errors import RankmqError

    job = _found(settings, which)
    address: BrokerAddress | None = None
    why = ""
    try:
        address = _reachable(settings).address()
    except RankmqError as error:
        why = error.message
    found = job.cancel(address)
    if found.state == "cancelled":
        typer.echo(f"{job.id}: cancelled; {_kept(found)}")
        if job.untold:
            typer.echo(f"rankmq: what was sent of it is computed all the same: {why or job.untold}", err=True)
    else:
        typer.echo(f"{job.id}: being cancelled by {found.runner or 'who runs it'}")


# ----------------------------------------------------------------------------------------------------------- together


def _reachable(settings: Settings) -> Settings:
    from ...workers.endpoint import reachable

    return reachable(settings)


def _state(settings: Settings) -> Path:
    from ...workers.endpoint import state_folder

    return state_folder(settings)


def _found(settings: Settings, which: str) -> Job:
    from ...engine.jobs.job import Job
    from ...engine.jobs.registry import find_job

    return Job(find_job(which, _state(settings)))


def _made(settings: Settings, source: str, output: str, servable: str, method: str, **options: Any) -> Job:
    import uuid

    from ...engine.jobs.job import Job
    from ...engine.jobs.places import Place
    from ...engine.jobs.registry import remember_job
    from ...schemas.errors import InvalidInput
    from ..report import Usage

    if options["manifest"] is None and Place.of(output).local is None:
        options["manifest"] = _state(settings) / "jobs" / uuid.uuid4().hex[:12]
    try:
        job = Job.create(source, output, servable, method, **options)
    except InvalidInput as error:
        raise Usage(error.message) from None
    remember_job(_state(settings), job.id, job.folder)
    return job


def _run(settings: Settings, job: Job, **options: Any) -> None:
    from ...engine.jobs.hints import hint_of
    from ...schemas.errors import AlreadyRunning, ConfigurationError, InstancesFailed, JobStopped, RankmqError
    from ..foreground import run_service
    from ..job_page import way_on
    from ..job_progress import JobProgress

    typer.echo(f"{job.id}: from {job.status().spec.source} to {job.status().spec.results}")
    progress = JobProgress()

    def work() -> None:
        job.run(
            settings.address(),
            watch=progress.show,
            connect_timeout=settings.connect_timeout,
            reconnect_timeout=settings.reconnect_timeout,
            blob_store=settings.blob_store.get_secret_value() if settings.blob_store is not None else None,
            inline_limit=settings.inline_limit,
            **options,
        )

    try:
        with progress:
            run_service(work, job.stop)
    except (AlreadyRunning, ConfigurationError):
        raise
    except RankmqError as error:
        raise type(error)(f"{error.message}; {way_on(job.status())}") from None
    except KeyboardInterrupt:
        if job.status().state != "completed":
            typer.echo(f"rankmq: stopped; {way_on(job.status())}", err=True)
        raise
    found = job.status()
    if found.state == "cancelled":
        raise _cancelled(job)
    if found.state != "completed":
        raise JobStopped(f"stopped; {way_on(found)}")
    counts = found.counts
    typer.echo(_kept(found))
    if counts.failed:
        hint = hint_of(job.folder)
        text = f"{counts.failed:,} of {counts.ended:,} rows failed: see {found.spec.errors}"
        raise InstancesFailed(f"{text}; {hint}" if hint else text)


def _cancelled(job: Job) -> RankmqError:
    from ...schemas.errors import JobStopped

    return JobStopped(f"{job.id} was cancelled; {_kept(job.status())}")


def _kept(found: JobStatus) -> str:
    return f"{found.counts.completed:,} results in {found.spec.results}"


def _in_background(
    settings: Settings,
    job: Job,
    *,
    window: int,
    patience: float,
    results: str | None = None,
    deadline: float | None = None,
) -> None:
    """Starts what runs it, in a session of its own; the broker's password is in its environment alone."""
    from ...schemas.errors import JobStopped
    from ..job_page import way_on

    command = [sys.executable, "-m", "rankmq.scripts", "job", "resume", str(job.folder), "--window", str(window)]
    command += ["--patience", str(patience), *(() if results is None else ("--results", results))]
    command += () if deadline is None else ("--deadline", str(deadline))
    chosen = {f"RANKMQ_{name.upper()}": _plain(getattr(settings, name)) for name in settings.model_fields_set}
    address = settings.address()
    log = job.folder / "job.log"
    try:
        with log.open("ab") as out:
            runner = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env={**os.environ, **chosen, "RANKMQ_BROKER_URL": address.url()},
                start_new_session=True,
            )
    except OSError as error:
        raise JobStopped(f"{log} cannot be written: {error.strerror}; {way_on(job.status())}") from None
    typer.echo(f"{job.id}: process {runner.pid} runs it; it writes to {log}")
    typer.echo(f"see how it is: rankmq job status {job.folder}")


def _plain(value: Any) -> str:
    return str(value.get_secret_value() if hasattr(value, "get_secret_value") else value)
