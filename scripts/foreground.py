"""A service in the foreground of a terminal: it runs until Ctrl-C or SIGTERM, and then ends in order."""

from __future__ import annotations

import queue
import signal
import threading
from collections.abc import Callable
from types import FrameType

__all__ = ["run_service"]

_LOOK_AGAIN_SECONDS = 0.5


def run_service(run: Callable[[], None], stop: Callable[[], None]) -> None:
    """Runs a service on a thread of its own and passes on when it should stop.

    Args:
        run: returns when the service has ended.
        stop: asks it to end; has no effect on a service that has not begun yet.

    Raises:
        KeyboardInterrupt: it ended because of Ctrl-C, in order.
    """
    ends: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
    asked: list[int] = []

    def body() -> None:
        try:
            run()
        except BaseException as error:  # noqa: BLE001 - raised again by the thread that waits
            ends.put(error)
        else:
            ends.put(None)

    def on_signal(number: int, _: FrameType | None) -> None:
        asked.append(number)
        stop()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_signal)
    threading.Thread(target=body, name="service", daemon=True).start()
    while True:
        try:
            error = ends.get(timeout=_LOOK_AGAIN_SECONDS)
        except queue.Empty:
            if asked:
                stop()
            continue
        break
    if error is not None:
        raise error
    if signal.SIGINT in asked:
        raise KeyboardInterrupt
