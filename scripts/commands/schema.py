"""`rankmq schema`: what a producer in another language needs to know, for programs to read."""

from __future__ import annotations

import enum
from typing import Annotated, Any

import typer

from ..report import reported

__all__ = ["add_to"]

_EPILOG = """
Examples:

    rankmq schema > rankmq.schema.json

    rankmq schema asyncapi > rankmq.asyncapi.json
"""


class _Document(enum.StrEnum):
    json = "json"
    asyncapi = "asyncapi"


def add_to(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("schema", epilog=_EPILOG)(schema)


def schema(
    document: Annotated[
        _Document,
        typer.Argument(help="JSON Schema of the messages, or the AsyncAPI 3 document of who sends what where."),
    ] = _Document.json,
) -> None:
    """Print the schemas of the messages, generated from their types."""
    with reported():
        import json

        from ...engine.topology import LANES
        from ...schemas.documents import asyncapi, json_schema

        found = json_schema() if document is _Document.json else asyncapi(_names(), _version(), {"lane": LANES})
        typer.echo(json.dumps(found, indent=2, ensure_ascii=False))


def _names() -> dict[str, str]:
    """The names of the topology, with their parameters in braces."""
    from ...engine import topology
    from ...schemas.messages import GroupId

    number: Any = "{version}"  # a template of a name: what are numbers in names stand in braces here
    group = GroupId(servable="{servable}", version=number, group="{group}")
    subgraph: Any = "{subgraph}"
    rank: Any = "{rank}"
    return {
        "requests_exchange": topology.REQUESTS,
        "requests_key": "{servable}.{lane}",
        "requests_queue": topology.requests_queue("{servable}", "{lane}"),
        "unrouted_queue": topology.UNROUTED,
        "dead_exchange": topology.DEAD,
        "dead_key": "{servable}.{lane}",
        "dead_queue": topology.DEAD,
        "cancel_exchange": topology.CANCEL,
        "subgraph_exchange": topology.subgraph_exchange(group, subgraph),
        "rank_control_exchange": topology.rank_control_exchange(group),
        "rank_key": topology.rank_tag(rank),
        "rank_queue": topology.rank_queue(group, rank, "{agent}", "{connection}"),
        "results_exchange": topology.RESULTS,
        "results_queue": topology.results_queue(group),
        "control_exchange": topology.CONTROL,
        "control_queue": topology.control_queue(group),
        "group_key": str(group),
        "status_exchange": topology.STATUS,
        "status_queue": topology.status_queue("{orchestrator}"),
        "answers_queue": topology.ANSWERS,
    }


def _version() -> str:
    from importlib import metadata

    try:
        return metadata.version("rankmq")
    except metadata.PackageNotFoundError:
        return "0"
