"""Looking at processes that may end while they are looked at."""

import psutil

__all__ = ["command", "runs"]


def command(process: psutil.Process) -> str:
    """The command line of a process; "" where it has ended."""
    try:
        return " ".join(process.cmdline()) if process.status() != psutil.STATUS_ZOMBIE else ""
    except psutil.NoSuchProcess:
        return ""


def runs(process: psutil.Process | int) -> bool:
    """Whether a process has not ended."""
    try:
        process = psutil.Process(process) if isinstance(process, int) else process
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
