"""What `rankmq dead` shows: one line a letter, whatever is in it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pika import BasicProperties
from rankmq.engine.dead_letters import DeadLetter
from rankmq.engine.dead_work import Tally
from rankmq.engine.delivery import Delivery
from rankmq.scripts.dead_page import HEAD, age, as_json, in_full, line, remarks, with_inputs
from rich.console import Console

NOW = 1_800_000_000.0
LETTER = DeadLetter(
    id="42",
    servable="matmul",
    method="predict",
    version=0,
    code="invalid_input",
    reason="x is odd",
    error="invalid_input: x is odd",
    attempts=2,
    epoch=3,
    died_at=NOW - 200,
    exchange="rankmq.requests",
    routing_key="matmul",
    reply_to="",
    correlation_id="",
    content_type="application/json",
    deadline=None,
    replayed=0,
    size=12_345,
    unreadable="",
)


def delivery(body: bytes) -> Delivery:
    return Delivery(body, 1, "", "", False, BasicProperties(content_type="application/json"))


def shown(letter: DeadLetter, body: bytes) -> str:
    console = Console(width=150, highlight=False)
    with console.capture() as capture:
        console.print(in_full(letter, delivery(body), NOW))
    return capture.get()


def test_a_line_stands_under_its_head() -> None:
    text = line(LETTER, NOW)
    for name, value in (("died", "3 min"), ("id", "42"), ("code", "invalid_input"), ("request", "matmul.predict")):
        assert text[HEAD.index(name) :].startswith(value)
    assert text.split()[-5:] == ["12.3", "kB", "x", "is", "odd"]


@pytest.mark.parametrize(
    ("moment", "text"),
    [(None, "-"), (NOW, "0 s"), (NOW + 5, "0 s"), (NOW - 59, "59 s"), (NOW - 7200, "2 h"), (NOW - 3 * 86400, "3 d")],
)
def test_how_long_ago(moment: float | None, text: str) -> None:
    assert age(moment, NOW) == text


@given(st.text(), st.text(), st.text(), st.binary(max_size=600))
def test_whatever_it_says_it_does_not_speak_to_the_terminal(name: str, reason: str, why: str, body: bytes) -> None:
    letter = replace(LETTER, id=name, reason=reason, code=why, servable=name, unreadable=why or "undecodable")
    for text in (line(letter, NOW), shown(letter, body).replace("\n", "")):
        assert not [it for it in text if ord(it) < 32 or 127 <= ord(it) < 160 or it in "\u2028\u2029"]
        text.encode()
    assert len(line(letter, NOW).splitlines()) == 1
    assert json.loads(json.dumps(with_inputs(letter, delivery(body))))["body"] == body.hex()


def test_the_inputs_of_a_few_instances_are_shown() -> None:
    rows: list[dict[str, Any]] = [{"x": number} for number in range(11)]
    body = json.dumps({"servable": "s", "method": "m", "instances": rows}).encode()
    text = shown(LETTER, body)
    assert text.count("int32") == 8
    assert "and 3 instances more" in text
    assert len(with_inputs(LETTER, delivery(body))["inputs"]) == 11
    assert as_json(LETTER)["id"] == "42"


def test_a_line_for_each_reason_why_letters_stay() -> None:
    tally = Tally()
    for number in range(7):
        tally.stay(replace(LETTER, id=f"{number}\n"), "nobody is there")
    tally.stay(replace(LETTER, id=""), "it is full")
    assert remarks(tally) == [
        "7 stay: nobody is there (0\\x0a, 1\\x0a, 2\\x0a, 3\\x0a, 4\\x0a and 2 more)",
        "1 stay: it is full ((no id))",
    ]
