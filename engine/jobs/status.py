"""How a job is, for whoever asks: while it runs, and after."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...schemas.errors import Way
from .desk import MANIFEST
from .lock import Holder, JobLock
from .manifest import Manifest
from .spec import Counts, Spec, State

__all__ = ["LOCK", "JobStatus", "status_of", "summary_of"]

LOCK = "job.lock"


@dataclass(frozen=True, slots=True)
class JobStatus:
    """How a job is.

    Attributes:
        folder: of its manifest.
        spec: what it is to do.
        state: what it is at.
        reason: why it ended before its time.
        counts: how far it is.
        ended: when it ended, in seconds since 1970.
        runner: who runs it now; None if nobody does.
        way: what can be done about why it ended.
    """

    folder: Path
    spec: Spec
    state: State
    reason: str
    counts: Counts
    ended: float | None
    runner: Holder | None
    way: Way = "resume"

    @property
    def word(self) -> str:
        """The state, and whether anybody is at it."""
        if self.state in ("completed", "cancelled", "failed") or self.runner is not None:
            return self.state
        return "interrupted"

    def as_json(self) -> dict[str, Any]:
        """For a program."""
        counts = self.counts
        who = self.runner and {"pid": self.runner.pid, "host": self.runner.host}
        return {
            **_told(self.spec, self.word, counts),
            "folder": str(self.folder),
            "reason": self.reason or None,
            "runner": who,
            "seconds_left": counts.seconds_left if self.runner else None,
            "updated_at": counts.updated or None,
            "ended_at": self.ended,
        }


def status_of(folder: Path) -> JobStatus:
    """How the job of a folder is.

    Raises:
        ConfigurationError: there is none.
    """
    manifest = Manifest(folder / MANIFEST, reading=True)
    try:
        return JobStatus(
            folder,
            manifest.spec,
            manifest.state,
            manifest.reason,
            manifest.counts,
            manifest.ended,
            JobLock.holder(folder / LOCK),
            manifest.way,
        )
    finally:
        manifest.close()


def summary_of(spec: Spec, state: State, counts: Counts) -> dict[str, Any]:
    """What is written at the end."""
    return {**_told(spec, state, counts), "ended_at": time.time()}


def _told(spec: Spec, state: str, counts: Counts) -> dict[str, Any]:
    return {
        "id": spec.id,
        "state": state,
        "servable": spec.servable,
        "method": spec.method,
        "version": spec.version,
        "input": spec.source,
        "results": spec.results,
        "errors": spec.errors,
        "counts": {
            "total": counts.expected,
            "completed": counts.completed,
            "failed": counts.failed,
        },
        "requests": counts.requests,
        "retries": counts.retries,
        "seconds": round(counts.seconds, 3),
        "rows_per_second": round(counts.ended / counts.seconds, 3) if counts.seconds else 0.0,
        "runs": counts.runs,
        "created_at": spec.created,
    }
