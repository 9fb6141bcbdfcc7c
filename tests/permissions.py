"""The broker's users of the four roles, with the permissions that docs/security.md gives them and no others."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from rankmq.workers.broker import User

DOCUMENT = Path(__file__).parents[1] / "docs" / "security.md"


def roles() -> dict[str, User]:
    """By role the user that the commands in the document make."""
    part = re.search(r"<!-- permissions: .*?-->\n(.*?)<!-- end of permissions -->", DOCUMENT.read_text(), re.DOTALL)
    assert part, "no part marked permissions"
    users = {}
    for line in part[1].replace("\\\n", " ").splitlines():
        words = shlex.split(line)
        if words[:1] != ["rabbitmqctl"]:
            continue
        command, option, vhost, name, configure, write, read = words[1:]
        assert (command, option) == ("set_permissions", "-p")
        users[name] = User(name, configure=configure, write=write, read=read, vhost=vhost)
    assert set(users) == {"producer", "orchestrator", "agent", "operator"}
    return users
