"""The broker is short of memory or disk and takes no messages: everybody waits, and nothing is lost by it."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from rankmq.workers.broker import PrivateBroker

from tests.e2e.conftest import Start
from tests.e2e.load import under_load, write_steady

ALARM_SECONDS = 4.0


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateBroker]:
    with PrivateBroker(tmp_path_factory.mktemp("own")) as broker:
        yield broker


def test_an_alarm_loses_nothing_and_no_rank(own: PrivateBroker, start: Start, tmp_path: Path) -> None:
    """It lasts for longer than a rank may be silent: nobody's messages come through, so that says nothing."""
    system = start(write_steady(tmp_path), url=own.url, heartbeat_seconds=0.4, heartbeats_missed=3)
    pids = {rank.pid for rank in system.group("steady").ranks}
    with under_load(system, 3000) as load:
        own.ctl("set_vm_memory_high_watermark", "absolute", "1000")
        try:
            until = time.monotonic() + 15
            while "takes no messages" not in system.orchestrator.said:
                assert time.monotonic() < until
                time.sleep(0.05)
            time.sleep(ALARM_SECONDS)  # an alarm is nothing but time
            answered = load.answered
            assert answered < 3000
        finally:
            own.ctl("set_vm_memory_high_watermark", "0.8")
        load.finish()
    assert load.repeated == []
    group = system.group("steady")
    assert group.epoch == 1
    assert {rank.pid for rank in group.ranks} == pids
    assert "takes messages again" in system.orchestrator.said
