"""The import contract: schemas <- engine <- workers <- scripts, relative across the layers, one module per driver."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LAYERS = ("schemas", "engine", "workers", "scripts")
DRIVERS = {
    "pika": {"engine/connection.py", "scripts/bench/tools/bare.py"},  # the second is what the first is measured against
    "mindspore": {"workers/mindspore_executor.py"},
    "msgpack": {"schemas/codec.py"},
    "msgspec.msgpack": {"schemas/codec.py"},
}
FILES = sorted(path for layer in LAYERS for path in (ROOT / layer).rglob("*.py"))


def imported(source: str, module: str) -> Iterator[str]:
    """Every module, and every name out of one, that a source mentions in an import, or as an attribute of msgspec.

    Args:
        source: the text of the module.
        module: its name, such as `rankmq.engine.client`; what is imported relatively is resolved against it.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = module.split(".")[: -node.level] if node.level else []
            base = ".".join([*package, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "msgspec":
            yield f"msgspec.{node.attr}"
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if function in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                yield node.args[0].value


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def complaints(file: str, source: str) -> list[str]:
    """What a module does against the contract.

    Args:
        file: its path from the top, such as `engine/client.py`.
        source: its text.
    """
    layer = file.split("/")[0]
    parts = file.removesuffix(".py").removesuffix("/__init__").split("/")
    module = ".".join(["rankmq", *parts, *(["__init__"] if file.endswith("__init__.py") else [])])
    found = set(imported(source, module))
    out = []
    for name in sorted(found):
        for driver, owners in DRIVERS.items():
            borrowed = name.startswith("rankmq.") and name.endswith(f".{driver}")  # out of the module that has it
            if (borrowed or within(name, driver)) and file not in owners:
                out.append(f"{file} imports {name}: only {' and '.join(sorted(owners))} may")
        for above in LAYERS[LAYERS.index(layer) + 1 :]:
            if within(name, f"rankmq.{above}"):
                out.append(f"{file} imports {name}: {layer} lies below {above}")
        if name.split(".")[0] in LAYERS:
            out.append(f"{file} imports {name}: a bare name would load a second copy; import it relatively")
    if layer == "scripts":
        return out
    return out + [f"{file} imports {name}: nobody imports scripts" for name in found if within(name, "rankmq.scripts")]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_contract_holds(path):
    assert complaints(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")) == []


def test_there_is_something_to_hold_it_against():
    assert {path.relative_to(ROOT).parts[0] for path in FILES} >= {"schemas"}
    assert ROOT / "schemas" / "codec.py" in FILES


@pytest.mark.parametrize("owner", sorted(set().union(*DRIVERS.values())))
def test_the_owner_of_a_driver_uses_it(owner):
    path = ROOT / owner
    if not path.exists():
        pytest.skip(f"{owner} is not there")
    found = set(imported(path.read_text(encoding="utf-8"), "rankmq." + owner.removesuffix(".py").replace("/", ".")))
    assert any(within(name, driver) for name in found for driver, owners in DRIVERS.items() if owner in owners)


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("engine/client.py", "import pika"),
        ("engine/client.py", "from pika.exceptions import AMQPError"),
        ("engine/client.py", "def f():\n    import mindspore"),
        ("engine/client.py", "from .connection import pika"),
        ("scripts/bench/edge.py", "import pika"),
        ("scripts/bench/tools/bare.py", "import mindspore"),
        ("engine/connection.py", "import mindspore.nn as nn"),
        ("engine/client.py", "import msgpack"),
        ("engine/client.py", "import msgspec.msgpack"),
        ("engine/client.py", "from msgspec import msgpack"),
        ("engine/client.py", "import msgspec\nmsgspec.msgpack.encode(1)"),
        ("schemas/edge.py", "import importlib\nimportlib.import_module('pika')"),
        ("schemas/edge.py", "__import__('mindspore')"),
        ("schemas/edge.py", "from ..engine import client"),
        ("schemas/edge.py", "from ..engine.client import Client"),
        ("schemas/__init__.py", "from ..engine.client import Client"),
        ("engine/client.py", "from rankmq.workers import agent"),
        ("engine/client.py", "from .. import workers"),
        ("workers/agent.py", "from ..scripts import main"),
        ("engine/client.py", "from engine import settings"),
        ("engine/client.py", "import schemas.errors"),
    ],
)
def test_what_is_against_the_contract_is_seen(file, source):
    assert complaints(file, source)


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("engine/connection.py", "import pika\nfrom ..schemas.errors import RankmqError"),
        ("workers/mindspore_executor.py", "import mindspore\nfrom ..engine import settings\nfrom .executor import E"),
        ("schemas/codec.py", "import msgspec.msgpack\nfrom . import plain"),
        ("schemas/__init__.py", "from .codec import encode"),
        ("engine/client.py", "import msgspec\nfrom .settings import Settings\nimport enginex"),
        ("scripts/main.py", "from ..workers.agent import Agent\nfrom . import output"),
        ("scripts/bench/tools/bare.py", "import pika\nfrom ....schemas.errors import OperatorError"),
    ],
)
def test_what_is_not_is_let_pass(file, source):
    assert complaints(file, source) == []


def test_the_packages_are_imported_under_one_name():
    import rankmq.schemas.errors

    assert "schemas" not in sys.modules
    assert rankmq.schemas.errors.__name__ == "rankmq.schemas.errors"
