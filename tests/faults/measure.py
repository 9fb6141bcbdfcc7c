"""What each fault costs: the matmul example under a steady load, while ranks and orchestrators are damaged.

    python -m tests.faults.measure [--communication shm|mccl] [--spares N] [--only WORD ...] [--json FILE]

Needs MindSpore and a rabbitmq-server. Every number of every answer is
compared with numpy. All times are seconds from the fault.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [path for path in (str(ROOT / ".dev"), str(ROOT)) if path not in sys.path]

from rankmq.engine.address import BrokerAddress  # noqa: E402
from rankmq.workers.broker import PrivateBroker  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from tests.e2e.systems import wait_until  # noqa: E402
from tests.faults.matmul import RANKS, Damaged, Load, Repeats, weights_of, write_matmul  # noqa: E402
from tests.faults.proxy import Proxy  # noqa: E402

STEADY_SECONDS = 1.5
FAR = RANKS - 1
"""The rank whose connection goes through a proxy."""


@dataclass
class Row:
    """What became of one fault; None where there was nothing to be seen."""

    fault: str
    noticed: float | None
    serving: float | None
    gap: float
    again: int
    wrong: int
    lost: int
    twice: int
    reasons: list[str]


class Bench:
    """The system, the load, and what can be done to them."""

    def __init__(self, system: Damaged, load: Load, repeats: Repeats, proxy: Proxy, patience: float) -> None:
        self.system, self.load, self.repeats, self.proxy = system, load, repeats, proxy
        self.patience = patience
        self.rows: list[Row] = []

    # ------------------------------------------------------------------------------------------------------- faults

    def kill(self, *ranks: int) -> None:
        pids = self.system.pids()
        for rank in ranks:
            os.kill(pids[rank], signal.SIGKILL)

    def kill_heir(self, rank: int) -> None:
        """Kill a rank, and the process that takes its place as soon as that has registered."""
        first = self.system.pids()[rank]
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: self.system.pids()[rank] != first, "the heir", every=0.002)
        self.kill(rank)

    def freeze(self, rank: int) -> None:
        os.kill(self.system.pids()[rank], signal.SIGSTOP)

    def cut(self) -> None:
        assert self.proxy.cut()

    def silence(self) -> None:
        self.proxy.silence()

    def mend(self) -> None:
        """The way to the broker is whole again, the connections that were silent are gone."""
        self.proxy.cut()
        self.proxy.resume()

    def replace_orchestrator(self) -> None:
        self.kill_orchestrator()
        self.system.start_orchestrator()

    def kill_orchestrator(self) -> None:
        active = self.system.orchestrator
        assert active is not None
        active.signal(signal.SIGKILL)
        active.ended()

    def stand_by(self) -> None:
        """Have a second orchestrator wait."""
        active = self.system.orchestrator
        standby = self.system.start_orchestrator()
        self.system.orchestrator = active
        wait_until(lambda: "standing by" in standby.said, "the standby")

    # ---------------------------------------------------------------------------------------------------- measuring

    def measure(
        self,
        fault: str,
        act: Callable[[], object],
        *,
        before: Callable[[], object] = lambda: None,
        mend: Callable[[], object] = lambda: None,
    ) -> Row:
        """Do it, wait until all is well again, and book what was seen."""
        before()
        time.sleep(STEADY_SECONDS)
        load, system = self.load, self.system
        orchestrator = "orchestrator" in fault
        wrong, lost, twice = len(load.wrong), len(load.lost), self.repeats.count
        open_calls = load.asked - load.answered
        at = time.time()
        act()
        try:
            self._wait_well(at, orchestrator, mend)
        finally:
            until = time.time()
            ended, began = system.ended(at), system.began(at)
            noticed = [it.at for it in ended]
            if orchestrator:
                noticed = [moment for moment, text in system.lines() if moment >= at and "taking over" in text]
            row = Row(
                fault=fault,
                noticed=_after(noticed[:1], at),
                serving=_after(began[-1:], at),
                gap=round(load.longest_gap(at, until), 2),
                again=open_calls if orchestrator else sum(it.rows for it in ended),
                wrong=len(load.wrong) - wrong,
                lost=len(load.lost) - lost,
                twice=self.repeats.count - twice,
                reasons=[it.reason for it in ended],
            )
            self.rows.append(row)
            Console(stderr=True, width=160).print(
                f"{row.fault}: {row.noticed} {row.serving} {row.gap} {row.reasons}", markup=False
            )
        return row

    def _wait_well(self, at: float, orchestrator: bool, mend: Callable[[], object]) -> None:
        system, load = self.system, self.load
        if not orchestrator:
            wait_until(lambda: system.ended(at), "the end of the epoch", self.patience)
        mend()

        def well() -> bool:
            """As many epochs began as ended, and answers come from the last one."""
            ended, began = system.ended(at), system.began(at)
            if not began or (ended and ended[-1].at > began[-1]):
                return False
            return sum(moment > began[-1] + STEADY_SECONDS / 2 for moment in list(load.moments)[-64:]) >= 32

        wait_until(well, "serving again", self.patience, every=0.2)


def _after(moments: list[float], at: float) -> float | None:
    return round(moments[0] - at, 2) if moments else None


def faults(bench: Bench) -> dict[str, Callable[[str], Row]]:
    """All of them, by name, in the order in which they are done."""
    measure = bench.measure
    found: dict[str, Callable[[str], Row]] = {
        f"rank {rank} killed": lambda name, it=rank: measure(name, lambda: bench.kill(it)) for rank in range(RANKS)
    }
    return found | {
        "ranks 2 and 5 killed": lambda name: measure(name, lambda: bench.kill(2, 5)),
        "all ranks killed": lambda name: measure(name, lambda: bench.kill(*range(RANKS))),
        "rank 3 killed, its heir as it loads": lambda name: measure(name, lambda: bench.kill_heir(3)),
        "rank 4 frozen": lambda name: measure(name, lambda: bench.freeze(4)),
        f"connection of rank {FAR} cut": lambda name: measure(name, bench.cut),
        f"connection of rank {FAR} silent": lambda name: measure(name, bench.silence, mend=bench.mend),
        "orchestrator killed, started again": lambda name: measure(name, bench.replace_orchestrator),
        "orchestrator killed, with a standby": lambda name: measure(
            name, bench.kill_orchestrator, before=bench.stand_by
        ),
    }


def table(rows: list[Row], title: str) -> Table:
    """The measurements for a person."""
    shown = Table(title=title)
    shown.add_column("fault")
    for name in ("noticed after", "serving again after", "longest gap", "issued again", "wrong", "lost", "twice"):
        shown.add_column(name, justify="right")
    for row in rows:
        times = ("-" if it is None else f"{it:.2f} s" for it in (row.noticed, row.serving, row.gap))
        shown.add_row(row.fault, *times, *map(str, (row.again, row.wrong, row.lost, row.twice)))
    return shown


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--communication", choices=["shm", "mccl"], default="shm")
    parser.add_argument("--spares", type=int, default=0)
    parser.add_argument("--in-flight", type=int, default=64)
    parser.add_argument("--only", nargs="*", metavar="WORD", help="only the faults that have one of these in the name")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--logs", type=Path, metavar="FOLDER", help="keep the logs there")
    options = parser.parse_args()
    console = Console(width=120)
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        logs = options.logs or directory / "logs"
        logs.mkdir(exist_ok=True)
        if any(logs.iterdir()):
            parser.error(f"{logs} is not empty: what others have logged would be taken for ours")
        servable = write_matmul(directory, options.communication)
        settings = {"max_restarts": 50, "spares": options.spares}
        with PrivateBroker(directory / "broker") as broker:
            address = BrokerAddress.parse(broker.url)
            with Proxy(address.host, address.port) as proxy:
                far = broker.url.replace(f":{address.port}/", f":{proxy.port}/")
                assert far != broker.url
                system = Damaged(broker.url, directory, [servable], logs, **settings)
                try:
                    rows, summary = _run(system, far, proxy, weights_of(directory), options)
                finally:
                    system.destroy()
    title = f"{options.communication}, {options.spares} spares, {RANKS} ranks, {os.cpu_count()} cores; {summary}"
    console.print(table(rows, title))
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    return int(any(row.wrong or row.lost or row.serving is None for row in rows))


def _run(system: Damaged, far: str, proxy: Proxy, weights: list, options: argparse.Namespace) -> tuple[list[Row], str]:
    system.start_orchestrator()
    system.start_some_agents([FAR], far)
    system.start_agents(list(range(FAR)))
    system.wait_ready(seconds=180)
    assert system.communication() == options.communication, system.communication()
    began = time.time()
    with (
        Repeats() as repeats,
        system.client("matmul", "predict", timeout=180.0) as client,
        Load(client, weights, options.in_flight) as load,
    ):
        wait_until(lambda: load.answered >= 2 * options.in_flight, "the first answers", 60)
        bench = Bench(system, load, repeats, proxy, 60.0 if options.communication == "shm" else 180.0)
        try:
            for name, do in faults(bench).items():
                if not options.only or any(word in name for word in options.only):
                    do(name)
        except AssertionError as error:
            Console(stderr=True, width=160).print(f"gave up: {error}", markup=False)
    for text in (load.wrong + load.lost)[:5]:
        Console(stderr=True, width=160).print(text, markup=False)
    took = time.time() - began
    wrong, lost = len(load.wrong), len(load.lost)
    return bench.rows, f"{load.asked} requests in {took:.0f} s, {wrong} wrong, {lost} lost, {repeats.count} twice"


if __name__ == "__main__":
    sys.exit(main())
