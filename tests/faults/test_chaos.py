"""Given a steady load, when anything dies, freezes or is cut off, then every request is answered once, and right.

The same at length, with what each fault costs: `rankmq chaos`.
"""

from importlib.util import find_spec
from pathlib import Path

import pytest
from rankmq.scripts.chaos.faults import FAULTS, Setting, chosen, each_once
from rankmq.workers.collectives.build import find_compiler

from tests.faults.chaos import chaos

pytestmark = pytest.mark.timeout(240)

SLOW = {"freeze-orchestrator-standby"}  # the broker misses heartbeats for twenty seconds
BROKER = ["restart-broker", "kill-broker"]
OTHERS = [name for name in FAULTS if name not in {*SLOW, *BROKER, "kill-group"}]


def test_each_fault_once(tmp_path: Path) -> None:
    ran = chaos(
        *(tmp_path, "--each-once", "--seed", 7, "--peace", 0.1, "--ranks", 3, "--in-flight", 32),
        *("--faults", ",".join(OTHERS)),
        heartbeat_seconds=0.3,
    )

    ran.check(500)
    setting = Setting(ranks=3)
    planned = each_once(7, chosen(",".join(OTHERS), setting), setting)
    assert [(it["fault"], it["ranks"]) for it in ran.faults()] == [(it.fault.name, list(it.ranks)) for it in planned]
    assert [fault["ranks"] for fault in ran.faults("kill-rank")] == [[0], [1], [2]]
    for fault in ran.faults():
        assert fault["serving"] is not None, fault
        assert fault["answered"] >= 16, fault
    for name in ("kill-rank", "kill-two-ranks", "kill-all-ranks", "cut-rank", "kill-launcher"):
        assert all(fault["noticed"] < 2 for fault in ran.faults(name)), ran.faults(name)
    for name in ("freeze-rank", "silence-rank"):
        assert all(1 < fault["noticed"] < 10 for fault in ran.faults(name)), ran.faults(name)
    assert sum(fault["repeated"] for fault in ran.faults()) > 0

    # They really happened: the orchestrators have seen them.
    for fault in ran.faults("kill-rank"):
        assert any(f"rank {fault['ranks'][0]} lost" in reason for reason in fault["reasons"]), fault
    signs = ran.signs()
    epochs = [sign.epoch for sign in signs if sign.word == "ready"]
    assert epochs == sorted(set(epochs))
    assert len(epochs) >= len(ran.faults()) - 2  # all but those of the producers
    (heir,) = ran.faults("kill-heir")
    registered = [sign.pid for sign in signs if sign.word == "registered" and sign.rank == heir["ranks"][0]]
    assert len(set(registered)) >= 4  # at first, after kill-rank, and twice here


def test_one_of_two_groups_dies_and_the_broker_too(tmp_path: Path) -> None:
    """They share the servable's requests queue: all ranks and the orchestrator of one are killed under load."""
    names = [*BROKER, "kill-group"]
    ran = chaos(
        *(tmp_path, "--each-once", "--groups", 2, "--peace", 0.1, "--ranks", 2, "--in-flight", 32),
        *("--faults", ",".join(names)),
    )

    ran.check(100)
    assert [fault["fault"] for fault in ran.faults()] == [name for name in FAULTS if name in names]
    for name in BROKER:
        (fault,) = ran.faults(name)
        assert "the broker was up again after" in fault["reasons"][0]
    (killed,) = ran.faults("kill-group")
    assert killed["gap"] < 5, "the other group did not go on"
    for group in ("g0", "g1"):
        assert any(sign.word == "ready" for sign in ran.signs(group))


@pytest.mark.mindspore
@pytest.mark.skipif(find_spec("mindspore") is None, reason="needs MindSpore")
@pytest.mark.skipif(find_compiler() is None, reason="needs a C++ compiler")
def test_collectives_through_shared_memory(tmp_path: Path) -> None:
    """On the matmul example in MindSpore: the ranks that survive go on in the same processes."""
    ran = chaos(
        *(tmp_path, "--communication", "shm", "--each-once", "--peace", 0.1, "--in-flight", 24),
        *("--faults", "kill-two-ranks,kill-heir,kill-orchestrator-standby"),
    )

    ran.check(50)
    hit = {rank for fault in ran.faults() for rank in fault["ranks"]}
    pids: dict[int, set[int]] = {rank: set() for rank in range(8)}
    for sign in ran.signs():
        if sign.word == "registered":
            pids[sign.rank].add(sign.pid)
    assert {rank for rank, of_rank in pids.items() if len(of_rank) > 1} == hit
    assert all(fault["noticed"] < 2 for fault in ran.faults()), ran.faults()
