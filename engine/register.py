"""The words of a servable configuration: methods, their stages, pipelines, and models of one rank.

They are MindSpore Serving's, of r1.3 (`call_preprocess`, `call_servable`, `call_postprocess`) and of r1.5 and later
(`declare_model`, `add_stage`); both make the same stages. They work while rankmq loads a `servable_config.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from .caller import call_with, current_caller, send_part_for_caller
from .declaration import current_declaration
from .loop import loop_of
from .servable import MethodCall, Model, Pipeline
from .signature import signature_of
from .trace import Symbol, Trace, current_trace, trace_method

__all__ = [
    "Model",
    "PipelineServable",
    "add_stage",
    "call_postprocess",
    "call_postprocess_pipeline",
    "call_preprocess",
    "call_preprocess_pipeline",
    "call_servable",
    "declare_model",
    "declare_servable",
    "register_method",
    "register_pipeline",
    "repeat",
    "send_part",
]

log = logging.getLogger(__name__)

_Function = TypeVar("_Function", bound=Callable[..., Any])


def register_method(output_names: str | Sequence[str]) -> Callable[[_Function], _Function]:
    """Decorate a function that chains stages: it becomes a method of the servable, under its own name.

    The function is called once, when the file is loaded; its parameters are the method's inputs.

    Args:
        output_names: a name per returned value.

    Raises:
        ServableError: the function is not a plain chain of stages, or a name is wrong or taken.
    """
    declaration = current_declaration("register.register_method")

    def register(function: _Function) -> _Function:
        where = declaration.here()
        inputs, outputs = signature_of(function, output_names, "method", declaration, where)
        declaration.add_entry(trace_method(function, inputs, outputs, declaration, where))
        return function

    return register


def register_pipeline(output_names: str | Sequence[str]) -> Callable[[_Function], _Function]:
    """Decorate a function that calls methods: it becomes a pipeline of the servable, under its own name.

    The function is plain Python and runs once per instance, when a request asks for it.

    Args:
        output_names: a name per returned value.

    Raises:
        ServableError: a name is wrong or taken, or the parameters are not plain.
    """
    declaration = current_declaration("register.register_pipeline")

    def register(function: _Function) -> _Function:
        where = declaration.here()
        inputs, outputs = signature_of(function, output_names, "pipeline", declaration, where)
        declaration.add_entry(Pipeline(function.__name__, inputs, outputs, function, where))
        return function

    return register


class PipelineServable:
    """A method, of this servable or another, that pipelines call with `run`.

    Args:
        servable_name: the servable's name.
        method: the name of a method (not of a pipeline).
        version_number: the servable's version; 0 is the newest.
    """

    def __init__(self, servable_name: str, method: str, version_number: int = 0) -> None:
        declaration = current_declaration("PipelineServable(...)")
        if not isinstance(servable_name, str) or not isinstance(method, str):
            raise declaration.error("PipelineServable(servable_name, method, version_number): the names are strings")
        if not isinstance(version_number, int) or isinstance(version_number, bool) or version_number < 0:
            raise declaration.error(
                f"version_number must be a whole number from 0 (the newest), not {version_number!r}"
            )
        self._call = MethodCall(servable_name, version_number, method, declaration.here())
        declaration.calls.append(self._call)

    def __repr__(self) -> str:
        call = self._call
        return f"PipelineServable({call.servable!r}, {call.method!r}, version_number={call.version})"

    def run(self, *args: Any) -> Any:
        """Call the method, and wait for its outputs.

        Args:
            args: the inputs of one instance; or one list, of the single inputs of several instances.

        Returns:
            For one instance its output, or a tuple if there are several; for a list a list with a tuple per instance.

        Raises:
            ServableError: no request is being served here.
        """
        caller, call = current_caller("PipelineServable.run"), self._call

        def run(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            return caller.call_method(call.servable, call.version, call.method, inputs)

        if len(args) == 1 and isinstance(args[0], list):
            return [run((value,)) for value in args[0]]
        return call_with(args, run)


def add_stage(
    stage: Callable[..., Any] | Model,
    *args: Any,
    subgraph: int = 0,
    outputs_count: int = 1,
    batch_size: int | None = None,
    tag: str | None = None,
) -> Any:
    """A stage of the method that is being registered.

    Args:
        stage: a Python function, or a declared model.
        args: what it is given: inputs of the method, results of earlier stages, or constants.
        subgraph: which of the model's subgraphs.
        outputs_count: how many outputs it has.
        batch_size: None: the function takes the inputs of one instance; 0, or a number: it takes a list of instances
            (as many as there are, or at most so many), each a tuple, and returns or yields a result per instance.
        tag: a word for it, of your own.

    Returns:
        The symbol of its output, or a tuple of them if there are several.

    Raises:
        ServableError: outside a method, or an argument that cannot be.
    """
    trace = current_trace("add_stage")
    if not _counts(outputs_count, 1):
        raise trace.error(f"outputs_count must be a whole number above 0, not {outputs_count!r}")
    if tag is not None and not isinstance(tag, str):
        raise trace.error(f"tag must be a string, not {tag!r}")
    if isinstance(stage, Model):
        if batch_size is not None:
            raise trace.error("batch_size is for functions; a model's is given where it is declared")
        return trace.add_subgraph(_number_of(stage, subgraph, trace), args, count=outputs_count, tag=tag or "")
    if not callable(stage):
        raise trace.error(f"a stage is a function or a declared model, not {stage!r}")
    if subgraph != 0:
        raise trace.error("subgraph is for models; this stage is a function")
    if batch_size is not None and not _counts(batch_size, 0):
        raise trace.error(f"batch_size must be a whole number from 0, or None, not {batch_size!r}")
    return trace.add_function(stage, args, count=outputs_count, batch_size=batch_size, tag=tag or "")


def call_preprocess(preprocess_fun: Callable[..., Any], *args: Any) -> Any:
    """A function stage with as many outputs as its result is unpacked into."""
    return _call_function("call_preprocess", preprocess_fun, args, None, "Preprocess")


def call_preprocess_pipeline(preprocess_fun: Callable[..., Any], *args: Any) -> Any:
    """A function stage that takes a list of instances, as `add_stage` with `batch_size=0`."""
    return _call_function("call_preprocess_pipeline", preprocess_fun, args, 0, "Preprocess")


def call_postprocess(postprocess_fun: Callable[..., Any], *args: Any) -> Any:
    """A function stage with as many outputs as its result is unpacked into."""
    return _call_function("call_postprocess", postprocess_fun, args, None, "Postprocess")


def call_postprocess_pipeline(postprocess_fun: Callable[..., Any], *args: Any) -> Any:
    """A function stage that takes a list of instances, as `add_stage` with `batch_size=0`."""
    return _call_function("call_postprocess_pipeline", postprocess_fun, args, 0, "Postprocess")


def call_servable(*args: Any, subgraph: int = 0) -> Any:
    """A call of a subgraph, with as many outputs as its result is unpacked into.

    Args:
        args: the graph's inputs.
        subgraph: its number within the servable: the place of its file among the model files.
    """
    trace = current_trace("call_servable")
    if not _counts(subgraph, 0):
        raise trace.error(f"subgraph must be a whole number from 0, not {subgraph!r}")
    return trace.add_subgraph(subgraph, args, count=None)


def repeat(
    *args: Any,
    times: Any = None,
    feed: Mapping[int | str, int | str],
    collect: int | str | Sequence[int | str] = (),
    last: int | str | Sequence[int | str] = (),
    until: int | str | None = None,
    at_most: int | None = None,
    subgraph: int = 0,
    slice_turns: int = 8,
    slice_seconds: float | None = None,
    tag: str | None = None,
    stream: Callable[..., Mapping[str, Any] | None] | None = None,
    stream_args: Sequence[Any] = (),
) -> Any:
    """A loop on the ranks: a subgraph is run again and again, each turn on what the turn before gave.

    The ranks feed their own outputs to their own inputs, a slice of turns at a time; only what comes of a slice crosses
    the broker. Rows of other requests that are in the same loop share the batch: they join it between slices, and leave
    it when they are done.

    With `times`, a row that runs all its turns gives what it has by then, as generated text that is cut. Without, its
    `until` has to end it, as an iteration that converges: if that takes more than `at_most` turns, it fails.

    Inputs and outputs of the graph are named by their name or by their place from 0; an input's place is that among
    `args`.

    Args:
        args: the graph's inputs in the first turn; before them a declared model, if `subgraph` counts within it.
        times: how many turns at most: a number, or an input of the method or a result of a stage; where that is 0, no
            turn is run. It may be left out where `until` ends each row.
        feed: by input, the output that it is given from the second turn on. What is not fed stays as it was. Every rank
            must have that output whole and the same (`all_equal` has it checked), or divided as the input is.
        collect: outputs that are kept of every turn: arrays with the turns along a new first axis.
        last: outputs that are kept of the last turn.
        until: an output, a bool or whole number a row: a row for which it is not zero is done with that turn.
        at_most: the largest `times` that a request may ask for, where they come with it; without `times`, how many
            turns a row may take to end (then `TurnsExhausted`).
        subgraph: its number.
        slice_turns: how many turns the ranks run at most before other rows can join; fewer, where they are slow.
        slice_seconds: about how long such a slice may take: with it, `slice_turns` may be large, for ranks that are
            quick, and newcomers do not wait for long all the same.
        tag: a word for it, of your own.
        stream: a function that makes a part of the answer, for requests that ask for parts: a dict of named outputs, as
            `send_part` takes them, or None for nothing now. It is called with `stream_args`, and then with all that the
            loop has given until now for one instance, in the order in which it gives it in the end, after a slice with
            which the instance was not done. It may be left out where slices come fast. What it raises is only logged.
        stream_args: inputs of the method, results of earlier stages, or constants.

    Returns:
        The symbols of what is collected, then of what is kept of the last turn: one, or a tuple of them.

    Raises:
        ServableError: outside a method, or an argument that cannot be.
    """
    trace = current_trace("repeat")
    model = args[0] if args and isinstance(args[0], Model) else None
    if model is not None:
        args, subgraph = args[1:], _number_of(model, subgraph, trace)
    elif not _counts(subgraph, 0):
        raise trace.error(f"subgraph must be a whole number from 0, not {subgraph!r}")
    if times is not None and not isinstance(times, Symbol) and not _counts(times, 1):
        raise trace.error(f"times must be a whole number above 0, or come with the request, not {times!r}")
    for word, value in (("at_most", 1 if at_most is None else at_most), ("slice_turns", slice_turns)):
        if not _counts(value, 1):
            raise trace.error(f"{word} must be a whole number above 0, not {value!r}")
    if tag is not None and not isinstance(tag, str):
        raise trace.error(f"tag must be a string, not {tag!r}")
    if stream is not None and (isinstance(stream, Model) or not callable(stream)):
        raise trace.error(f"stream is a function, not {stream!r}")
    if not isinstance(stream_args, list | tuple) or (stream_args and stream is None):
        raise trace.error(f"stream_args is a list of what the function stream is given, not {stream_args!r}")
    names = {"feed": feed, "until": until, "collect": collect, "last": last}
    loop = loop_of(trace.error, arguments=len(args), **names, slice_seconds=slice_seconds)
    return trace.add_repeat(
        subgraph,
        args,
        loop,
        times=times,
        at_most=at_most,
        slice_turns=slice_turns,
        tag=tag or "",
        stream=stream,
        stream_args=tuple(stream_args),
    )


def send_part(**outputs: Any) -> None:
    """Tell what there is of the instance's answer so far, where its request asked for parts; else nothing happens.

    For pipelines, and for functions of methods that take one instance at a time. Parts are previews: one may get lost,
    or a newer one be sent in its place. So give all that there is so far; the answer has to be whole without them.

    Args:
        outputs: by name arrays, numbers or text; the names need not be those of the answer's outputs.

    Raises:
        ServableError: no request is being served here.
        StageFailed: an output that cannot be sent, or the stage takes several instances at a time.
    """
    send_part_for_caller(outputs)


def declare_model(
    model_file: str | Sequence[str],
    model_format: str = "MindIR",
    with_batch_dim: bool = True,
    options: Any = None,
    without_batch_dim_inputs: int | Sequence[int] | None = None,
    context: Any = None,
    config_file: str | None = None,
    *,
    batch_size: int | None = None,
    max_wait: float = 0.0,
) -> Model:
    """Declare a model of one rank.

    Args:
        model_file: a file per subgraph, relative to the version folder, the servable's folder or its parent.
        model_format: "MindIR", in any case.
        with_batch_dim: the first axis of inputs and outputs is the batch.
        options: accepted for the sake of older files; has no effect here.
        without_batch_dim_inputs: numbers of inputs without a batch axis, where the others have one.
        context: as `options`.
        config_file: as `options`.
        batch_size: rows of a batch at most, for a model with a batch axis.
        max_wait: as in `distributed.declare_servable`.

    Returns:
        The model, for `add_stage` and `Model.call`.

    Raises:
        ServableError: a value that cannot be, or a format that is not served.
    """
    declaration = current_declaration("register.declare_model")
    files = [model_file] if isinstance(model_file, str) else model_file
    if not isinstance(files, list | tuple) or not files:
        raise declaration.error(f"the model's files must be a file name or a list of them, not {model_file!r}")
    subgraphs = tuple(declaration.subgraph(file, None, None) for file in files)
    if not isinstance(model_format, str) or model_format.lower() != "mindir":
        raise declaration.error(f"model_format {model_format!r} is not served: export the model as MindIR")
    for word, value in (("options", options), ("context", context), ("config_file", config_file)):
        if value is not None:
            log.warning("%s: %s of a model has no effect here", declaration.here(), word)
    return declaration.add_model(
        name=";".join(subgraph.file or "" for subgraph in subgraphs),
        rank_size=1,
        stage_size=1,
        with_batch_dim=with_batch_dim,
        without_batch_dim_inputs=without_batch_dim_inputs,
        batch_size=batch_size,
        max_wait=max_wait,
        subgraphs=subgraphs,
        communication="auto",
    )


def declare_servable(
    servable_file: str | Sequence[str],
    model_format: str = "MindIR",
    with_batch_dim: bool = True,
    options: Any = None,
    without_batch_dim_inputs: int | Sequence[int] | None = None,
) -> Model:
    """The older word for `declare_model`."""
    return declare_model(servable_file, model_format, with_batch_dim, options, without_batch_dim_inputs)


def _call_function(
    word: str, function: Callable[..., Any], args: tuple[Any, ...], batch_size: int | None, tag: str
) -> Any:
    trace = current_trace(word)
    if isinstance(function, Model) or not callable(function):
        raise trace.error(f"{word}: its first argument is a function, not {function!r}")
    return trace.add_function(function, args, count=None, batch_size=batch_size, tag=tag)


def _number_of(model: Model, subgraph: Any, trace: Trace) -> int:
    """The servable-wide number of a model's subgraph."""
    if not any(model is declared for declared in current_declaration("a declared model").models):
        raise trace.error("this model was not declared in this file")
    count = None if model.subgraphs is None else len(model.subgraphs)
    if not _counts(subgraph, 0) or (count is not None and subgraph >= count):
        raise trace.error(f"the model {model.name} has no subgraph {subgraph!r}; it has {_numbers(count)}")
    return model.first_subgraph + int(subgraph)


def _counts(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _numbers(count: int | None) -> str:
    return "none" if not count else "0" if count == 1 else f"0 to {count - 1}"
