"""The graphs of a rank in MindSpore: the one module that imports it.

Importing this module imports MindSpore, behind a library of ours, and does nothing else: no device is touched and no
thread or context made, so that a process may import it once and fork the ranks.
"""

from __future__ import annotations

import functools
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

# MindSpore's C++ code reads this when it is imported, and writes to the terminal what it also says in its exceptions.
os.environ.setdefault("GLOG_v", "4")

from .collectives.calling_thread import take_over  # first: MindSpore's libraries are to find ours

# isort: split
import mindspore as ms
import numpy as np
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from mindspore.communication import init
from mindspore.train import mind_ir_pb2

from ..schemas.errors import CollectiveFailed, GraphFailed, GroupError, ModelError
from ..schemas.messages import GraphInfo, GraphPlan, TensorSpec
from ..schemas.tensors import BFLOAT16, numpy_dtype
from .collectives import CollectivesUnavailable, SharedGroup, library
from .collectives.rewrite import exported_size, rewrite
from .collectives.self_test import self_test
from .executor import check_inputs, own, plan_for, read_model_file, with_batch
from .joining import be_scheduler, join_hccl, join_scheduler, join_store
from .mindir import GraphFacts, graph_info, read_graph
from .mindspore_errors import MINDSPORE_ERRORS, first_line, model_errors
from .rendezvous import free_port
from .rewriting import Rewriting
from .shared_parameters import share
from .warming import warm_inputs, with_outputs

__all__ = ["MindSporeExecutor", "free_port", "run_scheduler", "scheduler_needed"]

log = logging.getLogger(__name__)

Array = np.ndarray[Any, Any]

_WORLD_GROUPS = {"mccl": "mccl_world_group", "hccl": "hccl_world_group"}
_SCALARS = {float: "float32", int: "int64", bool: "bool"}  # what numbers are in a graph, if it does not say


