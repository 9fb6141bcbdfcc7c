"""The compiled libraries: made on first use, and kept for all ranks and all later starts.

There are two: the collectives, and what has operators run on the thread that calls them, which must show MindSpore one
name and nothing else. Other sources, another compiler or other flags make another library. When one is made, old ones
of its kind are removed: those that nobody has asked for within `KEEP_DAYS`, but for the `KEEP` that were asked for
last. Every start of an agent and every epoch asks, so that one in use is not among them; should it be all the same, it
is made again.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from ...schemas.errors import CollectivesUnavailable
from .lock import held

__all__ = [
    "KEEP",
    "KEEP_DAYS",
    "SOURCES",
    "cache_folder",
    "calling_thread_library",
    "compile_command",
    "find_compiler",
    "library",
]

log = logging.getLogger(__name__)

SOURCES = Path(__file__).parent / "native"
"""The folder of the C++ sources."""

KEEP = 3
"""How many libraries of a kind are kept however old they are."""

KEEP_DAYS = 30
"""For how many days after it was last asked for a library is kept."""

_COLLECTIVES = "collectives"
_CALLING_THREAD = "calling_thread"  # the name of its sources, too: one of C++, and one for the linker
_COMPILERS = ("c++", "g++", "clang++")
_FLAGS = (
    *("-std=c++17", "-O3", "-fno-trapping-math", "-Wall", "-Wextra"),
    *("-fPIC", "-shared", "-pthread", "-fvisibility=hidden"),
    "-D_GLIBCXX_USE_CXX11_ABI=0",  # as MindSpore is built: vectors of ours are handed to it
    "-Wl,-z,nodelete",  # MindSpore closes the library with its last operator, and the group would be gone with it
    "-Wl,-z,defs",
)
_MACHINE_FLAGS = {"x86_64": ("-msse4.2",)}  # what every processor of the kind has: a cache may be shared by many
_COMPILE_SECONDS = 120.0
_WAIT_SECONDS = 300.0
_DAY_SECONDS = 86400.0


def library(folder: Path | None = None, environ: Mapping[str, str] = os.environ) -> Path:
    """The path of the collectives' library; compiles it if there is none of these sources, compiler and flags.

    Any number of processes may ask at once: one of them compiles, which takes some seconds, and the others wait.

    Args:
        folder: where it is kept; None for `cache_folder`.
        environ: the environment, for CXX, PATH, XDG_CACHE_HOME and HOME.

    Raises:
        CollectivesUnavailable: not on Linux, no compiler, it fails, or the folder cannot be written.
    """
    return _library(_COLLECTIVES, folder, environ)


def calling_thread_library(folder: Path | None = None, environ: Mapping[str, str] = os.environ) -> Path:
    """The path of the library of `calling_thread.py`; all else as for `library`."""
    return _library(_CALLING_THREAD, folder, environ)


def _library(name: str, folder: Path | None, environ: Mapping[str, str]) -> Path:
    if sys.platform != "linux":
        raise CollectivesUnavailable(f"they are made for Linux, not for {sys.platform}")
    folder = cache_folder(environ) if folder is None else folder
    sources = _digest(path.name.encode() + b"\0" + path.read_bytes() for path in _files(name))
    compiler = find_compiler(environ)
    if compiler is None:
        # What was compiled while there was one, in another stage of a container's build, will do.
        found = max(folder.glob(f"{name}-{sources}-*.so"), default=None)
        if found is None:
            raise CollectivesUnavailable("there is no C++ compiler: install g++, or set CXX")
        _asked_for(found)
        return found
    key = _digest([_version(compiler), " ".join(_command(name, compiler[1:], Path())).encode()])
    path = folder / f"{name}-{sources}-{key}.so"
    if path.is_file():
        _asked_for(path)
        return path
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with held(folder / f"{name}.lock", _WAIT_SECONDS):
            if not path.is_file():
                _compile(name, compiler, path)
                _remove_old(name, path)
    except TimeoutError:
        raise CollectivesUnavailable(f"another process has been compiling them for {_WAIT_SECONDS:.0f} s") from None
    except OSError as error:
        raise CollectivesUnavailable(
            f"the compiled library cannot be kept in {folder}: {error.strerror or error}; set XDG_CACHE_HOME"
        ) from None
    return path


def cache_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """$XDG_CACHE_HOME/rankmq, by default ~/.cache/rankmq."""
    given = environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(given):  # as the specification says: others are to be ignored
        return Path(given) / "rankmq"
    home = environ.get("HOME", "")
    return (
        Path(home) if os.path.isabs(home) else Path(tempfile.gettempdir()) / f"user-{os.getuid()}"
    ) / ".cache/rankmq"


def find_compiler(environ: Mapping[str, str] = os.environ) -> list[str] | None:
    """The command of the C++ compiler: CXX if it is set, else what there is on the PATH; None if there is none.

    Raises:
        CollectivesUnavailable: CXX is no command.
    """
    try:
        given = shlex.split(environ.get("CXX", ""))
    except ValueError as error:
        raise CollectivesUnavailable(f"CXX is no command ({error}): {environ['CXX']}") from None
    for command in [given] if given else [[name] for name in _COMPILERS]:
        found = shutil.which(command[0], path=environ.get("PATH"))
        if found is not None:
            return [found, *command[1:]]
    return None


def compile_command(compiler: Sequence[str], output: Path, flags: Sequence[str] = ()) -> list[str]:
    """The command that compiles the collectives.

    Args:
        compiler: its command, as `find_compiler` gives it.
        output: the file to make.
        flags: further ones, such as a sanitizer's.
    """
    return _command(_COLLECTIVES, compiler, output, flags)


def _command(name: str, compiler: Sequence[str], output: Path, flags: Sequence[str] = ()) -> list[str]:
    machine = _MACHINE_FLAGS.get(platform.machine(), ())
    names = [f"-Wl,--version-script={path}" for path in _files(name, ".map")]
    sources = [str(path) for path in _files(name, ".cc")]
    return [*compiler, *_FLAGS, *machine, *names, *flags, "-o", str(output), *sources]


def _files(name: str, *suffixes: str) -> list[Path]:
    of_it = (path for path in SOURCES.iterdir() if (path.stem == _CALLING_THREAD) == (name == _CALLING_THREAD))
    return sorted(path for path in of_it if path.suffix in (suffixes or (".cc", ".h", ".map")))


def _digest(parts: Iterator[bytes] | Sequence[bytes]) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _version(compiler: Sequence[str]) -> bytes:
    try:
        done = subprocess.run([*compiler, "--version"], capture_output=True, check=True, timeout=_COMPILE_SECONDS)
    except (OSError, subprocess.SubprocessError) as error:
        raise CollectivesUnavailable(f"the C++ compiler {shlex.join(compiler)} does not run: {error}") from None
    return done.stdout


def _compile(name: str, compiler: Sequence[str], path: Path) -> None:
    for leftover in path.parent.glob(f"{name}-*.part"):  # of one that was killed: we hold the lock
        leftover.unlink(missing_ok=True)
    part = path.with_suffix(".part")
    began = time.monotonic()
    try:
        done = subprocess.run(
            _command(name, compiler, part),
            check=False,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_COMPILE_SECONDS,
        )
        if done.returncode != 0:
            raise CollectivesUnavailable(f"{compiler[0]} cannot compile them: {_first_error(done.stderr)}")
        part.replace(path)  # whoever finds it finds it whole
    except subprocess.TimeoutExpired:
        raise CollectivesUnavailable(f"{compiler[0]} took over {_COMPILE_SECONDS:.0f} s to compile them") from None
    finally:
        part.unlink(missing_ok=True)
    log.info("compiled %s in %.1f s", path, time.monotonic() - began)


def _first_error(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return next((line for line in lines if "error" in line), lines[0] if lines else "it does not say why")[:300]


def _asked_for(path: Path) -> None:
    """Notes it as the file's time, to within a day."""
    with suppress(OSError):  # somebody else's cache
        if abs(time.time() - path.stat().st_mtime) > _DAY_SECONDS:
            os.utime(path)


def _remove_old(name: str, made: Path) -> None:
    """Removes libraries that are not needed any more, with what was noted about them; see the top of this file."""
    others: list[tuple[float, Path]] = []
    for path in made.parent.glob(f"{name}-*.so"):
        with suppress(OSError):
            if path != made:
                others.append((path.stat().st_mtime, path))
    long_ago = time.time() - KEEP_DAYS * _DAY_SECONDS
    for asked_for, path in sorted(others, reverse=True)[KEEP - 1 :]:
        if asked_for < long_ago:
            for file in (path, *path.parent.glob(f"{path.stem}.*")):
                with suppress(OSError):
                    file.unlink(missing_ok=True)
            log.info("removed %s, which nobody has asked for in %d days", path, KEEP_DAYS)
