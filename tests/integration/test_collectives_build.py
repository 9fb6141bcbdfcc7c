"""The library is compiled once, whoever asks for it and however many."""

import ctypes
import os
import platform
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
from rankmq.workers.collectives import CollectivesUnavailable, SharedGroup, self_test
from rankmq.workers.collectives import library as compiled
from rankmq.workers.collectives.build import (
    KEEP,
    KEEP_DAYS,
    cache_folder,
    calling_thread_library,
    compile_command,
    find_compiler,
)
from rankmq.workers.collectives.lock import held

COMPILER = find_compiler()
pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")


@pytest.fixture
def counting(tmp_path):
    """A compiler that writes down when it compiles; its command, and what it wrote."""
    script, notes = tmp_path / "counting-c++", tmp_path / "notes"
    script.write_text(f'#!/bin/sh\n[ "$1" = --version ] || echo $$ >> {notes}\nexec {COMPILER[0]} "$@"\n')
    script.chmod(0o755)
    return str(script), lambda: notes.read_text().split() if notes.exists() else []


def environment(**changes):
    return {**os.environ, **changes}


def scripted(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_eight_processes_at_once_compile_once(tmp_path, counting):
    command, notes = counting
    code = "from rankmq.workers.collectives.build import library; print(library())"
    given = environment(CXX=command, XDG_CACHE_HOME=str(tmp_path), PYTHONPATH=os.pathsep.join(sys.path))

    def ask(_):
        return subprocess.run([sys.executable, "-c", code], env=given, capture_output=True, text=True, timeout=110)

    with ThreadPoolExecutor(8) as pool:
        done = list(pool.map(ask, range(8)))
    assert [it.stderr for it in done] == [""] * 8
    (path,) = {it.stdout.strip() for it in done}
    assert len(notes()) == 1
    assert Path(path).parent == tmp_path / "rankmq"
    assert [it.name for it in Path(path).parent.iterdir() if it.suffix != ".lock"] == [Path(path).name]
    ctypes.CDLL(path)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A folder with the library in it."""
    folder = tmp_path_factory.mktemp("cache")
    compiled(folder)
    return folder


def test_it_is_found_again(tmp_path, counting):
    command, notes = counting
    given = environment(CXX=command)
    assert compiled(tmp_path, given) == compiled(tmp_path, given)
    assert len(notes()) == 1


PRETEND = """
case " $* " in
    *" --version "*) echo {version} ;;
    *) while [ "$1" != -o ]; do shift; done; echo {version} > "$2" ;;
