"""Every error of rankmq, one tree.

    RankmqError
    ├── RequestError              side "sender": the request cannot be served as it stands
    │   ├── Undecodable           not msgpack or JSON, or not the declared types
    │   ├── LimitExceeded         too large, too deep, too many
    │   ├── UnsupportedSchema     a message of another schema version
    │   ├── InvalidInput          a missing or extra input, a wrong shape or dtype
    │   ├── UnknownServable
    │   ├── UnknownMethod
    │   ├── UnknownVersion
    │   ├── BlobMissing           a tensor by reference, and its blob is not in the store
    │   ├── ReplyUnroutable       the queue named by reply_to is gone
    │   ├── RequestIdReused       the id was used before, for other inputs
    │   ├── DeadlineExceeded      not served within the time that the sender gave it
    │   └── Cancelled             somebody asked for it to be given up
    ├── ServingError              side "engine": the request was fine, serving it failed
    │   ├── StageFailed           a Python function of the servable raised
    │   ├── TemporaryFailure      raised by such a function for what may succeed a little later
    │   ├── GraphFailed           a subgraph raised on a rank
    │   ├── TurnsExhausted        a loop that has to end by its flag did not, in as many turns as it may run
    │   ├── CollectiveFailed      the ranks could not talk to each other within a graph
    │   ├── RanksDisagree         the ranks' outputs differ where they must be equal
    │   ├── GroupUnavailable      no complete group of ranks
    │   ├── SessionLost           the ranks lost the state that an instance had left on them
    │   ├── BlobUnavailable       the blob store cannot be read or written
    │   ├── AttemptsExhausted     tried max_attempts times
    │   └── InternalError         a defect of ours; the log has the traceback
    ├── ProducerError             side "producer": raised by the producer library itself
    │   ├── ReplyTimeout          no reply within the time given
    │   ├── ConnectionLost        the broker went away and did not come back in time
    │   ├── QueueFull             the requests queue is at its limit and stays so
    │   ├── InstancesFailed       some instances of a request failed; holds the others' outputs
    │   └── ClientClosed
    ├── LockstepError             side "engine": a rank refuses a step (gap, repeat, foreign epoch)
    └── OperatorError             side "operator": set-up or start failed; has an exit code
        ├── ConfigurationError    with file and line
        │   └── ServableError     the servable configuration is wrong
        ├── BrokerUnavailable     nobody answers at the broker's address
        ├── BrokerRefused         wrong user, password, virtual host, certificate or permission
        ├── ModelError            a model file is missing, unreadable, or not like the other ranks'
        ├── CollectivesUnavailable  ranks cannot talk through shared memory on this machine, or for this graph
        ├── GroupError            ranks missing past the time allowed, or not agreeing
        ├── AlreadyRunning        a port, a state folder, a job or a rank is taken
        └── JobStopped            an offline job ended before its time

An error crosses the wire as `ErrorInfo` (code, message, side), and `from_wire` makes the same exception of it again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, Self

__all__ = [
    "AlreadyRunning",
    "AttemptsExhausted",
    "BlobMissing",
    "BlobUnavailable",
    "BrokerRefused",
    "BrokerUnavailable",
    "Cancelled",
    "ClientClosed",
    "CollectiveFailed",
    "CollectivesUnavailable",
    "ConfigurationError",
    "ConnectionLost",
    "DeadlineExceeded",
    "GraphFailed",
    "GroupError",
    "GroupUnavailable",
    "InstancesFailed",
    "InternalError",
    "InvalidInput",
    "JobStopped",
    "LimitExceeded",
    "LockstepError",
    "ModelError",
    "OperatorError",
    "ProducerError",
    "QueueFull",
    "RankmqError",
    "RanksDisagree",
    "ReplyTimeout",
    "ReplyUnroutable",
    "RequestError",
    "RequestIdReused",
    "ServableError",
    "ServingError",
    "SessionLost",
    "Side",
    "StageFailed",
    "TemporaryFailure",
    "TurnsExhausted",
    "Undecodable",
    "UnknownMethod",
    "UnknownServable",
    "UnknownVersion",
    "UnsupportedSchema",
    "Way",
    "error_codes",
    "from_wire",
]

Side = Literal["sender", "engine", "producer", "operator"]


class RankmqError(Exception):
    """Root of the tree. `code` is stable and goes over the wire, `side` says who can put it right."""

    code: ClassVar[str] = "error"
    side: ClassVar[Side] = "engine"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def kept(self) -> Self:
        """Itself, without the frames that it came through: they hold all that was at hand there, and maybe itself."""
        link: BaseException | None = self
        while link is not None and link.__traceback__ is not None:
            link.__traceback__ = None
            link = link.__cause__ or link.__context__
        return self


class RequestError(RankmqError):
    """The request cannot be served as it stands; sending it again unchanged will fail again."""

    code = "request_error"
    side = "sender"


class Undecodable(RequestError):
    """The body is not msgpack or JSON, or does not have the declared types."""

    code = "undecodable"


class LimitExceeded(RequestError):
    """The body, or something in it, is larger, deeper or more numerous than allowed."""

    code = "limit_exceeded"


class UnsupportedSchema(RequestError):
    """The message says a schema version that this side does not speak."""

    code = "unsupported_schema"


class InvalidInput(RequestError):
    """A missing or extra input, a wrong shape or dtype, bytes that do not match a shape."""

    code = "invalid_input"


class UnknownServable(RequestError):
    """No servable of this name is served here."""

    code = "unknown_servable"


class UnknownMethod(RequestError):
    """The servable has no method or pipeline of this name."""

    code = "unknown_method"


class UnknownVersion(RequestError):
    """The servable is not served in this version."""

    code = "unknown_version"


class BlobMissing(RequestError):
    """A tensor, or the body, is there by reference only, and what it refers to is not there, or not any more."""

    code = "blob_missing"


class ReplyUnroutable(RequestError):
    """The queue that the request named in reply_to does not exist."""

    code = "reply_unroutable"


class RequestIdReused(RequestError):
    """A request with this message id and other inputs was taken before; an id stands for one request."""

    code = "request_id_reused"


class DeadlineExceeded(RequestError):
    """The request was not served within the time that its sender gave it, or that its queue allows."""

    code = "deadline_exceeded"


class Cancelled(RequestError):
    """Somebody asked for the request to be given up."""

    code = "cancelled"


class ServingError(RankmqError):
    """The request was fine; serving it failed."""

    code = "serving_error"
    side = "engine"


class StageFailed(ServingError):
    """A Python function of the servable (stage or pipeline) raised, or returned a wrong number of outputs."""

    code = "stage_failed"


class TemporaryFailure(ServingError):
    """Raised by a function of a servable for what may succeed a little later: it is tried again, up to max_attempts.

    Also told to who asks for a request that is under way, when too many wait for its outcome; ask once more.
    """

    code = "temporary_failure"


class GraphFailed(ServingError):
    """A subgraph raised on a rank."""

    code = "graph_failed"


class TurnsExhausted(ServingError):
    """A loop that ends by its flag only ran as many turns as it may, and the flag was not set."""

    code = "turns_exhausted"


class CollectiveFailed(ServingError):
    """The ranks could not talk to each other within a graph: one is gone, or they do different things.

    Attributes:
        rank: the rank at fault, by its place among those that talk; None if it is none in particular.
    """

    code = "collective_failed"

    def __init__(self, message: str, rank: int | None = None) -> None:
        super().__init__(message)
        self.rank = rank


class RanksDisagree(ServingError):
    """Outputs declared `all_equal` differ between ranks, or their shapes cannot be put together."""

    code = "ranks_disagree"


class GroupUnavailable(ServingError):
    """No complete group of ranks could take the work."""

    code = "group_unavailable"


class SessionLost(ServingError):
    """The ranks lost the state that an instance had left on them; the instance is started again from its inputs."""

    code = "session_lost"


class BlobUnavailable(ServingError):
    """The blob store cannot be read or written; the log of the process that tried says why."""

    code = "blob_unavailable"


class AttemptsExhausted(ServingError):
    """The request was tried `max_attempts` times."""

    code = "attempts_exhausted"


class InternalError(ServingError):
    """A defect of rankmq itself; the log of the process has the traceback."""

    code = "internal"


class ProducerError(RankmqError):
    """Raised by the producer library itself, not sent by the engine."""

    code = "producer_error"
    side = "producer"


class ReplyTimeout(ProducerError):
    """No reply came within the time given; the request may still be served."""

    code = "reply_timeout"


class ConnectionLost(ProducerError):
    """The broker went away and did not come back in time."""

    code = "connection_lost"


class QueueFull(ProducerError):
    """The requests queue is at its limit, and was so at each of several tries."""

    code = "queue_full"


class ClientClosed(ProducerError):
    """The client was closed before the reply came."""

    code = "client_closed"


class InstancesFailed(ProducerError):
    """Some instances of a request failed.

    Attributes:
        results: per instance, its outputs (a dict of arrays) or the error that it met, in the request's order.
    """

    code = "instances_failed"

    def __init__(self, message: str, results: Sequence[dict[str, Any] | RankmqError] = ()) -> None:
        super().__init__(message)
        self.results = list(results)


class LockstepError(RankmqError):
    """A rank refuses a step: a gap, a repeat, or a foreign epoch."""

    code = "lockstep"
    side = "engine"


class OperatorError(RankmqError):
    """Set-up or start failed; one line for a person, and an exit code for a script."""

    code = "operator_error"
    side = "operator"
    exit_code: ClassVar[int] = 1


class ConfigurationError(OperatorError):
    """A setting, a rank table or a command line that cannot be used.

    Args:
        message: what is wrong and what to do, in one line.
        file: where it was read, if in a file.
        line: the line in it, from 1.
    """

    code = "invalid_configuration"
    exit_code = 3

    def __init__(self, message: str, *, file: str | None = None, line: int | None = None) -> None:
        where = "" if file is None else f"{file}: " if line is None else f"{file}:{line}: "
        super().__init__(where + message)
        self.file = file
        self.line = line


class ServableError(ConfigurationError):
    """The servable configuration is wrong: found when it is loaded, before anything starts."""

    code = "invalid_servable"


class BrokerUnavailable(OperatorError):
    """Nobody answers at the broker's address, or no broker can be started."""

    code = "broker_unavailable"
    exit_code = 4


