"""Jobs as a person reads of them."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from .job_progress import progress_line, span

if TYPE_CHECKING:
    from ..engine.jobs.status import JobStatus

__all__ = ["job_page", "jobs_table", "way_on"]


def _resume(status: JobStatus) -> str:
    """The command that goes on with it; "" if none can."""
    results = {"resume": "", "results": " --results results.jsonl"}.get(status.way)
    return "" if results is None else f"rankmq job resume {status.folder}{results}"


def way_on(status: JobStatus) -> str:
    """What can be done about a job that has ended before its time, in a line."""
    counts = status.counts
    if resume := _resume(status):
        return f"{counts.ended:,} rows are on record, go on with: {resume}"
    if status.way == "again":
        return f"nothing was answered: correct it, and run it again, into {status.folder} if you like"
    if status.way == "cancel" and counts.completed:
        return (
            f"it cannot be resumed so: start a new job; the {counts.completed:,} results that are on record are "
            f"written by: rankmq job cancel {status.folder}"
        )
    return "it cannot be resumed so: start a new job"


def job_page(status: JobStatus) -> Any:
    """One job."""
    from rich.table import Table

    spec, counts = status.spec, status.counts
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_row("job", spec.id)
    table.add_row("state", status.word + (f", by {status.runner}" if status.runner else ""))
    if status.reason:
        table.add_row("reason", status.reason)
    table.add_row("rows", progress_line(counts, None if status.runner is None else counts.planned - counts.ended))
    table.add_row("requests", f"{counts.requests:,}, {counts.retries:,} of them again")
    table.add_row("time", f"{span(counts.seconds)} in {counts.runs} {'run' if counts.runs == 1 else 'runs'}")
    table.add_row("calls", f"{spec.servable} {spec.method}" + (f" version {spec.version}" if spec.version else ""))
    table.add_row("input", spec.source)
    table.add_row("results", spec.results)
    table.add_row("errors", spec.errors)
    if status.word in ("interrupted", "failed"):
        table.add_row("go on", _resume(status) or way_on(status))
    return table


def jobs_table(found: Iterable[JobStatus]) -> Any:
    """Some jobs, a line each."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in ("job", "state", "rows", "of", "failed", "begun", "folder"):
        table.add_column(name, justify="right" if name in ("rows", "of", "failed") else "left", overflow="fold")
    for it in sorted(found, key=lambda it: it.spec.created):
        counts = it.counts
        begun = time.strftime("%Y-%m-%d %H:%M", time.localtime(it.spec.created))
        expected = "?" if counts.expected is None else f"{counts.expected:,}"
        table.add_row(it.spec.id, it.word, f"{counts.ended:,}", expected, f"{counts.failed:,}", begun, str(it.folder))
    return table
