"""What a reply means for the rows of its request: done, failed for good, or to be tried again. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ...schemas.messages import ErrorInfo, Reply

__all__ = ["Again", "Outcome", "outcome_of"]

_AGAIN: Mapping[str, int] = {
    "temporary_failure": 3,
    "blob_unavailable": 3,
    "blob_missing": 3,  # a body in memory that was lost with the host, or that an engine elsewhere cannot read
    "group_unavailable": 3,
    "session_lost": 3,
    "collective_failed": 3,
    "deadline_exceeded": 3,  # of its queue (max_queue_age), where the job's requests have none of their own
    "request_id_reused": 3,  # another version of rankmq has other words for the same rows
    "internal": 1,
    "attempts_exhausted": 1,  # the engine has tried it several times, the last time alone
}
"""By code, how often a row is sent again after it: errors of the engine's own that may pass."""

_ALONE = 1
"""How often a row is sent again after it took too long: alone, so that what it keeps waiting is itself."""

_OF_EACH_ROW = frozenset({"invalid_input", "graph_failed", "turns_exhausted", "cancelled"})
"""Errors of a whole request that each of its rows met by itself: where all fail alike, a reply says it once."""

_OF_THE_JOB = frozenset({"unknown_servable", "unknown_method", "unknown_version", "unsupported_schema"})
"""Errors that every row would meet."""


@dataclass(frozen=True, slots=True)
class Again:
    """Rows that are sent again in one request.

    Attributes:
        first: which row of the request is the first of them.
        count: how many they are.
    """

    first: int
    count: int


@dataclass(slots=True)
class Outcome:
    """What became of the rows of a request, by their places in it.

    Attributes:
        done: how many have results.
        failed: those that failed for good, and why.
        again: those that are sent again.
        fatal: the job cannot go on.
        open: those that were given up because the job is.
    """

    done: int = 0
    failed: dict[int, ErrorInfo] = field(default_factory=dict)
    again: list[Again] = field(default_factory=list)
    fatal: ErrorInfo | None = None
    open: int = 0


def outcome_of(reply: Reply, count: int, attempt: int, *, cancelling: bool = False, bounded: bool = False) -> Outcome:
    """Sorts a reply out.

    Args:
        reply: to a request of the job.
        count: how many instances it had.
        attempt: how often its rows had been sent before.
        cancelling: the job is given up, and nothing is sent again.
        bounded: its requests say how long they may take.
    """
    error = reply.error
    if error is not None:
        return _whole(error, count, attempt, cancelling=cancelling, bounded=bounded)
    if len(reply.outputs) != count:
        text = f"a reply with {len(reply.outputs)} outputs for {count} rows"
        error = ErrorInfo(code="internal", message=text, side="engine")
        return _whole(error, count, attempt, cancelling=cancelling, bounded=bounded)
    out = Outcome()
    said = {it.index: it.error for it in reply.errors}
    for index, row in enumerate(reply.outputs):
        if row is not None:
            out.done += 1
            continue
        met = said.get(index) or ErrorInfo(code="internal", message="neither outputs nor an error", side="engine")
        passes = attempt < _most(met, bounded=bounded)
        if cancelling and (met.code == "cancelled" or passes):
            out.open += 1
        elif passes:
            out.again.append(Again(index, 1))
        else:
            out.failed[index] = met
    return out


def _most(error: ErrorInfo, *, bounded: bool) -> int:
    """How often a row is sent again after an error."""
    return _ALONE if bounded and error.code == "deadline_exceeded" else _AGAIN.get(error.code, 0)


def _whole(error: ErrorInfo, count: int, attempt: int, *, cancelling: bool, bounded: bool) -> Outcome:
    """The request failed as a whole."""
    most = _most(error, bounded=bounded)
    passes = attempt < most
    if cancelling and (error.code == "cancelled" or count > 1 or passes):
        return Outcome(open=count)
    if error.code in _OF_THE_JOB:
        return Outcome(fatal=error, again=[Again(0, count)])  # under another id, once it is resumed
    if count == 1 or error.code in _OF_EACH_ROW:
        if passes:
            return Outcome(again=[Again(index, 1) for index in range(count)])
        return Outcome(failed=dict.fromkeys(range(count), error))
    if most > 1 and passes:
        return Outcome(again=[Again(0, count)])
    # It may be one row's doing: each by itself, so that it fails alone.
    return Outcome(again=[Again(index, 1) for index in range(count)])
