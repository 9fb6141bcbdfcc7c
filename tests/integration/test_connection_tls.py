"""amqps to a real node that asks its clients for a certificate."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from rankmq.engine.address import BrokerAddress
from rankmq.engine.confirms import Outcome
from rankmq.engine.connection import Connection
from rankmq.engine.settings import load_settings
from rankmq.schemas.errors import BrokerRefused, BrokerUnavailable
from rankmq.workers.broker import PrivateBroker, TlsFiles

from tests.integration.certificates import Certificate, make
from tests.integration.connections import connected, run


@dataclass(frozen=True)
class Tls:
    """A node, and certificates good and bad."""

    node: PrivateBroker
    ca: Certificate
    client: Certificate
    stranger: Certificate
    expired: Certificate
    other: Certificate

    @property
    def address(self) -> BrokerAddress:
        return BrokerAddress.parse(
            self.node.tls_url, ca_file=self.ca.cert, cert_file=self.client.cert, key_file=self.client.key
        )


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tls]:
    folder = tmp_path_factory.mktemp("tls")
    ca, other = make(folder, "ca"), make(folder, "other")
    server = make(folder, "server", ca)
    files = TlsFiles(ca.cert, server.cert, server.key)
    with PrivateBroker(folder / "node", tls=files) as node:
        stranger, expired = make(folder, "stranger", other), make(folder, "expired", ca, days=-1)
        yield Tls(node, ca, make(folder, "client", ca), stranger, expired, other)


@run
async def test_a_client_with_its_certificate(tls):
    async with connected(tls.address) as connection:
        channel = await connection.channel()
        queue = await channel.reply_queue()
        body = bytes(range(256)) * 4096
        got = []
        await channel.consume(queue, got.append, no_ack=True)
        assert await channel.publish_confirmed("", queue, body) is Outcome.CONFIRMED
        while not got:
            await channel.depth(queue)
        assert got[0].body == body


@run
async def test_certificate_and_key_in_one_file(tls, tmp_path: Path):
    both = tmp_path / "both.pem"
    both.write_bytes(tls.client.cert.read_bytes() + tls.client.key.read_bytes())
    async with connected(replace(tls.address, cert_file=both, key_file=None)) as connection:
        assert connection.is_open


@run
async def test_as_the_settings_have_it(tls):
    settings = load_settings(
        broker_url=tls.node.tls_url,
        tls_ca_file=tls.ca.cert,
        tls_cert_file=tls.client.cert,
        tls_key_file=tls.client.key,
    )
    async with connected(settings.address()) as connection:
        assert connection.is_open


@pytest.mark.parametrize(
    ("change", "kind", "match"),
    [
        (lambda _: {"cert_file": None, "key_file": None}, BrokerRefused, "takes? our certificate, or wants one"),
        (
            lambda it: {"cert_file": it.stranger.cert, "key_file": it.stranger.key},
            BrokerRefused,
            "does not take our certificate",
        ),
        (
            lambda it: {"cert_file": it.expired.cert, "key_file": it.expired.key},
            BrokerRefused,
            "does not take our certificate",
        ),
        (lambda it: {"ca_file": it.other.cert}, BrokerRefused, "the broker's certificate is not trusted"),
        (lambda _: {"ca_file": None}, BrokerRefused, "the broker's certificate is not trusted"),
        (lambda _: {"host": "127.0.0.1"}, BrokerRefused, "not valid for '127.0.0.1'"),
        (lambda _: {"password": "wrong-password"}, BrokerRefused, "refuses this user or password"),
        (lambda it: {"port": plain(it).port}, BrokerRefused, "TLS with the broker failed"),
        (
            lambda _: {"tls": False},
            BrokerUnavailable,
            "does not speak AMQP 0-9-1 .a TLS port wants an amqps URL.",
        ),
    ],
    ids=[
        "no certificate",
        "signed by somebody else",
        "expired",
        "an authority that we do not trust",
        "only the system's authorities",
        "another name",
        "wrong password",
        "TLS to the plain port",
        "plain to the TLS port",
    ],
)
@run
async def test_who_does_not_fit_is_told_why(tls, change, kind, match):
    address = replace(tls.address, **change(tls))
    began = time.monotonic()
    with pytest.raises(kind, match=match) as caught:
        await Connection.open(address, name="test", patience=30 if kind is BrokerRefused else 0)
    assert time.monotonic() - began < 10  # not tried again
    assert str(address) in str(caught.value)
    assert tls.address.password not in str(caught.value)


def plain(tls: Tls) -> BrokerAddress:
    return BrokerAddress.parse(tls.node.url)
