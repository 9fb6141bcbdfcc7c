"""The end of a process whose servables may not let it end."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time

__all__ = ["leave"]

log = logging.getLogger(__name__)


def leave(code: int, patience: float = 2.0) -> None:
    """Ends the process at once if threads that it would wait for do not end; else returns, and it may end in order.

    Args:
        code: the exit code.
        patience: seconds that the threads have to end.
    """
    until = time.monotonic() + patience
    waited = [it for it in threading.enumerate() if it is not threading.current_thread() and not it.daemon]
    for thread in waited:
        thread.join(max(0.0, until - time.monotonic()))
    left = [thread.name for thread in waited if thread.is_alive()]
    if not left:
        return
    log.warning("functions of servables go on, and the process ends without them: threads %s", ", ".join(left))
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)
