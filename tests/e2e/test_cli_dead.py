"""`rankmq dead` against an engine: what could not be answered is listed, shown, sent again and thrown away."""

import json
import os
import pty
import select
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import msgpack
import numpy as np
import pika
import pytest

from tests.e2e.cli import RANKMQ, failed, rankmq
from tests.e2e.producer import Producer, array_of, request
from tests.e2e.systems import System, Vhosts, environment, running, wait_until
from tests.e2e.test_poison import write_small

X = np.arange(4, dtype=np.float32)
GOOD = request("small", "negate", {"x": X})
BAD = request("small", "negate", {"x": X[:1]})


@pytest.fixture(scope="module")
def system(vhosts: Vhosts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    directory, logs = tmp_path_factory.mktemp("dead"), tmp_path_factory.mktemp("dead-logs")
    write_small(directory)
    with running(System(vhosts.url(), directory, ["small"], logs)) as system:
        yield system


@pytest.fixture(autouse=True)
def empty(system: System) -> Iterator[None]:
    yield
    ended = dead(system, "purge", "--yes")
    with Producer(system.url) as producer:
        assert producer.depth("rankmq.dead") == 0, (ended.stdout, ended.stderr)


def dead(system: System, *arguments: object, **settings: Any) -> subprocess.CompletedProcess[str]:
    return rankmq("dead", *arguments, broker_url=system.url, **settings)


def done(ended: subprocess.CompletedProcess[str]) -> str:
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def bury(system: System, body: Any = BAD, count: int = 1, **given: Any) -> list[str]:
    """Has the engine make dead letters; gives their ids."""
    with Producer(system.url) as producer:
        before = producer.depth("rankmq.dead")
        ids = [producer.send(body, **{"key": "small", "reply_to": None, **given}) for _ in range(count)]
        wait_until(lambda: producer.depth("rankmq.dead") == before + count, f"{count} more dead letters", 10)
    return [it or "" for it in ids]


# -------------------------------------------------------------------------------------------------------- list and show


def test_what_could_not_be_answered_is_listed(system: System) -> None:
    [bad] = bury(system)
    [gone] = bury(system, GOOD, reply_to="gone")

    listed = dead(system, "list")
    head, first, second = done(listed).splitlines()
    assert head.split() == ["died", "id", "code", "request", "tries", "size", "reason"]
    assert first.split()[2:5] == [bad, "invalid_input", "small.negate"]
    assert second.split()[2:5] == [gone, "reply_unroutable", "small.negate"]
    assert "the reply queue 'gone' is gone" in second
    assert listed.stderr.strip() == "2 dead letters"

    assert len(done(dead(system, "list", "--code", "reply_unroutable")).splitlines()) == 2
    assert done(dead(system, "list", "--servable", "other")) == ""
    assert done(dead(system, "list", "--older", "1h")) == ""
    assert dead(system, "list", "--limit", "1").stderr.strip() == "1 of 2 dead letters; --limit 0 shows all"


def test_as_json(system: System) -> None:
    ids = bury(system, count=3, correlation_id="c")
    began = time.time()
    letters = json.loads(done(dead(system, "list", "--json")))
    assert [it["id"] for it in letters] == ids
    one = letters[0]
    assert abs(one.pop("died_at") - began) < 60
    assert one.pop("reason") == one.pop("error").removeprefix("invalid_input: ")
    assert one == {
        "id": ids[0],
        "servable": "small",
        "method": "negate",
        "version": 0,
        "code": "invalid_input",
        "attempts": 1,
        "epoch": one["epoch"],
        "exchange": "rankmq.requests",
        "routing_key": "small",
        "reply_to": "",
        "correlation_id": "c",
        "content_type": "application/msgpack",
        "deadline": None,
        "replayed": 0,
        "size": len(msgpack.packb(BAD)),
        "unreadable": "",
    }
    assert json.loads(done(dead(system, "list", "--json", "--code", "none"))) == []


def test_one_is_shown_with_its_inputs(system: System) -> None:
    body = request("small", "negate", {"x": X, "text": "a" * 100, "odd": [[1], [2, 3]]})
    [name] = bury(system, body)
    shown = done(dead(system, "show", name))
    facts = {line.split("  ")[0].strip(): line.split("  ", 1)[-1].strip() for line in shown.splitlines()}
    assert facts["code"] == "invalid_input"
    assert facts["exchange"] == "rankmq.requests"
    assert facts["routing key"] == "small"
    assert facts["request"] == "small.negate"
    assert facts["reply to"] == "(nobody)"
    rows = shown.splitlines()
    assert any(row.split() == ["x", "float32", "4", "0,", "1,", "2,", "3"] for row in rows)
    assert any(row.startswith("text") and "aaa...'" in row for row in rows)
    assert any(row.startswith("odd") and "invalid_input: nested lists" in row for row in rows)

    told = json.loads(done(dead(system, "show", name, "--json")))
    assert told["id"] == name
    assert told["inputs"][0]["x"] == {"dtype": "float32", "shape": [4], "data": [0, 1, 2, 3]}
    assert "invalid_input" in told["inputs"][0]["odd"]["error"]


def test_what_cannot_be_decoded_is_listed_and_shown_all_the_same(system: System) -> None:
    body = b"\xc1 this is no request \x1b[31m"
    [name] = bury(system, body)
    [_, line] = done(dead(system, "list")).splitlines()
    assert line.split()[2:5] == [name, "undecodable", "small"]
    shown = done(dead(system, "show", name))
    assert "the body cannot be decoded: undecodable: " in shown
    assert "000000  c1 20 74 68 69 73 20 69 73 20 6e 6f 20 72 65 71  . this is no req" in shown
    assert bytes.fromhex(json.loads(done(dead(system, "show", name, "--json")))["body"]) == body


def test_a_producers_text_does_not_speak_to_the_terminal(system: System) -> None:
    evil = "\x1b]0;title\x07\x1b[2J\nid"
    bury(system, request("small", "negate", {f"x{evil}": 1}), message_id=evil, correlation_id=evil)
    for shown in (dead(system, "list"), dead(system, "show", evil)):
        assert "\x1b" not in done(shown) + shown.stderr
        assert "\x07" not in done(shown)
        assert "\\x1b]0;title" in done(shown)
    assert len(done(dead(system, "list")).splitlines()) == 2


# ----------------------------------------------------------------------------------------------------------- sent again


def test_a_letter_that_is_sent_again_is_answered_like_any_other(system: System) -> None:
    """Given a request whose reply queue was gone, when it is sent again with another, then its answer is there."""
    [name] = bury(system, GOOD, reply_to="gone", correlation_id="mine")
    refused = dead(system, "replay", name, "--yes")
    assert "1 stay: their reply queues are gone: name a queue for the answers with --reply-to" in failed(refused, 8)
    assert name in refused.stderr

    with Producer(system.url) as producer:
        assert done(dead(system, "replay", name, "--yes", "--reply-to", producer.reply_to)).strip() == (
            "1 of 1 dead letters sent again"
        )
        [(properties, reply)] = producer.wait(1, 10)
        assert properties.correlation_id == "mine"
        assert array_of(msgpack.unpackb(reply)["outputs"][0]["y"]).tolist() == [0, -1, -2, -3]
        assert producer.depth("rankmq.dead") == 0


def test_a_letter_that_fails_again_is_a_letter_again(system: System) -> None:
    [name] = bury(system)
    for count in (1, 2):
        done(dead(system, "replay", "--yes"))
        [letter] = wait_until(lambda: json.loads(done(dead(system, "list", "--json"))), "the letter is there again", 10)
        assert (letter["id"], letter["replayed"], letter["code"]) == (name, count, "invalid_input")


def test_a_deadline_that_is_past_does_not_count_any_more(system: System) -> None:
    past = int(time.time() * 1000) - 1000
    [name] = bury(system, GOOD, headers={"rankmq-deadline": past})
    [letter] = json.loads(done(dead(system, "list", "--json")))
    assert (letter["code"], letter["deadline"]) == ("deadline_exceeded", past / 1000)

    assert "1 of 1 dead letters sent again" in done(dead(system, "replay", name, "--yes", "--keep-deadline"))
    wait_until(lambda: len(json.loads(done(dead(system, "list", "--json")))) == 1, "the letter is there again", 10)
    with Producer(system.url) as producer:
        done(dead(system, "replay", "--yes", "--reply-to", producer.reply_to))
        [(_, reply)] = producer.wait(1, 10)
        assert msgpack.unpackb(reply)["error"] is None


def test_for_a_servable_that_is_gone_a_letter_stays(system: System) -> None:
    gone = bury(system, request("other", "negate", {"x": X}), 7, key="other")
    ended = dead(system, "replay", "--yes", "--json")
    line = failed(ended, 8)
    assert "7 stay: there is no queue rankmq.requests.other.normal: start an orchestrator that serves" in line
    assert line.endswith(f"({', '.join(gone[:5])} and 2 more)")
    told = json.loads(ended.stdout)
    assert (told["total"], told["meant"], told["done"]) == (7, 7, 0)
    assert [it["id"] for it in json.loads(done(dead(system, "list", "--json")))] == gone


def test_a_dry_run_does_nothing(system: System) -> None:
    ids = bury(system, count=3)
    assert done(dead(system, "replay", "--dry-run")).strip() == "3 of 3 dead letters would be sent again"
    assert done(dead(system, "purge", "--dry-run", "--limit", "2")).strip() == (
        "2 of 3 dead letters would be thrown away"
    )
    assert [it["id"] for it in json.loads(done(dead(system, "list", "--json")))] == ids


def test_what_is_thrown_away_is_gone(system: System) -> None:
    first, second = bury(system, count=2), bury(system, b"\xc1", 2)
    told = json.loads(done(dead(system, "purge", "--code", "undecodable", "--yes", "--json")))
    assert told == {"total": 4, "meant": 2, "done": 2, "dry_run": False, "stayed": []}
    assert [it["id"] for it in json.loads(done(dead(system, "list", "--json")))] == first
    assert second


@pytest.mark.parametrize(("answer", "left"), [("y", 1), ("n", 3)])
def test_a_person_is_asked(system: System, answer: str, left: int) -> None:
    bury(system, count=2)
    [other] = bury(system, b"\xc1")
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*RANKMQ, "dead", "purge", "--code", "invalid_input"],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environment(broker_url=system.url),
    )
    os.close(theirs)
    said = b""
    while b"[y/N]" not in said:
        assert select.select([ours], [], [], 20)[0], said
        said += os.read(ours, 1000)
    assert b"Throw 2 of 3 dead letters away for good?" in said
    os.write(ours, f"{answer}\n".encode())
    assert process.wait(20) == 0
    os.close(ours)
    letters = json.loads(done(dead(system, "list", "--json")))
    assert len(letters) == left
    assert letters[-1]["id"] == other


