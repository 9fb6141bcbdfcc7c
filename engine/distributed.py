"""The words of a servable configuration for a model that several ranks hold, and of the script that serves it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .declaration import current_declaration
from .layouts import InputLayout, OutputLayout, all_equal, concat, from_rank, replicate, shard
from .layouts import sum_ranks as sum
from .servable import Model, Servable, Subgraph

if TYPE_CHECKING:
    from .rank_table import RankTable

__all__ = [
    "all_equal",
    "concat",
    "declare_servable",
    "from_rank",
    "replicate",
    "shard",
    "start_servable",
    "subgraph",
    "sum",
]

log = logging.getLogger(__name__)


def declare_servable(
    rank_size: int,
    stage_size: int,
    with_batch_dim: bool = True,
    without_batch_dim_inputs: int | Sequence[int] | None = None,
    enable_pipeline_infer: bool = False,
    *,
    subgraphs: Sequence[Subgraph | str] | None = None,
    batch_size: int | None = None,
    max_wait: float = 0.0,
    communication: str = "auto",
    slots: int = 0,
    shared_parameters: Sequence[str] = (),
) -> Model:
    """Declare a model that is held by a group of ranks.

    Args:
        rank_size: how many ranks hold it.
        stage_size: into how many stages of the same size the ranks are divided.
        with_batch_dim: the first axis of inputs and outputs is the batch.
        without_batch_dim_inputs: numbers of inputs without a batch axis, where the others have one.
        enable_pipeline_infer: accepted for the sake of older files; has no effect here.
        subgraphs: what each subgraph is, in the order of their numbers: a file name with `{rank}` for the rank, or
            `subgraph(...)`. None: as many as there are model files, inputs replicated, outputs from one rank.
        batch_size: rows of a batch at most, for a model with a batch axis.
        max_wait: seconds that rows wait for others to fill a batch where the ranks have nothing to do; 0: they begin
            at once. While the ranks are busy rows come together anyway. Nobody else waits behind them, and a row with
            a deadline gives half of the time that is left to it, at most.
        communication: how the ranks talk within a graph: "auto", "none", "shm" (shared memory of one host), "mccl" or
            "hccl".
        slots: for graphs that keep state between calls (a KV cache): how many instances may do so at once. An instance
            holds a slot from its first call of a graph with an input named `slot` until it ends; the input is filled in
            with its number. Calls of other graphs take none (where no graph has the input, each call takes one).
        shared_parameters: patterns (`kcache.*`) of the names of parameters that are one and the same in all graphs of a
            rank, so that what one graph leaves there another finds.

    Returns:
        The model, for `register.add_stage` and `Model.call`.

    Raises:
        ServableError: a value that cannot be.
    """
    declaration = current_declaration("distributed.declare_servable")
    if not isinstance(enable_pipeline_infer, bool):
        raise declaration.error(f"enable_pipeline_infer must be True or False, not {enable_pipeline_infer!r}")
    declared: tuple[Subgraph, ...] | None = None
    if subgraphs is not None:
        if not isinstance(subgraphs, list | tuple) or not subgraphs:
            raise declaration.error("subgraphs must be a list with a file name or subgraph(...) for each")
        declared = tuple(
            graph if isinstance(graph, Subgraph) else declaration.subgraph(graph, None, None) for graph in subgraphs
        )
        if len({graph.file is None for graph in declared}) > 1:
            raise declaration.error("subgraphs: either all have a file or none has")
    return declaration.add_model(
        name=declaration.name,
        rank_size=rank_size,
        stage_size=stage_size,
        with_batch_dim=with_batch_dim,
        without_batch_dim_inputs=without_batch_dim_inputs,
        batch_size=batch_size,
        max_wait=max_wait,
        subgraphs=declared,
        communication=communication,
        slots=slots,
        shared_parameters=shared_parameters,
    )


def subgraph(
    file: str | None = None,
    inputs: Sequence[InputLayout] | None = None,
    outputs: Sequence[OutputLayout] | None = None,
    *,
    compiled_rows: Sequence[int] = (),
) -> Subgraph:
    """One of the `subgraphs` of `declare_servable`.

    Args:
        file: its file name, `{rank}` for the rank; None where the model files are found by their place.
        inputs: a layout per input, `replicate()` or `shard(axis)`; None: all replicated.
        outputs: a layout per output, `from_rank(r)`, `concat(axis)`, `sum()` or `all_equal()`; None: all from the first
            rank of the last stage.
        compiled_rows: numbers of rows (as one rank gets them) that are frequent, such as `[1]` for a graph that writes
            one text: for each the ranks compile the graph by itself, besides once for any number. MindSpore then need
            not work out shapes in every call, which takes half of the time of a small graph or more. Each takes a
            compilation's time when the group forms.

    Raises:
        ServableError: a layout that cannot be, or numbers of rows that cannot be.
    """
    return current_declaration("distributed.subgraph").subgraph(file, inputs, outputs, compiled_rows)


def start_servable(
    servable_directory: str | Path,
    servable_name: str,
    rank_table_json_file: str | Path | None = None,
    version_number: int = 1,
    wait_agents_time_in_seconds: float = 0,
    distributed_address: str | None = None,
    *,
    broker_url: str | None = None,
    group: str = "g0",
) -> None:
    """Serve a servable: the script that calls this is its orchestrator.

    It returns when the script is told to stop (Ctrl-C or SIGTERM) and what runs is finished. MindSpore Serving's
    function of this name returns when the agents are there, and a gRPC server is started after it: here requests come
    over the broker, and there is no such server to start. Every other setting is read as by `load_settings`.

    Args:
        servable_directory: the folder that holds the servable's folder.
        servable_name: the servable's name: that of its folder.
        rank_table_json_file: which rank is on which host; None: all on this one.
        version_number: the version to serve; 0 is the newest.
        wait_agents_time_in_seconds: give up when ranks are missing so long; 0 waits for ever.
        distributed_address: the broker's URL, if it is one; an address as in older scripts has no effect.
        broker_url: amqp[s]://user:password@host:port/vhost; None: RANKMQ_BROKER_URL.
        group: the name of its group, where the servable has several replicas.

    Raises:
        ServableError: the configuration is wrong; with file and line.
        ConfigurationError: no broker's URL, or a rank table or setting that cannot be used.
        BrokerUnavailable: nobody answers at the broker's address.
        BrokerRefused: the broker refuses the user or a permission.
        GroupError: ranks are missing past the time allowed, or cannot form a group.
        AlreadyRunning: another orchestrator serves this group.
    """
    # Configuration files import this module for its other words and must not pay for these.
    from . import logs
    from .catalog import Catalog
    from .loader import load_servable
    from .orchestrator import Orchestrator
    from .settings import load_settings

    settings = load_settings(
        broker_url=broker_url or broker_url_in(distributed_address),
        wait_agents_time_in_seconds=wait_agents_time_in_seconds or None,
    )
    if not logging.getLogger().handlers:
        logs.configure("orchestrator", form=settings.log_format, level=settings.log_level)
    say_if_ignored(distributed_address)
    servable = load_servable(Path(servable_directory), servable_name, version_number, require_models=False)
    tables = {}
    if rank_table_json_file is not None:
        tables[servable.name, servable.version] = rank_table_of(servable, Path(rank_table_json_file))
    Orchestrator(Catalog([servable]), settings, rank_tables=tables, group=group).run()


def rank_table_of(servable: Servable, file: Path) -> RankTable:
    """A servable's rank table.

    Raises:
        ConfigurationError: the file cannot be used, or has another number of ranks than the servable.
    """
    from ..schemas.errors import ConfigurationError
    from .rank_table import read_rank_table

    table = read_rank_table(file)
    if table.size != servable.rank_size:
        raise ConfigurationError(
            f"the table has {table.size} ranks, and servable {servable.name} has {servable.rank_size}", file=str(file)
        )
    return table


def broker_url_in(distributed_address: str | None) -> str | None:
    """The broker's URL that stands where older scripts have the address of the distributed worker, if one does."""
    address = distributed_address or ""
    return address if address.startswith(("amqp://", "amqps://")) else None


def say_if_ignored(distributed_address: str | None) -> None:
    """Log that an address has no effect, if it has none."""
    if distributed_address and broker_url_in(distributed_address) is None:
        log.info(
            "distributed_address %s has no effect: orchestrator and agents meet on the broker", distributed_address
        )
