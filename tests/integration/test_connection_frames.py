"""Headers of a message go in one frame: the broker closes the connection of who sends a larger one."""

from __future__ import annotations

import asyncio
import random

import pytest
from rankmq.engine.address import BrokerAddress
from rankmq.engine.confirms import Outcome
from rankmq.engine.connection import Properties
from rankmq.schemas.errors import LimitExceeded

from tests.integration.connections import connected, run


@run
async def test_headers_that_fit_and_headers_that_do_not(broker_url):
    async with connected(BrokerAddress.parse(broker_url)) as connection:
        assert connection.frame_max == 131072
        channel = await connection.channel()
        queue = await channel.reply_queue()
        longest = {"message_id": "m" * 255, "correlation_id": "c" * 255, "reply_to": "r" * 255, "type": "t" * 255}
        size = connection.frame_max
        while True:
            try:
                given = Properties(headers={"a": "x" * size, "é": [1, {"b": None}]}, content_type="c" * 255, **longest)
                assert await channel.publish_confirmed("", queue, b"body", given) is Outcome.CONFIRMED
                break
            except LimitExceeded:
                size -= 50
        assert size > connection.frame_max - 4000
        with pytest.raises(LimitExceeded, match="headers larger than a frame"):
            channel.publish("", queue, b"", Properties(headers={"a": ["x" * 1000] * 200}))
        assert channel.is_open
        assert (await channel.depth(queue)).messages == 1


@run
async def test_what_another_thread_publishes_comes_in_its_order(broker_url):
    """Also when it is more than the socket takes, and while the loop's own thread publishes on another channel."""
    async with connected(BrokerAddress.parse(broker_url)) as connection:
        confirmed, channel = await connection.channel(), await connection.channel(confirm=False)
        queue = await channel.reply_queue()
        found: dict[bytes, list[int]] = {b"thread": [], b"loop": []}
        everything = asyncio.get_running_loop().create_future()

        def on_message(delivery):
            kind, number, _ = delivery.body.split(b" ", 2)
            found[kind].append(int(number))
            if len(found[b"thread"]) == 300 and len(found[b"loop"]) == 300 and not everything.done():
                everything.set_result(None)

        await channel.consume(queue, on_message, no_ack=True)
        sizes = [random.Random(number).choice([10, 1000, 300_000]) for number in range(300)]

        def publish_all():
            for number, size in enumerate(sizes):
                body = b"thread %d " % number + bytes(size)
                assert channel.publish_from_thread("", queue, body, Properties(content_type="c"))

        thread = asyncio.get_running_loop().run_in_executor(None, publish_all)
        for number in range(300):
            confirmed.publish("", queue, b"loop %d " % number + bytes(sizes[number] // 10))
            await asyncio.sleep(0)
        await thread
        await asyncio.wait_for(everything, 60)
        assert found == {b"thread": list(range(300)), b"loop": list(range(300))}
        assert not confirmed.publish_from_thread("", queue, b"", Properties()), "confirms are the loop's"
        await channel.close()
        assert not channel.publish_from_thread("", queue, b"", Properties())
