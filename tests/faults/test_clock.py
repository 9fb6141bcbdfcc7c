"""A wall clock that jumps: it decides nothing in the life of a group."""

import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.e2e import systems
from tests.e2e.load import under_load, write_steady
from tests.e2e.systems import System, wait_until
from tests.faults.test_lost_rank import Start, kill, pids_of

JUMPS = """
import itertools, time

_real, _minutes = time.time, itertools.cycle((0, 9, -20, 50, -50, 1))
time.time = lambda: _real() + 60 * next(_minutes)
time.time_ns = lambda: int(time.time() * 1e9)
"""
"""What every process of the engine runs first: each look at the clock shows another time, up to an hour off."""


@pytest.fixture
def jumping(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> System:
    folder, environment = tmp_path / "clock", systems.environment
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(JUMPS)

    def with_jumps(**settings: Any) -> dict[str, str]:
        given = environment(**settings)
        return {**given, "PYTHONPATH": f"{folder}{os.pathsep}{given['PYTHONPATH']}"}

    monkeypatch.setattr(systems, "environment", with_jumps)
    return start(write_steady(tmp_path), heartbeat_seconds=0.8, step_timeout=10)


def test_a_group_lives_on_and_heals_under_a_clock_that_jumps(jumping: System) -> None:
    """Nobody is taken for silent, no step for overdue; who is frozen is noticed when it should be."""
    before = pids_of(jumping)
    with under_load(jumping, 700) as load:
        load.finish()
    assert not load.repeated
    assert jumping.group("steady").epoch == 1
    assert pids_of(jumping) == before
    assert len(set(re.findall(r"^\d\d:\d\d", jumping.log, re.MULTILINE))) > 4, "the clock did not jump"
    kill(before[1])
    jumping.wait_ready(epoch=2)
    os.kill(pids_of(jumping)[2], signal.SIGSTOP)
    wait_until(lambda: jumping.group("steady").epoch == 3, "the end of the frozen rank's epoch")
    jumping.wait_ready(epoch=3)
