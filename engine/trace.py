"""A method's function is run once, when its file is loaded, with symbols for values; what it did is kept as data."""

from __future__ import annotations

import dataclasses
import dis
import inspect
import sys
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from types import FrameType
from typing import Any, NoReturn

import numpy as np

from ..schemas.errors import ServableError
from .declaration import Declaration
from .loop import Loop
from .servable import Constant, FunctionStage, InputRef, Method, Ref, RepeatStage, Stage, StageRef, SubgraphStage, Where

__all__ = ["Symbol", "Trace", "current_trace", "trace_method"]

_ADVICE = "a method only passes values from stage to stage; put this into a function of its own, called as a stage"
_MOST_TURNS = 1_000_000
"""Of a loop that every request runs: more are an oversight, and would hold the ranks for minutes."""

_RETURNS = ("RETURN_VALUE", "RETURN_CONST")


class _Draft:
    """A stage whose number of outputs may not be said yet (`count` is None)."""

    __slots__ = ("count", "number", "stage")

    def __init__(self, number: int, stage: Stage, count: int | None) -> None:
        self.number = number
        self.stage = stage
        self.count = count


class Symbol:
    """Stands for a value of a request: an input of the method (no draft) or an output of a stage.

    With `index` None it is the whole result of a stage whose number of outputs was not said: unpacked
    (`a, b = register.call_preprocess(f, x)`) it has as many as it is unpacked into, otherwise one.
    """

    __slots__ = ("_draft", "_index", "_label", "_trace")

    def __init__(self, trace: Trace, draft: _Draft | None, index: int | None, label: str) -> None:
        self._trace = trace
        self._draft = draft
        self._index = index
        self._label = label

    def __repr__(self) -> str:
        return f"<{self._label}>"

    def __iter__(self) -> Iterator[Symbol]:
        if self._draft is None or self._index is not None:
            self._refuse("it is one value, not to be unpacked or looped over (add_stage says several: outputs_count=2)")
        count = _unpacked_into(sys._getframe(1))
        if count is None:
            self._refuse("it can be unpacked into names (a, b = ...), not looped over or spread")
        if self._draft.count not in (None, count):
            self._refuse(f"it is used as {self._draft.count} value(s) elsewhere and unpacked into {count} here")
        self._draft.count = count
        return iter(self._elements(count))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        self._refuse(f"its .{name} is not known when the file is loaded: {_ADVICE}")

    def _elements(self, count: int) -> tuple[Symbol, ...]:
        return tuple(Symbol(self._trace, self._draft, i, f"{self._label}, output {i}") for i in range(count))

    def _refuse(self, why: str) -> NoReturn:
        raise self._trace.error(f"{self._label}: {why}")


def _refusing(operator: str) -> Callable[..., Any]:
    def refuse(self: Symbol, *_: Any, **__: Any) -> Any:
        self._refuse(f"{operator} on it cannot be done when the file is loaded: {_ADVICE}")

    return refuse


_ARITHMETIC = "add sub mul matmul truediv floordiv mod divmod pow lshift rshift and xor or"
_OTHERS = (
    "lt le eq ne gt ge neg pos abs invert bool len getitem setitem delitem contains call float int complex index "
    "round trunc floor ceil next reversed enter exit await aiter array array_ufunc array_function"
)
for _name in [f"{side}{name}" for name in _ARITHMETIC.split() for side in ("", "r", "i")] + _OTHERS.split():
    setattr(Symbol, f"__{_name}__", _refusing(f"__{_name}__"))
Symbol.__hash__ = object.__hash__  # type: ignore[method-assign]  # equality is refused, identity is not


