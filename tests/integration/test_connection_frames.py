"""Headers of a message go in one frame: the broker closes the connection of who sends a larger one."""

from __future__ import annotations

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
