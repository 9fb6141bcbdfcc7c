from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rankmq.schemas.errors import ConfigurationError
from rankmq.workers.broker_config import (
    Account,
    Ports,
    TlsFiles,
    boot_failure,
    node_environment,
    render_conf,
)
from rankmq.workers.broker_users import User, definitions

PORTS = Ports(amqp=5001, dist=5002, epmd=5003, tls=5004)
ACCOUNT = Account(user="somebody", password="pass-word_1")


def parsed(conf: str) -> dict[str, str]:
    return dict(line.split(" = ", 1) for line in conf.splitlines())


def environment(inherited: dict[str, str] | None = None, **more: Path) -> dict[str, str]:
    return node_environment(
        inherited or {}, state=Path("/some where"), home=Path("/home"), ports=PORTS, schedulers=2, **more
    )


def test_conf_listens_on_loopback_under_the_given_account():
    conf = parsed(render_conf(ACCOUNT, PORTS))

    assert conf["listeners.tcp.1"] == "127.0.0.1:5001"
    assert conf["default_user"] == "somebody"
    assert conf["default_pass"] == "pass-word_1"
    assert not [key for key in conf if "ssl" in key]
    assert not [value for value in conf.values() if "guest" in value]


def test_conf_with_tls_asks_for_the_clients_certificate():
    tls = TlsFiles(ca=Path("/c a.pem"), cert=Path("/cert.pem"), key=Path("/key.pem"))

    conf = parsed(render_conf(ACCOUNT, PORTS, tls=tls))

    assert conf["listeners.ssl.1"] == "127.0.0.1:5004"
    assert conf["ssl_options.cacertfile"] == "/c a.pem"
    assert conf["ssl_options.verify"] == "verify_peer"
    assert conf["ssl_options.fail_if_no_peer_cert"] == "true"


def test_extra_lines_are_added_and_win():
    conf = parsed(render_conf(ACCOUNT, PORTS, extra={"consumer_timeout": "5000", "log.file.level": "debug"}))

    assert conf["consumer_timeout"] == "5000"
    assert conf["log.file.level"] == "debug"


def test_conf_without_definitions_names_none():
    assert "load_definitions" not in parsed(render_conf(ACCOUNT, PORTS))
    conf = parsed(render_conf(ACCOUNT, PORTS, definitions=Path("/some where/definitions.json")))
    assert conf["load_definitions"] == "/some where/definitions.json"


def test_definitions_hold_the_nodes_own_user_and_the_others():
    weak = User("weak", "secret", configure="^$", write="^w$", read="^r$", topics=(("t", "^a$", "^b$"),), vhost="/b")

    defined = json.loads(definitions(ACCOUNT, [weak], ["/a", "/b"]))

    assert [host["name"] for host in defined["vhosts"]] == ["/", "/a", "/b"]
    assert [(user["name"], user["password"], user["tags"]) for user in defined["users"]] == [
        ("somebody", "pass-word_1", "administrator"),
        ("weak", "secret", ""),
    ]
    assert [tuple(it.values()) for it in defined["permissions"]] == [
        ("somebody", "/", ".*", ".*", ".*"),
        ("somebody", "/a", ".*", ".*", ".*"),
        ("somebody", "/b", ".*", ".*", ".*"),
        ("weak", "/b", "^$", "^w$", "^r$"),
    ]
    assert [tuple(it.values()) for it in defined["topic_permissions"]] == [("weak", "/b", "t", "^a$", "^b$")]


@pytest.mark.parametrize("names", [["one", "one"], ["somebody"]])
def test_two_users_of_one_name_are_refused(names):
    with pytest.raises(ConfigurationError, match="names of their own"):
        definitions(ACCOUNT, [User(name) for name in names])


def test_further_users_have_random_passwords_that_are_not_shown():
    one, other = User("one"), User("other")

    assert one.password != other.password
    assert len(one.password) >= 32
    assert one.password not in repr(one)


def test_environment_takes_nothing_from_another_rabbitmq():
    told = environment(
        {
            "PATH": "/bin",
            "RABBITMQ_NODENAME": "other@host",
            "RABBITMQ_X": "1",
            "ERL_LIBS": "/x",
            "NOTIFY_SOCKET": "/run/n",
        }
    )

    assert told["PATH"] == "/bin"
    assert told["RABBITMQ_NODENAME"] == "rankmq@localhost"
    assert not {"RABBITMQ_X", "ERL_LIBS", "NOTIFY_SOCKET"} & told.keys()
    assert not [value for value in told.values() if "/etc" in value]


def test_environment_keeps_erlang_on_loopback_and_quiet():
    told = environment()

    assert told["ERL_EPMD_ADDRESS"] == "127.0.0.1"
    assert told["ERL_EPMD_PORT"] == "5003"
    assert "inet_dist_use_interface {127,0,0,1}" in told["ERL_FLAGS"]
    assert "-start_epmd false" in told["ERL_FLAGS"]
    arguments = told["RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS"]
    assert "inet_dist_listen_min 5002" in arguments
    assert "inet_dist_listen_max 5002" in arguments
    assert "+sbwt none" in arguments


