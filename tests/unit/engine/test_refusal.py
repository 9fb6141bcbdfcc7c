"""What the broker refuses, said with user, resource and permission."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pika import exceptions, spec
from rankmq.engine.connection import map_error
from rankmq.engine.refusal import refusal
from rankmq.schemas.errors import BrokerRefused

QUEUE = "ACCESS_REFUSED - access to queue 'rankmq.dead' in vhost '/' refused for user 'weak'"
EXCHANGE = "ACCESS_REFUSED - access to exchange 'rankmq.requests' in vhost 'a b' refused for user 'weak'"
NEWER = "ACCESS_REFUSED - write access to exchange 'amq.default' in vhost '/' refused for user 'weak'"
TOPIC = "ACCESS_REFUSED - access to topic 'a.b' in exchange exchange 'rankmq.dead' in vhost '/' refused for user 'weak'"


def of(method: type) -> tuple[int, int]:
    """Class and number of a method of AMQP."""
    return method.INDEX >> 16, method.INDEX & 0xFFFF


@pytest.mark.parametrize(
    ("text", "method", "permission", "what"),
    [
        (QUEUE, spec.Basic.Consume, "read", "queue 'rankmq.dead'"),
        (QUEUE, spec.Basic.Get, "read", "queue 'rankmq.dead'"),
        (QUEUE, spec.Queue.Purge, "read", "queue 'rankmq.dead'"),
        (QUEUE, spec.Queue.Delete, "configure", "queue 'rankmq.dead'"),
        (QUEUE, spec.Queue.Bind, "write", "queue 'rankmq.dead'"),
        (QUEUE, spec.Queue.Unbind, "write", "queue 'rankmq.dead'"),
        (QUEUE, None, "sufficient", "queue 'rankmq.dead'"),
        (EXCHANGE, spec.Basic.Publish, "write", "exchange 'rankmq.requests'"),
        (EXCHANGE, spec.Queue.Bind, "read", "exchange 'rankmq.requests'"),
        (EXCHANGE, spec.Queue.Declare, "write", "exchange 'rankmq.requests'"),
        (EXCHANGE, spec.Exchange.Delete, "configure", "exchange 'rankmq.requests'"),
        (NEWER, spec.Queue.Declare, "write", "exchange 'amq.default' (the default exchange)"),
        (TOPIC, spec.Basic.Publish, "write", "topic 'a.b' of exchange 'rankmq.dead'"),
        (TOPIC, spec.Queue.Bind, "read", "topic 'a.b' of exchange 'rankmq.dead'"),
    ],
)
def test_user_resource_and_permission(text: str, method: type | None, permission: str, what: str) -> None:
    line = refusal(text, None if method is None else of(method))
    vhost = "a b" if text == EXCHANGE else "/"
    said = f"user 'weak' has no {permission} permission on {what} in virtual host '{vhost}'"
    assert line.startswith(f"the broker refuses a permission: {said}")


@pytest.mark.parametrize("text", [QUEUE, EXCHANGE])
def test_a_declaration_may_want_more_than_to_configure(text: str) -> None:
    """Of an exchange with an alternate, or a queue with dead letters, the broker does not say what it missed."""
    method = spec.Queue.Declare if text is QUEUE else spec.Exchange.Declare
    assert "no configure (or read, for where its messages go on to) permission" in refusal(text, of(method))


def test_the_driver_knows_which_method_it_was() -> None:
    error = map_error(exceptions.ChannelClosedByBroker(403, QUEUE), of(spec.Basic.Consume))
    assert isinstance(error, BrokerRefused)
    assert "has no read permission" in error.message


@given(st.text())
def test_anything_else_is_passed_on_in_one_line(text: str) -> None:
    line = refusal(text)
    assert line.startswith("the broker refuses a permission: ")
    assert len(line.splitlines()) == 1
