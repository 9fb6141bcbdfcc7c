"""What a chaos run prints and writes, and what it reads in the logs."""

import json
import logging
from dataclasses import replace

import pytest
from rankmq.engine.logs import configure
from rankmq.scripts.chaos.outcome import Outcome, line_of, tables
from rankmq.scripts.chaos.run import Suffered
from rankmq.scripts.chaos.signs import Sign, sign_of
from rankmq.scripts.chaos.tally import Book, Tally
from rich.console import Console

KILLED = Suffered(
    number=1,
    fault="kill-rank",
    group=0,
    ranks=(3,),
    at=2.5,
    moment=2.125,
    noticed=0.03,
    serving=1.875,
    gap=1.9,
    repeated=12,
    answered=40,
    reasons=("rank 3 lost",),
)


def tally(*events):
    book = Book("raw")
    for event in events:
        book.hear(event)
    return Tally.of([book])


GOOD = tally(["sent", 1, 0], ["reply", 2, 0, "a", False, "right"])
TWICE = tally(["sent", 1.0, 0], ["reply", 2.0, 0, "a", False, "right"], ["reply", 2.25, 0, "b", False, "right"])
REPEATED = tally(["sent", 1.0, 0], ["reply", 2.0, 0, "a", False, "right"], ["reply", 2.5, 0, "a", False, "right"])
WRONG = tally(["sent", 1, 0], ["reply", 2, 0, "a", False, "wrong", "x"])
LOST = tally(["sent", 1, 0], ["accepted", 2, 0])


def outcome(found=GOOD, *, faults=(KILLED,), dead=(), problems=()):
    return Outcome({"seed": 1}, faults, found, dead, problems)


@pytest.mark.parametrize(
    ("made", "good"),
    [
        (outcome(), True),
        (outcome(tally(["sent", 1, 0], ["reply", 2, 0, "a", False, "graph_failed"])), True),
        (outcome(REPEATED), True),
        (outcome(TWICE), False),
        (outcome(WRONG), False),
        (outcome(LOST), False),
        (outcome(faults=[KILLED, replace(KILLED, problem="waited 60 s")]), False),
        (outcome(problems=["the orchestrator ended with 1"]), False),
    ],
)
def test_what_is_good(made, good):
    assert made.good is good
    assert made.as_dict()["good"] is good


def test_the_outcome_for_a_program():
    told = json.loads(json.dumps(outcome(TWICE, dead=[{"id": "raw-9", "code": "c", "reason": "r"}]).as_dict()))
    assert told["tally"] == {
        "sent": 1,
        "accepted": 1,
        "answered": 1,
        "right": 1,
        "wrong": 0,
        "lost": 0,
        "duplicated": 1,
        "repeated": 1,
        "errors": {},
        "again": 0,
        "hidden": 0,
    }
    (fault,) = told["faults"]
    assert (fault["fault"], fault["ranks"], fault["noticed"], fault["serving"]) == ("kill-rank", [3], 0.03, 1.875)
    (twice,) = told["duplicated"]
    assert twice["id"] == "raw-0"
    assert [(it["at"], it["message_id"]) for it in twice["replies"]] == [(2.0, "a"), (2.25, "b")]
    assert twice["during"] == "1 kill-rank"
    assert told["repeated"] == []
    assert told["dead_letters"] == [{"id": "raw-9", "code": "c", "reason": "r"}]


def test_repeated_replies_are_told_beside_what_the_producer_sees():
    made = outcome(REPEATED)
    told = made.as_dict()
    assert (told["tally"]["duplicated"], told["tally"]["repeated"]) == (0, 1)
    assert [(it["id"], it["during"]) for it in told["repeated"]] == [("raw-0", "1 kill-rank")]
    console = Console(width=400, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    for table in tables(made):
        console.print(table)
    (row,) = [line for line in console.export_text().splitlines() if line.startswith("repeated replies")]
    assert row.split()[2:4] == ["1", "raw-0:"]
    assert ", and again 0.500 s later (after fault 1 kill-rank)" in row


def test_the_fault_after_which_something_happened():
    made = outcome(faults=[KILLED, replace(KILLED, number=2, moment=5.0, fault="kill-broker")])
    moments = (2.0, 2.125, 4.9, 5.0, 9.0)
    assert [made.during(it) for it in moments] == ["", *["1 kill-rank"] * 2, *["2 kill-broker"] * 2]


def test_a_fault_in_a_line():
    assert line_of(KILLED).strip() == (
        "2.5 s  kill-rank 3: noticed after 0.03 s, serving again after 1.88 s, 12 repeated inside"
    )
    silent = replace(KILLED, noticed=None, serving=None, group=1, problem="waited 60 s for it")
    assert line_of(silent).strip() == (
        "2.5 s  kill-rank 3 of g1: does not serve again, 12 repeated inside: waited 60 s for it"
    )


def test_the_tables_for_a_person():
    console = Console(width=400, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    slower = replace(KILLED, noticed=None, serving=3.0, gap=3.25, repeated=3)
    made = outcome(TWICE, faults=[KILLED, slower, replace(KILLED, fault="cut-rank")], problems=["something"])
    for table in tables(made):
        console.print(table)
    text = console.export_text()
    (row,) = [line.split() for line in text.splitlines() if line.startswith("kill-rank")]
    assert row == ["kill-rank", "2", "0.03", "s", "0.03", "s", "2.44", "s", "3.00", "s", "3.25", "s", "15"]
    assert "cut-rank" in text
    assert "raw-0: answered 1.000 s after it was sent, at " in text
    assert ", and again 0.250 s later (after fault 1 cut-rank)" in text
    assert "something" in text


# ----------------------------------------------------------------------------------------------------------- the logs


@pytest.mark.parametrize(
    ("message", "sign"),
    [
        (("rank %d of %s registers: pid %d on %s", 3, "m.v1.g0", 77, "host"), Sign("registered", 0, rank=3, pid=77)),
        (("%s is ready: epoch %d, %d ranks", "m.v1.g0", 4, 8), Sign("ready", 0, epoch=4)),
        (
            ("%s: epoch %d ended, %d steps are void (%d rows): %s", "m.v1.g0", 4, 2, 30, "rank 1 lost: (it) died"),
            Sign("ended", 0, epoch=4, rows=30, reason="rank 1 lost: (it) died"),
        ),
        (("standing by: another orchestrator serves %s", "m.v1.g0"), Sign("standing by", 0)),
        (("taking over %s", "m.v1.g0"), Sign("taking over", 0)),
        (("the connection to the broker ended: %s", "cut"), Sign("disconnected", 0, reason="cut")),
        (("something else",), None),
    ],
)
def test_what_the_logs_tell(message, sign, tmp_path, monkeypatch):
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(root, "level", root.level)
    with (tmp_path / "log").open("w") as stream:
        configure("orchestrator", form="json", stream=stream)
        logging.getLogger("rankmq.engine").info(*message)
    (line,) = (tmp_path / "log").read_bytes().splitlines()

    found = sign_of(line)

    at = json.loads(line)["time"]
    assert found == (sign and replace(sign, at=at))


@pytest.mark.parametrize("line", [b"", b"WARNING: something of MindSpore's", b"[1, 2]", b'{"time": 1}', b"\xff"])
def test_lines_that_are_no_entries_are_passed_over(line):
    assert sign_of(line) is None
