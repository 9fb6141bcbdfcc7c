"""The TCP proxy that the faults are made with."""

import socket
from collections.abc import Iterator

import pytest
from rankmq.scripts.chaos.proxy import Proxy


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(5)
        yield listener


@pytest.fixture
def proxy(server: socket.socket) -> Iterator[Proxy]:
    with Proxy(*server.getsockname()) as found:
        yield found


def connect(proxy: Proxy, server: socket.socket) -> tuple[socket.socket, socket.socket]:
    near = socket.create_connection(("127.0.0.1", proxy.port), 5)
    far, _ = server.accept()
    far.settimeout(5)
    near.sendall(b"?")
    assert read(far, 1) == b"?"  # only now the proxy is known to pass on
    return near, far


def read(end: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count and (more := end.recv(1 << 20)):
        data += more
    return data


def test_what_comes_goes_on_both_ways(proxy: Proxy, server: socket.socket) -> None:
    near, far = connect(proxy, server)
    body = bytes(range(256)) * 2000
    near.sendall(b"hello")
    assert read(far, 5) == b"hello"
    far.sendall(body)
    assert read(near, len(body)) == body


def test_the_end_of_one_side_is_the_end_of_the_other(proxy: Proxy, server: socket.socket) -> None:
    near, far = connect(proxy, server)
    near.close()
    assert far.recv(1) == b""


def test_cut_ends_both_sides_and_lets_new_ones_through(proxy: Proxy, server: socket.socket) -> None:
    pairs = [connect(proxy, server) for _ in range(3)]
    for near, far in pairs:
        near.sendall(b"a")
        assert read(far, 1) == b"a"
    assert proxy.cut() == 3
    for near, far in pairs:
        assert near.recv(1) == far.recv(1) == b""
    assert proxy.cut() == 0
    near, far = connect(proxy, server)
    near.sendall(b"again")
    assert read(far, 5) == b"again"


def test_silence_holds_everything_back_and_closes_nothing(proxy: Proxy, server: socket.socket) -> None:
    near, far = connect(proxy, server)
    proxy.silence()
    near.sendall(b"held")
    far.settimeout(0.3)
    with pytest.raises(TimeoutError):
        far.recv(1)
    proxy.resume()
    far.settimeout(5)
    assert read(far, 4) == b"held"


def test_what_was_held_back_is_gone_when_the_connection_is_cut(proxy: Proxy, server: socket.socket) -> None:
    near, far = connect(proxy, server)
    proxy.silence()
    near.sendall(b"held")
    proxy.cut()
    proxy.resume()
    assert far.recv(4) == b""


def test_where_nobody_listens_a_connection_is_reset() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
    with Proxy(*address) as proxy, pytest.raises(ConnectionResetError):
        socket.create_connection(("127.0.0.1", proxy.port), 5).recv(1)


def test_it_ends_with_its_block(server: socket.socket) -> None:
    with Proxy(*server.getsockname()) as proxy:
        near, far = connect(proxy, server)
    assert near.recv(1) == far.recv(1) == b""
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", proxy.port), 5)
