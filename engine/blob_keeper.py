"""Has blobs deleted that are not needed any more: those that are known to be, after a while, and those of old age.

Before it first does it sees whether the store can be used at all. If not, that is said, and no more: it may come back.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor

from ..schemas.errors import BlobUnavailable
from .blobs import BlobStore

__all__ = ["BlobKeeper"]

log = logging.getLogger(__name__)

_KEEP_SECONDS = 30.0
"""The blobs of an answered request are kept so long: a producer whose connection was cut meanwhile asks once more."""

_TRY_SECONDS = 10.0
_SWEEP_SECONDS = 3600.0
_MOST_KEPT = 20_000
_CLOSE_SECONDS = 10.0


class BlobKeeper:
    """Deletes the blobs of one orchestrator, and sweeps up what others have left.

    Args:
        store: where they are.
        pool: the threads that it is done on.
        age: hours after which a blob is swept up.
        keep: seconds until what is discarded is deleted.
        on_warning: called with a line if the store cannot be used.

    Attributes:
        store: the same.
    """

    def __init__(
        self,
        store: BlobStore,
        pool: Executor,
        age: float,
        keep: float = _KEEP_SECONDS,
        on_warning: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.store = store
        self._on_warning = on_warning
        self._pool = pool
        self._age = 3600.0 * age
        self._keep = keep
        self._loop = asyncio.get_running_loop()
        self._discarded: deque[tuple[float, tuple[str, ...]]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._sweeping = self._loop.create_task(self._sweep())
        self._deleting: set[asyncio.Future[None]] = set()

    def discard(self, names: Sequence[str]) -> None:
        """These blobs are not needed any more."""
        self._discarded.append((self._loop.time() + self._keep, tuple(names)))
        if len(self._discarded) > _MOST_KEPT:
            self.delete(self._discarded.popleft()[1])
        if self._timer is None:
            self._timer = self._loop.call_later(self._keep, self._due)

    def _due(self) -> None:
        self._timer, now = None, self._loop.time()
        names: list[str] = []
        while self._discarded and self._discarded[0][0] <= now:
            names += self._discarded.popleft()[1]
        if names:
            self.delete(names)
        if self._discarded:
            self._timer = self._loop.call_at(self._discarded[0][0], self._due)

    def delete(self, names: Sequence[str]) -> None:
        """Has blobs deleted at once."""
        deleting = asyncio.ensure_future(self._loop.run_in_executor(self._pool, self.store.delete, names))
        self._deleting.add(deleting)
        deleting.add_done_callback(self._deleting.discard)

    async def _usable(self) -> bool:
        """Whether the store can be written; says why not."""
        try:
            trying = self._loop.run_in_executor(self._pool, self.store.try_out)
            await asyncio.wait_for(trying, _TRY_SECONDS)
        except BlobUnavailable as error:
            why = error.message
        except TimeoutError:
            why = f"the blob store has not answered within {_TRY_SECONDS:g} s"
        else:
            return True
        line = f"see the setting blob_store: {why}; until it can be used, tensors that must go through it fail"
        log.warning("%s", line)
        self._on_warning(line)
        return False

    async def _sweep(self) -> None:
        told = not await self._usable()
        while True:
            try:
                count = await self._loop.run_in_executor(self._pool, self.store.sweep, self._age)
                if count:
                    log.info("%d blobs that nobody had deleted were", count)
                told = False
            except BlobUnavailable as error:
                if not told:
                    log.warning("the blob store is not swept: %s", error.message)
                told = True
            await asyncio.sleep(min(_SWEEP_SECONDS, self._age / 4))

    async def close(self) -> None:
        """Deletes at once what is still to be deleted."""
        self._sweeping.cancel()
        if self._timer is not None:
            self._timer.cancel()
        names = [name for _, them in self._discarded for name in them]
        self._discarded.clear()
        if names:
            self.delete(names)
        if self._deleting:
            await asyncio.wait(self._deleting, timeout=_CLOSE_SECONDS)