class BrokerRefused(OperatorError):
    """The broker answers and refuses: user, password, virtual host, certificate, or a permission."""

    code = "broker_refused"
    exit_code = 4


class ModelError(OperatorError):
    """A model file is missing, unreadable, or not like the other ranks'."""

    code = "invalid_model"
    exit_code = 5


class GroupError(OperatorError):
    """The group cannot form: ranks missing past the time allowed, or not agreeing with each other."""

    code = "group_incomplete"
    exit_code = 6


class CollectivesUnavailable(OperatorError):
    """Ranks cannot talk to each other through shared memory on this machine, or for this graph; MindSpore's own can."""

    code = "collectives_unavailable"
    exit_code = 6


class AlreadyRunning(OperatorError):
    """A port, a state folder, a job or a rank is taken by somebody else."""

    code = "already_running"
    exit_code = 7


Way = Literal["resume", "results", "again", "cancel", "new"]
"""What can be done about a job that stopped: resume it; resume it with results of another kind; run it again, into the
same folder, as nothing was answered; cancel it, for the results that it has; start a new one, and nothing else."""


class JobStopped(OperatorError):
    """An offline job ended before its time. What was answered is on record.

    Args:
        message: why, in one line.
        way: what can be done about it.
    """

    code = "job_stopped"
    exit_code = 10
    way: Way = "resume"  # of one that came over the wire too

    def __init__(self, message: str, *, way: Way = "resume") -> None:
        super().__init__(message)
        if way != self.way:
            self.way = way


def _tree(root: type[RankmqError]) -> list[type[RankmqError]]:
    return [root, *(leaf for child in root.__subclasses__() for leaf in _tree(child))]


def error_codes() -> dict[str, type[RankmqError]]:
    """Every code and its exception."""
    return {kind.code: kind for kind in _tree(RankmqError)}


def from_wire(code: str, message: str) -> RankmqError:
    """The exception for an error that came over the wire; an unknown code gives a plain `RankmqError`.

    Args:
        code: as in `ErrorInfo.code`.
        message: as in `ErrorInfo.message`.
    """
    kind = error_codes().get(code)
    if kind is None:
        return RankmqError(f"{code}: {message}")
    error = kind.__new__(kind)
    RankmqError.__init__(error, message)  # past constructors that build a message of their own
    if isinstance(error, ConfigurationError):
        error.file = error.line = None
    if isinstance(error, InstancesFailed):
        error.results = []
    if isinstance(error, CollectiveFailed):
        error.rank = None
    return error
