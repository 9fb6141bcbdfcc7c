"""What a command says when it fails: one line on standard error, and an exit code for scripts."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator

import typer

__all__ = ["EXIT_CODES", "Usage", "reported"]

log = logging.getLogger(__name__)

_USAGE = 2
_BROKER = 4
_REQUEST_FAILED = 8
_TIMEOUT = 9
_INTERRUPTED = 130

EXIT_CODES = """\
Exit codes: 0 done; 2 the command line is wrong; 3 a setting, a servable or a rank table is wrong; 4 the broker cannot \
be used; 5 a model file is missing or wrong; 6 the ranks do not form a group; 7 something runs already; 8 the request \
failed; 9 no reply in time; 10 a job ended before its time; 130 interrupted (Ctrl-C); 1 anything else."""


class Usage(Exception):
    """A command line that cannot be meant; one line."""


@contextlib.contextmanager
def reported() -> Iterator[None]:
    """Runs a command: what it raises becomes a line on standard error and an exit code."""
    from ..schemas.errors import RankmqError

    try:
        yield
    except (typer.Exit, typer.Abort):
        raise
    except KeyboardInterrupt:
        raise typer.Exit(_INTERRUPTED) from None
    except BrokenPipeError:  # as in `rankmq status | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(1) from None
    except Usage as error:
        raise typer.Exit(_say(error, str(error), _USAGE)) from None
    except RankmqError as error:
        raise typer.Exit(_say(error, error.message, exit_code(error))) from None
    except Exception as error:  # noqa: BLE001 - the top of the process
        hint = "RANKMQ_LOG_LEVEL=debug shows where"
        raise typer.Exit(_say(error, f"a defect of rankmq: {type(error).__name__}: {error} ({hint})", 1)) from None


def exit_code(error: Exception) -> int:
    """The exit code for an error of ours."""
    from ..schemas.errors import ConnectionLost, DeadlineExceeded, OperatorError, ReplyTimeout

    match error:
        case OperatorError():
            return error.exit_code
        case ReplyTimeout() | DeadlineExceeded():  # whoever sees first that time is up says it: this side or the engine
            return _TIMEOUT
        case ConnectionLost():
            return _BROKER
        case _:
            return _REQUEST_FAILED


def _say(error: Exception, message: str, code: int) -> int:
    log.debug("where it failed", exc_info=error)
    typer.echo("rankmq: " + " ".join(message.split()), err=True)
    return code
