"""What runs the graphs of a rank: the interface, and what its implementations share.

The order of calls in the life of an agent: `inspect` once, before it registers; then for every epoch `load`,
`open_group`, `warm_up`, and `run` for each step; `close` at the end. All of it happens on one thread, if possible the
process's main thread.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np

from ..schemas.errors import GraphFailed, ModelError
from ..schemas.messages import GraphInfo, GraphPlan, TensorSpec
from ..schemas.tensors import numpy_dtype

__all__ = ["Executor", "check_inputs", "operator_threads", "own", "plan_for", "read_model_file", "with_batch"]

Array = np.ndarray[Any, Any]


class Executor(Protocol):
    """Holds the graphs of one rank and runs them."""

    @property
    def device(self) -> str:
        """What the graphs run on: "CPU", "Ascend" or "GPU"."""

    def inspect(self, files: Sequence[Path]) -> tuple[GraphInfo, ...]:
        """Read model files without running anything: no device is touched, no other rank is needed.

        Args:
            files: the rank's model files, in the order of the subgraphs.

        Returns:
            A description per file, its shapes as the file has them.

        Raises:
            ModelError: a file is missing or unreadable, or takes or gives what cannot travel.
        """

    def why_not_shared_memory(self, files: Sequence[Path]) -> str:
        """Why these graphs could not talk to each other through shared memory: one line; "" if they could."""

    def begin_step(self, step: int) -> None:
        """Say which step the calls that follow are part of, so that ranks that are in different ones find out."""

    def abort(self) -> None:
        """Have what waits for other ranks give up, as far as it can; may be called from another thread at any time."""

    def load(self, files: Sequence[Path], plans: Sequence[GraphPlan], shared_parameters: Sequence[str] = ()) -> None:
        """Get ready to hold these graphs. Calling it again with the same arguments keeps what is there.

        Args:
            files: as for `inspect`.
            plans: how each graph is to be run; where there is none, on its own shapes.
            shared_parameters: patterns of the names of parameters that are one and the same in all graphs.

        Raises:
            ModelError: as `inspect`; or a graph's inputs cannot be what its plan says.
        """

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
        """Join the group of ranks whose graphs talk to each other. Every rank calls it, and waits for the others.

        Args:
            communication: "none", "shm", "mccl" or "hccl".
            rank: this rank's number.
            size: how many ranks there are.
            address: where the ranks find each other: for mccl host:port that rank 0 offers, for shm a segment's name.
            rank_table: for hccl: the table in its 1.0 form.
            timeout: seconds until the others must be there.
            stopped: asked again and again, as far as it can be, while this rank waits for the others: whether to give
                up. `abort` only ends what has begun.

        Raises:
            GroupError: a rank did not come in time, this one was told to give up, or the group cannot be made.
            AlreadyRunning: somebody else has the port.
            ModelError: a graph names a group that does not exist here.
        """

    def warm_up(self) -> tuple[GraphInfo, ...]:
        """Compile the graphs and call each once, on zeros: what is slow about a first call is over when it returns.

        In a group every rank must call it, since the graphs wait for each other.

        Returns:
            A description per graph, as it turned out: -1 stands for the batch.

        Raises:
            ModelError: a graph does not run.
        """

    def run(self, subgraph: int, inputs: Sequence[Array]) -> list[Array]:
        """Run a graph.

        Args:
            subgraph: its number.
            inputs: in the graph's order; may be read-only and need not be aligned. They are not kept.

        Returns:
            Its outputs in order. Each owns its memory: nothing that happens to the inputs or in a later call alters it.

        Raises:
            GraphFailed: the inputs do not fit, or the graph itself failed; one line.
            CollectiveFailed: the ranks could not talk to each other; until the next `open_group` they cannot.
        """

    def close(self) -> None:
        """Let go of everything; may be called more than once, and after an error."""


def operator_threads(wanted: int, ranks: int) -> int | None:
    """How many threads an operator may use.

    Args:
        wanted: by the settings; 0 leaves it to this function.
        ranks: how many there are on this host.

    Returns:
        1 where no rank has more than a core; None leaves it to MindSpore.
    """
    if wanted:
        return wanted
    return 1 if ranks >= len(os.sched_getaffinity(0)) else None


def read_model_file(path: Path) -> tuple[bytes, str]:
    """A model file's bytes and their SHA-256 digest, hexadecimal.

    Raises:
        ModelError: it is missing or may not be read.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise ModelError(f"the model file {path} is missing") from None
    except PermissionError:
        raise ModelError(f"the model file {path} may not be read by this user: chmod u+r {path}") from None
    except OSError as error:
        raise ModelError(f"the model file {path} cannot be read: {error.strerror or error}") from None
    return content, hashlib.sha256(content).hexdigest()


def plan_for(plans: Sequence[GraphPlan], subgraph: int) -> GraphPlan:
    """The plan of a subgraph; a graph without one is run on its own shapes."""
    return plans[subgraph] if subgraph < len(plans) else GraphPlan()


def with_batch(info: GraphInfo, plan: GraphPlan, rows: int = -1) -> GraphInfo:
    """What a graph takes when it is run as its plan says, with so many rows in every input that is stacked; -1: any.

    Raises:
        ModelError: an input that is to be stacked has no axis.
    """
    if not plan.stacked:
        return info
    inputs = []
    for index, spec in enumerate(info.inputs):
        if index not in plan.unstacked_inputs:
            if not spec.shape:
                raise ModelError(
                    f"{info.file}: input {spec.name} is a scalar and cannot carry a batch: "
                    "name it in without_batch_dim_inputs, or declare with_batch_dim=False"
                )
            spec = msgspec.structs.replace(spec, shape=(rows, *spec.shape[1:]))
        inputs.append(spec)
    return msgspec.structs.replace(info, inputs=tuple(inputs))


def check_inputs(info: GraphInfo, inputs: Sequence[Array]) -> None:
    """Check that arrays are what a graph takes.

    A graph that is called with other shapes may compile anew for them, or leave the other ranks waiting: it never is.

    Raises:
        GraphFailed: a wrong number of inputs, a wrong dtype or shape.
    """
    if len(inputs) != len(info.inputs):
        raise GraphFailed(f"{info.file} takes {len(info.inputs)} inputs, not {len(inputs)}")
    for spec, array in zip(info.inputs, inputs, strict=True):
        shape = array.shape
        fits = shape == spec.shape or (
            len(shape) == len(spec.shape)
            and all(size == wanted or wanted < 0 for size, wanted in zip(shape, spec.shape, strict=True))
        )
        if not fits or array.dtype != numpy_dtype(spec.dtype):
            raise GraphFailed(f"{info.file}: input {spec.name} must be {_shown(spec)}, not {array.dtype} {list(shape)}")


def own(output: Array, inputs: Sequence[Array]) -> Array:
    """An output as an array in C order that shares no memory with the inputs."""
    new = output.base is None and not any(output is array for array in inputs)
    if not new and any(np.may_share_memory(output, array) for array in inputs):
        return output.copy()
    return output if output.flags.c_contiguous else output.copy()


def _shown(spec: TensorSpec) -> str:
    return f"{spec.dtype} [{', '.join('any' if size < 0 else str(size) for size in spec.shape)}]"