esac
"""
"""A compiler that writes its version where the library should go."""


def test_another_compiler_or_other_flags_make_another(tmp_path):
    one = scripted(tmp_path, "one", PRETEND.format(version=1))
    same = scripted(tmp_path, "same", PRETEND.format(version=1))
    other = scripted(tmp_path, "other", PRETEND.format(version=2))
    made = {words: compiled(tmp_path, environment(CXX=words)) for words in (one, same, other, f"{one} -O1")}
    assert made[one] == made[same]
    assert len(set(made.values())) == 3
    assert [made[words].read_text() for words in (one, other)] == ["1\n", "2\n"]


def test_without_a_compiler_what_there_is_will_do(cache):
    assert compiled(cache, environment(PATH="", CXX="")) == compiled(cache)


def test_without_a_compiler_and_without_a_library(tmp_path):
    with pytest.raises(CollectivesUnavailable, match=r"there is no C\+\+ compiler: install g\+\+, or set CXX"):
        compiled(tmp_path, environment(PATH="", CXX=""))
    with pytest.raises(CollectivesUnavailable, match="there is no C"):
        compiled(tmp_path, environment(CXX="no-such-compiler"))


def test_a_compiler_that_is_no_command(tmp_path):
    with pytest.raises(CollectivesUnavailable, match=r"CXX is no command \(No closing quotation\): g\+\+ '-O1"):
        compiled(tmp_path, environment(CXX="g++ '-O1"))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('[ "$1" = --version ] || { echo "x.cc:1:2: error: it is Monday" >&2; exit 1; }', "error: it is Monday"),
        ('[ "$1" = --version ] || exit 1', "it does not say why"),
        ("exit 3", "does not run"),
    ],
)
def test_a_compiler_that_fails(tmp_path, text, reason):
    with pytest.raises(CollectivesUnavailable, match=reason) as raised:
        compiled(tmp_path / "cache", environment(CXX=scripted(tmp_path, "failing", text)))
    assert "\n" not in raised.value.message
    assert list((tmp_path / "cache").glob("*.so")) == []
    assert list((tmp_path / "cache").glob("*.part")) == []


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CollectivesUnavailable, match=r"cannot be kept in .*set XDG_CACHE_HOME"):
        compiled(tmp_path / "file" / "cache")


def test_what_a_killed_process_left_half_done_is_no_library(tmp_path):
    command = scripted(tmp_path, "pretends", PRETEND.format(version=1))
    name = compiled(tmp_path / "other", environment(CXX=command)).with_suffix(".part").name
    (tmp_path / name).write_bytes(b"half of it")
    (tmp_path / "collectives-of-old.part").write_bytes(b"half of another")
    assert compiled(tmp_path, environment(CXX=command)).read_text() == "1\n"
    assert list(tmp_path.glob("*.part")) == []


# ------------------------------------------------------------------------------------------------ what is kept


def made_long_ago(folder, days):
    """Libraries of other sources, asked for last so many days ago; their names."""
    for number, age in enumerate(days):
        path = folder / f"collectives-of-old-{number}.so"
        for file in (path, path.with_suffix(".mindspore-1.passed")):
            file.write_text("")
            os.utime(file, (time.time() - age * 86400,) * 2)
    return [f"collectives-of-old-{number}.so" for number in range(len(days))]


@pytest.mark.parametrize(
    ("days", "kept"),
    [
        ([1, 2, 3, 4, 5], [0, 1, 2, 3, 4]),
        ([400, 300, 200, 100], [2, 3]),
        ([400, 1, 300, KEEP_DAYS - 1, KEEP_DAYS + 1], [1, 3]),
    ],
)
def test_old_libraries_go_when_a_new_one_is_made_but_not_the_few_last(tmp_path, days, kept):
    old = made_long_ago(tmp_path, days)
    command = scripted(tmp_path, "pretends", PRETEND.format(version=1))
    made = compiled(tmp_path, environment(CXX=command))
    left = {it.name for it in tmp_path.glob("*.so")}
    assert left == {made.name, *(old[number] for number in kept)}
    assert len(left) >= KEEP
    assert {it.name.partition(".")[0] for it in tmp_path.glob("*.passed")} == {old[number][:-3] for number in kept}


def test_one_that_is_asked_for_stays(tmp_path):
    command = scripted(tmp_path, "pretends", PRETEND.format(version=1))
    used = compiled(tmp_path, environment(CXX=command))
    os.utime(used, (0, 0))
    made_long_ago(tmp_path, [100, 200, 300])
    assert compiled(tmp_path, environment(CXX=command)) == used
    compiled(tmp_path, environment(CXX=scripted(tmp_path, "newer", PRETEND.format(version=2))))
    assert used.exists()
    assert len(list(tmp_path.glob("*.so"))) == KEEP


# ----------------------------------------------------------------------------------------------------- the self-test


def asked_at_once(library, monkeypatch, outcome, processes=8):
    """What as many that ask for the self-test at once are told, and how often it was run."""
    runs = []

    def run(*_):
        runs.append(1)
        time.sleep(0.2)  # the others come meanwhile
        if outcome:
            raise CollectivesUnavailable(outcome)

    def ask(_):
        try:
            self_test(SimpleNamespace(__version__="1.2"), library, parse=bytes)
        except CollectivesUnavailable as error:
            return error.message
        return ""

    monkeypatch.setattr(sys.modules["rankmq.workers.collectives.self_test"], "_run", run)
    with ThreadPoolExecutor(processes) as pool:
        return list(pool.map(ask, range(processes))), len(runs)


@pytest.mark.parametrize("outcome", ["", "this MindSpore does not run them: why"])
def test_of_all_that_ask_for_the_self_test_at_once_one_runs_it(tmp_path, monkeypatch, outcome):
    library = tmp_path / "collectives-a-b.so"
    assert asked_at_once(library, monkeypatch, outcome) == ([outcome] * 8, 1)
    # What was well stays so, what failed is tried again.
    assert asked_at_once(library, monkeypatch, "", 1) == ([""], 1 if outcome else 0)
    assert asked_at_once(library, monkeypatch, "another", 1) == ([""], 0)


def test_who_cannot_wait_for_the_self_test_of_another_runs_its_own(tmp_path, monkeypatch):
    library = tmp_path / "collectives-a-b.so"
    monkeypatch.setattr(sys.modules["rankmq.workers.collectives.self_test"], "_WAIT_SECONDS", 0.3)
    with held(library.with_suffix(".mindspore-1.2.lock"), 1.0):
        assert asked_at_once(library, monkeypatch, "", 1) == ([""], 1)
    assert asked_at_once(tmp_path / "nowhere" / "collectives-a-b.so", monkeypatch, "", 1) == ([""], 1)


def test_a_lock_is_waited_for_so_long(tmp_path):
    with held(tmp_path / "lock", 1.0):
        began = time.monotonic()
        with pytest.raises(TimeoutError), held(tmp_path / "lock", 0.2):
            raise AssertionError("it was held twice")
        assert 0.2 <= time.monotonic() - began < 5.0
    with held(tmp_path / "lock", 0.0):
        pass


def test_a_file_that_is_no_library(tmp_path):
    (tmp_path / "wrong.so").write_text("no library")
    with pytest.raises(CollectivesUnavailable, match="the compiled library cannot be loaded"):
        SharedGroup(tmp_path / "wrong.so")


@pytest.mark.skipif(shutil.which("nm") is None, reason="needs nm")
def test_the_library_shows_what_others_call_and_nothing_else(cache):
    """MindSpore loads it beside its own libraries: our names must not meet theirs."""
    names = shown(compiled(cache), "T")
    ours = ("rankmq_", "AllReduce_", "AllGather", "ReduceScatter_", "Broadcast_")
    assert {it for it in names if not it.startswith(ours) and it not in ("_init", "_fini")} == set()
    assert {"AllReduce_sum", "AllReduce_sumInferShape", "Broadcast_63InferType", "rankmq_open"} <= names


@pytest.mark.skipif(shutil.which("nm") is None, reason="needs nm")
def test_the_one_that_mindspore_finds_first_shows_the_name_that_is_meant_and_no_other(cache):
    """Not even what is of the C++ library's templates, and weak: all of MindSpore would use ours."""
    assert shown(calling_thread_library(cache)) == {
        "_ZN9mindspore10ThreadPool14ParallelLaunchERKSt8functionIFiPviffEES2_i",
        "rankmq_calling_thread_calls",
        "rankmq_use_calling_thread",
    }


