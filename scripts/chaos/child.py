"""A process of a chaos run: `child rankmq ARGUMENT...`, `child raw ORDER` or `child client ORDER` (JSON).

It ends with the process that started it. The broker's URL comes by the environment, where no list of
processes shows it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

# What is heavy is imported where it is needed: every agent imports this module again, as its main one.
__all__ = ["main"]

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """The process, from its first line to its exit code."""
    what, *arguments = sys.argv[1:]
    # A producer would wait for its answers if it were only told to stop, and has nothing to put in order.
    _end_with_parent(signal.SIGTERM if what == "rankmq" else signal.SIGKILL)
    if what == "rankmq":
        sys.argv[1:] = arguments
        from ..main import main as rankmq

        rankmq()
    else:
        _produce(what, arguments[0])


def _produce(what: str, order: str) -> None:
    import asyncio
    import json

    from ...engine import logs
    from ...engine.settings import load_settings
    from .raw_producer import Order, RawProducer

    logs.configure("producer", form="json")
    settings, ordered = load_settings(), Order(**json.loads(order))
    if what == "raw":

        async def run() -> None:
            await RawProducer(ordered, settings.address()).run()

        asyncio.run(run())
    else:
        from .client_producer import ClientProducer

        ClientProducer(ordered, settings.address().url()).run()


def _end_with_parent(number: signal.Signals) -> None:
    if sys.platform == "linux":
        parent = os.getppid()
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
        if os.getppid() != parent:
            sys.exit(1)


if __name__ == "__main__":
    main()
