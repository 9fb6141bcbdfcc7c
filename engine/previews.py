"""What a servable's own function makes of a loop's turns so far, to be told before the loop is done."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from ..schemas.errors import RankmqError
from ..schemas.tensors import Tensor
from .parts import outputs_of_part
from .run_ports import RunPorts
from .servable import RepeatStage

__all__ = ["Preview"]

log = logging.getLogger(__name__)


class Preview:
    """The parts of one row's answer while it is in a loop.

    The function runs on a thread, once at a time for the row; of what comes meanwhile only the newest is shown then.

    Args:
        ports: to the threads.
        stage: the loop.
        arguments: what the function is given before what was collected.
        send: where its parts go; called on the loop.
    """

    def __init__(
        self,
        ports: RunPorts,
        stage: RepeatStage,
        arguments: Sequence[Any],
        send: Callable[[Mapping[str, Tensor]], None],
    ) -> None:
        self._ports = ports
        self._stage = stage
        self._arguments = tuple(arguments)
        self._send = send
        self._running = False
        self._newest: tuple[Any, ...] | None = None
        self._ended = False

    def show(self, values: tuple[Any, ...]) -> None:
        """There is more.

        Args:
            values: all that the loop has given for the row until now.
        """
        if self._running:
            self._newest = values
            return
        self._running = True
        self._ports.in_pool(partial(_made_of, self._stage, (*self._arguments, *values)), self._made)

    def end(self) -> None:
        """The row is done: what it gives in the end is told with it."""
        self._ended = True
        self._newest = None

    def _made(self, outputs: dict[str, Tensor] | None) -> None:
        self._running = False
        if self._ended:
            return
        if outputs is not None:
            self._send(outputs)
        if self._newest is not None:
            values, self._newest = self._newest, None
            self.show(values)


def _made_of(stage: RepeatStage, values: tuple[Any, ...]) -> dict[str, Tensor] | None:
    """A preview is no part of the result: what is wrong with it is logged, and the loop goes on."""
    if stage.stream is None:
        return None
    try:
        given = stage.stream(*values)
        return None if given is None else outputs_of_part(given)
    except RankmqError as error:
        log.warning("%s: stream: %s", stage.where, error.message)
    except Exception:  # foreign code
        log.warning("%s: stream raised", stage.where, exc_info=True)
    except BaseException:  # even sys.exit() in a servable must not end a thread of ours
        log.error("%s: stream raised", stage.where, exc_info=True)
    return None
