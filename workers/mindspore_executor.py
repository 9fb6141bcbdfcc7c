"""The graphs of a rank in MindSpore: the one module that imports it.

Importing this module imports MindSpore and does nothing else: no device is touched and no thread or context made, so
that a process may import it once and fork the ranks.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import signal
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

# MindSpore's C++ code reads this when it is imported, and writes to the terminal what it also says in its exceptions.
os.environ.setdefault("GLOG_v", "4")

import mindspore as ms
import msgspec
import numpy as np
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from mindspore import communication
from mindspore.train import mind_ir_pb2

from ..engine.rank_table import parse_rank_table
from ..schemas.errors import CollectiveFailed, GraphFailed, GroupError, ModelError
from ..schemas.messages import GraphInfo, GraphPlan, TensorSpec
from ..schemas.tensors import BFLOAT16, dtype_name, numpy_dtype
from .collectives import CollectivesUnavailable, SharedGroup, library
from .collectives.rewrite import exported_size, rewrite
from .collectives.self_test import self_test
from .executor import check_inputs, own, plan_for, read_model_file, with_batch
from .mindir import GraphFacts, read_graph
from .rendezvous import await_server, check_free, free_port, gather_ranks, split_address, woken

__all__ = ["MindSporeExecutor", "free_port", "run_scheduler", "scheduler_needed"]

log = logging.getLogger(__name__)

Array = np.ndarray[Any, Any]

_WORLD_GROUPS = {"mccl": "mccl_world_group", "hccl": "hccl_world_group"}
_MINDSPORE_ERRORS = (RuntimeError, TypeError, ValueError)
_WARM_ROWS = 3  # the batch of a first call: a number that a graph hardly has among its own sizes
_COLLECTIVE_SECONDS = 120
_STORE_SECONDS = 1.0


class MindSporeExecutor:
    """Runs MINDIR graphs; see `Executor`.

    Args:
        threads: how many threads an operator may use; None leaves it to MindSpore, which takes every core. With
            several ranks on a host, its cores divided by the ranks keep them out of each other's way.
    """

    def __init__(self, threads: int | None = None) -> None:
        self._threads = threads
        self._files: tuple[Path, ...] = ()
        self._plans: tuple[GraphPlan, ...] = ()
        self._shared: tuple[str, ...] = ()
        self._shared_group: SharedGroup | None = None
        self._rewritten: tuple[Path, int] | None = None
        self._infos: tuple[GraphInfo, ...] = ()
        self._groups: frozenset[str] = frozenset()
        self._cells: list[Any] = []
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
            self_test(ms, path, parse=_parse, first_line=_first_line)
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
        self._cells, self._failed = [], set()

    def open_group(
        self,
        communication: str,
        rank: int,
        size: int,
        address: str = "",
        rank_table: Mapping[str, Any] | None = None,
        timeout: float = 90.0,
    ) -> None:
        """See `Executor.open_group`. A process can be part of one group in its life."""
        if communication == "shm":
            self._open_shared(rank, size, address, timeout)
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
            _join_hccl(rank, size, rank_table)
        elif scheduler_needed():
            _join_scheduler(rank, size, address, timeout)
        else:
            self._store = _join_store(rank, size, address, timeout)
        log.info("rank %d of %d joined through %s in %.2f s", rank, size, communication, time.monotonic() - began)

    def _open_shared(self, rank: int, size: int, name: str, timeout: float) -> None:
        path = library()
        if self._shared_group is None:
            self._shared_group = SharedGroup(path)
        if self._rewritten != (path, size):
            self._rewritten, self._cells = (path, size), []
        self._shared_group.open(name, rank, size, timeout)

    def warm_up(self) -> tuple[GraphInfo, ...]:
        """See `Executor.warm_up`."""
        if not self._cells:
            ms.set_context(mode=ms.GRAPH_MODE)
            if self._threads is not None and self.device == "CPU":
                _limit_threads(self._threads)
            self._cells = [
                _cell(file, info, self._rewritten) for file, info in zip(self._files, self._infos, strict=True)
            ]
            for number in range(1, len(self._cells)):
                self._share(number, range(number))
        self._infos = tuple(self._warmed(number) for number in range(len(self._cells)))
        return self._infos

    def _share(self, subgraph: int, others: Iterable[int]) -> None:
        """Has a graph that was not called yet use the parameters of others where they are to be the same."""
        known = {it.name: it for number in others for it in self._cells[number].get_parameters()}
        for parameter in self._cells[subgraph].get_parameters():
            if any(fnmatchcase(parameter.name, pattern) for pattern in self._shared):
                owner = known.get(parameter.name)
                if owner is not None:
                    _check_alike(self._files[subgraph], parameter, owner)
                    parameter.assign_value(owner)

    def _warmed(self, subgraph: int) -> GraphInfo:
        info, plan = self._infos[subgraph], plan_for(self._plans, subgraph)
        with _model_errors(self._files[subgraph]):
            outputs = self._call(subgraph, [_zeros(spec) for spec in info.inputs])
        return msgspec.structs.replace(info, outputs=tuple(_outputs(info, plan, outputs)))

    def run(self, subgraph: int, inputs: Sequence[Array]) -> list[Array]:
        """See `Executor.run`."""
        info = self._infos[subgraph]
        check_inputs(info, inputs)
        if subgraph in self._failed:
            # A graph in which an operator failed refuses all further calls; a new one with its parameters does not.
            self._cells[subgraph] = _cell(self._files[subgraph], info, self._rewritten, self._cells[subgraph])
            self._failed.discard(subgraph)
            self._share(subgraph, (number for number in range(len(self._cells)) if number != subgraph))
        try:
            return self._call(subgraph, inputs)
        except _MINDSPORE_ERRORS as error:
            self._failed.add(subgraph)
            raise GraphFailed(f"{info.file}: {_first_line(error)}") from error

    def _call(self, subgraph: int, inputs: Sequence[Array]) -> list[Array]:
        # A tensor aliases its array, which must be aligned and in C order: a view of a message need not be either.
        arrays = [np.require(it, None, ("C_CONTIGUOUS", "ALIGNED")) for it in inputs]
        outputs = self._cells[subgraph](*(_to_tensor(array) for array in arrays))
        results = [own(_to_array(output), arrays) for output in _flat(outputs)]
        fault = self._shared_group.fault() if self._shared_group is not None else None
        if fault is not None:
            raise CollectiveFailed(fault.message, fault.rank)
        return results

    def close(self) -> None:
        """See `Executor.close`."""
        self._cells = []
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
    if facts.data_files:  # a large model keeps its weights in files beside it
        parts = [digest, *(read_model_file(file.parent / name)[1] for name in facts.data_files)]
        digest = hashlib.sha256("".join(parts).encode()).hexdigest()
    info = GraphInfo(
        file=file.name, digest=digest, inputs=facts.inputs, outputs=facts.outputs, collectives=bool(facts.groups)
    )
    return info, facts


def _check_alike(file: Path, parameter: Any, owner: Any) -> None:
    if (parameter.shape, parameter.dtype) != (owner.shape, owner.dtype):
        raise ModelError(
            f"the model file {file}: parameter {parameter.name} is {parameter.dtype} {list(parameter.shape)}, to be "
            f"shared with one that is {owner.dtype} {list(owner.shape)}"
        )


@functools.cache
def _limit_threads(count: int) -> None:
    ms.device_context.cpu.op_tuning.threads_num(count)  # once in the life of a process; more is refused


def _cell(file: Path, info: GraphInfo, rewritten: tuple[Path, int] | None, previous: Any = None) -> Any:
    """The graph of a file, to be called as `info` says.

    Args:
        file: the model file.
        info: its inputs, with -1 for what may be of any size.
        rewritten: the library and the number of ranks, where its collectives go through shared memory.
        previous: the same graph, whose parameters it is to have.
    """
    parameters = None if previous is None else {it.name: it for it in previous.get_parameters()}
    with _model_errors(file), _as_rewritten(file, rewritten) as source:
        cell = ms.nn.GraphCell(ms.load(str(source)), params_init=parameters)
        if any(-1 in spec.shape for spec in info.inputs):  # then one compile serves every size
            cell.set_inputs(*(_placeholder(spec) for spec in info.inputs))
    return cell


@contextmanager
def _as_rewritten(file: Path, rewritten: tuple[Path, int] | None) -> Iterator[Path]:
    """The file to load: the model file, or for a while one beside it whose collectives go through shared memory."""
    if rewritten is None:
        yield file
        return
    model = _parse(read_model_file(file)[0])
    if not rewrite(model, *rewritten):
        yield file
        return
    with tempfile.TemporaryDirectory(prefix="rankmq-") as folder:
        changed = Path(folder) / file.name
        changed.write_bytes(model.SerializeToString())
        yield changed


@contextmanager
def _model_errors(file: Path) -> Iterator[None]:
    try:
        yield
    except _MINDSPORE_ERRORS as error:
        raise ModelError(f"the model file {file} does not run: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    """What MindSpore says, without its rulers, headings and call stacks."""
    for line in str(error).splitlines():
        text = line.strip().rpartition(" exception:")[2]
        if text and not text.startswith("-") and not text.startswith("mindspore/"):
            return text[:300]
    return type(error).__name__


def _outputs(info: GraphInfo, plan: GraphPlan, outputs: Sequence[Array]) -> Iterator[TensorSpec]:
    """What a graph gives, as its first call has shown: files leave out some of it."""
    in_file = info.outputs if len(info.outputs) == len(outputs) else ()
    for index, output in enumerate(outputs):
        shape = list(output.shape)
        if plan.stacked and shape and shape[0] == _WARM_ROWS:
            shape[0] = -1
        if in_file and len(in_file[index].shape) == len(shape):
            shape = [-1 if said < 0 else size for size, said in zip(shape, in_file[index].shape, strict=True)]
        yield TensorSpec(name=f"output{index}", dtype=dtype_name(output.dtype), shape=tuple(shape))


# ----------------------------------------------------------------------------------------------------------- tensors


def _placeholder(spec: TensorSpec) -> Any:
    kind = getattr(ms, "bool_" if spec.dtype == "bool" else spec.dtype)
    return ms.Tensor(shape=[None if size < 0 else size for size in spec.shape], dtype=kind)


def _zeros(spec: TensorSpec) -> Array:
    return np.zeros([_WARM_ROWS if size < 0 else size for size in spec.shape], numpy_dtype(spec.dtype))


def _to_tensor(array: Array) -> Any:
    if array.dtype == BFLOAT16:  # numpy has no such numbers, and MindSpore takes ours for records
        return ms.Tensor.convert_bytes_to_tensor(array.tobytes(), array.shape, ms.bfloat16)
    return ms.Tensor.from_numpy(array)


def _to_array(value: Any) -> Array:
    if not isinstance(value, ms.Tensor):
        return np.asarray(value)
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
    if not scheduler_needed():
        return
    _set_cluster("MS_SCHED", 0, size, host, port)
    communication.init("mccl")
    while True:
        signal.pause()


def _set_cluster(role: str, rank: int, size: int, host: str, port: int) -> None:
    os.environ.update(
        MS_ROLE=role,
        MS_NODE_ID=str(rank),
        MS_WORKER_NUM=str(size),
        MS_SCHED_HOST=host,
        MS_SCHED_PORT=str(port),
    )


def _join_scheduler(rank: int, size: int, address: str, timeout: float) -> None:
    host, port = split_address(address)
    os.environ.setdefault("MS_TOPO_TIMEOUT", str(max(1, int(timeout))))
    _set_cluster("MS_WORKER", rank, size, host, port)
    with _group_errors(rank, address):
        communication.init("mccl")


def _join_store(rank: int, size: int, address: str, timeout: float) -> Any:
    """Join through a store that rank 0 holds.

    The store's own waits keep Python's lock, which the thread that sends heartbeats needs: so the ranks wait for each
    other on our side, and call MindSpore when all are there.
    """
    from mindspore.communication.management import _init_with_store
    from mindspore.mint.distributed import TCPStore

    host, port = split_address(address)
    deadline = time.monotonic() + timeout
    # A rank may be long in a call while the others wait. Whoever ends an epoch ends its ranks, and needs no time-out.
    os.environ.setdefault("MS_CPU_COMM_OP_TIMEOUT", str(_COLLECTIVE_SECONDS))
    if rank == 0:
        check_free(host, port)
        deadline += _STORE_SECONDS  # its store must outlast the others' patience, or they only learn that it is gone
    else:
        await_server(host, port, deadline)
    patience = timedelta(seconds=timeout)
    with _group_errors(rank, address):
        store = TCPStore(host, port, size, is_master=rank == 0, timeout=patience, wait_for_workers=False)
        gather_ranks(store, rank, size, deadline)
        with woken():
            _init_with_store(backend="mccl", timeout=patience, world_size=size, rank=rank, store=store)
    return store


def _join_hccl(rank: int, size: int, rank_table: Mapping[str, Any] | None) -> None:
    """Join as MindSpore says for a start with a rank table. Written without an Ascend machine to try it on."""
    if not rank_table:
        raise GroupError("hccl needs a rank table: start the servable with rank_table_json_file")
    entry = parse_rank_table(rank_table).ranks[rank]
    with tempfile.NamedTemporaryFile("w", prefix="rank_table_", suffix=".json", delete=False) as file:
        json.dump(rank_table, file)
    os.environ.update(RANK_TABLE_FILE=file.name, RANK_ID=str(rank), RANK_SIZE=str(size), DEVICE_ID=str(entry.device_id))
    try:
        with _group_errors(rank, entry.host):
            communication.init("hccl")
    finally:
        Path(file.name).unlink(missing_ok=True)


@contextmanager
def _group_errors(rank: int, address: str) -> Iterator[None]:
    try:
        yield
    except _MINDSPORE_ERRORS as error:
        raise GroupError(f"rank {rank} cannot join the group at {address}: {_first_line(error)}") from error
