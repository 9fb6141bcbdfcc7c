"""Broker URLs: read, written, and never shown with their password."""

from __future__ import annotations

import copy
import pickle
import ssl
import traceback

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rankmq.engine.address import BrokerAddress
from rankmq.schemas.errors import ConfigurationError

from tests.integration.certificates import make

SECRET = "Sesame-4711"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("amqp://u:p@h:1234/v", ("h", 1234, "u", "p", "v", False)),
        ("amqp://h", ("h", 5672, "guest", "guest", "/", False)),
        ("amqps://h", ("h", 5671, "guest", "guest", "/", True)),
        ("amqp://u:p@h/", ("h", 5672, "u", "p", "/", False)),
        ("amqp://u:p@h/%2F", ("h", 5672, "u", "p", "/", False)),
        ("amqp://u:p@h/%2Fa%20b", ("h", 5672, "u", "p", "/a b", False)),
        ("amqp://u:p@h/a/b", ("h", 5672, "u", "p", "a/b", False)),
        ("amqp://u%40x:p%2F%3A%23@h", ("h", 5672, "u@x", "p/:#", "/", False)),
        ("amqp://u:p:q@h", ("h", 5672, "u", "p:q", "/", False)),
        ("amqp://u@h", ("h", 5672, "u", "guest", "/", False)),
        ("amqp://u:p@[::1]:99", ("::1", 99, "u", "p", "/", False)),
        ("AMQP://u:p@EXAMPLE.org", ("example.org", 5672, "u", "p", "/", False)),
    ],
)
def test_what_a_url_says(url, expected):
    it = BrokerAddress.parse(url)
    assert (it.host, it.port, it.user, it.password, it.vhost, it.tls) == expected


@pytest.mark.parametrize(
    "url",
    [
        "",
        "nonsense",
        "http://u:p@h",
        "amqp://",
        "amqp:///vhost",
        "amqp://u:p@h:port",
        "amqp://u:p@h:99999",
        "amqp://u:p@[::1",
        f"amqp://u:{SECRET}#x@h",
        f"amqp://u:{SECRET}/x@h",
        f"amqp://u:4711/{SECRET}@h/v",
        f"amqp://u:{SECRET}?x@h",
        "amqp://h/v?heartbeat=0",
        "amqp://h/v#part",
    ],
)
def test_what_cannot_be_read_is_refused_without_being_repeated(url):
    with pytest.raises(ConfigurationError) as caught:
        BrokerAddress.parse(url)
    assert caught.value.exit_code == 3
    assert "\n" not in str(caught.value)
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


addresses = st.builds(
    BrokerAddress,
    host=st.sampled_from(["h", "127.0.0.1", "::1", "a.b.example"]),
    port=st.integers(1, 65535),
    user=st.text(min_size=1),
    password=st.text(min_size=1),
    vhost=st.text(min_size=1),
    tls=st.booleans(),
)


@given(addresses)
def test_a_url_says_all_that_there_is_to_say(address):
    assert BrokerAddress.parse(address.url()) == address


@given(addresses)
def test_what_is_shown_is_a_url_too_of_all_but_the_password(address):
    shown = BrokerAddress.parse(str(address))
    assert (shown.host, shown.port, shown.user, shown.vhost, shown.tls) == (
        address.host,
        address.port,
        address.user,
        address.vhost,
        address.tls,
    )
    assert shown.password == "guest"


def test_the_password_is_shown_nowhere():
    address = BrokerAddress.parse(f"amqp://user:{SECRET}@h")
    for shown in (str(address), repr(address), f"{address}", f"{[address]}", f"{address!r}", repr({"a": address})):
        assert SECRET not in shown
        assert "user" in shown
    assert SECRET in address.url()
    assert pickle.loads(pickle.dumps(address)) == copy.deepcopy(address) == address  # it goes to other processes


@pytest.mark.parametrize("which", ["ca_file", "cert_file", "key_file"])
def test_a_certificate_file_that_is_not_there(tmp_path, which):
    with pytest.raises(ConfigurationError, match=r"no certificate file .*nowhere\.pem"):
        BrokerAddress.parse("amqps://h", **{which: tmp_path / "nowhere.pem"})


def test_without_tls_there_is_no_context():
    assert BrokerAddress.parse("amqp://h").ssl_context() is None


def test_the_broker_has_to_prove_itself(tmp_path):
    ca = make(tmp_path, "ca")
    client = make(tmp_path, "client", ca)
    address = BrokerAddress.parse("amqps://h", ca_file=ca.cert, cert_file=client.cert, key_file=client.key)
    context = address.ssl_context()
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2


@pytest.mark.parametrize("wrong", ["ca is no certificate", "another's key", "a key with a password", "no key"])
def test_certificate_files_that_cannot_be_used(tmp_path, wrong):
    """A key under a password is no reason to ask for one: nobody may be there."""
    ca = make(tmp_path, "ca")
    client = make(tmp_path, "client", ca)
    files = {
        "ca is no certificate": {"ca_file": client.key},
        "another's key": {"cert_file": client.cert, "key_file": ca.key},
        "a key with a password": {"cert_file": client.cert, "key_file": client.encrypted},
        "no key": {"cert_file": client.cert},
    }[wrong]
    with pytest.raises(ConfigurationError, match="the broker's certificate files cannot be read: ") as caught:
        BrokerAddress.parse("amqps://h", **files).ssl_context()
    assert "\n" not in str(caught.value)
