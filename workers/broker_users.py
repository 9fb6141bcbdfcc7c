"""Further users and virtual hosts of a private node, given to it as definitions when it boots."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from ..schemas.errors import ConfigurationError
from .broker_config import Account

__all__ = ["User", "definitions"]


@dataclass(frozen=True, slots=True)
class User:
    """A user with permissions in one virtual host; each is a regular expression that names must match, "" for none.

    Attributes:
        name: its name.
        password: random (192 bits) if it is not given.
        configure: of queues and exchanges that it may declare and delete.
        write: of exchanges that it may publish to, and queues that it may bind.
        read: of queues that it may consume, and exchanges that it may bind to.
        topics: (exchange, write, read) each: routing keys on a topic exchange; one that is not here has no limits.
        vhost: the virtual host.
    """

    name: str
    password: str = field(default_factory=lambda: secrets.token_urlsafe(24), repr=False)
    configure: str = ""
    write: str = ""
    read: str = ""
    topics: tuple[tuple[str, str, str], ...] = ()
    vhost: str = "/"


def definitions(account: Account, users: Iterable[User], vhosts: Iterable[str] = ()) -> str:
    """The definitions (JSON) of a node with these users.

    RabbitMQ makes no default user where it is given definitions, so the node's own is among them.

    Args:
        account: the node's own user: an administrator who may do anything in every virtual host.
        users: the others.
        vhosts: virtual hosts beside "/"; those of the users need not be named.

    Raises:
        ConfigurationError: two users of one name.
    """
    users = tuple(users)
    names = [account.user, *(user.name for user in users)]
    if len(set(names)) < len(names):
        raise ConfigurationError(f"the private broker's users need names of their own: {', '.join(sorted(names))}")
    hosts = list(dict.fromkeys(["/", *vhosts, *(user.vhost for user in users)]))
    everything = {"configure": ".*", "write": ".*", "read": ".*"}
    document: dict[str, list[dict[str, Any]]] = {
        "vhosts": [{"name": host} for host in hosts],
        "users": [
            {"name": account.user, "password": account.password, "tags": "administrator"},
            *({"name": user.name, "password": user.password, "tags": ""} for user in users),
        ],
        "permissions": [
            *({"user": account.user, "vhost": host, **everything} for host in hosts),
            *(
                {
                    "user": user.name,
                    "vhost": user.vhost,
                    "configure": user.configure,
                    "write": user.write,
                    "read": user.read,
                }
                for user in users
            ),
        ],
        "topic_permissions": [
            {"user": user.name, "vhost": user.vhost, "exchange": exchange, "write": write, "read": read}
            for user in users
            for exchange, write, read in user.topics
        ],
    }
    return json.dumps(document, indent=2) + "\n"
