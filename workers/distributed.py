"""The words of MindSpore Serving's `distributed`, for the scripts that serve a model and start its agents.

A script that says `from mindspore_serving.server import distributed` says `from rankmq.workers import distributed`.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Sequence
from pathlib import Path

from ..engine import logs
from ..engine.distributed import (
    all_equal,
    broker_url_in,
    concat,
    declare_servable,
    from_rank,
    replicate,
    say_if_ignored,
    shard,
    start_servable,
    subgraph,
    sum,
)
from ..engine.settings import Settings, load_settings
from ..engine.status import collect_status
from ..schemas.errors import ConfigurationError, GroupError, ModelError
from ..schemas.messages import GroupId, GroupStatus
from .launcher import Launcher

__all__ = [
    "all_equal",
    "concat",
    "declare_servable",
    "from_rank",
    "replicate",
    "shard",
    "start_servable",
    "startup_agents",
    "subgraph",
    "sum",
]

log = logging.getLogger(__name__)

_Files = Sequence[Sequence[str | Path] | str | Path]


def startup_agents(
    distributed_address: str | None = None,
    model_files: _Files = (),
    group_config_files: _Files | None = None,
    agent_start_port: int = 7000,
    agent_ip: str | None = None,
    rank_start: int | None = None,
    *,
    broker_url: str | None = None,
    servable_name: str | None = None,
    version_number: int = 1,
    group: str = "g0",
    wait_orchestrator_seconds: float = 120.0,
) -> None:
    """Start the agents of this machine, one process per rank, and see to them until the script is told to stop.

    The processes import the calling script anew, so the call belongs under `if __name__ == "__main__":`.

    Args:
        distributed_address: the broker's URL, if it is one; an address as in older scripts has no effect.
        model_files: per rank of this machine, its model files in the order of the subgraphs.
        group_config_files: per rank, as an export on Ascend writes them; must be there if given, and are not used.
        agent_start_port: has no effect: agents listen on no port.
        agent_ip: this machine's name in the rank table; None: its host name.
        rank_start: the first rank of this machine; may be left out where all ranks are here.
        broker_url: amqp[s]://user:password@host:port/vhost; None: RANKMQ_BROKER_URL.
        servable_name: whose agents they are; None: of the only servable for which an orchestrator answers.
        version_number: of that servable; counts only with `servable_name`.
        group: the name of the group, where the servable has several replicas.
        wait_orchestrator_seconds: how long to wait for that answer.

    Raises:
        ModelError: a file is missing, or cannot be used.
        ConfigurationError: no broker's URL, or not clear whose agents they are, or which ranks.
        GroupError: no orchestrator answers, or an agent ended too often.
        BrokerUnavailable: nobody answers at the broker's address.
        BrokerRefused: the broker refuses the user or a permission.
    """
    settings = load_settings(broker_url=broker_url or broker_url_in(distributed_address))
    if not logging.getLogger().handlers:
        logs.configure("launcher", form=settings.log_format, level=settings.log_level)
    say_if_ignored(distributed_address)
    files = _existing(model_files, "model file")
    if not files:
        raise ModelError("startup_agents needs model_files: per rank a list of paths")
    _existing(group_config_files or (), "group configuration file")
    if servable_name is not None and version_number > 0:
        known = GroupId(servable=servable_name, version=version_number, group=group)
    else:
        status = _only(_groups(settings, wait_orchestrator_seconds), servable_name)
        known = status.group
        if rank_start is None and status.size != len(files):
            raise ConfigurationError(
                f"{known} has {status.size} ranks and model_files has {len(files)}: "
                "say with rank_start which is the first of this machine"
            )
    first = rank_start or 0
    ranks = {first + index: of_rank for index, of_rank in enumerate(files)}
    Launcher({known: ranks}, settings, host=agent_ip or socket.gethostname()).run()


def _existing(files: _Files, what: str) -> list[list[Path]]:
    found = [[Path(of_rank)] if isinstance(of_rank, str | Path) else [Path(it) for it in of_rank] for of_rank in files]
    for index, paths in enumerate(found):
        for path in paths:
            if not path.is_file():
                raise ModelError(f"the {what} of rank {index} of this machine is missing: {path}")
    return found


def _groups(settings: Settings, patience: float) -> list[GroupStatus]:
    answers = collect_status(settings, name="rankmq launcher", patience=patience)
    if not answers:
        raise GroupError(
            f"no orchestrator answers on {settings.address()} within {patience:g} s: start it first (start_servable)"
        )
    return [group for answer in answers for group in answer.groups]


def _only(groups: Sequence[GroupStatus], servable_name: str | None) -> GroupStatus:
    found = [it for it in groups if servable_name in (None, it.group.servable)]
    if len(found) == 1:
        return found[0]
    names = ", ".join(str(it.group) for it in groups) or "none"
    raise ConfigurationError(f"not clear whose agents these are: say servable_name and version_number; served: {names}")
