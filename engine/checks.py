"""What can only be checked when the whole configuration file has been read and its model files are known."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..schemas.errors import ServableError
from .servable import Method, Model, RepeatStage, Servable, SubgraphStage, Where

__all__ = ["check_servable"]


def check_servable(servable: Servable) -> None:
    """Check a servable against itself.

    Raises:
        ServableError: with the line, for a subgraph that no model file stands for, calls of one subgraph that do not
            agree with each other or with its layouts, a loop that names an output that there is not, runs over stages
            of ranks or has nothing that could end it, an input number that no call has, or a `PipelineServable` that
            names no method of this servable.
    """
    if not servable.methods and not servable.pipelines:
        raise ServableError(
            "it registers no method and no pipeline: there is nothing to call (@register.register_method)",
            file=str(servable.file),
        )
    _check_subgraphs(servable)
    _check_counts(servable)
    _check_loops(servable)
    for model in servable.models:
        _check_batch_inputs(servable, model)
    _check_own_calls(servable)


def _stages(servable: Servable) -> Iterator[tuple[Method, SubgraphStage | RepeatStage]]:
    for method in servable.methods.values():
        for stage in method.stages:
            if isinstance(stage, SubgraphStage | RepeatStage):
                yield method, stage


def _check_subgraphs(servable: Servable) -> None:
    count = servable.subgraph_count
    for method, stage in _stages(servable):
        if not servable.models:
            raise _error(
                f"method {method.name} calls subgraph {stage.subgraph}, and no model is declared "
                "(distributed.declare_servable or register.declare_model)",
                stage.where,
            )
        if count is not None and stage.subgraph >= count:
            raise _error(
                f"method {method.name} calls subgraph {stage.subgraph}, and no model file stands for it: "
                f"there {'is 1 subgraph, 0' if count == 1 else f'are {count} subgraphs, 0 to {count - 1}'}",
                stage.where,
            )


def _check_counts(servable: Servable) -> None:
    seen: dict[tuple[int, str], tuple[int, Where]] = {}
    for method, stage in _stages(servable):
        declared = servable.subgraph(stage.subgraph)
        counts: list[tuple[str, int, Sequence[object] | None]] = [("input", len(stage.inputs), declared.inputs)]
        if isinstance(stage, SubgraphStage):
            counts.append(("output", stage.outputs_count, declared.outputs))
        for word, count, layouts in counts:
            if layouts is not None and len(layouts) != count:
                raise _error(
                    f"method {method.name} calls subgraph {stage.subgraph} with {count} {word}(s), and it is declared "
                    f"with a layout for {len(layouts)}",
                    stage.where,
                )
            first_count, first_where = seen.setdefault((stage.subgraph, word), (count, stage.where))
            if count != first_count:
                raise _error(
                    f"method {method.name} calls subgraph {stage.subgraph} with {count} {word}(s), and line "
                    f"{first_where.line} calls it with {first_count}",
                    stage.where,
                )


def _check_loops(servable: Servable) -> None:
    known = {stage.subgraph: stage.outputs_count for _, stage in _stages(servable) if isinstance(stage, SubgraphStage)}
    for method, stage in _stages(servable):
        if not isinstance(stage, RepeatStage):
            continue
        if servable.stage_size > 1:
            raise _error(
                f"method {method.name} repeats subgraph {stage.subgraph}: that cannot be with stage_size="
                f"{servable.stage_size}, where no rank has both the inputs and the outputs",
                stage.where,
            )
        if stage.must_stop and not stage.loop.feed and not servable.slots:
            raise _error(
                f"method {method.name} repeats subgraph {stage.subgraph}: nothing is fed, so all its turns are the "
                "same, and a flag that is not set in the first never is: say what is fed (feed=), or how many turns to "
                "run (times=)",
                stage.where,
            )
        layouts, loop = servable.subgraph(stage.subgraph).outputs, stage.loop
        count = known.get(stage.subgraph) if layouts is None else len(layouts)
        flag = () if loop.until is None else (loop.until,)
        for output in (*(output for _, output in loop.feed), *flag, *loop.collect, *loop.last):
            if isinstance(output, int) and count is not None and output >= count:
                raise _error(
                    f"method {method.name} names output {output} of subgraph {stage.subgraph}, which has {count}",
                    stage.where,
                )


def _check_batch_inputs(servable: Servable, model: Model) -> None:
    counts = [len(stage.inputs) for _, stage in _stages(servable) if servable.model_of(stage.subgraph) is model]
    counts += [len(graph.inputs) for graph in model.subgraphs or () if graph.inputs is not None]
    for index in model.without_batch_dim_inputs:
        if counts and index >= max(counts):
            raise _error(f"without_batch_dim_inputs names input {index}, and no subgraph has one", model.where)


def _check_own_calls(servable: Servable) -> None:
    for call in servable.calls:
        if call.servable != servable.name or call.version not in (0, servable.version):
            continue
        if call.method in servable.pipelines:
            raise _error(f"PipelineServable names {call.method}, a pipeline: it can name methods only", call.where)
        if call.method not in servable.methods:
            known = ", ".join(servable.methods) or "none"
            raise _error(f"PipelineServable names an unknown method, {call.method}; there are: {known}", call.where)


def _error(message: str, where: Where | None) -> ServableError:
    return ServableError(message, file=where.file if where else None, line=where.line if where else None)