# -------------------------------------------------------------------------------------------------------- what is wrong


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["show", "nobody"], 2, "no dead letter has the id 'nobody': rankmq dead list shows those that there are"),
        (["purge"], 2, "give --yes, or --dry-run to see what it would do"),
        (["replay", "--older", "1h"], 2, "give --yes"),
        (["replay", "--yes", "--reply-to", "nowhere"], 2, "--reply-to nowhere: there is no such queue"),
    ],
)
def test_one_line_for_what_cannot_be_meant(system: System, arguments: list[str], code: int, says: str) -> None:
    bury(system)
    assert says in failed(dead(system, *arguments), code)


def test_an_age_that_is_none(system: System) -> None:
    ended = dead(system, "list", "--older", "yesterday")
    assert ended.returncode == 2
    assert "write an age as 90s, 10m, 2h or 3d" in " ".join(ended.stderr.split()).replace("│ ", "")


def test_a_broker_on_which_no_orchestrator_has_been(vhosts: Vhosts) -> None:
    assert "has an orchestrator ever been started" in failed(rankmq("dead", "list", broker_url=vhosts.url()), 4)


def test_no_broker() -> None:
    line = failed(rankmq("dead", "list", broker_url="amqp://u:secret@127.0.0.1:1/x", connect_timeout=0), 4)
    assert "no broker answers" in line
    assert "secret" not in line


def test_a_listing_that_is_cut_off_leaves_the_letters(system: System) -> None:
    """As in `rankmq dead list --limit 0 | head -1`."""
    bury(system, count=300)
    with subprocess.Popen(
        [*RANKMQ, "dead", "list", "--limit", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(broker_url=system.url),
    ) as process:
        assert process.stdout is not None
        process.stdout.read(10)
        process.stdout.close()
        process.wait(20)
    with pika.BlockingConnection(pika.URLParameters(system.url)) as connection:
        channel = connection.channel()
        wait_until(
            lambda: channel.queue_declare("rankmq.dead", passive=True).method.message_count == 300,
            "the letters are there again",
            10,
        )
