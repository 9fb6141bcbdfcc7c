"""The words of a servable configuration: methods, their stages, pipelines, and models of one rank.

They are MindSpore Serving's, of r1.3 (`call_preprocess`, `call_servable`, `call_postprocess`) and of r1.5 and later
(`declare_model`, `add_stage`); both make the same stages. They work while rankmq loads a `servable_config.py`.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from .caller import call_with, current_caller
from .declaration import Declaration, current_declaration
from .servable import MethodCall, Model, Pipeline, Subgraph, Where
from .trace import current_trace, trace_method

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
        inputs, outputs = _signature(function, output_names, "method", declaration, where)
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
        inputs, outputs = _signature(function, output_names, "pipeline", declaration, where)
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
        if not any(stage is model for model in current_declaration("register.add_stage").models):
            raise trace.error("this model was not declared in this file")
        if batch_size is not None:
            raise trace.error("batch_size is for functions; a model's is given where it is declared")
        count = None if stage.subgraphs is None else len(stage.subgraphs)
        if not _counts(subgraph, 0) or (count is not None and subgraph >= count):
            raise trace.error(f"the model {stage.name} has no subgraph {subgraph!r}; it has {_numbers(count)}")
        return trace.add_subgraph(stage.first_subgraph + subgraph, args, count=outputs_count, tag=tag or "")
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
        name=_model_name(subgraphs),
        rank_size=1,
        stage_size=1,
        with_batch_dim=with_batch_dim,
        without_batch_dim_inputs=without_batch_dim_inputs,
        batch_size=batch_size,
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


def _signature(
    function: Callable[..., Any], output_names: Any, kind: str, declaration: Declaration, where: Where
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The input and output names of a method or pipeline."""
    name = getattr(function, "__name__", "")
    if not callable(function) or isinstance(function, type) or not name.isidentifier():
        raise declaration.error(f"a {kind} is a function with a name, not {function!r}", where)
    if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(inspect.unwrap(function)):
        raise declaration.error(f"{kind} {name} must be a plain function, not async and without yield", where)
    inputs = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind not in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            raise declaration.error(f"{kind} {name}: {parameter}: its inputs are plain parameters, each a name", where)
        if parameter.default is not parameter.empty:
            raise declaration.error(f"{kind} {name}: input {parameter.name} has a default: a request names all", where)
        inputs.append(parameter.name)
    outputs = [output_names] if isinstance(output_names, str) else output_names
    if not isinstance(outputs, list | tuple) or not outputs or not all(isinstance(o, str) and o for o in outputs):
        raise declaration.error(f"{kind} {name}: output_names must be a list of names, not {output_names!r}", where)
    if len(set(outputs)) != len(outputs):
        raise declaration.error(f"{kind} {name}: output_names names an output twice: {output_names!r}", where)
    return tuple(inputs), tuple(outputs)


def _counts(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _numbers(count: int | None) -> str:
    return "none" if not count else "0" if count == 1 else f"0 to {count - 1}"


def _model_name(subgraphs: tuple[Subgraph, ...]) -> str:
    return ";".join(subgraph.file or "" for subgraph in subgraphs)
