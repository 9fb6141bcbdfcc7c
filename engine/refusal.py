"""What the broker refuses, in one line: for want of a permission, by user, resource and permission. Pure."""

from __future__ import annotations

import re

__all__ = ["refusal", "refuses_certificate"]

_RESOURCE = re.compile(
    r"(?:(?P<permission>configure|write|read) )?access to (?P<kind>queue|exchange) '(?P<name>.*)' "
    r"in vhost '(?P<vhost>.*)' refused for user '(?P<user>.*?)'",
    re.DOTALL,
)
_TOPIC = re.compile(
    r"(?:(?P<permission>write|read) )?access to topic '(?P<key>.*)' in exchange (?:exchange )?'(?P<name>.*?)' "
    r"in vhost '(?P<vhost>.*)' refused for user '(?P<user>.*?)'",
    re.DOTALL,
)
_CERTIFICATE = re.compile(r"ALERT_(CERTIFICATE|BAD_CERTIFICATE|UNKNOWN_CA|HANDSHAKE_FAILURE|ACCESS_DENIED)", re.I)
_EITHER = "configure (or read, for where its messages go on to)"
_PERMISSIONS = {
    (40, 10): _EITHER,  # exchange.declare
    (40, 20): "configure",  # exchange.delete
    (50, 10): _EITHER,  # queue.declare
    (50, 30): "read",  # queue.purge
    (50, 40): "configure",  # queue.delete
    (60, 20): "read",  # basic.consume
    (60, 40): "write",  # basic.publish
    (60, 70): "read",  # basic.get
}
_DECLARE_QUEUE, _BIND, _UNBIND = (50, 10), (50, 20), (50, 50)


def refuses_certificate(text: str) -> bool:
    """Whether TLS's words on a failure mean that the other side does not take our certificate, or wants one."""
    return _CERTIFICATE.search(text) is not None


def refusal(text: str, method: tuple[int, int] | None = None) -> str:
    """What is missing.

    RabbitMQ 3.10 does not say which permission it wanted; it follows from what was asked for.

    Args:
        text: what the broker said.
        method: class and number of the AMQP method that it refused, where that is known.
    """
    found = _TOPIC.search(text)
    if found is not None:
        permission = found["permission"] or ("write" if method == (60, 40) else "read")
        what = f"on topic {found['key']!r} of exchange {found['name']!r}"
    else:
        found = _RESOURCE.search(text)
        if found is None:
            return f"the broker refuses a permission: {' '.join(text.split())}"
        permission = found["permission"] or _permission(method, found["kind"])
        default = " (the default exchange)" if found["name"] == "amq.default" else ""
        what = f"on {found['kind']} {found['name']!r}{default}"
    return (
        f"the broker refuses a permission: user {found['user']!r} has no {permission} permission {what} "
        f"in virtual host {found['vhost']!r} (docs/security.md says what each role needs)"
    )


def _permission(method: tuple[int, int] | None, kind: str) -> str:
    if method in (_BIND, _UNBIND):
        return "write" if kind == "queue" else "read"
    if method == _DECLARE_QUEUE and kind == "exchange":
        return "write"  # for its dead letters
    return _PERMISSIONS.get(method, "sufficient") if method is not None else "sufficient"
