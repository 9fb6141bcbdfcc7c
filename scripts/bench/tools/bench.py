"""What a benchmark is given: how long it may take, a place for files, a broker, and somebody to tell how far it is."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from ....engine.settings import Settings
from ....schemas.errors import ConfigurationError
from ....workers.broker import PrivateBroker

__all__ = ["Bench", "Machine"]

_T = TypeVar("_T")
_QUICK_ROUNDS = 2
_QUICK_PART = 10


class Machine:
    """What the benchmarks of one run share. Ends what it has started at the end of the block.

    Args:
        settings: with a broker, or without: then there will be a private one.
        folder: for everything that is written.
        examples: the folder of the examples of a clone.
        quick: whether to measure but briefly.
        rounds: how many, whatever a benchmark would like.
        say: shows what is being done.
    """

    def __init__(
        self,
        settings: Settings,
        folder: Path,
        examples: Path,
        *,
        quick: bool = False,
        rounds: int | None = None,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.settings = settings
        self.folder = folder
        self.examples = examples
        self.quick = quick
        self.wanted_rounds = rounds
        self.say = say
        self._stack = ExitStack()

    def __enter__(self) -> Machine:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @cached_property
    def broker_url(self) -> str:
        """The URL of a broker, started when it is first asked for."""
        if self.settings.broker_url is not None:
            return self.settings.address().url()
        self.say("starting a broker")
        return self._stack.enter_context(PrivateBroker(self.folder / "broker")).url


class Bench:
    """One benchmark's turn. What it enters is left at the end of the block, the last first.

    Args:
        name: its name.
        machine: see `Machine`.
    """

    def __init__(self, name: str, machine: Machine) -> None:
        self.name = name
        self._machine = machine
        self._stack = ExitStack()

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def quick(self) -> bool:
        """Whether to measure but briefly."""
        return self._machine.quick

    @property
    def settings(self) -> Settings:
        """The settings of this run."""
        return self._machine.settings

    @property
    def broker_url(self) -> str:
        """The URL of the broker of this run."""
        return self._machine.broker_url

    def has(self, package: str) -> bool:
        """Whether a package is installed."""
        return importlib.util.find_spec(package) is not None

    def rounds(self, usual: int) -> int:
        """How many rounds."""
        return self._machine.wanted_rounds or (min(usual, _QUICK_ROUNDS) if self.quick else usual)

    def seconds(self, usual: float) -> float:
        """How long one side of a round takes."""
        return usual / _QUICK_PART if self.quick else usual

    def count(self, usual: int) -> int:
        """How many calls one side of a round makes."""
        return max(2, usual // _QUICK_PART) if self.quick else usual

    def say(self, text: str) -> None:
        """Shows what is being done."""
        self._machine.say(f"{self.name}: {text}")

    def enter(self, context: AbstractContextManager[_T]) -> _T:
        """Enters a context that is left when the benchmark is over."""
        return self._stack.enter_context(context)

    def folder(self, name: str) -> Path:
        """A folder of this run; benchmarks that give the same name share it."""
        path = self._machine.folder / name
        path.mkdir(parents=True, exist_ok=True)
        return path

    def example(self, name: str) -> Path:
        """The folder of an example.

        Raises:
            ConfigurationError: it is not there.
        """
        found = self._machine.examples / name
        if not (found / "export_model.py").is_file():
            raise ConfigurationError(
                f"no export_model.py in {found}: run this in a clone of rankmq, or give --examples"
            )
        return found
