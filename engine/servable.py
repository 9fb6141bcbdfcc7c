"""A servable as data: what a configuration file said, once it is loaded and checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeAlias

from ..schemas.errors import ServableError, StageFailed
from .caller import Caller, call_with, current_caller, use_caller
from .layouts import FromRank, InputLayout, OutputLayout, Replicate
from .loop import Loop

__all__ = [
    "Caller",
    "Communication",
    "Constant",
    "FunctionStage",
    "InputRef",
    "Method",
    "MethodCall",
    "Model",
    "Pipeline",
    "Ref",
    "RepeatStage",
    "Servable",
    "Stage",
    "StageRef",
    "Subgraph",
    "SubgraphStage",
    "Where",
    "outputs_of",
    "use_caller",
]

Communication: TypeAlias = Literal["auto", "none", "shm", "mccl", "hccl"]


@dataclass(frozen=True, slots=True)
class Where:
    """A line of the configuration file, from 1."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class Subgraph:
    """One compiled graph of a model.

    Attributes:
        file: a file name, relative to the version folder, the servable's folder or its parent; `{rank}` in it stands
            for the rank. None: the model files are found by their place, or given at start.
        inputs: a layout per input; None: every rank gets every input whole.
        outputs: a layout per output; None: each is taken from the first rank of the last stage.
        compiled_rows: for which numbers of rows the ranks compile it by itself, besides once for any.
    """

    file: str | None = None
    inputs: tuple[InputLayout, ...] | None = None
    outputs: tuple[OutputLayout, ...] | None = None
    compiled_rows: tuple[int, ...] = ()

    def input_layout(self, index: int) -> InputLayout:
        """The layout of input `index`."""
        return Replicate() if self.inputs is None else self.inputs[index]

    def output_layout(self, index: int) -> OutputLayout:
        """The layout of output `index`."""
        return FromRank() if self.outputs is None else self.outputs[index]


