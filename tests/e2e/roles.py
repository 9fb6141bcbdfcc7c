"""An engine whose processes are different users of the broker, each with the permissions of its role and no others."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rankmq.engine.client import Client
from rankmq.engine.settings import load_settings
from rankmq.engine.status import collect_status
from rankmq.schemas.errors import RankmqError
from rankmq.schemas.messages import Status

from tests.e2e.graphs import WORDS, Graph, op, spec, write_servable
from tests.e2e.systems import Role, System

CONFIGURATION = (
    WORDS
    + """
distributed.declare_servable(rank_size=2, stage_size=1, with_batch_dim=False)

@register.register_method(output_names=["y"])
def double(x):
    return register.call_servable(x, subgraph=0)

@register.register_method(output_names=["y"])
def long(x):
    return register.call_servable(x, subgraph=1)
"""
)


def write_pair(directory: Path, *, milliseconds: int = 3000) -> None:
    """A servable on two ranks: a graph that doubles, and one that takes its time."""
    double = Graph([op("add", "x x", "y")], [spec("x", 3)], [spec("y", 3)])
    long = Graph([op("sleep", "x", "y", milliseconds=milliseconds)], [spec("x", 1)], [spec("y", 1)])
    write_servable(directory, "pair", CONFIGURATION, {"0_double": lambda _: double, "1_long": lambda _: long}, ranks=2)


class RoleSystem(System):
    """A system of which each process has its own user.

    Args:
        users: by role (producer, orchestrator, agent, operator) its settings: broker_url, and certificates.
        directory: the folder of the servables' folders.
        servables: their names.
        logs: a folder for what the processes log.
        settings: of all its processes.
    """

    def __init__(
        self,
        users: Mapping[str, Mapping[str, Any]],
        directory: Path,
        servables: Sequence[str],
        logs: Path,
        **settings: Any,
    ) -> None:
        super().__init__(users["operator"]["broker_url"], directory, servables, logs, **settings)
        self.users = users

    def _start(self, role: str, ranks: Sequence[int] | None = None) -> Role:
        kept = self.url, self._settings
        own = dict(self.users["agent" if role == "agents" else role])
        try:
            self.url, self._settings = own.pop("broker_url"), {**self._settings, **own}
            return super()._start(role, ranks)
        finally:
            self.url, self._settings = kept

    def client(self, servable: str, method: str, version: int = 0, **options: Any) -> Client:
        own = dict(self.users["producer"])
        url, files = own.pop("broker_url"), {name.removeprefix("tls_"): value for name, value in own.items()}
        return Client(url, servable, method, version, **{"timeout": 60.0, **files, **options})

    def try_status(self) -> Status | None:
        try:
            answers = collect_status(load_settings(**self.users["operator"]), name="tests", settle=0.0)
        except RankmqError:
            return None
        return next((it for it in answers if self.orchestrator and it.pid == self.orchestrator.pid), None)
