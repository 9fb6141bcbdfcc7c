"""A process that keeps a private node and its epmd as its children, and ends both when their owner is gone.

An owner that is killed cannot tidy up after itself, so this is a process of its own: in a session of its own, so that
Ctrl-C in a terminal does not reach the node, and with the standard library alone, so that it starts in 20 ms. It is
told what to start by one line of JSON on its standard input and answers with one on its standard output. It ends the
node when it is told how many seconds that may take, when its standard input is closed, when the owner is gone, or on
SIGTERM. Should it be killed itself, its children go with it (on Linux).

`Guard` is the owner's end, `main` is the other.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["Guard"]

_PR_SET_PDEATHSIG = 1
_EPMD_NAMES = b"\x00\x01n"  # epmd's NAMES_REQ; it answers with its port, four bytes
_REAP_TIMEOUT = 5.0  # seconds
_LOOK_AFTER_OWNER = 1.0  # seconds; only where the kernel cannot tell us at once


class Guard:
    """The guard, seen from its owner. It starts nothing before `order`.

    Args:
        lock: a file descriptor that the guard and its children hold open.
    """

    def __init__(self, lock: int) -> None:
        theirs, self._tell = os.pipe()
        self._hear, answer = os.pipe()
        self._lock = lock
        self.pid = 0  # of the node
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(Path(__file__).absolute())],
                stdin=theirs,
                stdout=answer,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                pass_fds=(lock,),
            )
        finally:
            os.close(theirs)
            os.close(answer)

    def order(
        self,
        *,
        epmd: Sequence[str],
        epmd_port: int,
        node: Sequence[str],
        environment: Mapping[str, str],
        folder: Path,
        output: Path,
        timeout: float,
        stop_timeout: float,
    ) -> bool:
        """Have epmd started and, when it listens, the node.

        Args:
            epmd: its command.
            epmd_port: where it will listen.
            node: the node's command.
            environment: of both.
            folder: in which both run.
            output: a file for what they print.
            timeout: seconds that epmd has.
            stop_timeout: seconds that the node has for its end when its owner is gone.

        Returns:
            Whether the node was started.
        """
        order = {
            "owner": os.getpid(),
            "lock": self._lock,
            "epmd": list(epmd),
            "epmd_port": epmd_port,
            "epmd_timeout": timeout,
            "node": list(node),
            "env": dict(environment),
            "cwd": str(folder),
            "output": str(output),
            "stop_timeout": stop_timeout,
        }
        with contextlib.suppress(BrokenPipeError):
            _write(self._tell, json.dumps(order).encode() + b"\n")
        if not select.select([self._hear], [], [], timeout + 5)[0]:
            return False
        answer = _first_line(self._hear)
        if answer:
            self.pid = int(json.loads(answer)["node"])
        return bool(answer)

    def alive(self) -> bool:
        """Whether the node runs."""
        return self._process.poll() is None

    def wait(self, timeout: float | None) -> bool:
        """Wait up to `timeout` seconds for the node's end; whether it has ended."""
        if not select.select([self._hear], [], [], timeout)[0]:
            return False
        self._process.wait(_REAP_TIMEOUT)  # its output is closed by its exit
        return True

    def end(self, timeout: float) -> bool:
        """Have the node and epmd ended, and wait for it.

        Args:
            timeout: seconds until the node is killed.

        Returns:
            Whether the guard did as it was told; if not, all were killed.
        """
        with contextlib.suppress(BrokenPipeError):
            _write(self._tell, f"{timeout}\n".encode())
        os.close(self._tell)
        os.close(self._hear)
        try:
            self._process.wait(timeout + 5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            return False
        return True


def main() -> int:
    """Start the children, wait for the end, see to it.

    Returns:
        The node's exit code; 0 if it was told to end.
    """
    for ignored in (signal.SIGINT, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    wake, wake_in = os.pipe()
    os.set_blocking(wake_in, False)
    signal.set_wakeup_fd(wake_in)
    for awaited in (signal.SIGCHLD, signal.SIGTERM):
        signal.signal(awaited, lambda *_: None)
    line = _first_line(0)
    if not line:
        return 0
    order = json.loads(line)
    with open(order["output"], "wb") as output:
        epmd = _child(order, "epmd", output.fileno())
        try:
            if not _answers(order["epmd_port"], epmd, until=time.monotonic() + order["epmd_timeout"]):
                return 1
            node = _child(order, "node", output.fileno())
            with contextlib.suppress(BrokenPipeError):
                os.write(1, json.dumps({"node": node.pid, "epmd": epmd.pid}).encode() + b"\n")
            timeout = _wait_for_end(node, wake, owner=order["owner"], otherwise=order["stop_timeout"])
            told = node.poll() is None
            _end(node, timeout)
            return 0 if told else node.returncode
        finally:
            _end(epmd, 2.0)


def _write(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def _first_line(descriptor: int) -> bytes:
    """Read to the end of the first line, past which nothing comes until the end is wanted; b"" if there is none."""
    line = b""
    while not line.endswith(b"\n"):
        more = os.read(descriptor, 65536)
        if not more:
            return b""
        line += more
    return line


def _child(order: dict[str, Any], name: str, output: int) -> subprocess.Popen[bytes]:
    # This process has one thread: code between fork and exec is safe, and "when the parent's thread ends" is its end.
    return subprocess.Popen(
        order[name],
        env=order["env"],
        cwd=order["cwd"],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        pass_fds=(order["lock"],),  # the state folder is in use for as long as one of them lives
        preexec_fn=_die_with_parent(),  # noqa: PLW1509
    )


def _die_with_parent() -> Callable[[], None] | None:
    if sys.platform != "linux":
        return None
    prctl, parent = ctypes.CDLL(None, use_errno=True).prctl, os.getpid()

    def ask() -> None:
        prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)

    return ask


def _answers(port: int, process: subprocess.Popen[bytes], *, until: float) -> bool:
    while time.monotonic() < until and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1) as asked:
            asked.sendall(_EPMD_NAMES)
            if asked.recv(4) == port.to_bytes(4, "big"):
                return True
        time.sleep(0.005)  # epmd has no other way to say that it listens
    return False


def _wait_for_end(node: subprocess.Popen[bytes], wake: int, *, owner: int, otherwise: float) -> float:
    """Return when the node has ended, or is to end: the seconds it has for that, `otherwise` if nobody says."""
    poller = select.poll()
    poller.register(wake, select.POLLIN)
    poller.register(0, select.POLLIN | select.POLLHUP)
    timeout: float | None = _LOOK_AFTER_OWNER * 1000
    with contextlib.suppress(OSError, AttributeError):  # before Linux 5.3, and elsewhere
        poller.register(os.pidfd_open(owner), select.POLLIN)
        timeout = None
    while node.poll() is None and os.getppid() == owner:
        ready = {descriptor for descriptor, _ in poller.poll(timeout)}
        if 0 in ready:
            return float(_first_line(0) or otherwise)
        if ready - {wake} or (wake in ready and signal.SIGTERM in os.read(wake, 64)):
            break
    return otherwise


def _end(process: subprocess.Popen[bytes], timeout: float) -> None:
    """SIGTERM, and SIGKILL when that has not helped within `timeout` seconds."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


if __name__ == "__main__":
    sys.exit(main())
