"""What cannot start says why in one line, with an exit code that a script can use; and it does not try for ever.

Brokers that are not there, that refuse a user, and taken ports are in `test_cli_roles`.
"""

import time
from pathlib import Path

import pika
import pytest
from rankmq.engine.address import BrokerAddress

from tests.e2e.cli import Service, failed, rankmq
from tests.e2e.graphs import WORDS, Graph, op, spec, write_servable
from tests.e2e.systems import Vhosts, wait_until

RANKS = 2
CONFIGURATION = (
    WORDS
    + f"""
distributed.declare_servable({RANKS}, 1, with_batch_dim=False)

@register.register_method(output_names=["y"])
def negate(x):
    y = register.call_servable(x, subgraph=0)
    return y
"""
)


def negate(*shape: int, kind: str = "negative") -> Graph:
    return Graph([op(kind, "x", "y")], [spec("x", *shape)], [spec("y", *shape)])


@pytest.fixture
def url(vhosts: Vhosts) -> str:
    return vhosts.url()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """The folder of a servable that can be served, to begin with."""
    write_servable(tmp_path / "servables", "small", CONFIGURATION, {"negate": lambda _: negate(4)}, ranks=RANKS)
    return tmp_path / "servables" / "small"


def model_file(home: Path, rank: int, name: str = "negate.npz") -> Path:
    return home / "1" / f"device{rank}" / name


def test_an_unknown_virtual_host(home: Path, url: str) -> None:
    nowhere = url + "-that-is-not-there"
    for role in ("orchestrator", "agents"):
        began = time.monotonic()
        message = failed(rankmq(role, home, broker_url=nowhere), 4)
        assert "virtual host" in message or "vhost" in message
        assert BrokerAddress.parse(url).password not in message
        assert time.monotonic() - began < 15


def test_a_wrong_configuration(home: Path, url: str) -> None:
    file = home / "servable_config.py"
    file.write_text(CONFIGURATION.replace("subgraph=0", "subgraph=1"))
    line = next(number for number, text in enumerate(file.read_text().splitlines(), 1) if "subgraph=1" in text)
    for role in ("orchestrator", "agents"):
        message = failed(rankmq(role, home, broker_url=url), 3)
        assert f"{file}:{line}: " in message
        assert "no model file stands for it" in message


def test_a_missing_model_file(home: Path, url: str) -> None:
    model_file(home, 1).unlink()
    message = failed(rankmq("agents", home, broker_url=url), 5)
    assert "rank 1" in message
    assert str(model_file(home, 1).parent) in message


@pytest.mark.parametrize("content", [b"", b"no graph at all", "cut"], ids=["empty", "junk", "cut short"])
def test_an_unreadable_model_file(home: Path, url: str, content: bytes | str) -> None:
    file = model_file(home, 1)
    file.write_bytes(file.read_bytes()[:300] if isinstance(content, str) else content)
    assert "negate.npz" in failed(rankmq("agents", home, broker_url=url), 5)


@pytest.mark.mindspore
@pytest.mark.parametrize("content", [b"", b"no graph at all"], ids=["empty", "junk"])
def test_an_unreadable_mindir(home: Path, url: str, content: bytes) -> None:
    for rank in range(RANKS):
        model_file(home, rank).unlink()
        model_file(home, rank, "negate.mindir").write_bytes(content)
    assert "negate.mindir" in failed(rankmq("agents", home, broker_url=url), 5)


def test_model_files_of_different_kinds(home: Path, url: str) -> None:
    model_file(home, 0, "second.mindir").write_bytes(b"")
    model_file(home, 1, "second.mindir").write_bytes(b"")
    message = failed(rankmq("agents", home, broker_url=url), 5)
    assert ".mindir" in message
    assert ".npz" in message


def test_ranks_with_different_models(home: Path, url: str, tmp_path: Path) -> None:
    """Orchestrator and agents end both, and say the same."""
    negate(5).write(model_file(home, 1))
    with (
        Service(tmp_path, "orchestrator", home, broker_url=url) as orchestrator,
        Service(tmp_path, "agents", home, broker_url=url) as agents,
    ):
        for service in (orchestrator, agents):
            message = failed(service, 5)
            assert "rank 1" in message
            assert "(5,)" in message
            assert "(4,)" in message
        assert agents.left_behind(5) == []


def test_ranks_that_do_not_fit_their_layouts(home: Path, url: str, tmp_path: Path) -> None:
    sharded = CONFIGURATION.replace("dim=False", "dim=False, subgraphs=[subgraph('negate.npz', [shard(1)])]")
    (home / "servable_config.py").write_text(sharded)
    with (
        Service(tmp_path, "orchestrator", home, broker_url=url) as orchestrator,
        Service(tmp_path, "agents", home, broker_url=url) as agents,
    ):
        assert "no axis 1 for shard(1)" in failed(orchestrator, 5)
        assert "no axis 1 for shard(1)" in failed(agents, 5)


def test_ranks_that_do_not_come(home: Path, url: str, tmp_path: Path) -> None:
    with Service(tmp_path, "agents", home, "--ranks", 0, broker_url=url) as agents:
        began = time.monotonic()
        message = failed(rankmq("orchestrator", home, broker_url=url, wait_agents_time_in_seconds=3), 6)
        assert 3 <= time.monotonic() - began < 15
        assert "small.v1.g0" in message
        assert "ranks 1 have not registered" in message
        assert agents.process.poll() is None  # it waits for another orchestrator
        assert agents.stop() == 0


def test_a_rank_that_is_held(home: Path, url: str, tmp_path: Path) -> None:
    """The holder does not notice; the other one ends."""
    with (
        Service(tmp_path, "orchestrator", home, broker_url=url) as orchestrator,
        Service(tmp_path, "agents", home, broker_url=url) as agents,
    ):
        wait_until(lambda: "is ready: epoch 1" in orchestrator.errors, "the group")
        began = time.monotonic()
        message = failed(rankmq("agents", home, "--ranks", 1, broker_url=url), 7)
        assert time.monotonic() - began < 20
        assert "rank 1 of small.v1.g0 is held by pid " in message
        assert "epoch 2" not in orchestrator.errors
        assert rankmq("infer", "small", "negate", "-i", "x=[1,2,3,4]", broker_url=url).returncode == 0
        for service in (orchestrator, agents):
            assert service.stop() == 0


def test_agents_that_come_back_with_other_models(home: Path, url: str, tmp_path: Path) -> None:
    """The group goes on with the models that it has served with, and with no others."""
    with Service(tmp_path, "orchestrator", home, broker_url=url) as orchestrator:
        with Service(tmp_path, "agents", home, broker_url=url) as agents:
            wait_until(lambda: "is ready: epoch 1" in orchestrator.errors, "the group")
            assert agents.stop() == 0
        kept = model_file(home, 1).read_bytes()
        negate(4, kind="identity").write(model_file(home, 1))
        message = failed(rankmq("agents", home, broker_url=url), 5)
        assert "rank 1" in message
        assert "other model files" in message
        assert orchestrator.process.poll() is None
        model_file(home, 1).write_bytes(kept)
        with Service(tmp_path, "agents", home, broker_url=url):
            wait_until(lambda: "is ready: epoch 2" in orchestrator.errors, "the group again")


def test_a_queue_that_was_declared_otherwise(home: Path, url: str) -> None:
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        connection.channel().queue_declare("rankmq.requests.small.normal", durable=True)
    message = failed(rankmq("orchestrator", home, broker_url=url), 3)
    assert "rankmq.requests.small.normal" in message
    assert "declared before with other arguments" in message
