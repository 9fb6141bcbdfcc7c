"""The C++ library's own test (tests/native): as it is, under the sanitizers of the compiler, and under valgrind."""

import functools
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from rankmq.workers.collectives.build import find_compiler

RUN = Path(__file__).parents[1] / "native" / "run"
COMPILER = find_compiler()
FLAGS = {
    "plain": (),
    "thread": ("-fsanitize=thread",),
    "address": ("-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
    "valgrind": (),
}
pytestmark = [pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler"), pytest.mark.timeout(300)]


@functools.cache
def why_not(mode: str, folder: Path) -> str:
    """Why this cannot be run here; "" if it can: sanitizers need their libraries, and a kernel that they know."""
    if mode == "valgrind" and shutil.which("valgrind") is None:
        return "needs valgrind"
    source, program = folder / "nothing.cc", folder / "nothing"
    source.write_text("int main() {}\n")
    build = [*COMPILER, "-std=c++17", "-pthread", *FLAGS[mode], "-o", str(program), str(source)]
    command = ["valgrind", "--quiet", str(program)] if mode == "valgrind" else [str(program)]
    for words in (build, command):
        done = subprocess.run(words, capture_output=True, text=True, timeout=60)
        if done.returncode != 0:
            return f"{words[0]}: {(done.stderr.strip() or str(done.returncode)).splitlines()[0]}"
    return ""


def run(mode: str, **environ: str) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "CXX": " ".join(COMPILER), **environ}
    return subprocess.run(
        [str(RUN), mode], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environ, timeout=280
    )


@pytest.mark.parametrize("mode", FLAGS)
def test_there_is_nothing_to_be_found(mode: str, tmp_path: Path) -> None:
    if reason := why_not(mode, tmp_path):
        pytest.skip(reason)
    done = run(mode)
    assert done.returncode == 0, done.stdout[-8000:]
    assert "is clean" in done.stdout


def test_what_is_found_is_a_failure(tmp_path: Path) -> None:
    """A program that fails, in the place of the one that is compiled."""
    compiler = tmp_path / "compiler"
    compiler.write_text(
        '#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done\nprintf "#!/bin/sh\\nexit 1" > "$2"\nchmod +x "$2"\n'
    )
    compiler.chmod(0o755)
    done = run("plain", CXX=str(compiler))
    assert done.returncode != 0
    assert "is clean" not in done.stdout
