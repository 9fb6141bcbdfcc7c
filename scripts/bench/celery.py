"""The matmul servable through rankmq, against the same behind Celery on the same broker.

Each side is asked the way its users ask it: rankmq by its `Client`, Celery by `delay` and `get`.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ...engine.client import Client
from ...schemas.errors import OperatorError
from .tools.bench import Bench
from .tools.benchmark import Benchmark
from .tools.children import Child, Children, Line
from .tools.engine import RunningEngine
from .tools.matmul import METHOD, SERVABLE, WEIGHT, Asking, example_on_numpy
from .tools.rounds import in_turns
from .tools.row import Row, compared

__all__ = ["BENCHMARK"]

_RANKS = (1, 8)
_IN_FLIGHT = (1, 64)
_ROUNDS = 5
_SECONDS = 2.0
_PATIENCE = 60.0

Array = np.ndarray[Any, Any]
Ask = Callable[[Array], Callable[[], Array]]


def _run(bench: Bench) -> Iterator[Row]:
    from .tools.celery_app import celery_app, settings_in_words

    cores, url = os.cpu_count() or 1, bench.broker_url
    bench.say("starting Celery")
    log = bench.folder("logs") / "celery.log"
    bench.enter(Children([Child("Celery", _worker, url, cores, log)])).hear(_PATIENCE)
    app = celery_app(url, WEIGHT)
    task = app.tasks["matmul"]

    def ask_celery(x: Array) -> Callable[[], Array]:
        result = task.delay(x)
        return lambda: result.get(timeout=_PATIENCE)

    for ranks in _RANKS:
        with (
            RunningEngine(bench, example_on_numpy(bench, ranks), SERVABLE),
            Client(url, SERVABLE, METHOD, timeout=_PATIENCE) as client,
        ):

            def ask_us(x: Array, client: Client = client) -> Callable[[], Array]:
                future = client.infer_async({"x": x})
                return lambda: future.result(_PATIENCE)[0]["y"]

            for in_flight in _IN_FLIGHT:
                what = f"{ranks} numpy {'rank' if ranks == 1 else 'ranks'}, {in_flight} in flight"
                bench.say(what)
                pairs = _measured(bench, ask_us, ask_celery, in_flight)
                yield compared(bench.name, f"{what}, against {settings_in_words(cores)}", "requests/s", pairs)
    app.close()


def _measured(bench: Bench, ours: Ask, theirs: Ask, in_flight: int) -> list[tuple[float, float]]:
    seconds = bench.seconds(_SECONDS)
    return in_turns(
        bench.rounds(_ROUNDS), lambda: _rate(ours, in_flight, seconds), lambda: _rate(theirs, in_flight, seconds)
    )


def _rate(ask: Ask, in_flight: int, seconds: float) -> float:
    """Answers a second, with so many requests under way at once."""
    asking = Asking(1)
    (x,), (wanted,) = asking.inputs, asking.outputs
    under_way: deque[Callable[[], Array]] = deque()
    began = time.perf_counter()
    count = 0
    while (now := time.perf_counter()) - began < seconds or not count:
        while len(under_way) < in_flight:
            under_way.append(ask(x))
        answer = under_way.popleft()()
        count += 1
    took = now - began
    for get in under_way:
        answer = get()
    if not np.allclose(answer, wanted, rtol=1e-3, atol=1e-2):
        raise OperatorError("a request was answered with wrong numbers")
    return count / took


def _worker(parent: Line, url: str, concurrency: int, log: Path) -> None:
    """A Celery worker, until the other end of the pipe is closed."""
    from .tools.celery_app import celery_app, worker_arguments

    with log.open("ab") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    os.environ["C_FORCE_ROOT"] = "1"  # as root it would refuse pickle, of which nobody sends any but us
    app = celery_app(url, WEIGHT)

    def listen() -> None:
        try:
            parent.hear()
        except (EOFError, OSError):
            os.kill(os.getpid(), signal.SIGTERM)  # it finishes what it runs

    import celery.signals

    celery.signals.worker_ready.connect(lambda **_: parent.say("ready"), weak=False)
    threading.Thread(target=listen, name="end", daemon=True).start()
    app.worker_main(worker_arguments(concurrency))


BENCHMARK = Benchmark(80, "the matmul servable, against the same behind Celery on the same broker", _run, ("celery",))
