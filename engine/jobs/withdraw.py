"""Has the engine give up what it was sent of a job that nobody runs any more."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from ...schemas.errors import RankmqError
from ..address import BrokerAddress
from ..message_limit import MessageLimit
from ..topology import REQUESTS
from .line import JobLine
from .manifest import Key
from .step import Answer

__all__ = ["withdraw"]

_SETTLE_SECONDS = 3.0


def withdraw(address: BrokerAddress | None, job: str, keys: Sequence[Key], *, timeout: float) -> str:
    """Tells the engine, and deletes the job's queue once all of it is answered.

    Args:
        address: the broker; None where there is none.
        job: the job's id.
        keys: its requests that were not answered.
        timeout: seconds to go on trying to reach the broker.

    Returns:
        Why the engine was not told; "" if it was, or there was nothing to tell.
    """
    if not keys:
        return ""
    if address is None:
        return "no broker was named"
    with ThreadPoolExecutor(1, "rankmq-job") as thread:  # the caller may be on a loop of its own
        try:
            thread.submit(
                lambda: asyncio.run(asyncio.wait_for(_tell(address, job, keys, timeout), 3 * timeout))
            ).result()
        except TimeoutError:
            return f"the broker at {address} does not answer"
        except RankmqError as error:
            return error.message
    return ""


async def _tell(address: BrokerAddress, job: str, keys: Sequence[Key], timeout: float) -> None:
    left, tags, news = set(keys), [0], asyncio.Event()

    def on_answer(answer: Answer, tag: int) -> None:
        left.discard(answer.key)
        tags.append(tag)
        news.set()

    line = await JobLine.open(
        address, job, REQUESTS, on_answer, None,
        blobs=False, deadline=None, patience=timeout, stopped=lambda: False, limit=MessageLimit(),
    )  # fmt: skip
    try:
        await line.cancel(list(keys))
        until = time.monotonic() + min(timeout, _SETTLE_SECONDS)
        while left and line.ended() is None and (seconds := until - time.monotonic()) > 0:
            news.clear()
            if tags[-1]:
                line.ack(tags[-1])
            try:
                await asyncio.wait_for(news.wait(), seconds)
            except TimeoutError:
                break
        if not left:  # else answers still come, and the queue goes by itself when its time is up
            await line.delete_queue()
    finally:
        await line.close()
