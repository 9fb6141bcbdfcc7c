"""A job's runner on a loop and a thread of its own, whoever the caller is."""

from __future__ import annotations

import asyncio
import queue
import threading

from .runner import Ending, Runner

__all__ = ["run_on_thread"]

_LOOK_SECONDS = 0.2


def run_on_thread(runner: Runner) -> Ending:
    """Runs it to its end; Ctrl-C ends it in order.

    Raises:
        KeyboardInterrupt: it ended so.
    """
    ends: queue.SimpleQueue[Ending | BaseException] = queue.SimpleQueue()

    def body() -> None:
        try:
            ends.put(asyncio.run(runner.run()))
        except BaseException as error:  # noqa: BLE001 - raised again by the thread that waits
            ends.put(error)

    thread = threading.Thread(target=body, name="rankmq-job", daemon=True)
    thread.start()
    interrupted = False
    while True:
        try:
            ended = ends.get(timeout=_LOOK_SECONDS)
        except queue.Empty:
            continue
        except KeyboardInterrupt:
            runner.stop()
            interrupted = True
            continue
        break
    thread.join()
    if isinstance(ended, BaseException):
        raise ended
    if interrupted:
        raise KeyboardInterrupt
    return ended
