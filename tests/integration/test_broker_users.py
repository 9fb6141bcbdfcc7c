"""A private node with more than its defaults: further configuration, users and virtual hosts."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pika
import pytest
from rankmq.schemas.errors import BrokerUnavailable, ConfigurationError
from rankmq.workers.broker import PrivateBroker, User

CONSUMER_TIMEOUT = 1.0


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateBroker]:
    milliseconds = str(int(CONSUMER_TIMEOUT * 1000))
    with PrivateBroker(
        tmp_path_factory.mktemp("node"),
        extra_conf={"consumer_timeout": milliseconds, "vm_memory_high_watermark.absolute": "333MB"},
        advanced_conf="[{rabbit, [{channel_tick_interval, 200}]}].\n",
        users=[
            User("weak", configure="^mine$", write="^(mine|amq.default)$", read="^mine$"),
            User("other", vhost="/b"),
        ],
        vhosts=["/a"],
    ) as broker:
        yield broker


def connection(url: str) -> pika.BlockingConnection:
    return pika.BlockingConnection(pika.URLParameters(url))


def test_an_unacknowledged_delivery_is_taken_back_after_the_configured_time(node):
    with connection(node.url) as mine:
        channel = mine.channel()
        channel.queue_declare("slow", exclusive=True)
        channel.basic_publish("", "slow", b"")
        channel.basic_consume("slow", lambda *_: None)
        began = time.monotonic()
        while channel.is_open and time.monotonic() - began < 10:
            mine.process_data_events(0.1)
        assert CONSUMER_TIMEOUT - 0.2 < time.monotonic() - began < 5
        assert not channel.is_open


def test_further_lines_reach_the_node(node):
    assert "333MB" in node.ctl("eval", "application:get_env(rabbit, vm_memory_high_watermark).")


def test_a_further_user_may_do_what_is_said_and_no_more(node):
    with connection(node.user_url("weak")) as weak:
        channel = weak.channel()
        channel.queue_declare("mine", exclusive=True)
        channel.basic_publish("", "mine", b"body")
        assert channel.basic_get("mine", auto_ack=True)[2] == b"body"
        for refused in (
            lambda it: it.queue_declare("theirs"),
            lambda it: it.exchange_declare("theirs"),
            lambda it: it.basic_get("slow"),
        ):
            with pytest.raises(pika.exceptions.ChannelClosedByBroker, match="ACCESS_REFUSED"):
                refused(weak.channel())


def test_users_are_bound_to_their_virtual_host(node):
    connection(node.user_url("other")).close()
    there = pika.URLParameters(node.user_url("other"))
    there.virtual_host = "/a"
    with pytest.raises((pika.exceptions.ProbableAccessDeniedError, pika.exceptions.ConnectionClosedByBroker)):
        pika.BlockingConnection(there)


@pytest.mark.parametrize("vhost", ["/", "/a", "/b"])
def test_the_nodes_own_user_may_do_anything_everywhere(node, vhost):
    parameters = pika.URLParameters(node.url)
    parameters.virtual_host = vhost
    with pika.BlockingConnection(parameters) as mine:
        mine.channel().queue_declare("anything", exclusive=True)


def test_a_user_that_was_not_asked_for(node):
    with pytest.raises(ConfigurationError, match="no user nobody: it has weak, other"):
        node.user_url("nobody")
    with pytest.raises(ConfigurationError, match="no TLS listener"):
        node.user_url("weak", tls=True)


def test_users_come_with_a_later_start_and_keep_the_data(tmp_path):
    """Given a node that had no further users, when it starts with some, then they are there, and so is what it held."""
    with PrivateBroker(tmp_path) as node, connection(node.url) as mine:
        mine.channel().queue_declare("kept", durable=True)
    with PrivateBroker(tmp_path, users=[User("late", read="^kept$")]) as node:
        with connection(node.user_url("late")) as late:
            assert late.channel().basic_get("kept") == (None, None, None)
        connection(node.url).close()


def test_advanced_configuration_that_is_none_is_told(tmp_path):
    node = PrivateBroker(tmp_path, advanced_conf="[{rabbit, [", fast=False)
    with pytest.raises(BrokerUnavailable, match="ended while it started"):
        node.start()
