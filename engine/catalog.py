"""The servables that one engine serves, by name and version."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ..schemas.errors import ServableError, UnknownMethod, UnknownServable, UnknownVersion
from .servable import Method, MethodCall, Pipeline, Servable

__all__ = ["Catalog"]


class Catalog:
    """Several servables, each in one or more versions, that may call each other's methods.

    Args:
        servables: as loaded.

    Raises:
        ServableError: one twice, or a `PipelineServable` that names something that is not among them; with its line.
    """

    def __init__(self, servables: Iterable[Servable]) -> None:
        self._servables: dict[str, dict[int, Servable]] = {}
        for servable in servables:
            versions = self._servables.setdefault(servable.name, {})
            if servable.version in versions:
                raise ServableError(f"servable {servable.name} version {servable.version} is loaded twice")
            versions[servable.version] = servable
        for servable in self:
            for call in servable.calls:
                self._check(call)

    def __iter__(self) -> Iterator[Servable]:
        for versions in self._servables.values():
            yield from versions.values()

    def __len__(self) -> int:
        return sum(map(len, self._servables.values()))

    def servable(self, name: str, version: int = 0) -> Servable:
        """A servable by name and version; 0 is the newest.

        Raises:
            UnknownServable: no servable has this name.
            UnknownVersion: it is not there in this version.
        """
        versions = self._servables.get(name)
        if versions is None:
            raise UnknownServable(f"no servable is named {name!r}; there are: {_names(self._servables)}")
        found = versions.get(max(versions) if version == 0 else version)
        if found is None:
            known = ", ".join(str(number) for number in sorted(versions))
            raise UnknownVersion(f"servable {name} is not served in version {version}; there are: {known}")
        return found

    def resolve(self, servable: str, version: int, method: str) -> tuple[Servable, Method | Pipeline]:
        """What a request asks for.

        Args:
            servable: its name.
            version: its version; 0 is the newest.
            method: the name of a method or pipeline.

        Raises:
            UnknownServable: no servable has this name.
            UnknownVersion: it is not there in this version.
            UnknownMethod: it has neither method nor pipeline of this name.
        """
        found = self.servable(servable, version)
        entry = found.methods.get(method) or found.pipelines.get(method)
        if entry is None:
            known = _names([*found.methods, *found.pipelines])
            raise UnknownMethod(f"servable {servable} has no method or pipeline {method!r}; there are: {known}")
        return found, entry

    def _check(self, call: MethodCall) -> None:
        try:
            _, entry = self.resolve(call.servable, call.version, call.method)
        except (UnknownServable, UnknownVersion, UnknownMethod) as error:
            raise _error(f"PipelineServable: {error.message}", call) from error
        if isinstance(entry, Pipeline):
            raise _error(f"PipelineServable names {call.method}, a pipeline: it can name methods only", call)


def _names(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"


def _error(message: str, call: MethodCall) -> ServableError:
    return ServableError(message, file=call.where.file, line=call.where.line)
