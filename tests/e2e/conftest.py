"""Fixtures for whole engines. What a test damages it starts for itself, on a virtual host of its own."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from rankmq.workers.broker import PrivateBroker

from tests.e2e.gallery import write_gallery
from tests.e2e.systems import System, Vhosts, running

Start = Callable[..., System]


@pytest.fixture(scope="session")
def vhosts(broker: PrivateBroker) -> Vhosts:
    return Vhosts(broker)


@pytest.fixture
def build(vhosts: Vhosts, tmp_path: Path) -> Iterator[Start]:
    """Makes a system of the servables in `tmp_path`, which it does not start; ends it after the test."""
    with ExitStack() as stack:

        def make(*servables: str | tuple[str, int], url: str | None = None, **settings: Any) -> System:
            logs = tmp_path / "logs"
            logs.mkdir(exist_ok=True)
            system = System(url or vhosts.url(), tmp_path, servables, logs, **settings)
            stack.callback(system.close)
            return system

        yield make


@pytest.fixture
def start(build: Start) -> Start:
    """The same, and waits until it serves."""

    def begin(*servables: str | tuple[str, int], **settings: Any) -> System:
        system = build(*servables, **settings)
        system.__enter__()
        system.wait_ready()
        return system

    return begin


@pytest.fixture(scope="session")
def gallery(vhosts: Vhosts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """Every servable of `gallery`, served by one orchestrator, for the tests that damage nothing."""
    directory, logs = tmp_path_factory.mktemp("gallery"), tmp_path_factory.mktemp("logs")
    servables = write_gallery(directory)
    with running(System(vhosts.url(), directory, servables, logs, heartbeats_missed=30)) as system:
        yield system
