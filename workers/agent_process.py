"""The life of an agent's process, from the fork to its exit code."""

from __future__ import annotations

import importlib
import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Collection, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Literal

from ..engine import logs
from ..engine.collector import calm
from ..schemas.errors import ModelError, OperatorError, RankmqError
from .agent import Agent, AgentConfig
from .executor import Executor, operator_threads
from .line import LauncherLine
from .numpy_executor import NumpyExecutor

__all__ = ["executor_kind", "preload", "run_agent", "run_scheduler", "run_spare"]

log = logging.getLogger(__name__)

Kind = Literal["mindspore", "numpy"]

_BACKEND = "rankmq.workers.mindspore_executor"


def executor_kind(files: Sequence[Path]) -> Kind:
    """Which executor runs these model files, by their suffix.

    Raises:
        ModelError: no model files, of both kinds, or of neither.
    """
    suffixes = {path.suffix for path in files}
    if suffixes == {".mindir"}:
        return "mindspore"
    if suffixes == {".npz"}:
        return "numpy"
    found = ", ".join(sorted(suffixes)) or "none"
    raise ModelError(f"model files must all be .mindir (MindSpore) or all .npz (numpy); found: {found}")


def preload(kinds: Collection[Kind]) -> list[str]:
    """The modules that the fork server imports once, for all ranks."""
    return [__name__, *([_BACKEND] if "mindspore" in kinds else [])]


def _executor(kind: Kind, config: AgentConfig) -> Executor:
    if kind == "numpy":
        return NumpyExecutor()
    try:
        backend = importlib.import_module(_BACKEND)
    except ImportError as error:
        raise ModelError(f"MindSpore cannot be imported ({error}): pip install 'rankmq[agent]'") from None
    executor: Executor = backend.MindSporeExecutor(operator_threads(config.settings.operator_threads, config.ranks))
    return executor


def run_spare(pipe: Connection) -> None:
    """The process of a spare: waits to be told which rank it is.

    Args:
        pipe: where an `AgentConfig` will come; then as for `run_agent`.
    """
    _begin()
    try:
        config = pipe.recv()
    except (EOFError, OSError):
        return  # never needed
    run_agent(config, pipe)


def run_agent(config: AgentConfig, pipe: Connection) -> None:
    """The process of one rank.

    Args:
        config: see `AgentConfig`.
        pipe: to the launcher, for what only it can do, and for why we end.
    """
    _begin()
    launcher = LauncherLine(pipe)
    settings = config.settings
    logs.configure("agent", rank=config.rank, form=settings.log_format, level=settings.log_level)
    try:
        kind = executor_kind(config.files)
        executor = _executor(kind, config)
        scheduler = _offer_scheduler(config) if kind == "mindspore" else ""

        def start_scheduler(address: str, size: int) -> None:
            if importlib.import_module(_BACKEND).scheduler_needed():
                launcher.start_scheduler(address, size)

        calm()
        Agent(config, executor, scheduler=scheduler, start_scheduler=start_scheduler, alive=launcher.alive).run()
    except RankmqError as error:
        log.error("%s", error.message)
        launcher.failed(error.code, error.message)
        sys.exit(error.exit_code if isinstance(error, OperatorError) else 1)
    except Exception:
        log.exception("a defect: the agent ends")
        sys.exit(1)


def _offer_scheduler(config: AgentConfig) -> str:
    backend = importlib.import_module(_BACKEND)
    port: int = backend.free_port()
    return f"{config.host}:{port}"


def run_scheduler(address: str, size: int) -> None:
    """The process of the scheduler of MindSpore's own communication.

    Args:
        address: host:port to listen on.
        size: how many ranks it waits for.
    """
    _begin()
    host, _, port = address.rpartition(":")
    importlib.import_module(_BACKEND).run_scheduler(host, int(port), size)


def _begin() -> None:
    """Ctrl-C is for the launcher, which then stops us in order. And the launcher's end is ours."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _end_with_parent()


def _end_with_parent() -> None:
    """Ends this process in order when the launcher is gone, however that ended.

    The fork server, our parent for the kernel, is no sign of it: it lives for as long as any of its children does.
    """
    launcher = multiprocessing.parent_process()
    if launcher is None:
        return

    def watch() -> None:
        launcher.join()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="launcher-watch", daemon=True).start()
