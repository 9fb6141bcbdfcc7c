"""The matmul example under a steady load, with the means to damage it and to read from its logs what became of it."""

import itertools
import logging
import re
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rankmq.engine.client import Client
from rankmq.schemas.errors import RankmqError

from tests.e2e.systems import ROLE, ROOT, Role, System, environment

RANKS = 8
EXAMPLE = ROOT / "examples" / "matmul"
_LINE = re.compile(r"(\d\d):(\d\d):(\d\d\.\d{3}) \w+ +[\w ]+: (.*)")
_HALF_DAY = 43_200.0


def write_matmul(directory: Path, communication: str, seed: int = 7) -> str:
    """Export the example's graphs with random weights, and write its servable; gives its name.

    Args:
        directory: for `model` and `matmul`.
        communication: of the servable.
        seed: for the weights, which are kept in model/weights.npz.
    """
    script = [sys.executable, str(EXAMPLE / "export_model.py"), "--output", str(directory), "--random", str(seed)]
    subprocess.run(script, check=True, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    text = (EXAMPLE / "matmul" / "servable_config.py").read_text()
    changed = text.replace("with_batch_dim=False", f"with_batch_dim=False, communication={communication!r}")
    assert changed != text
    (directory / "matmul").mkdir()
    (directory / "matmul" / "servable_config.py").write_text(changed)
    return "matmul"


class Repeats(logging.Handler):
    """Counts the replies that our producer got and nobody waited for: those that came twice."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.count = 0

    def __enter__(self) -> "Repeats":
        logger = logging.getLogger("rankmq.engine")
        self._level = logger.level
        logger.setLevel(logging.DEBUG)
        logger.addHandler(self)
        logger.propagate = False
        return self

    def __exit__(self, *_: object) -> None:
        logger = logging.getLogger("rankmq.engine")
        logger.removeHandler(self)
        logger.setLevel(self._level)
        logger.propagate = True

    def emit(self, record: logging.LogRecord) -> None:
        self.count += "nobody waits" in record.getMessage()


class Load:
    """Threads of one `Client` that ask the example's pipeline, each as soon as it has an answer, which it checks.

    Args:
        client: of `matmul.predict`.
        weights: of the two graphs.
        in_flight: how many threads.
    """

    def __init__(self, client: Client, weights: Sequence[np.ndarray], in_flight: int = 64) -> None:
        self._client = client
        random = np.random.default_rng(3)
        self._inputs = [random.normal(size=(2, 128, 96)).astype(np.float32) for _ in range(64)]
        self._outputs = [(-(x + x) @ weights[0], -y @ weights[1]) for x, y in self._inputs]
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(it,), daemon=True) for it in range(in_flight)]
        self.moments: list[float] = []
        self.wrong: list[str] = []
        self.lost: list[str] = []
        self.asked = 0

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.finish()

    def finish(self, seconds: float = 150.0) -> None:
        """Ask nothing more, and wait for all answers."""
        self._stop.set()
        deadline = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        assert not any(thread.is_alive() for thread in self._threads), "calls that never end"

    @property
    def answered(self) -> int:
        """How many calls have ended, well or not."""
        return len(self.moments)

    def longest_gap(self, since: float, until: float) -> float:
        """Seconds without an answer, at most, between two moments of `time.time()`."""
        moments = [since, *(it for it in list(self.moments) if since < it < until), until]
        return max(later - earlier for earlier, later in itertools.pairwise(moments))

    def _ask(self, number: int) -> None:
        random = np.random.default_rng(100 + number)
        while not self._stop.is_set():
            which, scale = random.integers(len(self._inputs)), np.float32(random.uniform(0.5, 2))
            (x, y), wanted = self._inputs[which] * scale, self._outputs[which]
            with self._lock:
                self.asked += 1
            try:
                (row,) = self._client.infer({"x": x, "y": y})
            except RankmqError as error:
                self.lost.append(f"{type(error).__name__}: {error.message}")
            else:
                if not all(
                    np.allclose(row[name], want * scale, rtol=1e-3, atol=1e-2)
                    for name, want in zip(("x", "z"), wanted, strict=True)
                ):
                    self.wrong.append(f"thread {number}")
            with self._lock:
                self.moments.append(time.time())


@dataclass(frozen=True)
class Ended:
    """The end of an epoch, as the orchestrator's log has it."""

    at: float
    epoch: int
    steps: int
    rows: int
    reason: str


class Damaged(System):
    """A system of one servable whose ranks may come to the broker by different ways."""

    def start_some_agents(self, ranks: Sequence[int], url: str) -> Role:
        """One more launcher."""
        mine, self.url = self.url, url
        try:
            return self._start("agents", ranks)
        finally:
            self.url = mine

    def lines(self, role: str = "orchestrator") -> list[tuple[float, str]]:
        """What all processes of a role have logged: moments (of `time.time()`) and texts, in order."""
        found = []
        now = time.time()
        clock = time.localtime(now)
        seconds_of_day = clock.tm_hour * 3600 + clock.tm_min * 60 + clock.tm_sec + now % 1
        for one in self._roles:
            if one.role == role:
                for match in filter(None, map(_LINE.match, one.said.splitlines())):
                    hours, minutes, seconds, text = match.groups()
                    ago = seconds_of_day - (int(hours) * 3600 + int(minutes) * 60 + float(seconds))
                    found.append((now - (ago % (2 * _HALF_DAY) if ago < -1 else ago), text))
        return sorted(found)

    def pids(self) -> dict[int, int]:
        """The process of each rank that registered last."""
        found = {}
        for _, text in self.lines():
            if match := re.match(r"rank (\d+) of \S+ registers: pid (\d+)", text):
                found[int(match[1])] = int(match[2])
        return found

    def ended(self, since: float) -> list[Ended]:
        """The epochs that ended since a moment."""
        pattern = re.compile(r".*: epoch (\d+) ended, (\d+) steps are void \((\d+) rows\): (.*?)(?: epoch=\d+)?$")
        return [
            Ended(at, int(match[1]), int(match[2]), int(match[3]), match[4])
            for at, text in self.lines()
            if at >= since and (match := pattern.match(text))
        ]

    def began(self, since: float) -> list[float]:
        """When epochs began, since a moment."""
        return [at for at, text in self.lines() if at >= since and " is ready: epoch " in text]

    def communication(self) -> str:
        """By what means the ranks talk."""
        return self.status().groups[0].communication


def weights_of(directory: Path) -> list[np.ndarray[Any, Any]]:
    """The weights that `write_matmul` has exported with."""
    with np.load(directory / "model" / "weights.npz") as kept:
        return [kept["matmul_0"], kept["matmul_1"]]


__all__ = ["EXAMPLE", "RANKS", "ROLE", "Damaged", "Ended", "Load", "Repeats", "weights_of", "write_matmul"]
