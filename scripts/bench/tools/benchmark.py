"""What a benchmark is, and which there are."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .bench import Bench
    from .row import Row

__all__ = ["Benchmark", "benchmarks", "chosen"]

_PACKAGE = __package__.rpartition(".")[0]


@dataclass(frozen=True, slots=True)
class Benchmark:
    """One name of `rankmq bench`.

    Attributes:
        order: where it stands among the others.
        about: what it measures and what it is held against, in one line.
        run: measures; gives each row as soon as it has it.
        needs: packages that it cannot do without, by the name under which they are imported.
        name: that of its module; filled in by `benchmarks`.
    """

    order: int
    about: str
    run: Callable[[Bench], Iterator[Row]]
    needs: tuple[str, ...] = ()
    name: str = ""


def benchmarks() -> dict[str, Benchmark]:
    """All benchmarks by name, in their order."""
    found = []
    package = importlib.import_module(_PACKAGE)
    for module in pkgutil.iter_modules(package.__path__):
        if not module.ispkg:
            given: Benchmark = importlib.import_module(f"{_PACKAGE}.{module.name}").BENCHMARK
            found.append(Benchmark(given.order, given.about, given.run, given.needs, module.name))
    return {it.name: it for it in sorted(found, key=lambda it: (it.order, it.name))}


def chosen(names: Sequence[str], known: dict[str, Benchmark]) -> list[Benchmark]:
    """The benchmarks of these names, each once, in their own order; all of them where none is named.

    Raises:
        KeyError: there is none of a name; its argument is that name.
    """
    for name in names:
        if name not in known:
            raise KeyError(name)
    return [it for it in known.values() if not names or it.name in names]
