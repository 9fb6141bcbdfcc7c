"""One process of those that `local` starts: the orchestrator, or the launcher of the agents.

    python -m rankmq.workers.child orchestrator|agents DESCRIPTOR

Over the socket of that descriptor the parent sends two lines of JSON: first the order, so that everything that takes
time (imports, configuration files) can be done while the broker boots, then the broker's URL, which so appears in no
list of processes. Back comes a line when it serves, and one that says why it ends. When the parent is gone, so are we.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

# What is heavy is imported where it is needed: every agent imports this module again, as its main one.
if TYPE_CHECKING:
    from ..engine.settings import Settings

__all__ = ["main"]

log = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1
_GRACE_SECONDS = 15.0


class _Parent:
    """The other end."""

    def __init__(self, descriptor: int) -> None:
        self._socket = socket.socket(fileno=descriptor)
        self._socket.set_inheritable(False)
        self._lines = self._socket.makefile("rb")

    def hear(self) -> dict[str, Any]:
        """The next word.

        Raises:
            EOFError: the parent is gone.
        """
        line = self._lines.readline()
        if not line.endswith(b"\n"):
            raise EOFError
        word: dict[str, Any] = json.loads(line)
        return word

    def say(self, **word: object) -> None:
        """Says a word; to a parent that is gone, nothing."""
        with contextlib.suppress(OSError):
            self._socket.sendall(json.dumps(word).encode() + b"\n")

    def end_with(self, seconds: float) -> None:
        """From now on: when the parent is gone, stop in order; after `seconds`, stop."""

        def watch() -> None:
            with contextlib.suppress(EOFError, OSError):
                while True:
                    self.hear()
            timer = threading.Timer(seconds, os._exit, [1])
            timer.daemon = True
            timer.start()
            os.kill(os.getpid(), signal.SIGTERM)

        threading.Thread(target=watch, name="parent", daemon=True).start()


def main() -> None:
    """The process, from its first line to its exit code."""
    role, descriptor = sys.argv[1], int(sys.argv[2])
    _end_with_parent()
    parent = _Parent(descriptor)
    try:
        order = parent.hear()
    except EOFError:
        sys.exit(1)
    from ..engine import logs
    from ..engine.leaving import leave
    from ..schemas.errors import OperatorError, RankmqError

    given = order["settings"]
    logs.configure("launcher" if role == "agents" else role, form=given["log_format"], level=given["log_level"])
    roles: dict[str, Callable[[_Parent, dict[str, Any]], None]] = {"orchestrator": _orchestrate, "agents": _launch}
    code = 1
    try:
        roles[role](parent, order)
        code = 0
    except EOFError:
        pass
    except RankmqError as error:
        log.debug("ends", exc_info=error)
        parent.say(event="failed", code=error.code, message=error.message)
        code = error.exit_code if isinstance(error, OperatorError) else 1
    except Exception as error:
        log.exception("a defect: the %s ends", role)
        parent.say(event="failed", code="internal", message=f"{role}: {type(error).__name__}: {error}")
    leave(code)
    sys.exit(code)


def _orchestrate(parent: _Parent, order: dict[str, Any]) -> None:
    from ..engine.catalog import Catalog
    from ..engine.collector import calm
    from ..engine.loader import load_servable
    from ..engine.orchestrator import Orchestrator

    catalog = Catalog(
        load_servable(
            Path(it["directory"]),
            it["name"],
            it["version"],
            model_files=[[Path(file) for file in files] for files in it["files"]] if it["files"] else None,
        )
        for it in order["servables"]
    )
    settings = _settings(parent, order)
    calm()
    Orchestrator(
        catalog,
        settings,
        group=order["group"],
        on_ready=lambda: parent.say(event="ready"),
        on_warning=lambda line: parent.say(event="warning", message=line),
    ).run()


def _launch(parent: _Parent, order: dict[str, Any]) -> None:
    import multiprocessing
    from multiprocessing import forkserver

    from ..engine.short_sockets import keep_sockets_short
    from ..schemas.messages import GroupId
    from .agent_process import executor_kind, preload
    from .launcher import Launcher

    files = {
        GroupId(servable=it["name"], version=it["version"], group=order["group"]): {
            rank: [Path(file) for file in of_rank] for rank, of_rank in enumerate(it["files"])
        }
        for it in order["servables"]
        if it["files"]
    }
    keep_sockets_short()
    # The server imports what the ranks need while the broker still boots.
    kinds = {executor_kind(of_rank) for ranks in files.values() for of_rank in ranks.values()}
    multiprocessing.get_context("forkserver").set_forkserver_preload(preload(kinds))
    forkserver.ensure_running()
    Launcher(files, _settings(parent, order)).run()


def _settings(parent: _Parent, order: dict[str, Any]) -> Settings:
    from ..engine.settings import Settings

    settings = Settings(**order["settings"], broker_url=parent.hear()["broker_url"])
    parent.end_with(settings.drain_timeout + _GRACE_SECONDS)
    return settings


def _end_with_parent() -> None:
    if sys.platform == "linux":
        parent = os.getppid()
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:
            sys.exit(1)


if __name__ == "__main__":
    main()
