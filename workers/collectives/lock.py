"""A lock between the processes of a host, held by one of them at a time and let go of however that one ends."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["held"]

_LOOK_SECONDS = 0.05


@contextmanager
def held(file: Path, seconds: float) -> Iterator[None]:
    """Holds the lock of a file, which is made if it is not there.

    Args:
        file: its content does not matter.
        seconds: how long to wait for whoever else holds it.

    Raises:
        TimeoutError: it was held by others for so long.
        OSError: the file cannot be made.
    """
    with file.open("w") as lock:
        deadline = time.monotonic() + seconds
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{file} has been locked for {seconds:.0f} s") from None
            time.sleep(_LOOK_SECONDS)  # there is nothing that would wake us: flock itself waits without a bound
        yield
