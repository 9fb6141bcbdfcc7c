"""An engine that has nothing to do does next to nothing."""

import time
from pathlib import Path

import psutil
import pytest

from tests.e2e.conftest import Start
from tests.e2e.gallery import write_matmul
from tests.e2e.systems import Role, wait_until

SECONDS = 4.0


def processor_share(*roles: Role, seconds: float = SECONDS) -> float:
    """What share of one core the processes of some roles take, over some seconds."""

    def used() -> dict[psutil.Process, float]:
        return {process: sum(process.cpu_times()[:2]) for role in roles for process in role.family()}

    before, began = used(), time.monotonic()
    time.sleep(seconds)
    after, took = used(), time.monotonic() - began
    assert after.keys() == before.keys()
    return sum(after[process] - before[process] for process in after) / took


def test_an_idle_engine_of_eight_ranks(start: Start, tmp_path: Path) -> None:
    write_matmul(tmp_path)
    system = start("matmul")
    assert len(system.agents.family()) >= 9
    time.sleep(1.0)
    assert processor_share(system.orchestrator, system.agents) < 0.05


@pytest.mark.parametrize("missing", ["agents", "orchestrator"])
def test_half_an_engine_that_waits_for_the_other_half(build: Start, tmp_path: Path, missing: str) -> None:
    write_matmul(tmp_path)
    system = build("matmul")
    role = system.start_orchestrator() if missing == "agents" else system.start_agents()
    wait_until(lambda: len(role.family()) >= (1 if missing == "agents" else 9), "its processes")
    time.sleep(1.5)
    assert processor_share(role, seconds=2.0) < 0.05