def test_environment_has_no_path_where_blanks_would_split_it():
    told = environment(code=Path("/co de"), plugins=Path("/plug ins"))

    assert told["RABBITMQ_SERVER_CODE_PATH"] == "/co de"
    assert told["RABBITMQ_PLUGINS_DIR"] == "/plug ins"
    assert "/" not in told["RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS"] + told["ERL_FLAGS"]


def test_environment_without_links_leaves_rabbitmq_its_own_folders():
    assert not {"RABBITMQ_SERVER_CODE_PATH", "RABBITMQ_PLUGINS_DIR"} & environment().keys()


@given(st.text(min_size=1), st.text(min_size=1), st.dictionaries(st.text(), st.integers(1, 65535)), st.booleans())
def test_account_survives_being_kept(user, password, ports, used):
    account = Account(user=user, password=password, ports=ports, used=used)

    assert Account.from_json(account.to_json(), file=Path("broker.json")) == account


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "{}",
        '{"user": "u", "password": "p", "used": true}',
        '{"user": "u", "password": "p", "ports": {}}',
        '{"user": "u", "password": "p", "ports": {}, "used": 3}',
        '{"user": "u", "password": 3, "ports": {}, "used": true}',
        '{"user": "u", "password": "p", "ports": {"amqp": "x"}, "used": true}',
        '{"user": "u", "password": "p", "ports": {"amqp": 70000}, "used": true}',
        '{"user": "u", "password": "p", "ports": [], "used": true}',
    ],
)
def test_damaged_account_names_its_file(text):
    with pytest.raises(ConfigurationError, match=r"/state/broker\.json: does not hold"):
        Account.from_json(text, file=Path("/state/broker.json"))


def test_passwords_are_random_and_not_shown():
    one, other = Account.fresh(), Account.fresh()

    assert one.password != other.password
    assert len(one.password) >= 32
    assert one.password not in repr(one)
    assert one.password in json.loads(one.to_json())["password"]


def test_url_needs_no_quoting():
    assert ACCOUNT.url(77) == "amqp://somebody:pass-word_1@127.0.0.1:77/%2F"
    assert ACCOUNT.url(77, host="localhost", scheme="amqps").startswith("amqps://somebody:pass-word_1@localhost:77/")
    assert ACCOUNT.url(77, vhost="a/b").endswith("@127.0.0.1:77/a%2Fb")


BOOT_FAILED = """2026-11-22 15:04:50.473766+00:00 [notice] <0.44.0> Application rabbitmq_prelaunch exited
{"Kernel pid terminated",application_controller,"{...}"}

BOOT FAILED
===========
Error during startup: {error,no_configuration_schema_found}

Kernel pid terminated (application_controller) ({application_start_failure,...})
"""
BOOT_FAILED_4 = """2026-11-22 15:51:04.072548+00:00 [error] <0.159.0> Error preparing configuration in phase transform_datatypes:
2026-11-22 15:51:04.072572+00:00 [error] <0.159.0>   - Conf file attempted to set unknown variable: no.such

BOOT FAILED
===========
2026-11-22 15:51:04.079834+00:00 [error] <0.159.0>
2026-11-22 15:51:04.079834+00:00 [error] <0.159.0> BOOT FAILED
2026-11-22 15:51:04.079834+00:00 [error] <0.159.0> ===========
2026-11-22 15:51:04.079834+00:00 [error] <0.159.0> Error during startup: {error,failed_to_prepare_configuration}
2026-11-22 15:51:04.079834+00:00 [error] <0.159.0>
Error during startup: {error,failed_to_prepare_configuration}

2026-11-22 15:51:05.080778+00:00 [error] <0.159.0>     supervisor: {local,rabbit_prelaunch_sup}
"""  # noqa: E501 - as RabbitMQ 4.0 printed it
LOG = """2026-11-22 15:00:00.000000+00:00 [error] <0.1.0> first
2026-11-22 15:00:01.000000+00:00 [error] <0.226.0>     the worst of it
2026-11-22 15:00:01.000000+00:00 [error] <0.226.0>
2026-11-22 15:00:02.000000+00:00 [info] <0.2.0> bye
"""


@pytest.mark.parametrize(
    ("texts", "reason"),
    [
        ([], ""),
        (["", "\n \n"], ""),
        ([BOOT_FAILED], "Error during startup: {error,no_configuration_schema_found}"),
        ([BOOT_FAILED, LOG], "Error during startup: {error,no_configuration_schema_found}"),
        (
            [BOOT_FAILED_4],
            "Error during startup: {error,failed_to_prepare_configuration}: "
            "Conf file attempted to set unknown variable: no.such",
        ),
        (["", LOG], "the worst of it"),
        (["nothing that helps", LOG], "the worst of it"),
        (["one\nbad argument\n"], "bad argument"),
        (["printed", "logged"], "printed"),
        (["BOOT FAILED\n===\n\n"], "BOOT FAILED"),
        (["x" * 1000], "x" * 300),
    ],
)
def test_boot_failure_is_told_in_one_line(texts, reason):
    assert boot_failure(texts) == reason


@given(st.lists(st.text()))
def test_boot_failure_is_always_one_short_line(texts):
    reason = boot_failure(texts)

    assert len(reason) <= 300
    assert len(reason.splitlines()) <= 1
