"""What the launcher reports goes over one connection at a time, whatever becomes of it and of its channel."""

import pytest
from rankmq.engine.settings import Settings
from rankmq.schemas import codec
from rankmq.schemas.errors import BrokerUnavailable, ConnectionLost
from rankmq.schemas.messages import GroupId, RankExited
from rankmq.workers.reporter import Reporter

GROUP = GroupId(servable="matmul", version=1)


class Channel:
    def __init__(self, broker, connection):
        self.broker, self.connection = broker, connection
        self.is_open = True

    async def publish_confirmed(self, exchange, key, body, properties):
        if self.broker.bad.pop(0):
            self.is_open = False
            raise ConnectionLost("the channel is closed")
        self.broker.heard.append((self.connection, codec.decode_to_orchestrator(body).rank))


class Connection:
    def __init__(self, broker, number):
        self.broker, self.number = broker, number

    async def channel(self):
        return Channel(self.broker, self.number)

    async def close(self):
        self.broker.open.remove(self.number)


class Broker:
    """Some of the reports close their channel, and some of the connections cannot be opened."""

    def __init__(self, bad, refused=()):
        self.bad, self.refused = list(bad), set(refused)
        self.opened, self.most, self.open, self.heard = 0, 0, [], []

    async def open_connection(self, *_, **__):
        self.opened += 1
        if self.opened in self.refused:
            raise BrokerUnavailable("nobody answers")
        self.open.append(self.opened)
        self.most = max(self.most, len(self.open))
        return Connection(self, self.opened)


@pytest.mark.parametrize(
    ("bad", "refused", "heard"),
    [
        ([0, 0, 0], (), [(1, 0), (1, 1), (1, 2)]),
        ([0, 1, 0, 1, 0], (), [(1, 0), (2, 2), (3, 4)]),
        ([1, 0, 0], (2,), [(3, 2), (3, 3)]),
    ],
)
def test_a_connection_whose_channel_closed_is_closed_before_the_next(monkeypatch, bad, refused, heard):
    broker = Broker(bad, refused)
    monkeypatch.setattr("rankmq.workers.reporter.Connection.open", broker.open_connection)
    reporter = Reporter(Settings(broker_url="amqp://127.0.0.1/"))
    for rank in range(len(bad) + len(refused)):
        reporter.report(RankExited(group=GROUP, rank=rank, pid=1, reason="killed"))
    reporter.close()
    assert broker.heard == heard
    assert (broker.most, broker.open) == (1, [])