class Trace:
    """The stages that a method's function has asked for so far."""

    def __init__(self, declaration: Declaration, name: str, where: Where) -> None:
        self._declaration = declaration
        self._name = name
        self._where = where
        self._drafts: list[_Draft] = []

    def error(self, message: str, where: Where | None = None) -> ServableError:
        """The error for `message` in this method."""
        return self._declaration.error(f"method {self._name}: {message}", where)

    def add_function(
        self, function: Any, args: tuple[Any, ...], *, count: int | None, batch_size: int | None, tag: str
    ) -> Symbol | tuple[Symbol, ...]:
        """Add a function stage; `count` None: as many outputs as its result is unpacked into."""
        name = getattr(function, "__name__", type(function).__name__)
        self._check_function(function, name, len(args), batch_size)
        inputs = tuple(self._ref(value) for value in args)
        where = self._declaration.here()
        return self._add(FunctionStage(function, name, inputs, count or 1, batch_size, where, tag), count, name)

    def add_subgraph(
        self, subgraph: int, args: tuple[Any, ...], *, count: int | None, tag: str = ""
    ) -> Symbol | tuple[Symbol, ...]:
        """Add a call of a subgraph (servable-wide number)."""
        inputs = self._graph_inputs(subgraph, args)
        stage = SubgraphStage(subgraph, inputs, count or 1, self._declaration.here(), tag)
        return self._add(stage, count, f"subgraph {subgraph}")

    def add_repeat(
        self,
        subgraph: int,
        args: tuple[Any, ...],
        loop: Loop,
        *,
        times: Any,
        at_most: int | None,
        slice_turns: int,
        tag: str = "",
        stream: Callable[..., Any] | None = None,
        stream_args: tuple[Any, ...] = (),
    ) -> Symbol | tuple[Symbol, ...]:
        """Add a loop over a subgraph (servable-wide number).

        `times` is a number; a value of the request; or None, where each row's flag has to end it.
        """
        most, must_stop = self._most_turns(loop, times, at_most), times is None
        inputs, count = self._graph_inputs(subgraph, args), len(loop.collect) + len(loop.last)
        if stream is not None:
            name = getattr(stream, "__name__", type(stream).__name__)
            self._check_function(stream, name, len(stream_args) + count, None)
        where, shown = self._declaration.here(), tuple(self._ref(value) for value in stream_args)
        turns = self._ref(most if must_stop else times)
        stage = RepeatStage(
            subgraph, inputs, turns, most, loop, slice_turns, count, where, tag, stream, shown, must_stop
        )
        return self._add(stage, count, f"subgraph {subgraph}, repeated")

    def _most_turns(self, loop: Loop, times: Any, at_most: int | None) -> int:
        """How many turns a row of a loop may ever run."""
        if isinstance(times, Symbol):
            if at_most is None:
                raise self.error("times comes with the request: say what it may be at most (at_most=)")
            return at_most
        if times is None:
            if loop.until is None:
                raise self.error("it would never end: say how many turns it runs (times=), or what ends it (until=)")
            if at_most is None:
                raise self.error("it has no times: say how many turns it may take until its flag is set (at_most=)")
            if at_most > _MOST_TURNS:
                raise self.error(f"at_most of a loop without times must be up to {_MOST_TURNS}, not {at_most}")
            return at_most
        if at_most is not None:
            raise self.error("at_most is for times that come with the request, and for loops without times")
        if times > _MOST_TURNS:
            raise self.error(
                f"times must be up to {_MOST_TURNS}, not {times}: where it may be more, let it come with the request "
                "(at_most=)"
            )
        return int(times)

    def _graph_inputs(self, subgraph: int, args: tuple[Any, ...]) -> tuple[Ref, ...]:
        for value in args:
            if not isinstance(value, Symbol | np.ndarray | np.generic):
                raise self.error(
                    f"subgraph {subgraph} is given {value!r}: give it an array, or a number with a dtype "
                    "(such as np.float32(1))"
                )
        return tuple(self._ref(value) for value in args)

    def run(self, function: Callable[..., Any], input_names: tuple[str, ...], output_names: tuple[str, ...]) -> Method:
        """Run the method's function on symbols, and make data of what it did."""
        symbols = [Symbol(self, None, index, f"input {name}") for index, name in enumerate(input_names)]
        token = _TRACE.set(self)
        try:
            returned = function(*symbols)
        except ServableError:
            raise
        except Exception as error:
            raise self._declaration.failed(error, f"method {self._name}: ") from error
        finally:
            _TRACE.reset(token)
        outputs = self._outputs(returned, len(output_names), _return_line(function) or self._where)
        stages = tuple(dataclasses.replace(draft.stage, outputs_count=draft.count or 1) for draft in self._drafts)
        return Method(self._name, input_names, output_names, stages, outputs, self._where)

    def _add(self, stage: Stage, count: int | None, label: str) -> Symbol | tuple[Symbol, ...]:
        draft = _Draft(len(self._drafts), stage, count)
        self._drafts.append(draft)
        label = f"the result of {label}"
        if count is None or count == 1:
            return Symbol(self, draft, None if count is None else 0, label)
        return Symbol(self, draft, None, label)._elements(count)

    def _ref(self, value: Any) -> Ref:
        if isinstance(value, Symbol):
            return self._symbol_ref(value)
        if _holds_symbol(value):
            raise self.error("a stage is given values of the request inside a list or dict: give each as an argument")
        if isinstance(value, np.ndarray):
            value = value.copy()
            value.flags.writeable = False
        return Constant(value)

    def _symbol_ref(self, symbol: Symbol) -> Ref:
        if symbol._trace is not self:
            raise self.error(f"{symbol._label} belongs to another method")
        draft, index = symbol._draft, symbol._index
        if draft is None:
            return InputRef(index or 0)
        if index is None:
            if draft.count not in (None, 1):
                raise self.error(f"{symbol._label} was unpacked into {draft.count} values: use those")
            draft.count = 1
        return StageRef(draft.number, index or 0)

    def _outputs(self, returned: Any, count: int, where: Where) -> tuple[Ref, ...]:
        values = tuple(returned) if isinstance(returned, list | tuple) else (returned,)
        if isinstance(returned, Symbol) and returned._draft is not None and returned._index is None and count > 1:
            returned._draft.count = returned._draft.count or count
            values = returned._elements(returned._draft.count)
        if len(values) != count or returned is None:
            given = "nothing" if returned is None else f"{len(values)} value(s)"
            raise self.error(f"it returns {given}, and output_names has {count}", where)
        for value in values:
            if not isinstance(value, Symbol | np.ndarray | np.generic | bool | int | float | str | bytes):
                raise self.error(f"it returns {type(value).__name__}, not its inputs or results of its stages", where)
        return tuple(self._ref(value) for value in values)

    def _check_function(self, function: Any, name: str, count: int, batch_size: int | None) -> None:
        if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
            raise self.error(f"{name} is an async function, which a stage cannot be")
        if batch_size is None and inspect.isgeneratorfunction(function):
            raise self.error(f"{name} yields, which only a stage with a batch_size may do (0: as many as there are)")
        try:
            signature = inspect.signature(function)
        except (TypeError, ValueError):  # a builtin or a ufunc has none
            return
        given = [None] * (count if batch_size is None else 1)
        try:
            signature.bind(*given)
        except TypeError as error:
            what = f"{count} argument(s)" if batch_size is None else "one argument, the list of instances"
            raise self.error(f"{name}{signature} is given {what}: {error}") from error


