from __future__ import annotations

from pathlib import Path

import pytest
from rankmq.workers.broker_server import Server, find_server, link_modules, link_plugins


def make(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    path.chmod(0o755)
    return path


@pytest.fixture
def installed(tmp_path):
    """A RabbitMQ, an Erlang, and nothing else on the PATH."""
    home = tmp_path / "rabbitmq_server-4.0.5"
    for name in ("rabbitmq-server", "rabbitmqctl", "rabbitmq-env"):
        make(home / "sbin" / name)
    for module in (
        "rabbit-4.0.5/ebin/rabbit",
        "ra-2/ebin/ra",
        "rabbitmq_shovel-4/ebin/shovel",
        "rabbitmq_prelaunch-4/ebin/pre",
    ):
        make(home / "plugins" / f"{module}.beam")
    make(home / "plugins/rabbit-4.0.5/ebin/rabbit.app")
    make(home / "plugins/README")
    for module in ("kernel-8/ebin/kernel", "ssl-10/ebin/ssl"):
        make(tmp_path / "erlang/lib" / f"{module}.beam")
    return Server(home / "sbin/rabbitmq-server", home, make(tmp_path / "bin/epmd"), tmp_path / "erlang")


def test_newest_version_is_found(tmp_path, monkeypatch):
    for version in ("3.9.11", "3.13.2", "3.8.30"):
        for name in ("rabbitmq-server", "rabbitmq-env"):
            make(tmp_path / f"rabbitmq_server-{version}/sbin/{name}")
    monkeypatch.setenv("PATH", str(tmp_path))

    assert find_server([f"{tmp_path}/none", f"{tmp_path}/rabbitmq_server-*/sbin"]) == (
        tmp_path / "rabbitmq_server-3.13.2/sbin/rabbitmq-server"
    )


def test_link_on_the_path_is_found_and_a_wrapper_is_not(tmp_path, installed, monkeypatch):
    wrapper = make(tmp_path / "wrap/rabbitmq-server")
    monkeypatch.setenv("PATH", str(wrapper.parent))
    assert find_server([]) is None

    link = tmp_path / "linked/rabbitmq-server"
    link.parent.mkdir()
    link.symlink_to(installed.script)
    monkeypatch.setenv("PATH", str(link.parent))
    assert find_server([]) == link


def test_server_needs_erlang(tmp_path, installed, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    assert Server.at(installed.script) is None

    erl = make(tmp_path / "erlang/bin/erl")
    make(tmp_path / "erlang/erts-13/bin/epmd")
    monkeypatch.setenv("PATH", str(erl.parent))
    server = Server.at(installed.script)
    assert server is not None
    assert server.home == installed.home
    assert server.ctl == installed.home / "sbin/rabbitmqctl"
    assert server.epmd == tmp_path / "erlang/erts-13/bin/epmd"
    assert server.erlang == tmp_path / "erlang"


def test_modules_are_linked_once(tmp_path, installed):
    folder = link_modules(installed, tmp_path / "modules")

    links = {link.name: link for link in folder.iterdir() if link.is_symlink()}
    assert links.keys() == {"rabbit.beam", "ra.beam", "pre.beam", "ssl.beam"}
    assert links["ra.beam"].resolve() == installed.home / "plugins/ra-2/ebin/ra.beam"

    links["ra.beam"].unlink()  # would be made again, were the folder not left as it is
    assert not (link_modules(installed, folder) / "ra.beam").exists()


def test_modules_are_linked_again_after_an_upgrade(tmp_path, installed):
    folder = link_modules(installed, tmp_path / "modules")
    (installed.home / "plugins/ra-2").rename(installed.home / "plugins/ra-3")

    link_modules(installed, folder)

    assert (folder / "ra.beam").resolve() == installed.home / "plugins/ra-3/ebin/ra.beam"
    assert (folder / "ra.beam").exists()


def test_plugins_folder_has_rabbit_alone_and_follows_an_upgrade(tmp_path, installed):
    folder = link_plugins(installed, tmp_path / "plugins")
    assert [link.name for link in folder.iterdir()] == ["rabbit-4.0.5"]

    (installed.home / "plugins/rabbit-4.0.5").rename(installed.home / "plugins/rabbit-4.1.0")
    link_plugins(installed, folder)
    assert [link.name for link in folder.iterdir()] == ["rabbit-4.1.0"]
    assert (folder / "rabbit-4.1.0/ebin/rabbit.app").is_file()
