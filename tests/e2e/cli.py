"""The command line as a person uses it: processes, what they print, and what they leave behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from tests.e2e.graphs import WORDS, Graph, negated_matmul, op, spec, write_servable
from tests.e2e.systems import environment, wait_until
from tests.processes import command

MATMUL = (Path(__file__).parents[2] / "examples/matmul/matmul/servable_config.py").read_text()
SMALL = (
    WORDS
    + """
distributed.declare_servable(rank_size=2, stage_size=1, with_batch_dim=False)

def note(x):
    print("note: %d" % x[0])  # whatever a servable prints must not get between what a command prints
    register.send_part(noted=x[0])
    return x

@register.register_method(output_names=["y"])
def double(x):
    x = register.call_preprocess(note, x)
    y = register.call_servable(x, subgraph=0)
    return y

@register.register_method(output_names=["y"])
def slow(x):
    y = register.call_servable(x, subgraph=1)
    return y
"""
)
DOUBLE = Graph([op("add", "x x", "y")], [spec("x", 3, dtype="int32")], [spec("y", 3, dtype="int32")])
SLOW = Graph([op("sleep", "x", "y", milliseconds=3000)], [spec("x", 1)], [spec("y", 1)])

RANKMQ = [sys.executable, "-m", "rankmq.scripts"]


def rankmq(*arguments: object, timeout: float = 60.0, **settings: Any) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        [*RANKMQ, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env=environment(**settings),
        stdin=subprocess.DEVNULL,
    )


def failed(done: "subprocess.CompletedProcess[str] | Service", code: int) -> str:
    """The one line that a failed command must say last, without a traceback before it."""
    if isinstance(done, Service):
        returned, errors = done.ended(), done.errors
    else:
        returned, errors = done.returncode, done.stderr
    assert returned == code, errors
    assert "Traceback" not in errors, errors
    lines = [line for line in errors.splitlines() if line.startswith("rankmq: ")]
    assert len(lines) == 1, errors
    assert errors.rstrip().endswith(lines[0]), errors
    return lines[0]


def _listen_to_interrupts() -> None:
    """As a shell starts what a person calls; tests that run in the background inherit that Ctrl-C is ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Service:
    """A command that runs until it is told to stop, in a session of its own as if in a terminal of its own."""

    def __init__(self, folder: Path, *arguments: object, **settings: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        number = len(list(folder.glob("*.out")))
        self._out, self._err = folder / f"{number}.out", folder / f"{number}.err"
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                [*RANKMQ, *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env=environment(**settings),
                start_new_session=True,
                preexec_fn=_listen_to_interrupts,
            )
        self._seen: dict[int, psutil.Process] = {}

    def __enter__(self) -> "Service":
        return self

    def __exit__(self, *_: object) -> None:
        family = self.family()
        if self.process.poll() is None:  # the test failed, or does not care how it ends
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        for process in psutil.wait_procs(family, timeout=3)[1]:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue

    @property
    def output(self) -> str:
        return self._out.read_text()

    @property
    def errors(self) -> str:
        return self._err.read_text()

    def family(self) -> list[psutil.Process]:
        """All processes below it that it has had, itself not included."""
        try:
            for process in psutil.Process(self.process.pid).children(recursive=True):
                self._seen[process.pid] = process
        except psutil.NoSuchProcess:
            pass
        return list(self._seen.values())

    def wait_for(self, text: str, seconds: float = 60.0) -> None:
        """Wait until it has printed something."""

        def printed() -> bool:
            assert self.process.poll() is None, f"it ended with {self.process.returncode}:\n{self.errors[-3000:]}"
            return text in self.output

        wait_until(printed, f"{text!r} of {self.process.args}", seconds)
        self.family()

    def ended(self, seconds: float = 40.0) -> int:
        """Its exit code, once it has ended."""
        deadline = time.monotonic() + seconds
        while self.process.poll() is None:
            self.family()
            assert time.monotonic() < deadline, f"it does not end within {seconds:g} s:\n{self.errors[-3000:]}"
            time.sleep(0.02)
        return self.process.returncode

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.family()
        self.process.send_signal(number)
        return self.ended()

    def left_behind(self, seconds: float = 0.0) -> list[str]:
        """The processes of it that still run, after some seconds at most."""
        _, alive = psutil.wait_procs(self._seen.values(), timeout=seconds)
        return [f"{it.pid} {command(it)}" for it in alive if command(it)]

    def child(self, module: str) -> psutil.Process:
        """Its child that runs a module, or a program of this name."""
        return next(it for it in self.family() if module in command(it))


def visible_secrets(password: str, processes: list[psutil.Process]) -> list[str]:
    """The command lines of processes in which a password can be seen."""
    return [line for it in processes if password in (line := command(it))]


def mode(path: Path) -> int:
    return os.stat(path).st_mode & 0o777


def write_servables(folder: Path) -> None:
    """Two servables: matmul, the original's, on eight ranks; small on two."""
    graphs = {
        f"matmul_{number}": lambda _, weight=weight: negated_matmul(np.full((96, 16), weight, np.float32))
        for number, weight in enumerate((0.5, 1.5))
    }
    write_servable(folder, "matmul", MATMUL, graphs, ranks=8)
    write_servable(folder, "small", SMALL, {"0_double": lambda _: DOUBLE, "1_slow": lambda _: SLOW}, ranks=2)