_TRACE: ContextVar[Trace | None] = ContextVar("rankmq_trace", default=None)


def current_trace(word: str) -> Trace:
    """The method that is being traced.

    Raises:
        ServableError: none is.
    """
    trace = _TRACE.get()
    if trace is None:
        raise ServableError(
            f"register.{word} belongs into a function decorated with register.register_method "
            "(a pipeline calls methods: PipelineServable(...).run)"
        )
    return trace


def trace_method(
    function: Callable[..., Any],
    input_names: tuple[str, ...],
    output_names: tuple[str, ...],
    declaration: Declaration,
    where: Where,
) -> Method:
    """Make a method of its function.

    Args:
        function: called once, with a symbol per input.
        input_names: of its parameters.
        output_names: a name per returned value.
        declaration: of the file it stands in.
        where: its line.

    Raises:
        ServableError: it does more than pass values between stages, raises, or returns a wrong number of values.
    """
    if _TRACE.get() is not None:
        raise declaration.error(f"method {function.__name__} is registered inside another method", where)
    return Trace(declaration, function.__name__, where).run(function, input_names, output_names)


def _unpacked_into(frame: FrameType) -> int | None:
    """Into how many names the instruction that `frame` is at unpacks its value; None if it does something else."""
    code, at = frame.f_code.co_code, frame.f_lasti
    if dis.opname[code[at]] != "UNPACK_SEQUENCE":
        return None
    count, shift = code[at + 1], 8
    while at >= 2 and dis.opname[code[at - 2]] == "EXTENDED_ARG":
        at -= 2
        count |= code[at + 1] << shift
        shift += 8
    return count


def _return_line(function: Callable[..., Any]) -> Where | None:
    """The line of the function's return statement, if it has just one."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    if code is None:
        return None
    lines = {i.positions.lineno for i in dis.get_instructions(code) if i.opname in _RETURNS and i.positions}
    line = lines.pop() if len(lines) == 1 else None
    return None if line is None else Where(code.co_filename, line)


def _holds_symbol(value: Any) -> bool:
    if isinstance(value, dict):
        return any(_holds_symbol(item) for item in value.values())
    return isinstance(value, Symbol) or (
        isinstance(value, list | tuple | set | frozenset) and any(_holds_symbol(item) for item in value)
    )
