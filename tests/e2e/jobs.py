"""Offline jobs under fire: rows through eight ranks while all that takes part is killed, one after the other."""

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rankmq.engine.jobs.status import JobStatus, status_of
from rankmq.workers.broker import PrivateBroker

from tests.e2e.cli import MATMUL, Service
from tests.e2e.graphs import negated_matmul, write_servable
from tests.e2e.systems import System, wait_until

WEIGHT = np.linspace(-1, 1, 96 * 16, dtype=np.float32).reshape(96, 16)


def write_matmul(folder: Path, rows: int) -> None:
    """The original's servable on eight numpy ranks, for matrices of so many rows."""
    graphs = {f"matmul_{it}": lambda _: negated_matmul(WEIGHT, rows=rows) for it in range(2)}
    write_servable(folder, "matmul", MATMUL, graphs, ranks=8)


def write_rows(file: Path, count: int, rows: int) -> np.ndarray:
    """So many matrices; gives them."""
    x = np.random.default_rng(7).normal(size=(count, rows, 96)).astype(np.float32)
    np.savez(file, x=x)
    return x


@dataclass
class Battle:
    """A job and all that it needs, which can be killed.

    Attributes:
        broker: a node of its own.
        system: orchestrator and ranks.
        folder: for whatever is written.
        out: the job's folder.
    """

    broker: PrivateBroker
    system: System
    folder: Path
    out: Path
    runner: Service | None = None

    def run(self, *arguments: object) -> Service:
        self.runner = Service(self.folder / "runner", "job", *arguments, broker_url=self.system.url)
        return self.runner

    def status(self) -> JobStatus:
        return status_of(self.out)

    def wait_for(self, ended: int, seconds: float = 120.0) -> None:
        """Until so many rows are on record."""

        def there() -> bool:
            assert self.runner is not None
            assert self.runner.process.poll() is None, (self.runner.output[-2000:], self.runner.errors[-3000:])
            return (self.out / "job.sqlite").exists() and self.status().counts.ended >= ended

        wait_until(there, f"{ended} rows on record", seconds, every=0.02)

    # ---------------------------------------------------------------------------------------------------------- kills

    def kill_rank(self) -> None:
        ranks = self.system.group("matmul").ranks
        os.kill(ranks[3].pid, signal.SIGKILL)

    def kill_orchestrator(self) -> None:
        assert self.system.orchestrator is not None
        self.system.orchestrator.process.kill()
        self.system.orchestrator.process.wait(10)
        self.system.start_orchestrator()

    def kill_broker(self) -> None:
        before = self.broker.url
        os.kill(self.broker.pid, signal.SIGKILL)
        assert self.broker.wait(30)
        self.broker.start()
        assert self.broker.url == before

    def kill_runner(self) -> None:
        assert self.runner is not None
        self.runner.process.kill()
        self.runner.process.wait(10)
        self.run("resume", self.out)

    def close(self) -> None:
        """Leave no runner behind."""
        if self.runner is not None and self.runner.process.poll() is None:
            self.runner.process.kill()
            self.runner.process.wait(10)

    def fight(self, count: int) -> None:
        """Runs a job that was begun to its end, with two kills of a rank and one of each of the others."""
        kills: list[Callable[[], Any]] = [
            self.kill_rank, self.kill_runner, self.kill_orchestrator, self.kill_broker, self.kill_rank
        ]  # fmt: skip
        for number, kill in enumerate(kills):
            self.wait_for(count * (number + 1) // (len(kills) + 2))
            kill()
        assert self.runner is not None
        code = self.runner.ended(180)
        assert code == 0, (self.runner.output[-2000:], self.runner.errors[-3000:])
