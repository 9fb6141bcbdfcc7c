"""Logs: as lines and as JSON, with time, role, rank, epoch and request; one entry a line, whatever it says."""

from __future__ import annotations

import io
import json
import logging
import re
import time

import pytest
from rankmq.engine import logs
from rankmq.engine.address import BrokerAddress
from rankmq.engine.settings import load_settings

log = logging.getLogger("rankmq.test")


@pytest.fixture(autouse=True)
def put_back():
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture(params=["lines", "json"])
def form(request):
    return request.param


def written(form, say, **given):
    """The lines that `say` has written."""
    stream = io.StringIO()
    logs.configure(**{"role": "agent", "form": form, "stream": stream, **given})
    say()
    return stream.getvalue().splitlines()


def test_lines_say_when_who_and_what():
    def say():
        log.info("hello %s", "you", extra={"epoch": 3, "request": "r1"})
        log.warning("bye")

    first, second = written("lines", say, rank=5)
    assert re.fullmatch(r"\d\d:\d\d:\d\d\.\d{3} info    agent 5: hello you epoch=3 request=r1", first)
    assert re.fullmatch(r"\d\d:\d\d:\d\d\.\d{3} warning agent 5: bye", second)
    (line,) = written("lines", lambda: log.info("up"), role="orchestrator")
    assert line.endswith(" info    orchestrator: up")


def test_json_says_the_same_to_a_machine():
    before = time.time()

    def say():
        log.info("hello %s", "ähm", extra={"epoch": 3, "request": "r1"})
        log.warning("bye", extra={"rank": 2})

    first, second = map(json.loads, written("json", say, rank=5))
    assert before - 1 <= first.pop("time") <= time.time()
    assert first == {
        "level": "info",
        "logger": "rankmq.test",
        "message": "hello ähm",
        "role": "agent",
        "rank": 5,
        "epoch": 3,
        "request": "r1",
    }
    assert second["rank"] == 2  # what a record says itself counts
    assert not {"epoch", "request"} & second.keys()


def test_rank_and_epoch_zero_are_said():
    (line,) = written("lines", lambda: log.info("x", extra={"epoch": 0}), rank=0)
    assert line.endswith("agent 0: x epoch=0")
    (entry,) = written("json", lambda: log.info("x", extra={"epoch": 0}), rank=0)
    assert json.loads(entry).items() >= {"rank": 0, "epoch": 0}.items()


def test_tracebacks_are_kept():
    def say():
        try:
            raise ValueError("inner")
        except ValueError:
            log.exception("it failed")

    lines = written("lines", say)
    assert lines[0].endswith("agent: it failed")
    assert lines[-1] == "ValueError: inner"
    assert any("Traceback" in line for line in lines)
    (entry,) = written("json", say)
    assert json.loads(entry)["traceback"].endswith("ValueError: inner")


@pytest.mark.parametrize("text", ["a\nb", "a\r\n12:00:00.000 error   agent: forged", "a\x1b[31mb\x07", "a\u2028b\x85c"])
def test_what_a_producer_says_does_not_look_like_ours(form, text):
    """Nor does it speak to the terminal."""

    def say():
        log.info("failed: %s", text, extra={"request": text})

    lines = written(form, say)
    assert len(lines) == 1
    assert not re.search(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", lines[0]) or form == "json"
    if form == "json":
        entry = json.loads(lines[0])
        assert (entry["message"], entry["request"]) == (f"failed: {text}", text)


def test_levels(form):
    def say():
        log.debug("d")
        log.info("i")
        log.error("e")

    assert len(written(form, say, level="debug")) == 3
    assert len(written(form, say, level="info")) == 2
    assert len(written(form, say, level="error")) == 1


def test_what_json_has_no_word_for(form):
    (line,) = written(form, lambda: log.info("x", extra={"request": {1, 2}, "epoch": float("nan")}))
    assert line


def test_once_configured_again_only_the_new_way_counts(form):
    first = io.StringIO()
    logs.configure("agent", form=form, stream=first)
    assert len(written(form, lambda: log.info("x"))) == 1
    assert first.getvalue() == ""


def test_passwords_are_not_logged(form):
    url = "amqp://user:Sesame-4711@h"
    settings = load_settings(broker_url=url)

    def say():
        log.info("settings %s %r", settings, settings)
        log.info("address %s %r", settings.address(), settings.address())
        try:
            BrokerAddress.parse(f"{url}:port")
        except Exception:
            log.exception("refused")

    lines = written(form, say, level="debug")
    assert lines
    assert not [line for line in lines if "Sesame" in line]


def test_the_driver_is_silent_at_every_level(form):
    import rankmq.engine.connection  # noqa: F401

    def say():
        for name in ("pika", "pika.adapters.utils.io_services_utils", "pika.connection"):
            logging.getLogger(name).error("a traceback over a refused socket")

    assert written(form, say, level="debug") == []
