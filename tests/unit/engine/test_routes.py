"""Given a delivery, when it is asked by which way it came, then its lane is named, or why the broker dropped it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rankmq.engine import topology
from rankmq.engine.connection import Properties
from rankmq.engine.delivery import Delivery
from rankmq.engine.routes import dropped, lane_of
from rankmq.schemas.errors import InvalidInput


def delivery(key="matmul", exchange="rankmq.requests", headers=None):
    return Delivery(b"", 1, exchange, key, False, Properties(headers=headers))


@pytest.mark.parametrize("lane", topology.LANES)
def test_the_key_of_a_lane_names_it(lane):
    assert lane_of(delivery(topology.requests_key("matmul", lane)), "matmul") == lane
    assert lane_of(delivery(f"matmul.{lane}"), "matmul") == lane
    assert (
        lane_of(delivery(topology.requests_queue("matmul", lane), exchange=""), "matmul") == lane
    )  # put straight into it


def test_a_key_without_a_lane_is_the_normal_one():
    assert lane_of(delivery("matmul"), "matmul") == lane_of(delivery(""), "matmul") == "normal"


@pytest.mark.parametrize("key", ["matmul.urgent", "matmul.HIGH", "matmul.high.low", "matmul. high"])
def test_a_lane_that_does_not_exist(key):
    with pytest.raises(InvalidInput, match="lane high, normal, low"):
        lane_of(delivery(key), "matmul")


@pytest.mark.parametrize(
    "key", ["", ".", "matmul.", "nobody.urgent", "no.such.servable", "rankmq.requests.matmul.high"]
)
def test_a_key_of_another_servable_says_nothing(key):
    """Such a request came by way of the unrouted ones, and is served by what its body says."""
    assert lane_of(delivery(key), "matmul") == "normal"


def test_a_long_key_is_told_in_short():
    with pytest.raises(InvalidInput) as caught:
        lane_of(delivery("matmul." + "y" * 200), "matmul")
    assert len(caught.value.message) < 200


@pytest.mark.parametrize(
    ("exchange", "deaths", "reason"),
    [
        ("rankmq.unrouted", [{"reason": "expired"}], "expired"),
        ("rankmq.unrouted", [{"reason": "delivery_limit"}, {"reason": "expired"}], "delivery_limit"),
        ("rankmq.unrouted", [{}], "no reason given"),
        ("rankmq.unrouted", [], "no reason given"),
        ("rankmq.unrouted", None, "no reason given"),
        ("rankmq.unrouted", {"reason": "expired"}, "no reason given"),
        ("rankmq.requests", [{"reason": "expired"}], None),  # as a copy that its keeper did not take
        ("rankmq.requests", None, None),
        ("", None, None),
    ],
)
def test_why_the_broker_dropped_it(exchange, deaths, reason):
    assert dropped(delivery(exchange=exchange, headers={"x-death": deaths})) == reason


@given(
    key=st.text(max_size=20) | st.just("matmul.low"),
    exchange=st.sampled_from(["", "rankmq.requests", "rankmq.unrouted", "other"]),
    deaths=st.recursive(
        st.none() | st.integers() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["reason", "x"]), inner),
        max_leaves=5,
    ),
)
def test_whatever_comes_is_told_or_refused(key, exchange, deaths):
    given_ = delivery(key, exchange, {"x-death": deaths})
    reason = dropped(given_)
    assert (reason is None) == (exchange != "rankmq.unrouted")
    try:
        assert lane_of(given_, "matmul") in topology.LANES
    except InvalidInput:
        assert "." in key
