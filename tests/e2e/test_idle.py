"""An engine that has nothing to do does next to nothing."""

import time

import psutil
import pytest

from tests.e2e.conftest import Start
from tests.e2e.gallery import write_matmul
from tests.e2e.systems import System

SECONDS = 6.0


def processor_share(system: System, seconds: float = SECONDS) -> float:
    """What share of one core all processes of a system take, over some seconds."""

    def used() -> dict[psutil.Process, float]:
        processes = [*system.orchestrator.family(), *system.agents.family()]
        return {process: sum(process.cpu_times()[:2]) for process in processes}

    before, began = used(), time.monotonic()
    time.sleep(seconds)
    after, took = used(), time.monotonic() - began
    assert after.keys() == before.keys()
    return sum(after[process] - before[process] for process in after) / took


def test_an_idle_engine_of_eight_ranks(start: Start, tmp_path) -> None:
    write_matmul(tmp_path)
    system = start("matmul")
    assert len(system.agents.family()) >= 9
    time.sleep(1.0)
    share = processor_share(system)
    assert share < 0.05


@pytest.mark.parametrize("missing", ["agents", "orchestrator"])
def test_half_an_engine_that_waits_for_the_other_half(build: Start, tmp_path, missing: str) -> None:
    write_matmul(tmp_path)
    system = build("matmul")
    role = system.start_orchestrator() if missing == "agents" else system.start_agents()
    time.sleep(2.0)
    before = sum(sum(process.cpu_times()[:2]) for process in role.family())
    time.sleep(3.0)
    share = (sum(sum(process.cpu_times()[:2]) for process in role.family()) - before) / 3.0
    assert share < 0.05
