"""The rank table: which rank is on which host, on which device. Two forms of the JSON file are read.

The 1.0 form lists servers with their devices, each with a rank; it is what Ascend's tools write today, and what agents
get from the orchestrator. The older form lists groups of instances, each a rank with its server and one device. Numbers
may be JSON numbers or text, as tools write both. What else a table says about its networks is of no concern here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..schemas.errors import ConfigurationError

__all__ = ["RankEntry", "RankTable", "parse_rank_table", "read_rank_table"]

_VERSION = "1.0"
_LARGEST = 1 << 20  # no rank, device or count is larger; keeps a slip of the pen from becoming a loop of 10^9


@dataclass(frozen=True, slots=True)
class RankEntry:
    """Where a rank is.

    Attributes:
        rank: its number.
        host: its server's id: an address or a name, as the table has it.
        device_id: the device on that host.
        device_ip: the device's own address, "" where it has none.
    """

    rank: int
    host: str
    device_id: int
    device_ip: str = ""


@dataclass(frozen=True, slots=True)
class RankTable:
    """All ranks of a group.

    Attributes:
        ranks: in the order of their numbers, which are 0, 1, 2 and so on.
    """

    ranks: tuple[RankEntry, ...]

    @property
    def size(self) -> int:
        """How many ranks there are."""
        return len(self.ranks)

    def hosts(self) -> tuple[str, ...]:
        """The hosts, each once, the one with the lowest rank first."""
        return tuple(dict.fromkeys(entry.host for entry in self.ranks))

    def ranks_of(self, host: str) -> tuple[int, ...]:
        """The ranks of a host, ascending; none if the table does not know it."""
        return tuple(entry.rank for entry in self.ranks if entry.host == host)

    def as_dict(self) -> dict[str, Any]:
        """The table in its 1.0 form, which `parse_rank_table` reads."""
        return {
            "version": _VERSION,
            "server_count": str(len(self.hosts())),
            "server_list": [
                {
                    "server_id": host,
                    "device": [
                        {"device_id": str(it.device_id), "device_ip": it.device_ip, "rank_id": str(it.rank)}
                        for it in self.ranks
                        if it.host == host
                    ],
                    "host_nic_ip": "reserve",
                }
                for host in self.hosts()
            ],
            "status": "completed",
        }

    @staticmethod
    def local(size: int, host: str = "127.0.0.1") -> RankTable:
        """The table of a group whose ranks are all on one host, rank r on device r.

        Args:
            size: how many ranks.
            host: the host's name.

        Raises:
            ConfigurationError: a size below 1.
        """
        if not 1 <= size <= _LARGEST:
            raise ConfigurationError(f"a group cannot have {size} ranks")
        return RankTable(tuple(RankEntry(rank, host, rank) for rank in range(size)))


def read_rank_table(path: Path) -> RankTable:
    """Read and check a rank table file of either form.

    Raises:
        ConfigurationError: the file cannot be read, is not JSON, or is not a rank table that makes sense.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"the rank table cannot be read: {error.strerror or error}", file=str(path)) from None
    except UnicodeDecodeError:
        raise ConfigurationError("the rank table is not UTF-8 text", file=str(path)) from None
    try:
        table = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigurationError(
            f"the rank table is not JSON: {error.msg}", file=str(path), line=error.lineno
        ) from None
    except (ValueError, RecursionError):  # a number of thousands of digits; lists nested past the interpreter's stack
        raise ConfigurationError("the rank table is not JSON that can be read", file=str(path)) from None
    return parse_rank_table(table, file=str(path))


def parse_rank_table(table: object, *, file: str | None = None) -> RankTable:
    """Check a rank table of either form, as JSON gives it.

    Args:
        table: the JSON object.
        file: where it was read, for the error.

    Raises:
        ConfigurationError: not a rank table; a rank missing or named twice, a device used twice, a count that is wrong.
    """
    return _Reader(file).table(table)


