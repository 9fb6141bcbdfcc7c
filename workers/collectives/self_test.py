"""Whether the MindSpore that is installed runs graphs that were rewritten: the format of its files is its own."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np

from ...schemas.errors import CollectivesUnavailable, GroupError
from .group import SharedGroup
from .lock import held
from .rewrite import rewrite
from .segment import segment_name

__all__ = ["self_test"]

log = logging.getLogger(__name__)

_COLLECTIVES = 4
_WAIT_SECONDS = 60.0


def self_test(
    mindspore: Any,
    library: Path,
    *,
    parse: Callable[[bytes], Any],
    first_line: Callable[[BaseException], str] = str,
    again: bool = False,
) -> None:
    """Exports a graph with every collective, rewrites it, and runs it in a group of one.

    It takes a quarter of a second of a core, and is remembered beside the library: it is run once for every version
    of the two. Of processes that ask at once one runs it, and the others take its word, good or bad; who comes later
    tries again what has failed. No group may be open in this process, and MindSpore must be in graph mode.

    Args:
        mindspore: the module; nothing here imports it.
        library: the compiled library.
        parse: makes a ModelProto of a file's content.
        first_line: what is worth passing on of an error of MindSpore's.
        again: run it even if it has been.

    Raises:
        CollectivesUnavailable: the graph cannot be exported, rewritten or loaded, or gives a wrong result.
    """
    notes = _Notes(library, mindspore.__version__)
    if notes.passed and not again:
        return
    began = time.monotonic_ns()
    with ExitStack() as lock:
        with suppress(OSError):  # a folder of somebody else's, or who runs it hangs: then each runs it for itself
            lock.enter_context(held(notes.lock, _WAIT_SECONDS))
        if not again and notes.taken_since(began):
            return
        try:
            _run(mindspore, library, parse, first_line)
        except CollectivesUnavailable as error:
            notes.write_failure(error.message)
            raise
        notes.write_success()


class _Notes:
    """How the self-test went, beside the library."""

    def __init__(self, library: Path, version: str) -> None:
        self._passed, self._failed, self.lock = (
            library.with_suffix(f".mindspore-{version}.{word}") for word in ("passed", "failed", "lock")
        )

    @property
    def passed(self) -> bool:
        return self._passed.exists()

    def taken_since(self, moment: int) -> bool:
        """Whether it was run with success; raises what it failed with, if it was run after a moment and failed.

        Args:
            moment: nanoseconds on the monotonic clock, which is one for all processes of a host.
        """
        if self.passed:
            return True
        with suppress(OSError, ValueError):
            written, _, message = self._failed.read_text(encoding="utf-8").partition("\n")
            if moment < int(written) <= time.monotonic_ns():
                raise CollectivesUnavailable(message)
        return False

    def write_success(self) -> None:
        with suppress(OSError):
            self._passed.touch()
            self._failed.unlink(missing_ok=True)

    def write_failure(self, message: str) -> None:
        with suppress(OSError):
            self._failed.write_text(f"{time.monotonic_ns()}\n{message}", encoding="utf-8")


def _run(
    mindspore: Any, library: Path, parse: Callable[[bytes], Any], first_line: Callable[[BaseException], str]
) -> None:
    began = time.monotonic()
    group = SharedGroup(library, timeout=10.0)
    try:
        group.open(segment_name("self-test", 0), 0, 1, timeout=10.0)
        with tempfile.TemporaryDirectory(prefix="rankmq-") as folder:
            _compare(mindspore, parse, library, Path(folder) / "graph.mindir")
        fault = group.fault()
    except (RuntimeError, TypeError, ValueError, AttributeError, OSError) as error:
        raise CollectivesUnavailable(f"this MindSpore does not run them: {first_line(error)}") from error
    except GroupError as error:
        raise CollectivesUnavailable(error.message) from error
    finally:
        group.close()
    if fault is not None:
        raise CollectivesUnavailable(f"this MindSpore does not run them: {fault.message}")
    log.info("the self-test of the collectives took %.2f s", time.monotonic() - began)


def _compare(mindspore: Any, parse: Callable[[bytes], Any], library: Path, file: Path) -> None:
    given = np.arange(6, dtype=np.float32).reshape(2, 3)
    mindspore.export(_cell(mindspore), mindspore.Tensor(given), file_name=str(file), file_format="MINDIR")
    model = parse(file.read_bytes())
    found = rewrite(model, library, 1)
    if found != _COLLECTIVES:
        raise CollectivesUnavailable(
            f"{found} of {_COLLECTIVES} collectives were found in a graph: this MindSpore writes its files otherwise"
        )
    file.unlink()
    file.write_bytes(model.SerializeToString())
    outputs = mindspore.nn.GraphCell(mindspore.load(str(file)))(mindspore.Tensor(given + 1))
    # The graph negates before each collective.
    if not all(np.array_equal(output.asnumpy(), -(given + 1)) for output in outputs):
        raise CollectivesUnavailable("a graph gave a wrong result")


def _cell(mindspore: Any) -> Any:
    ops, group = mindspore.ops, "mccl_world_group"

    class Collectives(mindspore.nn.Cell):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.negate = ops.Neg()
            self.all_reduce = ops.AllReduce(group=group)
            self.all_gather = ops.AllGather(group=group)
            self.broadcast = ops.Broadcast(0, group=group)
            self.reduce_scatter = ops.ReduceScatter(group=group)
            for operator in (self.all_gather, self.reduce_scatter):
                operator.rank_size = 1
                operator.add_prim_attr("rank_size", 1)

        def construct(self, x):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
            y = self.negate(x)
            return self.all_reduce(y), self.all_gather(y), self.broadcast((y,))[0], self.reduce_scatter(y)

    return Collectives()