class MindSporeExecutor:
    """Runs MINDIR graphs; see `Executor`.

    Args:
        threads: how many threads an operator may use; None leaves it to MindSpore, which takes every core. See
            `operator_threads`.
    """

    def __init__(self, threads: int | None = None) -> None:
        self._threads = threads
        self._files: tuple[Path, ...] = ()
        self._plans: tuple[GraphPlan, ...] = ()
        self._shared: tuple[str, ...] = ()
        self._shared_group: SharedGroup | None = None
        self._rewriting: Rewriting | None = None
        self._infos: tuple[GraphInfo, ...] = ()
        self._groups: frozenset[str] = frozenset()
        self._cells: list[Any] = []
        self._compiled: dict[tuple[int, int], Any] = {}  # by subgraph and number of rows: the same, for just these
        self._failed: set[int] = set()
        self._joined = ""
        self._store: Any = None

    @property
    def device(self) -> str:
        """See `Executor.device`."""
        return str(ms.get_context("device_target"))

    def inspect(self, files: Sequence[Path]) -> tuple[GraphInfo, ...]:
        """See `Executor.inspect`."""
        return tuple(_read(file)[0] for file in files)

    def why_not_shared_memory(self, files: Sequence[Path]) -> str:
        """See `Executor.why_not_shared_memory`. Compiles the library, if that has not been done."""
        if self.device != "CPU":
            return f"the graphs run on {self.device}"
        try:
            path = library()
            ms.set_context(mode=ms.GRAPH_MODE)
            self_test(ms, path, parse=_parse, first_line=first_line)
            for file in files:
                model = _parse(read_model_file(file)[0])
                rewrite(model, path, exported_size(model))
        except CollectivesUnavailable as error:
            return error.message
        return ""

    def begin_step(self, step: int) -> None:
        """See `Executor.begin_step`."""
        if self._shared_group is not None:
            self._shared_group.begin_step(step)

    def abort(self) -> None:
        """See `Executor.abort`. MindSpore's own communication cannot be told."""
        if self._shared_group is not None:
            self._shared_group.abort()

    def load(self, files: Sequence[Path], plans: Sequence[GraphPlan], shared_parameters: Sequence[str] = ()) -> None:
        """See `Executor.load`. The graphs themselves wait for `warm_up`: Ascend's group must be there before them."""
        if (self._files, self._plans, self._shared) == (tuple(files), tuple(plans), tuple(shared_parameters)):
            return
        read = [_read(file) for file in files]
        self._infos = tuple(with_batch(info, plan_for(plans, number)) for number, (info, _) in enumerate(read))
        self._groups = frozenset(group for _, facts in read for group in facts.groups)
        self._files, self._plans, self._shared = tuple(files), tuple(plans), tuple(shared_parameters)
        self._forget_cells()

    def _forget_cells(self) -> None:
        self._cells, self._compiled, self._failed = [], {}, set()

    def open_group(
        self,
        communication: str,
        rank: int,
        size: int,
        address: str = "",
        rank_table: Mapping[str, Any] | None = None,
        timeout: float = 90.0,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        """See `Executor.open_group`. A process can be part of one group in its life, unless it is through shm."""
        if communication == "shm":
            self._open_shared(rank, size, address, timeout, stopped)
            return
        if communication not in ("none", *_WORLD_GROUPS):
            raise GroupError(f"communication is 'none', 'shm', 'mccl' or 'hccl', not {communication!r}")
        foreign = self._groups - {_WORLD_GROUPS.get(communication, "")}
        if foreign:  # MindSpore would end the process with a segmentation fault
            known = _WORLD_GROUPS.get(communication)
            advice = f"export it with group={known!r}" if known else "declare communication='auto'"
            raise ModelError(
                f"a graph talks to the group {', '.join(sorted(foreign))}, which there is not with "
                f"communication={communication!r}: {advice}"
            )
        if communication == "none":
            return
        if self._joined:
            raise GroupError("this process joined a group before, and MindSpore can do so only once: start it anew")
        self._joined = communication
        began = time.monotonic()
        if communication == "hccl":
            join_hccl(init, rank, size, rank_table)
        elif scheduler_needed():
            join_scheduler(init, rank, size, address, timeout)
        else:
            self._store = _join_store(rank, size, address, timeout)
        log.info("rank %d of %d joined through %s in %.2f s", rank, size, communication, time.monotonic() - began)

    def _open_shared(self, rank: int, size: int, name: str, timeout: float, stopped: Callable[[], bool]) -> None:
        path = library()
        if self._shared_group is None:
            self._shared_group = SharedGroup(path)
        if self._rewriting != Rewriting(path, size):
            self._rewriting = Rewriting(path, size)
            self._forget_cells()
        self._shared_group.open(name, rank, size, timeout, stopped)

    def warm_up(self) -> tuple[GraphInfo, ...]:
        """See `Executor.warm_up`."""
        if not self._cells:
            ms.set_context(mode=ms.GRAPH_MODE)
            if self._threads is not None and self.device == "CPU":
                _limit_threads(self._threads)
            self._cells = [
                _cell(file, info, self._rewriting) for file, info in zip(self._files, self._infos, strict=True)
            ]
            for number in range(1, len(self._cells)):
                self._share(number, range(number))
        self._infos = tuple(self._warmed(number) for number in range(len(self._cells)))
        for number, plan in enumerate(self._plans):
            for rows in plan.compiled_rows if plan.stacked else ():
                self._compile(number, rows)
        return self._infos

    def _compile(self, subgraph: int, rows: int) -> None:
        """Compiles a graph for one number of rows: then nothing need be found out about shapes in a call."""
        if (subgraph, rows) not in self._compiled:
            self._make(subgraph, rows)
        with model_errors(self._files[subgraph]):
            self._call(subgraph, warm_inputs(self._info_of(subgraph, rows)))

    def _make(self, subgraph: int, rows: int) -> None:
        """The graph for one number of rows, over the same parameters; its first call compiles it."""
        file = self._files[subgraph]
        cell = _cell(file, self._info_of(subgraph, rows), self._rewriting)
        share(("*",), cell.get_parameters(), self._cells[subgraph].get_parameters(), file)
        self._compiled[subgraph, rows] = cell

    def _info_of(self, subgraph: int, rows: int) -> GraphInfo:
        return with_batch(self._infos[subgraph], self._plans[subgraph], rows)

    def _share(self, subgraph: int, others: Iterable[int]) -> None:
        """Has a graph that was not called yet use the parameters of others where they are to be the same."""
        owners = (it for number in others for it in self._cells[number].get_parameters())
        share(self._shared, self._cells[subgraph].get_parameters(), owners, self._files[subgraph])

    def _warmed(self, subgraph: int) -> GraphInfo:
        info, plan = self._infos[subgraph], plan_for(self._plans, subgraph)
        with model_errors(self._files[subgraph]):
            outputs = self._call(subgraph, warm_inputs(info))
        return with_outputs(info, plan, outputs)

    def run(self, subgraph: int, inputs: Sequence[Array]) -> list[Array]:
        """See `Executor.run`."""
        info = self._infos[subgraph]
        check_inputs(info, inputs)
        if subgraph in self._failed:
            # A graph in which an operator failed refuses all further calls; a new one with its parameters does not.
            self._cells[subgraph] = _cell(self._files[subgraph], info, self._rewriting, self._cells[subgraph])
            self._failed.discard(subgraph)
            self._share(subgraph, (number for number in range(len(self._cells)) if number != subgraph))
            for number, rows in list(self._compiled):
                if number == subgraph:  # the other ranks, where nothing failed, have theirs: both kinds are not mixed
                    self._make(subgraph, rows)
        try:
            return self._call(subgraph, inputs)
        except MINDSPORE_ERRORS as error:
            self._failed.add(subgraph)
            raise GraphFailed(f"{info.file}: {first_line(error)}") from error

    def _call(self, subgraph: int, inputs: Sequence[Array]) -> list[Array]:
        # A tensor aliases its array, which must be aligned and in C order: a view of a message need not be either.
        arrays = [np.require(it, None, ("C_CONTIGUOUS", "ALIGNED")) for it in inputs]
        cell = self._cells[subgraph]
        if self._compiled:
            cell = self._compiled.get((subgraph, self._rows_of(subgraph, arrays)), cell)
        outputs = cell(*(_to_tensor(array) for array in arrays))
        results = [own(output, arrays) for output in _to_arrays(outputs, self._infos[subgraph].outputs)]
        fault = self._shared_group.fault() if self._shared_group is not None else None
        if fault is not None:
            raise CollectiveFailed(fault.message, fault.rank)
        return results

    def _rows_of(self, subgraph: int, arrays: Sequence[Array]) -> int:
        plan = plan_for(self._plans, subgraph)
        stacked = (it for index, it in enumerate(arrays) if plan.stacked and index not in plan.unstacked_inputs)
        return next((it.shape[0] for it in stacked), 0)

    def close(self) -> None:
        """See `Executor.close`."""
        self._forget_cells()
        self._store = None
        if self._shared_group is not None:
            self._shared_group.close()


# ------------------------------------------------------------------------------------------------------- model files


def _parse(content: bytes) -> Any:
    model = mind_ir_pb2.ModelProto()
    model.ParseFromString(content)
    return model


def _read(file: Path) -> tuple[GraphInfo, GraphFacts]:
    content, digest = read_model_file(file)
    try:
        model = _parse(content)
    except DecodeError:
        raise ModelError(f"the model file {file} is not a MINDIR file, or is cut off") from None
    facts = read_graph(model, str(file))
    return graph_info(facts, file, digest), facts


@functools.cache
def _limit_threads(count: int) -> None:
    if count == 1 and take_over(ms):
        return
    ms.device_context.cpu.op_tuning.threads_num(count)  # once in the life of a process; more is refused


def _cell(file: Path, info: GraphInfo, rewriting: Rewriting | None, previous: Any = None) -> Any:
    """The graph of a file, to be called as `info` says.

    Args:
        file: the model file.
        info: its inputs, with -1 for what may be of any size.
        rewriting: where its collectives go through shared memory.
        previous: the same graph, whose parameters it is to have.
    """
    parameters = None if previous is None else {it.name: it for it in previous.get_parameters()}
    with model_errors(file), nullcontext(file) if rewriting is None else rewriting.source(file, _parse) as source:
        cell = ms.nn.GraphCell(ms.load(str(source)), params_init=parameters)
        if any(-1 in spec.shape for spec in info.inputs):  # then one compile serves every size
            cell.set_inputs(*(_placeholder(spec) for spec in info.inputs))
    return cell


# ----------------------------------------------------------------------------------------------------------- tensors


def _placeholder(spec: TensorSpec) -> Any:
    kind = getattr(ms, "bool_" if spec.dtype == "bool" else spec.dtype)
    return ms.Tensor(shape=[None if size < 0 else size for size in spec.shape], dtype=kind)


def _to_tensor(array: Array) -> Any:
    if array.dtype == BFLOAT16:  # numpy has no such numbers, and MindSpore takes ours for records
        return ms.Tensor.convert_bytes_to_tensor(array.tobytes(), array.shape, ms.bfloat16)
    return ms.Tensor.from_numpy(array)


def _to_arrays(outputs: Any, specs: Sequence[TensorSpec]) -> list[Array]:
    """What a graph has given as arrays, tuples within tuples laid flat.

    Args:
        outputs: as MindSpore gives them: scalars as numbers of Python's, which have lost their dtype.
        specs: what the graph gives, or nothing that is of use.
    """
    values = list(_flat(outputs))
    known: Sequence[TensorSpec | None] = specs if len(specs) == len(values) else [None] * len(values)
    return [_to_array(value, spec) for value, spec in zip(values, known, strict=True)]


def _to_array(value: Any, spec: TensorSpec | None) -> Array:
    if not isinstance(value, ms.Tensor):
        kind = _SCALARS.get(type(value)) if spec is None else spec.dtype
        return np.asarray(value, None if kind is None else numpy_dtype(kind))
    if value.dtype == ms.bfloat16:
        return np.frombuffer(value.get_bytes(), BFLOAT16).reshape(value.shape)
    array: Array = value.asnumpy()
    return array


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, tuple | list):
        for part in value:
            yield from _flat(part)
    else:
        yield value


# ----------------------------------------------------------------------------------------------------- communication


def scheduler_needed() -> bool:
    """Whether mccl needs a scheduler process (`run_scheduler`) beside the ranks.

    Newer versions of MindSpore have a store through which ranks find each other: rank 0 holds it, and no scheduler is
    needed. Eight ranks are joined in 0.3 s then, which takes 8 s with a scheduler.
    """
    try:
        from mindspore.communication.management import _init_with_store  # noqa: F401
        from mindspore.mint.distributed import TCPStore  # noqa: F401
    except ImportError:
        return True
    return False


def run_scheduler(host: str, port: int, size: int) -> None:
    """Be the scheduler of a group until the process is ended; returns at once where none is needed.

    Args:
        host: address to listen on.
        port: likewise.
        size: how many ranks will come.
    """
    if scheduler_needed():
        be_scheduler(init, host, port, size)


def _join_store(rank: int, size: int, address: str, timeout: float) -> Any:
    from mindspore.communication.management import _init_with_store
    from mindspore.mint.distributed import TCPStore

    return join_store(TCPStore, _init_with_store, rank, size, address, timeout)
