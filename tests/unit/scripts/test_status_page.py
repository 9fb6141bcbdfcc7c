"""What `rankmq status` and a start show, from values."""

import pytest
from rankmq.schemas.messages import Forming, GroupId, GroupStatus, QueueStatus, RankStatus, Status
from rankmq.scripts.progress import StartProgress
from rankmq.scripts.show import console
from rankmq.scripts.status_page import _duration, _ranges, page
from rankmq.scripts.watch import pages
from rankmq.workers.local import Progress


def show(answers) -> None:
    console().print(page(answers))


def group(name: str, **changed) -> GroupStatus:
    ranks = (
        RankStatus(rank=0, state="ready", host="vm[1]", pid=4711, queue="rankmq.q.0", step=41, rss=44_900_000),
        RankStatus(rank=1, state="lost", last_error="its process 4712 ended [killed]", restarts=2),
    )
    given = {
        "state": "ready",
        "epoch": 3,
        "step": 42,
        "size": 2,
        "subgraphs": ("a[0].npz",),
        "methods": ("f",),
        "ranks": ranks,
    }
    return GroupStatus(group=GroupId(servable=name, version=1), **{**given, **changed})


def status(*groups: GroupStatus) -> Status:
    queue = QueueStatus(name="rankmq.requests.small.normal", messages=7, consumers=1)
    return Status(
        orchestrator="vm-1", host="vm", pid=1, uptime_seconds=3700.0, in_flight=2, max_in_flight=64, served=5, failed=1,
        groups=groups, queues=(queue,),
    )  # fmt: skip


def test_everything_about_the_ranks_is_there(capsys):
    show([status(group("small"))])
    text = capsys.readouterr().out
    assert "orchestrator vm-1: up 1 h 1 min, 2 of 64 in flight, 5 served, 1 failed" in text
    assert "small.v1.g0 ready: epoch 3, 42 steps, 2 ranks" in text
    rows = {line.split()[0]: line.split() for line in text.splitlines() if line.strip()}
    assert rows["0"][:8] == ["0", "4711", "41", "0", "44.9", "MB", "ready", "vm[1]"]
    assert "rankmq.q.0" in rows["0"]
    assert "its process 4712 ended [killed]" in text
    assert "subgraphs a[0].npz; methods f" in text
    assert rows["rankmq.requests.small.normal"][1:] == ["7", "1"]


def test_why_a_group_is_not_ready_is_there(capsys):
    forming = Forming(missing=(1, 2, 3, 7), reason="rank 1 lost: [oops]")
    show([status(group("small", state="forming", forming=forming))])
    assert "ranks 1-3, 7 are missing; rank 1 lost: [oops]" in capsys.readouterr().out


def test_slots_are_shown_where_there_are_some(capsys):
    show([status(group("small", slots=8, slots_held=3, slots_waiting=2))])
    assert "3 of 8 slots held, 2 instances wait for one" in capsys.readouterr().out
    show([status(group("small"))])
    assert "slots" not in capsys.readouterr().out


def test_what_is_one_is_said_as_one(capsys):
    show([status(group("small", slots=2, slots_held=1, slots_waiting=1, step=1, size=1, waiting=1))])
    text = capsys.readouterr().out
    assert "epoch 3, 1 step, 1 rank, " in text
    assert "1 row waiting" in text
    assert "1 of 2 slots held, 1 instance waits for one" in text
    show([status(group("small", forming=Forming(missing=(1,), reason="so"), state="forming", slots=1, slots_held=1))])
    text = capsys.readouterr().out
    assert "rank 1 is missing; so" in text
    assert "1 of 1 slot held, 0 instances wait for one" in text


def test_no_errors_need_no_column(capsys):
    show([status(group("small", ranks=()))])
    assert "last error" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("numbers", "text"), [((), ""), ((3,), "3"), ((0, 1), "0-1"), ((0, 1, 2, 5, 7, 8), "0-2, 5, 7-8"), ((1, 3), "1, 3")]
)
def test_ranges(numbers, text):
    assert _ranges(numbers) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (99.4, "99 s"), (125, "2 min"), (3600, "1 h 0 min"), (90_000, "1 d 1 h 0 min")],
)
def test_durations(seconds, text):
    assert _duration(seconds) == text


def test_each_step_of_a_start_is_a_line(capsys):
    with StartProgress(live=True) as shown:  # standard output is no terminal here
        for broker, ranks, loaded, ready in (
            (True, 0, 0, False), (True, 0, 0, False), (True, 3, 0, False), (True, 8, 0, False), (True, 8, 2, False),
            (True, 8, 8, True),
        ):  # fmt: skip
            shown.show(Progress(broker=broker, ranks=ranks, loaded=loaded, size=8, ready=ready))
    lines = [line.split(" s  ")[1] for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        "the broker is up",
        "3 of 8 ranks are there",
        "8 of 8 ranks are there",
        "2 of 8 ranks have loaded their graphs",
        "ready",
    ]


def test_page_after_page_without_a_terminal_is_line_after_line(capsys):
    with pages() as show_page:
        for second in range(2):
            show_page(f"12:00:0{second}")
            assert capsys.readouterr().out == f"12:00:0{second}\n"  # at once: a program may wait for it
    assert capsys.readouterr().out == ""


def test_on_a_terminal_a_page_takes_the_place_of_the_one_before(capsys, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    with pages() as show_page:
        show_page("first\npage")
        show_page("second\npage")
    out = capsys.readouterr().out
    assert out.index("first") < out.index("\x1b[1A") < out.index("second")
    assert out.endswith("\n\x1b[?25h")  # the next prompt has a line of its own, and a cursor