@dataclass(frozen=True)
class Model:
    """A declared model: one or more subgraphs, held by a group of ranks.

    Attributes:
        name: for people: its files, or the servable's name.
        rank_size: how many ranks hold it.
        stage_size: into how many stages the ranks are divided; divides `rank_size`.
        with_batch_dim: the first axis of inputs and outputs is the batch.
        without_batch_dim_inputs: inputs that have no batch axis all the same (only with `with_batch_dim`).
        batch_size: rows of a batch at most, for a graph with a batch axis; None: as many as there are.
        max_wait: seconds that rows wait for others to fill a batch, where the ranks have nothing to do.
        subgraphs: in the order of their numbers; None: as many as there are model files.
        communication: how the ranks talk within a graph.
        first_subgraph: the servable-wide number of its first subgraph.
        slots: how many instances may keep state on the ranks at once; 0: it keeps none.
        shared_parameters: patterns of the names of parameters that are one and the same in all graphs of a rank.
        where: the line that declared it.
    """

    name: str
    rank_size: int
    stage_size: int
    with_batch_dim: bool = True
    without_batch_dim_inputs: tuple[int, ...] = ()
    batch_size: int | None = None
    max_wait: float = 0.0
    subgraphs: tuple[Subgraph, ...] | None = None
    communication: Communication = "auto"
    first_subgraph: int = 0
    slots: int = 0
    shared_parameters: tuple[str, ...] = ()
    where: Where | None = field(default=None, compare=False)

    @property
    def result_rank(self) -> int:
        """The first rank of the last stage: where an output comes from unless its layout says otherwise."""
        return (self.stage_size - 1) * (self.rank_size // self.stage_size)

    def call(self, *args: Any, subgraph: int = 0) -> Any:
        """Run a subgraph, from a function stage or a pipeline, and wait for its outputs.

        Args:
            args: the inputs of one instance; or one list (or tuple) of instances, each a list (or tuple) of inputs.
            subgraph: its number within this model.

        Returns:
            For one instance its output, or a tuple if there are several; for a list a tuple with a tuple per instance.

        Raises:
            ServableError: no request is being served here, or there is no such subgraph.
        """
        caller = current_caller("Model.call")
        if subgraph < 0 or (self.subgraphs is not None and subgraph >= len(self.subgraphs)):
            raise ServableError(f"Model.call(subgraph={subgraph}): the model {self.name} has no such subgraph")
        number = self.first_subgraph + subgraph
        if len(args) == 1 and isinstance(args[0], list | tuple):
            if not all(isinstance(instance, list | tuple) for instance in args[0]):
                raise ServableError(
                    "Model.call: give the inputs of one instance, call(x1, x2), or a list of instances, "
                    "call([[x1, x2], [x1, x2]])"
                )
            return tuple(caller.call_subgraph(number, tuple(instance)) for instance in args[0])
        return call_with(args, lambda inputs: caller.call_subgraph(number, inputs))


@dataclass(frozen=True, slots=True)
class InputRef:
    """An input of the method, by its place in `Method.input_names`."""

    index: int


@dataclass(frozen=True, slots=True)
class StageRef:
    """An output of an earlier stage, both by number from 0."""

    stage: int
    output: int


@dataclass(frozen=True, slots=True, eq=False)
class Constant:
    """A value that the configuration gave itself; an array is read-only."""

    value: Any


Ref: TypeAlias = InputRef | StageRef | Constant


@dataclass(frozen=True)
class FunctionStage:
    """A Python function of the servable.

    Attributes:
        function: called with the inputs of one instance, positional; or, with a `batch_size`, with one list of
            instances, each a tuple of inputs, and then returns or yields one result per instance, in order.
            A result is one value, or a tuple or list of `outputs_count` values.
        name: the function's.
        inputs: where its inputs come from.
        outputs_count: how many outputs it has.
        batch_size: None: one instance at a time; 0: as many as there are; else at most so many.
        where: the line that put it into the method.
        tag: a word of the configuration's author for it; "" if none.
    """

    function: Callable[..., Any]
    name: str
    inputs: tuple[Ref, ...]
    outputs_count: int
    batch_size: int | None
    where: Where
    tag: str = ""


@dataclass(frozen=True)
class SubgraphStage:
    """A call of a subgraph, by its servable-wide number."""

    subgraph: int
    inputs: tuple[Ref, ...]
    outputs_count: int
    where: Where
    tag: str = ""


@dataclass(frozen=True)
class RepeatStage:
    """A loop on the ranks over a subgraph, by its servable-wide number.

    Attributes:
        subgraph: its number.
        inputs: what the first turn is given.
        times: how many turns a row runs at most.
        at_most: the largest number that `times` may be.
        loop: what the turns have to do with each other.
        slice_turns: how many turns the ranks run before rows can join or leave the batch here.
        outputs_count: those that are collected of every turn, then those that are kept of the last.
        where: the line that put it into the method.
        tag: a word of the configuration's author for it; "" if none.
        stream: makes parts of the answer of what the loop has given so far; None: there are none.
        stream_inputs: what that function is given before it.
        must_stop: whether a row that its flag has not ended after `times` turns has failed.
    """

    subgraph: int
    inputs: tuple[Ref, ...]
    times: Ref
    at_most: int
    loop: Loop
    slice_turns: int
    outputs_count: int
    where: Where
    tag: str = ""
    stream: Callable[..., Any] | None = None
    stream_inputs: tuple[Ref, ...] = ()
    must_stop: bool = False


Stage: TypeAlias = FunctionStage | SubgraphStage | RepeatStage


@dataclass(frozen=True)
class Method:
    """A chain of stages; a stage's inputs come from the method's inputs and from earlier stages only."""

    name: str
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    stages: tuple[Stage, ...]
    outputs: tuple[Ref, ...]
    where: Where


@dataclass(frozen=True)
class Pipeline:
    """A Python function that calls methods; run it within `use_caller`, with one instance's inputs, positional."""

    name: str
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    function: Callable[..., Any]
    where: Where


@dataclass(frozen=True)
class MethodCall:
    """A `PipelineServable` of the configuration: a method that its pipelines may call; version 0 is the newest."""

    servable: str
    version: int
    method: str
    where: Where


@dataclass(frozen=True)
class Servable:
    """A named, versioned deployable.

    Attributes:
        name: its folder's.
        version: from 1.
        directory: the servable's folder (not its parent).
        file: the configuration file.
        models: as declared, their subgraphs numbered consecutively; none for a servable that only calls others.
        methods: by name.
        pipelines: by name; no name is both a method's and a pipeline's.
        calls: the methods that its pipelines may call.
        rank_size: of every model; 0 where none is declared.
        stage_size: of every model; 0 where none is declared.
        communication: of every model.
        model_files: per rank, per subgraph; None where they are not known here (the agents are elsewhere).
    """

    name: str
    version: int
    directory: Path
    file: Path
    models: tuple[Model, ...]
    methods: Mapping[str, Method]
    pipelines: Mapping[str, Pipeline]
    calls: tuple[MethodCall, ...]
    rank_size: int
    stage_size: int
    communication: Communication
    model_files: tuple[tuple[Path, ...], ...] | None

    @cached_property
    def slots(self) -> int:
        """How many instances may keep state on the ranks at once; 0: it keeps none."""
        return max((model.slots for model in self.models), default=0)

    @cached_property
    def shared_parameters(self) -> tuple[str, ...]:
        """Patterns of the names of parameters that are one and the same in all graphs of a rank."""
        return tuple(dict.fromkeys(pattern for model in self.models for pattern in model.shared_parameters))

    @cached_property
    def subgraph_count(self) -> int | None:
        """How many subgraphs there are; None where that is not known here."""
        counts = [None if model.subgraphs is None else len(model.subgraphs) for model in self.models]
        return None if None in counts else sum(count or 0 for count in counts)

    def model_of(self, subgraph: int) -> Model:
        """The model that a subgraph belongs to.

        Args:
            subgraph: the servable-wide number.

        Raises:
            ServableError: there is no such subgraph.
        """
        count = self.subgraph_count
        if subgraph < 0 or not self.models or (count is not None and subgraph >= count):
            raise ServableError(f"servable {self.name} has no subgraph {subgraph}")
        return next(model for model in reversed(self.models) if model.first_subgraph <= subgraph)

    def subgraph(self, subgraph: int) -> Subgraph:
        """What was declared for a subgraph; the defaults where nothing was.

        Args:
            subgraph: the servable-wide number.

        Raises:
            ServableError: there is no such subgraph.
        """
        model = self.model_of(subgraph)
        return Subgraph() if model.subgraphs is None else model.subgraphs[subgraph - model.first_subgraph]


def outputs_of(value: Any, count: int, what: str) -> tuple[Any, ...]:
    """What a function of the servable returned, as a tuple of its outputs.

    Args:
        value: one value, or a tuple or list of `count` values.
        count: how many outputs it should have.
        what: who returned it, for the error.

    Raises:
        StageFailed: a wrong number of outputs.
    """
    outputs = tuple(value) if isinstance(value, list | tuple) else (value,)
    if len(outputs) != count:
        raise StageFailed(f"{what} returned {len(outputs)} value(s) where {count} are declared")
    return outputs
