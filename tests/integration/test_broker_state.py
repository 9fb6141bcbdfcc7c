from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rankmq.schemas.errors import AlreadyRunning, ConfigurationError
from rankmq.workers import broker_state
from rankmq.workers.broker_config import Account
from rankmq.workers.broker_state import StateFolder, reserve_ports


def test_folder_is_for_one_at_a_time(tmp_path):
    one, other = StateFolder(tmp_path / "state"), StateFolder(tmp_path / "state")
    one.take(time.monotonic())

    with pytest.raises(AlreadyRunning, match=rf"in use by process {os.getpid()}: "):
        other.take(time.monotonic() + 60)  # does not wait for somebody who is well

    one.release()
    other.take(time.monotonic())
    other.release()
    other.release()


def test_folder_is_free_when_released_though_a_child_holds_the_file(tmp_path):
    one = StateFolder(tmp_path)
    lock = one.take(time.monotonic())
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=(lock,)) as child:
        one.release()
        StateFolder(tmp_path).take(time.monotonic())
        child.communicate(b"\n")


HOLD = """
import fcntl, os, subprocess, sys
lock = open(sys.argv[1], "a+")
fcntl.flock(lock, fcntl.LOCK_EX)
lock.write(str(os.getpid()))
lock.flush()
child = subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({sys.argv[2]})"], pass_fds=(lock.fileno(),))
print(os.getpid(), flush=True)
"""


def dead_owner_with_child(folder, seconds: float) -> int:
    """Somebody took the folder and died; a child of it goes on for a while."""
    folder.mkdir(exist_ok=True)
    (folder / "log").mkdir(exist_ok=True)
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder / "lock"), str(seconds)], stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None
        return int(owner.stdout.readline())


def test_folder_of_a_dead_owner_is_waited_for(tmp_path):
    dead_owner_with_child(tmp_path, 0.5)

    begun = time.monotonic()
    StateFolder(tmp_path).take(begun + 30)
    assert time.monotonic() - begun < 20


def test_waiting_for_what_a_dead_owner_left_is_bounded(tmp_path):
    pid = dead_owner_with_child(tmp_path, 20)

    begun = time.monotonic()
    with pytest.raises(AlreadyRunning, match=f"in use by process {pid}"):
        StateFolder(tmp_path).take(begun + 0.3)
    assert 0.3 <= time.monotonic() - begun < 10


@pytest.mark.parametrize("left", ["", "not a number", "99999999999999999999"])
def test_stale_lock_file_does_not_block(tmp_path, left):
    (tmp_path / "lock").write_text(left)

    StateFolder(tmp_path).take(time.monotonic())
    assert (tmp_path / "lock").read_text() == str(os.getpid())


def test_folder_is_closed_to_others_whatever_it_was(tmp_path):
    tmp_path.chmod(0o755)

    StateFolder(tmp_path).take(time.monotonic())
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o700


def test_account_is_kept(tmp_path):
    state = StateFolder(tmp_path)
    account = state.account()

    state.keep(account)
    assert StateFolder(tmp_path).account() == account
    assert stat.S_IMODE((tmp_path / "broker.json").stat().st_mode) == 0o600


def test_damaged_account_is_not_replaced(tmp_path):
    (tmp_path / "broker.json").write_text("{}")

    with pytest.raises(ConfigurationError, match=r"broker\.json: does not hold"):
        StateFolder(tmp_path).account()
    assert (tmp_path / "broker.json").read_text() == "{}"


def test_cookie_is_made_once(tmp_path):
    state = StateFolder(tmp_path)
    state.make_cookie()
    cookie = (tmp_path / ".erlang.cookie").read_text()

    state.make_cookie()
    assert (tmp_path / ".erlang.cookie").read_text() == cookie
    assert len(cookie) >= 32


def test_written_files_are_private_from_the_start(tmp_path):
    (tmp_path / "secret").write_text("old")
    (tmp_path / "secret").chmod(0o666)

    StateFolder(tmp_path).write("secret", "new")
    assert (tmp_path / "secret").read_text() == "new"
    assert stat.S_IMODE((tmp_path / "secret").stat().st_mode) == 0o600


def account_with(**ports: int) -> Account:
    return Account(user="u", password="p", ports=ports)


def test_ports_are_distinct_and_come_back():
    with reserve_ports(account_with(), tls=True) as first:
        assert len(set(first.by_name().values())) == 4
    with reserve_ports(account_with(**first.by_name()), tls=True) as second:
        assert second == first
    with reserve_ports(account_with(**first.by_name())) as without_tls:
        assert without_tls.tls is None


def test_chosen_ports_are_not_those_of_outgoing_connections():
    low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    with reserve_ports(account_with(), tls=True) as ports:
        assert not [port for port in ports.by_name().values() if low <= port <= high]


def test_two_choosing_at_once_never_choose_the_same(monkeypatch):
    offered = [20001, 20001, 20002, 20003, 20004, 20005, 20006, 20007]
    monkeypatch.setattr(broker_state, "_fresh_ports", lambda: iter(offered))
    with reserve_ports(account_with()) as one, reserve_ports(account_with()) as other:
        assert not set(one.by_name().values()) & set(other.by_name().values())


def test_last_port_is_replaced_when_somebody_else_listens_there():
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        with reserve_ports(account_with(amqp=taken)) as ports:
            assert ports.amqp != taken


def test_wanted_port_that_is_taken_is_refused():
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        with pytest.raises(AlreadyRunning, match=f"port {taken} is taken"), reserve_ports(account_with(), amqp=taken):
            pass


def test_reserved_port_can_be_listened_on_by_the_node_alone():
    with reserve_ports(account_with()) as ports:
        with socket.socket() as stranger, pytest.raises(OSError, match="in use"):
            stranger.bind(("127.0.0.1", ports.amqp))
        with socket.socket() as node:
            node.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as Erlang and epmd do
            node.bind(("127.0.0.1", ports.amqp))
            node.listen()