class _Reader:
    """Reads tables for one file; every complaint names it."""

    def __init__(self, file: str | None) -> None:
        self._file = file

    def table(self, table: object) -> RankTable:
        top = self._object(table, "the rank table")
        status = top.get("status", "completed")
        if status != "completed":
            raise self._error(f"the rank table's status is {_shown(status)}: only a 'completed' one can be used")
        entries = self._of_groups(top) if "group_list" in top else self._of_servers(top)
        return RankTable(self._checked(entries))

    # -------------------------------------------------------------------------------------------------- the two forms

    def _of_servers(self, top: Mapping[str, Any]) -> list[RankEntry]:
        if "server_list" not in top:
            raise self._error("the rank table has neither a server_list (version 1.0) nor a group_list (older)")
        version = top.get("version")
        if version != _VERSION:
            raise self._error(f"the rank table's version is {_shown(version)}; only {_VERSION!r} is read")
        servers = self._list(top, "server_list", "the rank table")
        self._count(top, "server_count", len(servers), "the rank table", "servers in server_list")
        entries: list[RankEntry] = []
        hosts: set[str] = set()
        for number, item in enumerate(servers):
            where = f"server_list[{number}]"
            server = self._object(item, where)
            host = self._name(server, "server_id", where)
            if host in hosts:
                raise self._error(f"{where}: server {host} was listed before")
            hosts.add(host)
            for index, element in enumerate(self._list(server, "device", where)):
                place = f"{where}.device[{index}]"
                device = self._object(element, place)
                entries.append(self._entry(self._number(device, "rank_id", place), host, device, place))
        return entries

    def _of_groups(self, top: Mapping[str, Any]) -> list[RankEntry]:
        groups = self._list(top, "group_list", "the rank table")
        self._count(top, "group_count", len(groups), "the rank table", "groups in group_list")
        entries: list[RankEntry] = []
        for number, item in enumerate(groups):
            where = f"group_list[{number}]"
            group = self._object(item, where)
            members = [
                self._instance(instance, f"{where}.instance_list[{index}]")
                for index, instance in enumerate(self._list(group, "instance_list", where))
            ]
            self._count(group, "instance_count", len(members), where, "instances in instance_list")
            self._count(group, "device_num", len(members), where, "devices in instance_list")
            self._count(group, "server_num", len({it.host for it in members}), where, "servers in instance_list")
            entries += members
        return entries

    def _instance(self, item: object, where: str) -> RankEntry:
        instance = self._object(item, where)
        devices = self._list(instance, "devices", where)
        if len(devices) != 1:
            raise self._error(f"{where} has {len(devices)} devices: a rank holds exactly one")
        place = f"{where}.devices[0]"
        rank = self._number(instance, "rank_id", where)
        return self._entry(rank, self._name(instance, "server_id", where), self._object(devices[0], place), place)

    def _entry(self, rank: int, host: str, device: Mapping[str, Any], where: str) -> RankEntry:
        address = device.get("device_ip", "")
        if not isinstance(address, str):
            raise self._error(f"{where}.device_ip must be text, not {_shown(address)}")
        return RankEntry(rank, host, self._number(device, "device_id", where), address)

    def _checked(self, entries: list[RankEntry]) -> tuple[RankEntry, ...]:
        ranks: dict[int, RankEntry] = {}
        devices: dict[tuple[str, int], int] = {}
        for entry in entries:
            if entry.rank in ranks:
                raise self._error(f"rank {entry.rank} is there twice")
            ranks[entry.rank] = entry
            other = devices.setdefault((entry.host, entry.device_id), entry.rank)
            if other != entry.rank:
                raise self._error(f"device {entry.device_id} of {entry.host} is given to rank {other} and {entry.rank}")
        missing = [str(rank) for rank in range(len(ranks)) if rank not in ranks]
        if missing:
            few = ", ".join(missing[:8]) + (", ..." if len(missing) > 8 else "")
            raise self._error(f"rank {few} is missing: {len(ranks)} ranks must be numbered 0 to {len(ranks) - 1}")
        return tuple(ranks[rank] for rank in range(len(ranks)))

    # ------------------------------------------------------------------------------------------------------ the fields

    def _error(self, message: str) -> ConfigurationError:
        return ConfigurationError(message, file=self._file)

    def _object(self, value: object, where: str) -> Mapping[str, Any]:
        if not isinstance(value, Mapping):
            raise self._error(f"{where} must be a JSON object, not {_shown(value)}")
        return value

    def _list(self, owner: Mapping[str, Any], key: str, where: str) -> list[Any] | tuple[Any, ...]:
        value = owner.get(key)
        if not isinstance(value, list | tuple) or not value:
            raise self._error(f"{where}: {key} must be a list with at least one element, not {_shown(value)}")
        return value

    def _name(self, owner: Mapping[str, Any], key: str, where: str) -> str:
        value = owner.get(key)
        if not isinstance(value, str) or not value.strip() or not value.isprintable():
            raise self._error(f"{where}: {key} must be text, not {_shown(value)}")
        return value

    def _number(self, owner: Mapping[str, Any], key: str, where: str) -> int:
        value = owner.get(key)
        text = value if isinstance(value, str) else str(value) if type(value) is int else ""
        if not text.isascii() or not text.isdigit() or len(text) > 9 or int(text) > _LARGEST:
            raise self._error(f"{where}: {key} must be a whole number from 0, not {_shown(value)}")
        return int(text)

    def _count(self, owner: Mapping[str, Any], key: str, found: int, where: str, what: str) -> None:
        if key in owner and self._number(owner, key, where) != found:
            raise self._error(f"{where}: {key} is {owner[key]}, but there are {found} {what}")


def _shown(value: object) -> str:
    text = "missing" if value is None else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
