"""Given a steady load, when ranks and orchestrators are damaged in turn, then every answer is right and none is lost.

The longer round, with a table of what each fault costs: `python -m tests.faults.measure`.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from rankmq.engine.address import BrokerAddress

from tests.e2e.load import RANKS, Load, write_steady
from tests.e2e.systems import Vhosts, wait_until
from tests.faults.matmul import RANKS as MATMUL_RANKS
from tests.faults.matmul import Damaged, Repeats, weights_of, write_matmul
from tests.faults.matmul import Load as MatmulLoad
from tests.faults.measure import Bench
from tests.faults.proxy import Proxy


@contextmanager
def served(
    vhosts: Vhosts, folder: Path, servable: str, ranks: int, **settings: float
) -> Iterator[tuple[Damaged, Proxy]]:
    """A system whose last rank comes to the broker through a proxy."""
    logs = folder / "logs"
    logs.mkdir()
    url = vhosts.url()
    address = BrokerAddress.parse(url)
    with Proxy(address.host, address.port) as proxy:
        system = Damaged(url, folder, [servable], logs, max_restarts=20, **settings)
        try:
            system.start_orchestrator()
            system.start_some_agents([ranks - 1], url.replace(f":{address.port}/", f":{proxy.port}/"))
            system.start_agents(list(range(ranks - 1)))
            system.wait_ready(seconds=90)
            yield system, proxy
        finally:
            system.destroy()


def test_one_fault_after_the_other(vhosts: Vhosts, tmp_path: Path) -> None:
    """On graphs in numpy: all that can happen to a rank, with the load going on all the time."""
    servable = write_steady(tmp_path)
    with served(vhosts, tmp_path, servable, RANKS, heartbeat_seconds=0.3, max_attempts=10) as (system, proxy):
        load = Load(system.url, 100_000)
        load.start()
        try:
            load.wait_answered(50)

            def after(act: Callable[[], object], mend: Callable[[], object] = lambda: None) -> None:
                """Do it, and wait until the epoch has ended and the next one brings answers."""
                at = time.time()
                act()
                wait_until(lambda: system.ended(at), "the end of the epoch")
                mend()
                wait_until(lambda: system.began(at), "the next epoch")
                system.wait_ready()
                load.wait_answered(load.answered + 60)

            for rank in range(RANKS):
                after(lambda it=rank: os.kill(system.pids()[it], signal.SIGKILL))
            after(lambda: [os.kill(system.pids()[it], signal.SIGKILL) for it in (0, 2)])
            after(lambda: os.kill(system.pids()[1], signal.SIGSTOP))
            after(proxy.cut)
            after(proxy.silence, mend=lambda: (proxy.cut(), proxy.resume()))
        finally:
            load.stop()
        assert not load.wrong, load.wrong[:5]
        assert not load.repeated
        assert load.answered > 60 * (RANKS + 4)


@pytest.mark.mindspore
@pytest.mark.timeout(240)
def test_collectives_through_shared_memory(vhosts: Vhosts, tmp_path: Path) -> None:
    """On the matmul example in MindSpore: the ranks that survive go on in the same processes."""
    servable = write_matmul(tmp_path, "shm")
    with served(vhosts, tmp_path, servable, MATMUL_RANKS) as (system, proxy):
        assert system.communication() == "shm"
        before = system.pids()
        with (
            Repeats() as repeats,
            system.client("matmul", "predict") as client,
            MatmulLoad(client, weights_of(tmp_path), in_flight=24) as load,
        ):
            wait_until(lambda: load.answered >= 50, "the first answers")
            bench = Bench(system, load, repeats, proxy, 40.0)
            killed = [bench.measure("rank 3 killed", lambda: bench.kill(3))]
            assert before.items() - system.pids().items() == {(3, before[3])}
            killed.append(bench.measure("ranks 0 and 5 killed", lambda: bench.kill(0, 5)))
            bench.measure("rank 6 killed, and its heir", lambda: bench.kill_heir(6))
            bench.measure("orchestrator killed, with a standby", bench.kill_orchestrator, before=bench.stand_by)
            load.finish()
        assert (load.wrong, load.lost) == ([], [])
        assert {rank for rank, pid in system.pids().items() if pid == before[rank]} == {1, 2, 4, 7}
        assert all(row.serving is not None and row.serving < 15 for row in bench.rows), bench.rows
        assert all(row.noticed is not None and row.noticed < 2 for row in killed), killed
        assert repeats.count <= 24  # what was answered and not yet acknowledged, when the orchestrator was killed
