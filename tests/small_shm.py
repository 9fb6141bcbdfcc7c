"""A small /dev/shm for one process, in a mount namespace of its own; where the machine lets nobody have one, a skip."""

import subprocess

import pytest

__all__ = ["small_shm", "within"]


def small_shm(size: str) -> str:
    """A command that makes /dev/shm small, for the process alone."""
    mount = f"mount -t tmpfs -o size={size} tmpfs /dev/shm"
    try:
        done = subprocess.run(["unshare", "--mount", "sh", "-c", mount], capture_output=True, text=True, timeout=20)
    except FileNotFoundError:
        pytest.skip("needs unshare")
    if done.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    return mount


def within(before: str, command: list[str]) -> list[str]:
    """The command in a namespace of its own, once `before` has run there."""
    return ["unshare", "--mount", "sh", "-c", f'{before} && exec "$@"', "sh", *command]
