"""Runs `rankmq chaos`, and reads what it wrote."""

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankmq.scripts.chaos.signs import Sign, sign_of

from tests.e2e.cli import RANKMQ
from tests.e2e.systems import environment


@dataclass(frozen=True)
class Ran:
    """A run that is over.

    Attributes:
        code: its exit code.
        told: what it wrote as JSON.
        said: what it printed.
        logs: the folder of its logs.
    """

    code: int
    told: dict[str, Any]
    said: str
    logs: Path

    def faults(self, name: str | None = None) -> list[dict[str, Any]]:
        """Those that were done, or those of one kind."""
        return [fault for fault in self.told["faults"] if name in (None, fault["fault"])]

    def check(self, least: int) -> None:
        """Every request was answered once, with the right numbers, and there were enough of them."""
        tally = self.told["tally"]
        text = json.dumps({key: self.told[key] for key in ("tally", "wrong", "lost", "duplicated", "problems")})
        assert self.code == 0, f"{text}\n{self.said[-3000:]}"
        assert self.told["good"]
        assert tally["accepted"] == tally["answered"] == tally["right"] >= least, text
        assert not self.told["dead_letters"]
        assert not any(fault["problem"] for fault in self.faults())

    def signs(self, group: str = "g0") -> list[Sign]:
        """What the orchestrators of a group have logged, in its order."""
        lines = [
            line for log in self.logs.glob(f"orchestrator-{group}-*.log") for line in log.read_bytes().splitlines()
        ]
        return sorted(filter(None, map(sign_of, lines)), key=lambda sign: sign.at)


def chaos(folder: Path, *options: object, seconds: float = 220.0, **settings: Any) -> Ran:
    """Runs it to its end.

    Args:
        folder: for what it leaves.
        options: of the command.
        seconds: that it may take.
        settings: as RANKMQ_* in its environment.
    """
    logs, file = folder / "chaos-logs", folder / "chaos.json"
    command = [*RANKMQ, "chaos", *map(str, options), "--logs", str(logs), "--json", str(file)]
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=seconds,
        env=environment(**settings),
        check=False,
    )
    assert file.stat().st_size, done.stdout[-3000:]
    return Ran(done.returncode, json.loads(file.read_text()), done.stdout, logs)
