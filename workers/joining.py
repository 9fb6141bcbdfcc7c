"""How a process joins a group that talks by MindSpore's own communication.

Nothing here imports MindSpore: the functions of it that are needed are given.
"""

from __future__ import annotations

import json
import os
import signal
import tempfile
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

from ..engine.rank_table import parse_rank_table
from ..schemas.errors import GroupError
from .mindspore_errors import group_errors
from .rendezvous import await_server, check_free, gather_ranks, split_address, woken

__all__ = ["be_scheduler", "join_hccl", "join_scheduler", "join_store"]

_Init = Callable[[str], object]

_COLLECTIVE_SECONDS = 120
_STORE_SECONDS = 1.0


def be_scheduler(init: _Init, host: str, port: int, size: int) -> NoReturn:
    """Be the scheduler of a group until the process is ended.

    Args:
        init: `mindspore.communication.init`.
        host: address to listen on.
        port: likewise.
        size: how many ranks will come.
    """
    _set_cluster("MS_SCHED", 0, size, host, port)
    init("mccl")
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


def join_scheduler(init: _Init, rank: int, size: int, address: str, timeout: float) -> None:
    """Join through a scheduler process.

    Args:
        init: `mindspore.communication.init`.
        rank: this rank's number.
        size: how many ranks there are.
        address: the scheduler's, host:port.
        timeout: seconds until the others must be there.

    Raises:
        GroupError: they are not, or the group cannot be made.
    """
    host, port = split_address(address)
    os.environ.setdefault("MS_TOPO_TIMEOUT", str(max(1, int(timeout))))
    _set_cluster("MS_WORKER", rank, size, host, port)
    with group_errors(rank, address):
        init("mccl")


def join_store(
    make_store: Callable[..., Any],
    init_with_store: Callable[..., object],
    rank: int,
    size: int,
    address: str,
    timeout: float,
) -> Any:
    """Join through a store that rank 0 holds; returns the store, which must live as long as the group.

    The store's own waits keep Python's lock, which the thread that sends heartbeats needs: so the ranks wait for each
    other on our side, and call MindSpore when all are there.

    Args:
        make_store: `mindspore.mint.distributed.TCPStore`.
        init_with_store: `mindspore.communication.management._init_with_store`.
        rank: this rank's number.
        size: how many ranks there are.
        address: of rank 0, host:port.
        timeout: seconds until the others must be there.

    Raises:
        GroupError: they are not, or the group cannot be made.
        AlreadyRunning: somebody else has rank 0's port.
    """
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
    with group_errors(rank, address):
        store = make_store(host, port, size, is_master=rank == 0, timeout=patience, wait_for_workers=False)
        gather_ranks(store, rank, size, deadline)
        with woken():
            init_with_store(backend="mccl", timeout=patience, world_size=size, rank=rank, store=store)
    return store


def join_hccl(init: _Init, rank: int, size: int, rank_table: Mapping[str, Any] | None) -> None:
    """Join as MindSpore says for a start with a rank table. Written without an Ascend machine to try it on.

    Args:
        init: `mindspore.communication.init`.
        rank: this rank's number.
        size: how many ranks there are.
        rank_table: in its 1.0 form.

    Raises:
        GroupError: no rank table, or the group cannot be made.
    """
    if not rank_table:
        raise GroupError("hccl needs a rank table: start the servable with rank_table_json_file")
    entry = parse_rank_table(rank_table).ranks[rank]
    with tempfile.NamedTemporaryFile("w", prefix="rank_table_", suffix=".json", delete=False) as file:
        json.dump(rank_table, file)
    os.environ.update(RANK_TABLE_FILE=file.name, RANK_ID=str(rank), RANK_SIZE=str(size), DEVICE_ID=str(entry.device_id))
    try:
        with group_errors(rank, entry.host):
            init("hccl")
    finally:
        Path(file.name).unlink(missing_ok=True)