def shown(library, *kinds):
    """The names that a library has for others, of some kinds or of all."""
    command = ["nm", "--dynamic", "--defined-only", str(library)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return {line.split()[2] for line in lines if not kinds or line.split()[1] in kinds}


def test_each_of_the_two_is_kept_for_itself(tmp_path, counting):
    command, notes = counting
    given = environment(CXX=command)
    made_long_ago(tmp_path, [400, 300, 200, 100])
    one = calling_thread_library(tmp_path, given)
    assert len(list(tmp_path.glob("collectives-*.so"))) == 4  # of another kind: not its business
    assert one != compiled(tmp_path, given)
    assert (one, len(notes())) == (calling_thread_library(tmp_path, given), 2)
    assert calling_thread_library(tmp_path, environment(PATH="", CXX="")) == one


def test_nothing_in_it_is_of_this_processor_alone():
    command = compile_command(["c++"], Path("out.so"))
    assert not any(word.startswith(("-march=native", "-mtune=native")) for word in command)
    assert ("-msse4.2" in command) == (platform.machine() == "x86_64")


@pytest.mark.parametrize(
    ("environ", "folder"),
    [
        ({"XDG_CACHE_HOME": "/var/cache/me", "HOME": "/home/me"}, "/var/cache/me/rankmq"),
        ({"XDG_CACHE_HOME": "relative", "HOME": "/home/me"}, "/home/me/.cache/rankmq"),
        ({"HOME": "/home/me"}, "/home/me/.cache/rankmq"),
        ({}, f"/tmp/user-{os.getuid()}/.cache/rankmq"),
    ],
)
def test_where_it_is_kept(environ, folder, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", "/tmp")
    assert cache_folder(environ) == Path(folder)
